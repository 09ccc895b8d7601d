"""Frozen backbones: from a name, a file or a module to a `Backbone`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from torch import nn

from viapt.backbones import packaged
from viapt.backbones.base import Backbone
from viapt.backbones.huggingface import HuggingFaceViT
from viapt.backbones.huggingface_files import PREFIX, load_transformers
from viapt.backbones.timm_base import SUPPORTED, TimmBackbone, check_supported
from viapt.backbones.timm_beit import TimmBeit
from viapt.backbones.timm_rope import TimmRope
from viapt.backbones.timm_swin import TimmSwin
from viapt.backbones.timm_vit import TimmViT
from viapt.backbones.timm_weights import (
    architectures,
    pretrained_vit,
    published,
    random_vit,
    vit_from_file,
    vit_from_folder,
    vit_from_tensors,
)
from viapt.errors import BackboneError, did_you_mean

PACKAGED = "packaged:vits14"
PACKAGED_SIZE = (98, 98)
FOLDER = "local-dir:"
TIMM: tuple[type[TimmBackbone], ...] = (TimmViT, TimmRope, TimmBeit, TimmSwin)


def create_backbone(
    spec: str | nn.Module,
    *,
    weights: str | Path | None = None,
    pretrained: bool = True,
    image_size: int | Sequence[int] | None = None,
) -> Backbone:
    """A frozen backbone.

    Args:
        spec: one of
            - the name of a timm VisionTransformer, Eva, Beit or Swin, with or without the tag of its weights;
            - "packaged:vits14", a ViT-S/14 out of a package registry. Its own image size is 518 (1369 tokens); here it
              is 98 (49 tokens) unless another is asked for: a laptop fits a task at 98 in minutes and at 518 in days;
            - "local-dir:PATH", a folder with timm's config.json and model.safetensors;
            - "transformers:PATH" or "transformers:OWNER/NAME", a model of transformers (ViT, DeiT, BEiT, DINOv2, CLIP,
              SigLIP, MAE ...) in a folder or on the hub, read as safetensors alone;
            - such a module of timm or transformers, which is copied: the one given stays as it is;
            - a `Backbone`, which is taken as it is (frozen in place).
        weights: a safetensors file with timm's names, instead of the weights that timm publishes.
        pretrained: False for random weights, always the same: for tests only.
        image_size: in pixels, one number or (height, width); None for the weights' own. Multiples of the patch.

    Raises:
        BackboneError: unknown name, unsupported model, weights that cannot be had or do not fit, impossible image size,
            or an option that would have no effect.
    """
    size = None if image_size is None else pair(image_size)
    if isinstance(spec, nn.Module):
        return adapt(spec, weights, pretrained, size)
    if spec == PACKAGED or spec.startswith((FOLDER, PREFIX)):
        if weights is not None or not pretrained:
            raise BackboneError(f"{spec} has weights of its own", remedy="leave out weights and pretrained")
        if spec == PACKAGED:
            return packaged_backbone(size or PACKAGED_SIZE)
        return transformers_backbone(spec, size) if spec.startswith(PREFIX) else folder_backbone(spec, size)
    check_name(spec)
    if weights is not None:
        path = Path(weights).absolute()
        backbone = from_timm(vit_from_file(spec, path), name=spec, image_size=size)
        backbone.weights = path
        return backbone
    backbone = from_timm((pretrained_vit if pretrained else random_vit)(spec), name=spec, image_size=size)
    backbone.pretrained = pretrained
    return backbone


def list_backbones() -> list[str]:
    """Names that `create_model` takes: the packaged backbone, then timm's transformers with published weights.

    Architectures without published weights are left out; they can be named together with a file (`weights=`).
    """
    return [PACKAGED, *published()]


def adapt(
    module: nn.Module, weights: str | Path | None, pretrained: bool, image_size: tuple[int, int] | None
) -> Backbone:
    """A module of the user's own as a backbone."""
    if weights is not None or not pretrained:
        raise BackboneError(
            "The backbone is a module, which has its weights", remedy="leave out weights and pretrained"
        )
    if not isinstance(module, Backbone):
        theirs = any(kind.__module__.startswith("transformers.") for kind in type(module).__mro__)
        return (HuggingFaceViT if theirs else from_timm)(copy.deepcopy(module), image_size=image_size)
    own = module.preprocessing.image_size
    if image_size not in (None, own):
        raise BackboneError(f"The backbone was made for images of {own}", expected=f"not {image_size}")
    module.freeze()
    return module


def from_timm(vit: nn.Module, **options: Any) -> Backbone:
    """A module of timm in the adapter for its kind.

    Raises:
        BackboneError: there is none.
    """
    known = check_supported(vit)
    return next(kind for kind in TIMM if isinstance(known, kind.kinds))(vit, **options)


def packaged_backbone(image_size: tuple[int, int]) -> Backbone:
    """The packaged ViT-S/14. Its position grid is resized without antialiasing, as its weights expect."""
    vit = vit_from_tensors(
        lambda: timm.create_model(packaged.ARCHITECTURE, pretrained=False), packaged.vits14_state_dict(), PACKAGED
    )
    return TimmViT(vit, name=PACKAGED, image_size=image_size, resample_position=packaged.resample_position)


def folder_backbone(spec: str, image_size: tuple[int, int] | None) -> Backbone:
    """A timm model in a folder."""
    folder = Path(spec.removeprefix(FOLDER)).absolute()
    return from_timm(vit_from_folder(folder), name=f"{FOLDER}{folder}", image_size=image_size)


def transformers_backbone(spec: str, image_size: tuple[int, int] | None) -> Backbone:
    """A model of transformers in a folder or on the hub."""
    model, preprocessing, name = load_transformers(spec)
    return HuggingFaceViT(model, name=name, image_size=image_size, preprocessing=preprocessing)


def check_name(name: str) -> None:
    """Refuse what is not the name of a timm transformer of a supported kind.

    Raises:
        BackboneError: with the closest name.
    """
    architecture, _, tag = name.partition(".")
    known = architectures()
    if architecture in known and (not tag or name in published()):
        return
    if architecture not in known and timm.is_model(architecture):
        raise BackboneError(f"timm's {architecture} is of another kind", expected=SUPPORTED)
    candidates = [n for n in published() if n.startswith(f"{architecture}.")] if architecture in known else []
    raise BackboneError(
        f"There is no backbone {name!r}",
        expected=", ".join(candidates) or f"a name from viapt.list_backbones(), {FOLDER}PATH, or {PREFIX}PATH",
        remedy=did_you_mean(name, [PACKAGED, *published(), *known]),
    )


def pair(image_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of one number or two.

    Raises:
        BackboneError: other than one or two.
    """
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2:
        raise BackboneError(f"The image size is {image_size}", expected="one number, or (height, width)")
    return int(sides[0]), int(sides[1])
