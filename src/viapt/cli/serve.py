"""`viapt serve`: many tasks on one backbone, over HTTP."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from viapt.cli.use import TokenFile, Weights
from viapt.errors import ConfigError

PARTS = ("fastapi", "uvicorn", "multipart", "prometheus_client")


def serve(
    adapters: Annotated[list[Path], typer.Argument(help="Adapters, or folders of adapters; all of one backbone.")],
    host: Annotated[str, typer.Option(help="Address to listen on; other than loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    root: Annotated[
        list[Path] | None,
        typer.Option(help="Folder below which clients may load further adapters. May be repeated (default: none)."),
    ] = None,
    token_file: TokenFile = None,
    weights: Weights = None,
    wait_ms: Annotated[float, typer.Option(help="How long a request waits for others to share its pass.")] = 5,
    rows: Annotated[int, typer.Option(help="Of one pass: rounds x tasks x images.")] = 64,
    queue: Annotated[int, typer.Option(help="Rows waiting or computed; beyond them clients are told to wait.")] = 512,
    timeout: Annotated[float, typer.Option(help="Seconds until an answer must be there.")] = 30,
    max_images: Annotated[int, typer.Option(help="In one request.")] = 32,
    max_mib: Annotated[int, typer.Option(help="Of one request, in MiB.")] = 32,
    max_megapixels: Annotated[float, typer.Option(help="Of one image.")] = 25,
) -> None:
    """Serve the tasks of adapters: classify, list, load, unload, health, metrics. SIGTERM answers what was begun.

    The backbone is in memory once; a batch mixes requests, tasks and methods. See docs/serving.md.
    """
    missing = [name for name in PARTS if find_spec(name) is None]
    if missing:
        raise ConfigError(f"viapt serve needs {', '.join(missing)}", remedy="pip install 'viapt[serve]'")
    from viapt.serve.access import check_reach, read_token
    from viapt.serve.limits import Limits

    limits = Limits(
        wait=wait_ms / 1000,
        rows=rows,
        queue=queue,
        timeout=timeout,
        images=max_images,
        request_bytes=max_mib * 2**20,
        pixels=int(max_megapixels * 1e6),
    )
    token = read_token(token_file)
    check_reach(host, token)
    for folder in root or ():
        if not folder.is_dir():
            raise ConfigError(f"--root {folder} is no folder", expected="one that is there")

    from viapt.serve.app import create_app
    from viapt.serve.server import run
    from viapt.serve.tasks import open_tasks
    from viapt.tables import say

    tasks = open_tasks(adapters, weights, rows)
    say(f"{len(tasks)} tasks on {tasks.backbone.name or 'a backbone'}: {', '.join(tasks)}")
    run(create_app(tasks, limits=limits, roots=root or (), token=token), host, port, limits)
