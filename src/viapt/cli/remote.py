"""`viapt predict --server`: images that are read here, and classified there."""

from __future__ import annotations

from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from viapt.cli.shown import FAILED_IMAGES, none_readable, report_bad, show_prediction
from viapt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from viapt.data.streams import Reference
    from viapt.serve.schema import LimitsInfo


def check_remote(given: dict[str, Any]) -> None:
    """Refuse options that a server decides about.

    Raises:
        ConfigError: naming the first one that was given.
    """
    for name, value in given.items():
        if value:
            raise ConfigError(f"--{name} has no effect with --server", expected=f"no --{name}")


def predict_elsewhere(
    server: str, token_file: Path | None, task: str, files: list[Reference], form: str, ask: dict[str, Any]
) -> None:
    """Show what a server's task says of image files, and which of them cannot be read here or there.

    Args:
        server: its address.
        token_file: see `viapt.serve.access.read_token`.
        task: its name.
        files: not in shards.
        form: that `show_prediction` knows.
        ask: policy, rounds, seed and batch size.

    Raises:
        ConfigError: the server does not answer or refuses a request; or an image lies in a shard.
        DataError: no image can be read.
    """
    if find_spec("httpx") is None or find_spec("pydantic") is None:
        raise ConfigError("viapt predict --server needs httpx and pydantic", remedy="pip install 'viapt[serve]'")
    from viapt.serve.access import read_token
    from viapt.serve.client import Client
    from viapt.tables import say

    inside = next((file.name for file in files if file.size >= 0), None)
    if inside is not None:
        raise ConfigError(f"{inside} lies in a shard", expected="image files with --server")
    with closing(Client(server, read_token(token_file))) as client:
        known, limits = client.known(task)
        good, bad = sorted_out(files, limits)
        if not good:
            raise none_readable(bad)
        answered, result, refused = client.predict(known, limits, [Path(file.path) for file in good], **ask)
    show_prediction(known.classes, [good[place].name for place in answered], result, form)
    if refused:
        say(f"{len(refused)} of {len(files)} images were not answered, each of them alone:")
        say(*(f"{good[place].name}: {why}" for place, why in refused.items()))
    report_bad(len(files), bad)
    if refused:
        raise typer.Exit(FAILED_IMAGES)


def sorted_out(files: list[Reference], limits: LimitsInfo) -> tuple[list[Reference], list[str]]:
    """Files that a server can read, and what is wrong with the others: these are told by name, and not sent."""
    from viapt.serve.client import check_fit

    good, bad = [], []
    for file in files:
        try:
            image = file.read()
            check_fit(Path(file.path), image.width * image.height, limits)
        except DataError as error:
            bad.append(error.found)
        else:
            good.append(file)
    return good, bad
