"""Which methods are checked on which tiny backbones, and how thoroughly: what decides how long the contract takes."""

from __future__ import annotations

from viapt.testing import tiny_backbones

BACKBONES = tiny_backbones()

# What runs where. On THOROUGH backbones every check of every method. On the others every check of MAIN methods; and of
# the rest, on ONE_OF_A_KIND, those checks in which a backbone could fail them. REFUSED must be errors.
THOROUGH = ("vit", "one-block", "dinov2", "clip", "siglip", "average")
MAIN = ("viapt", "vpt-deep", "linear")
ONE_OF_A_KIND = ("eva02", "rope", "beit", "swin", "hf-vit", "hf-beit")
FEW = ("gradients", "artifact_round_trip")
REFUSED = [("e2vpt", name) for name in BACKBONES if name not in THOROUGH]
REFUSED += [("lora", "eva02"), ("ssf", "eva02"), ("ssf", "hf-siglip"), ("adapter-plus", "swin")]
