"""Rules of the house that can be read off the source: imports point one way, and nothing is unpickled."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "viapt"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PYTHON = [*SOURCES, *sorted((ROOT / "tests").glob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py"))]

# From the ground up. A module imports from the floors below it and, without going round, from its neighbours.
FLOORS: list[set[str]] = [
    {"errors"},
    {"distributed", "device"},
    {
        "reduction",
        "gated_reduction",
        "packaged",
        "precision",
        "tensorfile",
        "checkpoint",
        "interruption",
        "tables",
        "runtimes",
        "ray_cluster",
    }
    | {"rounds", "cache_files", "widths", "attention_weights"},
    {"methods", "backbones"},
    {"model"},
    {"create", "data", "quantisation", "recipe", "mixture"},
    {"training", "training_state", "history", "progress", "evaluation", "comparison", "inference"}
    | {"artifact", "adapter_files", "model_card", "acceleration", "optimization", "exported"}
    | {"sampling", "round_calibration", "caching", "initialisation", "pruning", "multitask", "hub", "publishing"},
    {"runs", "inspection", "explanation", "testing", "estimator", "trainer"}
    | {"foreign_checkpoint", "vpt_checkpoint", "adapter_plus_checkpoint"},
    {"bench", "batch", "serve", "report", "export", "demo"},
    {"cli"},
    {"viapt", "__main__"},  # the public names, and `python -m viapt`
]

# The verbs of a model, which hand over to a floor above when they are called.
LATE = {("model", "artifact"), ("model", "inference"), ("model", "publishing")}


def floor(room: str) -> int:
    found = [level for level, rooms in enumerate(FLOORS) if room in rooms]
    assert found, f"viapt.{room} has no floor yet: give it one in FLOORS"
    return found[0]


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return "viapt" if first == "__init__.py" else first.removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Dotted names of imported modules, and whether the import runs when a function is called."""

    def walk(node: ast.AST, late: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, late) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, "imports are absolute"
                yield from ((f"{child.module}.{alias.name}", late) for alias in child.names)
            else:
                yield from walk(child, late or is_late(child))

    return walk(tree, False)


def is_late(node: ast.AST) -> bool:
    """Inside a function, or for the type checker alone."""
    return isinstance(node, ast.FunctionDef) or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")


def rooms_imported(path: Path) -> Iterator[tuple[str, bool]]:
    for name, late in imports(ast.parse(path.read_text(encoding="utf-8"))):
        parts = name.split(".")
        if parts[0] == "viapt":
            known = len(parts) > 1 and ((PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").exists())
            yield (parts[1] if known else "viapt"), late


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(path)
    for other, late in rooms_imported(path):
        if room in ("viapt", other) or (late and (room, other) in LATE):
            continue
        assert floor(other) < floor(room) or neighbours(room, other), f"{path.name} ({room}) imports viapt.{other}"


def neighbours(room: str, other: str) -> bool:
    """On one floor, except where two rooms must not know each other."""
    return floor(room) == floor(other) and {room, other} != {"methods", "backbones"}


def test_no_cycles() -> None:
    graph = {room_of(path): set[str]() for path in SOURCES}
    for path in SOURCES:
        here = room_of(path)
        graph[here] |= {room for room, late in rooms_imported(path) if room != here and (here, room) not in LATE}
    graph.pop("viapt", None)
    while graph:
        leaves = {room for room, others in graph.items() if not others & graph.keys()}
        assert leaves, f"imports go round in {sorted(graph)}"
        graph = {room: others for room, others in graph.items() if room not in leaves}


def test_the_core_knows_bases_and_reductions_only() -> None:
    """`methods.base` and `backbones.base` import what is below them: errors, widths of blocks, weights of attention."""
    for base in ("methods/base.py", "backbones/base.py"):
        assert {room for room, _ in rooms_imported(PACKAGE / base)} <= {"errors", "widths", "attention_weights"}, base


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_is_unpickled_or_executed(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    if room_of(path) == "testing":
        forbidden.remove("pickle")  # pickles what it made itself
    found = {name.split(".")[0] for name, _ in imports(tree)} & forbidden
    assert not found, f"imports {found}"
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name, given = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert name not in ("eval", "exec", "compile", "__import__"), f"line {call.lineno}: {name}"
        if name == "torch.load":
            assert given.get("weights_only") == "True", f"line {call.lineno}: torch.load without weights_only=True"
        assert given.get("allow_pickle", "False") == "False", f"line {call.lineno}: allow_pickle"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_global_random_numbers_are_left_alone(path: Path) -> None:
    """Seeding them is allowed only where they are put back."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    forked = [
        range(node.lineno, (node.end_lineno or node.lineno) + 1)
        for node in ast.walk(tree)
        if isinstance(node, ast.With) and any("fork_rng" in ast.unparse(item.context_expr) for item in node.items)
    ]
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if ast.unparse(call.func) in ("torch.manual_seed", "random.seed", "np.random.seed"):
            assert any(call.lineno in lines for lines in forked), f"line {call.lineno}: a global seed"


def test_no_drawers() -> None:
    names = {part.removesuffix(".py") for path in SOURCES for part in path.relative_to(PACKAGE).parts}
    assert not names & {"utils", "util", "common", "helpers", "misc", "core", "lib"}


@pytest.mark.parametrize("path", PYTHON, ids=lambda p: str(p.relative_to(ROOT)))
def test_annotations_are_lazy(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not text.strip() or "from __future__ import annotations" in text


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
