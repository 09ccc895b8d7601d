"""`viapt data list | fetch`: the packaged suite; what belongs to the benchmark tasks is registered here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viapt.cli import data_convert
from viapt.cli.data_check import check
from viapt.cli.data_show import list_of_tasks
from viapt.cli.data_show import show as show_task
from viapt.errors import ConfigError, FetchError

app = typer.Typer(help="The packaged tasks and weights, and the benchmark tasks.", no_args_is_help=True)
app.add_typer(data_convert.app, name="convert")
app.command()(data_convert.extract)
app.command()(check)
app.command("show")(show_task)


@app.command("list")
def list_() -> None:
    """The packaged tasks and weights, and whether the cache holds them; the benchmark tasks, which users bring."""
    from rich.table import Table

    from viapt.data.packaged import RECIPES, WEIGHTS, state
    from viapt.packaged import PACKAGES
    from viapt.tables import show

    table = Table("name", "content", "classes", "licence", "MB to fetch", "state", box=None, pad_edge=False)
    weights = PACKAGES[WEIGHTS]
    table.add_row("weights", weights.content, "", weights.licence, f"{weights.size / 1e6:.0f}", state("weights"))
    for name, recipe in RECIPES.items():
        file = PACKAGES[recipe.package] if recipe.package else None
        content, size = (file.content, f"{file.size / 1e6:.0f}") if file else (recipe.source, "")
        table.add_row(name, content, str(len(recipe.classes)), recipe.licence, size, state(name))
    show(table, list_of_tasks())


@app.command()
def fetch(
    names: Annotated[
        list[str], typer.Argument(help="Tasks, weights, or packaged for everything: see viapt data list.")
    ],
    to: Annotated[
        Path | None, typer.Option(help="Write one task there as an image folder, split, ready for viapt fit.")
    ] = None,
    train: Annotated[
        int | None,
        typer.Option(help="Training images of --to (default: 800; a task of few images gives a fold of five)."),
    ] = None,
    val: Annotated[int | None, typer.Option(help="Validation images of --to (default: 200).")] = None,
    test: Annotated[int | None, typer.Option(help="Test images of --to, if there are so many (default: 2000).")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the split of --to, or number of the fold (default: 0).")] = None,
) -> None:
    """Fetch or draw packaged tasks and weights into the cache, checked by sha256; a second time it needs no network."""
    from rich.console import Console

    from viapt.data.packaged import export_folder, fetch_all, load_task, split, split_hash, standard_split

    sizes = {"train": train, "val": val, "test": test, "seed": seed}
    given = {name: size for name, size in sizes.items() if size is not None}
    if to is None and given:
        raise ConfigError(f"--{next(iter(given))} has no effect without --to", remedy="give --to FOLDER")
    if to is not None and (len(names) > 1 or names[0] in ("packaged", "weights")):
        raise ConfigError(f"--to with {' '.join(names)}", expected="one task")
    statuses = fetch_all(names, Console(stderr=True, highlight=False))
    # What this machine cannot have is no failure of `packaged`, which asks for all that there is.
    failed = [
        name for name, status in statuses.items() if not (status.ready or (status.unavailable and name not in names))
    ]
    if failed:
        raise FetchError(f"not fetched: {', '.join(failed)}", remedy="see the messages above")
    if to is not None:
        task = load_task(names[0])
        parts = split(task, **given) if given.keys() - {"seed"} else standard_split(task, **given)
        export_folder(task, to, parts)
        counts = ", ".join(f"{len(part)} {name}" for name, part in parts.items())
        print(f"{to}: {counts}; licence {task.licence}; {split_hash(task, parts)}")
