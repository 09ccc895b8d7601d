"""A job: one training, measured. Everything that decides its numbers is in it, and its key is a hash of it.

`work` does a job in whatever process calls it, here or on another machine; nothing is shared but the packages' cache.
"""

from __future__ import annotations

import hashlib
import json
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from viapt.backbones.base import Preprocessing
from viapt.bench.measuring import measure, measure_policies
from viapt.bench.provenance import CODE, code_for, versions
from viapt.bench.task_data import TaskData, preprocessing_under, task_data
from viapt.caching import Cache, chosen
from viapt.create import create_model
from viapt.data import ImageDataset
from viapt.data.dataset import CACHE_BYTES
from viapt.data.transforms import eval_transform, train_transform
from viapt.device import default_device, describe_device, peak_memory_mib
from viapt.errors import DataError, DivergenceError, TrainingError, ViaptError
from viapt.evaluation import LabelledImages
from viapt.history import History
from viapt.model import PromptedClassifier
from viapt.pruning import PRUNING, masked_numbers, prune
from viapt.training import fit


@dataclass(frozen=True)
class Job:
    """All that decides a number.

    Attributes:
        options: every keyword argument of the method, defaults included.
        data_hash: of the task's pictures and labels.
        split_hash: of the indices of its parts.
        fingerprint: of the backbone's weights.
        images: how many were asked for, by part.
        training: keyword arguments of `fit`, `seed` left out; and the shares of `PRUNING`. With a share above 0 there
            are two trainings, the second from the first values without what was of little importance to the first.
        rounds, draws: see `Protocol`.
        suite: of a benchmark task, what its protocol decides: parts that train, normalisation, resizing.
        code: see `viapt.bench.provenance`.
    """

    method: str
    options: dict[str, Any]
    task: str
    data_hash: str
    split_hash: str
    split_seed: int
    images: dict[str, int]
    backbone: str
    weights: str | None
    fingerprint: str
    image_size: int
    precision: str
    device: str
    augmentation: str
    training: dict[str, Any]
    read_test: bool
    rounds: int
    draws: int
    seed: int
    code: str
    versions: dict[str, str]
    suite: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; what only benchmark tasks have is left out elsewhere."""
        values = json.loads(json.dumps(asdict(self)))
        return {name: value for name, value in values.items() if name != "suite" or value is not None}

    @property
    def key(self) -> str:
        """SHA-256 over everything, in hex; equal jobs have equal keys."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Outcome:
    """What became of a job: its record, or the cause of its failure (and a traceback where Python had one).

    Not `begun` was one that cannot have read any data: it was never started, or refused where it came to. `diverged`
    was one whose settings do not train, which another attempt would not change.
    """

    record: dict[str, Any] | None = None
    cause: str = ""
    trace: str = ""
    begun: bool = True
    diverged: bool = False


def work(job: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """Do a job (`Job.to_dict`) on so many threads; an `Outcome` in plain JSON types, also of a job that fails."""
    torch.set_num_threads(threads)
    begun = False
    try:
        planned = Job(**job)
        check_place(planned)
        begun = True
        return asdict(Outcome(record=measured(planned)))
    except Exception as error:
        kind = "" if isinstance(error, ViaptError) else f"{type(error).__name__}: "
        diverged = isinstance(error, DivergenceError)
        return asdict(Outcome(None, f"{kind}{error}", traceback.format_exc(), begun, diverged))


def measured(job: Job) -> dict[str, Any]:
    """Train, twice if it prunes, and measure; the record of it.

    Raises:
        ViaptError: whatever is wrong.
    """
    started = time.perf_counter()
    device = default_device()
    task = task_data(job.task, job.images, job.split_seed)
    check_data(job, task)
    with warnings.catch_warnings(record=True) as remarks:
        model = untrained(job, task.classes)
        preprocessing = preprocessing_under(model.backbone.preprocessing, job.suite)
        data = data_sets(task, preprocessing, job)
        cache = cache_for(model, data["train"])
        histories = [train(model, data, job, cache)]
        if any(job.training.get(name) for name in PRUNING):
            trained, model = model, untrained(job, task.classes)
            tokens, segments = (job.training[name] for name in PRUNING)
            prune(trained, model, data["train"], tokens=tokens, segments=segments)
            histories.append(train(model, data, job, cache))
        found = {part: measure(model, data[part], cache) for part in ("val", "test") if part in data}
        last = data["test" if job.read_test else "val"]
        policies = measure_policies(model, last, job.rounds, job.draws) if job.rounds else []
    learnable = sum(tensor.numel() for tensor in model.learnable().values())
    head = sum(tensor.numel() for tensor in model.head.parameters())
    prepared = preprocessing.to_dict()
    return {
        "job": job.to_dict(),
        "val_accuracy": found["val"]["accuracy"] if "val" in found else None,
        "test_accuracy": found["test"]["accuracy"] if "test" in found else None,
        "val": found.get("val"),
        "test": found.get("test"),
        "policies": policies,
        "train_loss": histories[-1].epochs[-1].train_loss,
        "selected_epoch": histories[-1].selected_epoch,
        "dim": model.backbone.dim,
        "learnable_parameters": learnable - head - masked_numbers(model),
        "head_parameters": head,
        "seconds": sum(history.seconds for history in histories),
        "job_seconds": time.perf_counter() - started,
        "peak_memory_mib": peak_memory_mib(device),
        "data_hash": task.data_hash,
        "data_source": task.source,
        **({"benchmark": task.facts | {"contents": contents(data)}} if job.suite else {}),
        "normalisation": {name: prepared.pop(name) for name in ("mean", "std")},
        "transforms": prepared | {"augmentation": job.augmentation},
        "optimizer": {name: histories[-1].protocol[name] for name in ("optimizer", "schedule")},
        "viapt": version("viapt"),
        "device": describe_device(device),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "remarks": sorted({str(remark.message) for remark in remarks}),
    }


def untrained(job: Job, classes: Sequence[str]) -> PromptedClassifier:
    """The model with its first values."""
    return create_model(
        job.backbone,
        method=job.method,
        classes=classes,
        weights=job.weights,
        image_size=job.image_size,
        precision=job.precision,
        seed=job.seed,
        **job.options,
    )


def train(model: PromptedClassifier, data: Mapping[str, ImageDataset], job: Job, cache: Cache | None) -> History:
    """One training of it."""
    settings = {name: value for name, value in job.training.items() if name not in PRUNING}
    in_training = data["val"] if settings["selection"] == "best-val" else None
    return fit(model, data["train"], in_training, **settings, seed=job.seed, cache=cache, progress=False)


def check_place(job: Job) -> None:
    """Refuse to compute with other code, libraries or another kind of device than planned.

    Raises:
        TrainingError: saying what differs.
    """
    here: dict[str, Any] = {
        "code": code_for(job.method, job.task) if job.method in CODE else None,
        "device": default_device().type,
    } | versions(job.method, job.backbone)
    wanted: dict[str, Any] = {"code": job.code, "device": job.device} | job.versions
    wrong = [f"{name} {here[name]}, planned with {wanted[name]}" for name in wanted if here.get(name) != wanted[name]]
    if wrong:
        raise TrainingError(
            f"This process is not what the job was planned for: {'; '.join(wrong)}",
            expected="the same viapt and libraries in all processes and on all nodes",
            remedy="install the same everywhere, and run again",
        )


def check_data(job: Job, task: TaskData) -> None:
    """Refuse other data than planned.

    Raises:
        DataError: pictures, labels or their parts differ.
    """
    found = {"data": (task.data_hash, job.data_hash), "split": (task.split_hash, job.split_hash)}
    for what, (here, planned) in found.items():
        if here != planned:
            raise DataError(
                f"The {what} of {job.task!r} has the hash {here[:12]} here, and was planned with {planned[:12]}",
                expected="the same data in all processes and on all nodes",
            )


def data_sets(task: TaskData, preprocessing: Preprocessing, job: Job) -> dict[str, ImageDataset]:
    """The parts that the job reads: the test part only if it may, the validation part unless it trains.

    The test part of a benchmark task is decoded again whenever it is asked for: it may be larger than memory.
    """
    evaluated, trained_on = eval_transform(preprocessing), ("train",)
    if job.suite:
        trained_on = tuple(job.suite["train_on"])
    train = train_transform(preprocessing, job.augmentation)
    found = {"train": ImageDataset(task.joined(trained_on), train, seed=job.seed)}
    if "val" not in trained_on:
        found["val"] = ImageDataset(task.parts["val"], evaluated, seed=job.seed)
    if job.read_test:
        kept = 0 if job.suite else CACHE_BYTES
        found["test"] = ImageDataset(task.parts["test"], evaluated, seed=job.seed, cache_bytes=kept)
    return found


def contents(data: Mapping[str, ImageDataset]) -> dict[str, str]:
    """Hashes of what was read, by part."""
    return {part: dataset.content_hash for part, dataset in data.items()}


def cache_for(model: PromptedClassifier, train: LabelledImages) -> Cache | None:
    """Features on disk, for all jobs with this backbone and these images, where `fit` would keep them in memory."""
    return "disk" if chosen(model, [train], "auto") == "memory" else None
