"""`viapt predict --server`: the same answers as a local prediction, computed elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx
import torch
from pydantic import BaseModel, ValidationError

from viapt.data.streams import text
from viapt.errors import ConfigError, DataError
from viapt.inference import Prediction
from viapt.serve.schema import Answers, ErrorBody, LimitsInfo, TaskAnswer, TaskInfo, TaskList

Body = TypeVar("Body", bound=BaseModel)

PATIENCE = 60.0  # seconds until there is an answer, and in which a busy server is asked again
AGAIN = (429, 503)
SURROUNDING = 1024  # bytes of multipart about a file, and about all of them, at most


class TooMuchError(ConfigError):
    """A request takes the server too long; half of it may be answered."""


ERRORS = {"unreadable_image": DataError, "timeout": TooMuchError, "too_many_rows": TooMuchError}  # by the server's code


class Answered(NamedTuple):
    """What a server says of some files.

    Attributes:
        places: of those that it answered, from 0.
        prediction: of them.
        refused: place of each other, which it could not answer even alone -> why.
    """

    places: list[int]
    prediction: Prediction
    refused: dict[int, str]


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
            self.http = httpx.Client(base_url=url, headers=headers, timeout=PATIENCE, transport=transport)
        except (httpx.InvalidURL, ValueError) as error:
            raise ConfigError(f"{url} is no address of a server ({error})", expected="http://HOST:PORT") from error

    def close(self) -> None:
        """Give the connection up."""
        self.http.close()

    def known(self, task: str) -> tuple[TaskInfo, LimitsInfo]:
        """What the server says of a task, and its limits.

        Raises:
            ConfigError: the server does not answer, or has no such task.
        """
        overview = self.overview()
        tasks = {one.name: one for one in overview.tasks}
        if task not in tasks:
            raise ConfigError(f"{self.url} has no task {task!r}", expected=f"one of {', '.join(tasks)}")
        return tasks[task], overview.limits

    def predict(
        self,
        task: TaskInfo,
        limits: LimitsInfo,
        files: Sequence[Path],
        policy: str,
        rounds: int,
        seed: int,
        batch_size: int,
    ) -> Answered:
        """What a task says of image files, `batch_size` of them in a request at most; fewer where that takes too long.

        Args:
            task: as the server told of it.
            limits: of the server.
            files: that pass `check_fit`.
            policy: this and the rest are those of `viapt.inference.predict`.

        Raises:
            ConfigError: the server does not answer, refuses a request or all images, or answers something else.
            DataError: it cannot read an image.
        """
        rows = max(1, rounds) if policy == "multi" and task.samples else 1
        most = max(1, min(batch_size, limits.images, limits.rows // rows))  # one alone may be refused, in words
        answers: dict[int, TaskAnswer] = {}
        refused: dict[int, TooMuchError] = {}
        while (done := len(answers) + len(refused)) < len(files):
            some = next(requests(files[done:], most, limits.request_bytes))
            try:
                found = self.ask(task, limits, some, question(task, policy, rounds, seed))
            except TooMuchError as error:
                if len(some) == 1:
                    refused[done] = error
                most = max(1, len(some) // 2)
            else:
                answers |= enumerate(found, done)
        if refused and not answers:
            raise next(iter(refused.values()))
        reasons = {place: error.found for place, error in refused.items()}
        return Answered(list(answers), prediction(task.classes, list(answers.values())), reasons)

    def ask(self, task: TaskInfo, limits: LimitsInfo, files: Sequence[Path], asked: dict[str, Any]) -> list[TaskAnswer]:
        """What a task says of the files of one request.

        Raises:
            ConfigError, DataError: as of `predict`; `TooMuchError` if that took too long.
        """
        parts = [("images", (text(path), path.read_bytes())) for path in files]
        seconds = limits.timeout + PATIENCE
        found = self.send(Answers, "POST", "/v1/classify", seconds, data=asked, files=parts)
        return self.matched(found, task, len(files), asked["policy"] == "multi")

    def matched(self, found: Answers, task: TaskInfo, count: int, spread: bool) -> list[TaskAnswer]:
        """The answers of a task, if they are what was asked for.

        Raises:
            ConfigError: too few or too many, of another task or of other classes.
        """
        answers = [image.tasks[task.name] for image in found.images if task.name in image.tasks]
        tables = [table for answer in answers for table in (answer.probabilities, answer.spread) if table is not None]
        whole = len(answers) == len(found.images) == count and len(tables) == count * (1 + spread)
        known = all(table.keys() == set(task.classes) for table in tables)
        if not whole or not known or any(answer.label not in task.classes for answer in answers):
            raise ConfigError(
                f"{self.url} does not answer for each image and class of {task.name!r}",
                expected="viapt serve",
                remedy="ask again, if the task was replaced meanwhile",
            )
        return answers

    def overview(self) -> TaskList:
        """Tasks and limits.

        Raises:
            ConfigError: the server does not answer, or answers something else.
        """
        return self.send(TaskList, "GET", "/v1/tasks")

    def send(self, kind: type[Body], method: str, path: str, seconds: float = PATIENCE, **content: Any) -> Body:
        """The answer to one request, which is sent again for so many seconds where the server is busy.

        Raises:
            ConfigError: the server does not answer, answers something else, or refuses the request.
            DataError: it cannot read an image.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                response = self.http.request(method, path, timeout=seconds, **content)
            except httpx.HTTPError as error:
                raise ConfigError(
                    f"{self.url} does not answer ({type(error).__name__}: {error})", expected="a server: viapt serve"
                ) from error
            wait = response.headers.get("Retry-After", "")
            if response.status_code in AGAIN and wait.isdigit() and time.monotonic() + int(wait) < deadline:
                time.sleep(int(wait))
                continue
            return self.understand(response, kind)

    def understand(self, response: httpx.Response, kind: type[Body]) -> Body:
        """The body of a good answer."""
        try:
            if response.is_success:
                return kind.model_validate_json(response.content)
            error = ErrorBody.model_validate_json(response.content).error
        except ValidationError:
            raise ConfigError(
                f"{self.url} answers {response.status_code} and nothing that viapt knows", expected="viapt serve"
            ) from None
        wrong = ERRORS.get(error.code, ConfigError)
        raise wrong(
            f"{self.url} answers {response.status_code}: {error.message}",
            expected=error.expected or "",
            remedy=error.remedy or "",
        )


def question(task: TaskInfo, policy: str, rounds: int, seed: int) -> dict[str, Any]:
    """The fields of a request, those left out that would have no effect."""
    asked = {"tasks": [task.name], "policy": policy}
    asked |= {"rounds": str(rounds)} if policy == "multi" else {}
    return asked | ({"seed": str(seed)} if policy != "mean" else {})


def prediction(classes: Sequence[str], answers: Sequence[TaskAnswer]) -> Prediction:
    """Answers about images, as of a local prediction."""
    spreads = [[answer.spread[name] for name in classes] for answer in answers if answer.spread]
    return Prediction(
        labels=[answer.label for answer in answers],
        probabilities=torch.tensor([[answer.probabilities[name] for name in classes] for answer in answers]),
        spread=torch.tensor(spreads) if spreads else None,
        rounds=torch.tensor([answer.rounds for answer in answers]),
    )


def check_fit(path: Path, pixels: int, limits: LimitsInfo) -> None:
    """Refuse an image that the server would refuse.

    Args:
        path: of its file.
        pixels: that it has.
        limits: of the server.

    Raises:
        DataError: it has too many pixels, or too many bytes for a request.
    """
    if pixels > limits.pixels:
        raise DataError(f"{text(path)}: has {pixels:,} pixels, more than the server's {limits.pixels:,}")
    if share(path) + SURROUNDING > limits.request_bytes:
        size = path.stat().st_size
        raise DataError(f"{text(path)}: has {size:,} bytes, too many for the server's {limits.request_bytes:,}")


def requests(files: Sequence[Path], images: int, size: int) -> Iterator[list[Path]]:
    """Files for one request each: so many images, and no more bytes than it may have, where one alone has no more."""
    batch: list[Path] = []
    total = SURROUNDING
    for path in files:
        own = share(path)
        if batch and (len(batch) == images or total + own > size):
            yield batch
            batch, total = [], SURROUNDING
        batch.append(path)
        total += own
    if batch:
        yield batch


def share(path: Path) -> int:
    """Bytes of a request that a file takes, at most."""
    return path.stat().st_size + SURROUNDING + len(text(path).encode())
