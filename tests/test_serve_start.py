"""How a server starts: in which precision, and with which tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn
from fastapi import FastAPI

import viapt
from cli_cases import write_backbone
from serve_cases import picture, serve, upload
from viapt.cli import main
from viapt.create import create_model
from viapt.multitask import MultiTask
from viapt.serve.tasks import open_tasks

OTHER = {"float32": "bfloat16", "bfloat16": "float32"}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_backbone(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def adapters(backbone: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two, each fitted in another precision and called like it."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, precision in enumerate(OTHER):
        model = create_model(backbone, "vpt-deep", classes=3, precision=precision, seed=seed, num_prompts=2)
        torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(seed))
        model.save_pretrained(folder / precision)
    return {name: folder / name for name in OTHER}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The applications that `viapt serve` would have served."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.delenv("VIAPT_TOKEN", raising=False)
    found: list[Any] = []

    async def serve(server: uvicorn.Server) -> None:
        found.append(server.config.app)

    monkeypatch.setattr(uvicorn.Server, "serve", serve)
    for name in ("signal.signal", "gc.freeze", "uvicorn.Config.configure_logging"):
        monkeypatch.setattr(f"viapt.serve.server.{name}", lambda *_: None)
    return found


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[Any, str]:
    """Exit code and standard error of `viapt serve`."""
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as stopped:
        main(["serve", *map(str, arguments)])
    torch.set_num_threads(threads)
    return stopped.value.code, capsys.readouterr().err


@pytest.mark.parametrize("wanted", [None, "float32", "bfloat16"])
@pytest.mark.parametrize("first", list(OTHER))
def test_the_precision_is_that_of_the_first_adapter_or_the_one_that_was_asked_for(
    first: str,
    wanted: str | None,
    adapters: dict[str, Path],
    started: list[Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Answers are then those of a local prediction, of the adapters that were fitted in it; others are named."""
    options = [] if wanted is None else ["--precision", wanted]
    code, err = run(capsys, adapters[first], adapters[OTHER[first]], *options)
    assert code == 0, err
    served = wanted or first
    assert f"in {served}: {first}, {OTHER[first]}" in err
    assert f"computes in {served}; fitted in another precision: {OTHER[served]} ({OTHER[served]})\n" in err
    tasks = started[0].state.service.tasks
    expected = viapt.load(adapters[served]).predict([picture(1)]).probabilities
    torch.testing.assert_close(tasks.predict([picture(1)])[served].probabilities, expected, rtol=0, atol=1e-5)


def test_nothing_is_said_where_precisions_agree(
    adapters: dict[str, Path], started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    code, err = run(capsys, adapters["float32"])
    assert code == 0 and "another precision" not in err


def test_precisions_are_told(adapters: dict[str, Path], backbone: str) -> None:
    tasks = open_tasks(list(adapters.values()), None, "bfloat16")
    assert tasks.precision == "bfloat16" and tasks.backbone.dtype == torch.bfloat16

    async def scenario(client: httpx.AsyncClient, _: FastAPI) -> None:
        found = (await client.get("/v1/tasks")).json()
        assert found["precision"] == "float32"
        assert {one["name"]: one["precision"] for one in found["tasks"]} == {name: name for name in OTHER}
        assert (await client.post("/v1/classify", **upload(picture()))).status_code == 200

    serve(adapters, scenario, backbone=backbone)
    assert MultiTask(backbone).precision == "float32"


def test_teaching_may_begin_on_a_backbone_without_adapters(
    backbone: str, started: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, err = run(capsys, "--backbone", backbone, "--teach", tmp_path / "taught", "--precision", "bfloat16")
    assert code == 0 and f"0 tasks on {backbone}, in bfloat16: none yet" in err
    teacher = started[0].state.service.teacher
    assert teacher.taught == [] and teacher.tasks.backbone.pretrained
    code, err = run(capsys, "--backbone", backbone, "--root", tmp_path)
    assert code == 0, err


def test_beginnings_that_lead_nowhere(
    backbone: str, adapters: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, teach = ["--backbone", backbone], ["--teach", str(tmp_path / "taught")]
    wrong: list[tuple[list[str], str]] = [
        ([], "--backbone NAME with --teach"),
        (teach, "--backbone NAME with --teach"),
        (given, "no task could ever be there"),
        ([*given, *teach, str(adapters["float32"])], "--backbone has no effect with adapters"),
        ([*given, *teach, "--engine", "ray"], "no effect with --engine ray"),
    ]
    for arguments, words in wrong:
        code, err = run(capsys, *arguments)
        assert code == 2 and words in err, err
