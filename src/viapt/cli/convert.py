"""`viapt convert`: adapters from the files of other code, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from viapt.errors import ConfigError


def convert(
    source: Annotated[
        Path, typer.Argument(help="A file of VPT's code; or, with --from viapt, a folder or hf://user/name.")
    ],
    origin: Annotated[Literal["vpt", "viapt"], typer.Option("--from", help="What the source is.")],
    to: Annotated[Path, typer.Option(help="The adapter's folder; or, with --from viapt, a .safetensors or .pth file.")],
    backbone: Annotated[str | None, typer.Option(help="The one that the prompts of VPT were trained on.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Its weights, a .safetensors file.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of its images in pixels (default: its own).")] = None,
    classes: Annotated[
        str | None, typer.Option(help="Names, with commas between them (default: numbers, if there is a head).")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Convert prompts of the authors' VPT code to an adapter, or an adapter of vpt-shallow or vpt-deep to such a file.

    VPT's files name neither backbone nor classes, and some hold no head: these are given, and a missing head is fitted.
    """
    given = {"--backbone": backbone, "--weights": weights, "--image-size": image_size, "--classes": classes}
    if origin == "viapt" and (idle := [name for name, value in given.items() if value is not None]):
        raise ConfigError(f"{idle[0]} has no effect on --from viapt", expected="--to FILE alone")
    if to.exists() and not overwrite:
        raise ConfigError(f"{to} exists", remedy="name another, or --overwrite")
    from viapt.tables import say
    from viapt.vpt_checkpoint import from_vpt, to_vpt

    if origin == "viapt":
        print(to_vpt(source, to))
        return
    if backbone is None:
        raise ConfigError("--from vpt without --backbone", expected="the backbone that the prompts were trained on")
    names = None if classes is None else classes.split(",")
    model, has_head = from_vpt(source, backbone, classes=names, weights=weights, image_size=image_size)
    head = "of the same file" if has_head else "untrained"
    model.save_pretrained(to, training={"converted from": source.name, "head": head})
    if not has_head:
        say(f"{source} holds no head: the adapter's is untrained, and its answers mean nothing before it is fitted")
    print(to)
