"""Backbones: the same features as timm's own code, weights from everywhere they may come from, frozen for good."""

from __future__ import annotations

import copy
import json
import pickle
import struct
from pathlib import Path
from typing import Any
from unittest import mock

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import viapt.backbones.timm_weights as timm_weights
from viapt.backbones import create_backbone, list_backbones
from viapt.backbones.base import Preprocessing
from viapt.backbones.timm_base import fingerprint
from viapt.backbones.timm_vit import TimmViT
from viapt.errors import BackboneError
from viapt.methods.linear import Linear
from viapt.model import PromptedClassifier

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
STEM = {name: value for name, value in SMALL.items() if name not in ("img_size", "patch_size")}
FAMILIES: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": SMALL,
    "vit_base_patch16_clip_224": SMALL,  # norm before the blocks, no bias in the patches
    "vit_base_patch16_siglip_224": SMALL,  # no class token, attention pooling
    "vit_base_patch16_siglip_gap_224": SMALL,
    "vit_small_patch14_reg4_dinov2": SMALL | {"img_size": 28, "patch_size": 14},  # registers, layer scale
    "vit_base_patch16_reg4_gap_256": SMALL,
    "vit_base_patch16_18x2_224": SMALL,  # parallel blocks
    "flexivit_small": SMALL,
    "deit3_small_patch16_224": SMALL,  # no position for the class token
    "deit_tiny_distilled_patch16_224": SMALL,  # two prefix tokens, a forward_head of its own
    "vit_tiny_r_s16_p8_224": STEM | {"img_size": 64},  # a convolutional stem
}


def tiny(name: str = "vit_tiny_patch16_224", seed: int = 0, **options: Any) -> VisionTransformer:
    """A random model in evaluation mode whose every parameter matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vit = timm.create_model(name, **(FAMILIES[name] | {"num_classes": 5} | options))
        with torch.no_grad():
            for parameter in vit.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    assert isinstance(vit, VisionTransformer)
    return vit.eval()


def images(vit: nn.Module, size: tuple[int, int] | None = None) -> torch.Tensor:
    height, width = size or vit.patch_embed.img_size
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def timm_features(vit: VisionTransformer, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return vit.forward_head(vit.forward_features(x), pre_logits=True)


def loop_features(backbone: TimmViT, x: torch.Tensor) -> torch.Tensor:
    """Of the loop in which every block computes all tokens."""
    model = PromptedClassifier(backbone, Linear(backbone.dim, backbone.depth, backbone.patch_size), ["a", "b"])
    with torch.no_grad(), mock.patch.object(backbone, "shortcuts", False):
        return model.run(model.embed(x), None)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loop_gives_timms_own_features(name: str) -> None:
    vit = tiny(name)
    x, backbone = images(vit), create_backbone(vit)
    features = timm_features(vit, x)
    torch.testing.assert_close(loop_features(backbone, x), features)
    torch.testing.assert_close(backbone(x), features)
    assert features.shape == (2, backbone.feature_dim)
    assert features.std() > 0


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dynamic", [False, True])
def test_the_position_grid_follows_the_image_size(name: str, dynamic: bool) -> None:
    vit = tiny(name, **({"dynamic_img_size": True} if dynamic else {}))
    patch = create_backbone(vit).patch_size
    size = (patch[0] * 3, patch[1] * 5)
    x, expected = images(vit, size), copy.deepcopy(vit)
    expected.set_input_size(img_size=size)
    backbone = create_backbone(vit, image_size=size)
    torch.testing.assert_close(loop_features(backbone, x), timm_features(expected, x))
    assert backbone.embed(x, 0).grid == (3, 5)
    assert backbone.preprocessing.image_size == size
    assert backbone.fingerprint == create_backbone(vit).fingerprint


def test_a_resampler_of_the_weights_own_replaces_timms() -> None:
    vit = tiny()
    asked = []

    def resample(position: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        asked.append((position.shape, grid))
        return torch.zeros(1, 1 + grid[0] * grid[1], position.shape[-1])

    backbone = TimmViT(vit, image_size=(16, 24), resample_position=resample)
    assert asked == [((1, 17, 32), (2, 3))]
    assert backbone.vit.pos_embed.shape == (1, 7, 32)
    assert backbone.embed(images(vit, (16, 24)), 0).grid == (2, 3)


@pytest.mark.parametrize("size", [30, (32, 20), (0, 32), (-8, 8), (1, 2, 3)])
def test_impossible_image_sizes_are_refused(size: Any) -> None:
    with pytest.raises(BackboneError, match="image size"):
        create_backbone(tiny(), image_size=size)


def test_frozen_means_frozen() -> None:
    rates = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")
    vit = tiny(**dict.fromkeys(rates, 0.5)).train()
    backbone = create_backbone(vit).train()
    model = PromptedClassifier(backbone, Linear(32, 2, (8, 8)), ["a", "b"]).train()
    x = images(vit)
    torch.testing.assert_close(loop_features(backbone, x), timm_features(vit.eval(), x))
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    model(x, torch.tensor([0, 1]))[0].backward()
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_running_statistics_of_a_convolutional_stem_stay() -> None:
    options = {"img_size": 64, "embed_dim": 32, "depth": 1, "num_heads": 2}
    vit = timm.create_model("vit_small_resnet26d_224", **options)
    assert any(isinstance(module, nn.BatchNorm2d) for module in vit.modules())
    backbone = create_backbone(vit).train()
    before = copy.deepcopy(backbone.state_dict())
    backbone.embed(images(vit), 0)
    assert backbone.patch_size == (32, 32)
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())


def test_a_module_of_the_users_own_stays_as_it_is() -> None:
    vit = tiny().train()
    before = copy.deepcopy(vit.state_dict())
    backbone = create_backbone(vit, image_size=16).to(torch.bfloat16)
    assert backbone.vit is not vit
    assert vit.training and all(parameter.requires_grad for parameter in vit.parameters())
    assert vit.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, vit.state_dict()[name]) for name, tensor in before.items())
    assert vit.patch_embed.img_size == (32, 32)
    assert backbone.name is None


def test_a_backbone_passes_through() -> None:
    backbone = create_backbone(tiny())
    backbone.requires_grad_(True)
    assert create_backbone(backbone) is backbone
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert create_backbone(backbone, image_size=32) is backbone
    with pytest.raises(BackboneError, match=r"images of \(32, 32\)"):
        create_backbone(backbone, image_size=64)


def test_the_fingerprint_is_of_the_weights_alone() -> None:
    vit = tiny()
    reference = create_backbone(vit).fingerprint
    assert reference.startswith("sha256:") and len(reference) == 71
    for classes in (0, 9):
        other_head = copy.deepcopy(vit)
        other_head.reset_classifier(classes)
        assert create_backbone(other_head).fingerprint == fingerprint(other_head) == reference
    assert create_backbone(vit, image_size=16).to(torch.bfloat16).fingerprint == reference
    for name in vit.state_dict():
        changed = copy.deepcopy(vit)
        changed.state_dict()[name].view(torch.int32).flatten()[-1] ^= 1  # the last bit of one weight
        assert (fingerprint(changed) == reference) == name.startswith("head.")
    renamed = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    swapped = nn.ModuleDict({"a": renamed["b"], "b": renamed["a"]})
    assert fingerprint(renamed) != fingerprint(swapped)


def test_what_is_no_vision_transformer_is_refused() -> None:
    class Another(VisionTransformer):
        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward_features(x) + 1

    for module, problem in (
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (timm.create_model("vit_relpos_small_patch16_224", depth=1), "VisionTransformerRelPos"),
        (Another(**SMALL), "forward_features of its own"),
        (tiny(global_pool="", fc_norm=False), "returns tokens"),
        (tiny(in_chans=1), "1 channels"),
    ):
        with pytest.raises(BackboneError, match=problem):
            create_backbone(module)


def test_options_without_effect_are_refused() -> None:
    for spec in (tiny(), "packaged:vits14", "local-dir:somewhere"):
        with pytest.raises(BackboneError, match="leave out"):
            create_backbone(spec, weights="file.safetensors")
        with pytest.raises(BackboneError, match="leave out"):
            create_backbone(spec, pretrained=False)


# Names


def test_names_are_of_vision_transformers() -> None:
    names = list_backbones()
    assert names[0] == "packaged:vits14"
    assert len(names) == len(set(names)) > 300
    assert {"vit_base_patch16_224.augreg_in21k", "vit_small_patch14_dinov2.lvd142m"} <= set(names)
    for name in (*FAMILIES, "aimv2_large_patch14_224", "beit3_base_patch16_224", "vit_small_r26_s32_224"):
        assert name in timm_weights.architectures()
        with torch.device("meta"):
            assert isinstance(timm.create_model(name, **(FAMILIES.get(name) or {"depth": 1})), VisionTransformer)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tinny_patch16_224", "did you mean 'vit_tiny_patch16_224'"),
        ("packaged:vits16", "did you mean 'packaged:vits14'"),
        ("vit_tiny_patch16_224.augreg_in22k", "vit_tiny_patch16_224.augreg_in21k"),
        ("resnet18", "timm's resnet18 is of another kind"),
        ("cait_s24_224", "of another kind"),
        ("", "There is no backbone ''"),
    ],
)
def test_other_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        create_backbone(name)


def test_random_weights_are_always_the_same() -> None:
    state = torch.get_rng_state()
    first = create_backbone("test_vit4", pretrained=False)
    torch.rand(3)
    second = create_backbone("test_vit4", pretrained=False)
    assert first.fingerprint == second.fingerprint
    assert (first.name, first.pretrained) == ("test_vit4", False)
    torch.set_rng_state(state)
    create_backbone("test_vit4", pretrained=False)
    assert torch.equal(torch.get_rng_state(), state)


# The hub


def test_without_the_hub_the_remedy_comes_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub's client would try for a minute")

    class Session:
        def head(self, *_: Any, **__: Any) -> None:
            raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(timm_weights, "get_session", Session)
    monkeypatch.setattr(timm, "create_model", never)
    with pytest.raises(BackboneError, match="no route to host") as error:
        create_backbone("vit_tiny_patch16_224.augreg_in21k")
    for remedy in ("weights=FILE", "--weights FILE", "local-dir:PATH", "packaged:vits14"):
        assert remedy in error.value.remedy


def test_offline_mode_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    with pytest.raises(BackboneError, match="OfflineModeIsEnabled"):
        create_backbone("test_vit.r160_in1k")


def test_weights_in_the_hubs_cache_need_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    saved = timm.create_model("test_vit", pretrained=False)
    repository = tmp_path / "models--timm--test_vit.r160_in1k"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    save_file(saved.state_dict(), snapshot / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    backbone = create_backbone("test_vit.r160_in1k")
    assert backbone.fingerprint == fingerprint(saved)
    assert (backbone.name, backbone.pretrained) == ("test_vit.r160_in1k", True)
    with (snapshot / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(BackboneError, match="cannot be loaded"):
        create_backbone("test_vit.r160_in1k")


def test_architectures_without_published_weights_say_so() -> None:
    with pytest.raises(BackboneError, match="no weights under the name test_vit4"):
        create_backbone("test_vit4")


# Files


@pytest.fixture(scope="module")
def saved() -> VisionTransformer:
    return timm.create_model("test_vit4", pretrained=False, num_classes=7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [0, 7])
def test_weights_come_from_a_file(
    saved: VisionTransformer, tmp_path: Path, dtype: torch.dtype, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit = copy.deepcopy(saved).to(dtype)
    vit.reset_classifier(classes)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    monkeypatch.chdir(tmp_path)
    backbone = create_backbone("test_vit4", weights="vit.safetensors")
    assert backbone.fingerprint == fingerprint(vit.float())
    assert backbone.weights == tmp_path / "vit.safetensors"
    assert backbone.dtype == torch.float32
    assert not any(tensor.is_meta for tensor in backbone.state_dict().values())
    x = images(vit)
    torch.testing.assert_close(loop_features(backbone, x), timm_features(vit.eval(), x))


def test_the_image_size_follows_the_position_grid_of_the_file(saved: VisionTransformer, tmp_path: Path) -> None:
    vit = copy.deepcopy(saved).eval()
    vit.set_input_size(img_size=(64, 64))
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    backbone = create_backbone("test_vit4", weights=tmp_path / "vit.safetensors")
    assert backbone.preprocessing.image_size == (64, 64)
    torch.testing.assert_close(backbone(images(vit)), timm_features(vit, images(vit)))


def test_files_that_do_not_fit_are_refused_with_a_list(saved: VisionTransformer, tmp_path: Path) -> None:
    path, state = tmp_path / "vit.safetensors", saved.state_dict()
    without = {name: tensor for name, tensor in state.items() if name not in ("fc_norm.weight", "reg_token")}
    for tensors, message in (
        (without, r"missing: fc_norm\.weight, reg_token\)"),
        (state | {"extra.weight": torch.zeros(2)}, r"unexpected: extra\.weight"),
        (state | {"fc_norm.weight": torch.zeros(3)}, r"of another shape: fc_norm\.weight \(3,\) instead of \(96,\)"),
        (state | {"pos_embed": torch.zeros(1, 7, 96)}, r"of another shape: pos_embed"),
        (state | {"pos_embed": torch.zeros(3)}, r"of another shape: pos_embed"),
        ({}, r"missing: .* and \d+ more"),
    ):
        save_file(tensors, path)
        with pytest.raises(BackboneError, match=message):
            create_backbone("test_vit4", weights=path)


def test_damaged_files_are_refused(saved: VisionTransformer, tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    save_file(saved.state_dict(), path)
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    for data in (
        b"",
        whole[:5],
        whole[:100],
        whole[:-1],
        whole[:8] + b"x" * length + whole[8 + length :],
        struct.pack("<Q", 2**63) + whole[8:],
        struct.pack("<Q", len(whole)) + whole[8:],
    ):
        path.write_bytes(data)
        with pytest.raises(BackboneError, match="cannot be read as safetensors"):
            create_backbone("test_vit4", weights=path)


def test_the_header_is_bounded_before_it_is_parsed(tmp_path: Path) -> None:
    path, length = tmp_path / "vit.safetensors", 2**24 + 1
    with path.open("wb") as file:
        file.write(struct.pack("<Q", length) + b"{}")
        file.truncate(length + 100)
    with pytest.raises(BackboneError, match="at most 16777216"):
        create_backbone("test_vit4", weights=path)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "sprung")


@pytest.mark.parametrize("suffix", ["bin", "pth", "pt", "pkl", "safetensors"])
def test_pickles_are_never_opened(tmp_path: Path, suffix: str) -> None:
    path, mark = tmp_path / f"weights.{suffix}", tmp_path / "mark"
    path.write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(BackboneError, match="safetensors"):
        create_backbone("test_vit4", weights=path)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architecture": "test_vit4"}))
    path.rename(folder / ("model.safetensors" if suffix == "safetensors" else f"pytorch_model.{suffix}"))
    with pytest.raises(BackboneError, match="safetensors"):
        create_backbone(f"local-dir:{folder}")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Trap(mark)))
    assert mark.exists()  # the trap works


# Folders


def test_weights_come_from_a_folder_in_timms_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vit = tiny("vit_base_patch16_siglip_224")
    timm.models.save_for_hf(vit, str(tmp_path / "siglip"), model_args=SMALL, safe_serialization=True)
    monkeypatch.chdir(tmp_path)
    backbone = create_backbone("local-dir:siglip", image_size=(32, 16))
    assert backbone.name == f"local-dir:{tmp_path / 'siglip'}"
    assert backbone.fingerprint == create_backbone(vit).fingerprint
    expected = copy.deepcopy(vit)
    expected.set_input_size(img_size=(32, 16))
    x = images(vit, (32, 16))
    torch.testing.assert_close(loop_features(backbone, x), timm_features(expected, x))
    assert backbone.preprocessing.mean == (0.5, 0.5, 0.5)


def test_folders_that_are_not_timms_are_refused(saved: VisionTransformer, tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(BackboneError, match=message):
            create_backbone(f"local-dir:{tmp_path}")

    refused("There is no .*config.json")
    config = tmp_path / "config.json"
    config.write_text('{"architecture": "test_vit4"}')
    refused("There is no .*model.safetensors")
    save_file(saved.state_dict(), tmp_path / "model.safetensors")
    assert create_backbone(f"local-dir:{tmp_path}").fingerprint == fingerprint(saved)
    for text, message in (
        ("{", "is not timm's"),
        ("[1]", "is not timm's"),
        ("[" * 100_000, "is not timm's"),
        ("{}", "is not timm's"),
        ('{"architecture": "resnet18"}', "names the architecture 'resnet18'"),
        ('{"architecture": ["test_vit4"]}', "names the architecture"),
        (with_arguments({"depth": "two"}), "cannot build"),
        (with_arguments(3), "cannot build"),
        (with_arguments({"embed_dim": 960_000}), "of another shape"),  # terabytes, were they allocated
        (" " * 2**20 + "{}", "at most 1048576"),
    ):
        config.write_text(text)
        refused(message)


def with_arguments(arguments: Any) -> str:
    return json.dumps({"architecture": "test_vit4", "pretrained_cfg": {}, "model_args": arguments})


# Preprocessing


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", (0, 32)),
        ("image_size", (8192, 32)),
        ("mean", (0.5, 0.5, float("nan"))),
        ("std", (0.5, 0.5, 0.0)),
        ("interpolation", "area"),
        ("crop_pct", 0.0),
        ("crop_pct", 1.5),
        ("crop_mode", "fill"),
    ],
)
def test_impossible_preprocessing_is_refused(name: str, value: Any) -> None:
    with pytest.raises(BackboneError, match=name):
        Preprocessing(**{name: value})


def test_preprocessing_survives_json() -> None:
    preprocessing = Preprocessing(image_size=(32, 48), mean=(0.1, 0.2, 0.3), crop_pct=0.875)
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


# The packaged weights


@pytest.mark.packaged
def test_the_packaged_backbone() -> None:
    from viapt.backbones.packaged import resample_position, vits14_state_dict

    weights = vits14_state_dict()
    backbone, larger = create_backbone("packaged:vits14"), create_backbone("packaged:vits14", image_size=(56, 70))
    assert (backbone.dim, backbone.depth, backbone.patch_size, backbone.feature_dim) == (384, 12, (14, 14), 384)
    assert backbone.preprocessing == Preprocessing(image_size=(98, 98))
    assert backbone.fingerprint == larger.fingerprint
    assert torch.equal(backbone.vit.pos_embed, resample_position(weights["pos_embed"], (7, 7)))
    assert torch.equal(larger.vit.pos_embed, resample_position(weights["pos_embed"], (4, 5)))
    x = images(backbone.vit)
    torch.testing.assert_close(loop_features(backbone, x), timm_features(backbone.vit, x))
