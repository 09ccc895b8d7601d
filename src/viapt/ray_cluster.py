"""A Ray cluster to work on: one that is there, or one on this machine."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Mapping
from typing import Any

from viapt.errors import ConfigError

NICENESS = "RAY_worker_niceness"  # Ray's own variable


def import_ray(part: str = "ray") -> Any:
    """Ray, or a module of it.

    Raises:
        ConfigError: it is not installed, or something that it needs.
    """
    try:
        return importlib.import_module(part)
    except ImportError as error:
        raise ConfigError(
            f"--engine ray needs {error.name}, which is not installed", remedy="pip install 'viapt[ray]'"
        ) from error


def connect(address: str | None, cpus: int, environment: Mapping[str, str] | None = None) -> Any:
    """Ray's module, connected: `shutdown()` ends it.

    Args:
        address: of a cluster, as `ray.init` takes it; None: a new one on this machine, whatever others there are.
        cpus: of the new one.
        environment: variables of all processes that work for this one.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """
    ray = import_ray()
    if address is None:
        # Ray's default of 15 is for desktops: beside other work, such processes take a minute to start.
        os.environ.setdefault(NICENESS, "0")
        room: dict[str, Any] = {"address": "local", "num_cpus": cpus}
    else:
        room = {"address": address}
    if environment:
        room["runtime_env"] = {"env_vars": dict(environment)}
    try:
        knock(address or "")
        ray.init(**room, log_to_driver=False, logging_level="error", include_dashboard=False)
    except Exception as error:  # Ray has no class of its own for a start that takes too long
        wrong = "Ray does not start here" if address is None else f"There is no Ray cluster at {address}"
        raise ConfigError(f"{wrong} ({error})") from error
    return ray


def knock(address: str) -> None:
    """See whether anybody listens at "host:port", where Ray would wait for minutes; other addresses are Ray's business.

    Raises:
        OSError: nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()
