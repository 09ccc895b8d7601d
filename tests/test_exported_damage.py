"""Damaged, foreign and hostile files are refused in one sentence; nothing in them is unpickled or evaluated."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch

from export_cases import answers, fitted, images
from viapt.errors import ArtifactError, ConfigError, DataError
from viapt.export import export
from viapt.exported import draw_noise, load_exported, read_note
from viapt.model import PromptedClassifier
from viapt.runtimes import TARGETS
from viapt.runtimes.torch_program import resolve

pytestmark = pytest.mark.compiled
SUFFIXES = [target.suffix for target in TARGETS.values()]


@pytest.fixture(scope="module")
def model() -> PromptedClassifier:
    return fitted()


@pytest.fixture(scope="module")
def originals(model: PromptedClassifier, tmp_path_factory: Any) -> Path:
    """A folder with one file for each target; that of torch takes noise."""
    folder = tmp_path_factory.mktemp("originals")
    for to, target in TARGETS.items():
        policy: Any = "multi" if to == "torch" else "mean"
        export(model, folder / f"model{target.suffix}", to=to, policy=policy)  # pyright: ignore[reportArgumentType]
    return folder


@pytest.fixture
def folder(originals: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(originals, tmp_path / "copy"))


# --- damage ---


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_truncated(suffix: str, kept: float, folder: Path) -> None:
    path = folder / f"model{suffix}"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ArtifactError, match=rf"model\{suffix} .*export again"):
        load_exported(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"no model at all\n" * 100, pickle.dumps({"a": 1}), b"PK\x03\x04" + bytes(1000)])
def test_something_else_under_the_name(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="cannot be opened by"):
        load_exported(path)


@pytest.mark.parametrize("name", ["absent.onnx", "absent.pt2", "model.txt", ""])
def test_no_exported_file(name: str, folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"does not exist|is no exported model"):
        load_exported(folder / name)


def test_the_numbers_of_another_export(folder: Path, tmp_path: Path) -> None:
    """An .xml file and a .bin file that fit each other, but for the SHA-256."""
    path = folder / "model.bin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model\.bin is not the file that belongs to it"):
        load_exported(folder / "model.xml")
    path.unlink()
    with pytest.raises(ArtifactError, match="model"):
        load_exported(folder / "model.xml")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_model_from_elsewhere(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(3, 2),))
    if suffix == ".onnx":
        value = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [None, 3, 32, 32])
        graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["images"], ["y"])], "g", [value], [])
        graph.output.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None, 3, 32, 32]))
        onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
    elif suffix == ".xml":
        parameter = openvino.opset13.parameter([-1, 3], openvino.Type.f32, name="images")
        openvino.save_model(openvino.Model([openvino.opset13.relu(parameter)], [parameter]), path)
    else:
        torch.export.save(program, path)
    with pytest.raises(ArtifactError, match="has no description by viapt"):
        load_exported(path)


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Alter what an ONNX file says about itself."""
    model = onnx.load(path)
    values = json.loads(model.metadata_props[0].value)
    change(values)
    model.metadata_props[0].value = json.dumps(values)
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format version 2.*pip install --upgrade viapt"),
        ({"format_version": "1"}, "format_version = '1'"),
        ({"classes": ["one"]}, "1 class"),
        ({"classes": "abc"}, "classes = 'abc'"),
        ({"preprocessing": {"image_size": [0, 0]}}, "image_size"),
        ({"preprocessing": {"size": 1}}, "size"),
        ({"preprocessing": {"image_size": [16, 32]}}, r"inputs are .*\(None, 3, 32, 32\).*16"),
        ({"policy": "median"}, "median"),
        ({"policy": "multi"}, "policy 'multi' with noise of shape None"),
        ({"policy": "multi", "noise_shape": [7, 24]}, "inputs are .*noise"),
        ({"policy": "multi", "noise_shape": [7, "x"]}, "noise of shape"),
        ({"files": {"../model.bin": "0"}}, r"\.\./model\.bin.*missing"),
        ({"files": {"absent.data": "0"}}, r"absent\.data.*missing"),
    ],
)
def test_descriptions_that_viapt_does_not_write(change: dict[str, Any], message: str, folder: Path) -> None:
    path = folder / "model.onnx"
    rewrite(path, lambda values: values.update(change))
    with pytest.raises(ArtifactError, match=message):
        load_exported(path)


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000, '"x"', "{}", " " * (2**24 + 1)])
def test_descriptions_that_are_no_objects(text: str) -> None:
    with pytest.raises(ArtifactError, match=r"m\.onnx is damaged"):
        read_note(Path("m.onnx"), text)


def test_another_number_of_classes_than_of_logits(folder: Path, model: PromptedClassifier) -> None:
    path = folder / "model.onnx"
    rewrite(path, lambda values: values["classes"].append("a fourth"))
    with pytest.raises(ArtifactError, match=r"answers with shape \(2, 3\).*\(2, 4\)"):
        load_exported(path).predict(images(model, 2))


# --- use ---


def test_wrong_use_is_told(originals: Path, model: PromptedClassifier) -> None:
    mean, multi = load_exported(originals / "model.onnx"), load_exported(originals / "model.pt2")
    batch = images(model, 2)
    calls: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (ConfigError, "policy mean, not multi.*--policy multi", lambda: mean.predict(batch, policy="multi")),
        (ConfigError, "seed 3 .* no noise", lambda: mean.predict(batch, seed=3)),
        (ConfigError, "rounds = 0", lambda: multi.predict(batch, rounds=0)),
        (ConfigError, "seed = -1", lambda: multi.predict(batch, seed=-1)),
        (ConfigError, "batch_size = 0", lambda: mean.predict(batch, batch_size=0)),
        (ConfigError, "takes no noise", lambda: mean(batch, torch.zeros(1, 7, 24))),
        (DataError, r"noise has shape \(1, 6, 24\)", lambda: multi(batch, torch.zeros(1, 6, 24))),
        (DataError, r"shape \(2, 3, 16, 16\)", lambda: mean.predict(torch.zeros(2, 3, 16, 16))),
        (DataError, "no images", lambda: mean.predict([])),
        (DataError, "images 2 to 3 are not all finite", lambda: mean.predict(poisoned(model), batch_size=2)),
    ]
    for error, message, call in calls:
        with pytest.raises(error, match=message):
            call()


def poisoned(model: PromptedClassifier) -> torch.Tensor:
    batch = images(model, 5)
    batch[2] = float("nan")
    return batch


def test_the_batch_does_not_matter(originals: Path, model: PromptedClassifier) -> None:
    exported, batch = load_exported(originals / "model.pt2"), images(model, 5)
    done: list[int] = []
    one = exported.predict(batch, rounds=2, batch_size=2, progress=done.append)
    torch.testing.assert_close(one.probabilities, exported.predict(batch, rounds=2).probabilities, rtol=1e-5, atol=1e-6)
    assert done == [2, 4, 5] and one.labels == [exported.classes[k] for k in one.probabilities.argmax(1)]


def test_noise_is_that_of_the_model(model: PromptedClassifier) -> None:
    for seed, index in ((0, 0), (3, 4), (2**62, 1)):
        assert torch.equal(draw_noise((7, 24), seed=seed, index=index), model.draw_noise(1, seed=seed, index=index))


# --- hostile programs of torch ---


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (fail, ())


def fail() -> None:
    raise SystemExit("unpickled")


def bomb() -> bytes:
    stream = io.BytesIO()
    torch.save(Bomb(), stream)
    return stream.getvalue()


def forge(path: Path, changes: dict[str, Callable[[bytes], bytes]], compression: int = zipfile.ZIP_STORED) -> None:
    """Replace members of a .pt2 file; new ones are added."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    root = next(iter(members)).partition("/")[0]
    for name, change in changes.items():
        members[f"{root}/{name}"] = change(members.get(f"{root}/{name}", b""))
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def edit(change: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    def edited(data: bytes) -> bytes:
        values = json.loads(data)
        change(values)
        return json.dumps(values).encode()

    return edited


def nodes(program: Any) -> Any:
    return program["graph_module"]["graph"]["nodes"]


def first(program: Any, name: str) -> Any:
    return next(node for node in nodes(program) if name in node["target"])


def first_weight(config: Any) -> Any:
    return next(iter(config["config"].values()))


GRAPH, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
HOSTILE: dict[str, tuple[dict[str, Callable[[bytes], bytes]], str]] = {
    "pickled weight": (
        {WEIGHTS: edit(lambda c: first_weight(c).update(use_pickle=True)), "data/weights/weight_0": lambda _: bomb()},
        "is a pickle, which is never opened",
    ),
    "python function": (
        {GRAPH: edit(lambda p: nodes(p)[0].update(target="torch.hub.load"))},
        r"calls torch\.hub\.load",
    ),
    "system call": ({GRAPH: edit(lambda p: nodes(p)[0].update(target="math.sys.exit"))}, r"calls math\.sys\.exit"),
    "file": (
        {GRAPH: edit(lambda p: nodes(p)[0].update(target="torch.ops.aten.from_file.default"))},
        "calls torch.ops.aten.from_file",
    ),
    "string": (
        {GRAPH: edit(lambda p: first(p, "gelu")["inputs"][0].update(arg={"as_string": "/etc/passwd"}))},
        "passes as_string '/etc/passwd'",
    ),
    "graph inside": ({GRAPH: edit(lambda p: nodes(p)[0]["inputs"][0].update(arg={"as_graph": {}}))}, "passes as_graph"),
    "newer schema": ({GRAPH: edit(lambda p: p["schema_version"].update(major=9))}, "schema has version"),
    "beyond its bytes": (
        {
            WEIGHTS: edit(
                lambda c: first_weight(c)["tensor_meta"].update(sizes=[{"as_int": 10**9}], strides=[{"as_int": 1}])
            )
        },
        "out of bounds",
    ),
    "negative strides": (
        {WEIGHTS: edit(lambda c: first_weight(c)["tensor_meta"].update(storage_offset={"as_int": -8}))},
        "storage_offset|storage offset",
    ),
    "unknown type": ({WEIGHTS: edit(lambda c: first_weight(c)["tensor_meta"].update(dtype=99))}, "99"),
    "no graph": ({GRAPH: lambda _: b"{}"}, "schema_version"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs(name: str, folder: Path) -> None:
    changes, message = HOSTILE[name]
    path = folder / "model.pt2"
    forge(path, changes)
    with pytest.raises(ArtifactError, match=message):
        load_exported(path)


def test_a_compressed_archive_is_refused(folder: Path) -> None:
    """Which could hold more than memory."""
    path = folder / "model.pt2"
    forge(path, {"data/weights/weight_0": lambda _: bytes(10**7)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ArtifactError, match="compressed"):
        load_exported(path)


def test_pickles_and_expressions_that_nobody_needs_are_not_looked_at(folder: Path, model: PromptedClassifier) -> None:
    """torch's own loader would run all three of these."""
    path = folder / "model.pt2"

    def expressions(program: Any) -> None:
        for described in program["graph_module"]["graph"]["sym_int_values"].values():
            described["as_expr"]["expr_str"] = "exit('evaluated')"
        program["guards_code"] = ["exit('evaluated')"]

    forge(path, {GRAPH: edit(expressions), "data/sample_inputs/model.pt": lambda _: bomb()})
    batch = images(model, 3)
    np.testing.assert_allclose(load_exported(path)(batch), answers(model, batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.add_.Tensor",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten._unsafe_index.Tensor",
        "torch.ops.higher_order.cond",
        "torch.ops.aten.add",
        "torch.ops.load_library",
        "_operator.attrgetter",
        "builtins.eval",
    ],
)
def test_operators_that_are_not_called(target: str) -> None:
    with pytest.raises(ValueError, match="it calls"):
        resolve(target)
