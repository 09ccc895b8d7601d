"""Adapters on a model hub: `hf://user/name` or `hf://user/name@revision`, fetched into the hub's own cache.

Only the two files of an adapter are fetched, by their names, and only if the hub says that they are of an adapter's
size; reading them checks that again. A folder of that name on this machine always wins. The hub is that of
huggingface_hub, which HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE configure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from viapt.adapter_files import CONFIG, CONFIG_LIMIT, TENSORS, TENSORS_LIMIT
from viapt.errors import ArtifactError

LIMITS = {CONFIG: CONFIG_LIMIT, TENSORS: TENSORS_LIMIT}
SCHEME = re.compile(r"hf:/{1,2}(?=[^/])")  # a `Path` of hf://user/name has one stroke
NAME = re.compile(r"(?P<name>[\w.-]{1,96}/[\w.-]{1,96})(@(?P<revision>[\w./-]{1,200}))?", re.ASCII)
HTTP_LIBRARIES = "httpx", "httpx2", "httpcore", "httpcore2", "requests"  # one of them talks for huggingface_hub


def adapter_folder(place: str | Path) -> Path:
    """The folder of an adapter: that place itself, or where the hub's cache holds a copy of it.

    Args:
        place: a folder, or hf://user/name, perhaps with @revision: a branch, tag or commit.

    Raises:
        ArtifactError: the hub has no such adapter, does not let us have it, or is out of reach.
    """
    if not on_hub(place):
        return Path(place)
    name, revision = parse(str(place))
    return fetch(name, revision)


def on_hub(place: str | Path) -> bool:
    """Whether this is hf://..., and no folder of that name."""
    return SCHEME.match(str(place)) is not None and not Path(place).exists()


def parse(place: str) -> tuple[str, str | None]:
    """User and name, and the revision, of hf://user/name@revision.

    Raises:
        ArtifactError: it is no such name.
    """
    found = NAME.fullmatch(SCHEME.sub("", place, count=1))
    if found is None or ".." in place:
        raise ArtifactError(
            f"{place!r} names no adapter on a hub", expected="hf://user/name or hf://user/name@revision"
        )
    return found["name"], found["revision"]


def fetch(name: str, revision: str | None = None) -> Path:
    """The folder in the hub's cache that holds this adapter, fetched if it is not there yet.

    Raises:
        ArtifactError: as `adapter_folder`.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    shown = f"hf://{name}{'@' + revision if revision else ''}"
    offline = constants.HF_HUB_OFFLINE
    with asking(shown, "check the network; HF_HUB_OFFLINE=1 takes the copy in the cache, if there is one"):
        try:
            if not offline:
                check_files(shown, HfApi().model_info(name, revision=revision, files_metadata=True).siblings or [])
            paths = [
                Path(hf_hub_download(name, file, revision=revision, local_files_only=bool(offline))) for file in LIMITS
            ]
        except LocalEntryNotFoundError as error:
            raise ArtifactError(
                f"{shown} is not in the cache, and huggingface_hub is told to stay offline",
                remedy="unset HF_HUB_OFFLINE once, or give the folder of a copy",
            ) from error
    if paths[0].parent != paths[1].parent:
        raise ArtifactError(f"{shown} changed while it was fetched", remedy="try again")
    return paths[0].parent


def check_files(shown: str, siblings: list[Any]) -> None:
    """Refuse a repository that holds no adapter, or one beyond all measure, before anything is fetched.

    Raises:
        ArtifactError: naming the file.
    """
    sizes = {sibling.rfilename: sibling.size for sibling in siblings}
    for file, limit in LIMITS.items():
        if file not in sizes:
            raise ArtifactError(f"{shown} has no {file}", expected="an adapter that viapt saved")
        if not isinstance(sizes[file], int) or not 0 <= sizes[file] <= limit:
            raise ArtifactError(f"{shown} has a {file} of {sizes[file]} bytes", expected=f"at most {limit}")


@contextmanager
def asking(shown: str, remedy: str) -> Iterator[None]:
    """Say in our words what goes wrong with the hub inside.

    Args:
        shown: what the hub is asked about.
        remedy: where there is no way to the hub.

    Raises:
        ArtifactError: the hub refuses, or is out of reach.
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        refuse(shown, error)
    except Exception as error:
        if not (isinstance(error, OSError) or type(error).__module__.partition(".")[0] in HTTP_LIBRARIES):
            raise
        raise ArtifactError(
            f"The hub cannot be reached for {shown} ({type(error).__name__}: {error})", remedy=remedy
        ) from error


def refuse(shown: str, error: Any) -> NoReturn:
    """What the hub said.

    Raises:
        ArtifactError: always.
    """
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403, 404):
        raise ArtifactError(
            f"The hub has no {shown}, or does not show it to you (HTTP {status})",
            expected="a public adapter, or a private one and a token that may read it",
            remedy="check the spelling, or log in: hf auth login",
        ) from error
    raise ArtifactError(f"The hub failed on {shown} (HTTP {status})", remedy="try again later") from error
