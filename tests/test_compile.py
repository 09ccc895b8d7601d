"""`compile` of `fit` and of the commands: the same results but for rounding, and clear words where it cannot be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor import config as inductor

from cli_cases import write_backbone, write_photos
from training_cases import learned_bits, quiet, tiny_data, tiny_model
from viapt import training
from viapt.backbones import timm_vit
from viapt.backbones.cached import CachedFeatures
from viapt.cli import main
from viapt.errors import BackboneError, ConfigError, TrainingError
from viapt.quantisation import quantise

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # PyTorch hides it itself
]


@pytest.fixture(autouse=True)
def graphs_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are taken and run as they are: fast, and no compiler is needed (but see test_contract.py)."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(timm_vit, "check_compiler", lambda device: None)
    timm_vit.compiled_block.cache_clear()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    timm_vit.compiled_block.cache_clear()


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each pass through a block is a compiled one."""
    passes: list[bool] = []
    advance = timm_vit.TimmViT.advance

    def watched(self: Any, *arguments: Any) -> Any:
        passes.append(self.compiled)
        return advance(self, *arguments)

    monkeypatch.setattr(timm_vit.TimmViT, "advance", watched)
    return passes


@pytest.mark.parametrize(
    ("method", "settings", "options"),
    [
        ("viapt", {"reduction": "random"}, {"cache": "memory"}),
        ("viapt", {"reduction": "random"}, {"checkpointing": True, "accumulate": 3}),
        ("bitfit", {}, {}),
    ],
)
def test_a_training_ends_as_the_plain_one(method: str, settings: Any, options: Any, used: list[bool]) -> None:
    models = [tiny_model(method, **settings) for _ in range(2)]
    for model, compile in zip(models, (False, True), strict=True):
        used.clear()
        history = quiet(model, tiny_data(), tiny_data(9, seed=1), compile=compile, **options)
        assert history.protocol.get("compiled", False) is compile
    assert any(used) and model.backbone.compiled is False
    for name, tensor in models[0].learnable().items():
        torch.testing.assert_close(models[1].learnable()[name], tensor, rtol=1e-4, atol=1e-5)


def test_it_ends_with_the_training(used: list[bool]) -> None:
    model = tiny_model("vpt-deep")
    quiet(model, tiny_data(), tiny_data(9, seed=1), test=tiny_data(6, seed=2), compile=True, epochs=1)
    assert used == [True] * 2 * (3 + 2 + 1)  # two blocks: three steps, two validation batches, one test batch
    model.predict(tiny_data(2).tensors[0])
    assert used[12:] == [False] * 2


def test_features_of_a_linear_probe_are_computed_by_compiled_blocks(used: list[bool]) -> None:
    history = quiet(tiny_model("linear"), tiny_data(), cache="memory", compile=True)
    assert used and all(used) and history.protocol["compiled"] and history.protocol["cached"]


def test_a_backbone_that_was_compiled_stays_so(used: list[bool]) -> None:
    model = tiny_model("vpt-deep")
    model.backbone.compile_blocks()
    history = quiet(model, tiny_data(), epochs=1)
    assert all(used) and model.backbone.compiled and history.protocol["compiled"]


def test_a_training_is_resumed_as_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(out: Path | None, compile: bool) -> Any:
        model = tiny_model("vpt-deep")
        with monkeypatch.context() as patch:
            patch.setattr(training.TrainingDisplay, "epoch", interrupt)
            with pytest.raises(KeyboardInterrupt):
                quiet(model, tiny_data(), out=out, compile=compile)

    interrupted(tmp_path / "compiled", True)
    with pytest.raises(TrainingError, match="compiled was true and is absent"):
        quiet(tiny_model("vpt-deep"), tiny_data(), out=tmp_path / "compiled")
    interrupted(tmp_path / "plain", False)
    with pytest.raises(TrainingError, match="compiled was absent and is true"):
        quiet(tiny_model("vpt-deep"), tiny_data(), out=tmp_path / "plain", compile=True)
    models = [tiny_model("vpt-deep"), tiny_model("vpt-deep")]
    assert quiet(models[0], tiny_data(), out=tmp_path / "compiled", compile=True).resumed_step == 3
    quiet(models[1], tiny_data(), compile=True)
    assert learned_bits(models[0]) == learned_bits(models[1])


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_many_kinds_of_blocks_are_all_compiled() -> None:
    """torch would run the kinds beyond its limit (here two) as they are."""
    vit = tiny_model().backbone
    vit.compile_blocks()
    with torch._dynamo.config.patch(recompile_limit=2):
        for count in (1, 3):
            tokens, prompts = torch.randn(count, 17, 32), torch.randn(count, 4, 32)
            for needed in ("all", "pooled"):
                vit.advance(0, tokens, prompts, None, needed)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4


def test_without_a_compiler_nothing_begins(monkeypatch: pytest.MonkeyPatch, used: list[bool]) -> None:
    monkeypatch.undo()
    model = tiny_model("vpt-deep")
    for compile in (model.backbone.compile_blocks, lambda: quiet(model, tiny_data(), compile=True)):
        with (
            inductor.patch("cpp.cxx", ("no-such-compiler",)),
            pytest.raises(ConfigError, match=r"does not find no-such-compiler\. To do: install g"),
        ):
            compile()
    assert not used and model.backbone.compiled is False
    model.to("meta").backbone.compile_blocks()  # what another device needs, torch knows


def test_backbones_that_cannot_are_refused() -> None:
    hooked, whole, quantised = tiny_model("vpt-deep"), tiny_model("vpt-deep"), quantise(tiny_model("vpt-deep"))
    hooked.backbone.vit.blocks[1].attn.register_forward_hook(lambda *_: None)
    whole.backbone.shortcuts = False
    for model, words in ((hooked, "a Block of another kind, or with other layers or hooks"), (whole, "no shortcuts")):
        with pytest.raises(BackboneError, match=rf"{words}.*leave compile \(--compile\) away"):
            quiet(model, tiny_data(), compile=True)
        assert model.backbone.compiled is False
    with pytest.raises(BackboneError, match="other layers"):
        quantised.backbone.compile_blocks()
    with pytest.raises(BackboneError, match="CachedFeatures does not compile"):
        CachedFeatures(whole.backbone).compile_blocks()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compile")
    write_photos(folder / "photos", {"red": (220, 30, 30), "blue": (30, 30, 220)}, 14)
    return folder


def test_the_commands(place: Path, capsys: pytest.CaptureFixture[str], used: list[bool]) -> None:
    def call(*arguments: object, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        used.clear()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert stopped.value.code == code, err
        return out, err

    adapter, photos, settings = place / "run", place / "photos", ["--method", "vpt-deep", "--set", "num_prompts=3"]
    call("fit", photos, "--backbone", write_backbone(place), "--out", adapter, "--epochs", 1, "--compile", *settings)
    assert any(used) and json.loads((adapter / "result.json").read_text())["protocol"]["compiled"] is True
    for command in (["evaluate", adapter, photos, "--json"], ["predict", adapter, photos / "red", "--format", "json"]):
        plain = call(*command)[0]
        assert not any(used)
        compiled = call(*command, "--compile")[0]
        assert used and all(used)
        assert numbers(json.loads(compiled)) == pytest.approx(numbers(json.loads(plain)), abs=1e-5)
        _, err = call(*command, "--compile", "--quantise", "int8", code=2)
        assert "--quantise with --compile" in err


def numbers(found: Any) -> list[float]:
    """All numbers in a JSON value, in order."""
    if isinstance(found, dict | list):
        return [number for value in (found.values() if isinstance(found, dict) else found) for number in numbers(value)]
    return [float(found)] if isinstance(found, int | float) else []
