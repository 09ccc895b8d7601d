"""One thread, no model hub, no display; hypothesis draws the same examples every time.

"auto" is float32 here, on every machine: a test that wants another precision names it.

Nothing of viapt is imported here: with `--jaxtyping-packages` its modules are instrumented as they are first imported.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# A shell that starts the tests in the background has Ctrl-C ignored, by them and by the processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("viapt", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("viapt")


@pytest.fixture(autouse=True, scope="session")
def auto_is_float32() -> Iterator[None]:
    """No test's numbers depend on how fast the machine multiplies."""
    from viapt import precision

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "bfloat16_gain", lambda: 1.0)
        yield
