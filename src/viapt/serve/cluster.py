"""The same application as a Ray Serve deployment: several replicas, on one machine or on those of a cluster.

Replicas share nothing but files: each has the backbone and all tasks, and answers alone. What one of them loaded at run
time the others would not have, so tasks are fixed. Ray starts a replica anew when it dies; requests that it had begun
fail, and clients send them again.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from viapt.errors import ConfigError
from viapt.ray_cluster import connect, import_ray
from viapt.serve.app import create_app
from viapt.serve.limits import Limits
from viapt.serve.tasks import open_tasks

NAME = "viapt"  # of the application on Ray Serve
MORE = 8  # requests that a replica is given beyond its limit, and refuses itself, in its own words


@dataclass(frozen=True)
class Replicas:
    """What is deployed. Folders and weights must have the same paths on every node.

    Attributes:
        folders, weights: see `open_tasks`.
        limits: of each replica.
        token: see `create_app`.
        number: how many of them, >= 1.
        gpus: of each of them, for instance 0.5.
    """

    folders: Sequence[Path]
    weights: Path | None
    limits: Limits
    token: str | None
    number: int
    gpus: float = 0.0

    def build(self) -> FastAPI:
        """The application of one of them."""
        tasks = open_tasks(self.folders, self.weights, self.limits.rows)
        return create_app(tasks, limits=self.limits, token=self.token, fixed=True)

    def deployment(self) -> Any:
        """For `ray.serve.run`."""
        from ray import serve

        def application() -> FastAPI:
            return self.build()

        class Replica:
            app: FastAPI

            def check_health(self) -> None:
                """Raises where nothing is computed any more: Ray then starts another replica."""
                if not self.app.state.service.batcher.alive:
                    raise RuntimeError("the loop of passes has ended")

        room = {"num_cpus": 1} | ({"num_gpus": self.gpus} if self.gpus else {})
        options: dict[str, Any] = {
            "name": NAME,
            "num_replicas": self.number,
            "ray_actor_options": room,
            "max_ongoing_requests": self.limits.requests + MORE,
            "max_queued_requests": self.limits.requests,
            "graceful_shutdown_timeout_s": self.limits.timeout + 5,
        }
        return serve.deployment(**options)(serve.ingress(application)(Replica)).bind()


def deploy(replicas: Replicas, host: str, port: int, address: str | None) -> Callable[[], None]:
    """Start the replicas; they answer when this returns.

    Args:
        host, port: where every node that has a replica listens.
        address: of a cluster, as `ray.init` takes it; None: a new one on this machine.

    Returns:
        What ends them: requests that have begun are answered, and other applications of the cluster stay.

    Raises:
        ConfigError: Ray is not installed, there is no cluster, the address is taken, or the replicas do not start.
    """
    import_ray("--engine ray", "ray.serve")
    check_free(host, port)
    ray = connect(address, replicas.number)
    serve = ray.serve

    def end() -> None:
        serve.delete(NAME)
        ray.shutdown()

    try:
        serve.start(http_options={"host": host, "port": port}, logging_config={"enable_access_log": False})
        serve.run(replicas.deployment(), name=NAME, route_prefix="/")
    except RuntimeError as error:
        end()
        raise ConfigError(
            f"The replicas do not start: {error}", remedy="viapt serve without --engine says why"
        ) from None
    return end


def check_free(host: str, port: int) -> None:
    """See that this process could listen there, where Ray would only try again and again.

    Raises:
        ConfigError: it could not.
    """
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise ConfigError(
            f"Nothing can listen on {host}:{port} ({error})", remedy="another --port or --host"
        ) from error


def run(replicas: Replicas, host: str, port: int, address: str | None) -> None:
    """Serve until SIGTERM or SIGINT; arguments and errors as of `deploy`."""
    end, ended = deploy(replicas, host, port, address), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        while not ended.wait(0.5):
            pass
    finally:
        end()
