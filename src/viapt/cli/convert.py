"""`viapt convert`: adapters from the files of other code, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from viapt.errors import ConfigError


def convert(
    source: Annotated[
        Path, typer.Argument(help="A file of other code; or, with --from viapt, a folder or hf://user/name.")
    ],
    origin: Annotated[Literal["vpt", "adapter-plus", "viapt"], typer.Option("--from", help="What the source is.")],
    to: Annotated[Path, typer.Option(help="The adapter's folder; or, with --from viapt, a .safetensors or .pth file.")],
    backbone: Annotated[str | None, typer.Option(help="The one that the source was trained on.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Its weights, a .safetensors file.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of its images in pixels (default: its own).")] = None,
    classes: Annotated[
        str | None, typer.Option(help="Names, with commas between them (default: numbers, if there is a head).")
    ] = None,
    layout: Annotated[
        Literal["checkpoint", "prompts"] | None,
        typer.Option(
            help="Of VPT files with --from viapt: a checkpoint (default), or prompts alone, as in prompt_ep*.pth."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Convert prompts of the authors' VPT code, or adapters of the authors' Adapter+ code, to an adapter, and back.

    Back go adapters of vpt-shallow, vpt-deep and adapter-plus, each to a file for the code of its own. Such files name
    neither backbone nor classes, and some hold no head: these are given, and a missing head is fitted.
    """
    given = {"--backbone": backbone, "--weights": weights, "--image-size": image_size, "--classes": classes}
    if origin == "viapt" and (idle := [name for name, value in given.items() if value is not None]):
        raise ConfigError(f"{idle[0]} has no effect on --from viapt", expected="--to FILE alone")
    if origin != "viapt" and layout is not None:
        raise ConfigError(f"--layout has no effect on --from {origin}", expected="--from viapt")
    if to.exists() and not overwrite:
        raise ConfigError(f"{to} exists", remedy="name another, or --overwrite")
    from viapt.adapter_plus_checkpoint import from_adapter_plus
    from viapt.tables import say
    from viapt.vpt_checkpoint import from_vpt

    if origin == "viapt":
        print(back(source, to, layout))
        return
    if backbone is None:
        raise ConfigError(f"--from {origin} without --backbone", expected="the backbone that the source was trained on")
    names = None if classes is None else classes.split(",")
    read = from_vpt if origin == "vpt" else from_adapter_plus
    model, has_head = read(source, backbone, classes=names, weights=weights, image_size=image_size)
    head = "of the same file" if has_head else "untrained"
    model.save_pretrained(to, training={"converted from": source.name, "head": head})
    if not has_head:
        say(f"{source} holds no head: the adapter's is untrained, and its answers mean nothing before it is fitted")
    print(to)


def back(adapter: Path, to: Path, layout: str | None) -> Path:
    """Write an adapter as a file for the code of its method's authors.

    Raises:
        ConfigError: a layout is given, and its code has one alone.
        ArtifactError: the adapter cannot be read, or is of a method without such code.
    """
    from viapt.adapter_files import read_config
    from viapt.adapter_plus_checkpoint import to_adapter_plus
    from viapt.hub import adapter_folder
    from viapt.tables import say
    from viapt.vpt_checkpoint import to_vpt

    if read_config(adapter_folder(adapter))["method"] == "adapter-plus":
        if layout is not None:
            raise ConfigError(f"--layout has no effect on {adapter}, an adapter-plus adapter", expected="one of VPT")
        return to_adapter_plus(adapter, to)
    written = to_vpt(adapter, to, layout or "checkpoint")
    if layout == "prompts":
        say(f"{to} has no place for the head: it stays behind in {adapter}")
    return written
