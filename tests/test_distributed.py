"""Several processes come to the same end as one, and send nothing but what they must."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distributed_cases import Case, assert_same, counting, together, train
from training_cases import tiny_model
from viapt import distributed
from viapt.distributed import SharedBatches, shares

CASES = {
    "running": Case({"learn_carry_scale": True}),
    "parts": Case(arguments={"accumulate": 3, "batch_size": 7}),
    "penalty": Case({"kl_weight": 0.1, "shared_basis": True}, {"clip": 0.5, "selection": "best-val"}),
    "batch": Case({"reduction": "batch"}, images=(20, 10, 10)),  # its axes of a single image would be arbitrary
    "checkpointing": Case({"reduction": "linear"}, {"checkpointing": True}),
    "float32": Case(images=(24, 11, 7), arguments={"batch_size": 8}, dtype=torch.float32),
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of what 1, 2 and 3 processes end with."""
    folders = {count: tmp_path_factory.mktemp(f"of{count}") for count in (1, 2, 3)}
    train(folders[1], CASES)
    together(2, train, folders[2], CASES)
    together(3, train, folders[3], {"running": CASES["running"]})
    return folders


def end(folder: Path, name: str, process: int = 0) -> dict[str, Any]:
    return torch.load(folder / f"{name}-{process}.pt", weights_only=True)


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"float32"}))
def test_two_processes_are_one(name: str, ends: dict[int, Path]) -> None:
    for process in (0, 1):
        assert_same(end(ends[1], name), end(ends[2], name, process))


def test_three_processes_are_one_though_they_have_no_image_each(ends: dict[int, Path]) -> None:
    for process in (0, 1, 2):
        assert_same(end(ends[1], "running"), end(ends[3], "running", process))


def test_in_float32_they_differ_by_rounding(ends: dict[int, Path]) -> None:
    """Seen: losses to 2e-7. Asked for: 1e-4."""
    one, two = end(ends[1], "float32"), end(ends[2], "float32")
    torch.testing.assert_close(two["epochs"], one["epochs"], rtol=0, atol=5e-6)
    assert two["confusion"] == one["confusion"]
    for name, tensor in one["state"].items():
        step = 2**-10 if name.endswith("basis") else 1e-4  # of float16, in which the basis is kept
        torch.testing.assert_close(two["state"][name], tensor, rtol=0, atol=step)


def test_something_was_estimated_and_learned(ends: dict[int, Path]) -> None:
    """Lest the comparisons above compare what nobody touched."""
    state = end(ends[2], "running")["state"]
    assert state["method.kept.seen"].tolist() == [4, 4] and state["method.scale.seen"].tolist() == [4]
    assert bool((state["method.kept.explained"] > 0.5).all()) and bool((state["method.scale.gain"] < 0.9).all())
    losses = end(ends[2], "running")["epochs"][:, 2]
    assert losses[-1] < losses[0]


# What is sent


def test_only_what_is_learned_is_sent_and_each_reads_its_share(tmp_path: Path) -> None:
    """48 images in 8 batches of 2 parts; then 11 to validate, twice, and 7 to test."""
    arguments = {"epochs": 2, "batch_size": 12, "accumulate": 2}
    together(2, counting, tmp_path, Case(images=(48, 11, 7), arguments=arguments))
    sent = json.loads((tmp_path / "sent.json").read_text())
    model = tiny_model()
    counts, blocks = model.parameter_counts(), model.backbone.depth
    assert sum(sent["gradients"]) == 8 * (counts["method"] + counts["head"])
    # The start, in bytes, is that of method and head: most of it is what estimates the basis.
    start = 8 * (counts["method"] + counts["head"] + 3 * blocks * model.backbone.dim**2)
    rest = sorted(sent["others"])
    assert rest.pop() <= start + 4000 < 8 * counts["backbone"]
    # In four parts of six images the prompts of all and ours, before each block, and once more to measure their size.
    estimates = [size for size in rest if size == 9 * model.method.num_prompts * model.backbone.dim]
    assert len(estimates) == 4 * (2 * blocks - 1)
    large = [size for size in rest if size > 200 and size not in estimates]
    assert len(large) == 2 and max(large) < 6000  # what is trained, and where it stands, in words
    assert sent["read"] == 2 * 24 + 2 * 5 + 3 + 11  # each measures its rounds on all 11


# Who takes what


@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 6))
def test_shares_are_the_batch_in_its_order(size: int, parts: int, count: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "process_count", lambda: count)
        taken = []
        for index in range(count):
            patch.setattr(distributed, "process_index", lambda index=index: index)
            taken.append(shares(size, parts))
            (read,) = SharedBatches([list(range(100, 100 + size))], parts)
            assert read == [100 + row for part in taken[-1] for row in part.rows]
            assert [part.count for part in taken[-1]] == [part.counts[index] for part in taken[-1]]
    expected = [chunk.tolist() for chunk in torch.arange(size).chunk(parts)]
    assert [len(one) for one in taken] == [len(expected)] * count
    for part, rows in zip(zip(*taken, strict=True), expected, strict=True):
        assert [row for index, one in enumerate(part) for row in one.rows[: one.counts[index]]] == rows
        assert max(part[0].counts) - min(part[0].counts) <= 1
        assert all(set(one.rows) <= set(rows) and len(one.rows) >= 1 for one in part)


def test_alone_everything_is_the_identity() -> None:
    rows = torch.arange(6).view(3, 2)
    assert distributed.whole(rows) is rows
    with distributed.sharing([3]):
        assert distributed.whole(rows) is rows
    assert distributed.total(1.0, 2.0) == distributed.maximum(1.0, 2.0) == [1.0, 2.0]
    assert distributed.exchange(b"a") == [b"a"] and distributed.broadcast(b"a") == b"a"
    with pytest.raises(KeyError), distributed.agree():
        raise KeyError
