"""What is no adapter, or was forged, is refused: every field, every tensor, every kind of file."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor

from artifact_cases import Config, fitted, forge, logits, tiny
from viapt.artifact import CARD, CONFIG, TENSORS, load
from viapt.create import create_model
from viapt.errors import ArtifactError, ConfigError
from viapt.model import PromptedClassifier

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> PromptedClassifier:
    return fitted()


@pytest.fixture(scope="module")
def whole(model: PromptedClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that nobody alters."""
    return model.save_pretrained(tmp_path_factory.mktemp("whole"), training={"epochs": 3})


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "adapter"))


def forge_tensors(folder: Path, alter: Callable[[Tensors], Any]) -> None:
    tensors = parse((folder / TENSORS).read_bytes())
    alter(tensors)
    forge(folder, data=serialise(tensors, {"format": "pt"}))


def refused(folder: Path, message: str) -> ArtifactError:
    with pytest.raises(ArtifactError, match=message) as error:
        load(folder, tiny())
    return error.value


# The configuration


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("\x00\x01", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"format_version": NaN}', "NaN is no JSON"),
        ('{"format_version": 1' + "0" * 5000 + "}", "is not JSON"),
        ("[1, 2]", "holds a list. Expected: an object"),
        ("null", "holds a NoneType"),
        ("{}", "has no field 'format_version'"),
        (" " * (16 * 2**20) + "{}", "Expected: at most 16777216"),
    ],
)
def test_a_configuration_that_is_none_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / CONFIG).write_text(text)
    refused(folder, message)


def test_a_configuration_in_another_encoding_is_refused(folder: Path) -> None:
    (folder / CONFIG).write_bytes(b'{"classes": ["caf\xe9"]}')
    refused(folder, "is not JSON")


def put(name: str, value: Any) -> Callable[[Config], None]:
    """A field, by its dotted name, becomes something else."""

    def alter(config: Config) -> None:
        *path, last = name.split(".")
        for key in path:
            config = config[key]
        config[last] = value

    return alter


ALTERED = [
    (put("format_version", 2), "format version 2, written by viapt .*Expected: at most 1.*pip install --upgrade"),
    (put("format_version", 0), "format version 0"),
    (put("format_version", True), "format_version = 'True', a bool"),
    (put("format_version", "1"), "a str. Expected: int"),
    (put("method", "viappt"), "There is no method 'viappt'.*did you mean 'viapt'"),
    (put("method", ["viapt"]), "method = .* a list. Expected: str"),
    (put("method", "os.system"), "There is no method"),
    (put("method_arguments.num_promts", 4), "no argument 'num_promts'.*did you mean 'num_prompts'"),
    (put("method_arguments.num_prompts", "4"), "num_prompts = '4' is not possible. Expected: int"),
    (put("method_arguments.num_prompts", 4.0), "num_prompts = 4.0"),
    (put("method_arguments.num_prompts", None), "num_prompts = None"),
    (put("method_arguments.generator_kernels", [1, [3]]), "generator_kernels"),
    (put("method_arguments", []), "method_arguments = .* a list. Expected: dict"),
    (put("classes", [1, 2, 3, 4]), "class name 1 is a int. Expected: strings"),
    (put("classes", ["a", None, "b", "c"]), "class name None"),
    (put("classes", [["a"], ["b"]]), r"class name \['a'\]"),
    (put("classes", ["a", "a", "b", "c"]), "occur twice: 'a'"),
    (put("classes", ["a"]), "at least two"),
    (put("classes", "abcd"), "a str. Expected: list"),
]
FORGED = [
    (put("backbone", None), "has no field 'backbone.fingerprint'"),
    (put("backbone.fingerprint", 7), "backbone.fingerprint = '7', a int. Expected: str"),
    (put("backbone.precision", "int8"), "precision 'int8'. Expected: one of float32, bfloat16"),
    (put("backbone.preprocessing.mean", [0, 0]), "impossible preprocessing"),
    (put("backbone.preprocessing.mean", [0, 0, "0"]), "impossible preprocessing"),
    (put("backbone.preprocessing.image_size", [10**9, 10**9]), "impossible preprocessing"),
    (put("backbone.preprocessing.padding", 3), "impossible preprocessing"),
    (put("backbone.pretrained", "yes"), "a str. Expected: bool"),
    (put("backbone.weights", 3), "a int. Expected: str or NoneType"),
    (put("training", [1]), "a list. Expected: dict or NoneType"),
    (put("versions", "1"), "a str. Expected: dict"),
    (put("tensors_sha256", None), "a NoneType. Expected: str"),
    (put("tensors_sha256", "0" * 64), "is not the file that adapter_config.json belongs to"),
    (put("method_arguments.num_prompts", 0), "cannot be built on this backbone .*num_prompts = 0"),
    (put("method_arguments.kept_dim", 33), "cannot be built on this backbone .*kept_dim = 33"),
    (put("method_arguments.num_prompts", 10**9), r"cannot be built on this backbone .*to 1000000000"),
    (put("method_arguments.generator_width", 10**6), r"holds method\.generator\.\S+ of shape .*Expected: .*1000000"),
    (put("method_arguments.num_prompts", 10**30), "cannot be built on this backbone"),
    (put("method_arguments.generator_width", 2**40 + 1), "Expected|cannot be built"),
    (put("method_arguments.kept_dim", 9), r"of shape"),
    (put("method_arguments.reduction", "linear"), "lacks method.kept.projection"),
    (put("method", "linear"), "linear has no argument"),
    (put("classes", ["a", "b", "c"]), r"holds head.bias of shape \(4,\). Expected: \(3,\)"),
]


@pytest.mark.parametrize(("alter", "message"), ALTERED)
@pytest.mark.parametrize("signed", [True, False])
def test_each_field_is_checked_before_the_check_sum(
    folder: Path, alter: Callable[[Config], None], message: str, signed: bool
) -> None:
    if signed:
        forge(folder, alter)
    else:
        config = json.loads((folder / CONFIG).read_text())
        alter(config)
        (folder / CONFIG).write_text(json.dumps(config))
    refused(folder, message)


@pytest.mark.parametrize(("alter", "message"), FORGED)
def test_forged_configurations_are_refused(folder: Path, alter: Callable[[Config], None], message: str) -> None:
    forge(folder, alter)
    refused(folder, message)


@pytest.mark.parametrize("name", ["classes", "method", "method_arguments", "config_sha256", "backbone", "training"])
def test_missing_fields_are_named(folder: Path, name: str) -> None:
    forge(folder, lambda config: config.pop(name))
    if name == "config_sha256":  # which forging puts back
        config = json.loads((folder / CONFIG).read_text())
        del config[name]
        (folder / CONFIG).write_text(json.dumps(config))
    refused(folder, f"has no field '{name}")


def test_a_renamed_class_is_noticed(folder: Path) -> None:
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace("solar cell", "polar cell"))
    refused(folder, "was altered after it was written")


# The tensors


def spoil(name: str, value: float) -> Callable[[Tensors], None]:
    return lambda tensors: tensors[name].view(-1)[0].fill_(value)


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda t: t.pop("head.weight"), r"lacks head\.weight\. Expected: .*To do: "),
        (lambda t: t.update(extra=torch.zeros(1)), "holds foreign tensors: extra"),
        (lambda t: t.update({"backbone.vit.cls_token": torch.zeros(1, 1, 32)}), "foreign tensors: backbone.vit"),
        (lambda t: t.update({"head.bias": torch.zeros(5)}), r"head\.bias of shape \(5,\)\. Expected: \(4,\)"),
        (lambda t: t.update({"head.bias": torch.zeros(4, 1)}), r"head\.bias of shape \(4, 1\)"),
        (lambda t: t.update({"head.bias": torch.zeros(4).double()}), "head.bias as torch.float64.*torch.float32"),
        (lambda t: t.update({"head.bias": torch.zeros(4).bfloat16()}), "head.bias as torch.bfloat16"),
        (lambda t: t.update({"head.bias": torch.zeros(4).int()}), "head.bias as torch.int32"),
        (spoil("method.fresh", float("nan")), r"method\.fresh in .* has 1 of \d+ values that are not finite"),
        (spoil("head.weight", float("inf")), r"head\.weight .* not finite"),
        (lambda t: t["method.kept.basis"].zero_(), "holds values that viapt cannot use"),
        (lambda t: t.clear(), "lacks head.bias, head.weight, method"),
    ],
)
def test_forged_tensors_are_refused(folder: Path, alter: Callable[[Tensors], Any], message: str) -> None:
    forge_tensors(folder, alter)
    refused(folder, message)


def test_forged_headers_are_refused(folder: Path) -> None:
    data = (folder / TENSORS).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    for forged in (
        b"",
        data[:7],
        data[: 8 + length],
        data[:8] + b" " * length + data[8 + length :],
        struct.pack("<Q", 2**64 - 1) + data[8:],
        struct.pack("<Q", 2**24 + 1) + b" " * (2**24 + 100),
        data.replace(b'"F32"', b'"F99"', 1),
        data.replace(b"data_offsets", b"dataXoffsets", 1),
    ):
        forge(folder, data=forged)
        refused(folder, "cannot be read as safetensors")


def test_files_that_are_too_large_are_not_read(folder: Path) -> None:
    with (folder / TENSORS).open("r+b") as file:
        file.truncate(2 * 2**30 + 1)  # sparse: takes no room
    refused(folder, "Expected: at most 2147483648")


# The folder


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / TENSORS).unlink()
    refused(folder, "adapter_model.safetensors is missing")
    (folder / TENSORS).mkdir()
    refused(folder, "adapter_model.safetensors")
    (folder / CONFIG).unlink()
    refused(folder, "adapter_config.json is missing")
    refused(tmp_path / "nowhere", "nowhere does not exist")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "file is not a folder")


@pytest.mark.skipif(os.name != "posix", reason="there are no such files")
def test_what_is_no_regular_file_is_not_opened(folder: Path) -> None:
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)  # opening it would wait for ever
    refused(folder, "no regular file")


def test_links_are_read_but_never_written_through(folder: Path, tmp_path: Path, model: PromptedClassifier) -> None:
    """The caches of model hubs are folders of links."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in (CONFIG, TENSORS, CARD):
        (linked / name).symlink_to(folder / name)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert torch.equal(logits(load(linked, tiny())), logits(model))
    create_model(tiny(), "linear", classes=2).save_pretrained(linked)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert not (linked / CONFIG).is_symlink()
    assert load(linked, tiny()).method.name == "linear"


def test_unknown_precision_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="float8"):
        load(folder, tiny(), precision="float8")
