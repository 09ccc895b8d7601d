"""What is in an exported file, what is refused, that files are whole or absent, and the way through the commands."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import openvino
import pytest
import safetensors.torch
import torch

import viapt
import viapt.export.targets
from cli_cases import write_backbone, write_photos
from export_cases import answers, fitted, images
from viapt.cli import main
from viapt.errors import ArtifactError, ConfigError
from viapt.export import export
from viapt.export.files import staged
from viapt.export.parity import TOLERANCE
from viapt.exported import load_exported
from viapt.model import PromptedClassifier
from viapt.runtimes import TARGETS, is_exported

pytestmark = pytest.mark.compiled


@pytest.fixture(scope="module")
def model() -> PromptedClassifier:
    return fitted()


@pytest.fixture(scope="module")
def files(model: PromptedClassifier, tmp_path_factory: Any) -> dict[str, Path]:
    """One file for each target, policy fixed."""
    folder = tmp_path_factory.mktemp("exported")
    return {
        to: export(model, folder / f"model{target.suffix}", to=to, policy="fixed", seed=7, dtype="float16")  # pyright: ignore[reportArgumentType]
        for to, target in TARGETS.items()
    }


def note(path: Path) -> dict[str, Any]:
    """What a file says about itself, by its format's own tool."""
    if path.suffix == ".onnx":
        return json.loads({item.key: item.value for item in onnx.load(path).metadata_props}["viapt"])
    if path.suffix == ".xml":
        return json.loads(openvino.Core().read_model(path).get_rt_info(["viapt"]).value)
    extra = {"viapt": ""}
    torch.export.load(path, extra_files=extra)
    return json.loads(extra["viapt"])


@pytest.mark.parametrize("to", TARGETS)
def test_the_file_says_what_it_is(to: str, files: dict[str, Path], model: PromptedClassifier) -> None:
    found = note(files[to])
    assert found["classes"] == model.classes == ["left", "right", "neither"]
    assert found["preprocessing"] == model.backbone.preprocessing.to_dict()
    assert (found["policy"], found["seed"], found["noise_shape"]) == ("fixed", 7, None)
    assert found["backbone"]["fingerprint"] == model.backbone.fingerprint
    assert found["method"] == "viapt" and found["method_arguments"] == json.loads(json.dumps(model.method.config()))
    assert found["versions"]["viapt"] == viapt.__version__ and found["weights"] == "float16"
    parity = found["parity"]
    assert parity["batch_sizes"] == [1, 3] and 0 <= parity["difference"] <= parity["tolerance"] == TOLERANCE
    assert 1e-6 < parity["rounding"] < 1e-2
    runtime = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}[to]
    assert parity["runtime"].split()[0] == runtime
    exported = load_exported(files[to])
    assert exported.metadata == found and exported.seed == 7 and exported.preprocessing == model.backbone.preprocessing


def test_the_model_is_left_as_it_was(
    model: PromptedClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("viapt.backbones.timm_vit.check_compiler", lambda device: None)  # nothing is compiled
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    model.backbone.compile_blocks()
    state = torch.get_rng_state()
    export(model, tmp_path / "model.pt2", to="torch", dtype="bfloat16")
    assert model.training and model.backbone.compiled and torch.equal(state, torch.get_rng_state())
    model.backbone.compile_blocks(False)
    model.eval()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items()
    )


def test_what_only_training_needs_is_not_in_the_file(model: PromptedClassifier, files: dict[str, Path]) -> None:
    from viapt.runtimes.torch_program import Archive

    assert model.method.transient_state() and model.method.state_dict()["kept.moment"].numel()
    with Archive(files["torch"]) as archive:
        stored = archive.tensors("weights")
    assert stored["model.method.kept.moment"].numel() == 0 and stored["model.method.kept.basis"].numel() > 0


# --- refusals ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": "tensorrt"}, "'tensorrt'.*onnx, openvino, torch"),
        ({"to": "torch"}, r"model\.onnx.*ends in \.pt2"),
        ({"policy": "median"}, "'median'"),
        ({"seed": 3}, "seed = 3 has no effect"),
        ({"policy": "fixed", "seed": -1}, "seed = -1"),
        ({"dtype": "int8"}, "'int8'.*float16"),
    ],
)
def test_wrong_arguments(arguments: Any, message: str, model: PromptedClassifier, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        export(model, tmp_path / "model.onnx", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "policy", "message"),
    [
        ({"reduction": "batch"}, "mean", "other images of the batch.*reduction=running"),
        ({"reduction": "instance"}, "mean", "linalg_eigh.*for each image.*running, random, select or linear"),
        ({"num_instance_prompts": 0}, "multi", "policy multi has no effect"),
        ({"num_instance_prompts": 0}, "fixed", "policy fixed has no effect"),
        ({"instance_noise": False}, "multi", "policy multi has no effect"),
    ],
)
def test_what_cannot_be_exported(options: dict[str, Any], policy: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        export(fitted(**options), tmp_path / "model.onnx", policy=policy)
    assert not list(tmp_path.iterdir())


def test_a_weight_too_large_for_float16(tmp_path: Path) -> None:
    model = fitted("linear", "one-block")
    model.backbone.vit.pos_embed.data[0, 0, 0] = 1e5
    with pytest.raises(ConfigError, match=r"pos_embed has values up to 100000.*bfloat16"):
        export(model, tmp_path / "model.pt2", to="torch", dtype="float16")
    export(model, tmp_path / "model.pt2", to="torch", dtype="bfloat16")


@pytest.mark.parametrize(("to", "package"), [("onnx", "onnxruntime"), ("onnx", "onnxscript"), ("openvino", "openvino")])
def test_a_target_that_is_not_installed(
    to: Any, package: str, model: PromptedClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    with pytest.raises(ConfigError, match=rf"needs {package}, which is not installed.*pip install 'viapt\[{to}\]'"):
        export(model, tmp_path / f"model{TARGETS[to].suffix}", to=to)


def test_a_file_that_is_there_is_replaced_on_demand_only(model: PromptedClassifier, tmp_path: Path) -> None:
    path = export(model, tmp_path / "model.pt2", to="torch")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="is there already"):
        export(model, path, to="torch", policy="fixed")
    assert path.read_bytes() == before
    export(model, path, to="torch", policy="fixed", overwrite=True)
    assert load_exported(path).policy == "fixed" and list(tmp_path.iterdir()) == [path]


# --- files are whole and right, or absent ---


@pytest.mark.parametrize("to", TARGETS)
def test_a_file_that_answers_differently_is_not_kept(
    to: Any, model: PromptedClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = viapt.export.targets.WRITERS[to]

    def another(program: Any, deployed: Any) -> Any:
        write = convert(program, deployed)
        deployed.model.head.bias = torch.nn.Parameter(deployed.model.head.bias + 0.01, requires_grad=False)
        return write

    monkeypatch.setitem(viapt.export.targets.WRITERS, to, another)
    with pytest.raises(ArtifactError, match=r"answers differently.*not kept.*1e-04"):
        export(model, tmp_path / f"model{TARGETS[to].suffix}", to=to)
    assert not list(tmp_path.iterdir())


SCRIPT = """
import os, resource, signal, sys
import torch
import viapt.export, viapt.export.targets
from export_cases import fitted
to, path, how = sys.argv[1:]
if how == "full":  # as a full disk: no file grows beyond this
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
if how == "killed":
    viapt.export.check_parity = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
try:
    viapt.export.export(fitted("linear"), path, to=to, overwrite=True)
except viapt.ViaptError as error:
    sys.exit(f"refused: {error}")
"""


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("how", ["full", "killed"])
def test_a_full_disk_and_a_kill_leave_the_file_as_it_was(to: str, how: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{TARGETS[to].suffix}"
    path.write_bytes(b"old")
    command = [sys.executable, "-c", SCRIPT, to, str(path), how]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    assert path.read_bytes() == b"old" and not path.with_suffix(".bin").exists()
    if how == "full":
        assert run.returncode == 1 and "refused: The export cannot be written" in run.stderr, run.stderr
        assert list(tmp_path.iterdir()) == [path]
    else:
        assert run.returncode == -signal.SIGKILL
        with staged(path) as folder:  # the next export to this name sweeps away what was left
            assert not list(folder.iterdir())
            (folder / path.name).write_bytes(b"new")
        assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_what_is_opened_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever renaming stops, the old pair is there, or the new one, or nothing that can be opened."""
    path, names = tmp_path / "m.xml", ("m.xml", "m.bin")
    replace = Path.replace
    for allowed in range(3):
        for name in names:
            (tmp_path / name).write_text("old")
        left = iter(range(allowed))

        def failing(self: Path, target: Path, left: Any = left) -> Path:
            if next(left, None) is None:
                raise OSError(28, "No space left on device")
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", failing)
        try:
            with staged(path) as folder:
                for name in names:
                    (folder / name).write_text("new")
        except ArtifactError as error:
            assert "make room" in str(error) and allowed < 2
        assert not path.exists() or {(tmp_path / name).read_text() for name in names} in ({"old"}, {"new"})
        assert path.exists() == (allowed == 2)


def test_weights_above_the_limit_of_onnx_lie_beside_it(
    model: PromptedClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viapt.export.targets, "ONE_FILE", 0)
    path = export(model, tmp_path / "model.onnx")
    assert {found.name for found in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    batch = images(model, 2)
    torch.testing.assert_close(
        load_exported(path)(batch), torch.from_numpy(answers(model, batch)), rtol=1e-4, atol=1e-4
    )
    data = bytearray((tmp_path / "model.onnx.data").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.onnx.data").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data is not the file that belongs to it"):
        load_exported(path)


# --- the commands ---


@pytest.fixture(scope="module")
def photos(tmp_path_factory: Any) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", {"red": (220, 30, 30), "blü": (30, 30, 220)}, 4)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: Any) -> Path:
    """Saved, with the backbone's weights in a folder of their own."""
    model = viapt.create_model(write_backbone(tmp_path_factory.mktemp("tiny")), "viapt", classes=["blü", "red"])
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    return model.save_pretrained(tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def run(capsys: Any) -> Any:
    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        return stopped.value.code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def exported(adapter: Path, tmp_path_factory: Any) -> dict[str, Path]:
    """By the command, and moved to where nothing else is."""
    folder = tmp_path_factory.mktemp("moved")
    for name, extra in {"m.onnx": [], "m.xml": ["--dtype", "float16"], "m.pt2": ["--policy", "multi"]}.items():
        to = {"onnx": "onnx", "xml": "openvino", "pt2": "torch"}[name.partition(".")[2]]
        with pytest.raises(SystemExit) as stopped:
            main(["export", str(adapter), "--to", to, "--out", str(folder / name), *extra])
        assert stopped.value.code == 0
    return {name: folder / name for name in ("m.onnx", "m.xml", "m.pt2")}


@pytest.mark.parametrize("name", ["m.onnx", "m.xml", "m.pt2"])
def test_a_new_process_predicts_without_the_backbone(
    name: str, exported: dict[str, Path], adapter: Path, photos: Path
) -> None:
    """timm builds nothing there, and no adapter is read."""
    policy = "multi" if name == "m.pt2" else "mean"
    code = (
        "import sys, timm, viapt.backbones, viapt.artifact\n"
        "def no(*_, **__): raise RuntimeError('a backbone is built')\n"
        "timm.create_model = timm.models.VisionTransformer.__init__ = viapt.artifact.load = no\n"
        "from viapt.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "predict", str(exported[name]), str(photos), "--format", "json"]
    result = subprocess.run([*command, "--policy", policy], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    files = sorted(photos.rglob("*.png"))
    expected = viapt.load(adapter, precision="float32").predict(files, policy=policy)
    assert [row["path"] for row in found] == list(map(str, files)) and [
        row["label"] for row in found
    ] == expected.labels
    tolerance = 5e-3 if name == "m.xml" else 1e-4  # float16
    probabilities = torch.tensor([list(row["probabilities"].values()) for row in found])
    torch.testing.assert_close(probabilities, expected.probabilities, rtol=0, atol=tolerance)
    assert all(("spread" in row) == (policy == "multi") for row in found)
    assert list(found[0]["probabilities"]) == ["blü", "red"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("predict {onnx} {photos} --policy fixed", ["policy mean, not fixed", "viapt export ADAPTER --policy fixed"]),
        ("predict {onnx} {photos} --seed 3", ["seed 3", "which has no noise"]),
        ("predict {onnx} {photos} --rounds 3", ["--rounds has no effect"]),
        ("predict {onnx} {photos} --weights {onnx}", ["--weights has no effect"]),
        ("predict {onnx} {photos} --adaptive", ["--adaptive", "no effect on an exported file"]),
        ("predict {onnx}x.onnx {photos}", ["does not exist"]),
        ("export {adapter} --out {onnx}", ["is there already", "--overwrite"]),
        ("export {adapter} --to torch --out {onnx}", ["ends in .pt2"]),
        ("export {adapter} --out {onnx}.onnx --seed 3", ["--seed has no effect"]),
        ("export {photos} --out {onnx}.onnx", ["adapter_config.json"]),
    ],
)
def test_mistakes_are_one_paragraph(
    arguments: str, words: list[str], run: Any, exported: dict[str, Path], adapter: Path, photos: Path
) -> None:
    places = {"onnx": exported["m.onnx"], "adapter": adapter, "photos": photos}
    code, out, err = run(*arguments.format(**places).split())
    paragraph = err.splitlines()[-1]
    assert code == 2 and out == "" and paragraph.startswith("Error: ") and "Traceback" not in err
    assert all(word in paragraph for word in words), paragraph


def test_weights_of_another_backbone_are_named(adapter: Path, run: Any, tmp_path: Path) -> None:
    """The same architecture, other numbers: found, expected and what to do, in one paragraph."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    folder = Path(config["backbone"]["name"].removeprefix("local-dir:"))
    own = folder / "model.safetensors"
    kept, tensors = own.read_bytes(), safetensors.torch.load_file(own)
    tensors["norm.weight"] += 1
    try:
        safetensors.torch.save_file(tensors, own)
        code, out, err = run("export", adapter, "--to", "torch", "--out", tmp_path / "m.pt2")
    finally:
        own.write_bytes(kept)
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and not list(tmp_path.iterdir())
    words = config["backbone"]["fingerprint"], "Expected: those that", "To do: load those weights, or train again"
    assert err.startswith("Error: The backbone local-dir:") and all(word in err for word in words), err


def test_a_folder_is_an_adapter_whatever_it_is_called(tmp_path: Path, adapter: Path, run: Any, photos: Path) -> None:
    folder = tmp_path / "run.onnx"
    shutil.copytree(adapter, folder)
    assert not is_exported(folder) and is_exported(tmp_path / "absent.onnx")
    code, out, _ = run("predict", folder, photos / "red")
    assert code == 0 and "red" in out
