"""The published protocols of the suites, as data: what is trained on what, how, how often, and what is searched.

A protocol is resolved for a run, stored with each of its results, and never changed by the data or the method.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from viapt.errors import ConfigError, did_you_mean

NORMALISATIONS = "weights", "imagenet", "inception", "none"
Selection = Literal["last", "best-val"]

SEEDS = (42, 44, 82, 100, 800)
"""Of VPT's published runs."""

REFERENCE_BATCH = 256


@dataclass(frozen=True)
class Grid:
    """Points to search.

    Attributes:
        optimizer: that they are meant for.
        space: choices by setting.
        scaled: whether learning rates are meant for a batch of 256, and shrink in proportion with a smaller one.
    """

    optimizer: Literal["adamw", "sgd"]
    space: dict[str, Any]
    scaled: bool = False

    def at(self, batch_size: int) -> dict[str, Any]:
        """The space for a batch."""
        if not self.scaled:
            return self.space
        rates = [rate * batch_size / REFERENCE_BATCH for rate in self.space["lr"]["choices"]]
        return self.space | {"lr": {"choices": rates}}


GRIDS = {
    "vpt": Grid(
        "sgd",
        {
            "lr": {"choices": [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0]},
            "weight_decay": {"choices": [0.0, 0.0001, 0.001, 0.01]},
        },
        scaled=True,
    ),
    "adamw": Grid(
        "adamw",
        {
            "lr": {"choices": [0.0005, 0.001, 0.005, 0.01, 0.05]},
            "weight_decay": {"choices": [0.0001, 0.01, 0.1]},
        },
    ),
}
"""VPT's grid for prompts (Jia et al., arXiv 2203.12119, and its code), 40 points; and a smaller one of ours, 15."""


@dataclass(frozen=True)
class SuiteProtocol:
    """How a suite is run.

    Attributes:
        name: "vtab-1k", "fgvc", "hta" or "full".
        words: what it is, for people.
        search_on: the parts that a search trains on; it is judged on "val".
        train_on: the parts that the reported runs train on.
        epochs, batch_size: of every training.
        seeds: of the reported runs.
        selection: which weights are kept: of the last epoch, or the best on "val".
        augmentation: of training images, see `train_transform`.
        resize: "direct" to the image size, or "crop": to 256/224 of it, then its centre.
        normalization: of images: the weights' own, ImageNet's mean and deviation, 0.5 and 0.5, or none (0 and 1).
        grid: a name of `GRIDS`: what is searched, point by point, and with which optimizer.
    """

    name: str
    words: str
    search_on: tuple[str, ...] = ("train",)
    train_on: tuple[str, ...] = ("train",)
    epochs: int = 100
    batch_size: int = 64
    seeds: tuple[int, ...] = SEEDS
    selection: Selection = "best-val"
    augmentation: str = "standard"
    resize: Literal["direct", "crop"] = "crop"
    normalization: str = "weights"
    grid: str = "adamw"

    def __post_init__(self) -> None:
        if self.normalization not in NORMALISATIONS:
            expected = f"one of {', '.join(NORMALISATIONS)}"
            raise ConfigError(f"No normalization {self.normalization!r}", expected=expected)
        if self.selection == "best-val" and "val" in self.train_on:
            raise ConfigError(
                "Weights cannot be selected on validation images that are trained on", remedy="selection: last"
            )
        if self.grid not in GRIDS:
            raise ConfigError(f"There is no grid {self.grid!r}", expected=f"one of {', '.join(GRIDS)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, the grid spelt out."""
        grid = GRIDS[self.grid]
        whole = asdict(self) | {"optimizer": grid.optimizer, "space": grid.at(self.batch_size)}
        return json.loads(json.dumps(whole))


PROTOCOLS = {
    "vtab-1k": SuiteProtocol(
        "vtab-1k",
        "VTAB-1k: hyper-parameters are chosen on val200 after training on train800; all 1,000 images train again, "
        "with five seeds; the last epoch's test accuracy counts. No augmentation, straight to 224 x 224.",
        train_on=("train", "val"),
        selection="last",
        augmentation="none",
        resize="direct",
    ),
    "fgvc": SuiteProtocol(
        "fgvc",
        "FGVC: trained on train, chosen on val, without training again on both; random crops of 256/224 and mirror "
        "images; tested on the centre.",
    ),
    "hta": SuiteProtocol(
        "hta",
        "HTA: as FGVC, on its ten tasks; validation images are the last fifth of the training part, or drawn.",
    ),
    "full": SuiteProtocol(
        "full",
        "Everything: hyper-parameters are chosen on val; training and validation images train again; the last "
        "epoch's test accuracy counts.",
        train_on=("train", "val"),
        selection="last",
    ),
}


def find_protocol(name: str) -> SuiteProtocol:
    """A protocol by name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PROTOCOLS:
        raise ConfigError(
            f"There is no protocol {name!r}",
            expected=f"one of {', '.join(PROTOCOLS)}",
            remedy=did_you_mean(name, PROTOCOLS),
        )
    return PROTOCOLS[name]
