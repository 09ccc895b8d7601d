"""Export: a fitted model as one file for ONNX Runtime, OpenVINO or torch, checked there before it is kept.

    graph.py      the model as a graph: images (and noise) -> logits, traced by torch.export
    targets.py    that graph as a file, once for each target
    parity.py     the file's answers beside the model's own
    files.py      all files in place or none

The graph computes in float32. What is frozen can be stored in two bytes a number, and is then cast where it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from viapt.errors import ConfigError
from viapt.export.files import staged, sums
from viapt.export.graph import DTYPES, Deployed, Dtype, check_graph, trace
from viapt.export.parity import check_parity, check_rounding
from viapt.export.targets import WRITERS
from viapt.exported import FORMAT_VERSION, load_exported
from viapt.inference import Policy, check_policy
from viapt.model import PromptedClassifier
from viapt.runtimes import TargetName, check_target, open_session


def export(
    model: PromptedClassifier,
    path: str | Path,
    *,
    to: TargetName = "onnx",
    policy: Policy = "mean",
    seed: int = 0,
    dtype: Dtype = "float32",
    overwrite: bool = False,
    report: Callable[[str], None] | None = None,
) -> Path:
    """Write a model as a file that runs without viapt, its backbone's weights included.

    The file takes `images`, (batch, 3, height, width) in float32, preprocessed, for any batch size, and gives `logits`,
    (batch, classes). It is run in its own runtime on batches of two sizes before it is kept, and must give what the
    model gives. A model whose backbone is in bfloat16 is exported with the values that it has, and computes in float32.

    Args:
        model: left as it is. Export it with a float32 backbone (`viapt.load(..., precision="float32")`).
        path: a name that ends in .onnx, .xml (with a .bin beside it) or .pt2.
        to: "onnx", "openvino" or "torch".
        policy: "mean"; "fixed", with the noise of `seed` in the file; or "multi", with `noise`, (1 or batch, lambda,
            dim), as a second input.
        seed: of the noise of `fixed`, >= 0.
        dtype: how the matrices of the backbone are stored: "float32", "float16" or "bfloat16".
        overwrite: replace a file that is there.
        report: is told, in a line, how well the file agrees with the model.

    Returns:
        The file.

    Raises:
        ArtifactError: the file differs from the model by more than the tolerance, or cannot be written. Nothing is
            left then, and a file that was there before still is.
        ConfigError: a wrong argument, a package that is not installed, a file that is there, or a method that cannot
            be exported.
    """
    path = Path(path)
    check_place(to, path, overwrite)
    check_arguments(model, policy, seed, dtype)
    deployed = Deployed(model, policy, seed, dtype)
    program = trace(deployed)
    check_graph(program, model)
    write = WRITERS[to](program, deployed)
    described = describe(model, policy, seed, dtype)
    with staged(path) as folder:
        file = folder / path.name
        write(file, described)
        parity = check_parity(deployed, open_session(file), path) | check_rounding(model, deployed)
        write(file, described | {"parity": parity, "files": sums(folder, file)})
        load_exported(file)  # as it will be found
    if report is not None:
        report(in_words(parity))
    return path


def check_place(to: str, path: Path, overwrite: bool) -> None:
    """Refuse a target that is not installed, and a file that is there, before anything is loaded.

    Raises:
        ConfigError: naming it.
    """
    check_target(to, path)
    if path.is_dir() or (path.exists() and not overwrite):
        raise ConfigError(f"{path} is there already", remedy="choose another name, or --overwrite (overwrite=True)")


def check_arguments(model: PromptedClassifier, policy: str, seed: int, dtype: str) -> None:
    """Refuse what cannot be exported, before any work.

    Raises:
        ConfigError: naming it.
    """
    method = model.method
    check_policy(policy, 1, seed)
    if dtype not in DTYPES:
        raise ConfigError(f"There is no dtype {dtype!r}", expected=f"one of {', '.join(DTYPES)}")
    if policy != "mean" and method.sampled_prompts == 0:
        raise ConfigError(
            f"policy {policy} has no effect on {method.name} without sampled prompts", expected="policy mean"
        )
    if seed and policy != "fixed":
        raise ConfigError(f"seed = {seed} has no effect on policy {policy}", expected="policy fixed")
    if method.batch_dependent:
        raise ConfigError(
            f"The method {method.name} with {method.config()} answers by the other images of the batch, too: its file"
            " would answer differently for each batch size",
            expected="a method whose answer for an image depends on that image",
            remedy="fit again with another reduction, for instance --set reduction=running",
        )


def describe(model: PromptedClassifier, policy: str, seed: int, dtype: str) -> dict[str, Any]:
    """What the file will say about itself, in JSON's types; `parity` and `files` come when they are known."""
    backbone, method = model.backbone, model.method
    return {
        "backbone": {"fingerprint": backbone.fingerprint, "name": backbone.name, "pretrained": backbone.pretrained},
        "classes": model.classes,
        "files": {},
        "format_version": FORMAT_VERSION,
        "method": method.name,
        "method_arguments": method.config(),
        "noise_shape": [method.sampled_prompts, backbone.dim] if policy == "multi" else None,
        "parity": None,
        "policy": policy,
        "preprocessing": backbone.preprocessing.to_dict(),
        "seed": seed if policy == "fixed" else None,
        "versions": {name: version(name) for name in ("viapt", "torch", "timm")},
        "weights": dtype,
    }


def in_words(parity: dict[str, Any]) -> str:
    """One line on how well a file agrees with its model."""
    sizes = " and ".join(map(str, parity["batch_sizes"]))
    text = (
        f"checked in {parity['runtime']} on batches of {sizes}: "
        f"logits differ by at most {parity['difference']:.1e} of their size, {parity['tolerance']:.0e} is allowed"
    )
    rounding = parity.get("rounding")
    return text if rounding is None else f"{text}; storing weights in two bytes moved them by {rounding:.1e}"
