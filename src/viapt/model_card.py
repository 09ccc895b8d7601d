"""The README.md of a saved adapter: what it is, how it is used, how it came about."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any

NAMED_CLASSES = 50  # more are only counted
PLACE = "path/to/this/folder"


def model_card(config: dict[str, Any], parameters: dict[str, int], tensor_bytes: int) -> str:
    """Markdown with the front matter of model hubs.

    Args:
        config: of the adapter; see `viapt.artifact`.
        parameters: how many numbers "method", "head" and "backbone" hold.
        tensor_bytes: size of the adapter's tensors.
    """
    backbone, classes = config["backbone"], config["classes"]
    name = backbone["name"] or "a module of the author's own"
    height, width = backbone["preprocessing"]["image_size"]
    facts = {
        "method": config["method"],
        **config["method_arguments"],
        "backbone": name,
        "backbone weights": PurePath(backbone["weights"]).name if backbone["weights"] else None,
        "backbone fingerprint": backbone["fingerprint"],
        "backbone precision": backbone["precision"],
        "image size": f"{height} x {width}",
        "learned by the method": f"{parameters['method']:,} numbers",
        "learned by the head": f"{parameters['head']:,} numbers",
        "frozen": f"{parameters['backbone']:,} numbers",
        "size": f"{tensor_bytes:,} bytes",
        "made with": ", ".join(f"{package} {version}" for package, version in config["versions"].items()),
    }
    listed = [f"- {escaped(label)}" for label in classes[:NAMED_CLASSES]]
    if len(classes) > NAMED_CLASSES:
        listed.append(f"- and {len(classes) - NAMED_CLASSES} more")
    argument = "" if backbone["name"] else ", backbone=module"
    return "\n".join(
        [
            "---",
            "library_name: viapt",
            "pipeline_tag: image-classification",
            *([f"base_model: {json.dumps(hub_name(name))}"] if hub_name(name) else []),
            "tags: [prompt-tuning, vision-transformer]",
            "---",
            "",
            f"# An image classifier of {len(classes)} classes",
            "",
            f"A {config['method']} adapter for the frozen vision transformer {escaped(name)}.",
            "",
            "```python",
            "import viapt",
            "",
            f'model = viapt.load("{PLACE}"{argument})',
            'result = model.predict(["photo.jpg"])',
            "print(result.labels, result.probabilities)",
            "```",
            "",
            "## Classes",
            "",
            *listed,
            "",
            "## What it is",
            "",
            *table(facts),
            *(["", "## How it was trained", "", *table(config["training"])] if config["training"] else []),
            "",
        ]
    )


def hub_name(name: str) -> str | None:
    """timm's name on the hub, for weights that are there."""
    return f"timm/{name}" if "." in name and not set(name) & set(":/ ") else None


def table(facts: dict[str, Any]) -> list[str]:
    """Names and values as Markdown; what has no value is left out."""
    rows = [
        f"| {escaped(name)} | {escaped(value if isinstance(value, str) else json.dumps(value))} |"
        for name, value in facts.items()
        if value is not None
    ]
    return ["| | |", "|---|---|", *rows]


def escaped(text: str) -> str:
    """Text that stays text in Markdown, on one line."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|!~&" else c for c in " ".join(text.split()))
