"""The published protocols of the suites, as data: what is trained on what, how, how often, and what is searched.

A protocol is resolved for a run, stored with each of its results, and never changed by the data or the method.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from viapt.errors import ConfigError, did_you_mean

Normalisation = Literal["weights", "imagenet", "inception", "none"]
Selection = Literal["last", "best-val"]

SEEDS = (42, 44, 82, 100, 800)
"""Of VPT's published runs."""

VPT_GRID = {
    "lr": {"choices": [50.0, 25.0, 10.0, 5.0, 2.5, 1.0, 0.5, 0.25, 0.1, 0.05]},
    "weight_decay": {"choices": [0.01, 0.001, 0.0001, 0.0]},
}
"""VPT's grid (Jia et al., arXiv 2203.12119, table 6): base rates of SGD at a batch of 256, and weight decays."""

ADAMW_GRID = {
    "lr": {"choices": [0.0005, 0.001, 0.005, 0.01, 0.05]},
    "weight_decay": {"choices": [0.0001, 0.01, 0.1]},
}
"""A grid for AdamW, of ours: half-decades of the rate about this package's default, and weight decays about its own."""

GRIDS: dict[str, dict[str, Any]] = {"vpt": VPT_GRID, "adamw": ADAMW_GRID}


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
        optimizer: of the grid.
        grid: a name of `GRIDS`.
        space: what is searched, point by point.
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
    normalization: Normalisation = "weights"
    grid: str = "adamw"
    space: Mapping[str, Any] = field(default_factory=lambda: ADAMW_GRID)

    def __post_init__(self) -> None:
        if self.normalization not in get_args(Normalisation):
            expected = ", ".join(get_args(Normalisation))
            raise ConfigError(f"No normalization {self.normalization!r}", expected=f"one of {expected}")
        if self.selection == "best-val" and "val" in self.train_on:
            raise ConfigError(
                "Weights cannot be selected on validation images that are trained on", remedy="selection: last"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return json.loads(json.dumps(asdict(self)))


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


def with_grid(protocol: SuiteProtocol, grid: str) -> SuiteProtocol:
    """The same with another grid to search.

    Raises:
        ConfigError: no grid of this name.
    """
    if grid not in GRIDS:
        raise ConfigError(f"There is no grid {grid!r}", expected=f"one of {', '.join(GRIDS)}")
    return replace(protocol, grid=grid, space=GRIDS[grid])
