"""Runtimes that execute an exported file: which there are, what they need, how a file is opened in one.

    onnx        ONNX Runtime         one .onnx file (above 2 GB a .onnx.data file beside it)
    openvino    OpenVINO             an .xml file and the .bin file of its numbers
    torch       a program of aten    one .pt2 file, as torch.export writes it; viapt reads it without unpickling

Opening a file runs no code that is in it. All run on the CPU, in float32, with as many threads as torch uses.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from viapt.errors import ArtifactError, ConfigError, did_you_mean
from viapt.runtimes.base import Session

TargetName = Literal["onnx", "openvino", "torch"]


@dataclass(frozen=True)
class Target:
    """What a kind of file is called, and needs.

    Attributes:
        suffix: of the file.
        session: module and class that open it.
        run: packages without which it cannot be run.
        convert: packages without which it cannot be made.
    """

    suffix: str
    session: tuple[str, str]
    run: tuple[str, ...] = ()
    convert: tuple[str, ...] = ()


TARGETS: dict[str, Target] = {
    "onnx": Target(".onnx", ("onnxruntime_session", "OnnxSession"), ("onnxruntime",), ("onnx", "onnxscript")),
    "openvino": Target(".xml", ("openvino_session", "OpenVinoSession"), ("openvino",)),
    "torch": Target(".pt2", ("torch_program", "TorchProgram")),
}
SUFFIXES = {target.suffix: name for name, target in TARGETS.items()}


def is_exported(path: Path) -> bool:
    """Whether this names a file for one of the runtimes (and not the folder of an adapter)."""
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def check_target(name: str, path: Path) -> Target:
    """The target of this name, everything that it needs installed, and the file's name suiting it.

    Raises:
        ConfigError: it is unknown, a package is missing, or the file has another suffix.
    """
    if name not in TARGETS:
        raise ConfigError(
            f"There is no export to {name!r}",
            expected=f"one of {', '.join(TARGETS)}",
            remedy=did_you_mean(name, TARGETS),
        )
    target = TARGETS[name]
    check_installed(name, target.convert + target.run)
    if path.suffix.lower() != target.suffix:
        raise ConfigError(
            f"An export to {name} cannot be called {path.name}", expected=f"a name that ends in {target.suffix}"
        )
    return target


def check_installed(name: str, packages: tuple[str, ...]) -> None:
    """Refuse a target whose packages are missing.

    Raises:
        ConfigError: naming them.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"{name} needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            remedy=f"pip install 'viapt[{name}]'",
        )


def open_session(path: Path) -> Session:
    """A file, opened in the runtime that its suffix names.

    Raises:
        ArtifactError: there is no such file, or it is damaged or of another kind.
        ConfigError: the runtime is not installed.
    """
    name = SUFFIXES.get(path.suffix.lower())
    if name is None or not path.is_file():
        problem = "does not exist" if not path.exists() else "is no exported model"
        raise ArtifactError(f"{path} {problem}", expected=f"a file that ends in {', '.join(SUFFIXES)}")
    check_installed(name, TARGETS[name].run)
    module, cls = TARGETS[name].session
    return getattr(importlib.import_module(f"viapt.runtimes.{module}"), cls)(path)
