"""A damaged adapter is refused, and no moment of a save leaves one: every byte, every step, full disks and kill -9."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import viapt.adapter_files
from artifact_cases import fitted, forge, logits, tiny
from viapt.artifact import CARD, CONFIG, TENSORS, load, read_config
from viapt.errors import ArtifactError
from viapt.model import PromptedClassifier


@pytest.fixture(scope="module")
def model() -> PromptedClassifier:
    return fitted()


@pytest.fixture(scope="module")
def whole(model: PromptedClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that nobody alters."""
    return model.save_pretrained(tmp_path_factory.mktemp("whole"), training={"epochs": 3})


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "adapter"))


# Damage


def mutations() -> st.SearchStrategy[tuple[str, float, int, str]]:
    """File, place (0 to 1), byte, kind of damage."""
    kinds = st.sampled_from(["flip", "set", "cut", "insert", "remove"])
    return st.tuples(st.sampled_from([CONFIG, TENSORS]), st.floats(0, 1), st.integers(0, 255), kinds)


def damaged(data: bytes, place: float, byte: int, kind: str) -> bytes:
    at = min(int(place * len(data)), len(data) - 1)
    if kind == "cut":
        return data[:at]
    middle = {"flip": bytes([data[at] ^ 1 << byte % 8]), "set": bytes([byte]), "remove": b""}
    return data[:at] + middle.get(kind, bytes([byte, data[at]])) + data[at + 1 :]


@given(st.lists(mutations(), min_size=1, max_size=2))
def test_damage_is_refused_or_harmless(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, damages: list[tuple[str, float, int, str]]
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    for name, *damage in damages:
        if data := (folder / name).read_bytes():
            (folder / name).write_bytes(damaged(data, *damage))
    try:
        again = load(folder, tiny())
    except ArtifactError:
        return
    original = load(whole, tiny())
    assert again.classes == original.classes
    assert read_config(folder) == read_config(whole)
    assert all(torch.equal(tensor, original.state_dict()[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_no_flipped_bit_goes_unnoticed(whole: Path, tmp_path: Path, name: str) -> None:
    """One bit in every so many bytes, in length, header and data."""
    folder = Path(shutil.copytree(whole, tmp_path / "adapter"))
    data, config = (folder / name).read_bytes(), read_config(whole)
    for at in sorted({*range(40), *range(len(data) - 20, len(data)), *range(0, len(data), len(data) // 100)}):
        (folder / name).write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        try:
            assert viapt.adapter_files.read_tensors(folder, read_config(folder)).keys()
        except ArtifactError:
            continue
        assert name == CONFIG and read_config(folder) == config, f"byte {at}"  # white space


@given(st.lists(mutations(), min_size=1, max_size=2))
def test_damage_under_a_right_check_sum_is_refused_or_a_valid_adapter(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, damages: list[tuple[str, float, int, str]]
) -> None:
    folder = tmp_path_factory.mktemp("forged")
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    data = (folder / TENSORS).read_bytes()
    for _, place, *damage in damages:
        data = damaged(data, place**4, *damage) or b"x"  # mostly in the header
    forge(folder, data=data)
    try:
        again = load(folder, tiny())
    except ArtifactError:
        return
    assert all(bool(tensor.isfinite().all()) for tensor in again.state_dict().values())


# Saving


def failing(monkeypatch: pytest.MonkeyPatch, moment: int) -> list[str]:
    """Let the disk fail at the given step of a save; the steps that were taken."""
    steps: list[str] = []

    def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            steps.append(name)
            if len(steps) == moment:
                if name == "write":  # half of it fits
                    arguments[0].write_bytes(arguments[1][: len(arguments[1]) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*arguments)

        return step

    monkeypatch.setattr(viapt.adapter_files, "write_synced", counted("write", viapt.adapter_files.write_synced))
    monkeypatch.setattr(viapt.adapter_files, "sync", counted("sync", viapt.adapter_files.sync))
    monkeypatch.setattr(Path, "replace", counted("replace", Path.replace))
    return steps


def answers(folder: Path) -> Tensor:
    return logits(load(folder, tiny()))


def test_a_full_disk_leaves_the_old_adapter_or_the_new_one(tmp_path: Path, model: PromptedClassifier) -> None:
    folder, newer = tmp_path / "adapter", fitted(seed=5)
    old, new = logits(model), logits(newer)
    outcomes = []
    for moment in range(1, 50):
        model.save_pretrained(folder)
        with pytest.MonkeyPatch.context() as patch:
            steps = failing(patch, moment)
            try:
                newer.save_pretrained(folder)
            except ArtifactError as error:
                assert "No space left" in error.found
        found = answers(folder)
        assert torch.equal(found, old) or torch.equal(found, new)
        outcomes.append(torch.equal(found, new))
        if len(steps) < moment:
            break
        assert sorted(path.name for path in folder.iterdir()) == sorted([CONFIG, TENSORS, CARD])
    assert steps[:4] == ["write", "write", "write", "sync"]
    assert not any(outcomes[:5]) and all(outcomes[5:])  # the first rename decides
    assert len(outcomes) == 11


def test_a_full_disk_leaves_no_adapter_where_none_was(tmp_path: Path, model: PromptedClassifier) -> None:
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, 2)
        with pytest.raises(ArtifactError, match="make room there"):
            model.save_pretrained(tmp_path / "adapter")
    assert list((tmp_path / "adapter").iterdir()) == []


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path, model: PromptedClassifier) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ArtifactError, match="cannot be written"):
            model.save_pretrained(folder)


def test_other_files_in_the_folder_stay(folder: Path, model: PromptedClassifier) -> None:
    (folder / "history.jsonl").write_text("{}")
    model.save_pretrained(folder)
    assert (folder / "history.jsonl").read_text() == "{}"


def test_a_mixture_of_two_adapters_is_refused(folder: Path) -> None:
    other = fitted(seed=5).save_pretrained(folder.parent / "other")
    shutil.copy(other / TENSORS, folder / TENSORS)
    with pytest.raises(ArtifactError, match=r"is not the file that adapter_config\.json belongs to"):
        load(folder, tiny())


KILLED = """
import os, signal, sys
from pathlib import Path
import viapt.adapter_files as files
from viapt.checkpoint import write_synced

folder, names = Path(sys.argv[1]), (files.CONFIG, files.TENSORS, files.CARD)
old, new = ({name: (folder / kind / name).read_bytes() for name in names} for kind in ("old", "new"))


def dies_at(moment):
    steps = 0

    def counted(original):
        def step(*arguments):
            nonlocal steps
            steps += 1
            if steps == moment:
                if original is write_synced:
                    arguments[0].write_bytes(arguments[1][:100])
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments)

        return step

    files.write_synced, files.sync, Path.replace = map(counted, (files.write_synced, files.sync, Path.replace))


for moment in range(1, 50):
    target = folder / f"killed-{moment:02}"
    files.commit(target, old)
    child = os.fork()
    if not child:
        dies_at(moment)
        files.commit(target, new)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        break
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_9_at_every_moment_leaves_the_old_adapter_or_the_new_one(
    tmp_path: Path, model: PromptedClassifier
) -> None:
    newer = fitted(seed=5)
    old, new = logits(model), logits(newer)
    model.save_pretrained(tmp_path / "old")
    newer.save_pretrained(tmp_path / "new")
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=True, timeout=300)
    folders = sorted(tmp_path.glob("killed-*"))
    assert len(folders) == 11  # ten deaths, and one that lived
    found = [answers(folder) for folder in folders]
    assert all(torch.equal(answer, old) for answer in found[:5])
    assert all(torch.equal(answer, new) for answer in found[5:])
    assert (folders[5] / ".adapter_model.safetensors.next").exists()  # dead between two renames, and still whole
    for folder in folders:  # and the next save is as good as any
        model.save_pretrained(folder)
        assert torch.equal(answers(folder), old)
        assert sorted(path.name for path in folder.iterdir()) == sorted([CONFIG, TENSORS, CARD])
