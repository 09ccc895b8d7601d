"""A Ray cluster to work on: one that is there, or one on this machine."""

from __future__ import annotations

import importlib
import socket
from typing import Any

from viapt.errors import ConfigError


def import_ray(wanted_by: str, part: str = "ray") -> None:
    """See that Ray, or a part of it, is installed.

    Raises:
        ConfigError: it is not.
    """
    try:
        importlib.import_module(part)
    except ImportError as error:
        raise ConfigError(
            f"{wanted_by} needs {error.name}, which is not installed", remedy="pip install 'viapt[ray]'"
        ) from error


def connect(address: str | None, cpus: int) -> Any:
    """Ray's module, connected: `shutdown()` ends it.

    Args:
        address: of a cluster, as `ray.init` takes it; None: a new one on this machine, whatever others there are.
        cpus: of the new one.

    Raises:
        ConfigError: there is no cluster at the address.
    """
    ray: Any = importlib.import_module("ray")
    room: dict[str, Any] = {"address": "local", "num_cpus": cpus} if address is None else {"address": address}
    try:
        knock(address or "")
        ray.init(**room, log_to_driver=False, logging_level="error", include_dashboard=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"There is no Ray cluster at {address} ({error})") from error
    return ray


def knock(address: str) -> None:
    """See whether anybody listens at "host:port", where Ray would wait for minutes; other addresses are Ray's business.

    Raises:
        OSError: nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()
