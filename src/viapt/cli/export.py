"""`viapt export`: an adapter and its backbone as one file for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from viapt.cli.use import Adapter, Policy, Weights
from viapt.errors import ConfigError


def export(
    adapter: Adapter,
    out: Annotated[Path, typer.Option(help="The file: .onnx, .xml (a .bin comes with it) or .pt2.")],
    to: Annotated[Literal["onnx", "openvino", "torch"], typer.Option(help="The runtime.")] = "onnx",
    policy: Policy = "mean",
    seed: Annotated[int | None, typer.Option(help="Of the sample of --policy fixed (default: 0).")] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"],
        typer.Option(help="How the backbone's matrices are stored; the file computes in float32."),
    ] = "float32",
    weights: Weights = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Write a file that classifies preprocessed images in ONNX Runtime, OpenVINO or torch, and check it there.

    Class names, preprocessing and origin are in the file. With --policy multi the noise is an input.
    """
    from viapt.export import check_place

    if seed is not None and policy != "fixed":
        raise ConfigError(f"--seed has no effect on --policy {policy}", expected="--policy fixed")
    check_place(to, out, overwrite)

    from viapt.artifact import load
    from viapt.export import export as write
    from viapt.tables import say

    model = load(adapter, weights=weights, precision="float32")
    write(model, out, to=to, policy=policy, seed=seed or 0, dtype=dtype, overwrite=overwrite, report=say)
    print(out)
