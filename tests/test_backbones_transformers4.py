"""The layout of transformers 4: a ViT with the module names of that version, beside the installed one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from viapt.backbones.huggingface import HuggingFaceViT
from viapt.create import create_model
from viapt.errors import BackboneError

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 8,
}


def parts(**modules: nn.Module) -> Any:
    """A module that only holds others, by these names."""
    holder = nn.Module()
    for name, module in modules.items():
        setattr(holder, name, module)
    return holder


class ViTEmbeddings(nn.Module):
    patch_embeddings: Any

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 5, 16))
        self.patch_embeddings = parts(projection=nn.Conv2d(3, 16, 8, 8))

    def forward(
        self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None, interpolate_pos_encoding: bool = False
    ) -> Tensor:
        assert bool_masked_pos is None and not interpolate_pos_encoding
        x = self.patch_embeddings.projection(pixel_values).flatten(2).mT
        return torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.position_embeddings


class ViTLayer(nn.Module):
    """Query, key and value two modules down, the MLP in `intermediate` and `output`; the answer is a tuple."""

    attention: Any
    intermediate: Any
    output: Any

    def __init__(self) -> None:
        super().__init__()
        linear = {name: nn.Linear(16, 16) for name in ("query", "key", "value")}
        self.attention = parts(attention=parts(**linear), output=parts(dense=nn.Linear(16, 16)))
        self.intermediate, self.output = parts(dense=nn.Linear(16, 24)), parts(dense=nn.Linear(24, 16))
        self.layernorm_before, self.layernorm_after = nn.LayerNorm(16, eps=1e-12), nn.LayerNorm(16, eps=1e-12)

    def forward(
        self, hidden_states: Tensor, head_mask: Tensor | None = None, output_attentions: bool = False
    ) -> tuple[Tensor]:
        x, attention = self.layernorm_before(hidden_states), self.attention.attention
        q, k, v = (
            layer(x).unflatten(-1, (2, -1)).transpose(1, 2)
            for layer in (attention.query, attention.key, attention.value)
        )
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = hidden_states + self.attention.output.dense(seen)
        return (x + self.output.dense(F.gelu(self.intermediate.dense(self.layernorm_after(x)))),)


class ViTModel(nn.Module):
    encoder: Any

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="vit", **SIZES)
        self.embeddings = ViTEmbeddings()
        self.encoder = parts(layer=nn.ModuleList(ViTLayer() for _ in range(2)))
        self.layernorm = nn.LayerNorm(16, eps=1e-12)
        self.pooler = parts(dense=nn.Linear(16, 16))

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Any:
        x = self.embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        for layer in self.encoder.layer:
            x = layer(x)[0]
        return SimpleNamespace(last_hidden_state=self.layernorm(x))


NAMES = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def both() -> tuple[Any, ViTModel]:
    """The installed version's model and the old layout, with the same random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        new = transformers.ViTModel(transformers.ViTConfig(**SIZES), add_pooling_layer=False).eval()
        for parameter in new.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
        old = ViTModel().eval()
    state = old.state_dict()
    for name, tensor in new.state_dict().items():
        theirs = name.replace("layers.", "encoder.layer.", 1) if name.startswith("layers.") else name
        for now, before in NAMES.items():
            theirs = theirs.replace(f".{now}.", f".{before}.")
        assert theirs in state, theirs
        state[theirs] = tensor
    old.load_state_dict(state)
    return new, old


def images() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", ["linear", "viapt", "vpt-shallow", "bitfit"])
def test_both_layouts_answer_alike(method: str) -> None:
    models = [create_model(HuggingFaceViT(vit), method, classes=2, precision="float32") for vit in both()]
    with torch.no_grad():
        one, other = (model.run(model.embed(images()), None) for model in models)
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
    assert one.std() > 0.1
    counts = [model.parameter_counts()["method"] for model in models]
    assert counts[0] == counts[1]


def test_blocks_are_found_by_structure() -> None:
    _, old = both()
    backbone = HuggingFaceViT(old)
    assert backbone.path == "encoder.layer" and backbone.depth == 2
    assert backbone.stage_of("model.encoder.layer.1.output.dense.bias") == 1
    assert backbone.stage_of("model.embeddings.cls_token") == -1 and backbone.stage_of("model.layernorm.bias") == 2
    assert torch.equal(backbone(images()), old(images()).last_hidden_state[:, 0])


def test_methods_inside_find_their_layers_or_say_so() -> None:
    _, old = both()
    pytest.importorskip("peft")
    parts_of_lora: Any = create_model(HuggingFaceViT(old), "lora", classes=2).method.parts
    assert {name.rpartition("/")[2] for name in parts_of_lora} == {"query", "key", "value"}
    with pytest.raises(BackboneError, match="no MLP of its own"):
        create_model(HuggingFaceViT(both()[1]), "adaptformer", classes=2)
