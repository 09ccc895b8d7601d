"""One thread, no model hub, no display; hypothesis draws the same examples every time.

Nothing of viapt is imported here: with `--jaxtyping-packages` its modules are instrumented as they are first imported.
"""

from __future__ import annotations

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import torch
from hypothesis import settings

torch.set_num_threads(1)
# A shell that starts the tests in the background has Ctrl-C ignored, by them and by the processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("viapt", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("viapt")
