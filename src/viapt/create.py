"""From a backbone, a method and class names to a model that can be trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from viapt.backbones import create_backbone
from viapt.backbones.base import Backbone
from viapt.errors import ConfigError
from viapt.methods import check_effect, create_method, method_class
from viapt.model import PromptedClassifier
from viapt.precision import resolve_precision


def create_model(
    backbone: str | nn.Module,
    method: str = "viapt",
    *,
    classes: int | Sequence[str],
    weights: str | Path | None = None,
    pretrained: bool = True,
    image_size: int | Sequence[int] | None = None,
    precision: str = "auto",
    seed: int = 0,
    **method_options: Any,
) -> PromptedClassifier:
    """A frozen backbone, an untrained method and an untrained head, in evaluation mode.

    Args:
        backbone: a name or a module; see `viapt.backbones.create_backbone`.
        method: one of `viapt.list_methods()`.
        classes: their names, at least two, all different; or how many there are (they are then called "0", "1", ...).
        weights: a safetensors file for the backbone.
        pretrained: False for random backbone weights: for tests only.
        image_size: in pixels, one number or (height, width); None for the backbone's own.
        precision: of the backbone: "float32", "bfloat16", or "auto" for the faster one. What learns is always float32.
        seed: of the learnable parameters; the global random generators are neither used nor changed.
        method_options: keyword arguments of the method's constructor.

    Raises:
        BackboneError: the backbone cannot be built.
        ConfigError: unknown method or argument, a value out of range or without effect, or unusable class names.
    """
    method_class(method)  # a misspelt name is found before weights are loaded
    names = class_names(classes)
    frozen = create_backbone(backbone, weights=weights, pretrained=pretrained, image_size=image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prompts = create_method(method, frozen.widths, frozen.depth, frozen.patch_size, **method_options)
        check_effect(prompts, method_options)
        model = PromptedClassifier(frozen, prompts, names).eval()
    cast(model.backbone, precision)  # now that a method that learns weights has copied them unrounded
    return model


def class_names(classes: int | Sequence[str]) -> list[str]:
    """Names as they are, or "0", "1", ... for a number.

    Raises:
        ConfigError: one string, or a number below two.
    """
    if isinstance(classes, str) or classes is True or classes is False:
        raise ConfigError(f"The classes are {classes!r}", expected="a list of names, or how many there are")
    if not isinstance(classes, int):
        return list(classes)
    if classes < 2:
        raise ConfigError(f"{classes} classes", expected="at least two")
    return [str(index) for index in range(classes)]


def cast(backbone: Backbone, precision: str) -> None:
    """Bring a backbone to a precision, in place; "auto" leaves one that was cast before as it is.

    Raises:
        ConfigError: it was rounded to a lower precision before, and what was lost is asked for.
    """
    wanted, now = resolve_precision(precision), backbone.dtype
    if torch.finfo(now).bits < torch.finfo(wanted).bits:
        if precision == "auto":
            return
        raise ConfigError(
            f"The backbone was rounded to {str(now).removeprefix('torch.')} before",
            expected=str(wanted).removeprefix("torch."),
            remedy="build it again from its weights",
        )
    backbone.to(wanted)
