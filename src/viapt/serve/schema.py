"""What is sent and received, typed: /openapi.json is made from this."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class TaskInfo(BaseModel):
    """A task that is loaded."""

    name: str
    method: str
    classes: list[str]
    samples: bool = Field(description="Whether the policies fixed and multi differ from mean.")


class LimitsInfo(BaseModel):
    """What the server takes in one request."""

    images: int
    request_bytes: int
    pixels: int
    rounds: int


class TaskList(BaseModel):
    """All tasks that are loaded, and what may be asked of them."""

    tasks: list[TaskInfo]
    limits: LimitsInfo
    backbone: str | None
    fingerprint: str


class LoadRequest(BaseModel):
    """An adapter to load."""

    directory: str = Field(
        min_length=1, max_length=4096, description="Below one of the server's --root folders, or relative to one."
    )
    replace: bool = Field(False, description="Take the place of a task of the same name.")


class TaskAnswer(BaseModel):
    """What one task says of one image."""

    label: str
    probability: float
    probabilities: dict[str, float]
    spread: dict[str, float] | None = Field(description="Standard deviation over the rounds; of policy multi alone.")
    rounds: int


class ImageAnswer(BaseModel):
    """What the tasks say of one image."""

    name: str
    tasks: dict[str, TaskAnswer]


class Answers(BaseModel):
    """In the order of the images."""

    images: list[ImageAnswer]


class Status(BaseModel):
    """Of the process."""

    status: Literal["ok", "ready", "broken"]


class ErrorDetail(BaseModel):
    """What was found, what was expected, what to do."""

    code: str
    message: str
    expected: str | None
    remedy: str | None


class ErrorBody(BaseModel):
    """Of every answer with a status of 400 or above."""

    error: ErrorDetail
