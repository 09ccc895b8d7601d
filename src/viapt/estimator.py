"""A scikit-learn classifier of images: for pipelines, grid searches, cross-validation and whatever else takes one.

Images are a sequence: an array (n, height, width, 3) or (n, height, width) of what `read_image` takes, or a list or
one-dimensional array of paths, encoded files, Pillow images and arrays. So X is no table: it has no features to count,
and what scikit-learn does with tables (scalers, imputers) does not apply before this estimator.

A fitted estimator can be pickled, by joblib for instance, with its backbone; viapt itself never opens a pickle. To
share a model, `estimator.model_.save_pretrained(directory)`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Shaped
from PIL import Image
from torch import nn

from viapt.create import create_model
from viapt.data.dataset import ImageDataset
from viapt.data.sources import ImageSource, Item
from viapt.data.transforms import train_transform
from viapt.device import default_device
from viapt.errors import ConfigError, DataError
from viapt.inference import Policy
from viapt.recipe import OptimizerName
from viapt.training import fit

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import Tags, assert_all_finite, check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, column_or_1d
except ImportError as error:
    raise ConfigError("scikit-learn is not installed", remedy="pip install 'viapt[sklearn]'") from error


class InputError(DataError, ValueError):
    """Images or labels that do not fit; a `ValueError`, as scikit-learn's tools expect."""


class ViaPTClassifier(ClassifierMixin, BaseEstimator):
    """A prompt method on a frozen backbone as a scikit-learn classifier.

    The arguments are kept as they are and checked by `fit`, as scikit-learn wants it. What they mean in full is written
    at `viapt.create_model` (method, backbone) and `viapt.fit` (training).

    Args:
        backbone: a name or a module.
        method: one of `viapt.list_methods()`.
        method_options: keyword arguments of the method, for instance {"num_prompts": 5}.
        weights: a safetensors file for the backbone.
        pretrained: False for random backbone weights: for tests only.
        image_size: in pixels; None for the backbone's own.
        precision: of the backbone: "float32", "bfloat16" or "auto".
        augmentation: of training images: "none", "light", "standard" or "strong".
        epochs: of the training; this and the next five are those of `viapt.fit`.
        lr: None for the method's own.
        batch_size: of one optimizer step.
        optimizer: "adamw" or "sgd".
        weight_decay: of matrices.
        clip: largest norm of the gradient.
        policy: of inference: "mean", "fixed" or "multi".
        rounds: passes of "multi".
        verbose: whether training shows its progress.
        random_state: of the initial weights, the order of images, augmentation and noise.

    Attributes:
        classes_: the labels, sorted.
        model_: the `viapt.PromptedClassifier`.
        history_: what `viapt.fit` returned.
        seed_: what was drawn from `random_state`.
    """

    def __init__(
        self,
        backbone: str | nn.Module = "packaged:vits14",
        *,
        method: str = "viapt",
        method_options: dict[str, Any] | None = None,
        weights: str | Path | None = None,
        pretrained: bool = True,
        image_size: int | tuple[int, int] | None = None,
        precision: str = "auto",
        augmentation: str = "none",
        epochs: int = 10,
        lr: float | None = None,
        batch_size: int = 32,
        optimizer: OptimizerName = "adamw",
        weight_decay: float = 0.01,
        clip: float | None = None,
        policy: Policy = "mean",
        rounds: int = 5,
        verbose: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.backbone = backbone
        self.method = method
        self.method_options = method_options
        self.weights = weights
        self.pretrained = pretrained
        self.image_size = image_size
        self.precision = precision
        self.augmentation = augmentation
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.clip = clip
        self.policy = policy
        self.rounds = rounds
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> ViaPTClassifier:
        """Train on images and their labels, from the beginning.

        Args:
            X: images, as the top of this module says.
            y: a label for each: strings or integers, at least two different ones.

        Raises:
            ValueError: images or labels that do not fit together, or are none.
            ViaptError: an argument that `create_model` or `fit` refuses.
        """
        images = listed(X)
        if y is None:
            raise InputError("This classifier requires y to be passed, but the target y is None", expected="labels")
        labels = column_or_1d(y, warn=True)
        assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
        if len(images) != len(labels):
            raise InputError(f"{len(images)} images and {len(labels)} labels", expected="one label for each image")
        self.classes_, indices = np.unique(labels, return_inverse=True)
        names = [str(label) for label in self.classes_]
        if len(names) < 2:
            raise InputError(f"y holds one class, {names[0]!r}", expected="at least two classes")
        self.seed_ = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.model_ = create_model(
            self.backbone,
            self.method,
            classes=names,
            weights=self.weights,
            pretrained=self.pretrained,
            image_size=self.image_size,
            precision=self.precision,
            seed=self.seed_,
            **(self.method_options or {}),
        )
        items = [
            Item(f"{number:06d}", int(index), "train", image)
            for number, (image, index) in enumerate(zip(images, indices, strict=True))
        ]
        source = ImageSource(tuple(items), tuple(names), None, "X")
        transform = train_transform(self.model_.backbone.preprocessing, self.augmentation)
        names_of_fit = "epochs", "lr", "batch_size", "optimizer", "weight_decay", "clip"
        recipe: dict[str, Any] = {name: getattr(self, name) for name in names_of_fit}
        data = ImageDataset(source, transform, seed=self.seed_)
        self.history_ = fit(self.model_, data, **recipe, seed=self.seed_, progress=self.verbose)
        return self

    def predict_proba(self, X: Any) -> Float64[np.ndarray, "n classes"]:
        """Probabilities of `classes_`, in their order, summing to 1 for each image.

        Raises:
            ValueError: X are no images.
            NotFittedError: before `fit`.
        """
        check_is_fitted(self)
        images = listed(X)
        options: dict[str, Any] = {"policy": self.policy, "rounds": self.rounds, "seed": self.seed_}
        found = self.model_.to(default_device()).predict(images, batch_size=self.batch_size, **options)
        return found.probabilities.double().numpy()

    def predict(self, X: Any) -> Shaped[np.ndarray, " n"]:
        """The most probable label of each image; errors as `predict_proba`."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]

    def __getstate__(self) -> dict[str, Any]:
        """With the model on the CPU, so that machines without this one's device can read it."""
        own: Any = super().__getstate__()
        state = dict(own)  # which may be the estimator's own
        model = state.get("model_")
        if model is not None and model.head.weight.device != torch.device("cpu"):
            state["model_"] = copy.deepcopy(model).cpu()
        return state

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags


def listed(X: Any) -> list[Any]:
    """Images one by one, as views where X is an array.

    Raises:
        InputError: one image alone, or none, or no images.
    """
    expected = "an array (n, height, width, 3) or (n, height, width), or a sequence of paths, Pillow images or arrays"
    if isinstance(X, str | bytes | Path | Image.Image):
        raise InputError(f"X is a single {type(X).__name__}", expected=expected, remedy="put it in a list")
    single = isinstance(X, np.ndarray) and X.ndim == 3 and X.shape[-1] in (3, 4)  # or a row of images 3 pixels wide
    if isinstance(X, np.ndarray) and (single or X.ndim not in (1, 3, 4)):
        raise InputError(f"X is an array of shape {X.shape}", expected=expected)
    if not isinstance(X, Iterable):
        raise InputError(f"X is a {type(X).__name__}", expected=expected)
    images = [Path(image) if isinstance(image, str) else image for image in X]
    if not images:
        raise InputError("X holds 0 images", expected="at least one")
    for number, image in enumerate(images):
        if not isinstance(image, bytes | Path | Image.Image | np.ndarray):
            raise InputError(f"Image {number} (counting from 0) is a {type(image).__name__}", expected=expected)
    return images
