"""`viapt data extract` and `viapt data convert`: archives and other libraries' caches, made ready for the readers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Convert caches of other libraries.", no_args_is_help=True)


def extract(
    archive: Annotated[Path, typer.Argument(help="A zip, tar, tar.gz, tar.bz2 or tar.xz file.")],
    to: Annotated[Path, typer.Option(help="The new folder that gets its content.")],
) -> None:
    """Unpack a data set's archive safely: nothing leaves the folder, and a failure leaves nothing behind."""
    from viapt.data.benchmarks.archives import extract as unpack

    print(f"{to}: {unpack(archive, to):,} files")


@app.command()
def tfds(
    task: Annotated[str, typer.Argument(help="A task of VTAB-1k: see viapt data list.")],
    to: Annotated[Path, typer.Option(help="The folder that gets the task's folder.")],
    source: Annotated[
        Path | None, typer.Option("--from", help="TensorFlow Datasets' cache (default: $TFDS_DATA_DIR, or its own).")
    ] = None,
) -> None:
    """Write a task of VTAB-1k from TensorFlow Datasets' cache as folders of images and lists, without TensorFlow."""
    from rich.console import Console
    from rich.progress import Progress

    from viapt.data.benchmarks.tfds import convert, default_source

    console = Console(stderr=True, highlight=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(task, total=None)
        folder = convert(
            task, source or default_source(), to, lambda n, total: progress.update(bar, completed=n, total=total)
        )
    print(folder)
