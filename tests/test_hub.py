"""Adapters on a model hub: a server that speaks as much of its language as that takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants as constants
import pytest
import torch

import viapt
from artifact_cases import fitted, logits, tiny
from cli_cases import write_backbone, write_photos
from hub_cases import Hub, hub_in_use
from serve_cases import free_port
from viapt.cli import main
from viapt.errors import ArtifactError, ConfigError
from viapt.hub import adapter_folder, parse
from viapt.serve.tasks import adapters_in

NAME = "somebody/cells"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_in_use(tmp_path / "cache", monkeypatch) as server:
        yield server


def test_pushed_and_loaded_bit_for_bit(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fitted()
    address = model.push_to_hub(NAME, training={"epochs": 3})
    assert address.startswith(f"{hub.address}/{NAME}/commit/") and hub.private == {NAME: True}
    (files,) = hub.repositories[NAME]
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert f'viapt.load("hf://{NAME}", backbone=module)' in files["README.md"].decode() == hub.cards[0]
    hub.repositories[NAME][0]["evil.py"] = b"raise SystemExit"
    loaded = viapt.load(f"hf://{NAME}", tiny())
    assert torch.equal(logits(loaded), logits(model))
    assert not [path for path in hub.asked if path.endswith(("evil.py", "README.md"))]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.asked)
    assert torch.equal(logits(viapt.load(Path(f"hf://{NAME}"), tiny())), logits(model)) and len(hub.asked) == before


def test_a_revision_is_that_revision(hub: Hub) -> None:
    first, second = fitted(), fitted(method="linear")
    first.push_to_hub(NAME)
    second.push_to_hub(f"hf://{NAME}", private=False)
    assert viapt.load(f"hf://{NAME}", tiny()).method.name == "linear" and hub.private == {NAME: True}
    assert torch.equal(logits(viapt.load(f"hf://{NAME}@v0", tiny())), logits(first))


def test_a_folder_of_that_name_wins(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = fitted()
    model.save_pretrained(Path("hf:") / NAME)
    assert torch.equal(logits(viapt.load(f"hf://{NAME}", tiny())), logits(model)) and not hub.asked
    with pytest.raises(ArtifactError, match=r"somebody/cells does not exist.*hf://user/name"):
        viapt.load(NAME)
    assert not hub.asked


def test_what_is_no_adapter_or_too_large_is_not_fetched(hub: Hub) -> None:
    hub.repositories[NAME] = [{"pytorch_model.bin": b"x"}]
    with pytest.raises(ArtifactError, match=r"hf://somebody/cells has no adapter_config\.json"):
        viapt.load(f"hf://{NAME}")
    hub.repositories[NAME] = [{"adapter_config.json": b"{}", "adapter_model.safetensors": b""}]
    hub.claimed = {"adapter_model.safetensors": 2**40}
    with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors of 1099511627776 bytes.*at most"):
        viapt.load(f"hf://{NAME}")
    assert not [path for path in hub.asked if "/resolve/" in path]


def test_an_adapter_that_changes_meanwhile_is_refused(hub: Hub) -> None:
    fitted(method="linear").push_to_hub(NAME)
    hub.pushed_after = NAME, "adapter_config.json"
    with pytest.raises(ArtifactError, match=r"changed while it was fetched.*try again"):
        viapt.load(f"hf://{NAME}", tiny())


def test_errors_say_what_to_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtifactError, match=r"no hf://somebody/nothing, or does not show it.*HTTP 404.*log in"):
        viapt.load("hf://somebody/nothing")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ArtifactError, match=r"hf://somebody/cells is not in the cache.*HF_HUB_OFFLINE"):
        viapt.load(f"hf://{NAME}")
    with pytest.raises(ArtifactError, match=r"cannot be reached.*HF_HUB_OFFLINE is not set"):
        fitted(method="linear").push_to_hub(NAME)


def test_a_refused_connection_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """When reading, when pushing, and when the hub goes away in the middle of that."""
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ArtifactError, match=r"cannot be reached for hf://somebody/cells \(Connect.*HF_HUB_OFFLINE=1"):
        viapt.load(f"hf://{NAME}")
    model = fitted(method="linear")
    with pytest.raises(ArtifactError, match=r"cannot be reached for hf://somebody/cells \(Connect.*check the network"):
        model.push_to_hub(NAME)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *_, **__: None)
    with pytest.raises(ArtifactError, match="cannot be reached"):
        model.push_to_hub(NAME)


def test_commands_take_adapters_on_a_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And say of them what they say of the folder that was pushed."""
    photos = write_photos(tmp_path / "photos", {"red": (220, 30, 30), "blue": (30, 30, 220)}, 3)
    backbone = write_backbone(tmp_path)
    model = viapt.create_model(backbone, "vpt-deep", classes=["blue", "red"], num_prompts=2)
    model.save_pretrained(tmp_path / NAME)
    model.push_to_hub(NAME)
    picture = photos / "red" / "00.png"
    outputs: dict[str, list[str]] = {}
    for kind, place in (("folder", str(tmp_path / NAME)), ("hub", f"hf://{NAME}")):
        out = tmp_path / kind
        out.mkdir()
        commands = [
            ["evaluate", place, photos, "--json"],
            ["predict", place, picture, "--format", "json"],
            ["predict", place, photos, "--out", out / "answers.parquet"],
            ["inspect", place, "--json"],
            ["explain", place, picture, "--out", out / "page"],
            ["export", place, "--to", "torch", "--out", out / "model.pt2"],
            ["convert", place, "--from", "viapt", "--to", out / "prompts.pth"],
            ["serve", place],
        ]
        outputs[kind] = []
        with monkeypatch.context() as patch:
            patch.setattr("viapt.export.export", lambda model, *_, **options: print(model.method.name))  # for minutes
            patch.setattr("viapt.serve.server.run", lambda app, *_: print(list(app.state.service.tasks)))
            for command in commands:
                capsys.readouterr()
                with pytest.raises(SystemExit) as stopped:
                    main([str(part) for part in command])
                said = capsys.readouterr()
                assert stopped.value.code == 0, (command, said.err)
                outputs[kind].append(said.out.replace(str(out), "OUT").replace(place, "PLACE"))
    assert outputs["hub"] == outputs["folder"] and "['cells']" in outputs["hub"][-1]
    assert f"hf:/{NAME}" in (tmp_path / "hub" / "page" / "explanation.html").read_text()


def test_adapters_of_one_name_are_not_served_together(hub: Hub, tmp_path: Path) -> None:
    fitted().push_to_hub(NAME)
    fitted().save_pretrained(tmp_path / "cells")
    with pytest.raises(ConfigError, match="would both be called 'cells'"):
        adapters_in([Path(f"hf://{NAME}@v0"), tmp_path / "cells"])


@pytest.mark.parametrize("place", ["hf://a", "hf://a/b/c", "hf://../b", "hf://a/b@", "hf://a/b@../x", "hf://a/b?c"])
def test_names_are_names(place: str) -> None:
    with pytest.raises(ArtifactError, match="names no adapter"):
        adapter_folder(place)


def test_places(tmp_path: Path) -> None:
    assert parse("hf://a/b.c-d@main") == ("a/b.c-d", "main") and parse("a/b") == ("a/b", None)
    assert adapter_folder(tmp_path / "x") == tmp_path / "x" and adapter_folder("x/y") == Path("x/y")
    with pytest.raises(ArtifactError, match="revision"):
        fitted(method="linear").push_to_hub("a/b@main")
