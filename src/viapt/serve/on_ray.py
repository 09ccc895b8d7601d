"""The same application as a Ray Serve deployment: several replicas, on one machine or on those of a cluster.

Replicas share nothing but files: each has the backbone and all tasks, and answers alone. What one of them learned at
run time the others would not know, so tasks are fixed. Ray starts a replica anew when it dies; requests that it had
begun are told to come back (`viapt.serve.ray_proxy`).
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI

from viapt.errors import ConfigError
from viapt.ray_cluster import connect, import_ray
from viapt.serve.app import create_app
from viapt.serve.fetching import Fetcher
from viapt.serve.limits import Limits
from viapt.serve.ray_proxy import CALLBACK, retriable
from viapt.serve.tasks import open_tasks
from viapt.tables import say

NAME = "viapt"  # of the application on Ray Serve
MORE = 8  # requests that a replica is given beyond its limit, and refuses itself, in its own words
HEALTH_SECONDS = 5.0  # between two questions whether a replica lives


@dataclass(frozen=True)
class Replicas:
    """What is deployed. Folders and weights must have the same paths on every node; what is
    on a hub is fetched by each.

    Attributes:
        folders, weights, precision: see `open_tasks`.
        limits: of each replica.
        token: see `create_app`.
        urls: whether images are fetched from addresses.
        number: how many of them, >= 1.
        gpus, cpus: of each of them, for instance 0.5 and 4; it computes on so many threads.
    """

    folders: Sequence[Path]
    weights: Path | None
    limits: Limits
    token: str | None
    urls: bool
    number: int
    gpus: float = 0.0
    precision: str | None = None
    cpus: int = 1

    def build(self, replica: str) -> FastAPI:
        """The application of one of them."""
        torch.set_num_threads(self.cpus)  # whatever Ray, or the node, has in OMP_NUM_THREADS
        tasks, limits = open_tasks(self.folders, self.weights, self.precision), self.limits
        fetcher = Fetcher(limits.request_bytes, limits.upload) if self.urls else None
        local = self.token is None
        app = create_app(tasks, limits=limits, token=self.token, fetcher=fetcher, local=local, replica=replica)
        torch.set_num_threads(app.state.service.batcher.pace.threads)
        return app

    def deployment(self) -> Any:
        """For `ray.serve.run`."""
        serve = import_ray("ray.serve")

        def application() -> FastAPI:
            return self.build(serve.get_replica_context().replica_id.unique_id)

        class Replica:
            app: FastAPI

            def check_health(self) -> None:
                """Raises where nothing is computed any more: Ray then starts another replica."""
                if not self.app.state.service.batcher.alive:
                    raise RuntimeError("the loop of passes has ended")

        room = {"num_cpus": self.cpus} | ({"num_gpus": self.gpus} if self.gpus else {})
        options: dict[str, Any] = {
            "name": NAME,
            "num_replicas": self.number,
            "ray_actor_options": room,
            "max_ongoing_requests": self.limits.requests + MORE,
            "max_queued_requests": self.limits.requests,
            "graceful_shutdown_timeout_s": self.limits.drain,
            "health_check_period_s": HEALTH_SECONDS,
        }
        return serve.deployment(**options)(serve.ingress(application)(Replica)).bind()


@contextmanager
def deployed(replicas: Replicas, host: str, port: int, address: str | None) -> Iterator[None]:
    """Inside, the replicas answer; at the end, requests that have begun are answered.

    Args:
        host, port: where every node that has a replica listens.
        address: of a cluster, as `ray.init` takes it; None: a new one on this machine.

    Raises:
        ConfigError: Ray is not installed, there is no cluster, Ray Serve already runs there, the address is taken, or
            the replicas do not start.
    """
    serve = import_ray("ray.serve")
    check_free(host, port)
    ray = connect(address, replicas.number * replicas.cpus, {CALLBACK: f"{retriable.__module__}.{retriable.__name__}"})
    try:
        if serve.status().proxies:
            raise ConfigError(
                "Ray Serve runs on this cluster already, with an address and applications of its own",
                remedy="another cluster, or end it: serve shutdown",
            )
        serve.start(http_options={"host": host, "port": port}, logging_config={"enable_access_log": False})
        try:
            serve.run(replicas.deployment(), name=NAME, route_prefix="/")
            yield
        finally:
            with suppress(TimeoutError):  # of Ray's own; whatever is not answered then is cut off
                serve.delete(NAME)  # after what has begun; `shutdown` alone would not wait for it
            serve.shutdown()
    except RuntimeError as error:
        raise ConfigError(
            f"The replicas do not start: {error}", remedy="viapt serve without --engine says why"
        ) from error
    finally:
        ray.shutdown()


def check_free(host: str, port: int) -> None:
    """See that this machine could listen there, where Ray would only try again and again.

    Raises:
        ConfigError: it could not.
    """
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise ConfigError(
            f"Nothing can listen on {host}:{port} ({error})", remedy="another --port or --host"
        ) from error


def serve_on_ray(replicas: Replicas, host: str, port: int, address: str | None) -> None:
    """Serve until SIGTERM or SIGINT; arguments and errors as of `deployed`."""
    ended = threading.Event()
    with deployed(replicas, host, port, address):
        signal.signal(signal.SIGTERM, lambda *_: ended.set())  # only now, in place of Ray's
        say(f"Listening on http://{host}:{port}")
        while not ended.wait(0.5):
            pass
