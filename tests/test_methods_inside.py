"""Methods inside the backbone: against their papers' equations in plain tensor code, peft and plain fine-tuning."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelScalingBlock
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from plain_vit import embed, feature, gelu, layer_norm
from viapt import create_model, fit, load, quantise
from viapt.backbones import timm_base
from viapt.backbones.timm_vit import TimmViT
from viapt.errors import BackboneError, ConfigError
from viapt.methods import METHODS, create_method
from viapt.methods.ssf import ScaleShift
from viapt.model import PromptedClassifier
from viapt.testing import CHECKS, Subject, check_prompt_method
from viapt.testing.subject import tiny_vit

INSIDE = sorted(name for name, method in METHODS.items() if method.inside)
Weights = dict[str, Tensor]


def moved(name: str, **options: Any) -> PromptedClassifier:
    """A model in float64 whose learned numbers are all away from where they started."""
    model = Subject(name, tiny_vit(), **options).model().double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in model.learnable().values():
            tensor.add_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype), alpha=0.2)
    return model


def agree(model: PromptedClassifier, expected: Callable[[Weights, Weights, Tensor], Tensor]) -> None:
    """Features, and gradients of their weighted sum with respect to all that the method learns."""
    images = Subject("linear", tiny_vit()).task(4)[0].double()
    own = {name: tensor.detach().clone().requires_grad_() for name, tensor in model.method.named_parameters()}
    reference = expected(frozen(model), own, images)
    found = model.run(model.embed(images), None)
    torch.testing.assert_close(found, reference, rtol=0, atol=1e-11)
    mixed = torch.randn(found.shape, generator=torch.Generator().manual_seed(0), dtype=found.dtype)
    (found * mixed).sum().backward()
    (reference * mixed).sum().backward()
    for name, tensor in model.method.named_parameters():
        gradient = own[name].grad
        assert gradient is not None and gradient.abs().max() > 0, name
        torch.testing.assert_close(tensor.grad, gradient, rtol=0, atol=1e-10, msg=name)


def frozen(model: PromptedClassifier) -> Weights:
    """The backbone's weights by timm's names, whatever stands between."""
    state = model.backbone.state_dict()
    return {name.removeprefix("vit.").replace(".module", ""): tensor.clone() for name, tensor in state.items()}


@pytest.mark.parametrize("options", [{}, {"rank": 2, "alpha": 1.0, "targets": "all"}, {"targets": "attention"}])
def test_lora_is_pefts(options: dict[str, Any]) -> None:
    model = moved("lora", **options)
    targets = {"all": ["qkv", "proj", "fc1", "fc2"], "attention": ["qkv", r"proj"]}.get(
        options.get("targets", "qkv"), ["qkv"]
    )
    within = rf".*blocks\.\d+\.(attn|mlp)\.({'|'.join(targets)})"
    config = peft.LoraConfig(r=options.get("rank", 4), lora_alpha=options.get("alpha", 8.0), target_modules=within)
    vit = tiny_vit().vit.double()
    reference = peft.inject_adapter_in_model(config, vit)
    theirs = {n: p for n, p in reference.named_parameters() if ".lora_" in n}
    assert len(theirs) == len(list(model.method.parameters()))

    def name_here(name: str) -> str:
        _, number, *path, kind, _, _ = name.split(".")
        return f"parts.{number}/{'/'.join(path)}.{'a' if kind == 'lora_A' else 'b'}.default.weight"

    def expected(_: Weights, own: Weights, images: Tensor) -> Tensor:
        given = {name: own[name_here(name)] for name in theirs}
        tokens = torch.func.functional_call(Features(reference), {f"vit.{n}": t for n, t in given.items()}, (images,))
        return tokens

    agree(model, expected)


class Features(nn.Module):
    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, images: Tensor) -> Tensor:
        return self.vit.forward_features(images)[:, 0]


def test_ssf_folds_into_the_weights() -> None:
    """Section 3.3: scale and shift behind a linear operation are another weight and bias."""

    def expected(w: Weights, own: Weights, images: Tensor) -> Tensor:
        folded = dict(w)
        for name in {name.rpartition(".")[0] for name in own}:
            path = name.removeprefix("parts.vit/").replace("/", ".")
            scale, shift = own[f"{name}.scale"], own[f"{name}.shift"]
            weight = w[f"{path}.weight"]
            folded[f"{path}.weight"] = scale.view(-1, *[1] * (weight.ndim - 1)) * weight
            folded[f"{path}.bias"] = scale * w[f"{path}.bias"] + shift
        return feature(folded, images, heads=2)

    model = moved("ssf")
    assert len(list(model.method.parts.children())) == 1 + 3 * 6 + 1
    agree(model, expected)


def test_ssf_starts_near_the_frozen_model() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        part = ScaleShift(nn.Linear(2, 20_000))
    for tensor, mean in ((part.scale, 1.0), (part.shift, 0.0)):
        assert tensor.mean().item() == pytest.approx(mean, abs=1e-3)
        assert tensor.std().item() == pytest.approx(0.02, rel=0.03)


def test_adaptformer_is_its_equations() -> None:
    def expected(w: Weights, own: Weights, images: Tensor) -> Tensor:
        x = torch.cat(embed(w, images), dim=1)
        for i in range(3):

            def part(name: str, i: int = i) -> tuple[Tensor, Tensor]:
                return w[f"blocks.{i}.{name}.weight"], w[f"blocks.{i}.{name}.bias"]

            z = layer_norm(x, *part("norm1"))
            weight, bias = part("attn.qkv")
            q, k, v = (z @ weight.T + bias).reshape(len(x), -1, 3, 2, 12).permute(2, 0, 3, 1, 4)
            seen = ((q @ k.mT / 12**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
            x = x + seen @ part("attn.proj")[0].T + part("attn.proj")[1]
            z = layer_norm(x, *part("norm2"))
            hidden = gelu(z @ part("mlp.fc1")[0].T + part("mlp.fc1")[1])
            branch = f"branches.{i}"
            down = torch.relu(z @ own[f"{branch}.down.weight"].T + own[f"{branch}.down.bias"])
            adapted = down @ own[f"{branch}.up.weight"].T + own[f"{branch}.up.bias"]
            x = x + hidden @ part("mlp.fc2")[0].T + part("mlp.fc2")[1] + 0.3 * adapted
        return layer_norm(x[:, 0], w["norm.weight"], w["norm.bias"])

    agree(moved("adaptformer", width=5, scale=0.3), expected)


@pytest.mark.parametrize(
    ("name", "options", "learned"),
    [
        ("full", {}, lambda name: True),
        ("bitfit", {}, lambda name: name.endswith("bias")),
        ("partial", {"blocks": 2}, lambda name: name.startswith(("blocks.1", "blocks.2", "norm"))),
    ],
)
def test_fine_tuning_is_plain_fine_tuning(name: str, options: Any, learned: Callable[[str], bool]) -> None:
    def expected(w: Weights, own: Weights, images: Tensor) -> Tensor:
        names = {name.removeprefix("own.vit/").replace("/", "."): tensor for name, tensor in own.items()}
        assert set(names) == {name for name in w if learned(name)}
        return feature(w | names, images, heads=2)

    agree(moved(name, **options), expected)


@pytest.mark.parametrize("shortcuts", [True, False])
def test_full_fine_tuning_takes_the_steps_of_plain_training(shortcuts: bool) -> None:
    subject = Subject("full", tiny_vit())
    images, labels = subject.task(6)
    model, images = subject.model().double().train(), images.double()
    model.backbone.shortcuts = shortcuts
    plain = tiny_vit().vit.double().requires_grad_(True)
    plain.reset_classifier(3)
    plain.head.load_state_dict(model.head.state_dict())
    losses = []
    for module, loss_of in (
        (model, lambda: model(images, labels)[0]),
        (plain, lambda: F.cross_entropy(plain(images), labels)),
    ):
        optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.02, momentum=0.9)
        losses.append([])
        for _ in range(4):
            optimizer.zero_grad()
            loss = loss_of()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0][3] != losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)


@pytest.mark.parametrize("name", INSIDE)
def test_a_backbone_serves_many_models(name: str) -> None:
    """None of them changes it, and each answers as on a backbone of its own."""
    shared, subject = tiny_vit(), Subject(name, tiny_vit())
    images, before = subject.task()[0], copy.deepcopy(shared.state_dict())
    alone = subject.trained()
    models = [subject.model(backbone=shared) for _ in range(2)]
    linear = PromptedClassifier(shared, create_method("linear", 24, 3, (8, 8)), ["a", "b"]).eval()
    expected = linear(images)
    models[0].load_state_dict(alone.state_dict())
    torch.testing.assert_close(models[0](images), alone(images), rtol=0, atol=0)
    torch.testing.assert_close(models[1](images), subject.model()(images), rtol=0, atol=0)
    torch.testing.assert_close(linear(images), expected, rtol=0, atol=0)
    assert {n: t.data_ptr() for n, t in shared.named_parameters()}.items() >= {
        n.replace(".module", ""): t.data_ptr() for n, t in models[0].backbone.named_parameters()
    }.items()
    del models, alone
    assert shared.state_dict().keys() == before.keys()
    for key, tensor in shared.state_dict().items():
        assert torch.equal(tensor, before[key]), key


@pytest.mark.parametrize("name", INSIDE)
def test_a_rounded_backbone_and_what_learns_in_float32(name: str, tmp_path: Path) -> None:
    vit = tiny_vit().vit
    model = create_model(vit, name, classes=3, precision="bfloat16")
    images, labels = Subject(name, tiny_vit()).task(6)
    exact = create_model(vit, name, classes=3, precision="float32").double()
    if not name.startswith("full"):
        torch.testing.assert_close(model(images).double(), exact(images.double()), rtol=0.1, atol=0.1)
    loss, _ = model.train()(images, labels)
    loss.backward()
    assert {p.dtype for p in model.learnable().values()} == {torch.float32}
    assert {p.grad.dtype for p in model.learnable().values() if p.grad is not None} == {torch.float32}
    assert model.backbone.dtype == torch.bfloat16
    torch.optim.SGD(model.learnable().values(), lr=0.01).step()
    model.eval().save_pretrained(tmp_path)
    assert torch.equal(load(tmp_path, backbone=vit)(images), model(images))


def test_copies_are_taken_before_rounding() -> None:
    vit = tiny_vit().vit
    exact = vit.get_parameter("blocks.0.mlp.fc1.weight").detach().clone()
    model = create_model(vit, "full", classes=3, precision="bfloat16")
    assert torch.equal(model.method.weights(0)["vit.blocks.0.mlp.fc1.weight"], exact)


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> TimmViT:
    """ViT-B/16, without memory."""
    monkeypatch.setattr(timm_base, "fingerprint", lambda _: "sha256:0")
    with torch.device("meta"):
        return TimmViT(timm.create_model("vit_base_patch16_224", num_classes=0))


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("full", {}, 85_798_656),
        ("partial", {}, 7_089_408),  # 7,087,872 of a block, 1,536 of the last norm
        ("bitfit", {}, 102_912),
        ("ssf", {}, 205_824),  # Table 2 of the paper: 0.28 M with a head for 100 classes
        ("adaptformer", {"width": 64}, 1_189_632),  # Table 1 of the paper: 1.26 M with a head for 100 classes
        ("lora", {"rank": 4}, 12 * 4 * (768 + 3 * 768)),
        ("adapter-plus", {"width": 8}, 165_984),
    ],
)
def test_learnable_numbers_on_vit_b(name: str, options: dict[str, Any], count: int, base: TimmViT) -> None:
    with torch.device("meta"):
        model = PromptedClassifier(base, create_method(name, 768, 12, (16, 16), **options), ["a", "b"])
    assert model.parameter_counts() == {"method": count, "head": 1538, "backbone": 85_798_656}


class Pixels(torch.utils.data.Dataset[tuple[Tensor, int]]):
    augmented = False

    def __init__(self) -> None:
        images, labels = Subject("linear", tiny_vit()).task(8)
        self.items = list(zip(images, labels.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.items[index]


@pytest.mark.parametrize("name", ["lora", "adaptformer"])
def test_what_learns_behind_the_embedding_trains_on_embedded_images(name: str) -> None:
    losses = []
    for cache in ("memory", "auto", None):
        model = Subject(name, tiny_vit()).model()
        history = fit(model, Pixels(), epochs=2, batch_size=4, lr=1e-2, cache=cache, progress=False)
        losses.append([epoch.train_loss for epoch in history.epochs])
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)
    assert losses[1] == losses[2]


@pytest.mark.parametrize("name", ["full", "partial", "bitfit", "ssf"])
def test_what_learns_the_embedding_does_not(name: str) -> None:
    model = Subject(name, tiny_vit()).model()
    with pytest.raises(ConfigError, match="learns how images are embedded"):
        fit(model, Pixels(), epochs=1, cache="memory", progress=False)
    fit(model, Pixels(), epochs=1, batch_size=4, cache="auto", progress=False)


@pytest.mark.parametrize("name", sorted(set(INSIDE) - {"full"}))
def test_the_frozen_rest_is_quantised(name: str) -> None:
    model, images = Subject(name, tiny_vit()).trained(), Subject(name, tiny_vit()).task()[0]
    small = quantise(model)
    with torch.no_grad():
        found, exact = small(images), model(images)
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.1 * float(exact.abs().max()))


def test_where_all_is_learned_nothing_is_quantised() -> None:
    with pytest.raises(ConfigError, match="full"):
        quantise(Subject("full", tiny_vit()).model())


def test_impossible_settings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, options in (
        ("partial", {"blocks": 0}),
        ("partial", {"blocks": 4}),
        ("lora", {"rank": 0}),
        ("lora", {"alpha": float("nan")}),
        ("adaptformer", {"width": 0}),
        ("adaptformer", {"scale": 0.0}),
    ):
        with pytest.raises(ConfigError, match=next(iter(options))):
            create_method(name, 24, 3, (8, 8), **options)
    monkeypatch.setattr("viapt.methods.lora.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"viapt\[lora\]"):
        create_method("lora", 24, 3, (8, 8))


@pytest.mark.parametrize("name", ["lora", "adaptformer"])
def test_blocks_without_the_place_are_named(name: str) -> None:
    with pytest.raises(BackboneError, match="ParallelScalingBlock"):
        Subject(name, tiny_vit(block_fn=ParallelScalingBlock)).model()


def test_the_contract_notices_a_changed_backbone() -> None:
    class Careless(METHODS["bitfit"]):
        """Changes what others share."""

        def enter(self, backbone: Any) -> None:
            super().enter(backbone)
            with torch.no_grad():
                backbone.vit.norm.weight.mul_(2)

    with pytest.raises(AssertionError, match="changed"):
        check_prompt_method(Careless, tiny_vit(), checks={"it": CHECKS["backbone_unchanged"]})
