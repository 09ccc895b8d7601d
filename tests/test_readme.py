"""What the README says is run: its Python and its commands, on the tiny backbone in place of the packaged one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import viapt
from cli_cases import write_backbone, write_photos
from document_commands import Shell

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGED = "packaged:vits14"


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    assert found, f"the README has no {language} any more"
    return found


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with `photos` in it, as the README assumes."""
    write_photos(tmp_path / "photos", {"cat": (220, 30, 30), "dog": (30, 30, 220)}, 14, "{}.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> str:
    return write_backbone(tmp_path_factory.mktemp("tiny"))


def test_python(here, backbone, capsys):
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block.replace(PACKAGED, backbone), "README.md", "exec"), names)
    assert names["history"].test_accuracy is not None
    assert "adapter_model.safetensors" in {path.name for path in (here / "adapter").iterdir()}
    labels = re.match(r"\['(cat|dog)', '(cat|dog)'\] tensor", capsys.readouterr().out)
    assert labels


@pytest.mark.compiled  # one of them exports
def test_commands(here, backbone):
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    launched = "accelerate launch --multi_gpu --num_processes 4 -m "  # see test_distributed_launch.py
    assert len([line for line in commands if line.removeprefix(launched).startswith("viapt ")]) >= 5
    shell = Shell(backbone)
    with shell.background:
        for line in commands:
            shell.run(line.removeprefix(launched).replace(PACKAGED, backbone))


def test_tables_name_what_is_there():
    assert PACKAGED in README and all(f"`{method}`" in README for method in viapt.list_methods())
