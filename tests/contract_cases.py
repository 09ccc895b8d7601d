"""Which methods are checked on which tiny backbones, and how thoroughly: what decides how long the contract takes."""

from __future__ import annotations

from viapt.testing import tiny_backbones

BACKBONES = tiny_backbones()

# What runs where. On THOROUGH backbones every check of every method. On the others every check of MAIN methods; and of
# the rest those checks in which a backbone could fail them: of all on ONE_OF_A_KIND, elsewhere of EACH_WAY_INSIDE (see
# docs/methods.md). REFUSED must be errors.
THOROUGH = ("vit", "one-block", "dinov2", "clip", "siglip", "average")
MAIN = ("viapt", "vpt-deep", "linear")
ONE_OF_A_KIND = ("eva02", "rope", "beit", "swin", "hf-vit", "hf-beit")
EACH_WAY_INSIDE = ("lora", "bitfit", "adapter-plus")  # modules, weights, tokens
FEW = ("gradients", "artifact_round_trip")
REFUSED = [("e2vpt", name) for name in BACKBONES if name not in THOROUGH]
REFUSED += [("lora", "eva02"), ("ssf", "eva02"), ("ssf", "hf-siglip"), ("adapter-plus", "swin")]
REFUSED += [("adaptformer", "hf-data2vec")]


def runs(method: str, backbone: str, check: str) -> bool:
    """Whether this check runs of this method on this backbone."""
    if backbone in THOROUGH or method in MAIN:
        return True
    return check in FEW and (backbone in ONE_OF_A_KIND or method in EACH_WAY_INSIDE)
