"""One thread, no model hub, no display; hypothesis draws the same examples every time.

Nothing of viapt is imported here: with `--jaxtyping-packages` its modules are instrumented as they are first imported.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("viapt", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("viapt")
