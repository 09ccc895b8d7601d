"""timm's transformers, built with weights from the hub, a file, a folder, or (for tests) a fixed seed.

Files are read as safetensors alone. A model that gets its weights from a file is built without memory of its own first,
so that nothing is allocated before the shapes are known to fit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import get_session
from torch import Tensor, nn

from viapt.backbones.timm_base import CLASSIFIER, Transformer, check_supported, patch_size_of
from viapt.errors import BackboneError
from viapt.tensorfile import CONVERT, PICKLES, read_tensor_file

VITS = ("vision_transformer", "deit", "vision_transformer_hybrid", "vitamin")  # whose models are VisionTransformers
MODULES = (*VITS, "eva", "beit", "swin_transformer")
CONFIG_LIMIT = 2**20  # bytes
HUB_SECONDS = 10
WITHOUT_HUB = (
    "connect to the hub, or give a local file (weights=FILE, on the command line --weights FILE), "
    "a folder with timm's config.json and model.safetensors (local-dir:PATH), or take packaged:vits14"
)


def architectures() -> list[str]:
    """Names of timm's transformers of the kinds that are supported, without the tags of their weights."""
    return [name for module in MODULES for name in timm.list_models(module=module)]


def published() -> list[str]:
    """Names with tags of those whose weights are published."""
    return [name for module in MODULES for name in timm.list_models(module=module, pretrained=True)]


def random_vit(name: str) -> Transformer:
    """Random weights: the same in every process, and nothing drawn from the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return check_supported(timm.create_model(name, pretrained=False))


def pretrained_vit(name: str) -> Transformer:
    """timm's own weights: out of the hub's cache, else from the hub.

    Raises:
        BackboneError: none are published, or the hub cannot be reached.
    """
    source = timm.get_pretrained_cfg(name)
    if source is None or not source.has_weights:
        tags = ", ".join(known for known in published() if known.startswith(f"{name.partition('.')[0]}."))
        raise BackboneError(
            f"timm publishes no weights under the name {name}", expected=tags, remedy="give a file: weights=FILE"
        )
    overlay = {}
    if source.hf_hub_id:
        cached = try_to_load_from_cache(source.hf_hub_id, "model.safetensors")
        if isinstance(cached, str):
            overlay = {"file": cached, "custom_load": False}
        else:
            check_hub(name)
    try:
        vit = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # of the hub's client, whose kinds differ between its versions, or of the disk
        raise BackboneError(
            f"The weights of {name} cannot be loaded ({type(error).__name__}: {error})", remedy=WITHOUT_HUB
        ) from error
    return check_supported(vit)


def check_hub(name: str, remedy: str = WITHOUT_HUB) -> None:
    """Find out with one request what the hub's client would try for a minute.

    Raises:
        BackboneError: no answer.
    """
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception as error:  # of the HTTP library, another one in each version of the hub's client
        raise BackboneError(
            f"The weights of {name} are not in the cache, and {constants.ENDPOINT} cannot be reached "
            f"({type(error).__name__}: {error})",
            remedy=remedy,
        ) from error


def vit_from_tensors(build: Callable[[], nn.Module], tensors: Mapping[str, Tensor], source: str) -> Transformer:
    """What `build` makes, with these weights, in float32, at the image size that their position grid asks for.

    Raises:
        BackboneError: weights are missing, left over or of another shape; a classifier's may be there or not.
    """
    with torch.device("meta"):
        vit = check_supported(build())
        vit.reset_classifier(0)
        fit_position_grid(vit, tensors)
    found = {name: tensor.float() for name, tensor in tensors.items() if not name.startswith(CLASSIFIER)}
    expected = vit.state_dict()
    wrong = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": [
            f"{name} {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in sorted(found.keys() & expected.keys())
            if found[name].shape != expected[name].shape
        ],
    }
    if any(wrong.values()):
        report = "; ".join(f"{kind}: {shortened(names)}" for kind, names in wrong.items() if names)
        raise BackboneError(
            f"The weights in {source} do not fit the architecture ({report})",
            expected=f"timm's own names and shapes, {len(expected)} tensors",
            remedy="name the architecture that the file was saved from",
        )
    vit.load_state_dict(found, strict=True, assign=True)
    fill_constants(vit)
    return vit


def fill_constants(vit: nn.Module) -> None:
    """Compute what no file holds, in memory of its own: indices of positions, rotations, biases that are always 0."""
    for module in vit.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")
    for module in vit.modules():
        fill: Any = getattr(module, "init_non_persistent_buffers", None)
        if fill is not None:
            fill()


def vit_from_file(name: str, path: Path) -> Transformer:
    """A named architecture with the weights of a safetensors file.

    Raises:
        BackboneError: the file cannot be read, or does not fit.
    """
    tensors = read_tensor_file(path, BackboneError)
    return vit_from_tensors(lambda: timm.create_model(name, pretrained=False), tensors, str(path))


def vit_from_folder(folder: Path) -> Transformer:
    """A model as timm's `save_for_hf` writes it: config.json and model.safetensors.

    Raises:
        BackboneError: a file is missing, is no such file, or does not fit.
    """
    config, weights = folder / "config.json", folder / "model.safetensors"
    for path in (config, weights):
        if not path.is_file():
            pickles = [p.name for p in folder.glob("*") if p.suffix in PICKLES]
            raise BackboneError(
                f"There is no {path}"
                + (f"; {', '.join(pickles)} may be pickles, which are never opened" * bool(pickles)),
                expected="timm's layout: config.json and model.safetensors",
                remedy=CONVERT if pickles else "",
            )
    if config.stat().st_size > CONFIG_LIMIT:
        raise BackboneError(f"{config} has {config.stat().st_size} bytes", expected=f"at most {CONFIG_LIMIT}")
    try:
        architecture = json.loads(config.read_bytes())["architecture"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BackboneError(f"{config} is not timm's: {error!r}", expected="JSON that names an architecture") from error
    if architecture not in architectures():
        raise BackboneError(
            f"{config} names the architecture {architecture!r}", expected="one of timm's ViTs, Evas, Beits or Swins"
        )

    def build() -> nn.Module:
        try:
            return timm.create_model(f"local-dir:{folder}", pretrained=False)
        except Exception as error:  # whatever timm says of arguments that its configuration should not have
            raise BackboneError(f"timm cannot build what {config} describes ({error!r})") from error

    return vit_from_tensors(build, read_tensor_file(weights, BackboneError), str(weights))


def fit_position_grid(vit: Any, tensors: Mapping[str, Tensor]) -> None:
    """Give a model the square image size whose position grid the weights have."""
    position: Any = tensors.get("pos_embed")
    if (
        getattr(vit, "pos_embed", None) is None
        or position is None
        or position.ndim != 3
        or position.shape == vit.pos_embed.shape
    ):
        return
    prefix = 0 if getattr(vit, "no_embed_class", False) else vit.num_prefix_tokens
    side = math.isqrt(max(0, position.shape[1] - prefix))
    if side and side * side + prefix == position.shape[1]:
        height, width = patch_size_of(vit)
        vit.set_input_size(img_size=(side * height, side * width))


def shortened(names: list[str], limit: int = 4) -> str:
    """The first names of a list, and how many more there are."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
