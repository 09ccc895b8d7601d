"""Exported files answer as the model does: each runtime, every method and kind of backbone, any batch size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from contract_cases import BACKBONES, THOROUGH
from export_cases import answers, fitted, images, rounded, written
from viapt.backbones.timm_vit import TimmViT
from viapt.export import export
from viapt.export.graph import Deployed, operators, trace
from viapt.exported import load_exported
from viapt.inference import class_probabilities
from viapt.methods import METHODS
from viapt.model import PromptedClassifier
from viapt.reduction import REDUCTIONS
from viapt.runtimes import TARGETS
from viapt.testing.subject import tiny_vit

pytestmark = pytest.mark.compiled
EXPORTABLE = sorted(set(REDUCTIONS) - {"batch", "instance"})
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"reduction": name} for name in EXPORTABLE if name != "running"},
    "nothing kept": {"kept_dim": 0},
    "everything kept": {"kept_dim": 24},
    "all instance": {"num_prompts": 4, "num_instance_prompts": 4, "per_prompt": True},
    "no instance": {"num_instance_prompts": 0, "shared_basis": True, "learn_carry_scale": True},
    "spatial": {"spatial": True, "num_instance_prompts": 6, "instance_every": True, "instance_warmup": 3},
    "adaptive": {"kept_dim": "adaptive", "image_gate": True, "carried": "variation"},
    "full width": {"fresh_dim": "full", "carry_norm": True, "instance_noise": False},
}
CASES = [pytest.param(method, backbone, {}, id=f"{method}-{backbone}") for method in METHODS for backbone in THOROUGH]
CASES += [pytest.param("viapt", name, {}, id=f"viapt-{name}") for name in BACKBONES if name not in THOROUGH]
CASES += [pytest.param("viapt", "vit", options, id=f"viapt-{name}") for name, options in VARIANTS.items()]


@pytest.mark.parametrize(("method", "backbone", "options"), CASES)
def test_every_runtime_answers_as_the_model(
    method: str, backbone: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = fitted(method, backbone, **options)
    sampled = model.method.sampled_prompts > 0
    sessions = written(model, tmp_path, "multi" if sampled else "mean")
    for count in (1, 2, 5):
        batch = images(model, count)
        for rows in {1, count} if sampled else {0}:
            noise = model.draw_noise(rows, seed=count) if sampled else None
            expected = answers(model, batch, None if noise is None else noise.expand(count, -1, -1))
            for name, session in sessions.items():
                inputs = {"images": batch.numpy()} | ({} if noise is None else {"noise": noise.numpy()})
                np.testing.assert_allclose(session.run(inputs), expected, rtol=1e-4, atol=1e-4, err_msg=name)
    if sampled:
        assert np.abs(answers(model, batch, model.draw_noise(5, seed=5)) - answers(model, batch)).max() > 1e-2


@pytest.fixture(scope="module")
def wide() -> PromptedClassifier:
    """Wide enough for its matrices to be most of the file."""
    from viapt.methods import create_method

    backbone: TimmViT = tiny_vit(embed_dim=96, depth=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = create_method("viapt", backbone.dim, backbone.depth, backbone.patch_size, initial_std=1.0)
        model = PromptedClassifier(backbone, method, ["a", "b", "c"]).eval()
        torch.nn.init.normal_(model.head.weight)
    return model


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_in_two_bytes(dtype: str, wide: PromptedClassifier, tmp_path: Path) -> None:
    """The file is half as large, and answers as a model whose weights were rounded, which is not what it was before."""
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir()
    large.mkdir()
    batch = images(wide, 4)
    expected = answers(rounded(wide, getattr(torch, dtype)), batch)
    assert np.abs(expected - answers(wide, batch)).max() > 1e-3
    full, sessions = written(wide, large), written(wide, small, dtype=dtype)
    for name, session in sessions.items():
        np.testing.assert_allclose(session.run({"images": batch.numpy()}), expected, rtol=1e-4, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(
            full[name].run({"images": batch.numpy()}), answers(wide, batch), rtol=1e-4, atol=1e-4
        )
    for file in ("model.onnx", "model.bin", "model.pt2"):
        assert (small / file).stat().st_size < 0.7 * (large / file).stat().st_size, file


def test_a_bfloat16_backbone_is_exported_with_the_values_that_it_has(tmp_path: Path) -> None:
    model = fitted("vpt-deep").to_precision(torch.bfloat16)
    session = written(model, tmp_path)["torch"]
    batch = images(model, 3)
    model.to_precision(torch.float32)
    np.testing.assert_allclose(session.run({"images": batch.numpy()}), answers(model, batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("to", TARGETS)
def test_fixed_has_the_noise_of_class_probabilities(to: Any, tmp_path: Path) -> None:
    model = fitted()
    path = export(model, tmp_path / f"model{TARGETS[to].suffix}", to=to, policy="fixed", seed=7)
    batch = images(model, 3)
    with torch.no_grad():
        expected = class_probabilities(model, batch, "fixed", 1, 7).probabilities
        other = class_probabilities(model, batch, "fixed", 1, 8).probabilities
    found = load_exported(path).predict(batch)
    torch.testing.assert_close(found.probabilities, expected, rtol=1e-4, atol=1e-5)
    assert found.spread is None and (expected - other).abs().max() > 1e-2


@pytest.mark.parametrize("to", TARGETS)
def test_multi_draws_its_noise_as_the_model_does(to: Any, tmp_path: Path) -> None:
    model = fitted()
    exported = load_exported(export(model, tmp_path / f"model{TARGETS[to].suffix}", to=to, policy="multi"))
    batch = images(model, 3)
    found, expected = (m.predict(batch, policy="multi", rounds=4, seed=3) for m in (exported, model))
    assert expected.spread is not None and found.spread is not None and expected.spread.max() > 1e-2
    torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.spread, expected.spread, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(exported(batch), answers(model, batch), rtol=1e-4, atol=1e-4)  # no noise: the mean


@pytest.mark.parametrize("reduction", EXPORTABLE)
def test_no_graph_solves_for_a_basis(reduction: str) -> None:
    program = trace(Deployed(fitted(reduction=reduction), "mean", 0, "float32"))
    found = operators(program)
    assert len(found) > 50 and not [
        name for name in found if any(word in name for word in ("svd", "eig", "qr", "linalg"))
    ]


def test_others_can_read_the_files(tmp_path: Path) -> None:
    """With the formats' own tools: nothing but standard operators, and names for what goes in and comes out."""
    model = fitted()
    batch = images(model, 4)
    sessions = written(model, tmp_path)
    graph = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(graph, full_check=True)
    assert {node.domain for node in graph.graph.node} == {""} and not graph.functions
    shape = graph.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in shape] == ["batch", 3, 32, 32]
    assert [value.name for value in graph.graph.output] == ["logits"]
    assert sessions["openvino"].model.output("logits") is not None
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    np.testing.assert_allclose(loaded(batch).detach(), answers(model, batch), rtol=1e-4, atol=1e-4)
