"""Prompts in the files of the authors' VPT code (github.com/KMnP/vpt, vision transformers), as adapters and back.

That code writes two kinds of files. For p prompts of h numbers, N blocks of width d, and C classes:

    prompt_ep*.pth   shallow_prompt (1, p, h) and, of VPT-Deep, deep_prompt (N - 1, p, h): NumPy arrays
    checkpoints      a state dict, by itself or under "model", whose names end in
                     prompt_embeddings (1, p, h), deep_prompt_embeddings (N - 1, p, h),
                     prompt_proj.weight (d, h), prompt_proj.bias (d), head.last_layer.weight (C, d) and .bias (C)

Deep prompts are those of blocks 2 to N there, and those of all blocks here. There prompts stand before the patches,
here behind them: the same to attention. The backbone that a checkpoint may hold as well is not read: name the same one.
Files of Swin are refused: that code averages the prompts' outputs into the feature, where the paper ignores them, and
hands prompts of one image to the windows of another, so that no adapter would answer alike.
How files are opened is told in `viapt.foreign_checkpoint`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from viapt.adapter_files import read_config, read_tensors
from viapt.create import create_model
from viapt.errors import ArtifactError, ConfigError
from viapt.foreign_checkpoint import as_tensor, check_suffix, classes_of, fill, read_state, refuse, write_state
from viapt.hub import adapter_folder
from viapt.model import PromptedClassifier

NAMES = {  # by the end of a name there
    "shallow_prompt": "shallow",
    "prompt_embeddings": "shallow",
    "deep_prompt": "deep",
    "deep_prompt_embeddings": "deep",
    "prompt_proj.weight": "projection.weight",
    "prompt_proj.bias": "projection.bias",
    "head.last_layer.weight": "head.weight",
    "head.last_layer.bias": "head.bias",
}
LAYOUTS = {  # what the first prompts and the others are called in it
    "checkpoint": ("enc.transformer.prompt_embeddings", "enc.transformer.deep_prompt_embeddings"),
    "prompts": ("shallow_prompt", "deep_prompt"),
}
BESIDE = {  # the prompts: here, in a checkpoint
    "method.projection.weight": "enc.transformer.prompt_proj.weight",
    "method.projection.bias": "enc.transformer.prompt_proj.bias",
    "head.weight": "head.last_layer.weight",
    "head.bias": "head.last_layer.bias",
}
STAGE = re.compile(r"(^|.*\.)deep_prompt_embeddings_\d+")  # of Swin
WHY_NOT_SWIN = "that code's Swin makes its features in another way"
PREFIXES = "", "enc.", "enc.transformer.", "transformer.", "module.", "module.enc.", "module.enc.transformer."


@dataclass(frozen=True)
class VPTPrompts:
    """What a file holds.

    Attributes:
        shallow: prompts of the first block.
        deep: of the others; None for VPT-Shallow.
        projection: weight (d, h) and bias (d), if prompts are projected.
        head: weight (C, d) and bias (C), if there is one.
    """

    shallow: Float[Tensor, "p h"]
    deep: Float[Tensor, "later p h"] | None = None
    projection: tuple[Float[Tensor, "d h"], Float[Tensor, " d"]] | None = None
    head: tuple[Float[Tensor, "classes d"], Float[Tensor, " classes"]] | None = None


def read_vpt(path: Path) -> VPTPrompts:
    """The prompts of a file, a .safetensors one or one of `torch.save`.

    Raises:
        ArtifactError: no such file, one that holds more than arrays, is damaged, or holds no prompts of VPT.
    """
    parts: dict[str, Tensor] = {}
    for name, value in read_state(path).items():
        if (part := part_called(name)) is None:
            check_no_other_prompts(path, name)
            continue
        if part in parts:
            refuse(path, f"holds {part} twice")
        parts[part] = as_tensor(path, str(name), value)
    return assembled(path, parts)


def part_called(name: Any) -> str | None:
    """What a tensor of this name is; None for what is not learned by VPT."""
    for prefix in PREFIXES:
        if isinstance(name, str) and name.startswith(prefix) and name.removeprefix(prefix) in NAMES:
            return NAMES[name.removeprefix(prefix)]
    return None


def check_no_other_prompts(path: Path, name: Any) -> None:
    """Refuse what belongs to a variant that is not this one, and would be lost.

    Raises:
        ArtifactError: naming the tensor.
    """
    if isinstance(name, str) and STAGE.fullmatch(name):
        refuse(path, f"holds {name}, prompts of Swin", expected=f"those of a vision transformer: {WHY_NOT_SWIN}")
    if isinstance(name, str) and ("prompt" in name or ".head.projection." in f".{name}"):
        refuse(path, f"holds {name}", expected="prompts that are prepended, and a head of one linear layer")


def assembled(path: Path, parts: dict[str, Tensor]) -> VPTPrompts:
    """Parts as what they are, of shapes that fit together.

    Raises:
        ArtifactError: something is missing, or does not fit.
    """
    if "shallow" not in parts:
        refuse(path, "holds no prompts of VPT", expected="prompt_embeddings or shallow_prompt")
    pairs = {}
    for name in ("projection", "head"):
        weight, bias = parts.get(f"{name}.weight"), parts.get(f"{name}.bias")
        if (weight is None) != (bias is None):
            refuse(path, f"holds half of the {name}", expected="weight and bias")
        if weight is not None and bias is not None:
            if weight.ndim != 2 or bias.shape != weight.shape[:1]:
                refuse(path, f"holds a {name} of shapes {tuple(weight.shape)} and {tuple(bias.shape)}")
            pairs[name] = weight, bias
    shallow, deep = parts["shallow"], parts.get("deep")
    if shallow.ndim != 3 or shallow.shape[0] != 1 or 0 in shallow.shape:
        refuse(path, f"holds prompts of shape {tuple(shallow.shape)}", expected="(1, p, h)")
    if deep is not None and (deep.ndim != 3 or deep.shape[1:] != shallow.shape[1:]):
        refuse(path, f"holds deep prompts of shape {tuple(deep.shape)}", expected=f"(N - 1, {shallow.shape[1:]})")
    if "projection" in pairs and pairs["projection"][0].shape[1] != shallow.shape[2]:
        refuse(path, f"projects from {pairs['projection'][0].shape[1]} numbers", expected=f"{shallow.shape[2]}")
    return VPTPrompts(shallow[0], deep, pairs.get("projection"), pairs.get("head"))


def from_vpt(
    path: str | Path,
    backbone: str | nn.Module,
    *,
    classes: int | Sequence[str] | None = None,
    weights: str | Path | None = None,
    precision: str = "auto",
    image_size: int | Sequence[int] | None = None,
) -> tuple[PromptedClassifier, bool]:
    """A model with the prompts of a VPT file, and whether it has the head of that file, too.

    If not, the head is untrained: fit the model, or its head.

    Args:
        path: see `read_vpt`.
        backbone: the one that the prompts were trained on, which the file does not name. This and the next three are
            those of `create_model`.
        weights: a safetensors file for it.
        precision: of it.
        image_size: in pixels.
        classes: their names; by default numbers. Needed where the file has no head.

    Raises:
        ArtifactError: the file cannot be read, or does not fit the backbone.
        ConfigError: classes that are missing, or not as many as the head has.
        BackboneError: see `create_model`.
    """
    path = Path(path)
    found = read_vpt(path)
    options: dict[str, Any] = {"num_prompts": found.shallow.shape[0]}
    if found.projection is not None:
        options["projected_dim"] = found.shallow.shape[1]
    model = create_model(
        backbone,
        "vpt-shallow" if found.deep is None else "vpt-deep",
        classes=classes_of(path, classes, found.head),
        weights=weights,
        precision=precision,
        image_size=image_size,
        **options,
    )
    if len(model.method.stages) > 1:
        refuse(path, "cannot serve blocks of several widths", expected=f"a vision transformer: {WHY_NOT_SWIN}")
    prompts = found.shallow if found.deep is None else torch.cat([found.shallow[None], found.deep])
    learned = {"method.prompts": prompts}
    for name, pair in (("method.projection", found.projection), ("head", found.head)):
        if pair is not None:
            learned |= {f"{name}.weight": pair[0], f"{name}.bias": pair[1]}
    remedy = "name the backbone that the prompts were trained on"
    if found.projection is None:
        remedy += "; or they were projected, and this file lacks the projection"
    fill(path, model, learned, remedy)
    return model, found.head is not None


def to_vpt(adapter: str | Path, path: str | Path, layout: str = "checkpoint") -> Path:
    """Write an adapter of VPT in a layout of the authors' code, as .safetensors or .pth.

    Args:
        adapter: a folder, or hf://user/name.
        path: replaced, if it is there.
        layout: "checkpoint", in a .pth with the tensors as "model"; or "prompts", that of prompt_ep*.pth, which has no
            place for the head.

    Raises:
        ArtifactError: the adapter cannot be read, is not of VPT, or has a projection, which "prompts" has no place for.
        ConfigError: another suffix or layout.
    """
    path, folder = Path(path), adapter_folder(adapter)
    check_suffix(path, (".pth",))
    if layout not in LAYOUTS:
        raise ConfigError(f"The layout is to be {layout!r}", expected=" or ".join(LAYOUTS))
    tensors = own_tensors(folder)
    shallow, deep = LAYOUTS[layout]
    prompts = tensors["method.prompts"]
    state = {shallow: prompts[None] if prompts.ndim == 2 else prompts[:1]}
    if prompts.ndim == 3:
        state[deep] = prompts[1:]
    if layout == "checkpoint":
        state |= {there: tensors[here] for here, there in BESIDE.items() if here in tensors}
        return write_state(path, state, "model")
    if "method.projection.weight" in tensors:
        refuse(folder, "holds prompts that are projected", remedy="write a checkpoint, which holds the projection, too")
    return write_state(path, state, None)


def own_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter that the authors' code could use.

    Raises:
        ArtifactError: the adapter cannot be read, or is not of VPT for a vision transformer.
    """
    config = read_config(folder)
    if config["method"] not in ("vpt-shallow", "vpt-deep") or config["method_arguments"].get("shared"):
        raise ArtifactError(
            f"{folder} holds a {config['method']} adapter", expected="vpt-shallow, or vpt-deep that is not shared"
        )
    tensors = {name: tensor.float() for name, tensor in read_tensors(folder, config).items()}
    if "method.prompts" not in tensors or any(name.startswith("method.projection.parts.") for name in tensors):
        refuse(folder, "holds prompts of several widths", expected=f"those of a vision transformer: {WHY_NOT_SWIN}")
    prompts, features = tensors["method.prompts"], tensors["head.weight"].shape[1]
    width = tensors["method.projection.weight"].shape[0] if "method.projection.weight" in tensors else prompts.shape[-1]
    if width != features:
        refuse(
            folder,
            f"holds prompts of {width} numbers for features of {features}",
            expected=f"those of a vision transformer, which have as many: {WHY_NOT_SWIN}",
        )
    return tensors
