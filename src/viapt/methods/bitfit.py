"""BitFit (Ben Zaken et al., ACL 2022, arXiv 2106.10199): biases learn, weights do not."""

from __future__ import annotations

from viapt.methods.fine_tuning import FineTuning


class BitFit(FineTuning):
    """All bias vectors of the backbone learn: of every y = W x + b the b, of every norm the shift (section 3)."""

    name = "bitfit"
    learning_rate = 3e-3

    def learns(self, name: str, stage: int) -> bool:
        return name.endswith((".bias", ".q_bias", ".v_bias", ".in_proj_bias"))  # attention may keep its own apart
