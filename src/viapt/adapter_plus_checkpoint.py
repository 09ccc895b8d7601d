"""Adapters in the files of Adapter+'s code (github.com/visinf/adapter_plus), as adapters of `adapter-plus` and back.

That code writes state dicts: checkpoints of its training hold one under "state_dict", with names that begin with
"vit."; its module for timm has the same names without that. For N blocks of width d, a bottleneck of r numbers, and C
classes:

    blocks.<i>.adapter.bottleneck.1.weight (r, d) and .bias (r)       down
    blocks.<i>.adapter.bottleneck.4.weight (d, r) and .bias (d)       up
    blocks.<i>.adapter.scaling (d)                                    a scale for each channel
    head.weight (C, d) and head.bias (C)

That is its configuration `adapter_plus`. A file does not tell where in a block its adapters stand; those of its other
configurations have other tensors (a norm, one scale, none, two adapters in a block), and are refused. The backbone that
a state dict may hold as well is not read: name the same one. How files are opened is told in
`viapt.foreign_checkpoint`: its training's own checkpoints hold objects of its configuration, too, and are not opened.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from viapt.adapter_files import read_config, read_tensors
from viapt.create import create_model
from viapt.errors import ArtifactError
from viapt.foreign_checkpoint import as_tensor, check_suffix, classes_of, fill, read_state, refuse, write_state
from viapt.hub import adapter_folder
from viapt.model import PromptedClassifier

PREFIX = re.compile(r"^(module\.)?(model\.)?(vit\.)?")
PARTS = {  # of an adapter: there, here
    "bottleneck.1.weight": "down.weight",
    "bottleneck.1.bias": "down.bias",
    "bottleneck.4.weight": "up.weight",
    "bottleneck.4.bias": "up.bias",
    "scaling": "scale",
}
HEAD = {"head.weight", "head.bias"}
ADAPTER = re.compile(r"^blocks\.(\d{1,4})\.adapter\.(.+)$")
OTHERS = re.compile(r"adapter|lora|prompt")


def read_adapter_plus(path: Path) -> dict[str, Tensor]:
    """The adapters of a file, and its head if it has one, by their names here.

    Raises:
        ArtifactError: no such file, one that holds more than arrays, is damaged, or holds no adapters of this kind.
    """
    found: dict[str, Tensor] = {}
    for name, value in read_state(path).items():
        if (ours := name_here(path, name)) is None:
            continue
        if ours in found:
            refuse(path, f"holds {ours} twice")
        found[ours] = as_tensor(path, str(name), value)
    blocks = {int(name.split(".")[2]) for name in found if name.startswith("method.")}
    if not blocks:
        refuse(path, "holds no adapters", expected="blocks.0.adapter.bottleneck.1.weight and so on")
    wanted = {f"method.adapters.{block}.{part}" for block in range(max(blocks) + 1) for part in PARTS.values()}
    if len(found.keys() & HEAD) == 1:
        refuse(path, "holds half of the head", expected="weight and bias")
    if missing := sorted(wanted - found.keys()):
        refuse(
            path,
            f"lacks {missing[0]} and {len(missing) - 1} more",
            expected="adapters of adapter_plus in every block: two matrices with biases, and a scale for each channel",
        )
    return found


def name_here(path: Path, name: object) -> str | None:
    """What a tensor is called here; None for what is not learned.

    Raises:
        ArtifactError: it is learned by another configuration, and would be lost.
    """
    if not isinstance(name, str):
        return None
    inner = PREFIX.sub("", name)
    if inner in HEAD:
        return inner
    match = ADAPTER.match(inner)
    if match and match[2] in PARTS:
        return f"method.adapters.{int(match[1])}.{PARTS[match[2]]}"
    if OTHERS.search(inner):
        refuse(path, f"holds {name}", expected="one adapter behind each block, without a norm: that of adapter_plus")
    return None


def from_adapter_plus(
    path: str | Path,
    backbone: str | nn.Module,
    *,
    classes: int | Sequence[str] | None = None,
    weights: str | Path | None = None,
    precision: str = "auto",
    image_size: int | Sequence[int] | None = None,
) -> tuple[PromptedClassifier, bool]:
    """A model with the adapters of a file, and whether it has the head of that file, too.

    Arguments and errors are those of `viapt.vpt_checkpoint.from_vpt`.
    """
    path = Path(path)
    found = read_adapter_plus(path)
    head = (found["head.weight"], found["head.bias"]) if found.keys() >= HEAD else None
    down = found["method.adapters.0.down.weight"]
    if head is not None and (head[0].ndim != 2 or head[1].shape != head[0].shape[:1]):
        refuse(path, f"holds a head of shapes {tuple(head[0].shape)} and {tuple(head[1].shape)}")
    if down.ndim != 2 or 0 in down.shape:
        refuse(path, f"holds a matrix of shape {tuple(down.shape)}", expected="(r, d)")
    model = create_model(
        backbone,
        "adapter-plus",
        classes=classes_of(path, classes, head),
        weights=weights,
        precision=precision,
        image_size=image_size,
        width=down.shape[0],
    )
    depth = len({name.split(".")[2] for name in found if name.startswith("method.")})
    remedy = "name the backbone that the adapters were trained on"
    if depth != model.backbone.depth:
        refuse(path, f"holds adapters of {depth} blocks", expected=f"{model.backbone.depth}", remedy=remedy)
    fill(path, model, found, remedy)
    return model, head is not None


def to_adapter_plus(adapter: str | Path, path: str | Path) -> Path:
    """Write an adapter of `adapter-plus` for that code: .safetensors, or .pth or .ckpt with a "state_dict".

    Args:
        adapter: a folder, or hf://user/name.
        path: replaced, if it is there.

    Raises:
        ArtifactError: the adapter cannot be read, or is of another method.
        ConfigError: another suffix.
    """
    path, folder = Path(path), adapter_folder(adapter)
    check_suffix(path, (".pth", ".ckpt"))
    config = read_config(folder)
    if config["method"] != "adapter-plus":
        raise ArtifactError(f"{folder} holds a {config['method']} adapter", expected="adapter-plus")
    state, there = {}, {ours: theirs for theirs, ours in PARTS.items()}
    for name, tensor in read_tensors(folder, config).items():
        if name.startswith("method.adapters."):
            number, part = name.removeprefix("method.adapters.").split(".", 1)
            name = f"blocks.{number}.adapter.{there[part]}"
        state[f"vit.{name}"] = tensor.float()
    return write_state(path, state, "state_dict")
