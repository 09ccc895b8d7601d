"""Backbones out of transformers: its own features, timm's with the same weights, and files that are read safely."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

import viapt.backbones.timm_weights as timm_weights
from viapt.artifact import load
from viapt.backbones import create_backbone
from viapt.backbones.base import Backbone, Preprocessing
from viapt.backbones.huggingface import HuggingFaceViT
from viapt.backbones.huggingface_files import read_preprocessing
from viapt.create import create_model
from viapt.errors import BackboneError
from viapt.methods.linear import Linear
from viapt.model import PromptedClassifier

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
DINO = {name: value for name, value in SIZES.items() if name != "intermediate_size"} | {"mlp_ratio": 2}
OWN = {"use_relative_position_bias": True, "layer_scale_init_value": 0.1}
SHARED = {"use_shared_relative_position_bias": True, "use_mean_pooling": False, "use_mask_token": True}
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
MODELS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {  # model, configuration, its options, the model's
    "vit": ("ViTModel", "ViTConfig", SIZES, {}),
    "deit": ("DeiTModel", "DeiTConfig", SIZES, {}),
    "beit": ("BeitModel", "BeitConfig", SIZES | OWN, {}),
    "beit shared": ("BeitModel", "BeitConfig", SIZES | SHARED, {}),
    "data2vec": ("Data2VecVisionModel", "Data2VecVisionConfig", SIZES | OWN, {"add_pooling_layer": True}),
    "data2vec shared": ("Data2VecVisionModel", "Data2VecVisionConfig", SIZES | OWN | SHARED, {}),
    "dinov2": ("Dinov2Model", "Dinov2Config", DINO | {"use_swiglu_ffn": True}, {}),
    "registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", DINO | {"num_register_tokens": 3}, {}),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", SIZES, {}),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", SIZES, {}),
    "mae": ("ViTMAEModel", "ViTMAEConfig", SIZES, {}),
}
PROCESSOR: dict[str, Any] = {
    "do_normalize": True,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "resample": 3,
    "size": {"height": 32, "width": 32},
}


IN_VERSION_5 = pytest.mark.skipif(
    int(transformers.__version__.partition(".")[0]) < 5,
    reason="the names of weights here are those of transformers 5; older layouts are found by what their parts are",
)


def random(build: Callable[[], Any], seed: int = 0) -> Any:
    """A model in evaluation mode whose every parameter matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def tiny(kind: str) -> Any:
    model, config, options, others = MODELS[kind]
    return random(lambda: getattr(transformers, model)(getattr(transformers, config)(**options), **others))


def classifier(seed: int = 0) -> Any:
    config = transformers.ViTConfig(**SIZES, num_labels=3)
    return random(lambda: transformers.ViTForImageClassification(config), seed)


def images(size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def loop_features(backbone: Backbone, x: Tensor) -> Tensor:
    model = PromptedClassifier(backbone, Linear(backbone.dim, backbone.depth, backbone.patch_size), ["a", "b"])
    with torch.no_grad():
        return model.run(model.embed(x), None)


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize("kind", MODELS)
def test_the_loop_gives_the_models_own_features(kind: str, size: tuple[int, int]) -> None:
    model, x = tiny(kind), images(size)
    backbone = create_backbone(model, image_size=size)
    assert isinstance(backbone, HuggingFaceViT)
    options: dict[str, Any] = (
        {} if size == (32, 32) or kind[:4] in ("beit", "data", "dino", "regi") else {"interpolate_pos_encoding": True}
    )
    if kind == "mae":
        model.config.mask_ratio = 0.0
        options["noise"] = torch.arange(size[0] * size[1] / 64).expand(2, -1)
    with torch.no_grad():
        output = model(x, **options)
    pooled = kind in ("beit", "beit shared", "data2vec", "clip", "siglip")
    features = output.pooler_output if pooled else output.last_hidden_state[:, 0]
    torch.testing.assert_close(backbone(x), features)  # frozen weights and others may be multiplied in another order
    torch.testing.assert_close(loop_features(backbone, x), backbone(x))
    assert features.shape == (2, backbone.feature_dim) and features.std() > 0
    tokens = backbone.embed(x, 0)
    assert tokens.grid == (size[0] // 8, size[1] // 8)
    assert tokens.prefix.shape[1] == {"deit": 2, "registers": 4, "siglip": 0}.get(kind, 1)
    assert backbone.preprocessing.image_size == size
    assert backbone.fingerprint == create_backbone(model).fingerprint


@pytest.mark.parametrize("kind", MODELS)
def test_prompts_have_no_position(kind: str) -> None:
    backbone = create_backbone(tiny(kind)).double()
    tokens = backbone.embed(images().double(), 3)
    prompts = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = torch.cat([tokens.prefix, tokens.patches], dim=1)
    for layer in range(backbone.depth):
        one, left = backbone.advance(layer, x, prompts, tokens.context)
        other, reversed_left = backbone.advance(layer, x, prompts.flip(1), tokens.context)
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(left, reversed_left.flip(1))
        x, prompts = one, left


def test_the_feature_is_what_a_classifier_reads() -> None:
    model = classifier()
    backbone, x = create_backbone(model), images()
    with torch.no_grad():
        assert torch.equal(model.classifier(backbone(x)), model(x).logits)


def test_the_vision_part_is_found_in_what_holds_more() -> None:
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9, "pad_token_id": 0}
    text |= {"bos_token_id": 1, "eos_token_id": 2}
    config = transformers.CLIPConfig(vision_config=SIZES, text_config=text)
    both = random(lambda: transformers.CLIPModel(config))
    x = images()
    with torch.no_grad():
        assert torch.equal(create_backbone(both)(x), both.vision_model(x).pooler_output)
    mae = random(lambda: transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**SIZES, **DECODER)))
    assert create_backbone(mae).fingerprint == create_backbone(mae.vit).fingerprint


def test_a_module_of_the_users_own_stays_as_it_is() -> None:
    model = tiny("beit shared").train()
    before = copy.deepcopy(model.state_dict())
    backbone = create_backbone(model).to(torch.bfloat16)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert backbone.name is None and backbone(images()).dtype == torch.bfloat16
    mae = tiny("mae")
    create_backbone(mae)
    assert mae.config.mask_ratio == 0.75


@IN_VERSION_5
def test_every_weight_counts_in_the_fingerprint() -> None:
    model = tiny("siglip")
    reference = create_backbone(model).fingerprint
    for name in ("head.probe", "encoder.layers.1.mlp.fc2.bias", "embeddings.position_embedding.weight"):
        changed = copy.deepcopy(model)
        changed.state_dict()[name].view(torch.int32).flatten()[-1] ^= 1
        assert create_backbone(changed).fingerprint != reference


def test_other_models_are_refused() -> None:
    resnet = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    for module, problem in (
        (transformers.ResNetModel(resnet), "ResNetModel"),
        (transformers.ViTModel(transformers.ViTConfig(**SIZES, num_channels=1)), "1 channels"),
        (transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIZES, vision_use_head=False)), "pools"),
        (transformers.BeitModel(transformers.BeitConfig(**SIZES), add_pooling_layer=False), "pools"),
    ):
        with pytest.raises(BackboneError, match=problem):
            create_backbone(module)
    with pytest.raises(BackboneError, match="image size"):
        create_backbone(tiny("vit"), image_size=30)
    model = tiny("vit")
    model.more = nn.ModuleList(nn.Identity() for _ in range(2))
    with pytest.raises(BackboneError, match="2 lists of 2 blocks"):
        create_backbone(model)


def test_methods_inside_blocks_learn_or_are_refused() -> None:
    for method, options in (("lora", {"targets": "all"}), ("adaptformer", {}), ("ssf", {}), ("bitfit", {})):
        model = create_model(tiny("clip"), method, classes=2, **options)
        loss, _ = model(images(), torch.tensor([0, 1]))
        loss.backward()
        assert any(p.grad is not None and p.grad.any() for p in model.method.parameters())
    create_model(tiny("data2vec"), "lora", classes=2)
    for kind, method, options, problem in (
        ("siglip", "ssf", {}, "out_proj"),
        ("data2vec", "adaptformer", {}, "no MLP"),
        ("data2vec", "lora", {"targets": "all"}, "no proj"),
        ("vit", "e2vpt", {}, "attention of the kind"),
    ):
        with pytest.raises(BackboneError, match=problem):
            create_model(tiny(kind), method, classes=2, **options)


# The same weights in timm


def attention(state: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    """timm's one matrix for queries, keys and values, as three."""
    parts = {}
    for what in ("weight", "bias"):
        if f"blocks.{i}.attn.qkv.{what}" in state:
            three = state[f"blocks.{i}.attn.qkv.{what}"].chunk(3)
            parts |= {f"{name}_proj.{what}": tensor for name, tensor in zip("qkv", three, strict=True)}
    return parts


def as_transformers(vit: Any, block: dict[str, str], attends: str = "attention") -> dict[str, Tensor]:
    """timm's blocks under the names of transformers."""
    state, found = vit.state_dict(), {}
    for i in range(len(vit.blocks)):
        found |= {f"{i}.{attends}.{name}": tensor for name, tensor in attention(state, i).items()}
        for theirs, ours in block.items():
            for what in ("", ".weight", ".bias"):
                if f"blocks.{i}.{theirs}{what}" in state:
                    found[f"{i}.{ours}{what}"] = state[f"blocks.{i}.{theirs}{what}"]
    return found


def under(path: str, module: nn.Module) -> dict[str, Tensor]:
    """A part's weights, at a path."""
    return {f"{path}.{name}": tensor for name, tensor in module.state_dict().items()}


def assert_same(vit: Any, model: Any) -> None:
    """Equal features, and equal logits with prompts."""
    ours, theirs = create_backbone(vit), create_backbone(model)
    x = images()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    assert ours(x).std() > 0.1
    for method in ("vpt-deep", "viapt"):
        one, other = (create_model(backbone, method, classes=3, precision="float32") for backbone in (ours, theirs))
        with torch.no_grad():
            torch.testing.assert_close(one(x), other(x), rtol=1e-4, atol=1e-4)


def timm_vit(name: str, **options: Any) -> Any:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    return random(lambda: timm.create_model(name, **(sizes | options)))


VIT = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj"}
VIT |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}


def plain_from_timm(kind: str, vit: Any) -> Any:
    """A ViT, DeiT or MAE of transformers with timm's weights."""
    name, config, options, _ = MODELS[kind]
    pooling = {} if kind == "mae" else {"add_pooling_layer": False}
    model = getattr(transformers, name)(getattr(transformers, config)(**options, layer_norm_eps=1e-6), **pooling)
    state = {f"layers.{name}": tensor for name, tensor in as_transformers(vit, VIT).items()}
    state |= under("embeddings.patch_embeddings.projection", vit.patch_embed.proj) | under("layernorm", vit.norm)
    state |= {"embeddings.cls_token": vit.cls_token, "embeddings.position_embeddings": vit.pos_embed}
    if kind == "deit":
        state["embeddings.distillation_token"] = vit.dist_token
    model.load_state_dict(state, strict=True)
    return model.eval()


@IN_VERSION_5
@pytest.mark.parametrize("kind", ["vit", "mae"])
def test_vit_and_mae_are_timms_vit(kind: str) -> None:
    """MAE sees all patches here, and is a ViT without more."""
    vit = timm_vit("vit_tiny_patch16_224", mlp_ratio=2)
    assert_same(vit, plain_from_timm(kind, vit))


@IN_VERSION_5
def test_deit_is_timms_but_for_what_is_read() -> None:
    """The same tokens: timm reads class and distillation token, the model of transformers that of the class."""
    vit = timm_vit("deit_tiny_distilled_patch16_224", mlp_ratio=2)
    ours, theirs = create_backbone(vit), create_backbone(plain_from_timm("deit", vit))
    prompts = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(2))
    for count in (0, 3):
        one, other = (last_tokens(backbone, prompts[:, :count]) for backbone in (ours, theirs))
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        if count == 0:
            read = vit.norm(one)
            torch.testing.assert_close(ours(images()), read[:, :2].mean(1), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(theirs(images()), read[:, 0], rtol=1e-5, atol=1e-5)


def last_tokens(backbone: Backbone, prompts: Tensor) -> Tensor:
    """What leaves the last block, prompts last."""
    tokens = backbone.embed(images(), prompts.shape[1])
    x = torch.cat([tokens.prefix, tokens.patches], dim=1)
    for layer in range(backbone.depth):
        x, prompts = backbone.advance(layer, x, prompts, tokens.context)
    return torch.cat([x, prompts], dim=1)


CLIP = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj"}
CLIP |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}


@IN_VERSION_5
@pytest.mark.parametrize(("name", "activation"), [("clip", "gelu"), ("clip_quickgelu", "quick_gelu")])
def test_clip_is_timms(name: str, activation: str) -> None:
    """OpenAI's weights have an activation of their own."""
    vit = timm_vit(f"vit_base_patch16_{name}_224", mlp_ratio=2)
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES, hidden_act=activation)).eval()
    state = {f"encoder.layers.{name}": tensor for name, tensor in as_transformers(vit, CLIP, "self_attn").items()}
    state |= under("embeddings.patch_embedding", vit.patch_embed.proj)
    state |= under("pre_layrnorm", vit.norm_pre) | under("post_layernorm", vit.norm)
    state |= {"embeddings.class_embedding": vit.cls_token.flatten()}
    state |= {"embeddings.position_embedding.weight": vit.pos_embed[0]}
    model.load_state_dict(state, strict=True)
    assert_same(vit, model)


@IN_VERSION_5
def test_siglip_is_timms() -> None:
    """Also the attention that pools, of which timm keeps the queries' weights apart from keys' and values'."""
    vit = timm_vit("vit_base_patch16_siglip_224", mlp_ratio=2)
    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIZES, hidden_act="gelu")).eval()
    state = {f"encoder.layers.{name}": tensor for name, tensor in as_transformers(vit, CLIP, "self_attn").items()}
    state |= under("embeddings.patch_embedding", vit.patch_embed.proj) | under("post_layernorm", vit.norm)
    state |= {"embeddings.position_embedding.weight": vit.pos_embed[0]}
    pool = vit.attn_pool
    state |= under("head.attention.out_proj", pool.proj) | under("head.layernorm", pool.norm)
    state |= under("head.mlp", pool.mlp) | {"head.probe": pool.latent}
    state |= {"head.attention.in_proj_weight": torch.cat([pool.q.weight, pool.kv.weight])}
    state |= {"head.attention.in_proj_bias": torch.cat([pool.q.bias, pool.kv.bias])}
    model.load_state_dict(state, strict=True)
    assert_same(vit, model)


@IN_VERSION_5
def test_dinov2_with_registers_is_timms() -> None:
    vit = timm_vit("vit_small_patch14_reg4_dinov2", mlp_ratio=2)
    names = {"norm1": "norm1", "norm2": "norm2", "attn.proj": "attention.o_proj", "mlp.fc1": "mlp.fc1"}
    names |= {"mlp.fc2": "mlp.fc2", "ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"}
    config = transformers.Dinov2WithRegistersConfig(**DINO, num_register_tokens=4, layer_norm_eps=1e-6)
    model = transformers.Dinov2WithRegistersModel(config).eval()
    state = {f"encoder.layer.{name}": tensor for name, tensor in as_transformers(vit, names).items()}
    state |= under("embeddings.patch_embeddings.projection", vit.patch_embed.proj) | under("layernorm", vit.norm)
    state |= {"embeddings.cls_token": vit.cls_token, "embeddings.register_tokens": vit.reg_token}
    state |= {"embeddings.position_embeddings": nn.functional.pad(vit.pos_embed, (0, 0, 1, 0))}
    state |= {"embeddings.mask_token": model.embeddings.mask_token}
    model.load_state_dict(state, strict=True)
    assert_same(vit, model)


@IN_VERSION_5
def test_beit_is_timms_beit() -> None:
    """Also the rows of the table of biases, and the bias that keys do not have."""
    vit = timm_vit("beit_base_patch16_224", mlp_ratio=2, init_values=0.1)
    names = VIT | {"gamma_1": "lambda_1", "gamma_2": "lambda_2"}
    names |= {"attn.q_bias": "attention.q_proj.bias", "attn.v_bias": "attention.v_proj.bias"}
    table = "relative_position_bias_table"
    names |= {f"attn.{table}": f"relative_position_bias.{table}"}
    model = transformers.BeitModel(transformers.BeitConfig(**SIZES, **OWN, layer_norm_eps=1e-6)).eval()
    state = {f"layers.{name}": tensor for name, tensor in as_transformers(vit, names).items()}
    state |= under("embeddings.patch_embeddings.projection", vit.patch_embed.proj)
    state |= under("pooler.layernorm", vit.fc_norm)
    state |= {"embeddings.cls_token": vit.cls_token}
    model.load_state_dict(state, strict=True)
    model.pooler.layernorm.eps = vit.fc_norm.eps
    assert_same(vit, model)


# Files


def saved(folder: Path, model: Any, processor: dict[str, Any] | None = None) -> Path:
    model.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.mark.parametrize("kind", ["vit", "beit shared", "registers", "siglip", "mae"])
def test_weights_come_from_a_folder(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(kind)
    saved(tmp_path / "model", model)
    monkeypatch.chdir(tmp_path)
    backbone = create_backbone("transformers:model")
    assert backbone.fingerprint == create_backbone(model).fingerprint
    assert torch.equal(backbone(images()), create_backbone(model)(images()))
    assert backbone.name == f"transformers:{tmp_path / 'model'}"
    assert backbone.dtype == torch.float32
    assert backbone.preprocessing == create_backbone(model).preprocessing


def test_the_transformer_is_taken_out_of_a_classifier(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = classifier()
    saved(tmp_path, model.to(torch.bfloat16), PROCESSOR)
    capfd.readouterr()
    backbone = create_backbone(f"transformers:{tmp_path}", image_size=(16, 24))
    assert capfd.readouterr() == ("", "")  # no bars, no lists of weights left over
    assert backbone.fingerprint == create_backbone(model.float()).fingerprint
    expected = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_mode": "squash"}
    assert backbone.preprocessing == Preprocessing(image_size=(16, 24), **expected)


def test_an_adapter_names_its_folder(tmp_path: Path) -> None:
    saved(tmp_path / "model", classifier(), PROCESSOR)
    model = create_model(f"transformers:{tmp_path / 'model'}", classes=3, precision="float32")
    with torch.no_grad():
        expected = model(images())
        model.save_pretrained(tmp_path / "adapter")
        assert torch.equal(load(tmp_path / "adapter")(images()), expected)
    saved(tmp_path / "model", classifier(seed=1), PROCESSOR)
    with pytest.raises(Exception, match="sha256"):
        load(tmp_path / "adapter")


def test_the_hubs_cache_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, repository = tiny("clip"), tmp_path / "models--owner--name"
    saved(repository / "snapshots" / "0123", model)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    backbone = create_backbone("transformers:owner/name")
    assert (backbone.name, backbone.fingerprint) == ("transformers:owner/name", create_backbone(model).fingerprint)
    (repository / "snapshots" / "0123" / "model.safetensors").unlink()

    class Session:
        def head(self, *_: Any, **__: Any) -> None:
            raise OSError("no route to host")

    monkeypatch.setattr(timm_weights, "get_session", Session)
    with pytest.raises(BackboneError, match="no route to host") as error:
        create_backbone("transformers:owner/name")
    assert "transformers:PATH" in error.value.remedy
    with pytest.raises(BackboneError, match="neither a folder nor"):
        create_backbone("transformers:a/b/c")


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(BackboneError, match=message):
            create_backbone(f"transformers:{tmp_path}")

    refused("There is no .*config.json")
    saved(tmp_path, tiny("vit"))
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    plain = json.loads(config.read_text())
    for values, message in (
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[1]", "holds a list"),
        (" " * 2**20 + "{}", "at most 1048576"),
        ("{}", "of the kind None"),
        ('{"model_type": ["vit"]}', "of the kind"),
        ('{"model_type": "bert"}', "of the kind 'bert'"),
        (json.dumps(plain | {"num_hidden_layers": 10**9}), "1000000000 blocks"),
        (json.dumps(plain | {"hidden_size": 32 * 10**6}), "weights"),  # terabytes, were they allocated
        (json.dumps(plain | {"num_hidden_layers": 3}), "missing: .*layers?.2"),
        (json.dumps(plain | {"patch_size": 16}), "cannot load"),
    ):
        config.write_text(values)
        refused(message)
    config.write_text(json.dumps(plain))
    with weights.open("r+b") as file:
        file.truncate(1000)
    refused("cannot")
    weights.rename(tmp_path / "pytorch_model.bin")
    refused("pickles, which are never opened")
    save_file({"a": torch.zeros(9999)}, weights)
    refused("missing")


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("vit", {}, {"image_size": (32, 32), "crop_mode": "squash"}),
        ("vit", {"do_normalize": False}, {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}),
        (
            "dinov2",
            {"size": {"shortest_edge": 64}, "do_center_crop": True, "crop_size": {"height": 56, "width": 56}},
            {"image_size": (56, 56), "crop_mode": "center", "crop_pct": 0.875},
        ),
        (
            "clip_vision_model",
            {"size": 32, "do_center_crop": True, "crop_size": 32, "feature_extractor_type": "CLIPFeatureExtractor"},
            {"image_size": (32, 32), "crop_mode": "center", "crop_pct": 1.0},
        ),
        ("deit", {"size": 64, "do_center_crop": True, "crop_size": 56}, {"crop_mode": "squash", "crop_pct": 0.875}),
    ],
)
def test_image_processors_are_understood(
    kind: str, values: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(PROCESSOR | values))
    found = read_preprocessing(path, kind)
    assert {name: getattr(found, name) for name in expected} == expected
    assert found.interpolation == "bicubic"


@pytest.mark.parametrize(
    "values",
    [
        {"size": {"shortest_edge": 32}},
        {"size": {"longest_edge": 32}},
        {"size": None},
        {"do_center_crop": True, "crop_size": {"height": 16, "width": 32}},
        {"do_rescale": False},
        {"rescale_factor": 1.0},
        {"resample": 1},
        {"image_mean": [0.5]},
        {"image_std": [0.5, 0.5, "a"]},
    ],
)
def test_other_image_processors_are_refused(values: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(PROCESSOR | values))
    with pytest.raises(BackboneError, match="cannot be made here"):
        read_preprocessing(path, "vit")
