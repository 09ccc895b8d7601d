"""The main job on real input: three methods, one frozen backbone, one budget, photos of solar cells, and a report.

Sized for a laptop: with two CPU cores the whole takes a few minutes.
"""

from __future__ import annotations

import platform
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor

from viapt.adapter_files import TENSORS
from viapt.artifact import load
from viapt.backbones.base import Backbone
from viapt.data import ImageDataset, load_evaluation
from viapt.data.packaged import export_folder, fetch_all, load_task, split
from viapt.errors import ArtifactError, FetchError
from viapt.history import read_history
from viapt.inference import evaluating
from viapt.inspection import prompt_attention
from viapt.model import PromptedClassifier
from viapt.packaged import PACKAGES
from viapt.report import FittedMethod, Measured, Photo, Report, write_report
from viapt.runs import Settings, finished, run
from viapt.tables import show

TASK, TASK_PACKAGE, BACKBONE, IMAGE_SIZE = "elpv", "elpv-dataset", "packaged:vits14", 98
METHODS = ("linear", "vpt-deep", "viapt")
TRAIN, VAL, TEST = 700, 200, 800
EPOCHS, BATCH_SIZE = 5, 32
PHOTOS_PER_CLASS = 2
CACHE_BYTES = 256 * 2**20
CHECKED = 32  # images on which a reloaded adapter must give the same bits


def run_demo(out: Path, *, seed: int = 0, overwrite: bool = False, console: Console) -> tuple[Path, Path]:
    """Fetch, fit, save, reload, report.

    Args:
        out: folder of photos, runs and report.
        seed: of the split and of every run.
        overwrite: fit again what is finished.
        console: where progress is shown; results go to standard output.

    Returns:
        Paths of the report, as Markdown and as HTML.

    Raises:
        FetchError: weights or photos cannot be fetched.
        ViaptError: see `run`.
    """
    statuses = fetch_all(["weights", TASK], console)
    if not all(status.ready for status in statuses.values()):
        raise FetchError(
            "the demo needs these packages", remedy="see the messages above; offline, it needs a filled cache"
        )
    photos = photos_on_disk(out, seed)
    records: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        records[method] = fit_method(photos, out / method, method, seed, overwrite, console)
    console.print("writing the report")
    viapt = load(out / "viapt")
    test = test_photos(photos, viapt)
    report = Report(
        title="Solar cells: linear probe, VPT-Deep and ViaPT",
        summary=f"One frozen backbone ({BACKBONE}, {IMAGE_SIZE} pixels), {TRAIN} training photos, {EPOCHS} epochs for "
        f"each method; measured once on {TEST} test photos that no method saw. The label says how likely an expert "
        "held the cell to be defective.",
        classes=viapt.classes,
        methods=[fitted(out / method, records[method], viapt.backbone, test) for method in METHODS],
        notes=notes(test),
        facts=facts(out, seed, records),
        photos=some_photos(viapt, test),
        photos_by="viapt",
    )
    paths = write_report(report, out)
    conclude(out, report, paths)
    return paths


def photos_on_disk(out: Path, seed: int) -> Path:
    """The photos as an image folder with train, val and test inside."""
    folder = out / f"photos-seed{seed}"
    if not folder.exists():
        task = load_task(TASK)
        export_folder(task, folder, split(task, TRAIN, VAL, TEST, seed))
    return folder


def fit_method(photos: Path, out: Path, method: str, seed: int, overwrite: bool, console: Console) -> dict[str, Any]:
    """The result record of one method: of a run that is finished already, or of one that is done now."""
    asked = Settings(
        backbone=BACKBONE, image_size=IMAGE_SIZE, method=method, epochs=EPOCHS, batch_size=BATCH_SIZE, seed=seed
    )
    if not overwrite and (record := finished(out, asked)):
        console.print(f"\n{method}: finished before, in {out}")
        return record
    console.print(f"\n{method}: {EPOCHS} epochs of {TRAIN} photos, in {out}")
    model, record = run(photos, out, asked, task=TASK, overwrite=overwrite, console=console)
    test = test_photos(photos, model)
    images = torch.stack([test[index][0] for index in range(CHECKED)])
    if not torch.equal(logits(model, images), logits(load(out), images)):
        raise ArtifactError(f"the adapter in {out} does not give the outputs of the model that was saved")
    console.print(f"saved, reloaded: same outputs for {CHECKED} photos, bit for bit")
    return record


def logits(model: PromptedClassifier, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
    """What a model answers, in evaluation mode."""
    with evaluating(model):
        return model(images)


def test_photos(photos: Path, model: PromptedClassifier) -> ImageDataset:
    """The test split."""
    return load_evaluation(photos, model.backbone.preprocessing, model.classes, part="test", cache_bytes=CACHE_BYTES)


def fitted(run_folder: Path, record: dict[str, Any], backbone: Backbone, test: ImageDataset) -> FittedMethod:
    """What the report tells of a run."""
    epochs, found = read_history(run_folder / "history.jsonl"), record["test"]
    model = load(run_folder, backbone)
    attention = None
    if model.method.num_prompts:
        images = torch.stack([test[index][0] for index in range(CHECKED)])
        attention = prompt_attention(model, images).share.mean(0).tolist()
    return FittedMethod(
        name=record["method"],
        accuracy=Measured(**found["accuracy"]),
        class_accuracy=float(np.mean([estimate["value"] for estimate in found["per_class"].values() if estimate])),
        learnable=record["learnable_parameters"],
        stored=(run_folder / TENSORS).stat().st_size,
        seconds=record["seconds"],
        losses=[epoch.train_loss for epoch in epochs],
        val_accuracies=[epoch.val_accuracy for epoch in epochs if epoch.val_accuracy is not None],
        confusion=np.array(found["confusion"]),
        prompt_attention=attention,
    )


def some_photos(model: PromptedClassifier, test: ImageDataset) -> list[Photo]:
    """The first few of each class, with predictions, and what the prompts look at."""
    chosen = [index for label in range(len(test.classes)) for index in first_of(test.labels, label)]
    images = torch.stack([test[index][0] for index in chosen])
    probabilities = logits(model, images).softmax(1)
    maps = prompt_attention(model, images).maps.mean(1).numpy()
    return [
        Photo(
            name=test.keys[index],
            image=np.asarray(test.source.read(index)),
            truth=test.classes[test.labels[index]],
            predicted=test.classes[int(row.argmax())],
            probability=float(row.max()),
            attention=attention,
        )
        for index, row, attention in zip(chosen, probabilities, maps, strict=True)
    ]


def first_of(labels: list[int], wanted: int) -> list[int]:
    """Indices of the first photos with a label."""
    return [index for index, label in enumerate(labels) if label == wanted][:PHOTOS_PER_CLASS]


def notes(test: ImageDataset) -> list[str]:
    """How to read the numbers."""
    label, count = Counter(test.labels).most_common(1)[0]
    return [
        f"Always answering {test.classes[label]!r} is right for {100 * count / len(test):.1f} % of the test photos.",
        "One seed and one split. The intervals (Wilson) know of the number of test photos only: where they overlap, "
        "this run does not tell which method is better.",
        f"{EPOCHS} epochs are a demonstration, not the best that any of the methods can do.",
        "What the prompts look at is no explanation of the prediction.",
    ]


def facts(out: Path, seed: int, records: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What was run on what."""
    record = records["viapt"]
    protocol, images, package = record["protocol"], record["images"], PACKAGES[TASK_PACKAGE]
    rates = ", ".join(f"{method} {one['protocol']['lr']:g}" for method, one in records.items())
    return {
        "command": f"viapt demo --out {out} --seed {seed}",
        "data": f"{package.name} {package.version}, {package.content}",
        "licence of the data": f"{package.licence}: not for commercial use",
        "split": ", ".join(f"{count} {part}" for part, count in images.items()) + f", stratified, seed {seed}",
        "data hash": record["data_hash"],
        "backbone": f"{protocol['backbone']}, {IMAGE_SIZE} x {IMAGE_SIZE} pixels, frozen, {protocol['precision']}",
        "weights": protocol["fingerprint"],
        "protocol": f"{EPOCHS} epochs, batches of {BATCH_SIZE}, {protocol['optimizer']}, {protocol['schedule']}, "
        f"weight decay {protocol['weight_decay']:g}, augmentation {protocol['augmentation']}, last epoch, "
        f"inference policy {protocol['policy']}",
        "learning rates": rates,
        "viapt": ", ".join(f"{key} {value}" for key, value in protocol["options"].items()),
        "software": ", ".join(f"{name} {version(name)}" for name in ("viapt", "torch", "timm")),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
    }


def conclude(out: Path, report: Report, paths: tuple[Path, Path]) -> None:
    """The results and where everything is, on standard output."""
    table = Table("method", "test accuracy, %", "learnable", "stored", "seconds", box=None, pad_edge=False)
    for method in report.methods:
        stored = f"{method.stored / 1000:.0f} kB"
        table.add_row(method.name, str(method.accuracy), f"{method.learnable:,}", stored, f"{method.seconds:.0f}")
    package = PACKAGES[TASK_PACKAGE]
    show("", table, "")
    show(f"report    {paths[1]} and {paths[0].name}")
    show(f"adapters  {', '.join(str(out / method) for method in METHODS)}")
    show(f"photos    {package.content}, licence {package.licence}: not for commercial use")
