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
    precision: str = Field(description="That the backbone had when the task was fitted.")
    taught: bool = Field(False, description="Whether it was taught here, and its adapter can be downloaded.")


class LimitsInfo(BaseModel):
    """What the server takes in one request."""

    images: int
    request_bytes: int
    pixels: int
    rounds: int
    queue: int = Field(
        description="Rows: images x tasks x rounds, which count with policy multi alone, for tasks that sample."
    )
    rows: int = Field(
        description="Of a request, at most, to be answered in half of the timeout, as fast as rows were lately, "
        "since others may wait, too. More than twice as many are refused."
    )
    timeout: float = Field(description="Seconds until an answer is there, or an error.")


class TeachingInfo(BaseModel):
    """What the server takes in one teaching."""

    photos: int
    classes: int
    epochs: int
    methods: list[str]


class TaskList(BaseModel):
    """All tasks that are loaded, and what may be asked of them."""

    tasks: list[TaskInfo]
    limits: LimitsInfo
    urls: bool = Field(description="Whether images may be named by their address.")
    teaching: TeachingInfo | None = Field(description="None: nothing is taught here.")
    backbone: str | None
    precision: str = Field(
        description="In which the backbone computes. Tasks that were fitted in another one answer a little differently "
        "than their adapters elsewhere."
    )
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
    spread: dict[str, float] | None = Field(
        description="Standard deviation over the rounds, of policy multi alone. Where rounds is 1 there is none: 0 for "
        "every class, which says nothing about how sure the answer is."
    )
    rounds: int = Field(description="That were computed: 1 for a task that does not sample, whatever was asked for.")


class ImageAnswer(BaseModel):
    """What the tasks say of one image."""

    name: str
    tasks: dict[str, TaskAnswer]


class Answers(BaseModel):
    """In the order of the images."""

    images: list[ImageAnswer]


class Attention(BaseModel):
    """Where a task looks in a picture, layer by layer."""

    picture: str = Field(description="As the task sees it, cropped: a PNG as a data URL.")
    layers: int
    maps: dict[str, list[list[list[float]]]] = Field(
        description="Who looks: the class token (or the mean of the patches), and the means of each kind of prompts -> "
        "share of its attention on each patch, as [layer][row][column]."
    )
    on_prompts: list[float] = Field(description="Of the first of them, by layer: the share that goes to prompts.")
    on_prefix: list[float] = Field(description="Likewise to class and register tokens.")


class EpochInfo(BaseModel):
    """One epoch of a fit."""

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float | None = Field(description="Of the photos that were held back, if any were.")
    val_accuracy: float | None


class FailureInfo(BaseModel):
    """Why a fit failed."""

    message: str
    expected: str | None
    remedy: str | None


class Teaching(BaseModel):
    """A task that is being taught, or was."""

    id: str
    name: str
    state: Literal["preparing", "fitting", "saving", "done", "cancelled", "failed"]
    method: str
    photos: dict[str, int] = Field(description="Class -> photos.")
    held_back: bool = Field(description="Whether a fifth of each class is measured on, and not learned from.")
    epochs: int
    curve: list[EpochInfo] = Field(description="The epochs that are done.")
    seconds: float
    error: FailureInfo | None


class TeachingList(BaseModel):
    """The latest ones, oldest first."""

    teachings: list[Teaching]


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
