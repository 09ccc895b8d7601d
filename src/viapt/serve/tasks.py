"""Which adapters a server has: those it starts with, and those that may be loaded while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from viapt.adapter_files import CONFIG, read_config
from viapt.artifact import restore_backbone
from viapt.backbones import create_backbone
from viapt.create import cast
from viapt.device import default_device
from viapt.errors import ConfigError
from viapt.hub import adapter_folder, on_hub, parse
from viapt.multitask import MultiTask
from viapt.serve.problems import Problem


def adapters_in(places: Iterable[Path]) -> dict[str, Path]:
    """Name -> folder of each adapter: folders that are one, those directly inside folders that are none, and hf://...

    Raises:
        ArtifactError: see `viapt.hub.adapter_folder`.
        ConfigError: a folder without adapters, or two of one name.
    """
    found: dict[str, Path] = {}
    for place in places:
        for name, path in named(place):
            if name in found:
                raise ConfigError(
                    f"{found[name]} and {path} would both be called {name!r}", remedy="rename one of the folders"
                )
            found[name] = path
    return found


def named(place: Path) -> list[tuple[str, Path]]:
    """Name and folder of each adapter in one place; on a hub the repository's name, without its owner.

    Raises:
        ArtifactError, ConfigError: as `adapters_in`.
    """
    if on_hub(place):
        return [(parse(str(place))[0].rpartition("/")[2], adapter_folder(place))]
    inside = [place / CONFIG] if (place / CONFIG).is_file() else sorted(place.glob(f"*/{CONFIG}"))
    if not inside:
        raise ConfigError(f"There are no adapters in {place}", expected="an adapter, or a folder of adapters")
    return [(file.parent.resolve().name, file.parent) for file in inside]


def open_tasks(folders: Sequence[Path], weights: Path | None, precision: str | None = None) -> MultiTask:
    """The tasks of these folders, on the backbone of the first, where it computes fastest.

    Args:
        folders: see `adapters_in`.
        weights: of the backbone, where the file is not where it was.
        precision: see `viapt.precision`; None: that in which the first task was fitted.

    Raises:
        ArtifactError: an adapter cannot be read, or was trained on another backbone than the first.
        BackboneError: the backbone cannot be built.
        ConfigError: see `adapters_in`, or a method whose answers depend on the batch.
    """
    adapters = adapters_in(folders)
    first = next(iter(adapters.values()))
    recorded = read_config(first)["backbone"]
    backbone = restore_backbone(first, recorded, None, weights)
    cast(backbone, precision or recorded["precision"])
    return MultiTask(backbone.to(default_device()), adapters)


def open_backbone(name: str, weights: Path | None, precision: str | None = None) -> MultiTask:
    """A backbone that has no tasks yet, where it computes fastest; arguments as of `viapt.create_backbone`.

    Raises:
        BackboneError: it cannot be built.
    """
    backbone = create_backbone(name, weights=weights)
    cast(backbone, precision or "auto")
    return MultiTask(backbone.to(default_device()))


def fitted_in(adapters: Mapping[str, Path]) -> dict[str, str]:
    """The precision of the backbone with which each of these was fitted.

    Raises:
        ArtifactError: one of them cannot be read.
    """
    return {name: read_config(folder)["backbone"]["precision"] for name, folder in adapters.items()}


def remark(served: str, fitted: Mapping[str, str]) -> list[str]:
    """What to say of tasks that were fitted in another precision than is served; nothing if there are none."""
    others = [f"{name} ({precision})" for name, precision in fitted.items() if precision != served]
    if not others:
        return []
    return [
        f"the backbone computes in {served}; fitted in another precision: {', '.join(others)}",
        "their answers differ a little from those of viapt predict here (--precision)",
    ]


def below(roots: Sequence[Path], directory: str) -> Path:
    """A folder that a client names, links followed.

    Raises:
        Problem: it does not lie below one of the roots, or there are none.
    """
    if not roots:
        raise Problem(
            403, "loading_is_off", "Adapters are not loaded at run time here", expected="a server with --root"
        )
    for root in (root.resolve() for root in roots):
        try:
            path = (root / directory).resolve()
        except (OSError, ValueError, RuntimeError):  # a null byte, a loop of links
            continue
        if path.is_relative_to(root) and path != root and path.is_dir():
            return path
    raise Problem(403, "not_allowed", f"{directory!r} is no folder below the server's roots", expected="one that is")
