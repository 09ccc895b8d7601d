"""`viapt explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viapt.cli.use import Adapter, Weights
from viapt.errors import ConfigError

MOST_PICTURES = 32


def explain(
    adapter: Adapter,
    images: Annotated[list[str], typer.Argument(help="Image files, folders of them, or patterns such as '*.jpg'.")],
    out: Annotated[Path, typer.Option(help="Folder of the page and its pictures.")],
    train: Annotated[
        str | None,
        typer.Option(help="Labelled images that the adapter was fitted to: for maps of features, and neighbours."),
    ] = None,
    train_images: Annotated[
        int | None, typer.Option(help="Of --train, at most so many, of each class its share (default: 2000).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of t-SNE.")] = 0,
    weights: Weights = None,
) -> None:
    """Show what a model looks at in up to 32 images: attention by layer, prompts compared, features, neighbours.

    One page without scripts, explanation.html, and the same pictures as PNG files.
    """
    import shlex
    from dataclasses import replace

    from rich.console import Console

    from viapt.adapter_files import read_config
    from viapt.artifact import load, restore_backbone
    from viapt.cli.paths import image_files
    from viapt.device import default_device
    from viapt.hub import adapter_folder
    from viapt.report.explained import check_folder, write_explanation
    from viapt.report.explaining import explain as explained
    from viapt.report.explaining import facts, training_pictures
    from viapt.report.rendering import check_libraries
    from viapt.runs import reading
    from viapt.tables import show

    if train_images is not None and train is None:
        raise ConfigError("--train-images has no effect without --train", expected="--train DATA")
    if train_images is not None and train_images < 1:
        raise ConfigError(f"--train-images {train_images}", expected="1 or more")
    if seed < 0:
        raise ConfigError(f"--seed {seed}", expected="0 or above")
    check_libraries("explain")
    check_folder(out)
    place, adapter = adapter, adapter_folder(adapter)
    config, files = read_config(adapter), image_files(images)
    if len(files) > MOST_PICTURES:
        raise ConfigError(f"{len(files)} images to explain", expected=f"at most {MOST_PICTURES}: each fills a page")
    backbone = restore_backbone(adapter, config["backbone"], None, weights)
    model = load(adapter, backbone).to(default_device())
    console = Console(stderr=True, highlight=False)
    with reading(console) as progress:
        known = None if train is None else training_pictures(model, adapter, train, train_images or 2000, progress)
    found = explained(model, backbone.to(default_device()), files, known, seed=seed)
    given = {"--train": train, "--train-images": train_images, "--seed": seed, "--weights": weights}
    told = [word for name, value in given.items() if value is not None for word in (name, str(value))]
    command = shlex.join(["viapt", "explain", str(place), *images, "--out", str(out), *told])
    page = write_explanation(replace(found, facts=facts(command, config, known)), out)
    show(f"explanation  {page}", f"pictures     {out / 'pictures'}")
