"""Linear probing: the prompt method without prompts. Only the head learns."""

from __future__ import annotations

from viapt.methods.base import WithoutPrompts


class Linear(WithoutPrompts):
    """No prompts: a linear classifier on the frozen feature."""

    name = "linear"
    same_for_ever = "features"
