"""Fit prompts with the Trainer of transformers, evaluate, and use the adapter that it saved.

    python examples/trainer.py photos packaged:vits14 out

Needs `pip install 'viapt[transformers]'`. `photos` holds a folder of pictures for each class.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import viapt
from viapt.data import ImageSource, read_source, split_items
from viapt.trainer import ImageCollator, SaveAdapter, TrainerModel


class Pictures(Dataset[dict[str, Any]]):
    """Items as the Trainer passes them on: {"image": ..., "label": ...}."""

    def __init__(self, source: ImageSource, keys: tuple[str, ...]) -> None:
        self.items = [item for item in source.items if item.key in set(keys)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.items[index]
        return {"image": item.image, "label": item.label}


def accuracy(predictions: Any) -> dict[str, float]:
    """What `evaluate` reports besides the loss."""
    return {"accuracy": float(np.mean(predictions.predictions.argmax(1) == predictions.label_ids))}


def main(photos: str, backbone: str, out: str) -> dict[str, float]:
    """Fit, evaluate, load, predict; what `evaluate` reported of the test images."""
    source = read_source(photos)
    split = split_items([item.key for item in source.items], [item.label for item in source.items])
    prompts: dict[str, Any] = {"num_prompts": 6, "num_instance_prompts": 2, "kept_dim": 16}
    model = viapt.create_model(backbone, "viapt", classes=source.classes, **prompts)
    trainer = Trainer(
        TrainerModel(model),
        TrainingArguments(
            out,
            num_train_epochs=8,
            learning_rate=model.method.learning_rate,
            per_device_train_batch_size=8,
            lr_scheduler_type="cosine",
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            remove_unused_columns=False,
            report_to="none",
        ),
        data_collator=ImageCollator(model),
        train_dataset=Pictures(source, split.train),
        eval_dataset=Pictures(source, split.val),
        compute_metrics=accuracy,
        callbacks=[SaveAdapter()],
    )
    trainer.train()
    found = trainer.evaluate(Pictures(source, split.test))
    loaded = viapt.load(Path(out) / "adapter")
    picture = source.items[0].image
    print(f"test accuracy {found['eval_accuracy']:.3f}; {picture}: {loaded.predict([picture]).labels[0]}")
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
