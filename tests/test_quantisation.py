"""int8 layers against integer arithmetic in NumPy, and whole models against torch's fake quantisation."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import viapt
from training_cases import quiet, tiny_data, tiny_images, tiny_model
from viapt.artifact import load
from viapt.backbones.base import Backbone
from viapt.errors import ArtifactError, ConfigError, TrainingError
from viapt.quantisation import QuantisedLinear, is_quantised, quantise
from viapt.testing import tiny_backbones
from viapt.testing.subject import Subject


def linear(d: int = 24, c: int = 20, *, bias: bool = True, seed: int = 0) -> nn.Linear:
    layer = nn.Linear(d, c, bias=bias).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def rows(count: int, d: int = 24, seed: int = 1) -> Tensor:
    """Tokens whose sizes differ by orders of magnitude, and a token of zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, d, generator=generator) * 10 ** torch.linspace(-3, 3, count)[:, None]
    x[count // 2] = 0
    return x


@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_is_integer_arithmetic(bias: bool) -> None:
    layer, x = linear(bias=bias), rows(9)
    w, a = layer.weight.double().numpy(), x.double().numpy()
    s_w = np.abs(w).max(1, keepdims=True) / 127
    s_x = np.maximum(np.abs(a).max(1, keepdims=True), 1e-30) / 127
    expected = np.rint(a / s_x).astype(np.int64) @ np.rint(w / s_w).astype(np.int64).T * s_x * s_w.T
    expected += layer.bias.double().numpy() if bias else 0
    found = QuantisedLinear(layer)(x)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert found.dtype == torch.float32


@given(st.integers(1, 6), st.integers(2, 40), st.integers(1, 30), st.integers(0, 9999))
def test_rounding_is_all_that_differs(count: int, d: int, c: int, seed: int) -> None:
    """|y - y8| <= sum |x| s_w / 2 + |w| s_x / 2 + s_w s_x / 4."""
    layer, x = linear(d, c, seed=seed), rows(count, d, seed)
    half_w = layer.weight.abs().amax(1).double() / 254
    half_x = x.abs().amax(1, keepdim=True).double() / 254
    bound = x.double().abs().sum(1, keepdim=True) * half_w + half_x * layer.weight.double().abs().sum(1)
    bound += d * half_x * half_w
    error = (QuantisedLinear(layer)(x).double() - layer.double()(x.double())).abs()
    assert bool((error <= bound * 1.001 + 1e-5 * x.abs().max()).all())


def test_a_token_does_not_depend_on_its_batch() -> None:
    layer, x = QuantisedLinear(linear()), rows(12).reshape(3, 4, 24)
    together = layer(x)
    assert together.shape == (3, 4, 20)
    for i in range(3):
        for j in range(4):
            assert torch.equal(layer(x[i, j][None])[0], together[i, j])
    assert layer(x[:0]).shape == (0, 4, 20)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(bad: float) -> None:
    x = rows(4)
    x[1, 3] = bad
    finite = QuantisedLinear(linear())(x).isfinite().all(1)
    assert finite.tolist() == [True, False, True, True]


def test_the_weight_is_that_which_it_computes_with() -> None:
    layer = linear()
    weight = QuantisedLinear(layer).weight
    assert weight.dtype == torch.float32
    half_steps = layer.weight.abs().amax(1, keepdim=True) / 254
    assert bool(((weight - layer.weight).abs() <= half_steps * 1.001).all())
    assert QuantisedLinear(linear().bfloat16()).weight.dtype == torch.bfloat16


def test_scales_stay_exact_in_any_precision() -> None:
    layer = QuantisedLinear(linear())
    scale, x = layer.scale.clone(), rows(5)
    expected = layer(x)
    layer.bfloat16()
    assert layer.scale.dtype == torch.float32 and torch.equal(layer.scale, scale)
    assert layer.bias is not None and layer.bias.dtype == torch.bfloat16
    torch.testing.assert_close(layer(x), expected, rtol=1e-2, atol=1e-2)  # the bias alone was rounded
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def fake(x: Tensor) -> Tensor:
    """Each row rounded to 255 levels by torch's own fake quantisation."""
    scale = (x.abs().amax(-1) / 127).clamp_min(1e-30)
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    if not x.numel():  # prompts that there are none of
        return x
    return torch.fake_quantize_per_channel_affine(x, scale, zeros, 0, -127, 127)


def simulate(model: nn.Module) -> None:
    """Make the linear layers of a model round weights and tokens, and multiply in floating point."""
    for layer in model.modules():
        if type(layer) is nn.Linear:
            layer.weight.copy_(fake(layer.weight))
            layer.register_forward_pre_hook(lambda _, given: (fake(given[0].flatten(0, -2)).reshape_as(given[0]),))


@pytest.mark.parametrize("method", ["viapt", "vpt-deep", "linear"])
@pytest.mark.parametrize("build", tiny_backbones().values(), ids=tiny_backbones().keys())
def test_a_quantised_model_is_the_model_with_rounded_layers(build: Callable[[], Backbone], method: str) -> None:
    """Also where the unquantised one takes a shortcut through its blocks."""
    subject = Subject(method, build())
    model, (images, _) = subject.trained(), subject.task()
    quantised, simulated = quantise(model), copy.deepcopy(model)
    with torch.no_grad():
        simulate(simulated.backbone)
        exact, expected, found = (m(images) for m in (model, simulated, quantised))
    spread = exact.std()
    # A token that lies on the edge of two levels may be rounded either way: that moves a logit, but not far.
    assert (found - expected).abs().median() <= 1e-3 * spread
    assert (found - expected).abs().max() <= 0.1 * spread
    assert (found - exact).abs().max() > 1e-4 * spread  # it is int8 that is at work


def test_only_the_backbones_layers_change() -> None:
    model = tiny_model().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantised = quantise(model)
    assert is_quantised(quantised) and not is_quantised(model)
    after = quantised.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
        if name in after and after[name].dtype == tensor.dtype:
            assert torch.equal(after[name], tensor) and after[name].data_ptr() != tensor.data_ptr(), name
    replaced = {name for name, module in quantised.named_modules() if isinstance(module, QuantisedLinear)}
    assert replaced == {
        f"backbone.vit.blocks.{index}.{layer}"
        for index in range(2)
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    assert not any(parameter.requires_grad for parameter in quantised.parameters()) and not quantised.training
    assert quantised.backbone.dtype == torch.float32


def test_layers_of_one_number_are_left_alone() -> None:
    """`torch._int_mm` multiplies a column by a row wrongly."""
    model = tiny_model()
    model.backbone.vit.blocks[0].ls1 = nn.Sequential(nn.Linear(32, 1), nn.Linear(1, 32))
    kinds = [type(layer) for layer in quantise(model).backbone.vit.blocks[0].ls1]
    assert kinds == [QuantisedLinear, nn.Linear]


def test_weights_take_a_byte_each() -> None:
    def stored(module: nn.Module) -> int:
        return sum(tensor.nbytes for tensor in module.state_dict().values())

    layer = linear(256, 256)
    assert stored(QuantisedLinear(layer)) < 0.28 * stored(layer)


def test_predictions_are_plain_and_copies_work() -> None:
    quantised = quantise(tiny_model().eval())
    images = tiny_images(5)
    expected = quantised.predict(images, policy="multi").probabilities
    for again in (copy.deepcopy(quantised), pickle.loads(pickle.dumps(quantised))):
        assert torch.equal(again.predict(images, policy="multi").probabilities, expected)
    assert torch.equal(quantised(images), quantised.eval()(images))  # also where gradients are on


def test_training_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    quiet(tiny_model(), tiny_data(), out=tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(TrainingError, match=r"quantised.*train the model that it was made from"):
        quiet(quantise(tiny_model()), tiny_data(), out=tmp_path, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_gradients_are_refused_and_not_lost() -> None:
    """Rounding has the gradient zero: a prompt in front of it would stand still without a word."""
    with pytest.raises(ConfigError, match="no gradients"):
        quantise(tiny_model())(tiny_images(2).requires_grad_())


def test_saving_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"quantised.*save the model that it was made from"):
        quantise(tiny_model()).save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_adapters_know_the_backbone_by_its_unquantised_weights(tmp_path: Path) -> None:
    """Several adapters can share one quantised backbone; that of other weights is refused as ever."""
    model = tiny_model().eval()
    model.save_pretrained(tmp_path)
    quantised = viapt.quantise(model)
    assert quantised.backbone.fingerprint == model.backbone.fingerprint
    again = load(tmp_path, quantised.backbone)
    assert torch.equal(again.predict(tiny_images(4)).probabilities, quantised.predict(tiny_images(4)).probabilities)
    quantised.backbone.fingerprint = "sha256:0"
    with pytest.raises(ArtifactError, match="sha256:0"):
        load(tmp_path, quantised.backbone)


def test_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="already"):
        quantise(quantise(tiny_model()))
