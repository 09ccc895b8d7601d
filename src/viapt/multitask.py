"""Many tasks on one frozen backbone: a batch may mix tasks, methods and policies, and goes through the backbone once.

A question is one image for one task; a row is one pass of it (a question under `multi` has as many as rounds). All rows
go through the loop of `viapt.model` together, where each method gives prompts to the rows of its own tasks, and each
head reads the features of its own rows.

Rows are grouped into passes by their number of prompts, and by whether anybody reads the prompts that leave a block,
rather than padded to the longest: attention then needs no mask, so every row's answer is that of its task alone but for
rounding, no token is computed for nothing, and any backbone serves. A group with no prompts computes each image once,
however many tasks ask about it. Methods that work inside the backbone change its blocks, and have a pass of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from viapt.adapter_files import read_config
from viapt.artifact import load
from viapt.backbones import create_backbone
from viapt.device import send
from viapt.errors import ConfigError, DataError, did_you_mean
from viapt.hub import adapter_folder
from viapt.inference import Policy, Prediction, check_policy, check_shape, evaluating, preprocessed, softmax
from viapt.methods.base import PromptMethod
from viapt.mixture import Mixture, Row, consecutive, noise, part_of, passes, rows_on_cpu, running, used
from viapt.model import PromptedClassifier

ROWS = 64  # in one pass through the backbone


class Question(NamedTuple):
    """One image for one task.

    Attributes:
        task: its name.
        image: which one of the batch, from 0.
        policy: "mean", "fixed" or "multi".
        rounds: passes of `multi`, >= 1.
        seed: of the noise of `fixed` and `multi`, >= 0.
    """

    task: str
    image: int
    policy: Policy = "mean"
    rounds: int = 5
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a task says of an image.

    Attributes:
        probabilities: of each class of the task.
        spread: their standard deviation over the rounds, for `multi`.
        rounds: passes that were made.
    """

    probabilities: Float32[Tensor, " classes"]
    spread: Float32[Tensor, " classes"] | None
    rounds: int


class Source(NamedTuple):
    """What a task was loaded from.

    Attributes:
        folder: of its adapter, at that time.
        precision: that its backbone had when it was fitted.
    """

    folder: Path
    precision: str


class MultiTask(Mapping[str, PromptedClassifier]):
    """Tasks by name, all of them on one frozen backbone, which is held once.

    Tasks may be added, replaced and removed at any time, from any thread: a pass that has begun ends with the tasks
    that it began with. Passes take turns, unless `allow` says otherwise.

    Args:
        backbone: as in `viapt.create_backbone`: a name, or a module (a `Backbone` is used as it is, where it is).
        tasks: name -> directory of an adapter.
        rows: of one pass through the backbone, at most: what bounds its memory.

    Raises:
        ArtifactError: an adapter cannot be read, or was trained on another backbone.
        BackboneError: the backbone cannot be built.
        ConfigError: a name twice, or a method whose answers depend on the batch.
    """

    def __init__(
        self, backbone: str | nn.Module, tasks: Mapping[str, str | Path] | None = None, *, rows: int = ROWS
    ) -> None:
        if rows < 1:
            raise ConfigError(f"rows = {rows}", expected="at least 1")
        self.backbone, self.rows = create_backbone(backbone), rows
        self.models: dict[str, PromptedClassifier] = {}  # replaced as a whole, never changed
        self.sources: WeakKeyDictionary[PromptedClassifier, Source] = WeakKeyDictionary()  # forgotten with their models
        self.changing, self.reweighting = threading.Lock(), threading.Lock()
        self.loops: SimpleQueue[PromptedClassifier] = SimpleQueue()
        self.passes = 0
        self.allow(1)
        for name, directory in (tasks or {}).items():
            self.add(name, directory)

    def __getitem__(self, name: str) -> PromptedClassifier:
        return self.models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.models)

    def __len__(self) -> int:
        return len(self.models)

    @property
    def device(self) -> torch.device:
        """Where the backbone is."""
        return next(self.backbone.parameters()).device

    @property
    def precision(self) -> str:
        """In which the backbone computes."""
        return str(self.backbone.dtype).removeprefix("torch.")

    def allow(self, passes: int) -> None:
        """Let at least so many passes be made at the same time, each in a thread of whoever asks.

        A pass of few rows hardly gains from a second core; two passes do. Methods that learn weights of the backbone
        still take turns among themselves: they put them there for as long as a pass takes.
        """
        while self.passes < passes:
            self.passes += 1
            with torch.random.fork_rng(devices=[]):  # its head is never used
                loop = PromptedClassifier(self.backbone, Mixture(self.backbone), ["", "-"]).eval()
            self.loops.put(loop.to(self.device))

    @contextmanager
    def turn(self) -> Iterator[PromptedClassifier]:
        """The loop for one pass, when there is one that nobody else uses; its method is a `Mixture`."""
        loop = self.loops.get()
        try:
            with evaluating(loop):
                yield loop
        finally:
            self.loops.put(loop)

    def add(self, name: str, directory: str | Path, *, replace: bool = False) -> PromptedClassifier:
        """Load an adapter as a task; with `replace`, in the place of one of the same name.

        If it cannot be loaded, everything is as it was.

        Returns:
            Its model, in evaluation mode.

        Raises:
            ArtifactError: the adapter cannot be read, or was trained on another backbone.
            ConfigError: the name is taken, or the method's answers depend on the batch.
        """
        with self.changing:
            if name in self.models and not replace:
                raise ConfigError(
                    f"There is a task {name!r} already", expected="a new name", remedy="replace=True, or remove it"
                )
            folder = adapter_folder(directory)
            model = load(folder, self.backbone, precision=self.precision)
            if model.method.batch_dependent:
                raise ConfigError(
                    f"{model.method.name} in {directory}, as configured, answers by the other images of the batch, too",
                    expected="a method whose answers do not depend on whatever else is asked at the same time",
                )
            model.method.to(self.device)
            model.head.to(self.device)
            shed(model.method)
            self.sources[model] = Source(folder, read_config(folder)["backbone"]["precision"])
            self.models = self.models | {name: model}
        return model

    def remove(self, name: str) -> None:
        """Forget a task.

        Raises:
            ConfigError: there is none of this name.
        """
        with self.changing:
            self.check_names([name], self.models)
            self.models = {other: model for other, model in self.models.items() if other != name}

    def predict(
        self,
        images: Any,
        tasks: str | Sequence[str] | None = None,
        policy: Policy = "mean",
        rounds: int = 5,
        seed: int = 0,
        batch_size: int = 32,
    ) -> dict[str, Prediction]:
        """Classify every image for every one of these tasks (None: all); arguments as in `viapt.inference.predict`.

        Returns:
            Task -> what it says, in the order of the images.

        Raises:
            ConfigError: unknown task or policy, no tasks, or a number out of range.
            DataError: an image that cannot be read or has the wrong shape, no images, or probabilities that are not
                finite.
        """
        models = self.models
        names = [tasks] if isinstance(tasks, str) else list(dict.fromkeys(models if tasks is None else tasks))
        if not names:
            raise ConfigError("No tasks", expected="at least one", remedy="tasks.add(name, directory)")
        self.check_names(names, models)
        if batch_size < 1:
            raise ConfigError(f"batch_size = {batch_size}", expected="at least 1")
        answers: dict[str, list[Outcome]] = {name: [] for name in names}
        for batch in preprocessed(self.backbone.preprocessing, images, batch_size):
            questions = [
                Question(name, image, policy, rounds, seed) for name in names for image in range(batch.shape[0])
            ]
            for question, outcome in zip(questions, self.answer(batch, questions, models), strict=True):
                answers[question.task].append(outcome)
        if not answers[names[0]]:
            raise DataError("There are no images to predict", expected="at least one")
        return {name: prediction(name, models[name], outcomes) for name, outcomes in answers.items()}

    def answer(
        self,
        images: Float[Tensor, "batch 3 height width"],
        questions: Sequence[Question],
        models: Mapping[str, PromptedClassifier] | None = None,
    ) -> list[Outcome]:
        """What the tasks say, in the order of the questions, on the CPU; all rows in as few passes as can be.

        Args:
            images: preprocessed, on any device.
            questions: any mixture of tasks and policies.
            models: `self.models` as it was at some moment; None: now.

        Raises:
            ConfigError: unknown task or policy, or a number out of range.
            DataError: images of the wrong shape, or a question about none of them.
        """
        models = self.models if models is None else models
        check_shape(self.backbone.input_shape, images)
        rows = self.rows_of(questions, models, images.shape[0])
        logits: list[list[Tensor]] = [[] for _ in questions]
        images = send(images, self.device)
        for together in passes(rows, self.rows):
            for row, found in zip(together, self.compute(images, together), strict=True):
                logits[row.question].append(found)
        return [outcome(found, question.policy) for question, found in zip(questions, logits, strict=True)]

    def rows_of(
        self, questions: Sequence[Question], models: Mapping[str, PromptedClassifier], images: int
    ) -> list[Row]:
        """All passes of all questions about so many images, with the same noise as in `viapt.inference`.

        Raises:
            ConfigError: unknown task or policy, or a number out of range.
            DataError: a question about an image that is not there.
        """
        self.check_names([question.task for question in questions], models)
        rows = []
        for number, question in enumerate(questions):
            check_policy(question.policy, question.rounds, question.seed)
            if not 0 <= question.image < images:
                raise DataError(f"A question is about image {question.image}", expected=f"0 to {images - 1}")
            model = models[question.task]
            rounds = question.rounds if question.policy == "multi" else 1
            drawn = question.policy != "mean" and model.method.sampled_prompts > 0
            draws = [(question.seed, index) for index in range(rounds)] if drawn else [None]
            rows += [Row(number, model, question.image, draw) for draw in draws]
        return rows

    def compute(self, images: Float[Tensor, "batch 3 height width"], rows: Sequence[Row]) -> list[Tensor]:
        """The logits of rows that may share a pass (`kind`), on the CPU: one pass, in its turn."""
        order = sorted(range(len(rows)), key=lambda place: id(rows[place].model))  # those of a task one after the other
        with self.turn() as loop:
            found = self.logits(loop, send(images, self.device), [rows[place] for place in order])
        return [logits for _, logits in sorted(zip(order, found, strict=True), key=lambda pair: pair[0])]

    def logits(
        self, loop: PromptedClassifier, images: Float[Tensor, "batch 3 height width"], rows: Sequence[Row]
    ) -> list[Tensor]:
        """The same, of rows in the order of their tasks, by this loop."""
        parts = list(consecutive(rows))
        first = rows[0].model
        if first.method.inside:
            needed = images[[row.image for row in rows]]
            with self.reweighting if first.method.replaced() else nullcontext():
                return rows_on_cpu([first.classify(first.embed(needed), noise(rows))])
        images, places = used(images, rows)
        tokens = self.backbone.embed(images, first.method.num_prompts)
        if first.method.num_prompts == 0:
            features = running(loop, [part_of(first, images.shape[0], None)], tokens)[places]
        else:
            tokens = tokens._replace(prefix=tokens.prefix[places], patches=tokens.patches[places])
            features = running(loop, [part_of(part[0].model, len(part), noise(part)) for part in parts], tokens)
        pieces = features.split([len(part) for part in parts])
        return rows_on_cpu([part[0].model.head(piece) for part, piece in zip(parts, pieces, strict=True)])

    def check_names(self, names: Sequence[str], models: Mapping[str, PromptedClassifier]) -> None:
        """Refuse a task that is not there.

        Raises:
            ConfigError: with the closest name.
        """
        for name in names:
            if name not in models:
                raise ConfigError(
                    f"There is no task {name!r}",
                    expected=f"one of {', '.join(models)}" if models else "a task that was added",
                    remedy=did_you_mean(name, models),
                )


def shed(method: PromptMethod) -> None:
    """Give up the memory of what only training needs: in its place, one zero stands for all."""
    for name in method.transient_state():
        path, _, buffer = name.rpartition(".")
        module = method.get_submodule(path)
        tensor = module.get_buffer(buffer)
        setattr(module, buffer, tensor.new_zeros(()).expand(tensor.shape))


def outcome(logits: Sequence[Float[Tensor, " classes"]], policy: Policy) -> Outcome:
    """Of the rounds of a question."""
    probabilities = softmax(torch.stack(list(logits)))
    spread = probabilities.std(0, correction=0) if policy == "multi" else None
    return Outcome(probabilities.mean(0), spread, len(logits))


def prediction(name: str, model: PromptedClassifier, outcomes: Sequence[Outcome]) -> Prediction:
    """What a task says of all images.

    Raises:
        DataError: a probability is not finite.
    """
    probabilities = torch.stack([outcome.probabilities for outcome in outcomes])
    if not bool(probabilities.isfinite().all()):
        worst = int((~probabilities.isfinite()).any(1).nonzero()[0])
        raise DataError(
            f"The probabilities of image {worst} (counting from 0) for {name} are not finite",
            expected="finite pixels and finite weights",
        )
    spreads = [outcome.spread for outcome in outcomes if outcome.spread is not None]
    return Prediction(
        labels=[model.classes[index] for index in probabilities.argmax(1).tolist()],
        probabilities=probabilities,
        spread=torch.stack(spreads) if spreads else None,
        rounds=torch.tensor([outcome.rounds for outcome in outcomes]),
    )
