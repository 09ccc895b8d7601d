"""Who may ask: a token, and whether an address needs one."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

from viapt.errors import ConfigError

TOKEN = "VIAPT_TOKEN"
SHORTEST_TOKEN = 16


def read_token(file: Path | None) -> str | None:
    """The token from a file, or else from the environment variable VIAPT_TOKEN; never from an argument, which every
    user of a machine can read.

    Raises:
        ConfigError: the file cannot be read, or the token is too short or not printable.
    """
    try:
        token = os.environ.get(TOKEN) if file is None else file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The token in {file} cannot be read ({error})", expected="a file with one line") from error
    if token is None:
        return None
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"The token has {len(token)} characters, or some that are not allowed",
            expected=f"at least {SHORTEST_TOKEN} letters, digits or signs, without blanks",
            remedy="python -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    return token


def check_reach(host: str, token: str | None) -> None:
    """Refuse to answer other machines without a token.

    Raises:
        ConfigError: the address is not a loopback one, and there is no token.
    """
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"{host} can be reached from other machines, and there is no token",
            expected=f"--token-file or the environment variable {TOKEN}",
            remedy="or --host 127.0.0.1",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address; a name other than localhost may mean anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
