"""In which precision the frozen backbone computes. What learns is always float32."""

from __future__ import annotations

from typing import Literal

import torch

from viapt.errors import ConfigError

Precision = Literal["auto", "float32", "bfloat16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_precision(precision: str = "auto", device: torch.device | str | None = None) -> torch.dtype:
    """A dtype from its name; "auto" is bfloat16 where that is fast, else float32.

    Fast are CUDA devices with bfloat16 units, and processors with AMX tiles. With AVX-512 alone (also with its bfloat16
    instructions) bfloat16 was measured 1.5 to 2 times slower than float32.

    Args:
        precision: "auto", "float32" or "bfloat16".
        device: where the model will run; None: the CUDA device if there is one, else the CPU.

    Raises:
        ConfigError: another name.
    """
    if precision in DTYPES:
        return DTYPES[precision]
    if precision != "auto":
        raise ConfigError(f"There is no precision {precision!r}", expected=f"one of auto, {', '.join(DTYPES)}")
    return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32


def has_fast_bfloat16(device: torch.device | str | None = None) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 there."""
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and torch.cpu._is_amx_tile_supported()
