"""Which code made a number: a hash of what decides it, and the versions of libraries.

The hash is of the code as this process imported it, comments, docstrings and layout left out. What only shows, stores
or serves does not count, and of the methods only the one in question with those that it imports: so a new
method, or a new table, leaves every result valid.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from viapt.backbones.huggingface_files import PREFIX
from viapt.methods import METHODS

PACKAGE = Path(__file__).resolve().parents[1]
# Not accelerate: in one process it chooses the device, which a job names; losses, gradients and steps are torch's.
LIBRARIES = "torch", "torchvision", "timm", "numpy", "pillow"
OF_METHODS = {"lora": ("peft",)}
FILES_OF_METHODS = {"e2vpt": ("pruning.py",)}  # besides those in methods
OF_BACKBONES = {PREFIX: ("transformers",)}  # by how their names begin
# They show, store or serve what was computed, or only say what is wrong.
IDLE = {
    "cli",
    "report",
    "export",
    "serve",
    "demo",
    "runtimes",
    "exported",
    "testing",
    "inspection",
    "comparison",
    "runs",
}
IDLE |= {
    "artifact",
    "adapter_files",
    "model_card",
    "tables",
    "progress",
    "errors",
    "interruption",
    "__main__",
}
DECIDING_IN_BENCH = {"jobs.py", "measuring.py", "task_data.py"}
BENCHMARKS = PACKAGE / "data" / "benchmarks"
# They look for faults, or say what others found.
IDLE_IN_BENCHMARKS = {"doctor", "diagnosis", "examined", "manifest", "near_duplicates", "task_checks", "published"}
IDLE_IN_BENCHMARKS |= {"label_evidence", "class_counts", "tfds", "protocols"}


def code_of(path: Path) -> str:
    """A file's code without comments, docstrings and layout."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def counts(path: Path) -> bool:
    """Whether a file of the package decides results of every method."""
    parts = path.relative_to(PACKAGE).parts
    room = parts[0].removesuffix(".py")
    if room == "bench":
        return parts[-1] in DECIDING_IN_BENCH
    if BENCHMARKS in path.parents:
        return False  # counts for benchmark tasks alone
    if room == "methods":
        return parts[-1] in ("__init__.py", "base.py")
    return room not in IDLE and not any(parts[-1] in files for files in FILES_OF_METHODS.values())


def own_files(method: str) -> list[Path]:
    """The file of a method, and those of the methods that it imports."""
    found: list[Path] = []
    open_ = [Path(str(sys.modules[METHODS[method].__module__].__file__))]
    open_ += [PACKAGE / name for name in FILES_OF_METHODS.get(method, ())]
    while open_:
        path = open_.pop()
        if path in found:
            continue
        found.append(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.module if isinstance(node, ast.ImportFrom) else None
            if name and name.startswith("viapt.methods.") and not name.endswith(".base"):
                open_.append(PACKAGE / "methods" / f"{name.removeprefix('viapt.methods.')}.py")
    return sorted(found)


def digest(paths: list[Path]) -> str:
    """Sixteen hex digits of names and code."""
    total = hashlib.sha256()
    for path in paths:
        total.update(f"{path.name}\0{code_of(path)}\0".encode())
    return total.hexdigest()[:16]


SHARED = digest([path for path in sorted(PACKAGE.rglob("*.py")) if counts(path)])
CODE = {name: f"{SHARED}-{digest(own_files(name))}" for name in METHODS}
"""By method. Made when this module is imported, with all others: a file that changes later is not what runs."""

BENCHMARK_CODE = digest([path for path in sorted(BENCHMARKS.glob("*.py")) if path.stem not in IDLE_IN_BENCHMARKS])
"""Of what reads and splits benchmark tasks."""


def code_for(method: str, task: str) -> str:
    """Of a method on a task: readers of benchmark tasks (SUITE/NAME) count for these alone."""
    return f"{CODE[method]}-{BENCHMARK_CODE}" if "/" in task else CODE[method]


def versions(method: str, backbone: str) -> dict[str, str]:
    """Of Python and its libraries that compute, those of this method and this backbone among them."""
    of_backbone = [name for prefix, names in OF_BACKBONES.items() if backbone.startswith(prefix) for name in names]
    libraries = [*LIBRARIES, *OF_METHODS.get(method, ()), *of_backbone]
    return {name: installed(name) for name in libraries} | {"python": ".".join(map(str, sys.version_info[:2]))}


def installed(library: str) -> str:
    """Its version, or "none"."""
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"
