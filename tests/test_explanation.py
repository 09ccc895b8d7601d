"""What an explanation computes, against plain tensor code; and what `viapt explain` leaves behind."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import ParallelThingsBlock
from torch.nn import functional as F  # noqa: N812

from cli_cases import write_backbone, write_photos
from test_inspection import classifier
from test_report import NASTY, Page
from viapt import artifact
from viapt.cli import main
from viapt.errors import BackboneError, ConfigError, DataError
from viapt.explanation import (
    entering_prompts,
    features_of,
    in_two_dimensions,
    layer_attention,
    nearest,
    prompt_similarity,
)
from viapt.inspection import prompt_attention
from viapt.report.explained import Explained, Explanation, Neighbour, place, write_explanation
from viapt.report.explained_plots import Dots, attention_sheet, named_classes, off_diagonal, scatter, similarities

INSTANCE, PROMPTS = 3, 6  # of `classifier`


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(11, 3, 32, 32, generator=torch.Generator().manual_seed(1))  # more than go together


def entering_by_hand(model, images) -> list[torch.Tensor]:
    """All tokens that enter each block, by the model's own loop: caught from the backbone's blocks."""
    caught: list[torch.Tensor] = []
    model.backbone.shortcuts = False
    hooks = [b.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0])) for b in model.backbone.vit.blocks]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return caught


def weights_by_hand(block, tokens: torch.Tensor) -> torch.Tensor:
    """Softmax of scaled products, from the block's own normalisation and projection."""
    heads, dim = block.attn.num_heads, tokens.shape[-1]
    qkv = F.linear(block.norm1(tokens), block.attn.qkv.weight, block.attn.qkv.bias)
    q, k, _ = (part.unflatten(-1, (heads, dim // heads)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / (dim // heads) ** 0.5
    weights = scores.exp()
    return weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize(
    "vit", [{}, {"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}], ids=["class", "registers", "none"]
)
def test_attention_is_the_softmax_of_the_blocks_own_products(vit, images):
    model = classifier(vit=vit)
    found = layer_attention(model, images)
    k = model.backbone.vit.num_prefix_tokens
    with torch.no_grad():
        for layer, tokens in enumerate(entering_by_hand(model, images)):
            weights = weights_by_hand(model.backbone.vit.blocks[layer], tokens).mean(1)
            looking = weights[:, 0] if k else weights[:, :-PROMPTS].mean(1)
            torch.testing.assert_close(found.maps[:, layer].flatten(1), looking[:, k:-PROMPTS])
            torch.testing.assert_close(found.on_prompts[:, layer], looking[:, -PROMPTS:].sum(1))
            torch.testing.assert_close(found.prompts[:, layer].flatten(2), weights[:, -PROMPTS:, k:-PROMPTS])
    assert found.looking == ("class token" if k else "patches") and found.maps.shape == (11, 3, 4, 4)


def test_what_is_looked_at_sums_to_one(images):
    found = layer_attention(classifier(vit={"reg_tokens": 2}), images)
    total = found.maps.sum((-1, -2)) + found.on_prompts + found.on_prefix
    torch.testing.assert_close(total, torch.ones(11, 3))
    assert float(found.prompts.min()) >= 0 and float(found.prompts.sum((-1, -2)).max()) < 1


@pytest.mark.parametrize("method", ["viapt", "vpt-deep"])
def test_inspection_sees_the_same(method, images):
    model = classifier(method)
    found, inspected = layer_attention(model, images), prompt_attention(model, images)
    torch.testing.assert_close(found.on_prompts, inspected.share)
    torch.testing.assert_close(found.prompts.mean(1), inspected.maps)


def test_entering_prompts_are_the_last_tokens_of_each_layer(images):
    model = classifier()
    expected = [tokens[:, -PROMPTS:] for tokens in entering_by_hand(model, images)]
    torch.testing.assert_close(entering_prompts(model, images), expected)


def test_attention_that_cannot_be_seen_is_refused(images):
    with pytest.raises(BackboneError, match="2 times instead of once"):
        layer_attention(classifier(vit={"block_fn": ParallelThingsBlock}), images)
    model = classifier("linear")
    model.method.weights = lambda stage: {"vit.norm.weight": torch.ones(24)} if stage == 3 else {}
    with pytest.raises(BackboneError, match="learns weights"):
        layer_attention(model, images)


def test_only_instance_prompts_react_before_the_first_block(images):
    prompts = entering_prompts(classifier(kept_dim=24, reduction="random"), images)
    made, fixed = (prompt_similarity([prompts[0][:, rows]]) for rows in (slice(0, INSTANCE), slice(INSTANCE, PROMPTS)))
    assert float(made.varying[0]) > 1e-4 and float(fixed.varying[0]) < 1e-10
    assert off_diagonal(made.cosine[0].numpy()) < 0.9999
    torch.testing.assert_close(fixed.cosine[0], torch.ones(11, 11))


def test_similarity_by_hand():
    """Two pictures, two prompts: one is the same, one turned by 90 degrees and twice as long."""
    prompts = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]], [[[1.0, 0.0], [2.0, 0.0]]]])
    found = prompt_similarity([prompts[:, 0]])
    torch.testing.assert_close(found.cosine, torch.tensor([[[1.0, 0.5], [0.5, 1.0]]]))
    # means (1, 0) and (1, 1/2): twice 1 + 1/4 differs of 1 + 1 + 1 + 4
    assert float(found.varying) == pytest.approx(2.5 / 7)
    with pytest.raises(DataError, match="1 image"):
        prompt_similarity([prompts[:1, 0]])


def test_features_without_what_was_learned_and_with_it(images):
    model = classifier()
    before, after = features_of(model, model.backbone, iter(images.split(4)))
    with torch.no_grad():
        torch.testing.assert_close(before, model.backbone(images))
        torch.testing.assert_close(after @ model.head.weight.T + model.head.bias, model(images))
    assert not torch.allclose(before, after)
    with pytest.raises(DataError, match="no images"):
        features_of(model, model.backbone, iter([]))


def test_nearest_leaves_out_what_is_excluded():
    known = torch.tensor([[1.0, 0.0], [3.0, 3.0], [0.0, 1.0], [-1.0, 0.0]])
    similarity, index = nearest(torch.tensor([[2.0, 0.1]]), known, 2)
    assert index.tolist() == [[0, 1]] and float(similarity[0, 1]) == pytest.approx(2.1 / (4.01 * 2) ** 0.5)
    _, index = nearest(torch.tensor([[2.0, 0.1]]), known, 9, torch.tensor([[True, False, False, False]]))
    assert index.tolist() == [[1, 2, 3, 0]]


@pytest.fixture
def clusters() -> torch.Tensor:
    """Two groups of twenty, far apart."""
    dots = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    dots[20:, 0] += 30
    return dots


def test_principal_components_are_those_of_the_covariance(clusters):
    points, share = in_two_dimensions(clusters, "pca")
    centred = clusters.double() - clusters.double().mean(0)
    _, values, directions = torch.linalg.svd(centred, full_matrices=False)
    expected = (centred @ directions[:2].T).numpy()
    np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-8)
    assert share == pytest.approx(float(values[:2].square().sum() / values.square().sum()))


def test_t_sne_keeps_groups_apart_and_repeats(clusters):
    points, share = in_two_dimensions(clusters, "t-sne", seed=3)
    assert share is None and np.array_equal(points, in_two_dimensions(clusters, "t-sne", seed=3)[0])
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.diag([np.inf] * 40)
    assert all((one < 20) == (k < 20) for k, one in enumerate(distances.argmin(1)))


def test_too_few_features_and_unknown_maps(clusters):
    with pytest.raises(DataError, match="7 features"):
        in_two_dimensions(clusters[:7], "pca")
    with pytest.raises(ConfigError, match="umap"):
        in_two_dimensions(clusters, "umap")


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_an_attention_sheet_has_room_for_every_layer():
    """Layers fill rows of six; all attention in the lower right corner is bright there."""
    image = np.full((40, 40, 3), 90, np.uint8)
    maps = np.zeros((8, 4, 4))
    maps[:, 3, 3] = 0.5
    one, two = pixels(attention_sheet(image, {"a": maps[:6]})), pixels(attention_sheet(image, {"a": maps}))
    assert one.shape[1] == two.shape[1] and two.shape[0] > 1.6 * one.shape[0]
    warm = (one[..., 0] - one[..., 2]) > 60
    assert warm.any() and place(maps[0]) == "at the bottom on the right"
    rows = np.nonzero(warm.any(1))[0]
    assert rows.min() > 0.5 * one.shape[0]


def test_equal_prompts_still_have_a_scale():
    assert pixels(similarities({"same": np.ones((2, 3, 3))})).size


def test_many_classes_are_grey_but_those_of_the_pictures():
    rng = np.random.default_rng(0)
    classes = [f"c{k % 20:02d}" for k in range(60)] + ["c19"]
    dots = Dots(rng.normal(size=(61, 2)), classes, [60])
    names = named_classes(dots)
    assert len(names) == 12 and "c19" in names
    assert pixels(scatter(dots, x="x", y="y")).size


def test_the_page_is_whole_and_names_are_no_markup(tmp_path):
    image = np.zeros((8, 8, 3), np.uint8)
    one = Explained(
        NASTY, image, NASTY, 0.5, {"The class token": np.ones((2, 2, 2)) / 8},
        {"Most alike before tuning": [Neighbour("n", NASTY, 0.9, image)]},
    )  # fmt: skip
    page = write_explanation(
        Explanation("T", "S", [one], on_prompts=[0.1, 0.2], no_maps="none", facts={"command": NASTY}), tmp_path
    )
    found = Page(page.read_text(encoding="utf-8"))
    assert found.open == [] and found.links == [] and "script" not in found.tags and len(found.images) == 3
    assert NASTY in found.text
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == [
        "attention-1.png", "neighbours-1.png", "on-prompts.png",
    ]  # fmt: skip
    write_explanation(Explanation("T", "S", [Explained("a", image, "b", 0.5)], no_attention="x", no_maps="y"), tmp_path)
    assert not list((tmp_path / "pictures").iterdir())


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> tuple[Path, Path]:
    """A run, and its photos."""
    folder = tmp_path_factory.mktemp("explained")
    return fit(folder, write_backbone(folder))


def fit(folder: Path, backbone: str) -> tuple[Path, Path]:
    """A run on some photos, and these."""
    photos = write_photos(folder / "photos", {"red": (220, 30, 30), "blue": (30, 30, 220)}, 10)
    command = ["fit", str(photos), "--backbone", backbone, "--out", str(folder / "run"), "--epochs", "1"]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--set", "num_prompts=4", "--set", "num_instance_prompts=2"])
    assert stopped.value.code == 0
    return folder / "run", photos


def call(capsys, *arguments: object) -> tuple[int, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["explain", *map(str, arguments)])
    return stopped.value.code, capsys.readouterr().err


def test_explain_with_training_data(fitted, tmp_path, capsys):
    run, photos = fitted
    code, err = call(capsys, run, photos / "red" / "00.png", photos / "blue" / "01.png", "--out", tmp_path / "x",
                     "--train", photos)  # fmt: skip
    assert code == 0, err
    page = Page((tmp_path / "x" / "explanation.html").read_text(encoding="utf-8"))
    names = {path.name for path in (tmp_path / "x" / "pictures").iterdir()}
    assert len(page.images) == len(names) == 2 + 3 + 4 + 2
    assert {"attention-2.png", "prompt-similarity.png", "pca-before.png", "t-sne-after.png"} <= names
    assert "12 training pictures" in page.text  # of 20, the rest is for validation and test
    assert re.search("sha256:[0-9a-f]{64}", page.text)


def test_the_command_on_the_page_makes_the_page_again(fitted, tmp_path, capsys, monkeypatch):
    run, photos = fitted
    weights, restore = tmp_path / "weights.safetensors", artifact.restore_backbone
    monkeypatch.setattr(artifact, "restore_backbone", lambda *given: restore(*given[:3], None))  # it has its own
    options = [photos / "red" / "00.png", "--out", tmp_path / "x", "--train", photos, "--train-images", 10]
    options += ["--seed", 1, "--weights", weights]
    code, err = call(capsys, run, *options)
    assert code == 0, err
    page = Page((tmp_path / "x" / "explanation.html").read_text(encoding="utf-8"))
    assert shlex.join(["viapt", "explain", str(run), *map(str, options)]) in page.text


@pytest.mark.parametrize("kind", ["eva02_tiny_patch14_224", "vit_small_patch16_dinov3", "transformers"])
def test_explain_shows_attention_of_other_backbones(kind, tmp_path, capsys):
    """Of rotary models of timm, and of one of transformers."""
    if kind == "transformers":
        transformers = pytest.importorskip("transformers")
        sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
        config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8)
        transformers.ViTModel(config).save_pretrained(tmp_path / "backbone")
        backbone = f"transformers:{tmp_path / 'backbone'}"
    else:
        backbone = write_backbone(tmp_path, kind)
    run, photos = fit(tmp_path, backbone)
    code, err = call(capsys, run, photos / "red" / "00.png", "--out", tmp_path / "x")
    assert code == 0, err
    assert {path.name for path in (tmp_path / "x" / "pictures").iterdir()} == {"attention-1.png", "on-prompts.png"}
    assert "no maps of it" not in (tmp_path / "x" / "explanation.html").read_text()


def test_explain_one_picture_without_training_data(fitted, tmp_path, capsys):
    run, photos = fitted
    code, err = call(capsys, run, photos / "red" / "00.png", "--out", tmp_path / "x")
    assert code == 0, err
    text = Page((tmp_path / "x" / "explanation.html").read_text()).text
    assert "1 picture is too few for a map" in text and "nothing to compare prompts with" in text and "--train" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--train-images 3", "--train-images has no effect"),
        ("--train {photos} --train-images 0", "1 or more"),
        ("--seed -1", "0 or above"),
    ],
)
def test_mistakes(arguments, words, fitted, tmp_path, capsys):
    run, photos = fitted
    given = arguments.format(photos=photos).split()
    code, err = call(capsys, run, photos / "red" / "00.png", "--out", tmp_path / "x", *given)
    assert code == 2 and words in err and not (tmp_path / "x").exists()


def test_a_folder_of_something_else_is_left_alone(fitted, tmp_path, capsys):
    run, photos = fitted
    (tmp_path / "mine.txt").write_text("mine")
    code, err = call(capsys, run, photos / "red", "--out", tmp_path)
    assert code == 2 and "is no explanation" in err and [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_training_picture_is_not_its_own_neighbour(fitted, tmp_path):
    from viapt.artifact import load
    from viapt.report.explaining import explain, training_pictures

    run, photos = fitted
    model = load(run)
    train = training_pictures(model, run, str(photos), 5)
    assert len(train) == 5 and set(train.labels) == {0, 1}
    file = photos / train.keys[0]
    rows = explain(model, model.backbone, [file], train).pictures[0].neighbours
    assert len(rows) == 2
    assert all(len(found) == 4 and train.keys[0] not in {n.name for n in found} for found in rows.values())
