"""All that depends on the device. No other module names one, so that a new kind of device is served here alone.

    what                                        CPU                         GPU
    precision of the frozen backbone ("auto")   measured: `precision.py`    bfloat16, where it has units for that
    products with frozen weights                oneDNN's, with AVX-512      torch's
    attention                                   plain in bfloat16           fused (flash)
    what learns, reduction, optimizer           float32                     float32, TF32 off
    AdamW                                       plain                       fused
    batches on their way to the model           where they are              pinned memory, copied while it computes
    freed memory                                kept by the process         kept by torch's own allocator

The GPU's column is tested with tensors that are faked; it has not been run on one.
"""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, optim

from viapt.errors import ConfigError

CPU_ONLY = "ACCELERATE_USE_CPU"
KEEP_MEMORY = "VIAPT_KEEP_MEMORY"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # <malloc.h>
NEVER = -1
AVX512 = hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported") and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def default_device() -> torch.device:
    """The device that accelerate chooses for training: a GPU if there is one, else the CPU.

    The environment variable ACCELERATE_USE_CPU=true says otherwise, here as for accelerate itself.
    """
    if is_set(CPU_ONLY, default=False):
        return torch.device("cpu")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("xpu" if torch.xpu.is_available() else "cpu")


def accelerator_elsewhere() -> str:
    """The kind of GPU that other machines of a cluster most likely have: XPU where this one has it, else CUDA."""
    own = default_device().type
    return own if own == "xpu" else "cuda"


def prepare_process(device: torch.device) -> None:
    """Set what the whole process needs to compute well on a device; again and again does no harm.

    On a CPU, memory that is freed stays with the process: see `keep_freed_memory`. On a GPU, convolutions in float32
    are convolutions in float32: torch's default would round them to TF32, which its matrix products are not.
    """
    if device.type == "cpu":
        keep_freed_memory()
    elif device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False


@cache
def keep_freed_memory() -> bool:
    """Have glibc's malloc keep what is freed, instead of giving it back to the system; whether that was done.

    A training step allocates and frees the same gigabytes again and again. By default each large block is mapped anew,
    and the system zeroes it page by page when it is first written: that took a quarter of a bfloat16 step. The price:
    the process holds on to the most that it ever used.

    Done once, for the whole process. Not done where VIAPT_KEEP_MEMORY=0, where malloc is set up by its own environment
    variables, and with other C libraries.
    """
    if not is_set(KEEP_MEMORY, default=True) or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))


def is_set(variable: str, *, default: bool) -> bool:
    """A yes or no from the environment, in the words that accelerate understands."""
    return os.environ.get(variable, str(default)).strip().lower() in ("1", "true", "yes", "y", "on", "t")


def has_bfloat16_units(device: torch.device) -> bool | None:
    """Whether a device multiplies in bfloat16 by itself; None for a CPU, which has to be measured."""
    if device.type == "cpu":
        return None
    return (
        device.type == "cuda" and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    )


def describe_device(device: torch.device) -> str:
    """A device in words, for protocols and tables."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    threads = torch.get_num_threads()
    instructions = torch.backends.cpu.get_cpu_capability()  # results of others differ in the last bits
    return f"{processor()}, {instructions}, {threads} thread{'' if threads == 1 else 's'}"


def processor() -> str:
    """What the CPU is called."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [
        value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() == "model name"
    ]
    return names[0] if names else platform.processor() or platform.machine()


def peak_memory_mib(device: torch.device) -> float:
    """The most memory that this process ever held, and on a GPU the most that torch took there, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def prefers_plain_attention(tensor: Tensor) -> bool:
    """Whether softmax(q k^T) v, written out, is faster than the fused kernel where such tensors want gradients.

    On a CPU, the backward pass of the fused kernel takes four times as long in bfloat16. Everywhere else, and without
    a backward pass, the fused one is as fast or faster, and needs less memory.
    """
    return tensor.device.type == "cpu" and tensor.dtype == torch.bfloat16


def prefers_onednn(x: Tensor) -> bool:
    """Whether `onednn_linear` serves a tensor like this one, and is faster than `F.linear`: on CPUs with AVX-512.

    Others are slower by it in float32, and have no bfloat16 in it.
    """
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and AVX512
        and x.numel() > 0
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def onednn_linear(
    x: Float[Tensor, "*rows a"],
    weight: Float[Tensor, "b a"],
    bias: Float[Tensor, " b"] | None = None,
    *,
    gelu: bool = False,
) -> Float[Tensor, "*rows b"]:
    """x W^T + b, or its (exact) GELU, by oneDNN, without a gradient."""
    activation, kind = ("gelu", "none") if gelu else ("none", "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], kind)


def check_compiler(device: torch.device) -> None:
    """Refuse to compile for a CPU where nothing compiles C++; for a GPU, torch itself says what is missing.

    Raises:
        ConfigError: with what was looked for.
    """
    if device.type != "cpu":
        return
    from torch._inductor import config, cpp_builder

    try:
        cpp_builder.get_cpp_compiler()
    except RuntimeError:
        tried = [name for name in config.cpp.cxx if name]
        raise ConfigError(
            f"torch.compile needs a C++ compiler, and does not find {' or '.join(tried)}",
            remedy="install g++, or name another compiler in the environment variable CXX; or leave compile away",
        ) from None


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """An island in which autocast does nothing: it would turn even products of float32 into bfloat16."""
    return torch.autocast(tensor.device.type, enabled=False)


def adamw(groups: list[dict[str, Any]], lr: float) -> optim.AdamW:
    """AdamW, in one kernel for all tensors of a group where their device has such a kernel."""
    tensors = [tensor for group in groups for tensor in group["params"]]
    return optim.AdamW(groups, lr=lr, fused=all(has_fused_adamw(tensor.device) for tensor in tensors) or None)


def has_fused_adamw(device: torch.device) -> bool:
    """Whether one kernel updates all tensors there, and it pays.

    Torch has such a kernel for CPUs, too, whose results differ in the last bits. But there is nothing to gain there: a
    method has a hundred thousand numbers, and nothing has to be launched.
    """
    return device.type in ("cuda", "xpu")


def copies_ahead(device: torch.device) -> bool:
    """Whether batches can be copied there while it computes, which takes pinned memory."""
    return device.type == "cuda"


def loader_options(device: torch.device) -> dict[str, Any]:
    """Arguments of a `DataLoader` whose batches go to a device."""
    return {"pin_memory": copies_ahead(device)}


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. From pinned memory this returns before the copy is done; what computes there waits."""
    return tensor.to(device, non_blocking=copies_ahead(device))


def computes_on_threads(device: torch.device) -> bool:
    """Whether torch's threads compute there, so that several passes at the same time can share them."""
    return device.type == "cpu"


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was asked for: before a clock is read."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
