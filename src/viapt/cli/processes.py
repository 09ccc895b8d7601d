"""What the commands make of several processes (`accelerate launch`): only `fit` runs in them, and one speaks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from viapt.errors import ConfigError, ViaptError

TOGETHER = ("fit",)


def check_processes(command: str | None) -> None:
    """Refuse to do several times at once what is meant to be done once.

    Raises:
        ConfigError: several processes were launched.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1 and command not in TOGETHER:
        raise ConfigError(
            f"viapt {command} was launched in {count} processes", expected="one; only fit runs in several"
        )


def is_silent() -> bool:
    """Whether another process speaks for this one."""
    return int(os.environ.get("RANK", "0")) > 0


@contextmanager
def one_speaks() -> Iterator[None]:
    """Inside, all processes but the first are silent."""
    if not is_silent():
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def is_told_elsewhere(error: Exception) -> bool:
    """Whether the first process has the same error: what is wrong with the input, or was raised everywhere."""
    return is_silent() and (isinstance(error, ViaptError) or getattr(error, "everywhere", False))
