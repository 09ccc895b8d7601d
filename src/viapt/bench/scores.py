"""One measured number of the laboratory: a method on a task with a seed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """What one job of `viapt bench` measured; tables, tests and pictures are made of these alone."""

    method: str
    """Display name, e.g. "viapt" or "viapt(kept_dim=32)"."""
    task: str
    seed: int
    value: float
    """Of the metric, in [0, 1]; higher is better."""
    metric: str
    """"accuracy" or "mean_per_class_accuracy"."""
    part: str
    """"val" or "test"."""
    learnable_parameters: int
    """Of the method, without the head."""
    seconds: float
    """Wall time of training."""
    peak_memory_mib: float
    key: str
    """Content hash of the job that made it."""
