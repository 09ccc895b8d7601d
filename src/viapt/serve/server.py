"""The process: where it listens, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import signal
from math import ceil

import uvicorn
from fastapi import FastAPI

from viapt.errors import ConfigError
from viapt.serve.limits import Limits

KEEP_ALIVE = 75  # seconds of an idle connection: above the 60 of usual proxies, which could send while it is closed


def run(app: FastAPI, host: str, port: int, limits: Limits) -> None:
    """Serve until SIGTERM or SIGINT; then return (SIGTERM) or raise (SIGINT).

    In the end nothing listens any more, and requests that have begun are answered, those included that still upload.

    Raises:
        ConfigError: the address is taken.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="info",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=ceil(limits.drain),
    )
    server = uvicorn.Server(config)
    gc.collect()
    gc.freeze()  # what there is now stays; looking at all of it again would hold every request up for a moment
    signal.signal(signal.SIGTERM, lambda *_: None)  # which uvicorn raises again when all is done
    try:
        asyncio.run(server.serve())
    except SystemExit:  # uvicorn has said why
        raise ConfigError(f"Nothing can listen on {host}:{port}", remedy="another --port or --host") from None
