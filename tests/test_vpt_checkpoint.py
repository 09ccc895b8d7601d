"""Files of the authors' VPT code: read as that code would compute, written as it would read, and nothing run."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

import viapt
from artifact_cases import IMAGES, fitted, tiny
from cli_cases import write_backbone
from viapt.cli import main
from viapt.create import create_model
from viapt.errors import ArtifactError, ConfigError
from viapt.foreign_checkpoint import read_state
from viapt.vpt_checkpoint import from_vpt, read_vpt, to_vpt

P, D, N, C = 5, 32, 3, 4


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def checkpoint(deep: bool = True, width: int = D, prefix: str = "enc.transformer.") -> dict[str, Tensor]:
    """What the authors' code would hold, after a training that left these numbers."""
    state = {f"{prefix}prompt_embeddings": numbers(1, P, width), "head.last_layer.weight": numbers(C, D)}
    state |= {"head.last_layer.bias": numbers(C), f"{prefix}embeddings.cls_token": numbers(1, 1, D)}
    if deep:
        state[f"{prefix}deep_prompt_embeddings"] = numbers(N - 1, P, width)
    if width != D:
        state |= {f"{prefix}prompt_proj.weight": numbers(D, width), f"{prefix}prompt_proj.bias": numbers(D)}
    return state


@torch.no_grad()
def by_the_paper(vit: Any, state: dict[str, Tensor], images: Tensor) -> Tensor:
    """Logits, with the prompts between class token and patches, as the authors' code has them."""
    state = {name.rpartition("transformer.")[2]: tensor for name, tensor in state.items()}

    def project(prompts: Tensor) -> Tensor:
        if "prompt_proj.weight" in state:
            prompts = nn.functional.linear(prompts, state["prompt_proj.weight"], state["prompt_proj.bias"])
        return prompts.expand(len(images), -1, -1)

    x = vit.eval()._pos_embed(vit.patch_embed(images))
    x = torch.cat([x[:, :1], project(state["prompt_embeddings"][0]), x[:, 1:]], dim=1)
    for layer, block in enumerate(vit.blocks):
        if layer > 0 and "deep_prompt_embeddings" in state:
            x = torch.cat([x[:, :1], project(state["deep_prompt_embeddings"][layer - 1]), x[:, 1 + P :]], dim=1)
        x = block(x)
    return nn.functional.linear(vit.norm(x)[:, 0], state["head.last_layer.weight"], state["head.last_layer.bias"])


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("width", [D, 7])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_same_logits_as_by_the_authors_order(deep: bool, width: int, suffix: str, tmp_path: Path) -> None:
    state, file = checkpoint(deep, width), tmp_path / f"x{suffix}"
    if suffix == ".pth":
        torch.save({"model": OrderedDict(state), "iteration": 100}, file)
    else:
        safetensors.torch.save_file(state, file)
    model, has_head = from_vpt(file, tiny(), precision="float32")
    assert has_head and model.method.name == ("vpt-deep" if deep else "vpt-shallow")
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), by_the_paper(tiny(), state, IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "enc.", "module.enc.transformer."])
def test_the_names_of_other_backbones_of_that_code(prefix: str, tmp_path: Path) -> None:
    torch.save(checkpoint(prefix=prefix), tmp_path / "x.pth")
    assert read_vpt(tmp_path / "x.pth").shallow.equal(numbers(1, P, D)[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_prompts_alone_are_arrays_and_have_no_head(dtype: Any, tmp_path: Path) -> None:
    file = tmp_path / "prompt_ep100.pth"
    shallow, deep = numbers(1, P, D).numpy().astype(dtype), numbers(N - 1, P, D).numpy().astype(dtype)
    torch.save({"shallow_prompt": shallow, "deep_prompt": deep}, file)
    model, has_head = from_vpt(file, tiny(), classes=["a", "b"])
    assert not has_head and model.classes == ["a", "b"]
    expected = np.concatenate([shallow, deep]).astype(np.float32)
    np.testing.assert_array_equal(model.learnable()["method.prompts"].detach().numpy(), expected)
    with pytest.raises(ConfigError, match=r"no head, and no classes"):
        from_vpt(file, tiny())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("method", "options"),
    [("vpt-shallow", {}), ("vpt-deep", {}), ("vpt-deep", {"projected_dim": 6, "dropout": 0.1})],
)
def test_there_and_back(method: str, options: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    model = fitted(method=method, num_prompts=P, **options)
    model.save_pretrained(tmp_path / "adapter")
    file = to_vpt(tmp_path / "adapter", tmp_path / f"x{suffix}")
    again, has_head = from_vpt(file, tiny(), classes=model.classes)
    assert has_head and all(own.equal(again.learnable()[name]) for name, own in model.learnable().items())
    state = torch.load(file, weights_only=True)["model"] if suffix == ".pth" else safetensors.torch.load_file(file)
    with torch.no_grad():
        assert again.eval()(IMAGES).equal(model.eval()(IMAGES))
        torch.testing.assert_close(by_the_paper(tiny(), state, IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("method", ["vpt-shallow", "vpt-deep"])
def test_prompts_alone_there_and_back(method: str, suffix: str, tmp_path: Path) -> None:
    """As that code writes prompt_ep*.pth: arrays under these names, and nothing else."""
    model = fitted(method=method, num_prompts=P).eval()
    model.save_pretrained(tmp_path / "adapter")
    file = to_vpt(tmp_path / "adapter", tmp_path / f"prompt_ep100{suffix}", "prompts")
    state = read_state(file)
    shapes = {"shallow_prompt": (1, P, D)} | ({"deep_prompt": (N - 1, P, D)} if method == "vpt-deep" else {})
    assert {name: value.shape for name, value in state.items()} == shapes
    assert all(isinstance(value, np.ndarray if suffix == ".pth" else Tensor) for value in state.values())
    again, has_head = from_vpt(file, tiny(), classes=model.classes)
    assert not has_head and again.method.name == method
    again.head.load_state_dict(model.head.state_dict())
    with torch.no_grad():
        assert again.eval()(IMAGES).equal(model(IMAGES))
    again.save_pretrained(tmp_path / "again")
    second = to_vpt(tmp_path / "again", tmp_path / f"second{suffix}", "prompts")
    assert all(np.array_equal(value, state[name]) for name, value in read_state(second).items())


def test_prompts_alone_have_no_place_for_a_projection(tmp_path: Path) -> None:
    fitted(method="vpt-deep", num_prompts=P, projected_dim=6).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ArtifactError, match=r"prompts that are projected.*write a checkpoint"):
        to_vpt(tmp_path / "adapter", tmp_path / "x.pth", "prompts")
    with pytest.raises(ConfigError, match=r"'prompt_ep'.*checkpoint or prompts"):
        to_vpt(tmp_path / "adapter", tmp_path / "x.pth", "prompt_ep")
    assert not (tmp_path / "x.pth").exists()


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("touched"),)


def test_nothing_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(checkpoint() | {"extra": Evil()}, "x.pth")
    with pytest.raises(ArtifactError, match=r"pickle that calls .*is not opened.*safetensors"):
        read_vpt(Path("x.pth"))
    Path("y.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ArtifactError, match=r"no archive of torch\.save"):
        read_vpt(Path("y.pth"))
    assert not Path("touched").exists()


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("viapt.foreign_checkpoint.LIMIT", 10_000)
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(100_000))
    with pytest.raises(ArtifactError, match="unpacks to 100000 bytes"):
        read_vpt(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"enc.transformer.prompt_embeddings": None}, "no prompts of VPT"),
        ({"enc.transformer.prompt_embeddings": numbers(P, D)}, r"prompts of shape \(5, 32\)"),
        ({"enc.transformer.prompt_embeddings": numbers(1, P, 9)}, "deep prompts of shape"),
        ({"enc.transformer.deep_prompt_embeddings": numbers(N, P, D)}, r"method\.prompts of shape \(4, 5, 32\)"),
        ({"enc.transformer.prompt_embeddings": torch.full((1, P, D), torch.nan)}, "not finite"),
        ({"enc.transformer.prompt_embeddings": torch.zeros(1, P, D).int()}, "floating-point"),
        ({"enc.transformer.prompt_proj.weight": numbers(D, D)}, "half of the projection"),
        ({"head.last_layer.bias": None}, "half of the head"),
        ({"head.last_layer.bias": numbers(9)}, "head of shapes"),
        ({"head.last_layer.weight": numbers(C, 9)}, r"head\.weight of shape \(4, 9\)"),
        ({"head.projection.0.weight": numbers(D, D)}, r"head\.projection.*one linear layer"),
        ({"enc.transformer.prompt_norm.weight": numbers(D)}, r"prompt_norm.*prepended"),
        ({"prompt_embeddings": numbers(1, P, D)}, "shallow twice"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in (checkpoint() | change).items() if tensor is not None}
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(ArtifactError, match=message):
        from_vpt(tmp_path / "x.pth", tiny())


def test_other_mistakes_are_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ArtifactError, match="holds a list"):
        read_vpt(tmp_path / "list.pth")
    with pytest.raises(ArtifactError, match="no file"):
        read_vpt(tmp_path / "nowhere.pth")
    torch.save(checkpoint(), tmp_path / "x.pth")
    with pytest.raises(ConfigError, match=r"2 classes.*4, as the head"):
        from_vpt(tmp_path / "x.pth", tiny(), classes=["a", "b"])
    data = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match=r"cut\.pth is no archive"):
        read_vpt(tmp_path / "cut.pth")
    fitted(method="linear").save_pretrained(tmp_path / "linear")
    with pytest.raises(ArtifactError, match="a linear adapter"):
        to_vpt(tmp_path / "linear", tmp_path / "y.pth")
    with pytest.raises(ConfigError, match=r"y\.bin.*\.safetensors or \.pth"):
        to_vpt(tmp_path / "linear", tmp_path / "y.bin")


def run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["convert", *map(str, arguments)])
    return int(stopped.value.code or 0)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone, adapter, back = write_backbone(tmp_path), tmp_path / "adapter", tmp_path / "back.safetensors"
    prompts = {"shallow_prompt": numbers(1, P, 24), "deep_prompt": numbers(1, P, 24)}
    safetensors.torch.save_file(prompts, tmp_path / "p.safetensors")
    given = tmp_path / "p.safetensors", "--from", "vpt", "--backbone", backbone, "--to", adapter
    assert run(*given) == 2 and "no classes" in capsys.readouterr().err
    assert run(*given, "--classes", "cat,dog") == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(adapter) and "no head: the adapter's is untrained" in err
    assert viapt.load(adapter).classes == ["cat", "dog"]
    assert run(*given, "--classes", "cat,dog") == 2 and "exists" in capsys.readouterr().err
    assert run(*given, "--classes", "cat,dog", "--overwrite") == 0
    assert run(adapter, "--from", "viapt", "--to", back) == 0
    assert safetensors.torch.load_file(back)["enc.transformer.deep_prompt_embeddings"].equal(prompts["deep_prompt"])
    assert run(adapter, "--from", "viapt", "--to", tmp_path / "alone.pth", "--layout", "prompts") == 0
    assert "no place for the head" in capsys.readouterr().err
    assert read_vpt(tmp_path / "alone.pth").deep.equal(prompts["deep_prompt"])
    assert run(*given, "--layout", "prompts") == 2 and "--layout has no effect" in capsys.readouterr().err
    assert run(adapter, "--from", "viapt", "--to", tmp_path / "z.pth", "--classes", "a,b") == 2
    assert "--classes has no effect" in capsys.readouterr().err
    assert run(tmp_path / "p.safetensors", "--from", "vpt", "--to", tmp_path / "new") == 2
    assert "without --backbone" in capsys.readouterr().err


def test_files_of_swin_are_refused(tmp_path: Path) -> None:
    """Their features are made in another way: a converted adapter would not answer alike."""
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 8, "depths": (2, 1), "num_heads": (2, 4)}
    swin, file = SwinTransformer(**sizes, window_size=4, num_classes=0), tmp_path / "x.pth"
    for method, options in (("vpt-deep", {}), ("vpt-deep", {"projected_dim": 3}), ("vpt-shallow", {})):
        create_model(swin, method, classes=2, **options).save_pretrained(tmp_path / "adapter")
        with pytest.raises(ArtifactError, match=r"several widths|8 numbers for features of 16"):
            to_vpt(tmp_path / "adapter", file)
    shallow = {"prompt_embeddings": numbers(1, P, 8)}
    for deep in ({}, {"deep_prompt_embeddings": numbers(2, P, 8)}):
        torch.save(shallow | deep, file)
        with pytest.raises(ArtifactError, match=r"several widths.*Swin makes its features in another way"):
            from_vpt(file, swin, classes=2)
    torch.save(shallow | {"enc.deep_prompt_embeddings_0": numbers(1, P, 8)}, file)
    with pytest.raises(ArtifactError, match=r"deep_prompt_embeddings_0, prompts of Swin"):
        read_vpt(file)
