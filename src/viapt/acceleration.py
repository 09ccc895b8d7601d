"""What accelerate does for a training: the device, the group of processes, trackers."""

from __future__ import annotations

import atexit
import importlib.util
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, MLflowTracker, WandBTracker
from accelerate.utils import DistributedType, InitProcessGroupKwargs, ProjectConfiguration
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from viapt.distributed import process_count
from viapt.errors import ConfigError, TrainingError
from viapt.model import PromptedClassifier

TENSORBOARD = "tensorboard"
PROJECT = "viapt"  # what W&B and MLflow call it
SERVICES: dict[str, Callable[[str], GeneralTracker]] = {"wandb": WandBTracker, "mlflow": MLflowTracker}
Trackers = str | GeneralTracker | Sequence[str | GeneralTracker]
PATIENCE = timedelta(minutes=30)  # with a process that reads its data more slowly than the others
OTHER_WAYS = {DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA}


def accelerated(tensorboard: Path | None = None, log_with: Trackers = ()) -> Accelerator:
    """accelerate for this process, which joins the others if several were launched; without autocast.

    The frozen backbone computes in its own precision.

    Args:
        tensorboard: the folder below which TensorBoard's files are written; None for none.
        log_with: other trackers: "wandb", "mlflow", or trackers of accelerate as they are.

    Raises:
        ConfigError: a tracker that is unknown or not installed.
        TrainingError: accelerate is configured to cut the model in pieces.
    """
    if tensorboard is not None and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("TensorBoard is not installed", remedy="pip install 'viapt[tensorboard]'")
    others = [log_with] if isinstance(log_with, str | GeneralTracker) else log_with
    trackers = [*([] if tensorboard is None else [TENSORBOARD]), *map(tracker, others)]
    joined = dist.is_available() and dist.is_initialized()
    accelerator = Accelerator(
        mixed_precision="no",  # the frozen backbone has its precision already
        log_with=trackers or None,
        project_config=None if tensorboard is None else ProjectConfiguration(logging_dir=str(tensorboard)),
        cpu=not torch.accelerator.is_available(),  # without being told, accelerate has no processes on CPUs
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    if accelerator.num_processes > 1 and not joined:
        atexit.register(leave)  # otherwise its threads may abort the interpreter as it exits
    if accelerator.distributed_type in OTHER_WAYS:
        raise TrainingError(
            f"accelerate is configured for {accelerator.distributed_type.value}",
            expected="a copy of the model in each process: the frozen part needs no optimizer state",
            remedy="accelerate launch --multi_gpu (or --cpu) --num_processes N",
        )
    return accelerator


def tracker(wanted: str | GeneralTracker) -> GeneralTracker:
    """A tracker by its name, not yet started; or as it is.

    Raises:
        ConfigError: there is none of this name, or what it needs is not installed.
    """
    if isinstance(wanted, GeneralTracker):
        return wanted
    if wanted not in SERVICES:
        raise ConfigError(
            f"There is no tracker {wanted!r} here",
            expected=f"{' or '.join(SERVICES)}, or a GeneralTracker of accelerate; TensorBoard has a switch of its own",
        )
    if importlib.util.find_spec(wanted) is None:
        raise ConfigError(f"{wanted} is not installed", remedy=f"pip install 'viapt[{wanted}]'")
    return SERVICES[wanted](PROJECT)


def leave() -> None:
    """Take leave of the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def replicated(model: PromptedClassifier, device: torch.device) -> nn.Module:
    """The model, moved to its device; with several processes, wrapped so that gradients are averaged over them.

    Gradients of what is learned are all that travels. The backbone does not: it is the same everywhere, which its
    fingerprint says. Nor do buffers: they are frozen, or computed from the whole batch by every process. All that is
    learned takes part in every step, as the contract of methods demands, so unused tensors need not be looked for.
    """
    model.to(device)
    if process_count() == 1:
        return model
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its older name
    options: dict[str, Any] = {buffers: False}
    return DistributedDataParallel(model, init_sync=False, **options)


@contextmanager
def tracked(accelerator: Accelerator, step: int, facts: Mapping[str, Any]) -> Iterator[None]:
    """Trackers from this step on; TensorBoard drops what it recorded beyond it before an interruption.

    Args:
        step: where the training stands.
        facts: about the training, for the trackers that are not TensorBoard.
    """
    accelerator.init_trackers(TENSORBOARD, init_kwargs={TENSORBOARD: {"purge_step": step + 1}})
    try:
        for started in accelerator.trackers:
            if started.name != TENSORBOARD:
                started.store_init_configuration(dict(facts))
        yield
    finally:
        for started in accelerator.trackers:
            started.finish()
