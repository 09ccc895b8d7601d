from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

import viapt
from cli_cases import write_backbone, write_photos
from viapt.cli import main
from viapt.cli.paths import image_files
from viapt.cli.settings import convert, parse_settings
from viapt.errors import ConfigError, DataError
from viapt.methods import arguments, method_class

FIT = ["--set", "num_prompts=4", "--set", "num_instance_prompts=2", "--epochs", "2", "--batch-size", "8"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> str:
    return write_backbone(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Red pictures and blue ones; a class name that markup, shells and tables could mistake."""
    colours = {"red": (220, 30, 30), "b [bold]|ü": (30, 30, 220)}
    return write_photos(tmp_path_factory.mktemp("data") / "photos", colours, 14)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, backbone, photos) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "run"
    with pytest.raises(SystemExit) as stopped:
        main(["fit", str(photos), "--backbone", backbone, "--out", str(out), *FIT])
    assert stopped.value.code == 0
    return out


@pytest.fixture
def run(capsys):
    """Calls `viapt`; gives exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        return stopped.value.code, *capsys.readouterr()

    return call


def test_help_imports_nothing_heavy():
    code = (
        "import sys, viapt.cli\n"
        "try: viapt.cli.main(['fit', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'torchvision', 'timm', 'numpy', 'PIL', 'scipy', 'matplotlib', 'accelerate', 'onnx'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--backbone" in result.stdout and result.stdout.endswith("heavy: []\n")


@pytest.mark.parametrize(
    "command",
    [
        *("demo", "fit", "evaluate", "predict", "inspect", "explain", "data", "data list", "data fetch"),
        *("data show", "data check", "bench", "bench run", "bench suite", "bench show", "bench export"),
    ],
)
def test_every_command_has_help(command, run):
    code, out, _ = run(*command.split(), "--help")
    assert code == 0 and "Usage: viapt" in out


def test_version(run):
    assert run("--version") == (0, f"viapt {viapt.__version__}\n", "")


def test_a_run_leaves_everything(fitted, photos):
    record = json.loads((fitted / "result.json").read_text())
    measured = {"test_accuracy", "val_accuracy", "learnable_parameters", "seconds"}
    assert measured | {"method", "task", "seed", "protocol", "data_hash"} <= set(record)
    assert record["task"] == photos.name and record["method"] == "viapt" and record["images"]["train"] == 20
    model = viapt.load(fitted)
    assert record["learnable_parameters"] == sum(tensor.numel() for tensor in model.learnable().values())
    assert len((fitted / "history.jsonl").read_text().splitlines()) == 2
    split = json.loads((fitted / "splits.json").read_text())["split"]["parts"]
    assert [len(split[part]["keys"]) for part in ("train", "val", "test")] == [20, 4, 4]
    assert not (fitted / "checkpoints").exists()


def test_a_finished_run_is_refused_and_overwritten_on_demand(fitted, backbone, photos, run, tmp_path):
    command = ["fit", photos, "--backbone", backbone, "--out", fitted, *FIT]
    before = (fitted / "adapter_model.safetensors").read_bytes()
    code, _, err = run(*command)
    assert code == 2 and "finished" in err and "--overwrite" in err
    code, _, err = run(*command, "--lr", 0.5)
    assert code == 2 and "lr None there, 0.5 here" in err
    code, _, err = run(*command, "--overwrite")
    assert code == 0 and (fitted / "adapter_model.safetensors").read_bytes() == before


def test_a_folder_that_is_no_run_is_left_alone(backbone, photos, run, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    code, _, err = run("fit", photos, "--backbone", backbone, "--out", tmp_path, *FIT, "--overwrite")
    assert code == 2 and "is no run" in err
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_mistake_before_training_does_not_claim_the_folder(backbone, photos, run, tmp_path):
    command = ["fit", photos, "--backbone", backbone, "--out", tmp_path / "run", "--epochs", 1]
    code, _, err = run(*command, "--set", "kept_dim=0", "--set", "carry_scale=0.5")
    assert code == 2 and "carry_scale = 0.5 has no effect" in err
    code, _, err = run(*command, "--set", "kept_dim=0", "--val-fraction", 0.3)
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["images"]["val"] == 8


def test_ctrl_c_saves_and_the_same_command_resumes(backbone, photos, tmp_path):
    """Interrupted after its second epoch, a run says so, resumes, and ends with the bits of one that was left alone."""
    command = [sys.executable, "-c", "from viapt.cli import main; main()", "fit", str(photos), "--backbone", backbone]
    command += [*FIT, "--epochs", "12"]
    whole = subprocess.run([*command, "--out", str(tmp_path / "whole")], capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    command += ["--out", str(tmp_path / "cut")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("epoch 2/"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
        assert process.wait(timeout=100) == 130
    assert "Interrupted. What was done is saved; run the same command to resume." in rest
    assert not (tmp_path / "cut" / "result.json").exists()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and "resuming after step" in again.stderr
    name = "adapter_model.safetensors"
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_evaluate_takes_the_test_split_of_the_run(fitted, photos, run):
    code, out, err = run("evaluate", fitted, photos, "--json")
    assert code == 0 and "test split" in err
    found, record = json.loads(out), json.loads((fitted / "result.json").read_text())
    assert found["count"] == 4 and found["confusion"] == record["test"]["confusion"]
    assert found["accuracy"] == record["test"]["accuracy"]
    code, out, _ = run("evaluate", fitted, photos, "--part", "train", "--json")
    assert json.loads(out)["count"] == 20
    code, out, err = run("evaluate", fitted, photos, "--all")
    assert code == 0 and "28 images" in out and "test split" not in err and "b [bold]|ü" in out


def test_int8_is_compared_with_what_it_came_from(fitted, photos, run):
    plain = json.loads(run("evaluate", fitted, photos, "--all", "--json")[1])
    code, out, err = run("evaluate", fitted, photos, "--all", "--quantise", "int8", "--json")
    assert code == 0, err
    found = json.loads(out)
    compared = found["compared"]
    assert found["quantised"] == "int8" and compared["accuracy_change"]["value"] == pytest.approx(
        found["accuracy"]["value"] - plain["accuracy"]["value"]
    )
    assert found["loss"] != plain["loss"] and abs(found["loss"] - plain["loss"]) < 0.05
    assert compared["agreement"]["value"] >= 0.9 and min(compared["images_per_second"]) > 0
    code, out, _ = run("evaluate", fitted, photos, "--all", "--quantise", "int8")
    assert code == 0 and "change of accuracy" in out and "same class as before" in out and "images per second" in out


def test_models_compute_where_they_were_trained(fitted, photos, run, monkeypatch):
    asked = []
    monkeypatch.setattr("viapt.device.default_device", lambda: asked.append("the device") or "cpu")
    assert run("evaluate", fitted, photos)[0] == run("predict", fitted, photos / "red")[0] == 0
    assert len(asked) == 2


def test_predict_in_int8(fitted, photos, run):
    answers = []
    for options in ([], ["--quantise", "int8"]):
        code, out, err = run("predict", fitted, photos / "red", "--format", "json", *options)
        assert code == 0, err
        answers.append([row["probability"] for row in json.loads(out)])
    assert answers[0] != answers[1] and answers[0] == pytest.approx(answers[1], abs=0.05)
    model = viapt.quantise(viapt.load(fitted))
    assert answers[1] == pytest.approx(model.predict(sorted((photos / "red").iterdir())).probabilities.amax(1).tolist())


def test_evaluate_takes_other_data_whole(fitted, photos, run, tmp_path):
    (tmp_path / "red").mkdir()
    for k in range(3):
        (tmp_path / "red" / f"{k}.png").write_bytes((photos / "red" / f"{k:02d}.png").read_bytes())
    code, out, _ = run("evaluate", fitted, tmp_path, "--json", "--policy", "multi", "--rounds", 2)
    assert code == 0 and json.loads(out)["count"] == 3 and json.loads(out)["policy"] == "multi"


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_predict(form, fitted, photos, run):
    files = [photos / "red" / "00.png", photos / "b [bold]|ü" / "03.png"]
    code, out, err = run("predict", fitted, *files, "--format", form)
    assert code == 0 and err == ""
    expected = viapt.load(fitted).predict(files)
    if form == "json":
        rows = json.loads(out)
        assert [row["label"] for row in rows] == expected.labels
        assert [list(row["probabilities"].values()) for row in rows] == expected.probabilities.tolist()
    elif form == "csv":
        rows = list(csv.DictReader(io.StringIO(out)))
        assert [row["label"] for row in rows] == expected.labels
        assert float(rows[1]["probability:red"]) == expected.probabilities[1, 1].item()
    else:
        rows = [{"path": str(file)} for file in files]
        assert all(label in line for label, line in zip(expected.labels, out.splitlines()[1:], strict=True))
    assert len(rows) == 2 and all(str(file) in out for file in files)


def test_predict_tells_the_spread_of_samples(fitted, photos, run):
    file = photos / "red" / "00.png"
    _, out, _ = run("predict", fitted, file, "--policy", "multi", "--rounds", 3, "--seed", 4, "--format", "json")
    expected = viapt.load(fitted).predict([file], policy="multi", rounds=3, seed=4)
    assert list(json.loads(out)[0]["spread"].values()) == expected.spread[0].tolist()
    assert max(expected.spread[0].tolist()) > 0
    assert "spread" in run("predict", fitted, file, "--policy", "multi")[1].splitlines()[0]


def test_adaptive_samples_tell_how_many_there_were(fitted, photos, run):
    options = "--policy", "multi", "--adaptive", "--max-disagreement", 0.2
    code, out, _ = run("predict", fitted, photos / "red", *options, "--format", "json")
    expected = viapt.load(fitted).predict(
        sorted((photos / "red").iterdir()), "multi", adaptive=True, max_disagreement=0.2
    )
    rows = json.loads(out)
    assert code == 0 and [row["passes"] for row in rows] == expected.rounds.tolist()
    assert [row["label"] for row in rows] == expected.labels and not any("spread" in row for row in rows)
    header = run("predict", fitted, photos / "red", *options, "--format", "csv")[1].splitlines()[0]
    assert header.endswith(",passes")
    code, out, _ = run("evaluate", fitted, photos, "--all", *options, "--json")
    assert code == 0 and 1 <= json.loads(out)["rounds"] <= 5
    everything = run("evaluate", fitted, photos, "--all", "--policy", "multi")[1]
    assert re.search(r"passes for each image +5\.00", everything)


def test_a_bad_image_does_not_stop_the_others(fitted, photos, run, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    good = photos / "red" / "00.png"
    code, out, err = run("predict", fitted, tmp_path / "bad.png", good, tmp_path / "absent.png", "--format", "json")
    assert code == 3 and [row["path"] for row in json.loads(out)] == [str(good)]
    assert "2 of 3" in err and "bad.png" in err and "absent.png" in err and "Traceback" not in err
    code, out, err = run("predict", fitted, tmp_path / "bad.png")
    assert code == 2 and out == "" and "bad.png" in err


def test_inspect(fitted, photos, run):
    code, out, _ = run("inspect", fitted, "--images", photos / "red", "--json")
    found = json.loads(out)["inspection"]
    assert code == 0 and found["images"] == 14 and len(found["prompt_attention"]) == 2
    assert found["learnable"] == json.loads((fitted / "result.json").read_text())["learnable_parameters"]
    code, out, _ = run("inspect", fitted)
    assert code == 0 and "method.generator" in out and "sha256:" in out and "b [bold]|ü" in out
    assert all(line == line.rstrip() for line in out.splitlines())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            "fit {photos} --backbone {backbone} --out {new} --set num_promts=5",
            ["num_promts", "did you mean 'num_prompts'?"],
        ),
        ("fit {photos} --backbone {backbone} --out {new} --set num_prompts=five", ["num_prompts=five", "whole number"]),
        ("fit {photos} --backbone {backbone} --out {new} --method vpt-dep", ["did you mean 'vpt-deep'?"]),
        ("fit {photos} --backbone {backbone} --out {new} --method linear --set num_prompts=5", ["no settings at all"]),
        (
            "fit {photos} --backbone {backbone} --out {new} --method linear --checkpointing",
            ["checkpointing has no effect"],
        ),
        (
            "fit {photos} --backbone {backbone} --out {new} --set reduction=random --set center_basis=true --epochs 0",
            ["epochs"],
        ),
        ("fit {photos} --backbone {backbone} --out {new} --augmentation strange", ["augmentation 'strange'"]),
        ("fit {photos} --backbone {backbone} --out {new} --optimizer sgd", ["lr is not given"]),
        ("fit {photos}/absent --backbone {backbone} --out {new}", ["absent does not exist"]),
        ("fit {photos} --backbone vit_tinny_patch16_224 --out {new}", ["did you mean 'vit_tiny_patch16_224"]),
        ("evaluate {new} {photos}", ["does not exist"]),
        ("evaluate {fitted} {photos} --rounds 3", ["--rounds has no effect"]),
        ("evaluate {fitted} {photos} --all --part test", ["--all"]),
        ("evaluate {fitted} {photos} --adaptive", ["adaptive has no effect on policy mean"]),
        ("evaluate {fitted} {photos} --policy multi --adaptive --quantise int8", ["--quantise with --adaptive"]),
        ("predict {fitted} {photos} --seed 3", ["--seed has no effect"]),
        ("predict {fitted} {new}/*.png", ["no images in"]),
        ("inspect {photos}", ["adapter_config.json"]),
        ("data fetch elvp", ["no packaged task 'elvp'"]),
        ("data fetch elpv --seed 3", ["--seed has no effect without --to"]),
        ("data fetch weights --to {new}", ["expected", "one task"]),
    ],
)
def test_mistakes_are_one_paragraph(arguments, words, backbone, photos, fitted, run, tmp_path):
    places = {"photos": photos, "backbone": backbone, "fitted": fitted, "new": tmp_path / "new"}
    code, out, err = run(*arguments.format(**places).split())
    assert code == 2 and out == ""
    paragraph = err.splitlines()[-1]
    assert paragraph.startswith("Error: ") and "Traceback" not in err
    assert all(word.lower() in paragraph.lower() for word in words), paragraph


def test_sampling_is_refused_where_there_is_nothing_to_sample(backbone, photos, run, tmp_path):
    run("fit", photos, "--backbone", backbone, "--out", tmp_path / "linear", "--method", "linear", "--epochs", 1)
    code, _, err = run("predict", tmp_path / "linear", photos / "red", "--policy", "multi")
    assert code == 2 and "--policy multi has no effect on linear" in err


def test_debug_shows_the_traceback(run, tmp_path):
    code, _, err = run("predict", tmp_path, tmp_path, "--debug")
    assert code == 2 and "Traceback" in err and err.splitlines()[-1].startswith("Error: ")


def test_a_bug_says_that_it_is_one(run, fitted, photos, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("viapt.artifact.load", broken)
    code, _, err = run("predict", fitted, photos)
    assert code == 70 and "a bug in viapt (KeyError: 'oops')" in err and "--debug" in err and "Traceback" not in err


def test_memory_and_disk_are_no_bugs(run, fitted, photos, monkeypatch):
    class OutOfMemoryError(RuntimeError):
        pass

    for error, words in (
        (OutOfMemoryError("CUDA"), "memory is exhausted"),
        (OSError(28, "No space left", "x"), "No space"),
    ):

        def failing(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr("viapt.artifact.load", failing)
        code, _, err = run("predict", fitted, photos)
        assert code == 2 and words in err


@pytest.mark.parametrize("method", viapt.list_methods())
def test_every_method_fits_and_is_inspected(method, run, tmp_path, backbone, photos):
    options = "--backbone", backbone, "--method", method, "--epochs", "1", "--batch-size", "8", "--lr", "1e-3"
    code, out, err = run("fit", photos, "--out", tmp_path / "run", *options)
    assert code == 0, err
    assert "test accuracy" in out
    code, out, err = run("inspect", tmp_path / "run", "--images", photos / "red")
    assert code == 0, err
    assert "head" in out


def test_settings_reach_every_argument_of_every_method():
    """What a method's own defaults say as text is read back as these defaults."""
    for method in viapt.list_methods():
        for name, parameter in arguments(method_class(method)).items():
            default = parameter.default
            text = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
            read = parse_settings([f"{name}={text}"], method)[name]
            assert read == default and type(read) is type(default)


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("true", bool, True),
        ("0", bool, False),
        ("1e-1", float, 0.1),
        ("3", int | None, 3),
        ("none", int | None, None),
        ("(1, 5)", tuple[int, int], (1, 5)),
        ("b", Literal["a", "b"], "b"),
    ],
)
def test_convert(text, hint, value):
    assert convert(text, hint) == value and type(convert(text, hint)) is type(value)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("maybe", bool),
        ("1.5", int),
        ("1", tuple[int, int]),
        ("1,2,3", tuple[int, int]),
        ("c", Literal["a"]),
        ("x", int | None),
    ],
)
def test_convert_refuses(text, hint):
    with pytest.raises(ValueError):
        convert(text, hint)


def test_a_setting_twice_is_refused():
    with pytest.raises(ConfigError, match="twice"):
        parse_settings(["num_prompts=3", "num_prompts=4"], "viapt")


def test_all_settings_that_are_wrong_are_said():
    with pytest.raises(ConfigError) as caught:
        parse_settings(["num_promts=3", "kept_dim=x", "kept_dim=1"], "viapt")
    for words in ("did you mean 'num_prompts'", "--set kept_dim=x. Expected: for", "--set kept_dim is given twice"):
        assert words in str(caught.value)


def test_which_files_are_meant(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out.png"
    (inside / "sub").mkdir(parents=True)
    for path in (outside, inside / "b.png", inside / "sub" / "a.jpg", inside / ".hidden.png", inside / "notes.txt"):
        path.write_bytes(b"x")
    (inside / "link.png").symlink_to(outside)
    assert image_files([str(inside)]) == [inside / "b.png", inside / "sub" / "a.jpg"]
    assert image_files([str(inside / "notes.txt")]) == [inside / "notes.txt"]
    assert image_files([f"{inside}/**/*", str(inside / "b.png")])[:2] == [inside / "b.png", inside / "link.png"]
    for nothing in (str(tmp_path / "*.gif"), str(inside / "sub" / "*.png")):
        with pytest.raises(DataError, match="no images"):
            image_files([nothing])


def test_wrong_usage_is_told_by_the_parser(run):
    code, _, err = run("fit", os.devnull)
    assert code == 2 and "Missing option" in err
