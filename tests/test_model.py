"""The loop, the loss, the noise and the precision of a prompted classifier."""

from __future__ import annotations

from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from contract_cases import THOROUGH
from viapt.errors import ConfigError
from viapt.methods.linear import Linear
from viapt.methods.viapt import ViaPT
from viapt.methods.vpt import VPTDeep
from viapt.model import PromptedClassifier, check_classes
from viapt.testing.subject import CLASSES, Subject, tiny_backbones, tiny_vit


def subject(**options: Any) -> Subject:
    return Subject(ViaPT, tiny_vit(), **({"num_prompts": 4, "num_instance_prompts": 2} | options))


@pytest.mark.parametrize("name", [name for name in THOROUGH if name not in ("siglip", "average")])
def test_without_prompts_the_loop_is_timms_forward_bit_for_bit(name: str) -> None:
    model = Subject(Linear, tiny_backbones()[name]()).model()
    images = torch.randn(3, 3, *model.backbone.preprocessing.image_size, generator=torch.Generator().manual_seed(0))
    expected = model.head(model.backbone.vit(images))
    torch.testing.assert_close(model(images), expected)
    model.backbone.shortcuts = False
    assert torch.equal(model(images), expected)


def watch(model: PromptedClassifier, name: str) -> list[torch.Tensor]:
    """The tokens that a method of the backbone is given, call by call."""
    seen: list[torch.Tensor] = []
    method = getattr(model.backbone, name)
    setattr(
        model.backbone, name, lambda *given: seen.append(given[-2] if name == "block" else given[0]) or method(*given)
    )
    return seen


@pytest.mark.parametrize(("method", "recorded"), [(Linear, 0), (VPTDeep, 1), (ViaPT, 1)])
def test_nothing_is_recorded_before_something_learnable_enters(method: type[Any], recorded: int) -> None:
    """Tensors that autograd keeps in the embedding, and in the first block's query, key and value of image tokens."""
    options = {Linear: {}, VPTDeep: {"num_prompts": 4}, ViaPT: {"num_prompts": 4, "num_instance_prompts": 2}}[method]
    model = Subject(method, tiny_vit(), **options).model().train()
    images = model.backbone.vit.patch_embed.proj.weight.new_ones(2, 3, 32, 32)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        tokens = model.embed(images)
        assert not kept and not tokens.patches.requires_grad and not tokens.prefix.requires_grad
        features = model.run(tokens, None)
    assert features.requires_grad == bool(recorded) and bool(kept) == bool(recorded)
    normalised = model.backbone.vit.blocks[0].norm1(torch.cat([tokens.prefix, tokens.patches], dim=1))
    assert not any(x.shape == normalised.shape and torch.equal(x, normalised) for x in kept)


def test_prompts_follow_the_patches_and_are_not_pooled() -> None:
    model = Subject(VPTDeep, tiny_backbones()["dinov2"](), num_prompts=5).model()
    model.backbone.shortcuts = False
    entered, pooled = watch(model, "block"), watch(model, "pool")
    model(torch.randn(2, 3, 32, 32))
    assert len(entered) == 3
    for layer, tokens in enumerate(entered):
        assert tokens.shape[1] == 3 + 16 + 5
        assert torch.equal(tokens[0, -5:], model.method.prompts[layer])
    assert pooled[0].shape[1] == 3 + 16


def test_the_loss_is_cross_entropy_and_the_penalty() -> None:
    plain, penalised = subject().model(), subject(kl_weight=0.5).model()
    images, labels = subject().task()
    loss, logits = plain(images, labels)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels))
    with_penalty, same_logits = penalised(images, labels)
    _, patches, grid, _ = penalised.backbone.embed(images, 4)
    assert torch.equal(same_logits, logits)
    torch.testing.assert_close(with_penalty, loss + penalised.method.penalty(patches, grid))
    assert with_penalty > loss


def test_training_samples_and_evaluation_does_not() -> None:
    model, (images, _) = subject(initial_std=1.0).model(), subject().task()
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))
    fixed = model.eval().draw_noise(len(images), seed=3)
    assert torch.equal(model(images, noise=fixed), model(images, noise=fixed))
    assert not torch.equal(model(images, noise=fixed), model(images))


@given(seed=st.integers(0, 2**40), index=st.integers(0, 2**20), batch=st.integers(1, 4))
def test_noise_is_a_function_of_seed_and_index(seed: int, index: int, batch: int) -> None:
    model = NOISY
    numbers = torch.get_rng_state()
    noise = model.draw_noise(batch, seed=seed, index=index)
    assert noise.shape == (batch, 2, 24)
    assert torch.equal(noise, model.draw_noise(batch, seed=seed, index=index))
    assert not torch.equal(noise, model.draw_noise(batch, seed=seed, index=index + 1))
    assert not torch.equal(noise, model.draw_noise(batch, seed=seed + 1, index=index))
    assert torch.equal(torch.get_rng_state(), numbers)


NOISY = subject().model()


def test_noise_is_standard_normal() -> None:
    noise = NOISY.draw_noise(2000, seed=0)
    assert noise.mean().abs() < 0.02
    assert noise.std().item() == pytest.approx(1, abs=0.02)


def test_only_the_backbone_changes_precision() -> None:
    model, (images, labels) = subject().model(), subject().task()
    exact = model(images)
    assert model.to_precision(torch.bfloat16) is model
    assert {p.dtype for p in model.backbone.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.learnable().values()} == {torch.float32}
    logits = model(images)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, exact)
    torch.testing.assert_close(logits, exact, rtol=0, atol=0.05 * exact.detach().abs().max().item())
    loss, _ = model.train()(images, labels)
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.learnable().values())


def test_frozen_means_frozen_whatever_train_is_called_with() -> None:
    """Dropout, stochastic depth and patch dropout of the backbone stay off."""
    backbone = tiny_vit(
        proj_drop_rate=0.5, attn_drop_rate=0.5, pos_drop_rate=0.5, drop_path_rate=0.5, patch_drop_rate=0.5
    )
    model, (images, _) = Subject(VPTDeep, backbone).model(), subject().task()
    evaluated = model(images)
    assert torch.equal(model.train()(images), evaluated)
    assert model.training and not any(module.training for module in model.backbone.modules())


def test_counting(capsys: pytest.CaptureFixture[str]) -> None:
    model = Subject(VPTDeep, tiny_vit(), num_prompts=2).model()
    counts = model.parameter_counts()
    assert counts["method"] == 3 * 2 * 24
    assert counts["head"] == 24 * 3 + 3
    assert counts["method"] + counts["head"] == sum(p.numel() for p in model.learnable().values())
    assert set(model.learnable()) == {"method.prompts", "head.weight", "head.bias"}
    model.print_trainable_parameters()
    total = sum(p.numel() for p in model.parameters())
    assert f"trainable params: 219 || all params: {total:,}" in capsys.readouterr().out


def test_loss_and_logits_agree_with_a_model_that_recomputes() -> None:
    model, (images, labels) = subject().model(), subject().task()
    loss, logits = model(images, labels)
    model.checkpointing = True
    again, same = model(images, labels)
    assert torch.equal(loss, again) and torch.equal(logits, same)


@pytest.mark.parametrize(
    ("classes", "words"),
    [(["one"], "at least two"), ([], "at least two"), (["a", 1], "strings"), (["a", "b", "a"], "twice: 'a'")],
)
def test_impossible_class_names(classes: list[Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_classes(classes)


def test_class_names_are_kept_as_they_are() -> None:
    names = ["mit Leerzeichen", "naïve", "a.b/c", "", "猫"]
    assert PromptedClassifier(tiny_vit(), Linear(24, 3, (8, 8)), names).classes == names
    assert subject().model().classes == list(CLASSES)


def test_shapes_are_checked_while_testing(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--jaxtyping-packages"):
        pytest.skip("run-time shape checks are installed by `make test` alone")
    with pytest.raises(jaxtyping.TypeCheckError):
        subject().model()(torch.zeros(2, 1, 32, 32))
