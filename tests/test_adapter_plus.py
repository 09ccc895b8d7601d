"""Adapter+: what its paper computes, and files of its authors' code, read, written, and never run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import viapt
from artifact_cases import IMAGES, fitted, tiny
from cli_cases import write_backbone
from viapt.adapter_plus_checkpoint import from_adapter_plus, read_adapter_plus, to_adapter_plus
from viapt.cli import main
from viapt.errors import ArtifactError, ConfigError
from viapt.methods import create_method

D, N, C, R = 32, 3, 4, 5


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def checkpoint(prefix: str = "vit.", depth: int = N, width: int = D) -> dict[str, Tensor]:
    """What the authors' code would hold, after a training that left these numbers."""
    state = {f"{prefix}head.weight": numbers(C, width), f"{prefix}head.bias": numbers(C)}
    for i in range(depth):
        own = f"{prefix}blocks.{i}.adapter."
        state |= {
            f"{own}bottleneck.1.weight": numbers(R, width, seed=i) / 4,
            f"{own}bottleneck.1.bias": numbers(R, seed=i),
            f"{own}bottleneck.4.weight": numbers(width, R, seed=10 + i) / 4,
            f"{own}bottleneck.4.bias": numbers(width, seed=20 + i) / 4,
            f"{own}scaling": numbers(width, seed=30 + i),
        }
    return state


@torch.no_grad()
def by_the_paper(vit: Any, state: dict[str, Tensor], images: Tensor) -> Tensor:
    """Logits: a frozen block, then an adapter with a residual connection of its own."""
    state = {name.removeprefix("vit."): tensor for name, tensor in state.items()}
    x = vit.eval()._pos_embed(vit.patch_embed(images))
    for i, block in enumerate(vit.blocks):
        x = block(x)
        down, down_bias, up, up_bias, scale = (
            state[f"blocks.{i}.adapter.{part}"]
            for part in (
                "bottleneck.1.weight",
                "bottleneck.1.bias",
                "bottleneck.4.weight",
                "bottleneck.4.bias",
                "scaling",
            )
        )
        inner = nn.GELU()(x @ down.T + down_bias)
        x = x + (inner @ up.T + up_bias) * scale
    return vit.norm(x)[:, 0] @ state["head.weight"].T + state["head.bias"]


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "vit.", "module."])
def test_the_same_logits_as_by_the_paper(prefix: str, suffix: str, tmp_path: Path) -> None:
    state, file = checkpoint(prefix) | {f"{prefix}blocks.0.norm1.weight": numbers(D)}, tmp_path / f"x{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": state, "epoch": 100}, file)
    else:
        safetensors.torch.save_file(state, file)
    model, has_head = from_adapter_plus(file, tiny(), precision="float32")
    assert has_head and model.method.name == "adapter-plus" and model.method.config() == {"width": R}
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), by_the_paper(tiny(), checkpoint(), IMAGES), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("suffix", [".ckpt", ".pth", ".safetensors"])
def test_there_and_back(suffix: str, tmp_path: Path) -> None:
    model = fitted(method="adapter-plus", width=R)
    model.save_pretrained(tmp_path / "adapter")
    file = to_adapter_plus(tmp_path / "adapter", tmp_path / f"x{suffix}")
    again, has_head = from_adapter_plus(file, tiny(), classes=model.classes)
    assert has_head and all(own.equal(again.learnable()[name]) for name, own in model.learnable().items())
    loaded = safetensors.torch.load_file(file) if suffix == ".safetensors" else torch.load(file)["state_dict"]
    assert loaded.keys() == checkpoint().keys()
    with torch.no_grad():
        torch.testing.assert_close(by_the_paper(tiny(), loaded, IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)


def test_it_starts_as_houlsbys_adapters_do() -> None:
    method: Any = create_method("adapter-plus", 500, 1, (8, 8), width=200)
    for layer in (method.adapters[0].down, method.adapters[0].up):
        # of a normal distribution cut off at two standard deviations, the standard deviation is 0.88 of that
        assert 0.0195 < layer.weight.abs().max() <= 0.02001 and 0.0086 < layer.weight.std() < 0.009
        assert not layer.bias.any()
    assert bool((method.adapters[0].scale == 1).all())


class DictConfig(dict):
    """Like what the authors' training leaves among its hyperparameters."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("touched"),)


def test_nothing_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": checkpoint(), "hyper_parameters": {"cfg": DictConfig()}}, "last.ckpt")
    with pytest.raises(ArtifactError, match=r"pickle that calls .*is not opened.*safetensors"):
        read_adapter_plus(Path("last.ckpt"))
    assert not Path("touched").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vit.blocks.1.adapter.scaling": None}, r"lacks method\.adapters\.1\.scale.*scale for each channel"),
        ({"vit.blocks.1.adapter.scaling": torch.ones(1)}, r"adapters\.1\.scale of shape \(1,\)"),
        ({"vit.blocks.0.adapter.bottleneck.1.bias": None}, r"lacks method\.adapters\.0\.down\.bias"),
        ({"vit.blocks.2.adapter.bottleneck.4.weight": numbers(R, D)}, r"adapters\.2\.up\.weight of shape"),
        ({"vit.blocks.0.adapter.norm_a.weight": numbers(D)}, r"norm_a\.weight.*without a norm"),
        ({"vit.blocks.0.adapter_attn.scaling": numbers(D)}, "adapter_attn.*one adapter"),
        ({"vit.blocks.0.attn.adapters.q.bottleneck.1.weight": numbers(R, D)}, "attn.adapters.q"),
        ({"vit.blocks.0.prompt": numbers(R, D)}, r"blocks\.0\.prompt"),
        ({"vit.blocks.9.adapter.scaling": numbers(D)}, "lacks"),
        ({"vit.head.bias": None}, "half of the head"),
        ({"vit.head.bias": numbers(9)}, "head of shapes"),
        ({"vit.head.weight": numbers(C, 9)}, r"head\.weight of shape \(4, 9\)"),
        ({"vit.blocks.0.adapter.scaling": torch.full((D,), torch.nan)}, "not finite"),
        ({"blocks.0.adapter.scaling": numbers(D)}, r"adapters\.0\.scale twice"),
        ({name: None for name in checkpoint() if "adapter" in name}, "no adapters"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in (checkpoint() | change).items() if tensor is not None}
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(ArtifactError, match=message):
        from_adapter_plus(tmp_path / "x.pth", tiny())


def test_other_mistakes_are_refused(tmp_path: Path) -> None:
    for depth, width, message in ((N + 1, D, "adapters of 4 blocks"), (N, 16, r"head\.weight of shape \(4, 16\)")):
        torch.save(checkpoint(depth=depth, width=width), tmp_path / "x.pth")
        with pytest.raises(ArtifactError, match=message):
            from_adapter_plus(tmp_path / "x.pth", tiny(), classes=4)
    torch.save(checkpoint(), tmp_path / "x.pth")
    with pytest.raises(ConfigError, match=r"2 classes.*4, as the head"):
        from_adapter_plus(tmp_path / "x.pth", tiny(), classes=["a", "b"])
    fitted(method="linear").save_pretrained(tmp_path / "linear")
    with pytest.raises(ArtifactError, match="a linear adapter"):
        to_adapter_plus(tmp_path / "linear", tmp_path / "y.pth")
    with pytest.raises(ConfigError, match=r"y\.bin.*\.ckpt"):
        to_adapter_plus(tmp_path / "linear", tmp_path / "y.bin")
    with pytest.raises(ConfigError, match="width"):
        create_method("adapter-plus", D, N, (8, 8), width=0)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: Any) -> int:
        with pytest.raises(SystemExit) as stopped:
            main(["convert", *map(str, arguments)])
        return int(stopped.value.code or 0)

    backbone, adapter, back = write_backbone(tmp_path), tmp_path / "adapter", tmp_path / "back.safetensors"
    state = {name: tensor for name, tensor in checkpoint(depth=2, width=24).items() if "head" not in name}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    given = tmp_path / "a.safetensors", "--from", "adapter-plus", "--to", adapter
    assert run(*given) == 2 and "without --backbone" in capsys.readouterr().err
    assert run(*given, "--backbone", backbone, "--classes", "cat,dog") == 0
    assert "no head: the adapter's is untrained" in capsys.readouterr().err
    assert viapt.load(adapter).classes == ["cat", "dog"]
    assert run(adapter, "--from", "viapt", "--to", back) == 0
    assert run(adapter, "--from", "viapt", "--to", tmp_path / "x.ckpt", "--layout", "prompts") == 2
    assert "--layout has no effect" in capsys.readouterr().err
    again = safetensors.torch.load_file(back)
    assert all(again[name].equal(tensor) for name, tensor in state.items())
