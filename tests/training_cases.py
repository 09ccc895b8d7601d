"""Small models and data for the tests of training, and trainings that run, and die, in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from viapt.backbones.timm_vit import TimmViT
from viapt.history import History
from viapt.methods import create_method
from viapt.model import PromptedClassifier
from viapt.training import fit

OPTIONS: dict[str, dict[str, Any]] = {
    "viapt": {"num_prompts": 4, "num_instance_prompts": 2, "kept_dim": 8, "initial_std": 0.5},
    "vpt-deep": {"num_prompts": 3},
    "vpt-shallow": {"num_prompts": 3},
    "linear": {},
}


def tiny_model(method: str = "viapt", classes: int = 3, **options: Any) -> PromptedClassifier:
    """A classifier of 32-pixel images on a random ViT of width 32; equal for equal arguments."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=2, num_heads=2, num_classes=0)
        backbone = TimmViT(vit)
        options = OPTIONS.get(method, {}) | options
        prompts = create_method(method, backbone.dim, backbone.depth, backbone.patch_size, **options)
        return PromptedClassifier(backbone, prompts, [f"class {index}" for index in range(classes)])


def tiny_images(count: int, seed: int = 0) -> Tensor:
    """Standard normal images (count, 3, 32, 32)."""
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def tiny_data(count: int = 20, classes: int = 3, seed: int = 0) -> TensorDataset:
    """Images of noise, brighter for a higher class."""
    labels = torch.arange(count) % classes
    return TensorDataset(tiny_images(count, seed) + labels[:, None, None, None].float(), labels)


def learned_bits(model: PromptedClassifier) -> dict[str, bytes]:
    """All state but the backbone's, byte by byte."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("backbone.")}
    return {name: tensor.detach().contiguous().numpy().tobytes() for name, tensor in state.items()}


def quiet(model: PromptedClassifier, data: Any, val: Any = None, **arguments: Any) -> History:
    """`fit` in silence, two epochs in batches of 8 by default."""
    return fit(model, data, val, progress=False, **{"epochs": 2, "batch_size": 8} | arguments)


class Augmented:
    """Images plus noise that depends on epoch and index, as an augmentation does; slow if wanted."""

    def __init__(self, data: TensorDataset, delay: float = 0.0) -> None:
        self.data, self.delay = data, delay
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.data[index]
        time.sleep(self.delay)
        seed = 1000 * self.epochs[-1] + index
        return image + torch.randn(image.shape, generator=torch.Generator().manual_seed(seed)), int(label)


def resumable(out: Path, *, delay: float = 0.0, **changes: Any) -> PromptedClassifier:
    """A training of 3 epochs of 3 steps, with a checkpoint after each; everything that has a state takes part."""
    model = tiny_model(calibration_steps=4, learn_carry_scale=True)
    arguments = {"epochs": 3, "batch_size": 8, "lr": 0.01, "selection": "best-val", "checkpoint_seconds": 0.0}
    fit(model, Augmented(tiny_data(), delay), tiny_data(10, seed=1), out=out, progress=False, **arguments | changes)
    return model


def resumable_child(out: Path, delay: float, die_before: int | None) -> None:
    """`resumable` in a process of its own; perhaps it dies before a certain change of the file system."""
    torch.set_num_threads(1)
    count = 0

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            if count == die_before:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return function(*args, **kwargs)

        return wrapper

    if die_before is not None:
        os.fsync, shutil.rmtree = deadly(os.fsync), deadly(shutil.rmtree)
        for name in ("mkdir", "rename", "replace"):
            setattr(Path, name, deadly(getattr(Path, name)))
    resumable(out, delay=delay)


def terminated_child(out: Path) -> None:
    """`resumable` until SIGTERM arrives while the images of its second step are read."""
    torch.set_num_threads(1)
    read = Augmented.__getitem__
    count = 0

    def wrapper(self: Augmented, index: int) -> tuple[Tensor, int]:
        nonlocal count
        count += 1
        if count == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, index)

    Augmented.__getitem__ = wrapper
    resumable(out)


def start(target: Callable[..., None], *args: Any) -> BaseProcess:
    """A process that a fork server starts, which has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    # By their installed names: before Python 3.12 a fork server does not look where the tests are.
    context.set_forkserver_preload(["viapt.training", "training_cases"])
    process = context.Process(target=target, args=args)
    process.start()
    return process
