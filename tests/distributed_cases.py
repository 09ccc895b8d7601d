"""Trainings in several processes: started as a launcher starts them, but by a fork server, which is fast."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.utils._pytree import tree_leaves
from torch.utils.data import TensorDataset

from training_cases import Augmented, start, tiny_data, tiny_model
from viapt import optimization
from viapt.training import fit

SECONDS = 100  # after which processes that should have ended are called hanging


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def launched(count: int, target: Callable[..., None], *args: Any) -> list[BaseProcess]:
    """Processes that run `target(*args)` as one group."""
    port = free_port()
    return [start(as_rank, rank, count, port, target, args) for rank in range(count)]


def as_rank(rank: int, count: int, port: int, target: Callable[..., None], args: tuple[Any, ...]) -> None:
    """What a launcher tells a process by its environment."""
    torch.set_num_threads(1)
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in values.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    target(*args)


def exit_codes(processes: list[BaseProcess]) -> list[int | None]:
    """When all have ended; None for one that had to be killed."""
    for process in processes:
        process.join(SECONDS)
    hanging = [process for process in processes if process.exitcode is None]
    for process in hanging:
        process.kill()
        process.join()
    return [None if process in hanging else process.exitcode for process in processes]


def together(count: int, target: Callable[..., None], *args: Any) -> None:
    """`target(*args)` in `count` processes, all of which must succeed."""
    assert exit_codes(launched(count, target, *args)) == [0] * count


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


@dataclass(frozen=True)
class Case:
    """A training. By default of 21 images in batches of 10: one is left for the last batch, and no process but one has
    work. In float64, so that rounding does not hide what is wrong.
    """

    options: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    images: tuple[int, int, int] = (21, 11, 7)
    dtype: torch.dtype = torch.float64


def trained(case: Case, out: Path | None = None, data: type[Augmented] = Augmented) -> dict[str, Any]:
    """All of a training that should not depend on how many processes there were."""
    sets = []
    for seed, count in enumerate(case.images):
        images, labels = tiny_data(count, seed=seed).tensors
        sets.append(TensorDataset(images.to(case.dtype), labels))
    model = tiny_model(**{"calibration_steps": 4} | case.options).to(case.dtype)
    arguments = {"epochs": 3, "batch_size": 10, "lr": 0.01} | case.arguments
    history = fit(model, data(sets[0]), sets[1], test=sets[2], out=out, progress=False, **arguments)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("backbone.")}
    epochs = [(e.step, e.lr, e.train_loss, e.train_accuracy, e.val_loss, e.val_accuracy) for e in history.epochs]
    assert history.test is not None
    found = {"state": state, "epochs": torch.tensor(epochs, dtype=torch.float64), "selected": history.selected_epoch}
    return found | {"confusion": history.test.confusion, "test_loss": history.test.loss}


def train(folder: Path, cases: dict[str, Case], out: Path | None = None) -> None:
    """Trainings one after the other; each process leaves what it ends with."""
    for name, case in cases.items():
        torch.save(trained(case, out), folder / f"{name}-{rank()}.pt")


def assert_same(one: dict[str, Any], other: dict[str, Any], tolerance: float = 1e-11) -> None:
    """Losses, accuracies, weights, gains, basis, test."""
    torch.testing.assert_close(other["epochs"], one["epochs"], rtol=0, atol=tolerance)
    torch.testing.assert_close(other["state"], one["state"], rtol=0, atol=tolerance)
    assert other["selected"] == one["selected"] and other["confusion"] == one["confusion"]
    assert abs(other["test_loss"] - one["test_loss"]) <= tolerance


def counting(folder: Path, case: Case) -> None:
    """Train, and write down how many numbers each exchange carries, and how many images are read."""
    gradients: list[int] = []
    others: list[int] = []
    read: list[int] = []

    def hooked(*arguments: Any) -> Any:
        replica = replicated(*arguments)

        def hook(group, bucket):  # DDP refuses annotations that are strings
            gradients.append(bucket.buffer().numel())
            future = default_hooks.allreduce_hook(group, bucket)
            others.pop()
            return future

        replica.register_comm_hook(None, hook)
        return replica

    replicated, optimization.replicated = optimization.replicated, hooked
    for name in ("all_reduce", "all_gather", "broadcast", "_broadcast_coalesced"):
        setattr(dist, name, counted(getattr(dist, name), others))
    TensorDataset.__getitem__ = counted(TensorDataset.__getitem__, read)
    trained(case)
    if rank() == 0:
        sent = {"gradients": gradients, "others": others, "read": len(read)}
        (folder / "sent.json").write_text(json.dumps(sent))


def counted(function: Any, log: list[int]) -> Any:
    """The function, which writes down how many numbers it is given."""

    def wrapper(*arguments: Any, **options: Any) -> Any:
        tensors = [*tree_leaves(arguments), *tree_leaves(options)]
        log.append(sum(tensor.numel() for tensor in tensors if isinstance(tensor, Tensor)))
        return function(*arguments, **options)

    return wrapper
