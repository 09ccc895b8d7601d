"""The names that other programs use stay, and importing viapt costs nothing."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import viapt

SURFACE: dict[str, Any] = json.loads((Path(__file__).parent / "api_surface.json").read_text())


def resolve(name: str) -> Any:
    value: Any = viapt
    for part in name.split("."):
        value = getattr(value, part)
    return value


def test_public_names_and_their_parameters_stay() -> None:
    """A name or parameter may be added; taking one away needs a new major version, and an edit of api_surface.json."""
    for name, parameters in SURFACE.items():
        value = resolve(name)
        if parameters is not None:
            now = inspect.signature(value).parameters
            assert list(now)[: len(parameters["positional"])] == parameters["positional"], name
            assert set(parameters["keyword"]) <= set(now), name


def test_every_public_name_is_written_down() -> None:
    assert set(dir(viapt)) == {name for name in SURFACE if "." not in name}


def test_importing_viapt_does_not_import_torch() -> None:
    script = (
        "import sys, viapt; dir(viapt); viapt.__version__; "
        "assert not {'torch', 'timm', 'numpy', 'PIL'} & set(sys.modules); "
        "assert viapt.ViaptError; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_unknown_names_are_attribute_errors() -> None:
    assert not hasattr(viapt, "train")
    assert viapt.__version__.count(".") == 2


def test_lists_name_what_there_is() -> None:
    assert {"viapt", "vpt-shallow", "vpt-deep", "linear"} <= set(viapt.list_methods())
    assert "packaged:vits14" in viapt.list_backbones()
    assert "elpv" in viapt.list_tasks()
