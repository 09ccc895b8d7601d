"""Programs of torch.export (.pt2), read and run without `torch.export.load`.

torch's own loader unpickles what a file asks it to, and evaluates expressions out of it as Python: a file from
somewhere else can run any code. Here the graph is read as the JSON that it is, the tensors as the raw bytes that they
are, and the nodes are called one after the other. What is not understood is refused, or not looked at:

    pickled tensors, objects    refused; example inputs, which are a pickle, are not looked at
    operators                   functional ones of aten, and arithmetic on sizes; none that takes a string (a file name,
                                for instance) or whose name starts with _ (internal: some trust their arguments)
    expressions, guards         not looked at
"""

from __future__ import annotations

import json
import math
import operator
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from viapt.runtimes.base import NOTE, Session, Shape, refusing

GRAPH_LIMIT = 64 * 2**20  # bytes of JSON; a ViT-L takes about 2 MB
SCHEMA = 8  # of torch's JSON, major version
DTYPES = {
    1: torch.uint8,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
MEMORY_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format}
ARITHMETIC: dict[str, Callable[..., Any]] = {
    f"_operator.{name}": getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "getitem")
}
INTERNAL = frozenset({"_to_copy", "_softmax", "_unsafe_view"})
KINDS = frozenset(
    [
        "as_tensor",
        "as_tensors",
        "as_optional_tensors",
        "as_none",
        "as_scalar_type",
        "as_memory_format",
        "as_device",
        "as_layout",
    ]
    + [f"as_{sym}{kind}{s}" for sym in ("", "sym_") for kind in ("int", "float", "bool") for s in ("", "s")]
)
WORDS = {  # the only strings that an operator is given, by argument
    "approximate": {"none", "tanh"},  # of gelu
    "mode": {"constant"},  # of pad
    "padding": {"valid", "same"},  # of convolutions
    "indexing": {"ij", "xy"},  # of meshgrid
}


class TorchProgram(Session):
    """A .pt2 file, interpreted node by node on the CPU."""

    def __init__(self, path: Path) -> None:
        self.runtime = f"torch {torch.__version__.split('+')[0]}"
        with refusing(path, self.runtime), Archive(path) as archive:
            program = archive.json("models/model.json")
            if program["schema_version"]["major"] != SCHEMA:
                raise ValueError(f"its schema has version {program['schema_version']}, not {SCHEMA}")
            graph, signature = program["graph_module"]["graph"], program["graph_module"]["signature"]
            tensors = archive.tensors("weights") | archive.tensors("constants")
            self.constants: dict[str, Tensor] = {}
            self.inputs: dict[str, Shape] = {}
            for spec in signature["input_specs"]:
                ((kind, value),) = spec.items()
                if kind == "user_input":
                    name = value["arg"]["as_tensor"]["name"]
                    self.inputs[name] = tuple(size.get("as_int") for size in graph["tensor_values"][name]["sizes"])
                else:
                    self.constants[value["arg"]["name"]] = tensors[value[f"{kind}_name"]]
            ((_, output),) = signature["output_specs"][0].items()
            self.output: str = output["arg"]["as_tensor"]["name"]
            self.nodes = [Node(node) for node in graph["nodes"] if node["outputs"]]  # not assertions
            self.note = archive.text(f"extra/{NOTE}")

    @torch.no_grad()
    def run(self, inputs: dict[str, Float32[np.ndarray, "..."]]) -> Float32[np.ndarray, "batch classes"]:
        values: dict[str, Any] = self.constants | {name: torch.from_numpy(array) for name, array in inputs.items()}
        for node in self.nodes:
            node.run(values)
        return values[self.output].numpy()


class Node:
    """One call of the graph."""

    def __init__(self, described: dict[str, Any]) -> None:
        self.call = resolve(described["target"])
        self.inputs = [(item["name"], item["kind"] == 2, *only(item["arg"])) for item in described["inputs"]]
        self.outputs = [only(item) for item in described["outputs"]]
        for name, _, kind, value in self.inputs:
            if kind not in KINDS and not (kind == "as_string" and value in WORDS.get(name, ())):
                raise ValueError(f"it passes {kind} {str(value)[:80]!r}")

    def run(self, values: dict[str, Any]) -> None:
        """Call it on what earlier nodes gave, and add what it gives."""
        positional = [read(kind, value, values) for _, keyword, kind, value in self.inputs if not keyword]
        keywords = {name: read(kind, value, values) for name, keyword, kind, value in self.inputs if keyword}
        result = self.call(*positional, **keywords)
        for (kind, value), item in zip(self.outputs, result if len(self.outputs) > 1 else [result], strict=True):
            if kind == "as_tensors":
                values |= {part["name"]: tensor for part, tensor in zip(value, item, strict=True)}
            elif kind == "as_tensor":
                values[value["name"]] = item
            elif kind.startswith("as_sym_"):
                values[value["as_name"]] = item


def resolve(target: str) -> Callable[..., Any]:
    """The function that a node calls.

    Raises:
        ValueError: it is none of those that the top of this file allows.
    """
    if target in ARITHMETIC:
        return ARITHMETIC[target]
    match = re.fullmatch(r"torch\.ops\.aten\.([a-z_]\w*)\.(\w+)", target)
    if match is None or (match[1].startswith("_") and match[1] not in INTERNAL):
        raise ValueError(f"it calls {target}")
    found = getattr(getattr(torch.ops.aten, match[1]), match[2])
    strings = {argument.name for argument in found._schema.arguments if "str" in str(argument.type)}
    if found._schema.is_mutable or strings - WORDS.keys():
        raise ValueError(f"it calls {target}")
    return found


def read(kind: str, value: Any, values: dict[str, Any]) -> Any:
    """An argument of a node, out of torch's JSON."""
    if kind == "as_tensor":
        return values[value["name"]]
    if kind == "as_tensors":
        return [values[item["name"]] for item in value]
    if kind == "as_optional_tensors":
        return [read(*only(item), values) for item in value]
    if kind.startswith("as_sym_"):
        return [size(item, values) for item in value] if isinstance(value, list) else size(value, values)
    if kind == "as_scalar_type":
        return DTYPES[value]
    if kind == "as_memory_format":
        return MEMORY_FORMATS[value]
    if kind == "as_device":
        return torch.device("cpu")
    if kind == "as_layout":
        return torch.strided
    if kind == "as_none":
        return None
    return float(value) if kind == "as_float" else value


def size(item: dict[str, Any], values: dict[str, Any]) -> Any:
    """A size: a number, or one that an earlier node computed."""
    kind, value = only(item)
    return values[value] if kind == "as_name" else value


def only(item: dict[str, Any]) -> tuple[str, Any]:
    """Key and value of a union in torch's JSON."""
    ((kind, value),) = item.items()
    return kind, value


class Archive(zipfile.ZipFile):
    """The zip file, stored without compression: nothing in it can be larger than it is."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        members = self.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is compressed")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("its parts are larger than the whole")
        self.names = {member.filename.partition("/")[2]: member for member in members}

    def part(self, name: str, limit: int | float = math.inf) -> bytes:
        """One member, below the archive's own folder."""
        member = self.names[name]
        if member.file_size > limit:
            raise ValueError(f"{name} has {member.file_size} bytes, more than {limit}")
        return self.read(member)

    def json(self, name: str) -> dict[str, Any]:
        """A member that is JSON."""
        return json.loads(self.part(name, GRAPH_LIMIT))

    def text(self, name: str) -> str | None:
        """A member that is text, if it is there."""
        return self.part(name, GRAPH_LIMIT).decode() if name in self.names else None

    def tensors(self, kind: str) -> dict[str, Tensor]:
        """All "weights" or "constants" by name."""
        config = self.json(f"data/{kind}/model_{kind}_config.json")["config"]
        stored: dict[str, bytearray] = {}
        for entry in config.values():
            if entry["use_pickle"] or not entry["tensor_meta"]:
                raise ValueError(f"{entry['path_name']} is a pickle, which is never opened")
            file = entry["path_name"]
            stored[file] = stored.get(file) or bytearray(self.part(f"data/{kind}/{file}"))
        return {name: tensor(stored[entry["path_name"]], entry["tensor_meta"]) for name, entry in config.items()}


def tensor(data: bytearray, meta: dict[str, Any]) -> Tensor:
    """Raw bytes as a tensor; torch refuses a shape that goes beyond them."""
    dtype = DTYPES[meta["dtype"]]
    flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return flat.as_strided(numbers(meta["sizes"]), numbers(meta["strides"]), meta["storage_offset"]["as_int"])


def numbers(items: Iterable[dict[str, int]]) -> list[int]:
    """Sizes that are known."""
    return [item["as_int"] for item in items]
