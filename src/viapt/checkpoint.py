"""Checkpoints of an unfinished training: complete or absent, at whatever moment the process dies.

A checkpoint is a folder `<number>` with `tensors.safetensors` and `state.json`, which holds the SHA-256 of both. It is
written under another name, brought to the disk, and renamed; only then is the oldest one removed. Two are kept, so that
a damaged one can be passed over. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from filelock import FileLock, Timeout
from torch import Tensor

from viapt.distributed import broadcast
from viapt.errors import ArtifactError, ConfigError, TrainingError

FORMAT = 1
KEPT = 2
LOCK, PARTIAL = ".lock", "incomplete"
TENSORS, STATE = "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: JSON values and tensors by name."""

    state: dict[str, Any]
    tensors: dict[str, Tensor]


class DamagedCheckpoint(ArtifactError):  # noqa: N818 - reads as what it is
    """A checkpoint that is not what was written."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Add a checkpoint to a folder, and remove all but the newest two.

    Raises:
        ArtifactError: the disk is full, or cannot be written to. Earlier checkpoints stay.
    """
    data = safetensors.torch.save(on_cpu(checkpoint.tensors))
    content = {"format": FORMAT, "tensors_sha256": hashlib.sha256(data).hexdigest(), "state": checkpoint.state}
    text = json.dumps(content | {"sha256": digest(content)}, indent=1).encode()
    partial = folder / PARTIAL
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_synced(partial / TENSORS, data)
        write_synced(partial / STATE, text)
        sync(partial)
        partial.rename(folder / str(max(numbers(folder), default=0) + 1))
        sync(folder)
        for old in numbers(folder)[:-KEPT]:
            shutil.rmtree(folder / str(old))
    except OSError as error:
        raise ArtifactError(
            f"A checkpoint cannot be written to {folder} ({error})", remedy="make room there"
        ) from error


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; None if there never was one.

    Damaged newer ones are removed, with a warning: training goes on from the one before, and comes to the same end.

    Raises:
        ArtifactError: all are damaged, or the newest was written by a newer version.
    """
    damage = []
    for number in reversed(numbers(folder)):
        try:
            checkpoint = read_checkpoint(folder / str(number))
        except DamagedCheckpoint as error:
            damage.append((number, str(error)))
            continue
        for bad, reason in damage:
            warnings.warn(f"{reason} It is removed, and the checkpoint before it is used.", stacklevel=3)
            shutil.rmtree(folder / str(bad))
        return checkpoint
    if damage:
        raise ArtifactError(
            f"No checkpoint in {folder} can be read: {' '.join(reason for _, reason in damage)}",
            remedy="start again with overwrite, or in another folder",
        )
    return None


def shared(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint of the main process, in all of them."""
    state = broadcast(json.dumps(checkpoint.state).encode())
    tensors = broadcast(safetensors.torch.save(on_cpu(checkpoint.tensors)))
    return Checkpoint(json.loads(state), safetensors.torch.load(tensors))


def on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors takes them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints."""
    for number in numbers(folder):
        shutil.rmtree(folder / str(number))
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder of checkpoints; the lock ends with the process, however that ends.

    Raises:
        ConfigError: there cannot be such a folder.
        TrainingError: somebody else is in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The folder {folder} cannot be made ({error})", expected="a folder to write to") from error
    try:
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout:
        raise TrainingError(
            f"Another process is training in {folder.parent}", remedy="wait for it, or choose another folder"
        ) from None


def numbers(folder: Path) -> list[int]:
    """Numbers of the checkpoints in a folder, oldest first."""
    names = [path.name for path in folder.glob("*") if re.fullmatch("[1-9][0-9]*", path.name) and path.is_dir()]
    return sorted(map(int, names))


def read_checkpoint(path: Path) -> Checkpoint:
    """One checkpoint, its checksums compared.

    Raises:
        DamagedCheckpoint: a file is missing, truncated or altered.
        ArtifactError: written by a newer version.
    """
    try:
        content = json.loads((path / STATE).read_bytes())
        stated = content.pop("sha256")
        data = (path / TENSORS).read_bytes()
        whole = stated == digest(content) and content["tensors_sha256"] == hashlib.sha256(data).hexdigest()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(f"The checkpoint {path} is damaged ({type(error).__name__})") from error
    if not whole:
        raise DamagedCheckpoint(f"The checkpoint {path} is damaged (a checksum does not fit)")
    if content["format"] > FORMAT:
        raise ArtifactError(
            f"The checkpoint {path} has format {content['format']}",
            expected=f"at most {FORMAT}",
            remedy="use the version of viapt that wrote it",
        )
    return Checkpoint(content["state"], safetensors.torch.load(data))


def digest(content: dict[str, Any]) -> str:
    """SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and bring it to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that a reader finds the old content or the new one, and nothing between."""
    partial = path.with_name(f".{path.name}.partial")
    write_synced(partial, data)
    partial.replace(path)


def sync(folder: Path) -> None:
    """Bring a folder's list of names to the disk (Windows cannot, and does not need to)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
