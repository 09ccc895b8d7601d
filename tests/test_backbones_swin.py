"""timm's Swin: prompts in every window against plain loops over its tokens, and methods as wide as each stage."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from viapt.backbones import create_backbone
from viapt.backbones.timm_base import fingerprint
from viapt.backbones.timm_swin import TimmSwin
from viapt.create import create_model
from viapt.errors import BackboneError, ConfigError
from viapt.explanation import entering_prompts, prompt_similarity
from viapt.inspection import inspect_model
from viapt.methods import create_method
from viapt.model import PromptedClassifier

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:timm.layers.interpolate")  # resizing tables of biases
SIZES: dict[str, Any] = {"patch_size": 4, "embed_dim": 8, "num_heads": (2, 4), "window_size": 4, "num_classes": 5}
KINDS: dict[str, dict[str, Any]] = {
    "shifted": {"img_size": 32, "depths": (2, 1)},
    "padded": {"img_size": (24, 44), "depths": (2, 2)},  # grids of 6 x 11 and 3 x 6, in windows of 4
    "three stages": {"img_size": 32, "depths": (1, 2, 1), "num_heads": (1, 2, 4), "window_size": 2},
}


def tiny(kind: str = "shifted", **options: Any) -> Any:
    """A random model in evaluation mode whose every parameter matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = SwinTransformer(**(SIZES | KINDS[kind] | options))
        with torch.no_grad():
            for parameter in vit.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return vit.eval()


def images(vit: Any, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *vit.patch_embed.img_size, generator=torch.Generator().manual_seed(1))


def timm_features(vit: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return vit.forward_head(vit.forward_features(x), pre_logits=True)


def loop_features(model: PromptedClassifier, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.run(model.embed(x), None)


# --- the oracle: one image, one window, one pair of tokens at a time ---

Enter = Callable[[int, Tensor], Tensor]  # number of a block, prompts that left the one before -> that enter


def by_hand(vit: Any, image: Tensor, prompts: Tensor, enter: Enter) -> Tensor:
    """The feature of one image with prompts (p, dim) in every window."""
    grid = vit.patch_embed(image[None])[0]
    number = 0
    for index, stage in enumerate(vit.layers):
        if index:
            grid, prompts = merged(stage.downsample, grid, prompts)
        for block in stage.blocks:
            grid, prompts = through(block, grid, enter(number, prompts))
            number += 1
    return vit.norm(grid).mean((0, 1))


def merged(merging: Any, grid: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Four neighbours side by side, column by column; a prompt beside itself."""
    rows = []
    for y in range(0, grid.shape[0], 2):
        row = []
        for x in range(0, grid.shape[1], 2):
            four = [
                grid[y + dy, x + dx]
                if y + dy < grid.shape[0] and x + dx < grid.shape[1]
                else torch.zeros_like(grid[0, 0])
                for dx, dy in product((0, 1), (0, 1))
            ]
            row.append(torch.cat(four))
        rows.append(torch.stack(row))
    wide = torch.stack(rows), torch.cat([prompts] * 4, dim=1)
    image, others = (F.linear(merging.norm(x), merging.reduction.weight) for x in wide)
    return image, others


def region(place: int, length: int, window: int, shift: int) -> int:
    """Of a shifted grid: before the last window, before what was shifted around, or that."""
    return 0 if place < length - window else 1 if place < length - shift else 2


def through(block: Any, grid: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    h, w, d = grid.shape
    (wh, ww), (sh, sw), p = block.window_size, block.shift_size, len(prompts)
    normed, silent = block.norm1(grid), torch.zeros(d, dtype=grid.dtype)
    seen, of_prompts = torch.zeros_like(grid), []
    hp, wp = -(-h // wh) * wh, -(-w // ww) * ww
    for top, left in product(range(0, hp, wh), range(0, wp, ww)):
        places = [(top + y, left + x) for y, x in product(range(wh), range(ww))]
        origins = [((y + sh) % h, (x + sw) % w) if y < h and x < w else None for y, x in places]
        tokens = torch.stack([silent if at is None else normed[at] for at in origins])
        scores = torch.zeros(block.attn.num_heads, len(places) + p, len(places) + p, dtype=grid.dtype)
        for (i, (y, x)), (j, (v, u)) in product(enumerate(places), enumerate(places)):
            row = (y - v + wh - 1) * (2 * ww - 1) + (x - u + ww - 1)
            scores[:, i, j] = block.attn.relative_position_bias_table[row]
            if any((sh, sw)):
                here = region(y, hp, wh, sh), region(x, wp, ww, sw)
                there = region(v, hp, wh, sh), region(u, wp, ww, sw)
                scores[:, i, j] -= 100.0 * (here != there)
        out = attention(block.attn, torch.cat([tokens, block.norm1(prompts)]), scores)
        for at, token in zip(origins, out, strict=False):
            if at is not None:
                seen[at] = token
        of_prompts.append(out[len(places) :])
    grid, prompts = grid + seen, prompts + torch.stack(of_prompts).mean(0)
    return grid + block.mlp(block.norm2(grid)), prompts + block.mlp(block.norm2(prompts))


def attention(attn: Any, tokens: Tensor, scores: Tensor) -> Tensor:
    outputs = []
    q, k, v = F.linear(tokens, attn.qkv.weight, attn.qkv.bias).chunk(3, dim=1)
    e = q.shape[1] // attn.num_heads
    for head in range(attn.num_heads):
        part = slice(head * e, (head + 1) * e)
        weights = (q[:, part] @ k[:, part].T / e**0.5 + scores[head]).softmax(1)
        outputs.append(weights @ v[:, part])
    return F.linear(torch.cat(outputs, dim=1), attn.proj.weight, attn.proj.bias)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_prompts_in_every_window(kind: str) -> None:
    vit = tiny(kind).double()
    x = images(vit).double()
    shallow = create_model(vit, "vpt-shallow", classes=2, num_prompts=3, precision="float32").double()
    deep = create_model(vit, "vpt-deep", classes=2, num_prompts=3, precision="float32").double()
    own: Any = shallow.method.prompts
    expected = torch.stack([by_hand(vit, image, own, lambda _, left: left) for image in x])
    torch.testing.assert_close(loop_features(shallow, x), expected)
    stages: Any = deep.method.prompts
    each = [prompts for tensor in stages.tensors for prompts in tensor]
    expected = torch.stack([by_hand(vit, image, each[0], lambda number, _: each[number]) for image in x])
    torch.testing.assert_close(loop_features(deep, x), expected)
    assert not torch.allclose(loop_features(deep, x), timm_features(vit, x), atol=1e-2)


@pytest.mark.parametrize("size", [None, (40, 48)])
@pytest.mark.parametrize("kind", KINDS)
def test_without_prompts_the_loop_gives_timms_own_features(kind: str, size: tuple[int, int] | None) -> None:
    vit, expected = tiny(kind), tiny(kind)
    if size is not None:
        expected.set_input_size(img_size=size)
    backbone, x = create_backbone(vit, image_size=size), images(expected)
    assert isinstance(backbone, TimmSwin)
    features = timm_features(expected, x)
    torch.testing.assert_close(backbone(x), features)
    linear = create_model(backbone, "linear", classes=2, precision="float32")
    torch.testing.assert_close(loop_features(linear, x), features, rtol=1e-5, atol=1e-5)
    assert features.shape == (2, backbone.feature_dim) and features.std() > 0
    assert backbone.preprocessing.image_size == (size or vit.patch_embed.img_size)
    assert backbone.fingerprint == fingerprint(vit) == create_backbone(vit).fingerprint


def test_a_prompt_merges_as_four_of_itself() -> None:
    vit = tiny()
    backbone, merging = create_backbone(vit), vit.layers[1].downsample
    tokens, prompts = torch.randn(2, 64, 8), torch.randn(2, 3, 8)
    image, left = backbone.advance(1, tokens, prompts, None)
    assert image.shape == (2, 16, 16) and left.shape == (2, 3, 16)
    equal = merging(prompts[:, :, None, None].expand(-1, -1, 2, 2, -1).flatten(0, 1).contiguous())
    from viapt.backbones.timm_swin import merge

    torch.testing.assert_close(
        merge(merging, torch.cat([tokens, prompts], 1), (8, 8))[:, 16:].flatten(0, 1), equal[:, 0, 0]
    )


# --- methods in stages ---


@pytest.mark.parametrize("kind", ["shifted", "three stages"])
def test_the_corners_of_viapt(kind: str) -> None:
    """Nothing kept is VPT-Deep, everything kept VPT-Shallow, in every stage."""
    vit = tiny(kind)
    x = images(vit).double()

    def build(method: str, **options: Any) -> Any:
        return create_model(vit, method, classes=2, num_prompts=8, precision="float32", **options).double()

    deep, shallow = build("vpt-deep"), build("vpt-shallow")
    nothing = build("viapt", kept_dim=0)
    nothing.method.fresh.load_state_dict(deep.method.prompts.state_dict())
    torch.testing.assert_close(loop_features(nothing, x), loop_features(deep, x))
    everything = build("viapt", kept_dim=8, num_instance_prompts=0, carry_scale=1.0, calibrate_carry=False)
    with torch.no_grad():
        everything.method.dataset_prompts.copy_(shallow.method.prompts)
    torch.testing.assert_close(loop_features(everything, x), loop_features(shallow, x))


def test_subspaces_are_as_wide_as_their_stage() -> None:
    model: Any = create_model(tiny("three stages"), "viapt", classes=2, kept_dim=3)
    subspaces: Any = model.method.kept
    assert [(part.dim, part.kept_dim, part.first, part.layers) for part in subspaces.parts] == [
        (8, 3, 0, 1),
        (16, 6, 1, 3),
        (32, 12, 3, 4),
    ]
    assert [tuple(tensor.shape) for tensor in model.method.fresh.tensors] == [(1, 10, 5), (2, 10, 10), (1, 10, 20)]


def test_each_stage_measures_what_it_carries() -> None:
    """Subspaces and scales of all blocks are estimated in training, those behind a merging too."""
    model = create_model(tiny("three stages"), "viapt", classes=2, kept_dim=3, calibration_steps=2).train()
    x = images(model.backbone.vit, 6)
    for _ in range(2):
        model(x)
    inspection = inspect_model(model.eval(), x)
    assert inspection.explained is not None and len(inspection.explained) == 4
    assert all(share is not None and 0 < share <= 1.001 for share in inspection.explained)
    assert inspection.kept_energy is not None and all(
        share is not None and 0 < share < 1 for share in inspection.kept_energy
    )
    scales: Any = model.method.scale
    assert [len(part.gain) for part in scales.parts] == [0, 2, 1]
    assert all(bool((part.seen == 2).all()) and not part.measuring for part in scales.parts[1:])
    assert all(bool((part.gain != 1).all()) for part in scales.parts)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("vpt-deep", {"projected_dim": 5}),
        ("vpt-deep", {"projected_dim": 5, "shared": True}),
        ("vpt-deep", {"dropout": 0.5}),
        ("vpt-shallow", {"projected_dim": 5, "dropout": 0.5}),
        ("viapt", {"kept_dim": "adaptive", "max_kept_dim": 3, "image_gate": True, "carried": "variation"}),
        ("viapt", {"kept_dim": 2, "fresh_dim": "full", "reduction": "linear"}),
        ("viapt", {"kept_dim": 2, "reduction": "select", "learn_carry_scale": True, "shared_basis": True}),
        ("viapt", {"kept_dim": 2, "carry_scale": 0.0}),
        ("viapt", {"kept_dim": 2, "reduction": "batch"}),
        ("viapt", {"kept_dim": 2, "reduction": "instance"}),
        ("lora", {"targets": "all"}),
        ("adaptformer", {"width": 8}),
    ],
)
def test_options_learn_in_every_stage(method: str, options: dict[str, Any]) -> None:
    if method == "lora":
        pytest.importorskip("peft")
    model = create_model(tiny("three stages"), method, classes=2, **options).train()
    optimizer = torch.optim.Adam(model.learnable().values(), lr=0.01)
    x, before = images(model.backbone.vit, 4), {n: p.detach().clone() for n, p in model.learnable().items()}
    for _ in range(3):
        loss, _ = model(x, torch.tensor([0, 1, 0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learned = {
        name: p for name, p in model.learnable().items() if p.numel()
    }  # a first stage of one block carries nothing
    assert [name for name, p in learned.items() if torch.equal(p, before[name])] == []


def test_dropout_of_wider_prompts_has_as_many_numbers() -> None:
    model: Any = create_model(tiny("three stages"), "vpt-deep", classes=2, num_prompts=3, dropout=0.25).train()
    assert model.method.training_noise == 3 * (1 + 2 * 2 + 4)
    noise = model.draw_noise(4000, seed=0)
    model.method.start(torch.zeros(4000, 1, 8), (1, 1), noise)
    for layer, width in enumerate(model.method.widths):
        entering = model.method.entering(layer, 4000) / model.method.prompts[layer]
        assert entering.shape == (4000, 3, width)
        assert bool(((entering == 0) | ((entering - 4 / 3).abs() < 1e-5)).all())
        assert 0.74 < (entering > 0).float().mean() < 0.76


def test_the_default_learns_less_than_vpt_deep() -> None:
    widths = (96,) * 2 + (192,) * 2 + (384,) * 6 + (768,) * 2
    counts = {
        name: sum(p.numel() for p in create_method(name, widths, 12, (4, 4)).parameters())
        for name in ("viapt", "vpt-deep", "vpt-shallow")
    }
    assert counts["vpt-shallow"] == 10 * 96 and counts["vpt-deep"] == 10 * sum(widths) == 44_160
    assert counts["viapt"] < counts["vpt-deep"]


def test_what_cannot_work_in_stages_is_refused() -> None:
    cases: tuple[tuple[str, dict[str, Any], type[Exception], str], ...] = (
        ("e2vpt", {}, BackboneError, "e2vpt serves blocks of one width.*8, 16"),
        ("vpt-deep", {"shared": True}, ConfigError, "shared"),
        ("viapt", {"instance_every": True}, ConfigError, "instance_every"),
    )
    for method, options, error, message in cases:
        with pytest.raises(error, match=message):
            create_model(tiny(), method, classes=2, **options)
    with pytest.raises(BackboneError, match="multiples of the first"):
        create_method("vpt-deep", (8, 12), 2, (4, 4))
    with pytest.raises(BackboneError, match="images of any size"):
        create_backbone(tiny(strict_img_size=False))


def test_where_weights_are_used() -> None:
    backbone = create_backbone(tiny("three stages"))
    for name, stage in (
        ("vit.patch_embed.proj.weight", -1),
        ("vit.layers.0.blocks.0.norm1.weight", 0),
        ("vit.layers.1.downsample.norm.bias", 0),
        ("vit.layers.1.blocks.1.mlp.fc1.bias", 2),
        ("vit.layers.2.downsample.reduction.weight", 2),
        ("vit.layers.2.blocks.0.attn.relative_position_bias_table", 3),
        ("vit.norm.weight", 4),
    ):
        assert backbone.get_parameter(name).numel() and backbone.stage_of(name) == stage


def test_prompts_of_all_layers_can_be_compared() -> None:
    model = create_model(tiny("three stages"), "viapt", classes=2, kept_dim=2, num_prompts=4, num_instance_prompts=2)
    prompts = entering_prompts(model, images(model.backbone.vit, 3))
    assert [tuple(layer.shape) for layer in prompts] == [(3, 4, 8), (3, 4, 16), (3, 4, 16), (3, 4, 32)]
    similarity = prompt_similarity(prompts)
    assert similarity.cosine.shape == (4, 3, 3) and bool((similarity.varying > 0).all())


# --- files and names ---


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    """Masks and indices, which no file holds, are computed."""
    vit = tiny("padded")
    options = SIZES | KINDS["padded"]
    known: Any = timm.get_pretrained_cfg("swin_tiny_patch4_window7_224")
    vit.pretrained_cfg = known.to_dict()
    vit.pretrained_cfg |= {"architecture": "swin_tiny_patch4_window7_224"}
    timm.models.save_for_hf(vit, str(tmp_path), model_args=options, safe_serialization=True)
    backbone = create_backbone(f"local-dir:{tmp_path}")
    assert not any(tensor.is_meta for tensor in (*backbone.parameters(), *backbone.buffers()))
    torch.testing.assert_close(backbone(images(vit)), timm_features(vit, images(vit)))
    model = create_model(backbone, "vpt-deep", classes=2, precision="float32")
    other = create_model(vit, "vpt-deep", classes=2, precision="float32")
    assert torch.equal(loop_features(model, images(vit)), loop_features(other, images(vit)))
    save_file({"a": torch.zeros(1)}, tmp_path / "swin.safetensors")
    with pytest.raises(BackboneError, match="do not fit the architecture"):
        create_backbone("swin_tiny_patch4_window7_224", weights=tmp_path / "swin.safetensors")
    with pytest.raises(BackboneError, match="another kind"):
        create_backbone("swinv2_tiny_window8_256", pretrained=False)


def test_it_stays_in_the_precision_that_it_is_cast_to() -> None:
    model = create_model(tiny(), "viapt", classes=2, precision="bfloat16")
    loss, logits = model.train()(images(model.backbone.vit), torch.tensor([0, 1]))
    loss.backward()
    assert model.backbone.dtype == torch.bfloat16 and logits.dtype == torch.float32
    assert all(p.grad is not None for p in model.learnable().values())
    assert isinstance(model.head, nn.Linear) and model.head.in_features == 16
