"""The files of an adapter: read within bounds, compared with their check sums, replaced as a whole.

How saving replaces an older adapter: all files are written beside the old ones under other names and brought to the
disk; then the new configuration is renamed into place, which is the moment that counts; then the others. Readers find
tensors under either name by their SHA-256. So whenever the process dies, the folder holds the old adapter or the new
one, whole. Other files in the folder are left alone. Two processes must not save into one folder at the same time.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from viapt.backbones.base import Preprocessing
from viapt.checkpoint import digest, sync, write_synced
from viapt.errors import ArtifactError, BackboneError, ConfigError
from viapt.methods import check_arguments
from viapt.model import check_classes
from viapt.precision import DTYPES
from viapt.rounds import RoundNoise
from viapt.tensorfile import parse_tensors

FORMAT_VERSION = 1
CONFIG, TENSORS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
CONFIG_LIMIT, TENSORS_LIMIT = 16 * 2**20, 2 * 2**30  # bytes
FIELDS: dict[str, tuple[type, ...]] = {
    "backbone.fingerprint": (str,),
    "backbone.name": (str, type(None)),
    "backbone.precision": (str,),
    "backbone.preprocessing": (dict,),
    "backbone.pretrained": (bool,),
    "backbone.weights": (str, type(None)),
    "tensors_sha256": (str,),
    "training": (dict, type(None)),
    "versions": (dict,),
}


def read_config(directory: str | Path) -> dict[str, Any]:
    """The configuration of a saved adapter, checked.

    Raises:
        ArtifactError: it is missing, too large, altered, no JSON object, newer than this version, or names an unknown
            method, an unknown or impossible argument, or unusable class names.
    """
    folder = Path(directory)
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise ArtifactError(
            f"{folder} {problem}",
            expected="a folder that save_pretrained wrote, or hf://user/name for an adapter on a model hub",
        )
    try:
        config = json.loads(read_file(folder / CONFIG, CONFIG_LIMIT), parse_constant=not_json)
    except (ValueError, RecursionError) as error:
        refuse(folder / CONFIG, f"is not JSON ({error})")
    if not isinstance(config, dict):
        refuse(folder / CONFIG, f"holds a {type(config).__name__}", expected="an object")
    check_config(folder / CONFIG, config)
    return config


def check_config(path: Path, config: dict[str, Any]) -> None:
    """Refuse a configuration that is not one of ours, or was altered.

    Raises:
        ArtifactError: naming the field.
    """
    format_version = field(path, config, "format_version", int)
    if format_version > FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {format_version}, written by viapt {config.get('versions', {})}",
            expected=f"at most {FORMAT_VERSION}",
            remedy="pip install --upgrade viapt",
        )
    if format_version < 1:
        refuse(path, f"has format version {format_version}", expected=f"1 to {FORMAT_VERSION}")
    classes = field(path, config, "classes", list)
    method, arguments = field(path, config, "method", str), field(path, config, "method_arguments", dict)
    try:
        check_classes(classes)
        check_arguments(method, arguments)
    except ConfigError as error:
        raise ArtifactError(f"{path}: {error.found}", expected=error.expected, remedy=error.remedy) from error
    stated = field(path, config, "config_sha256", str)
    if stated != digest({key: value for key, value in config.items() if key != "config_sha256"}):
        refuse(path, "was altered after it was written: its SHA-256 is another")
    for name, kinds in FIELDS.items():
        field(path, config, name, *kinds)
    if config["backbone"]["precision"] not in DTYPES:
        refuse(path, f"has precision {config['backbone']['precision']!r}", expected=f"one of {', '.join(DTYPES)}")
    try:
        Preprocessing.from_dict(config["backbone"]["preprocessing"])
    except (TypeError, BackboneError) as error:
        raise ArtifactError(f"{path} holds an impossible preprocessing ({error})") from error
    if config.get("round_noise") is not None:  # adapters from before adaptive rounds do not have it
        try:
            RoundNoise(**field(path, config, "round_noise", dict))
        except (TypeError, ConfigError) as error:
            raise ArtifactError(f"{path} holds an impossible round_noise ({error})") from error


def field(path: Path, config: dict[str, Any], name: str, *kinds: type) -> Any:
    """A value by its dotted name.

    Raises:
        ArtifactError: it is missing, or of another type.
    """
    value: Any = config
    for key in name.split("."):
        if not isinstance(value, dict) or key not in value:
            refuse(path, f"has no field {name!r}")
        value = value[key]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        refuse(path, f"has {name} = {str(value)[:80]!r}, a {type(value).__name__}", expected=expected)
    return value


def read_tensors(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors that belong to a configuration.

    Raises:
        ArtifactError: there is no such file, or it was altered.
    """
    path = folder / TENSORS
    for candidate in (path, staged(path)):
        if candidate.is_file():
            data = read_file(candidate, TENSORS_LIMIT)
            if hashlib.sha256(data).hexdigest() == config["tensors_sha256"]:
                return parse_tensors(data, candidate, ArtifactError)
    if not path.exists():
        refuse(path, "is missing")
    refuse(path, f"is not the file that {CONFIG} belongs to: its SHA-256 is another, as after damage or a partial copy")


def read_file(path: Path, limit: int) -> bytes:
    """A whole file of bounded size.

    Raises:
        ArtifactError: it is missing, no regular file, or too large.
    """
    if not path.is_file():
        refuse(path, "is missing, or no regular file")
    try:
        size = path.stat().st_size
        if size > limit:
            refuse(path, f"has {size} bytes", expected=f"at most {limit}")
        return path.read_bytes()
    except OSError as error:
        refuse(path, f"cannot be read ({error})")


def commit(folder: Path, files: dict[str, bytes]) -> None:
    """Write all files or none, as the top of this module says; the first is the one that counts.

    Raises:
        ArtifactError: the disk refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        settle(folder)
        for name, data in files.items():
            write_synced(staged(folder / name), data)
        sync(folder)
        for name in files:
            staged(folder / name).replace(folder / name)
            sync(folder)
    except OSError as error:
        with suppress(OSError):
            settle(folder)
        raise ArtifactError(
            f"The adapter cannot be written to {folder} ({error})", remedy="make room there, or choose another folder"
        ) from error


def settle(folder: Path) -> None:
    """Finish a save that was cut off after its configuration was in place; sweep away one that was cut off before."""
    files = [folder / name for name in (TENSORS, CARD)]
    committed = None
    if staged(files[0]).is_file():
        with suppress(ArtifactError):
            committed = read_config(folder)["tensors_sha256"]
    if committed and hashlib.sha256(staged(files[0]).read_bytes()).hexdigest() == committed:
        for path in files:
            if staged(path).is_file():
                staged(path).replace(path)
    for path in (folder / CONFIG, *files):
        staged(path).unlink(missing_ok=True)


def staged(path: Path) -> Path:
    """Where a file waits for its turn."""
    return path.with_name(f".{path.name}.next")


def not_json(constant: str) -> NoReturn:
    """Refuse NaN and infinity, which Python would read."""
    raise ValueError(f"{constant} is no JSON")


def refuse(path: Path, problem: str, expected: str = "") -> NoReturn:
    """Refuse a file.

    Raises:
        ArtifactError: always.
    """
    raise ArtifactError(f"{path} {problem}", expected=expected, remedy="copy the adapter again, or save it again")
