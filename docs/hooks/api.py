"""The pages of the Python interface: names whose docstrings and annotations mkdocstrings shows."""

from __future__ import annotations

from importlib import import_module

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import viapt

# Page -> title, introduction, and what is on it: names, or modules of which all public names are shown.
PAGES: dict[str, tuple[str, str, list[str]]] = {
    "viapt": (
        "viapt",
        "What `import viapt` gives. These names stay: taking one away needs a new major version.",
        [f"viapt.{name}" for name in dir(viapt) if not name.startswith("_")],
    ),
    "data": (
        "Data",
        "Labelled images: read from anywhere, decoded safely, split, augmented.",
        [f"viapt.data.{name}" for name in import_module("viapt.data").__all__]
        + [f"viapt.data.packaged.{name}" for name in ("load_task", "standard_split", "split", "folds", "split_hash")],
    ),
    "methods": (
        "Methods and reductions",
        "What each method of [methods.md](../methods.md) takes as keyword arguments of `create_model` or with `--set`.",
        [
            "viapt.methods.viapt.ViaPT",
            "viapt.methods.vpt.VPTDeep",
            "viapt.methods.vpt.VPTShallow",
            "viapt.methods.vfpt.VFPT",
            "viapt.methods.e2vpt.E2VPT",
            "viapt.methods.lora.LoRA",
            "viapt.methods.adapter.AdaptFormer",
            "viapt.methods.adapter_plus.AdapterPlus",
            "viapt.methods.ssf.SSF",
            "viapt.methods.bitfit.BitFit",
            "viapt.methods.partial.Partial",
            "viapt.methods.full.Full",
            "viapt.methods.linear.Linear",
            "viapt.methods.instance_generator",
            "viapt.methods.carry",
            "viapt.reduction",
            "viapt.gated_reduction",
            "viapt.pruning",
        ],
    ),
    "backbones": (
        "Backbones",
        "Adapters around other people's models; see [backbones.md](../backbones.md) for the models.",
        [
            "viapt.backbones.timm_vit",
            "viapt.backbones.timm_rope",
            "viapt.backbones.timm_beit",
            "viapt.backbones.timm_swin",
            "viapt.backbones.huggingface",
            "viapt.backbones.packaged",
        ],
    ),
    "answers": (
        "Answers",
        "What predicting, evaluating, explaining and serving several tasks give back.",
        ["viapt.inference", "viapt.evaluation", "viapt.multitask", "viapt.explanation", "viapt.history"],
    ),
    "tools": (
        "Export, Trainer, testing",
        "Around a model: files for other runtimes, the Trainer of transformers, batches, converters, the contract.",
        ["viapt.export", "viapt.trainer", "viapt.batch", "viapt.vpt_checkpoint", "viapt.adapter_plus_checkpoint"]
        + [f"viapt.testing.{name}" for name in import_module("viapt.testing").__all__],
    ),
    "bench": (
        "Laboratory",
        "Jobs, scores and tables of `viapt bench` from Python; see [bench.md](../bench.md).",
        [f"viapt.bench.{name}" for name in ("entrants", "protocol", "plan", "engines", "runner", "records", "scores")]
        + ["viapt.bench.publish"],
    ),
    "errors": ("Errors", "What is raised for users: what was found, what was expected, what to do.", ["viapt.errors"]),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for page, (title, introduction, names) in PAGES.items():
        parts = "\n".join(f"::: {name}\n" for name in names)
        files.append(File.generated(config, f"api/{page}.md", content=f"# {title}\n\n{introduction}\n\n{parts}"))
    return files
