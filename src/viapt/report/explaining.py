"""From an adapter, pictures and perhaps its training data to an explanation: what is computed, and in which words."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor

from viapt.backbones.base import Backbone
from viapt.data import ImageDataset, ImageSource, eval_transform, read_image, read_source
from viapt.data.loading import part_of
from viapt.errors import BackboneError
from viapt.explanation import (
    LEAST_FEATURES,
    LayerAttention,
    entering_prompts,
    features_of,
    in_two_dimensions,
    kinds,
    layer_attention,
    lookers,
    nearest,
    prompt_similarity,
)
from viapt.inference import predict
from viapt.model import PromptedClassifier
from viapt.report.explained import Explained, Explanation, FeatureMap, Neighbour
from viapt.report.explained_plots import Dots
from viapt.runs import split_of

BATCH = 32
CACHE_BYTES = 2**28  # of the training pictures' pixels
NEIGHBOURS = 5
STATES = ("before tuning", "after tuning")


@dataclass(frozen=True)
class Pictures:
    """What is explained.

    Attributes:
        names: of the files.
        pixels: as they are cropped for the model.
        tensors: preprocessed.
        digests: SHA-256 of the files' contents.
    """

    names: list[str]
    pixels: UInt8[Tensor, "n 3 height width"]
    tensors: Float[Tensor, "n 3 height width"]
    digests: list[bytes]


def explain(
    model: PromptedClassifier,
    backbone: Backbone,
    files: Sequence[Path],
    train: ImageDataset | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Explanation:
    """All that is shown of some pictures.

    Args:
        model: on any device; it is left as it was.
        backbone: the same backbone, without anything that was learned.
        files: pictures, at least one.
        train: training pictures, for neighbours and maps.
        seed: of t-SNE.
        progress: called with the number of pictures done, of `files` and `train` together.

    Raises:
        DataError: a picture cannot be read.
        ConfigError: scikit-learn is not installed.
    """
    pictures = read_pictures(model, files)
    answer = predict(model, pictures.tensors, batch_size=BATCH)
    device = model.head.weight.device
    on_device = pictures.tensors.to(device)
    attention, no_attention = seen(model, on_device)
    features = features_of(model, backbone, batches(pictures, train), progress)
    labels = answer.labels + ([] if train is None else [train.classes[label] for label in train.labels])
    alike = neighbours(pictures, train, features)
    explained = [
        Explained(
            name=name,
            image=as_picture(pictures.pixels[k]),
            predicted=answer.labels[k],
            probability=float(answer.probabilities[k].max()),
            attention={} if attention is None else lookers(model, attention, k),
            neighbours={state: found[k] for state, found in alike.items()},
        )
        for k, name in enumerate(pictures.names)
    ]
    return Explanation(
        title="What the model looks at",
        summary=f"{counted(len(files), 'picture')}, classified by {model.method.name} among {len(model.classes)} "
        "classes, with the mean of its instance prompts.",
        pictures=explained,
        on_prompts=attention.on_prompts.mean(0).tolist()
        if attention is not None and model.method.num_prompts
        else None,
        no_attention=no_attention,
        **prompts_compared(model, on_device),
        **feature_maps(features, labels, len(files), seed),
        notes=notes(len(files), train),
    )


def read_pictures(model: PromptedClassifier, files: Sequence[Path]) -> Pictures:
    """Decode the pictures."""
    transform = eval_transform(model.backbone.preprocessing)
    pixels, digests = [], []
    for file in files:
        pixels.append(transform.prepare(read_image(file)))
        with file.open("rb") as opened:
            digests.append(hashlib.file_digest(opened, "sha256").digest())
    tensors = torch.stack([transform.finish(one) for one in pixels])
    return Pictures([str(file) for file in files], torch.stack(pixels), tensors, digests)


def training_pictures(
    model: PromptedClassifier,
    adapter: Path,
    data: str,
    at_most: int,
    progress: Callable[[int, int], None] | None = None,
) -> ImageDataset:
    """The training part of data: as they come with parts, or as the adapter's run split them; else all of them.

    Where there are more than `at_most`, so many, of each class its share. What cannot be read is left out.

    Raises:
        DataError: as `viapt.data.read_source`; no training part; no picture can be read.
    """
    source = read_source(data, classes=model.classes)
    split = split_of(adapter, data, model.classes)
    divided = split is not None or any(item.part for item in source.items)
    chosen = thinned(part_of(source, "train", split) if divided else source, at_most)
    return ImageDataset(
        chosen,
        eval_transform(model.backbone.preprocessing),
        on_bad_image="skip",
        cache_bytes=CACHE_BYTES,
        progress=progress,
    )


def thinned(source: ImageSource, at_most: int) -> ImageSource:
    """At most so many images: of each class its share, to one image or less."""
    if len(source) <= at_most:
        return source
    by_class = sorted(range(len(source)), key=lambda index: source.items[index].label)
    return source.select(sorted(by_class[k * len(source) // at_most] for k in range(at_most)))


def seen(model: PromptedClassifier, images: Float[Tensor, "n 3 height width"]) -> tuple[LayerAttention | None, str]:
    """Attention; or None, and why there is none."""
    try:
        return layer_attention(model, images), ""
    except BackboneError as error:
        return None, f"{error.found}, so there are no maps of it."


def prompts_compared(model: PromptedClassifier, images: Float[Tensor, "n 3 height width"]) -> dict[str, Any]:
    """`Explanation.cosines` and `.varying`."""
    if not model.method.num_prompts or images.shape[0] < 2:
        return {}
    prompts = entering_prompts(model, images)
    found = {kind: prompt_similarity([layer[:, rows] for layer in prompts]) for kind, rows in kinds(model).items()}
    return {
        "cosines": {kind: one.cosine.numpy() for kind, one in found.items()},
        "varying": {kind: one.varying.tolist() for kind, one in found.items()},
    }


def batches(pictures: Pictures, train: ImageDataset | None) -> Iterator[Float[Tensor, "batch 3 height width"]]:
    """The explained pictures, then those that were trained on."""
    yield from pictures.tensors.split(BATCH)
    if train is not None:
        for start in range(0, len(train), BATCH):
            yield torch.stack([train[index][0] for index in range(start, min(start + BATCH, len(train)))])


def neighbours(
    pictures: Pictures,
    train: ImageDataset | None,
    features: tuple[Float32[Tensor, "n features"], Float32[Tensor, "n features"]],
) -> dict[str, list[list[Neighbour]]]:
    """Before or after tuning -> for each picture the training pictures most like it."""
    if train is None:
        return {}
    n, excluded = len(pictures.names), same_content(pictures, train)
    found = {}
    for state, values in zip(STATES, features, strict=True):
        similarities, indices = nearest(values[:n], values[n:], NEIGHBOURS, excluded)
        found[state] = [
            [neighbour(train, int(i), float(s)) for s, i in zip(row, at, strict=True) if s > -torch.inf]
            for row, at in zip(similarities, indices, strict=True)
        ]
    return {f"Most alike {state}": rows for state, rows in found.items() if all(rows)}


def same_content(pictures: Pictures, train: ImageDataset) -> Bool[Tensor, "n m"]:
    """Which training pictures are the very files that are explained."""
    return torch.tensor([[digest == other for other in train.digests] for digest in pictures.digests])


def neighbour(train: ImageDataset, index: int, similarity: float) -> Neighbour:
    """A training picture."""
    return Neighbour(train.keys[index], train.classes[train.labels[index]], similarity, as_picture(train.pixels(index)))


def feature_maps(
    features: tuple[Float32[Tensor, "n features"], Float32[Tensor, "n features"]],
    labels: list[str],
    explained: int,
    seed: int,
) -> dict[str, Any]:
    """`Explanation.maps`, or why there are none."""
    if len(labels) < LEAST_FEATURES:
        few = f"{counted(len(labels), 'picture')} {'is' if len(labels) == 1 else 'are'} too few for a map"
        return {"no_maps": f"{few}: give {LEAST_FEATURES} or more, or training data (--train)."}
    found = []
    for method, name in (("pca", "Principal components"), ("t-sne", "t-SNE")):
        for state, values in zip(STATES, features, strict=True):
            points, share = in_two_dimensions(values, method, seed)
            shown = f"{name} {state}" + ("" if share is None else f": {100 * share:.0f} % of the variance")
            axes = ("first component", "second component") if method == "pca" else ("t-SNE 1", "t-SNE 2")
            found.append(
                FeatureMap(f"{method}-{state.split()[0]}", shown, axes, Dots(points, labels, range(explained)))
            )
    return {"maps": found}


def notes(count: int, train: ImageDataset | None) -> list[str]:
    """How to read what is shown."""
    found = ["Attention says from where a layer fetches information, not what the answer rests on: it proves no cause."]
    if count < 2:
        found.append("With one picture there is nothing to compare prompts with: give several.")
    if train is None:
        found.append("Dots are coloured by what was predicted. Nearest training pictures need training data (--train).")
    else:
        found.append(
            f"{counted(len(train), 'training picture')}, coloured by their label; the explained pictures, which have "
            "numbers, count for the class that was predicted."
        )
    return found


def as_picture(pixels: UInt8[Tensor, "3 height width"]) -> UInt8[np.ndarray, "height width 3"]:
    """Channels last."""
    return pixels.permute(1, 2, 0).numpy()


def counted(count: int, noun: str) -> str:
    """ "1 picture", "2 pictures"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def facts(command: str, config: dict[str, Any], train: ImageDataset | None) -> dict[str, str]:
    """What was run on what."""
    backbone = config["backbone"]
    found = {
        "command": command,
        "method": f"{config['method']}: "
        + ", ".join(f"{name} {value}" for name, value in config["method_arguments"].items()),
        "backbone": f"{backbone['name']}, {backbone['precision']}, {backbone['fingerprint']}",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("viapt", "torch", "timm", "scikit-learn")),
    }
    if train is not None:
        found["training pictures"] = f"{len(train)}, {train.content_hash}"
    return found
