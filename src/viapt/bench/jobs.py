"""A job: one training, measured. Everything that decides its numbers is in it, and its key is a hash of it.

`work` does a job in whatever process calls it, here or on another machine; nothing is shared but the packages' cache.
"""

from __future__ import annotations

import hashlib
import json
import time
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from viapt.backbones.base import Preprocessing
from viapt.bench.measuring import measure, measure_policies
from viapt.bench.provenance import CODE, versions
from viapt.caching import Cache, chosen
from viapt.create import create_model
from viapt.data import ImageDataset, read_source
from viapt.data.packaged import PackagedTask, load_task, split
from viapt.data.transforms import eval_transform, train_transform
from viapt.device import default_device, describe_device, peak_memory_mib
from viapt.errors import DataError, TrainingError, ViaptError
from viapt.evaluation import LabelledImages
from viapt.model import PromptedClassifier
from viapt.training import fit

PARTS = "train", "val", "test"


@dataclass(frozen=True)
class Job:
    """All that decides a number.

    Attributes:
        options: every keyword argument of the method, defaults included.
        data_hash: of the task's pictures and labels.
        split_hash: of the indices of its parts.
        fingerprint: of the backbone's weights.
        images: how many were asked for, by part.
        training: keyword arguments of `fit`, `seed` left out.
        rounds, draws: see `Protocol`.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return json.loads(json.dumps(asdict(self)))

    @property
    def key(self) -> str:
        """SHA-256 over everything, in hex; equal jobs have equal keys."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Outcome:
    """What became of a job: its record, or the cause of its failure (and a traceback where Python had one)."""

    record: dict[str, Any] | None = None
    cause: str = ""
    trace: str = ""


def work(job: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """Do a job (`Job.to_dict`) on so many threads; an `Outcome` in plain JSON types, also of a job that fails."""
    torch.set_num_threads(threads)
    try:
        return asdict(Outcome(record=measured(Job(**job))))
    except Exception as error:
        kind = "" if isinstance(error, ViaptError) else f"{type(error).__name__}: "
        return asdict(Outcome(cause=f"{kind}{error}", trace=traceback.format_exc()))


def measured(job: Job) -> dict[str, Any]:
    """Train and measure; the record of it.

    Raises:
        ViaptError: whatever is wrong.
    """
    started = time.perf_counter()
    device = default_device()
    check_place(job)
    task = load_task(job.task)
    indices = parts_of(task, job.images, job.split_seed)
    check_data(job, task, indices)
    with warnings.catch_warnings(record=True) as remarks:
        model = create_model(
            job.backbone,
            method=job.method,
            classes=task.classes,
            weights=job.weights,
            image_size=job.image_size,
            precision=job.precision,
            seed=job.seed,
            **job.options,
        )
        data = data_sets(task, indices, model.backbone.preprocessing, job)
        cache = cache_for(model, data["train"])
        in_training = data["val"] if job.training["selection"] == "best-val" else None
        history = fit(model, data["train"], in_training, **job.training, seed=job.seed, cache=cache, progress=False)
        found = {part: measure(model, data[part], cache) for part in ("val", "test") if part in data}
        last = data["test" if job.read_test else "val"]
        policies = measure_policies(model, last, job.rounds, job.draws) if job.rounds else []
    learnable = sum(tensor.numel() for tensor in model.learnable().values())
    head = sum(tensor.numel() for tensor in model.head.parameters())
    preprocessing = model.backbone.preprocessing.to_dict()
    return {
        "job": job.to_dict(),
        "val_accuracy": found["val"]["accuracy"],
        "test_accuracy": found["test"]["accuracy"] if "test" in found else None,
        "val": found["val"],
        "test": found.get("test"),
        "policies": policies,
        "train_loss": history.epochs[-1].train_loss,
        "selected_epoch": history.selected_epoch,
        "dim": model.backbone.dim,
        "learnable_parameters": learnable - head,
        "head_parameters": head,
        "seconds": history.seconds,
        "job_seconds": time.perf_counter() - started,
        "peak_memory_mib": peak_memory_mib(device),
        "data_hash": task.content_hash,
        "data_source": task.source,
        "normalisation": {name: preprocessing.pop(name) for name in ("mean", "std")},
        "transforms": preprocessing | {"augmentation": job.augmentation},
        "optimizer": {name: history.protocol[name] for name in ("optimizer", "schedule")},
        "viapt": version("viapt"),
        "device": describe_device(device),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "remarks": sorted({str(remark.message) for remark in remarks}),
    }


def check_place(job: Job) -> None:
    """Refuse to compute with other code, libraries or another kind of device than planned.

    Raises:
        TrainingError: saying what differs.
    """
    here: dict[str, Any] = {"code": CODE.get(job.method), "device": default_device().type} | versions()
    wanted: dict[str, Any] = {"code": job.code, "device": job.device} | job.versions
    wrong = [f"{name} {here[name]}, planned with {wanted[name]}" for name in wanted if here.get(name) != wanted[name]]
    if wrong:
        raise TrainingError(
            f"This process is not what the job was planned for: {'; '.join(wrong)}",
            expected="the same viapt and libraries in all processes and on all nodes",
            remedy="install the same everywhere, and run again",
        )


def parts_of(
    task: PackagedTask, images: Mapping[str, int], split_seed: int
) -> dict[str, Int64[np.ndarray, " indices"]]:
    """Indices of the three parts of a task.

    Raises:
        ConfigError: the task is smaller.
    """
    return split(task, images["train"], images["val"], images["test"], split_seed)


def hash_of(indices: Mapping[str, Int64[np.ndarray, " indices"]]) -> str:
    """SHA-256 of a split, in hex."""
    listed = {part: indices[part].tolist() for part in PARTS}
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def check_data(job: Job, task: PackagedTask, indices: Mapping[str, Int64[np.ndarray, " indices"]]) -> None:
    """Refuse other data than planned.

    Raises:
        DataError: pictures, labels or their parts differ.
    """
    found = {"data": (task.content_hash, job.data_hash), "split": (hash_of(indices), job.split_hash)}
    for what, (here, planned) in found.items():
        if here != planned:
            raise DataError(
                f"The {what} of {job.task!r} has the hash {here[:12]} here, and was planned with {planned[:12]}",
                expected="the same data in all processes and on all nodes",
            )


def data_sets(
    task: PackagedTask, indices: Mapping[str, Any], preprocessing: Preprocessing, job: Job
) -> dict[str, ImageDataset]:
    """The parts that the job reads: the test part only if it may."""
    source = read_source((task.images, task.labels), classes=task.classes)
    evaluated = eval_transform(preprocessing)
    transforms = {"train": train_transform(preprocessing, job.augmentation), "val": evaluated}
    if job.read_test:
        transforms["test"] = evaluated
    return {
        part: ImageDataset(source.select(indices[part].tolist()), transform, seed=job.seed)
        for part, transform in transforms.items()
    }


def cache_for(model: PromptedClassifier, train: LabelledImages) -> Cache | None:
    """Features on disk, for all jobs with this backbone and these images, where `fit` would keep them in memory."""
    return "disk" if chosen(model, [train], "auto") == "memory" else None
