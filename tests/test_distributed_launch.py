"""`viapt fit` as people start it in several processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cli_cases import write_backbone, write_photos
from distributed_cases import free_port
from viapt.cli import main

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}
OPTIONS = ["--epochs", "3", "--batch-size", "7", "--set", "num_prompts=4", "--set", "num_instance_prompts=2"]
OPTIONS += ["--precision", "float32"]
ACCELERATE = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--cpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`viapt` and its arguments, but for --out."""
    folder = tmp_path_factory.mktemp("data")
    photos = write_photos(folder / "photos", COLOURS, 14)
    return ["fit", str(photos), "--backbone", write_backbone(tmp_path_factory.mktemp("tiny")), *OPTIONS, "--out"]


def launch(launcher: list[str], arguments: list[str]) -> subprocess.CompletedProcess[str]:
    whole = [*launcher, str(free_port()), "-m", "viapt", *arguments]
    return subprocess.run(whole, capture_output=True, text=True, env=ENVIRONMENT, timeout=200)


def result(out: Path) -> dict[str, object]:
    record = json.loads((out / "result.json").read_text())
    return {key: value for key, value in record.items() if key not in ("seconds", "test")}


def test_accelerate_launch_gives_the_result_of_one_process(command: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, str(tmp_path / "one")])
    assert stopped.value.code == 0
    launched = launch(ACCELERATE, [*command, str(tmp_path / "two")])
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.count("test accuracy") == launched.stdout.count("adapter and result") == 1
    assert launched.stderr.count("epoch 3/3") == 1
    names = [{path.name for path in (tmp_path / folder).iterdir()} for folder in ("one", "two")]
    assert names[0] == names[1]
    assert result(tmp_path / "one") == result(tmp_path / "two")
    one, two = (safetensors.torch.load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-3)


def test_stopped_by_its_launcher_it_is_resumed_by_one_process(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*command, str(tmp_path / "cut"), "--epochs", "40"]
    whole = [*TORCHRUN, str(free_port()), "-m", "viapt", *arguments]
    with subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 2/"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
        assert process.wait(timeout=100) != 0
    assert rest.count("Interrupted. What was done is saved; run the same command to resume.") == 1
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    assert "resuming after step" in capsys.readouterr().err
    assert len((tmp_path / "cut" / "history.jsonl").read_text().splitlines()) == 40


def test_one_process_tells_of_a_bad_image_for_all(command: list[str], tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", COLOURS, 6)
    (photos / "red" / "02.png").write_bytes(b"no image")
    arguments = [command[0], str(photos), *command[2:], str(tmp_path / "out")]
    launched = launch(TORCHRUN, arguments)
    assert launched.returncode != 0
    assert launched.stderr.count("Error: 1 image(s) cannot be read") == 1
    assert re.search(r"exitcode\s*: 2\b", launched.stderr)
    assert not (tmp_path / "out" / "result.json").exists()


@pytest.mark.parametrize("name", ["evaluate", "predict", "demo"])
def test_other_commands_are_done_once(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = f"Error: viapt {name} was launched in 2 processes. Expected: one; only fit runs in several.\n"
    for process, told in ((0, message), (1, "")):
        monkeypatch.setenv("RANK", str(process))
        with pytest.raises(SystemExit) as stopped:
            main([name, "adapter", "photos"] if name != "demo" else [name])
        assert stopped.value.code == 2
        assert capsys.readouterr() == ("", told)
