"""What precision "auto" takes: measured on a CPU, known of a GPU, and never changed within a run."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import viapt.precision
from viapt.errors import ConfigError
from viapt.precision import bfloat16_gain, choose_precision, has_fast_bfloat16, resolve_precision

measure = bfloat16_gain.__wrapped__  # as imported, before the tests' own "auto", and without its cache


@pytest.mark.parametrize(("gain", "name"), [(0.3, "float32"), (1.0, "float32"), (1.49, "float32"), (1.5, "bfloat16")])
def test_bfloat16_must_be_worthwhile(gain: float, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viapt.precision, "bfloat16_gain", lambda: gain)
    choice = choose_precision("auto", "cpu")
    assert choice.name == name and f"{gain:.1f} times" in choice.reason
    assert str(choice) == f"{name} ({choice.reason})"
    assert has_fast_bfloat16("cpu") == (name == "bfloat16")


@pytest.mark.parametrize("fails", [False, True])
def test_one_thread_is_measured_and_all_are_left(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, seen = torch.get_num_threads(), set()

    def timed(run: object) -> float:
        seen.add(torch.get_num_threads())
        if fails:
            raise RuntimeError
        return 1.0

    monkeypatch.setattr(viapt.precision, "timed", timed)
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError) if fails else nullcontext():
            measure()
        assert torch.get_num_threads() == 2 and seen == {1}
    finally:
        torch.set_num_threads(threads)


class Stopwatch:
    """Stands in for `timed`: products that take known times, which other programs lengthen now and then."""

    def __init__(self, seconds: dict[torch.dtype, float], disturbed: Callable[[int], bool]) -> None:
        self.seconds, self.disturbed = seconds, disturbed
        self.calls: list[torch.dtype] = []

    def __call__(self, run: Callable[[], torch.Tensor]) -> float:
        dtype = run().dtype
        self.calls.append(dtype)
        return self.seconds[dtype] * (20 if self.disturbed(len(self.calls)) else 1)


@pytest.mark.parametrize("disturbed", [{1, 2}, {3, 6}, {4, 5, 7}, {24}])
def test_other_programs_do_not_change_the_measurement(disturbed: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch({torch.float32: 0.008, torch.bfloat16: 0.002}, disturbed.__contains__)
    monkeypatch.setattr(viapt.precision, "timed", watch)
    assert measure() == pytest.approx(4.0)


def test_emulated_bfloat16_is_given_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch({torch.float32: 0.008, torch.bfloat16: 0.8}, lambda call: False)
    monkeypatch.setattr(viapt.precision, "timed", watch)
    assert measure() == pytest.approx(0.01)
    assert watch.calls.count(torch.bfloat16) == 2


def test_the_products_are_a_layers_and_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    results = {dtype: viapt.precision.product(dtype)() for dtype in (torch.float32, torch.bfloat16)}
    assert {dtype: result.dtype for dtype, result in results.items()} == {dtype: dtype for dtype in results}
    assert all(result.shape == (256, 768) and bool((result == 768).all()) for result in results.values())


def test_the_measurement_is_real() -> None:
    """Whatever it says of this machine, it is a ratio of two times; and the clock is running."""
    assert 0 < measure() < float("inf")
    waits = itertools.count()
    assert viapt.precision.timed(lambda: next(waits)) > 0 and next(waits) == 1


def test_a_processor_whose_onednn_has_no_bfloat16(tmp_path: Path) -> None:
    """As every one without AVX-512: oneDNN refuses such products, and is slower in float32: nothing goes through it."""
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\n"
        "from viapt.backbones.frozen_linear import linear\n"
        "from viapt.device import prefers_onednn\n"
        "from viapt.precision import choose_precision\n"
        "x, weight = torch.ones(3, 8, dtype=torch.bfloat16), torch.ones(2, 8, dtype=torch.bfloat16)\n"
        "assert not prefers_onednn(x) and not prefers_onednn(x.float())\n"
        "assert linear(x, weight).tolist() == [[8.0, 8.0]] * 3\n"
        "choose_precision('auto', 'cpu')\n"
    )
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_gpus_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for supported in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, s=supported: s)
        assert has_fast_bfloat16("cuda") == has_fast_bfloat16() == supported
        assert ("no units" in choose_precision("auto", "cuda").reason) != supported
    assert resolve_precision("auto", "mps") == torch.float32


def test_names_stand_for_themselves() -> None:
    assert resolve_precision("bfloat16", "cpu") == torch.bfloat16
    assert choose_precision("float32").reason == "as asked for"
    with pytest.raises(ConfigError, match="float16"):
        resolve_precision("float16")
