"""A training that is killed, interrupted or damaged ends with the same bits, or says why it cannot."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from training_cases import (
    Augmented,
    learned_bits,
    resumable,
    resumable_child,
    start,
    terminated_child,
    tiny_data,
    tiny_model,
)
from viapt import checkpoint as checkpoints
from viapt.checkpoint import Checkpoint, exclusive, load_checkpoint, save_checkpoint
from viapt.errors import ArtifactError, ConfigError, DataError, TrainingError
from viapt.history import read_history
from viapt.training import discard_checkpoints, fit


def final(out: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """Tensors of the newest checkpoint, and the history without its times."""
    newest = max((out / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return (newest / "tensors.safetensors").read_bytes(), [{**line, "seconds": 0} for line in lines]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("reference")
    process = start(resumable_child, out, 0.0, None)
    process.join()
    assert process.exitcode == 0
    assert len(final(out)[1]) == 3
    return final(out)


def finish(out: Path) -> None:
    process = start(resumable_child, out, 0.0, None)
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("deaths", [range(15), range(15, 25)], ids=["early", "late"])
def test_killed_between_any_two_changes_of_the_disk(deaths: range, tmp_path: Path, reference: Any) -> None:
    for die_before in deaths:
        process = start(resumable_child, tmp_path, 0.0, die_before)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    finish(tmp_path)
    assert die_before > deaths[2]
    assert final(tmp_path) == reference


def test_killed_at_random_moments_again_and_again(tmp_path: Path, reference: Any) -> None:
    moments = random.Random(0)
    kills = 0
    while kills < 6:
        process = start(resumable_child, tmp_path, 0.05, None)
        process.join(moments.uniform(0.1, 1.0))
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills += 1
    finish(tmp_path)
    assert kills
    assert final(tmp_path) == reference


def test_signals_finish_the_step_and_save(tmp_path: Path, reference: Any) -> None:
    class Interrupting(Augmented):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            if self.epochs[-1] == 1 and index == 7:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__getitem__(index)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    model, arguments = tiny_model(), {"epochs": 3, "batch_size": 8, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        fit(model, Interrupting(tiny_data()), out=tmp_path / "a", **arguments)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    stood = load_checkpoint(tmp_path / "a" / "checkpoints")
    assert stood is not None and 3 < stood.state["standing"]["step"] <= 6
    assert stood.state["standing"]["seen"] > 0
    assert learned_bits(model)["head.bias"] == stood.tensors["model/head.bias"].numpy().tobytes()
    again = fit(model, Augmented(tiny_data()), out=tmp_path / "a", **arguments)  # the very model that was interrupted
    assert again.resumed_step == stood.state["standing"]["step"]
    other = tiny_model()
    fit(other, Augmented(tiny_data()), **arguments)
    assert learned_bits(model) == learned_bits(other)


def test_sigterm_saves_and_ends_the_process(tmp_path: Path, reference: Any) -> None:
    process = start(terminated_child, tmp_path)
    process.join()
    assert process.exitcode == -signal.SIGTERM
    stood = load_checkpoint(tmp_path / "checkpoints")
    assert stood is not None and 1 <= stood.state["standing"]["step"] <= 2
    finish(tmp_path)
    assert final(tmp_path) == reference


def test_outside_the_main_thread_signals_are_left_alone(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            fit(tiny_model("linear"), tiny_data(), epochs=1, out=tmp_path, progress=False)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors
    assert len(read_history(tmp_path / "history.jsonl")) == 1


def test_a_finished_training_is_loaded_and_not_repeated(tmp_path: Path) -> None:
    first = resumable(tmp_path)
    second = tiny_model(calibration_steps=4, learn_carry_scale=True)
    data = Augmented(tiny_data())
    history = fit(
        second,
        data,
        tiny_data(10, seed=1),
        out=tmp_path,
        epochs=3,
        batch_size=8,
        lr=0.01,
        selection="best-val",
        progress=False,
    )
    assert learned_bits(first) == learned_bits(second)
    assert data.epochs == []
    assert history.resumed_step == 9
    assert history.epochs == read_history(tmp_path / "history.jsonl")


def test_a_finished_training_without_checkpoints_is_refused_unless_overwritten(tmp_path: Path) -> None:
    first = resumable(tmp_path)
    discard_checkpoints(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.jsonl"]
    with pytest.raises(TrainingError, match=r"holds a finished training.*overwrite"):
        resumable(tmp_path)
    assert learned_bits(resumable(tmp_path, overwrite=True)) == learned_bits(first)


def test_another_training_is_refused_with_all_differences(tmp_path: Path) -> None:
    resumable(tmp_path)
    with pytest.raises(TrainingError) as error:
        resumable(tmp_path, lr=0.02, clip=1.0, config={"data": "photos"})
    for difference in (
        "recipe.lr was 0.01 and is 0.02",
        "recipe.clip was null and is 1.0",
        'config.data was absent and is "photos"',
    ):
        assert difference in str(error.value)
    assert "seed" not in str(error.value)


@pytest.mark.parametrize(
    ("difference", "model", "count"),
    [
        ("train.images was 20 and is 21", tiny_model("linear"), 21),
        ('method.name was "linear" and is "vpt-deep"', tiny_model("vpt-deep"), 20),
        ('precision was "float32" and is "bfloat16"', tiny_model("linear").to_precision(torch.bfloat16), 20),
        ("classes was", tiny_model("linear", classes=4), 20),
    ],
)
def test_another_model_or_other_data_are_refused(difference: str, model: Any, count: int, tmp_path: Path) -> None:
    fit(tiny_model("linear"), tiny_data(20), epochs=1, out=tmp_path, progress=False)
    with pytest.raises(TrainingError, match=difference):
        fit(model, tiny_data(count), epochs=1, out=tmp_path, progress=False)


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "checkpoints"),
        pytest.raises(TrainingError, match="Another process is training"),
    ):
        fit(tiny_model("linear"), tiny_data(), epochs=1, out=tmp_path, progress=False)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file"):
        fit(tiny_model("linear"), tiny_data(), epochs=1, out=tmp_path / "file", progress=False)


# The store


def saved(folder: Path, *steps: int) -> list[Checkpoint]:
    made = [Checkpoint({"step": step}, {"weight": torch.full((5,), float(step))}) for step in steps]
    for checkpoint in made:
        save_checkpoint(folder, checkpoint)
    return made


def test_two_checkpoints_are_kept_and_nothing_else(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["2/state.json", "2/tensors.safetensors", "3/state.json", "3/tensors.safetensors"]
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None and loaded.state == {"step": 3}
    assert torch.equal(loaded.tensors["weight"], torch.full((5,), 3.0))


def test_nothing_saved_is_nothing_loaded(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    assert load_checkpoint(tmp_path / "missing") is None


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), truncate=st.booleans())
def test_any_damage_is_noticed(name: str, position: float, bit: int, truncate: bool, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    shutil.rmtree(folder, ignore_errors=True)
    saved(folder, 1)
    data = bytearray((folder / "1" / name).read_bytes())
    at = int(position * len(data))
    if truncate:
        del data[at:]
    else:
        data[at] ^= 1 << bit
    if name == "state.json" and same_json(bytes(data), (folder / "1" / name).read_bytes()):
        return  # white space
    (folder / "1" / name).write_bytes(data)
    with pytest.raises(ArtifactError, match="damaged"):
        load_checkpoint(folder)


def same_json(a: bytes, b: bytes) -> bool:
    try:
        return json.loads(a) == json.loads(b)
    except ValueError:
        return False


@pytest.mark.parametrize("damage", ["truncate", "flip", "no tensors", "no state", "not JSON", "not an object"])
def test_a_damaged_checkpoint_is_passed_over(damage: str, tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    tensors, state = tmp_path / "2" / "tensors.safetensors", tmp_path / "2" / "state.json"
    if damage == "truncate":
        tensors.write_bytes(tensors.read_bytes()[:-1])
    elif damage == "flip":
        tensors.write_bytes(tensors.read_bytes()[:-1] + bytes([tensors.read_bytes()[-1] ^ 1]))
    elif damage in ("no tensors", "no state"):
        (tensors if damage == "no tensors" else state).unlink()
    else:
        state.write_text("{" if damage == "not JSON" else "[1]")
    with pytest.warns(UserWarning, match="2 is damaged.*the checkpoint before it is used"):
        loaded = load_checkpoint(tmp_path)
    assert loaded is not None and loaded.state == {"step": 1}
    saved(tmp_path, 3)
    assert checkpoints.numbers(tmp_path) == [1, 2]


def test_after_damage_training_comes_to_the_same_end(tmp_path: Path, reference: Any) -> None:
    process = start(resumable_child, tmp_path, 0.0, 40)
    process.join()
    newest = tmp_path / "checkpoints" / str(checkpoints.numbers(tmp_path / "checkpoints")[-1])
    (newest / "tensors.safetensors").write_bytes(b"")
    finish(tmp_path)
    assert final(tmp_path) == reference


def test_what_only_the_estimate_needs_is_saved_while_it_goes_on(tmp_path: Path) -> None:
    for epochs, needed in ((1, True), (2, False)):  # of 3 steps; 5 estimate
        model = tiny_model(calibration_steps=5)
        fit(model, tiny_data(), epochs=epochs, batch_size=8, out=tmp_path / str(epochs), progress=False)
        stood = load_checkpoint(tmp_path / str(epochs) / "checkpoints")
        assert stood is not None
        assert ("model/method.kept.moment" in stood.tensors) is needed
        again = tiny_model(calibration_steps=5)
        fit(again, tiny_data(), epochs=epochs, batch_size=8, out=tmp_path / str(epochs), progress=False)
        assert learned_bits(again) == learned_bits(model)


def test_if_all_are_damaged_it_says_so(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    for number in "12":
        (tmp_path / number / "state.json").write_text("")
    with pytest.raises(ArtifactError, match=r"No checkpoint in .* can be read.*overwrite"):
        load_checkpoint(tmp_path)


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "FORMAT", checkpoints.FORMAT + 1)
    saved(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match=f"has format {checkpoints.FORMAT + 1}"):
        load_checkpoint(tmp_path)


def test_tensors_of_another_version_are_refused(tmp_path: Path) -> None:
    resumable(tmp_path)
    folder = tmp_path / "checkpoints"
    loaded = load_checkpoint(folder)
    assert loaded is not None
    save_checkpoint(folder, Checkpoint(loaded.state, loaded.tensors | {"model/head.bias": torch.zeros(4)}))
    with pytest.raises(ArtifactError, match=r"does not fit the model: head\.bias"):
        resumable(tmp_path)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 1)

    def full(path: Path, data: bytes) -> None:
        path.write_bytes(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_synced", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        saved(tmp_path, 2)
    monkeypatch.undo()
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None and loaded.state == {"step": 1}
    saved(tmp_path, 2)
    assert checkpoints.numbers(tmp_path) == [1, 2]


def test_tensors_are_read_by_safetensors_alone(tmp_path: Path) -> None:
    resumable(tmp_path)
    for path in (tmp_path / "checkpoints").rglob("*"):
        if path.suffix == ".safetensors":
            safetensors.torch.load(path.read_bytes())
        elif path.is_file():
            assert path.name in ("state.json", ".lock")


def test_a_history_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(DataError, match=r"history\.jsonl"):
        read_history(tmp_path / "history.jsonl")
