"""What depends on the device is in one module, and right for devices that are not at hand: their tensors are faked."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.data import DataLoader

import viapt.device
import viapt.inference
from training_cases import quiet, tiny_data, tiny_images, tiny_model
from viapt.device import (
    adamw,
    default_device,
    describe_device,
    prefers_plain_attention,
    prepare_process,
    send,
    synchronise,
    without_autocast,
)
from viapt.evaluation import evaluate, load
from viapt.inference import class_probabilities
from viapt.model import PromptedClassifier

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PACKAGE = Path(__file__).resolve().parents[1] / "src" / "viapt"
SPECIFIC = {"autocast", "cuda", "cudnn", "is_cuda", "is_pinned", "mkldnn", "mps", "non_blocking", "pin_memory", "xpu"}
SPECIFIC |= {"allow_tf32", "fp32_precision", "fused", "mallopt", "set_float32_matmul_precision", "synchronize"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_one_module_knows_devices(path: Path) -> None:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.keyword):
            found.add(node.arg)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value.partition(":")[0])
    assert (SPECIFIC & found <= set()) or path.name == "device.py", SPECIFIC & found
    if path.name == "device.py":
        assert found >= {"autocast", "cuda", "pin_memory", "non_blocking", "fused", "synchronize"}  # still what to find


@pytest.mark.parametrize("gpu", [False, True])
def test_the_device_is_accelerates(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    theirs = PartialState.default_device.fget(object())  # type: ignore[attr-defined]
    assert default_device() == theirs == (CUDA if gpu else CPU)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert default_device() == CPU


def test_devices_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"the GPU {device.index}")
    assert describe_device(torch.device("cuda:1")) == "the GPU 1"
    assert describe_device(torch.device("mps")) == "mps"
    monkeypatch.setattr(viapt.device, "processor", lambda: "a CPU")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    for threads, words in ((1, "a CPU, AVX2, 1 thread"), (12, "a CPU, AVX2, 12 threads")):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        assert describe_device(CPU) == words


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux tells what the processor is called")
def test_the_processor_is_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    name = viapt.device.processor()
    assert name and (name in Path("/proc/cpuinfo").read_text() or name == os.uname().machine)
    monkeypatch.setattr(Path, "read_text", mock.Mock(side_effect=FileNotFoundError))
    assert viapt.device.processor()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_attention_is_for_bfloat16_on_cpus(device: str, dtype: torch.dtype) -> None:
    with FakeTensorMode():
        tensor = torch.empty(1, 2, 3, 4, device=device, dtype=dtype)
    assert prefers_plain_attention(tensor) == (device == "cpu" and dtype == torch.bfloat16)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_island_is_free_of_autocast(device: str) -> None:
    with FakeTensorMode():
        tensor = torch.empty(1, device=device)
    torch.set_autocast_enabled(device, True)
    try:
        with without_autocast(tensor):
            assert not torch.is_autocast_enabled(device)
        assert torch.is_autocast_enabled(device)
    finally:
        torch.set_autocast_enabled(device, False)
        torch.clear_autocast_cache()


def test_convolutions_on_gpus_are_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    prepare_process(CPU)
    assert torch.backends.cudnn.allow_tf32
    prepare_process(CUDA)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32  # torch's own choice for products


def test_gpus_update_all_tensors_at_once() -> None:
    for device, fused in (("cpu", None), ("cuda", True)):
        with FakeTensorMode():
            parameters = [nn.Parameter(torch.empty(3, device=device)) for _ in range(2)]
            groups = [{"params": [p], "weight_decay": decay} for p, decay in zip(parameters, (0.1, 0.0), strict=True)]
        optimizer = adamw(groups, 0.01)
        assert optimizer.defaults["fused"] is fused
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_the_fused_update_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, which has the kernel, too."""
    models = [tiny_model() for _ in range(2)]
    quiet(models[0], tiny_data(), weight_decay=0.1)
    monkeypatch.setattr(viapt.device, "has_fused_adamw", lambda device: True)
    with mock.patch.object(torch, "_fused_adamw_", wraps=torch._fused_adamw_) as kernel:
        quiet(models[1], tiny_data(), weight_decay=0.1)
    assert kernel.call_count > 0
    for name, tensor in models[0].learnable().items():
        torch.testing.assert_close(models[1].learnable()[name], tensor, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("device", "ahead"), [(CPU, False), (CUDA, True)])
def test_batches_for_gpus_are_pinned_and_copied_ahead(device: torch.device, ahead: bool) -> None:
    loader = load(tiny_data(), 0, device, batch_size=4)
    assert loader.pin_memory is ahead
    calls: list[Any] = []

    class Recorded(Tensor):
        def to(self, *args: Any, **options: Any) -> Any:
            calls.append((args, options))
            return self

    send(torch.zeros(1).as_subclass(Recorded), device)
    assert calls == [((device,), {"non_blocking": ahead})]


def test_training_and_evaluation_ask_for_such_loaders(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Any] = []
    original = DataLoader.__init__

    def init(self: Any, *args: Any, **options: Any) -> None:
        pinned.append(options.pop("pin_memory", None))
        original(self, *args, **options)

    monkeypatch.setattr(DataLoader, "__init__", init)
    monkeypatch.setattr(viapt.device, "copies_ahead", lambda device: True)
    evaluate(tiny_model(), tiny_data())
    assert pinned == [True]
    monkeypatch.setattr(Accelerator, "prepare_data_loader", lambda self, loader, **_: loader)
    monkeypatch.setattr("viapt.recipe.EpochBatches.set_epoch", lambda self, epoch: None)
    monkeypatch.setattr(DataLoader, "set_epoch", lambda self, epoch: None, raising=False)
    quiet(tiny_model("linear"), tiny_data(), epochs=1)
    assert pinned == [True, True]


def test_clocks_wait_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    wait = mock.Mock()
    monkeypatch.setattr(torch.accelerator, "synchronize", wait)
    synchronise(CPU)
    wait.assert_not_called()
    synchronise(CUDA)
    wait.assert_called_once_with(CUDA)


class Answer(nn.Module):
    """What a model computes of images, as a module whose tensors can be exchanged."""

    def __init__(self, model: PromptedClassifier, policy: Any) -> None:
        super().__init__()
        self.model, self.policy = model, policy

    def forward(self, images: Tensor, labels: Tensor) -> Any:
        if self.model.training:
            return self.model(images, labels)
        return class_probabilities(self.model, images, self.policy, 3, 0)


@pytest.mark.parametrize("method", ["viapt", "vpt-deep", "vpt-shallow", "linear"])
@pytest.mark.parametrize("policy", ["training", "mean", "fixed", "multi"])
def test_nothing_is_left_on_the_cpu(method: str, policy: str) -> None:
    """The whole way on a GPU, but for the numbers: an operation on tensors of two devices would raise."""
    model = tiny_model(method, **({"reduction": "random", "calibrate_carry": False} if method == "viapt" else {}))
    module = Answer(model.to_precision(torch.bfloat16).train(policy == "training"), policy)
    faking = FakeTensorMode(allow_non_fake_inputs=True)

    def on_gpu(tensor: Tensor) -> Tensor:
        return faking.from_tensor(tensor.detach()).to(CUDA)

    with faking, torch.no_grad():
        state = {name: on_gpu(tensor) for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
        images, labels = faking.from_tensor(tiny_images(4)), torch.zeros(4, dtype=torch.long, device=CUDA)
        found = functional_call(module, state, (send(images, CUDA), labels))
    tensors = [tensor for tensor in found[:2] if tensor is not None]
    assert {tensor.device.type for tensor in tensors} == {"cuda"}
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


PAGES = """
import ctypes, resource, sys, torch
import viapt.device
libc, size = ctypes.CDLL(None), 2**25
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
if sys.argv[1] == "kept":
    viapt.device.prepare_process(torch.device("cpu"))
faults()
print(max(faults() for _ in range(3)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_kept_unless_told_otherwise() -> None:
    """32 MB are allocated again and again: kept, none of their pages has to be asked for a second time."""

    def faults(mode: str, **variables: str) -> int:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "VIAPT_"))} | variables
        command = [sys.executable, "-c", PAGES, mode]
        return int(subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout)

    usual = faults("as usual")
    assert usual >= 16  # 2 MB each, if the system gives pages of that size
    assert faults("kept") <= usual / 8
    assert faults("kept", VIAPT_KEEP_MEMORY="0") >= usual / 2
    assert faults("kept", MALLOC_ARENA_MAX="4") >= usual / 2


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    for libc in ("", "musl"):
        monkeypatch.setattr("platform.libc_ver", lambda libc=libc: (libc, ""))
        monkeypatch.setattr("ctypes.CDLL", mock.Mock(side_effect=AssertionError))
        assert viapt.device.keep_freed_memory.__wrapped__() is False


def test_training_and_inference_prepare_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for module in ("training", "inference"):
        monkeypatch.setattr(f"viapt.{module}.prepare_process", lambda device, m=module: asked.append(f"{m} {device}"))
    quiet(tiny_model(), tiny_data(), epochs=1)
    assert asked == ["training cpu", "inference cpu"]  # which measures its rounds at the end
    tiny_model().predict(tiny_images(2))
    evaluate(tiny_model(), tiny_data())
    assert asked == ["training cpu", *["inference cpu"] * 3]
