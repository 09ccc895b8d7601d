"""`viapt predict --server`: the same answers as a local prediction, computed elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import torch

from viapt.errors import ConfigError, DataError
from viapt.inference import Prediction

PATIENCE = 60.0  # seconds in which a busy server is asked again
AGAIN = (429, 503)
SURROUNDING = 1024  # bytes of multipart about a file, and about all of them, at most


class Client:
    """A server's tasks.

    Args:
        url: of the server.
        token: that it wants, if it does.
        transport: of httpx, for tests.
    """

    def __init__(self, url: str, token: str | None = None, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            self.http = httpx.Client(base_url=url, headers=headers, timeout=60, transport=transport)
        except (httpx.InvalidURL, ValueError) as error:
            raise ConfigError(f"{url} is no address of a server ({error})", expected="http://HOST:PORT") from error

    def close(self) -> None:
        """Give the connection up."""
        self.http.close()

    def classes(self, task: str) -> list[str]:
        """Of a task.

        Raises:
            ConfigError: the server does not answer, or has no such task.
        """
        return self.known(task)[0]["classes"]

    def known(self, task: str) -> tuple[dict[str, Any], dict[str, int]]:
        """What the server says of a task, and its limits.

        Raises:
            ConfigError: the server does not answer, or has no such task.
        """
        overview = self.overview()
        tasks = {one["name"]: one for one in overview["tasks"]}
        if task not in tasks:
            raise ConfigError(f"{self.url} has no task {task!r}", expected=f"one of {', '.join(tasks)}")
        return tasks[task], overview["limits"]

    def predict(
        self, task: str, files: Sequence[Path], policy: str, rounds: int, seed: int, batch_size: int
    ) -> Prediction:
        """What a task says of image files, `batch_size` of them in a request at most.

        Raises:
            ConfigError: the server does not answer or refuses the request.
            DataError: it cannot read an image.
        """
        found, limits = self.known(task)
        classes, rows = found["classes"], rounds if policy == "multi" and found["samples"] else 1
        most = max(1, min(batch_size, limits["images"], limits["queue"] // rows))  # one alone may be refused, in words
        asked = {"tasks": [task], "policy": policy, "rounds": str(rounds), "seed": str(seed)}
        answers: list[dict[str, Any]] = []
        for some in requests(files, most, limits["request_bytes"]):
            parts = [("images", (str(path), path.read_bytes())) for path in some]
            found = self.send("POST", "/v1/classify", data=asked, files=parts)
            answers += [image["tasks"][task] for image in found["images"]]
        spreads = [[answer["spread"][name] for name in classes] for answer in answers if answer["spread"]]
        return Prediction(
            labels=[answer["label"] for answer in answers],
            probabilities=torch.tensor([[answer["probabilities"][name] for name in classes] for answer in answers]),
            spread=torch.tensor(spreads) if spreads else None,
            rounds=torch.tensor([answer["rounds"] for answer in answers]),
        )

    def overview(self) -> dict[str, Any]:
        """Tasks and limits."""
        return self.send("GET", "/v1/tasks")

    def send(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        """One request, again where the server is busy.

        Raises:
            ConfigError: the server does not answer, answers something else, or refuses the request.
            DataError: it cannot read an image.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                response = self.http.request(method, path, **content)
            except httpx.HTTPError as error:
                raise ConfigError(
                    f"{self.url} does not answer ({type(error).__name__}: {error})", expected="a server: viapt serve"
                ) from error
            wait = response.headers.get("Retry-After", "")
            if response.status_code in AGAIN and wait.isdigit() and time.monotonic() + int(wait) < deadline:
                time.sleep(int(wait))
                continue
            return self.understand(response)

    def understand(self, response: httpx.Response) -> dict[str, Any]:
        """The body of a good answer."""
        try:
            body = response.json()
            if response.is_success:
                return body
            error = body["error"]
            told = {"expected": error["expected"] or "", "remedy": error["remedy"] or ""}
            found, code = error["message"], error["code"]
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{self.url} answers {response.status_code} and nothing that viapt knows", expected="viapt serve"
            ) from None
        kind = DataError if code == "unreadable_image" else ConfigError
        raise kind(f"{self.url} answers {response.status_code}: {found}", **told)


def requests(files: Sequence[Path], images: int, size: int) -> Iterator[list[Path]]:
    """Files for one request each: so many images, and no more bytes than it may have.

    Raises:
        DataError: a file alone is too large.
    """
    batch: list[Path] = []
    total = 0
    for path in files:
        own = path.stat().st_size
        share = own + SURROUNDING + len(str(path))
        if share + SURROUNDING > size:
            raise DataError(f"{path} has {own:,} bytes", expected=f"less than the server's {size:,}")
        if batch and (len(batch) == images or total + share + SURROUNDING > size):
            yield batch
            batch, total = [], 0
        batch.append(path)
        total += share
    if batch:
        yield batch
