"""`viapt serve`: many tasks on one backbone, over HTTP."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from viapt.cli.use import TokenFile, Weights
from viapt.errors import ConfigError

ray_option = partial(typer.Option, rich_help_panel="On Ray (extra: ray)")
PARTS = ("fastapi", "uvicorn", "multipart", "prometheus_client", "httpx")


def serve(
    adapters: Annotated[
        list[Path] | None,
        typer.Argument(help="Adapters, folders of adapters, or hf://user/name; all of one backbone."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; other than loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    root: Annotated[
        list[Path] | None,
        typer.Option(help="Folder below which clients may load further adapters. May be repeated (default: none)."),
    ] = None,
    teach: Annotated[
        Path | None,
        typer.Option(
            help="Folder for tasks that are taught on the page; those in it are loaded (default: no teaching)."
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="To begin on without adapters, with --teach or --root: a name as of viapt fit."),
    ] = None,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch images from public addresses that clients name.")
    ] = False,
    token_file: TokenFile = None,
    weights: Weights = None,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"] | None,
        typer.Option(
            help="Of the backbone; auto: bfloat16 where it is fast (default: what the first adapter was fitted in)."
        ),
    ] = None,
    wait_ms: Annotated[float, typer.Option(help="How long a request waits for others to share its pass.")] = 5,
    rows: Annotated[
        int | None,
        typer.Option(
            help="Rounds x tasks x images in a pass, at most (default: measured, as many as make it cheaper)."
        ),
    ] = None,
    passes: Annotated[
        int | None,
        typer.Option(help="Passes at the same time, which share the threads (default: measured, the fastest)."),
    ] = None,
    queue: Annotated[int, typer.Option(help="Rows waiting or computed; beyond them clients are told to wait.")] = 512,
    timeout: Annotated[float, typer.Option(help="Seconds until an answer must be there.")] = 30,
    upload_timeout: Annotated[float, typer.Option(help="Seconds until the body of a request must be there.")] = 20,
    max_requests: Annotated[
        int, typer.Option(help="That upload or wait at the same time; others are turned away unread.")
    ] = 64,
    max_tasks: Annotated[int, typer.Option(help="That are loaded; beyond them none is loaded at run time.")] = 1000,
    max_rounds: Annotated[int, typer.Option(help="Of the policy multi.")] = 32,
    max_images: Annotated[int, typer.Option(help="In one request.")] = 32,
    max_mib: Annotated[int, typer.Option(help="Of one request, in MiB.")] = 32,
    max_megapixels: Annotated[float, typer.Option(help="Of one image.")] = 25,
    engine: Annotated[
        Literal["local", "ray"], ray_option(help="This process, or replicas of it on a Ray cluster.")
    ] = "local",
    replicas: Annotated[int | None, ray_option(min=1, help="Processes on Ray (default: 1).")] = None,
    address: Annotated[str | None, ray_option(help="Of a Ray cluster (default: one on this machine).")] = None,
    gpus: Annotated[float | None, ray_option(min=0, help="GPUs of each replica (default: none).")] = None,
    cpus: Annotated[
        int | None,
        ray_option(
            min=1,
            help="Cores of each replica (default: its share of this machine's; with --address or --gpus, 1).",
        ),
    ] = None,
) -> None:
    """Serve the tasks of adapters: a page at /, and an API to classify, list, load, unload and teach.

    SIGTERM answers what was begun. The backbone is in memory once; requests and tasks share passes. See
    docs/serving.md.
    """
    missing = [name for name in PARTS if find_spec(name) is None]
    if missing:
        raise ConfigError(f"viapt serve needs {', '.join(missing)}", remedy="pip install 'viapt[serve]'")
    from viapt.serve.access import check_reach, read_token
    from viapt.serve.limits import Limits

    limits = Limits(
        wait=wait_ms / 1000,
        rows=rows,
        passes=passes,
        queue=queue,
        timeout=timeout,
        upload=upload_timeout,
        requests=max_requests,
        tasks=max_tasks,
        rounds=max_rounds,
        images=max_images,
        request_bytes=max_mib * 2**20,
        pixels=int(max_megapixels * 1e6),
    )
    token = read_token(token_file)
    check_reach(host, token)
    for folder in root or ():
        if not folder.is_dir():
            raise ConfigError(f"--root {folder} is no folder", expected="one that is there")
    check_beginning(adapters, backbone, teach or root)
    one = {"root": root, "teach": teach, "backbone": backbone}
    check_engine(engine, {"replicas": replicas, "address": address, "gpus": gpus, "cpus": cpus}, one)
    if engine == "ray":
        from viapt.hub import on_hub
        from viapt.serve.on_ray import Replicas, serve_on_ray
        from viapt.serve.tasks import adapters_in, fitted_in, remark
        from viapt.tables import say

        folders = [place if on_hub(place) else place.absolute() for place in adapters or ()]
        wanted = Replicas(
            folders, weights and weights.absolute(), limits, token, allow_urls, replicas or 1, gpus or 0.0, precision
        )
        if cpus is not None or not (address or gpus):
            wanted = replace(wanted, cpus=cpus or max(1, len(os.sched_getaffinity(0)) // wanted.number))
        fitted = fitted_in(adapters_in(folders))
        say(f"{wanted.number} replicas of {', '.join(fitted)}; cores of each: {wanted.cpus}")
        if precision != "auto":  # which each replica measures
            say(*remark(precision or next(iter(fitted.values())), fitted))
        serve_on_ray(wanted, host, port, address)
        return

    import torch

    from viapt.serve.app import create_app
    from viapt.serve.fetching import Fetcher
    from viapt.serve.server import run
    from viapt.serve.tasks import open_backbone, open_tasks, remark
    from viapt.tables import say

    tasks = open_backbone(backbone, weights, precision) if backbone else open_tasks(adapters or [], weights, precision)
    app = create_app(
        tasks,
        limits=limits,
        roots=root or (),
        token=token,
        teach=teach,
        fetcher=Fetcher(limits.request_bytes, limits.upload) if allow_urls else None,
        local=token is None,
    )
    pace = app.state.service.batcher.pace
    torch.set_num_threads(pace.threads)  # a team for the loop's small sums disturbs passes
    names = ", ".join(tasks) or "none yet"
    say(f"{len(tasks)} tasks on {tasks.backbone.name or 'a backbone'}, in {tasks.precision}: {names}")
    say(*remark(tasks.precision, {name: tasks.sources[model].precision for name, model in tasks.items()}))
    say(f"{pace}")
    run(app, host, port, limits)


def check_beginning(adapters: list[Path] | None, backbone: str | None, later: object) -> None:
    """See that there are tasks, or a backbone on which there may be some `later`.

    Raises:
        ConfigError: likewise.
    """
    if not adapters and backbone is None:
        raise ConfigError(
            "There is nothing to serve",
            expected="adapters; or, to begin without, --backbone NAME with --teach FOLDER or --root FOLDER",
        )
    if adapters and backbone is not None:
        raise ConfigError(
            "--backbone has no effect with adapters, which name theirs", expected="adapters or --backbone"
        )
    if backbone is not None and not later:
        raise ConfigError("--backbone alone: no task could ever be there", expected="--teach FOLDER or --root FOLDER")


def check_engine(engine: str, of_ray: dict[str, Any], of_one_process: dict[str, Any]) -> None:
    """Refuse options of the other engine.

    Raises:
        ConfigError: naming the first one.
    """
    foreign, other = (of_ray, "ray") if engine == "local" else (of_one_process, "local")
    for name, value in foreign.items():
        if value is not None:
            because = "" if other == "ray" else ": what one replica learns the others would not know"
            raise ConfigError(f"--{name} has no effect with --engine {engine}{because}", expected=f"--engine {other}")
