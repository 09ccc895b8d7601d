"""VPT's options, VFPT and E2VPT against their equations in plain tensor code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plain_vit import deep, embed, feature, gelu, layer_norm, shallow
from viapt.errors import BackboneError, ConfigError
from viapt.methods import create_method
from viapt.methods.e2vpt import E2VPT
from viapt.methods.vpt import VPTDeep, VPTShallow, kept
from viapt.model import PromptedClassifier
from viapt.pruning import all_but_least, importance, masked_of, prune
from viapt.testing import CHECKS, Subject, check_prompt_method
from viapt.testing.subject import tiny_vit

P = 4
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("vpt-deep", {"projected_dim": 5}),
    ("vpt-deep", {"shared": True}),
    ("vpt-deep", {"dropout": 0.3, "projected_dim": 5, "shared": True}),
    ("vpt-shallow", {"projected_dim": 5, "dropout": 0.3}),
    ("vfpt", {"fourier_axes": "hidden", "fourier_share": 1.0}),
    ("vfpt", {"fourier_share": 0.0}),
    ("e2vpt", {"shared_key_value": False, "segments": 3}),
]


def weights_of(model: PromptedClassifier) -> dict[str, Tensor]:
    state = model.backbone.state_dict()
    return {name.removeprefix("vit.").replace(".module", ""): tensor.detach() for name, tensor in state.items()}


def model_of(name: str, **options: Any) -> tuple[PromptedClassifier, Tensor]:
    subject = Subject(name, tiny_vit(), num_prompts=P, **options)
    return subject.model().double(), subject.task(4)[0].double()


def found(model: PromptedClassifier, images: Tensor, noise: Tensor | None = None) -> Tensor:
    return model.run(model.embed(images), noise)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_options_keep_the_contract(name: str, options: dict[str, Any]) -> None:
    names = ["shapes", "configuration", "gradients", "artifact_round_trip", "shortcuts", "same_seed_same_losses"]
    names += ["evaluation_is_deterministic", "checkpointing", "gradcheck", "copies"]
    check_prompt_method(name_class(name), tiny_vit(), checks={n: CHECKS[n] for n in names}, num_prompts=P, **options)


def name_class(name: str) -> Any:
    return type(create_method(name, 24, 3, (8, 8)))


@pytest.mark.parametrize("shared", [False, True])
def test_projected_and_shared_prompts(shared: bool) -> None:
    model, images = model_of("vpt-deep", projected_dim=5, shared=shared)
    state = {name: tensor.detach() for name, tensor in model.method.named_parameters()}
    assert state["prompts"].shape == ((P, 5) if shared else (3, P, 5))
    full = state["prompts"] @ state["projection.weight"].T + state["projection.bias"]
    enter = deep(full.expand(3, -1, -1) if shared else full, len(images))
    expected = feature(weights_of(model), images, heads=2, enter=enter)
    torch.testing.assert_close(found(model, images), expected, rtol=0, atol=1e-12)


def test_a_projection_starts_as_the_papers() -> None:
    """Kaiming normal by fan out: std sqrt(2 / dim); prompts within the bound of h numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = VPTDeep(768, 12, (16, 16), projected_dim=100)
    assert method.projection.weight.std().item() == pytest.approx((2 / 768) ** 0.5, rel=0.02)
    assert 0.99 < method.prompts.abs().max().item() / (6 / (3 * 256 + 100)) ** 0.5 <= 1


@pytest.mark.parametrize("method", [VPTDeep, VPTShallow])
def test_dropout_leaves_out_for_each_image_anew_in_training_alone(method: Any) -> None:
    model, images = model_of(method.name, dropout=0.25)
    without, _ = model_of(method.name)
    torch.testing.assert_close(found(model, images), found(without, images), rtol=0, atol=0)
    model.train()
    noise = model.draw_noise(4, seed=5)
    assert noise.shape == (4, P * (3 if method is VPTDeep else 1), 24)
    threshold = torch.distributions.Normal(0, 1).icdf(torch.tensor(0.25, dtype=torch.float64))
    factors = (noise > threshold).double() / 0.75
    prompts = model.method.prompts.detach()
    dropped = [prompts[i] * factors[:, i * P : (i + 1) * P] for i in range(3)] if method is VPTDeep else None

    def enter(i: int, left: Tensor | None) -> Tensor:
        if dropped is not None:
            return dropped[i]
        return prompts * factors if left is None else left

    expected = feature(weights_of(model), images, heads=2, enter=enter)
    torch.testing.assert_close(found(model, images, noise), expected, rtol=0, atol=1e-12)
    model.eval()
    torch.testing.assert_close(found(model, images), found(without, images), rtol=0, atol=0)


def test_dropout_keeps_its_share() -> None:
    noise = torch.randn(1, 1000, 300, generator=torch.Generator().manual_seed(0))
    factors = kept(noise, 0.3)
    assert (factors == 0).float().mean().item() == pytest.approx(0.3, abs=0.005)
    assert factors.mean().item() == pytest.approx(1, abs=0.01)


def test_shallow_with_a_projection() -> None:
    model, images = model_of("vpt-shallow", projected_dim=5)
    full = model.method.projection(model.method.prompts).detach()
    expected = feature(weights_of(model), images, heads=2, enter=shallow(full, len(images)))
    torch.testing.assert_close(found(model, images), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("axes", "dims"), [("both", (-2, -1)), ("hidden", (-1,)), ("sequence", (-2,))])
@pytest.mark.parametrize("share", [0.8, 1.0])
def test_vfpt_transforms_a_share_of_the_prompts(axes: Any, dims: tuple[int, ...], share: float) -> None:
    model, images = model_of("vfpt", fourier_share=share, fourier_axes=axes)
    own = model.method.prompts.detach().clone().requires_grad_()
    f = int(share * P)
    entering = torch.cat([torch.fft.fftn(own[:, :f], dim=dims).real, own[:, f:]], dim=1)
    expected = feature(weights_of(model), images, heads=2, enter=deep(entering, len(images)))
    result = found(model, images)
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-5)  # cosines are kept in float32
    mixed = torch.randn(result.shape, generator=torch.Generator().manual_seed(0), dtype=result.dtype)
    (result * mixed).sum().backward()
    (expected * mixed).sum().backward()
    torch.testing.assert_close(model.method.prompts.grad, own.grad, rtol=1e-4, atol=1e-4)
    assert share == 1.0 or f == 3


def e2vpt_feature(model: PromptedClassifier, images: Tensor, mask: Tensor) -> Tensor:
    """The equations, block by block."""
    w = weights_of(model)
    own = dict(model.method.named_parameters())
    cls, patches = embed(w, images)
    for i in range(3):
        prompts = (own["prompts"][i] * mask).expand(len(images), -1, -1)
        x = torch.cat([cls, prompts, patches], dim=1)

        def linear(name: str, z: Tensor, i: int = i) -> Tensor:
            return z @ w[f"blocks.{i}.{name}.weight"].T + w[f"blocks.{i}.{name}.bias"]

        def norm(name: str, z: Tensor, i: int = i) -> Tensor:
            return layer_norm(z, w[f"blocks.{i}.{name}.weight"], w[f"blocks.{i}.{name}.bias"])

        q, k, v = linear("attn.qkv", norm("norm1", x)).split(24, dim=-1)
        extra = own[f"attentions.{i}.prompts"]
        k = torch.cat([k, extra[0].expand(len(images), -1, -1)], dim=1)
        v = torch.cat([v, extra[-1].expand(len(images), -1, -1)], dim=1)
        heads = [(q[..., h] @ k[..., h].mT / 12**0.5).softmax(-1) @ v[..., h] for h in (slice(0, 12), slice(12, 24))]
        x = x + linear("attn.proj", torch.cat(heads, dim=-1))
        x = x + linear("mlp.fc2", gelu(linear("mlp.fc1", norm("norm2", x))))
        cls, patches = x[:, :1], x[:, 1 + P :]
    return layer_norm(cls[:, 0], w["norm.weight"], w["norm.bias"])


@pytest.mark.parametrize("shared", [True, False])
def test_keys_and_values_of_e2vpt_start_as_in_the_authors_code(shared: bool) -> None:
    """`kaiming_uniform_` of a tensor (heads, prompts, 64), with a leaky ReLU's slope of 0."""
    torch.manual_seed(0)
    method = E2VPT(768, 12, (16, 16), shared_key_value=shared)
    theirs = nn.init.kaiming_uniform_(torch.empty(12, method.key_value_prompts, 64), a=0)
    ours = torch.stack([attention.prompts for attention in method.attentions])
    assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.01)
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.03)


@pytest.mark.parametrize("shared", [True, False])
def test_e2vpt_is_its_equations(shared: bool) -> None:
    model, images = model_of("e2vpt", shared_key_value=shared, segments=3)
    method = model.method
    method.token_mask[1] = 0
    method.segment_mask[2, 1] = 0
    mask = torch.ones(P, 24, dtype=torch.float64)
    mask[1], mask[2, 8:16] = 0, 0
    expected, result = e2vpt_feature(model, images, mask), found(model, images)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    mixed = torch.randn(result.shape, generator=torch.Generator().manual_seed(0), dtype=result.dtype)
    names = list(dict(method.named_parameters()))
    pairs = [torch.autograd.grad((value * mixed).sum(), list(method.parameters())) for value in (result, expected)]
    for name, one, other in zip(names, *pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11, msg=name)
        assert one.abs().max() > 0


class Pairs(torch.utils.data.Dataset[tuple[Tensor, int]]):
    def __init__(self, count: int = 5) -> None:
        images, labels = Subject("linear", tiny_vit()).task(count)
        self.items = list(zip(images, labels.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.items[index]


def test_importance_is_the_mean_absolute_derivative() -> None:
    """By central differences of the loss of each image."""
    subject = Subject(E2VPT, tiny_vit(), num_prompts=2, segments=2)
    model = subject.trained().double()
    data = Pairs()
    tokens, segments = importance(model, [(image.double(), label) for image, label in data.items], batch_size=2)
    losses = nn.CrossEntropyLoss(reduction="none")
    images, labels = torch.stack([image for image, _ in data.items]).double(), torch.tensor([y for _, y in data.items])

    def slope(mask: Tensor, index: tuple[int, ...]) -> float:
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                mask[index] += sign * 1e-5
                values.append(losses(model(images), labels))
                mask[index] -= sign * 1e-5
        return ((values[0] - values[1]) / 2e-5).abs().mean().item()

    for k in range(2):
        assert tokens[k].item() == pytest.approx(slope(model.method.token_mask, (k,)), rel=1e-5)
        for r in range(2):
            assert segments[k, r].item() == pytest.approx(slope(model.method.segment_mask, (k, r)), rel=1e-5)


def test_pruning_masks_the_least_important_and_rewinds() -> None:
    subject = Subject(E2VPT, tiny_vit(), num_prompts=4, segments=4)
    trained, rewound, data = subject.trained(4), subject.model(), Pairs()
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    prune(trained, rewound, data, tokens=0.5, segments=0.3)
    tokens, segments = importance(trained, data)
    assert set(rewound.method.token_mask.argsort()[:2].tolist()) == set(tokens.argsort()[:2].tolist())
    assert rewound.method.token_mask.sum() == 2 and rewound.method.segment_mask.sum(1).tolist() == [3.0] * 4
    assert rewound.method.segment_mask.argmin(1).tolist() == segments.argmin(1).tolist()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())
    torch.testing.assert_close(rewound.method.prompts, subject.model().method.prompts, rtol=0, atol=0)
    images, labels = subject.task()
    rewound.train()(images, labels)[0].backward()
    gone = rewound.method.token_mask == 0
    assert not rewound.method.prompts.grad[:, gone].any() and rewound.method.prompts.grad[:, ~gone].any()


def test_nothing_is_pruned_by_default() -> None:
    assert all_but_least(torch.tensor([3.0, 1.0, 2.0]), 0.0).tolist() == [1, 1, 1]
    assert all_but_least(torch.tensor([3.0, 1.0, 2.0]), 0.99).tolist() == [1, 0, 0]
    assert all(masked_of(k / n, n) == k for n in range(1, 100) for k in range(n))
    assert masked_of(0.7, 90) == 63 and masked_of(0.699, 90) == 62


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vpt-deep", {"projected_dim": 0}),
        ("vpt-deep", {"num_prompts": 0}),
        ("vpt-shallow", {"num_prompts": -1}),
        ("vfpt", {"num_prompts": 0}),
        ("vpt-shallow", {"dropout": 1.0}),
        ("vpt-deep", {"dropout": -0.1}),
        ("vfpt", {"fourier_share": 1.5}),
        ("e2vpt", {"segments": 5}),
        ("e2vpt", {"key_value_prompts": 0}),
    ],
)
def test_impossible_settings_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        create_method(name, 24, 3, (8, 8), **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vpt-deep", {"num_prompts": 0, "projected_dim": 0, "dropout": 1.0, "initial_prompts": "tokens"}),
        ("vpt-shallow", {"num_prompts": 0, "dropout": -1.0}),
        ("vfpt", {"num_prompts": 0, "fourier_share": 1.5}),
        ("e2vpt", {"num_prompts": 0, "key_value_prompts": 0, "segments": 5}),
    ],
)
def test_all_impossible_settings_are_said(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^Not possible: ") as caught:
        create_method(name, 24, 3, (8, 8), **options)
    assert all(f"{key} = {value!r}" in str(caught.value) for key, value in options.items())


def test_pruning_refuses_what_makes_no_sense() -> None:
    one, other = Subject(E2VPT, tiny_vit()).model(), Subject(E2VPT, tiny_vit(), segments=4).model()
    with pytest.raises(ConfigError, match="e2vpt"):
        prune(Subject("linear", tiny_vit()).model(), one, Pairs(), tokens=0.5, segments=0.5)
    with pytest.raises(ConfigError, match="segments"):
        prune(one, other, Pairs(), tokens=0.5, segments=0.5)
    with pytest.raises(ConfigError, match="tokens = 1"):
        prune(one, one, Pairs(), tokens=1.0, segments=0.5)
    with pytest.raises(ConfigError, match=r"tokens = 1\.0, segments = -0\.5"):
        prune(one, one, Pairs(), tokens=1.0, segments=-0.5)


def test_attention_of_another_kind_is_named() -> None:
    from timm.models.vision_transformer import ParallelScalingBlock

    with pytest.raises(BackboneError, match="ParallelScalingBlock"):
        Subject("e2vpt", tiny_vit(block_fn=ParallelScalingBlock)).model()
