"""Full fine-tuning: everything learns."""

from __future__ import annotations

from viapt.methods.fine_tuning import FineTuning


class Full(FineTuning):
    """All weights of the backbone learn, from where they were: theta = theta_0 at the start."""

    name = "full"
    learning_rate = 3e-5

    def learns(self, name: str, stage: int) -> bool:
        return True
