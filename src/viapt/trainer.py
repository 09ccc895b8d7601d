"""The Trainer of transformers, on a model of ours: a wrapper in its words, a callback that saves adapters.

    from transformers import Trainer, TrainingArguments

    model = viapt.create_model("vit_base_patch16_224.augreg_in21k", classes=["cat", "dog"])
    trainer = Trainer(
        TrainerModel(model),
        TrainingArguments("out", learning_rate=5e-3, remove_unused_columns=False),
        data_collator=ImageCollator(model),
        train_dataset=train,  # of {"image": a picture, "label": a class index}
        eval_dataset=val,
        callbacks=[SaveAdapter()],
    )
    trainer.train()
    viapt.load("out/adapter")

`viapt.fit` needs no transformers, resumes to the same bits, and keeps to what the papers do; this is for whoever has
the Trainer already. Its optimizer decays in its own way; `adapter_optimizer` gives ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from viapt.data.images import read_image
from viapt.data.transforms import train_transform
from viapt.device import adamw
from viapt.errors import ArtifactError, ConfigError, DataError
from viapt.inference import check_images, check_labels
from viapt.model import PromptedClassifier
from viapt.recipe import check_trainable, parameter_groups

try:
    import transformers
    from transformers import TrainerCallback
    from transformers.image_processing_utils import BaseImageProcessor
    from transformers.modeling_outputs import ImageClassifierOutput
except ImportError as error:
    raise ConfigError("transformers is not installed", remedy="pip install 'viapt[transformers]'") from error

ADAPTER = "adapter"


class TrainerModel(nn.Module):
    """A `PromptedClassifier` that takes `pixel_values` and `labels`, and returns loss and logits.

    Its state is what was learned, without the backbone: so are the checkpoints of the Trainer, which resumes from them
    and loads the best of them.
    """

    def __init__(self, model: PromptedClassifier) -> None:
        super().__init__()
        check_trainable(model)
        self.model = model

    def forward(
        self, pixel_values: Float[Tensor, "batch ..."], labels: Int[Tensor, " batch"] | None = None
    ) -> ImageClassifierOutput:
        """Logits (batch, classes), and the loss where there are labels.

        Raises:
            DataError: images or labels that do not fit the model.
        """
        check_images(self.model, pixel_values)
        if labels is None:
            return ImageClassifierOutput(logits=self.model(pixel_values))
        check_labels(len(self.model.classes), labels)
        loss, logits = self.model(pixel_values, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Method and head."""
        state = super().state_dict(*args, **kwargs)
        prefix = f"{kwargs.get('prefix', '')}model.backbone."
        return {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Method and head, all of them and nothing else, whatever `strict` says.

        Raises:
            ArtifactError: other tensors.
        """
        if wrong := sorted(self.state_dict().keys() ^ state_dict.keys()):
            raise ArtifactError(
                f"The checkpoint lacks, or has no use for, {', '.join(wrong[:5])}",
                expected="the tensors of this method and head, all of them and no others",
            )
        try:
            result = super().load_state_dict(state_dict, strict=False, assign=assign)
        except RuntimeError as error:
            raise ArtifactError(f"The checkpoint does not fit ({error})") from error
        result.missing_keys.clear()  # the backbone's: it is frozen
        return result


class SaveAdapter(TrainerCallback):
    """Saves the adapter beside every checkpoint and at the end, in a folder `adapter`; and makes resuming exact.

    The noise of instance prompts follows from the Trainer's seed and the step, so that a training that is resumed draws
    what it would have drawn.

    Args:
        training: JSON values for the model card.
    """

    def __init__(self, training: Mapping[str, Any] | None = None) -> None:
        self.training = training

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the noise to where the training stands."""
        model = wrapped(kwargs["model"])
        model.noise_seed, model.noise_calls = args.seed, state.global_step * args.gradient_accumulation_steps

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Beside a checkpoint."""
        self.save(args, state, Path(args.output_dir, f"checkpoint-{state.global_step}"), kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """At the end, with the weights that the Trainer ends with."""
        self.save(args, state, Path(args.output_dir), kwargs["model"])

    def save(self, args: Any, state: Any, folder: Path, model: nn.Module) -> None:
        """By the main process."""
        if state.is_world_process_zero:
            facts = {"trained with": "transformers Trainer", "steps": state.global_step, "seed": args.seed}
            facts |= {"learning rate": args.learning_rate, **(self.training or {})}
            wrapped(model).save_pretrained(folder / ADAPTER, training=facts)


class ImageCollator:
    """Batches for the Trainer of {"image": a picture, "label": a class index}, or of (picture, class index).

    Pictures are what `viapt.data.images.read_image` takes; they are preprocessed as the backbone wants them.

    With the Trainer, `remove_unused_columns=False` keeps a data set's "image" column.

    Args:
        model: whose preprocessing counts.
    """

    def __init__(self, model: PromptedClassifier) -> None:
        self.transform = train_transform(model.backbone.preprocessing, "none")

    def __call__(self, items: Sequence[Any]) -> dict[str, Tensor]:
        """{"pixel_values": (batch, 3, height, width), "labels": (batch,)}.

        Raises:
            DataError: an item without image or label, or an image that cannot be read.
        """
        pairs = [pair(item) for item in items]
        images = torch.stack([self.transform(read_image(image)) for image, _ in pairs])
        return {"pixel_values": images, "labels": torch.tensor([label for _, label in pairs])}


def pair(item: Any) -> tuple[Any, Any]:
    """(picture, class index) of an item.

    Raises:
        DataError: it has none.
    """
    if isinstance(item, Mapping) and "image" in item and ("label" in item or "labels" in item):
        return item["image"], item["label"] if "label" in item else item["labels"]
    if isinstance(item, tuple) and len(item) == 2:
        return item
    found = f"keys {', '.join(map(str, item))}" if isinstance(item, Mapping) else f"type {type(item).__name__}"
    raise DataError(
        f"An item of the data set has {found}",
        expected="image and label",
        remedy="set remove_unused_columns=False in TrainingArguments, which otherwise drops them",
    )


def adapter_optimizer(model: PromptedClassifier, lr: float | None = None, weight_decay: float = 0.01) -> Any:
    """AdamW as `viapt.fit` uses it: for `Trainer(optimizers=(adapter_optimizer(model), None))`.

    Matrices decay, vectors do not, and what a method learns at a rate of its own does so.

    Args:
        model: already on the device on which it will be trained.
        lr: the method's own by default.
        weight_decay: of matrices.
    """
    rate = model.method.learning_rate if lr is None else lr
    groups = parameter_groups(model, weight_decay)
    for group in groups:
        group["lr"] = rate * group["lr_factor"]
    return adamw(groups, rate)


def image_processor(model: PromptedClassifier) -> BaseImageProcessor:
    """An image processor of transformers that preprocesses as the backbone wants it, with Pillow, as timm does.

    For whoever keeps one beside a model or in a data set's `map`; `ImageCollator` needs none. Pixels are the same but
    for rounding; where an odd number of them is cut away, the crop lies one pixel beside timm's.

    Raises:
        ConfigError: the backbone's images are padded, or resized to a rectangle, which it cannot do in the same way.
    """
    wanted = model.backbone.preprocessing
    (height, width), share = wanted.image_size, wanted.crop_pct
    if wanted.crop_mode == "border" or (wanted.crop_mode == "center" and height != width):
        raise ConfigError(
            f"An image processor of transformers cannot do {wanted}",
            expected="images that are squares, or squashed",
            remedy="use viapt.trainer.ImageCollator",
        )
    squashed = {"height": math.floor(height / share), "width": math.floor(width / share)}
    return pillow_processor()(
        size=squashed if wanted.crop_mode == "squash" else {"shortest_edge": math.floor(height / share)},
        crop_size={"height": height, "width": width},
        resample=Image.Resampling[wanted.interpolation.upper()],
        image_mean=list(wanted.mean),
        image_std=list(wanted.std),
    )


def pillow_processor() -> type[BaseImageProcessor]:
    """CLIP's image processor with Pillow: under a name of its own in transformers 5, the usual one in 4."""
    found = getattr(transformers, "CLIPImageProcessorPil", None)
    return transformers.CLIPImageProcessor if found is None else found


def wrapped(model: nn.Module) -> PromptedClassifier:
    """The model of ours in what the Trainer has.

    Raises:
        ConfigError: it has none.
    """
    for module in model.modules():
        if isinstance(module, TrainerModel):
            return module.model
    raise ConfigError(f"SaveAdapter in a Trainer of a {type(model).__name__}", expected="a TrainerModel")
