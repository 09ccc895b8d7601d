"""Adapters on disk: everything but the backbone's weights, and enough to be sure of these.

    adapter_config.json          method, arguments, backbone, fingerprint, preprocessing, classes, training, versions
    adapter_model.safetensors    what the method learned, the buffers that it needs, the head
    README.md                    a model card, for people

The configuration carries the SHA-256 of itself and of the tensors, so that no altered, truncated or mixed-up file is
taken for what was saved. Nothing is unpickled, and no code that a file names is run. Files may be links (the caches of
model hubs are made of them): they are only read, as JSON and safetensors. Saving replaces a link, and never writes
through it.

How an older adapter is replaced, and what is guaranteed when the process dies, is told in `viapt.adapter_files`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from viapt.adapter_files import CARD, CONFIG, FORMAT_VERSION, TENSORS, commit, read_config, read_tensors, refuse
from viapt.backbones import create_backbone
from viapt.backbones.base import Backbone, Preprocessing
from viapt.checkpoint import digest
from viapt.create import cast
from viapt.errors import ArtifactError, ConfigError
from viapt.hub import adapter_folder
from viapt.methods import create_method
from viapt.methods.base import PromptMethod
from viapt.model import PromptedClassifier
from viapt.model_card import model_card
from viapt.precision import DTYPES
from viapt.quantisation import is_quantised
from viapt.rounds import RoundNoise


def save_pretrained(
    model: PromptedClassifier, directory: str | Path, *, training: Mapping[str, Any] | None = None
) -> Path:
    """Save what was learned, and how the rest is found again; an adapter that is there already is replaced as a whole.

    Args:
        model: its learnable tensors in float32, its backbone in float32 or bfloat16.
        directory: made if it does not exist.
        training: how it was trained, in JSON's types; kept in the configuration and shown in the model card.

    Returns:
        The directory.

    Raises:
        ArtifactError: the model holds values that are not finite or of another type, or the disk refuses. An older
            adapter in the directory is then still there.
        ConfigError: `training` cannot be written as JSON.
    """
    folder = Path(directory)
    data = safetensors.torch.save(stored_tensors(model), metadata={"format": "pt"})
    config = describe(model, training) | {"tensors_sha256": hashlib.sha256(data).hexdigest()}
    config["config_sha256"] = digest(config)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    card = model_card(config, model.parameter_counts(), len(data))
    commit(folder, {CONFIG: text.encode(), TENSORS: data, CARD: card.encode(errors="replace")})
    return folder


def load(
    directory: str | Path,
    backbone: str | nn.Module | None = None,
    *,
    weights: str | Path | None = None,
    precision: str | None = None,
) -> PromptedClassifier:
    """A saved model, in evaluation mode on the CPU; its outputs are those of the model that was saved, bit for bit.

    Args:
        directory: where `save_pretrained` put it; or hf://user/name[@revision], an adapter on a model hub, of which a
            copy is kept in the hub's cache. A folder of that name wins.
        backbone: where the adapter's own description of it does not serve: a module, or a name as in `create_model`. A
            timm module is copied; a `Backbone` is used, and cast if need be.
        weights: the safetensors file of the backbone's weights, where it is not where it was.
        precision: of the backbone, as in `create_model`; None: that of the saved model. Others give other bits.

    Raises:
        ArtifactError: files are missing, altered or newer than this version, the hub has none, or the backbone has
            other weights.
        BackboneError: the backbone cannot be built.
        ConfigError: unknown precision.
    """
    folder = adapter_folder(directory)
    config = read_config(folder)
    tensors = read_tensors(folder, config)
    frozen = restore_backbone(folder, config["backbone"], backbone, weights)
    cast(frozen, precision or config["backbone"]["precision"])
    with FakeTensorMode(allow_non_fake_inputs=True):  # shapes without memory: nothing is allocated before they fit
        head, method = nn.Linear(frozen.feature_dim, len(config["classes"])), restore_method(folder, frozen, config)
        if method.inside:
            with torch.device("meta"):  # which other libraries know better than fake tensors
                method.enter(frozen.view())
        expected = stored_state(method, head)
    tensors = check_tensors(folder, tensors, expected)
    with torch.random.fork_rng(devices=[]):  # what is drawn is overwritten
        model = PromptedClassifier(frozen, restore_method(folder, frozen, config), config["classes"])
    try:
        model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # of linear algebra, for a basis that is none
        refuse(folder, f"holds values that {config['method']} cannot use ({error})")
    idle = model.method.transient_state()
    if not all(bool(b.isfinite().all()) for name, b in model.method.named_buffers() if name not in idle):
        refuse(folder, f"holds values that {config['method']} cannot use")
    if config.get("round_noise") is not None:
        model.round_noise = RoundNoise(**config["round_noise"])
    return model.eval()


def restore_backbone(
    folder: Path, recorded: dict[str, Any], given: str | nn.Module | None, weights: str | Path | None
) -> Backbone:
    """The backbone that an adapter was trained on.

    Raises:
        ArtifactError: it has other weights or another preprocessing, or the adapter does not say where it is.
    """
    preprocessing = Preprocessing.from_dict(recorded["preprocessing"])
    size, file = preprocessing.image_size, weights or recorded["weights"]
    if isinstance(given, Backbone):
        backbone = create_backbone(given, weights=weights)
    elif given is not None:
        backbone = create_backbone(given, weights=weights, image_size=size)
    elif recorded["name"] is None:
        raise ArtifactError(
            f"The adapter in {folder} was trained on a module of somebody's own",
            expected=f"that module, with weights {recorded['fingerprint']}",
            remedy="viapt.load(directory, backbone=module)",
        )
    elif file is not None and not Path(file).is_file():
        raise ArtifactError(
            f"The backbone of {folder} was read from {file}, which is not there",
            expected=f"{recorded['name']} with weights {recorded['fingerprint']}",
            remedy="viapt.load(directory, weights=FILE)",
        )
    else:
        backbone = create_backbone(recorded["name"], weights=file, pretrained=recorded["pretrained"], image_size=size)
    if backbone.fingerprint != recorded["fingerprint"]:
        raise ArtifactError(
            f"The backbone {backbone.name or type(given).__name__} has weights {backbone.fingerprint}",
            expected=f"those that {folder} was trained on: {recorded['name'] or 'a module'}, {recorded['fingerprint']}",
            remedy="load those weights, or train again on these",
        )
    if backbone is given and backbone.preprocessing != preprocessing:
        raise ArtifactError(
            f"The backbone wants images as {backbone.preprocessing}", expected=f"{preprocessing}, as in {folder}"
        )
    backbone.preprocessing = preprocessing
    return backbone


def restore_method(folder: Path, backbone: Backbone, config: dict[str, Any]) -> PromptMethod:
    """The method that a configuration describes, untrained.

    Raises:
        ArtifactError: it cannot be built.
    """
    name, arguments = config["method"], config["method_arguments"]
    try:
        return create_method(name, backbone.widths, backbone.depth, backbone.patch_size, **arguments)
    except (ConfigError, ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        refuse(folder / CONFIG, f"describes a method that cannot be built on this backbone ({error})")


def describe(model: PromptedClassifier, training: Mapping[str, Any] | None) -> dict[str, Any]:
    """The configuration, without its check sums."""
    backbone = model.backbone
    if is_quantised(model):
        raise ArtifactError(
            "The model is quantised, and an adapter names the weights that it was trained on",
            remedy="save the model that it was made from; after loading, viapt.quantise(model)",
        )
    precision = str(backbone.dtype).removeprefix("torch.")
    if precision not in DTYPES:
        raise ArtifactError(f"The backbone computes in {precision}", expected=" or ".join(DTYPES))
    values = {
        "backbone": {
            "fingerprint": backbone.fingerprint,
            "name": backbone.name,
            "precision": precision,
            "preprocessing": backbone.preprocessing.to_dict(),
            "pretrained": backbone.pretrained,
            "weights": None if backbone.weights is None else str(backbone.weights),
        },
        "classes": model.classes,
        "format_version": FORMAT_VERSION,
        "method": model.method.name,
        "method_arguments": model.method.config(),
        "round_noise": None if model.round_noise is None else model.round_noise.to_dict(),
        "training": None if training is None else dict(training),
        "versions": {name: version(name) for name in ("viapt", "torch", "timm")},
    }
    try:
        return json.loads(json.dumps(values, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"training is not plain JSON ({error})", expected="finite numbers, strings, lists ..."
        ) from error


def stored_state(method: PromptMethod, head: nn.Linear) -> dict[str, Tensor]:
    """The part of a model's state that an adapter keeps."""
    transient = {f"method.{name}" for name in method.transient_state()}
    state = nn.ModuleDict({"method": method, "head": head}).state_dict()
    return {name: tensor for name, tensor in state.items() if name not in transient}


def stored_tensors(model: PromptedClassifier) -> dict[str, Tensor]:
    """The same as written: what is float32 and loses nothing in float16 takes two bytes a number.

    Raises:
        ArtifactError: a tensor is not finite, or floating point of another precision.
    """
    stored = {}
    for name, tensor in stored_state(model.method, model.head).items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ArtifactError(
                f"{name} is {tensor.dtype}", expected="torch.float32", remedy="model.float() before saving"
            )
        check_finite(name, tensor)
        stored[name] = compact(tensor.cpu()).contiguous()
    return stored


def compact(tensor: Tensor) -> Tensor:
    """float16 if that gives back the same bits, else the tensor as it is."""
    if tensor.dtype != torch.float32:
        return tensor
    half = tensor.half()
    return half if torch.equal(half.float(), tensor) else tensor


def check_tensors(folder: Path, found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a file as the model needs them.

    Raises:
        ArtifactError: missing, foreign, misshapen, of another type, or not finite.
    """
    path = folder / TENSORS
    for problem, names in (
        ("lacks", expected.keys() - found.keys()),
        ("holds foreign tensors:", found.keys() - expected.keys()),
    ):
        if names:
            refuse(
                path,
                f"{problem} {', '.join(sorted(names))}",
                expected=f"the tensors of {CONFIG}, all of them and no others",
            )
    for name, tensor in sorted(found.items()):
        wanted = expected[name]
        if tensor.shape != wanted.shape:
            refuse(path, f"holds {name} of shape {tuple(tensor.shape)}", expected=f"{tuple(wanted.shape)}")
        if tensor.dtype != wanted.dtype and not (tensor.dtype == torch.float16 and wanted.dtype == torch.float32):
            refuse(path, f"holds {name} as {tensor.dtype}", expected=f"{wanted.dtype}")
        check_finite(f"{name} in {path}", tensor)
    return {name: tensor.to(expected[name].dtype) for name, tensor in found.items()}


def check_finite(name: str, tensor: Tensor) -> None:
    """Refuse NaN and infinity.

    Raises:
        ArtifactError: naming the tensor.
    """
    if bad := int((~tensor.isfinite()).sum()):
        raise ArtifactError(
            f"{name} has {bad} of {tensor.numel()} values that are not finite",
            expected="finite numbers",
            remedy="train again, with a lower learning rate",
        )
