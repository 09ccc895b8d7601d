"""Exported models: one file that classifies images without the backbone's weights and without the adapter.

The file says itself what it is: class names, preprocessing, policy and where it came from are in it, as JSON, under the
name `viapt` (ONNX: `metadata_props`; OpenVINO: `rt_info`; torch: an extra file of the archive).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from viapt.backbones.base import Preprocessing
from viapt.errors import ArtifactError, BackboneError, ConfigError, DataError
from viapt.inference import Policy, Prediction, check_policy, preprocessed, softmax
from viapt.model import check_classes
from viapt.runtimes import open_session
from viapt.runtimes.base import Session, refusing

FORMAT_VERSION = 1
IMAGES, NOISE, LOGITS = "images", "noise", "logits"
NOTE_LIMIT = 16 * 2**20  # bytes
FIELDS: dict[str, tuple[type, ...]] = {
    "backbone": (dict,),
    "classes": (list,),
    "files": (dict,),
    "format_version": (int,),
    "method": (str,),
    "method_arguments": (dict,),
    "noise_shape": (list, type(None)),
    "policy": (str,),
    "preprocessing": (dict,),
    "seed": (int, type(None)),
    "versions": (dict,),
    "weights": (str,),
}


class ExportedModel:
    """A model out of a file, in the runtime that the file was made for.

    Attributes:
        path: the file.
        metadata: all that the file says about itself.
        classes: names, in the order of the logits.
        preprocessing: what becomes of an image before it enters.
        policy: "mean", "fixed" or "multi": how the model deals with its instance prompts' randomness.
        seed: of the noise that is in the file, for `fixed`; else None.
        noise_shape: (lambda, dim) of the noise that is an input, for `multi`; else None.
        runtime: name and version of what executes the file.
    """

    def __init__(self, path: Path, session: Session, metadata: dict[str, Any]) -> None:
        self.path, self.session, self.metadata = path, session, metadata
        self.classes: list[str] = metadata["classes"]
        self.preprocessing = Preprocessing.from_dict(metadata["preprocessing"])
        self.policy: Policy = metadata["policy"]
        self.seed: int | None = metadata["seed"]
        self.noise_shape: tuple[int, int] | None = metadata["noise_shape"] and tuple(metadata["noise_shape"])
        self.runtime = session.runtime

    def __call__(
        self,
        images: Float[Tensor, "batch 3 height width"],
        noise: Float[Tensor, "rows lambda_ dim"] | None = None,
    ) -> Float32[Tensor, "batch classes"]:
        """Logits of preprocessed images.

        Args:
            images: as `preprocessing` says.
            noise: standard normal, one row for all images or one for each; for `multi` only. None: zeros, the mean.

        Raises:
            ArtifactError: the file cannot be run, or answers with another shape.
            ConfigError: noise for a model that takes none.
            DataError: noise of another shape.
        """
        inputs = {IMAGES: as_array(images)}
        if self.noise_shape is not None:
            noise = torch.zeros(1, *self.noise_shape) if noise is None else noise
            if noise.shape not in ((1, *self.noise_shape), (images.shape[0], *self.noise_shape)):
                raise DataError(
                    f"The noise has shape {tuple(noise.shape)}", expected=f"(1 or batch, *{self.noise_shape})"
                )
            inputs[NOISE] = as_array(noise)
        elif noise is not None:
            raise ConfigError(f"{self.path} takes no noise: its policy is {self.policy}", expected="none")
        with refusing(self.path, self.runtime, "run"):
            logits = self.session.run(inputs)
        if logits.shape != (images.shape[0], len(self.classes)):
            raise ArtifactError(
                f"{self.path} answers with shape {logits.shape}", expected=f"({images.shape[0]}, {len(self.classes)})"
            )
        return torch.from_numpy(logits)

    def predict(
        self,
        images: Any,
        policy: Policy | None = None,
        rounds: int = 5,
        seed: int | None = None,
        batch_size: int = 32,
        progress: Callable[[int], None] | None = None,
    ) -> Prediction:
        """Labels and probabilities of images: the same as those of the adapter, within the tolerance in the metadata.

        Args:
            images: as for `viapt.inference.predict`.
            policy: the file's own, or None.
            rounds: R >= 1, passes of `multi`.
            seed: of the noise: any for `multi` (None: 0); for `fixed` the file's own, or None.
            batch_size: images in one pass.
            progress: called after each batch with the number of images done.

        Raises:
            ArtifactError: the file cannot be run.
            ConfigError: another policy or seed than the file's, or a number out of range.
            DataError: as for `viapt.inference.predict`.
        """
        self.check(policy, seed)
        check_policy(self.policy, rounds, seed or 0)
        if batch_size < 1:
            raise ConfigError(f"batch_size = {batch_size}", expected="at least 1")
        found, done = [], 0
        for batch in preprocessed(self.preprocessing, images, batch_size):
            found.append(self.probabilities(batch, rounds, seed or 0))
            if not bool(found[-1].isfinite().all()):
                raise DataError(f"The probabilities of images {done} to {done + len(batch) - 1} are not all finite")
            done += batch.shape[0]
            if progress is not None:
                progress(done)
        if not found:
            raise DataError("There are no images to predict", expected="at least one")
        outcomes = torch.cat(found, dim=1)
        mean = outcomes.mean(0)
        labels = [self.classes[index] for index in mean.argmax(1).tolist()]
        spread = outcomes.std(0, correction=0) if self.policy == "multi" else None
        return Prediction(labels, mean, spread, torch.full((len(mean),), len(outcomes)))

    def probabilities(
        self, images: Float[Tensor, "batch 3 height width"], rounds: int, seed: int
    ) -> Float32[Tensor, "rounds batch classes"]:
        """Class probabilities of each round; one round where nothing is sampled."""
        if self.noise_shape is None:
            return softmax(self(images))[None]
        noises = (draw_noise(self.noise_shape, seed=seed, index=index) for index in range(rounds))
        return torch.stack([softmax(self(images, noise)) for noise in noises])

    def check(self, policy: str | None, seed: int | None) -> None:
        """Refuse a policy or seed that is not what the file holds.

        Raises:
            ConfigError: naming both, and how to get the other.
        """
        if policy is not None and policy != self.policy:
            raise ConfigError(
                f"{self.path} was exported with policy {self.policy}, not {policy}",
                expected=f"policy {self.policy}",
                remedy=f"export the adapter again: viapt export ADAPTER --policy {policy} ...",
            )
        if seed is not None and self.policy != "multi" and seed != self.seed:
            has = "no noise" if self.seed is None else f"the noise of seed {self.seed} in it"
            remedy = "" if self.seed is None else f"export again: viapt export ADAPTER --policy fixed --seed {seed} ..."
            raise ConfigError(f"seed {seed} for {self.path}, which has {has}", expected=f"{self.seed}", remedy=remedy)


def load_exported(path: str | Path) -> ExportedModel:
    """An exported model, ready to predict.

    Args:
        path: a .onnx, .xml or .pt2 file that `viapt.export.export` wrote, the files that belong to it beside it.

    Raises:
        ArtifactError: the file is missing, damaged, of another kind, not from viapt, or from a newer version.
        ConfigError: its runtime is not installed.
    """
    path = Path(path)
    session = open_session(path)
    metadata = read_note(path, session.note)
    check_files(path, metadata["files"])
    check_inputs(path, session, metadata)
    return ExportedModel(path, session, metadata)


def read_note(path: Path, note: str | None) -> dict[str, Any]:
    """What a file says about itself, checked.

    Raises:
        ArtifactError: it says nothing, or what viapt does not write.
    """
    if note is None:
        raise ArtifactError(
            f"{path} has no description by viapt: no class names, no preprocessing",
            expected="a file that `viapt export` wrote",
        )
    try:
        metadata = json.loads(note) if len(note) <= NOTE_LIMIT else None
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise damaged(path, "its description is no JSON object")
    version = metadata.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {version}",
            expected=f"at most {FORMAT_VERSION}",
            remedy="pip install --upgrade viapt",
        )
    for name, kinds in FIELDS.items():
        if not isinstance(metadata.get(name), kinds):
            raise damaged(path, f"its description has {name} = {str(metadata.get(name))[:80]!r}")
    try:
        check_classes(metadata["classes"])
        Preprocessing.from_dict(metadata["preprocessing"])
    except (ConfigError, TypeError, BackboneError) as error:
        raise damaged(path, str(error)) from error
    noise = metadata["noise_shape"]
    sizes = noise is None or (len(noise) == 2 and all(type(size) is int and size > 0 for size in noise))
    if (
        metadata["policy"] not in get_args(Policy)
        or (noise is not None) != (metadata["policy"] == "multi")
        or not sizes
    ):
        raise damaged(path, f"its description has policy {metadata['policy']!r} with noise of shape {noise}")
    return metadata


def check_inputs(path: Path, session: Session, metadata: dict[str, Any]) -> None:
    """Refuse a graph whose inputs are not those that its description tells.

    Raises:
        ArtifactError: naming both.
    """
    expected = {IMAGES: (None, 3, *metadata["preprocessing"]["image_size"])}
    if metadata["noise_shape"] is not None:
        expected[NOISE] = (None, *metadata["noise_shape"])
    if session.inputs != expected:
        raise damaged(path, f"its inputs are {session.inputs}", expected=f"{expected}")


def check_files(path: Path, files: dict[str, Any]) -> None:
    """Refuse companions that are missing, or belong to another export.

    Raises:
        ArtifactError: naming the file.
    """
    for name, stated in files.items():
        companion = path.parent / name
        if Path(name).name != name or not companion.is_file():
            raise damaged(path, f"{name}, which belongs to it, is missing")
        if sha256(companion) != stated:
            raise damaged(path, f"{name} is not the file that belongs to it: its SHA-256 is another")


def sha256(path: Path) -> str:
    """Hexadecimal, of a whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def draw_noise(shape: tuple[int, int], *, seed: int, index: int = 0) -> Float32[Tensor, "1 lambda_ dim"]:
    """The noise of one round: bit for bit that of `PromptedClassifier.draw_noise`."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63)
    return torch.randn((1, *shape), generator=generator)


def as_array(tensor: Tensor) -> Float32[np.ndarray, "..."]:
    """What a runtime takes."""
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())


def damaged(path: Path, problem: str, expected: str = "") -> ArtifactError:
    """The error of a file that is not what was written."""
    return ArtifactError(
        f"{path} is damaged: {problem}",
        expected=expected,
        remedy="copy it again with the files beside it, or export again",
    )
