"""Visual Instance-aware Prompt Tuning: adapt a frozen vision transformer to your own images.

Names are loaded when they are first used: `import viapt` alone does not import torch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from viapt.artifact import load as load
    from viapt.backbones import create_backbone as create_backbone
    from viapt.backbones import list_backbones as list_backbones
    from viapt.backbones.base import Backbone as Backbone
    from viapt.create import create_model as create_model
    from viapt.data.packaged import list_tasks as list_tasks
    from viapt.errors import ViaptError as ViaptError
    from viapt.estimator import ViaPTClassifier as ViaPTClassifier
    from viapt.evaluation import evaluate as evaluate
    from viapt.exported import ExportedModel as ExportedModel
    from viapt.exported import load_exported as load_exported
    from viapt.inference import predict as predict
    from viapt.methods import list_methods as list_methods
    from viapt.methods.base import PromptMethod as PromptMethod
    from viapt.model import PromptedClassifier as PromptedClassifier
    from viapt.multitask import MultiTask as MultiTask
    from viapt.quantisation import quantise as quantise
    from viapt.round_calibration import calibrate_rounds as calibrate_rounds
    from viapt.training import fit as fit

    __version__: str

_HOMES = {
    "Backbone": "viapt.backbones.base",
    "ExportedModel": "viapt.exported",
    "MultiTask": "viapt.multitask",
    "PromptMethod": "viapt.methods.base",
    "PromptedClassifier": "viapt.model",
    "ViaPTClassifier": "viapt.estimator",
    "ViaptError": "viapt.errors",
    "calibrate_rounds": "viapt.round_calibration",
    "create_backbone": "viapt.backbones",
    "create_model": "viapt.create",
    "evaluate": "viapt.evaluation",
    "fit": "viapt.training",
    "list_backbones": "viapt.backbones",
    "list_methods": "viapt.methods",
    "list_tasks": "viapt.data.packaged",
    "load": "viapt.artifact",
    "load_exported": "viapt.exported",
    "predict": "viapt.inference",
    "quantise": "viapt.quantisation",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("viapt")
    if name not in _HOMES:
        raise AttributeError(f"module 'viapt' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*_HOMES, "__version__"])
