"""Checkpoints of other code: read without unpickling anything but arrays, put into a model, and written.

Pickles are opened by `torch.load(weights_only=True)` alone, which makes tensors and NumPy arrays, and calls nothing
else.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from viapt.checkpoint import replace_file
from viapt.errors import ArtifactError, ConfigError
from viapt.model import PromptedClassifier
from viapt.tensorfile import read_tensor_file

LIMIT = 8 * 2**30  # bytes; a ViT-H with its optimizer takes 5
RECONSTRUCT = np.zeros(0).__reduce__()[0]  # type: ignore[index]  # what pickles of arrays call
ARRAYS: list[Any] = [
    np.ndarray,
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    (RECONSTRUCT, "numpy._core.multiarray._reconstruct"),
    (RECONSTRUCT, "numpy.core.multiarray._reconstruct"),  # before NumPy 2
]


def read_state(path: Path) -> dict[Any, Any]:
    """Names and values of a file, a .safetensors one or one of `torch.save`, there perhaps in "model" or "state_dict".

    Raises:
        ArtifactError: no such file, one that holds more than arrays, is damaged, or holds something else.
    """
    found = read_tensor_file(path, ArtifactError) if path.suffix == ".safetensors" else read_pickle(path)
    for key in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict):
        refuse(path, f"holds a {type(found).__name__}", expected="names and arrays")
    return found


def read_pickle(path: Path) -> Any:
    """What `torch.save` wrote, if it is made of tensors, arrays and plain containers.

    Raises:
        ArtifactError: anything else.
    """
    if not path.is_file():
        raise ArtifactError(f"There is no file {path}", expected="a checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (OSError, zipfile.BadZipFile) as error:
        refuse(
            path, f"is no archive of torch.save ({error})", expected="a file of PyTorch 1.6 or later, or .safetensors"
        )
    if size > LIMIT:
        refuse(path, f"unpacks to {size} bytes", expected=f"at most {LIMIT}")
    with safe_globals(ARRAYS):
        try:
            foreign = get_unsafe_globals_in_checkpoint(path)
            if not foreign:
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever the parser says of damaged files
            refuse(path, f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
    raise ArtifactError(
        f"{path} is a pickle that calls {', '.join(sorted(foreign)[:5])}, and is not opened",
        expected="tensors and arrays alone, which cannot do harm",
        remedy="where you trust it, save what it learned alone, as .safetensors",
    )


def as_tensor(path: Path, name: str, value: Any) -> Tensor:
    """A tensor or an array as float32.

    Raises:
        ArtifactError: it is neither, or not finite.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        value = torch.from_numpy(np.ascontiguousarray(value, np.float32))
    if not isinstance(value, Tensor) or not value.is_floating_point():
        refuse(path, f"holds {name}, a {type(value).__name__}", expected="an array of floating-point numbers")
    if not bool(value.isfinite().all()):
        refuse(path, f"holds values of {name} that are not finite")
    return value.detach().float()


def classes_of(
    path: Path, classes: int | Sequence[str] | None, head: tuple[Tensor, Tensor] | None
) -> int | Sequence[str]:
    """The classes that somebody names, or as many as a head has.

    Raises:
        ConfigError: there are none, or not as many as the head has.
    """
    if head is None and classes is None:
        raise ConfigError(
            f"{path} has no head, and no classes are given", expected="their names, or how many there are"
        )
    if head is None:
        return classes if classes is not None else ()
    number = len(classes) if isinstance(classes, Sequence) else classes
    if number not in (None, head[0].shape[0]):
        raise ConfigError(f"{number} classes", expected=f"{head[0].shape[0]}, as the head of {path}")
    return head[0].shape[0] if classes is None else classes


def fill(path: Path, model: PromptedClassifier, learned: Mapping[str, Tensor], remedy: str) -> None:
    """Give a model's learnable tensors these values.

    Raises:
        ArtifactError: one is of another shape.
    """
    for name, tensor in learned.items():
        own = model.learnable()[name]
        if own.shape != tensor.shape:
            refuse(
                path,
                f"gives {name} of shape {tuple(tensor.shape)}",
                expected=f"{tuple(own.shape)}, as {model.backbone.name or 'the backbone'} needs",
                remedy=remedy,
            )
        with torch.no_grad():
            own.copy_(tensor)


def check_suffix(path: Path, pickles: Iterable[str]) -> None:
    """Refuse a name that does not tell what is to be written.

    Raises:
        ConfigError: with those that do.
    """
    known = (".safetensors", *pickles)
    if path.suffix not in known:
        raise ConfigError(f"The file is to be {path}", expected=f"one that ends in {' or '.join(known)}")


def write_state(path: Path, state: Mapping[str, Tensor], key: str | None) -> Path:
    """Write names and tensors as .safetensors, or by `torch.save`: under `key`, or without one as arrays of NumPy.

    A file that is there is replaced.
    """
    state = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    stream = io.BytesIO()
    if path.suffix == ".safetensors":
        stream.write(safetensors.torch.save(state, metadata={"format": "pt"}))
    else:
        torch.save({key: state} if key else {name: tensor.numpy() for name, tensor in state.items()}, stream)
    replace_file(path, stream.getvalue())
    return path


def refuse(path: Path, problem: str, expected: str = "", remedy: str = "") -> NoReturn:
    """Refuse a file.

    Raises:
        ArtifactError: always.
    """
    raise ArtifactError(f"{path} {problem}", expected=expected, remedy=remedy)
