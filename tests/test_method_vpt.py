"""VPT and linear probing against plain tensor code, and against published parameter counts and initial values."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from plain_vit import deep, feature, shallow
from viapt.methods.base import PromptMethod, init_bound
from viapt.methods.linear import Linear
from viapt.methods.vpt import VPTDeep, VPTShallow
from viapt.model import PromptedClassifier
from viapt.testing.subject import Subject, tiny_vit

P = 3


def outputs_and_gradients(model: PromptedClassifier, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and gradients of their weighted sum."""
    logits = model(images)
    weights = torch.linspace(-1, 2, logits.numel(), dtype=logits.dtype).view_as(logits)
    model.zero_grad()
    (logits * weights).sum().backward()
    return logits, {name: p.grad.clone() for name, p in model.learnable().items() if p.grad is not None}


@pytest.mark.parametrize("method", [VPTShallow, VPTDeep, Linear])
@pytest.mark.parametrize("training", [False, True])
def test_equals_plain_vpt(method: type[PromptMethod], training: bool) -> None:
    subject = Subject(method, tiny_vit(), **({} if method is Linear else {"num_prompts": P}))
    model, images = subject.model().double().train(training), subject.task(4)[0].double()
    found, found_gradients = outputs_and_gradients(model, images)

    weights = {name: tensor.detach() for name, tensor in model.backbone.vit.state_dict().items()}
    head = {name: p.detach().clone().requires_grad_() for name, p in model.head.named_parameters()}
    enter, prompts = None, None
    if method is not Linear:
        prompts = model.method.prompts.detach().clone().requires_grad_()
        enter = (shallow if method is VPTShallow else deep)(prompts, len(images))
    expected = feature(weights, images, heads=2, enter=enter) @ head["weight"].T + head["bias"]
    (expected * torch.linspace(-1, 2, expected.numel(), dtype=expected.dtype).view_as(expected)).sum().backward()

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert set(found_gradients) == {"head.weight", "head.bias"} | ({"method.prompts"} if prompts is not None else set())
    torch.testing.assert_close(found_gradients["head.weight"], head["weight"].grad, rtol=0, atol=1e-11)
    if prompts is not None:
        assert prompts.grad is not None and prompts.grad.abs().max() > 1e-3
        torch.testing.assert_close(found_gradients["method.prompts"], prompts.grad, rtol=0, atol=1e-11)


def learnable(method: PromptMethod, classes: int) -> int:
    head = nn.Linear(768, classes)
    return sum(p.numel() for part in (method, head) for p in part.parameters())


@pytest.mark.parametrize(("p", "classes", "count"), [(100, 6, 926_214), (100, 10, 929_290), (5, 397, 351_373)])
def test_published_parameter_counts_of_vpt_deep(p: int, classes: int, count: int) -> None:
    assert learnable(VPTDeep(768, 12, (16, 16), num_prompts=p), classes) == count


@pytest.mark.parametrize(("p", "classes"), [(100, 6), (5, 397)])
def test_parameter_count_of_vpt_shallow(p: int, classes: int) -> None:
    assert learnable(VPTShallow(768, 12, (16, 16), num_prompts=p), classes) == p * 768 + 769 * classes


def test_linear_probing_learns_the_head_alone() -> None:
    assert learnable(Linear(768, 12, (16, 16)), 10) == 7690


def test_published_backbone_size() -> None:
    with torch.device("meta"):
        vit = timm.create_model("vit_base_patch16_224", num_classes=0)
    assert sum(p.numel() for p in vit.parameters()) == 85_798_656


@pytest.mark.parametrize(
    ("dim", "patch", "bound"),
    [(768, 16, 0.0625), (1024, 16, 0.057864), (1280, 14, 0.056674), (768, 32, 0.039528)],
    ids=["B/16", "L/16", "H/14", "B/32"],
)
def test_published_bounds_of_the_initial_values(dim: int, patch: int, bound: float) -> None:
    assert init_bound(dim, (patch, patch)) == pytest.approx(bound, abs=5e-7)


@pytest.mark.parametrize("method", [VPTShallow, VPTDeep])
def test_initial_values_are_uniform_within_the_bound(method: type[PromptMethod]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        prompts = method(768, 12, (16, 16), num_prompts=50).prompts.detach()
    assert prompts.abs().max() <= 0.0625
    assert prompts.abs().max() > 0.0624
    assert prompts.std().item() == pytest.approx(0.0625 / 3**0.5, rel=0.02)
