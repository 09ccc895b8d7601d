"""`viapt data list` and `viapt data show`: the benchmark tasks beside the packaged ones."""

from __future__ import annotations

import pytest

from miniatures.community import write_community
from viapt.cli import main
from viapt.data.benchmarks import TASKS, find_task


@pytest.fixture
def data(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("VIAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VIAPT_TASKS", raising=False)

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["data", *map(str, arguments)])
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


def test_all_tasks_are_listed(data):
    code, out, _ = data("list")
    lines = out.splitlines()
    assert code == 0 and any(line.startswith("silhouettes") for line in lines)
    listed = [line.split()[0] for line in lines if "/" in line.split()[0]]
    assert listed == list(TASKS)
    (line,) = [line for line in lines if line.startswith("hta/food101")]
    assert "60,600 / 15,150 / 25,250" in line and " 101 " in line


def test_every_task_is_explained(data):
    for name, task in TASKS.items():
        code, out, _ = data("show", name)
        assert code == 0
        for words in (name, task.title, task.licence, task.citation, task.source, task.label, task.notes):
            assert words in out
    code, out, _ = data("show", "hta/cifar100")
    assert "same data  vtab-1k/cifar100" in out and "here" not in out


def test_what_is_there(data, tmp_path):
    write_community(tmp_path, find_task("vtab-1k/eurosat"))
    code, out, _ = data("show", "eurosat", "--root", tmp_path)
    assert code == 0 and "layout community, split as published; train has 20 images instead of 800" in out
    (tmp_path / "eurosat/images/test/00003.png").unlink()
    code, out, _ = data("show", "eurosat", "--root", tmp_path)
    assert code == 0 and "images/test/00003.png missing" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "cifar100"], "one of vtab-1k/cifar100, hta/cifar100"),
        (["show", "vtab-1k/eurosatt"], "did you mean 'vtab-1k/eurosat'"),
        (["show", "eurosat", "--root", "/nowhere"], "--root /nowhere does not exist"),
    ],
)
def test_what_is_refused(data, arguments, words):
    code, out, err = data(*arguments)
    assert code == 2 and not out and words in err and len(err.splitlines()) == 1
