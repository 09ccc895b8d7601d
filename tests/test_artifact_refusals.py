"""What is no adapter, or not this one any more, is refused: every field, every byte, every moment of a save."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor

import viapt.adapter_files
from artifact_cases import fitted, logits, tiny
from viapt.artifact import CARD, CONFIG, TENSORS, load, read_config
from viapt.create import create_model
from viapt.errors import ArtifactError, ConfigError
from viapt.model import PromptedClassifier

Config = dict[str, Any]
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


def forge(folder: Path, config: Callable[[Config], Any] | None = None, data: bytes | None = None) -> None:
    """Alter an adapter and make its check sums right again, as somebody who means harm would."""
    values = json.loads((folder / CONFIG).read_text())
    if config is not None:
        config(values)
    if data is not None:
        (folder / TENSORS).write_bytes(data)
        values["tensors_sha256"] = hashlib.sha256(data).hexdigest()
    values.pop("config_sha256", None)
    values["config_sha256"] = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    (folder / CONFIG).write_text(json.dumps(values))


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
    (put("method_arguments.num_prompts", 10**9), r"holds method\.\w+ of shape .*Expected: .*99999999\d"),
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


# Damage


def mutations() -> st.SearchStrategy[tuple[str, float, int, str]]:
    """File, place (0 to 1), byte, kind of damage."""
    kinds = st.sampled_from(["flip", "set", "cut", "insert", "remove"])
    return st.tuples(st.sampled_from([CONFIG, TENSORS]), st.floats(0, 1), st.integers(0, 255), kinds)


def damaged(data: bytes, place: float, byte: int, kind: str) -> bytes:
    at = min(int(place * len(data)), len(data) - 1)
    if kind == "cut":
        return data[:at]
    middle = {"flip": bytes([data[at] ^ 1 << byte % 8]), "set": bytes([byte]), "remove": b""}
    return data[:at] + middle.get(kind, bytes([byte, data[at]])) + data[at + 1 :]


@given(st.lists(mutations(), min_size=1, max_size=2))
def test_damage_is_refused_or_harmless(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, damages: list[tuple[str, float, int, str]]
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    for name, *damage in damages:
        if data := (folder / name).read_bytes():
            (folder / name).write_bytes(damaged(data, *damage))
    try:
        again = load(folder, tiny())
    except ArtifactError:
        return
    original = load(whole, tiny())
    assert again.classes == original.classes
    assert read_config(folder) == read_config(whole)
    assert all(torch.equal(tensor, original.state_dict()[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_no_flipped_bit_goes_unnoticed(whole: Path, tmp_path: Path, name: str) -> None:
    """One bit in every so many bytes, in length, header and data."""
    folder = Path(shutil.copytree(whole, tmp_path / "adapter"))
    data, config = (folder / name).read_bytes(), read_config(whole)
    for at in sorted({*range(40), *range(len(data) - 20, len(data)), *range(0, len(data), len(data) // 100)}):
        (folder / name).write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        try:
            assert viapt.adapter_files.read_tensors(folder, read_config(folder)).keys()
        except ArtifactError:
            continue
        assert name == CONFIG and read_config(folder) == config, f"byte {at}"  # white space


@given(st.lists(mutations(), min_size=1, max_size=2))
def test_damage_under_a_right_check_sum_is_refused_or_a_valid_adapter(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, damages: list[tuple[str, float, int, str]]
) -> None:
    folder = tmp_path_factory.mktemp("forged")
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    data = (folder / TENSORS).read_bytes()
    for _, place, *damage in damages:
        data = damaged(data, place**4, *damage) or b"x"  # mostly in the header
    forge(folder, data=data)
    try:
        again = load(folder, tiny())
    except ArtifactError:
        return
    assert all(bool(tensor.isfinite().all()) for tensor in again.state_dict().values())


# Saving


def failing(monkeypatch: pytest.MonkeyPatch, moment: int) -> list[str]:
    """Let the disk fail at the given step of a save; the steps that were taken."""
    steps: list[str] = []

    def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            steps.append(name)
            if len(steps) == moment:
                if name == "write":  # half of it fits
                    arguments[0].write_bytes(arguments[1][: len(arguments[1]) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*arguments)

        return step

    monkeypatch.setattr(viapt.adapter_files, "write_synced", counted("write", viapt.adapter_files.write_synced))
    monkeypatch.setattr(viapt.adapter_files, "sync", counted("sync", viapt.adapter_files.sync))
    monkeypatch.setattr(Path, "replace", counted("replace", Path.replace))
    return steps


def answers(folder: Path) -> Tensor:
    return logits(load(folder, tiny()))


def test_a_full_disk_leaves_the_old_adapter_or_the_new_one(tmp_path: Path, model: PromptedClassifier) -> None:
    folder, newer = tmp_path / "adapter", fitted(seed=5)
    old, new = logits(model), logits(newer)
    outcomes = []
    for moment in range(1, 50):
        model.save_pretrained(folder)
        with pytest.MonkeyPatch.context() as patch:
            steps = failing(patch, moment)
            try:
                newer.save_pretrained(folder)
            except ArtifactError as error:
                assert "No space left" in error.found
        found = answers(folder)
        assert torch.equal(found, old) or torch.equal(found, new)
        outcomes.append(torch.equal(found, new))
        if len(steps) < moment:
            break
        assert sorted(path.name for path in folder.iterdir()) == sorted([CONFIG, TENSORS, CARD])
    assert steps[:4] == ["write", "write", "write", "sync"]
    assert not any(outcomes[:5]) and all(outcomes[5:])  # the first rename decides
    assert len(outcomes) == 11


def test_a_full_disk_leaves_no_adapter_where_none_was(tmp_path: Path, model: PromptedClassifier) -> None:
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, 2)
        with pytest.raises(ArtifactError, match="make room there"):
            model.save_pretrained(tmp_path / "adapter")
    assert list((tmp_path / "adapter").iterdir()) == []


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path, model: PromptedClassifier) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ArtifactError, match="cannot be written"):
            model.save_pretrained(folder)


def test_other_files_in_the_folder_stay(folder: Path, model: PromptedClassifier) -> None:
    (folder / "history.jsonl").write_text("{}")
    model.save_pretrained(folder)
    assert (folder / "history.jsonl").read_text() == "{}"


def test_a_mixture_of_two_adapters_is_refused(folder: Path) -> None:
    other = fitted(seed=5).save_pretrained(folder.parent / "other")
    shutil.copy(other / TENSORS, folder / TENSORS)
    refused(folder, "is not the file that adapter_config.json belongs to")


KILLED = """
import os, signal, sys
from pathlib import Path
import viapt.adapter_files as files
from viapt.checkpoint import write_synced

folder, names = Path(sys.argv[1]), (files.CONFIG, files.TENSORS, files.CARD)
old, new = ({name: (folder / kind / name).read_bytes() for name in names} for kind in ("old", "new"))


def dies_at(moment):
    steps = 0

    def counted(original):
        def step(*arguments):
            nonlocal steps
            steps += 1
            if steps == moment:
                if original is write_synced:
                    arguments[0].write_bytes(arguments[1][:100])
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments)

        return step

    files.write_synced, files.sync, Path.replace = map(counted, (files.write_synced, files.sync, Path.replace))


for moment in range(1, 50):
    target = folder / f"killed-{moment:02}"
    files.commit(target, old)
    child = os.fork()
    if not child:
        dies_at(moment)
        files.commit(target, new)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        break
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_9_at_every_moment_leaves_the_old_adapter_or_the_new_one(
    tmp_path: Path, model: PromptedClassifier
) -> None:
    newer = fitted(seed=5)
    old, new = logits(model), logits(newer)
    model.save_pretrained(tmp_path / "old")
    newer.save_pretrained(tmp_path / "new")
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=True, timeout=300)
    folders = sorted(tmp_path.glob("killed-*"))
    assert len(folders) == 11  # ten deaths, and one that lived
    found = [answers(folder) for folder in folders]
    assert all(torch.equal(answer, old) for answer in found[:5])
    assert all(torch.equal(answer, new) for answer in found[5:])
    assert (folders[5] / ".adapter_model.safetensors.next").exists()  # dead between two renames, and still whole
    for folder in folders:  # and the next save is as good as any
        model.save_pretrained(folder)
        assert torch.equal(answers(folder), old)
        assert sorted(path.name for path in folder.iterdir()) == sorted([CONFIG, TENSORS, CARD])


def test_unknown_precision_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="float8"):
        load(folder, tiny(), precision="float8")
