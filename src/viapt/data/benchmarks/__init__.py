"""The 34 tasks of VTAB-1k, FGVC and HTA, read from a user's own copies of the data."""

from __future__ import annotations

from viapt.data.benchmarks.registry import SUITES, TASKS, BenchmarkTask, find_task, find_tasks

__all__ = ["SUITES", "TASKS", "BenchmarkTask", "find_task", "find_tasks"]
