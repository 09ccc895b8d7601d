"""Dictionaries of arrays, lists and text in pickles of Python 2, read without unpickling.

The opcodes are listed by the standard library's disassembler, and put together here to dictionaries, lists, tuples,
text and numbers. A name of a function or class is a name and nothing more: what NumPy calls when it rebuilds an array
is recognised by that name and kept as bytes with a shape; anything else that a pickle would call is refused.
"""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from viapt.errors import DataError

NOISE = ("PROTO", "FRAME")
NUMBERS_AND_TEXT = ("BININT", "BININT1", "BININT2", "LONG1", "INT", "BINFLOAT", "STRING", "BINSTRING")
NUMBERS_AND_TEXT += ("SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES")
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
STORE, RECALL = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
ARRAY = {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"}
MARK = object()


@dataclass(frozen=True)
class Name:
    """What a pickle calls something; it is never looked up."""

    name: str


@dataclass
class Dtype:
    """A type of NumPy: "u1", "i8"; byte order as in its state."""

    code: str
    order: str = "|"


@dataclass
class PickledArray:
    """An array as a pickle has it: type, shape and bytes."""

    dtype: str = ""
    shape: tuple[int, ...] = ()
    content: bytes = b""

    def array(self) -> Shaped[np.ndarray, "..."]:
        """It, read-only."""
        return np.frombuffer(self.content, self.dtype).reshape(self.shape)


def read_pickled(path: Path, max_bytes: int) -> dict[str, Any]:
    """The dictionary in a pickle, with `PickledArray` for NumPy's arrays.

    Raises:
        DataError: the file is missing, damaged, larger than that, or holds anything else.
    """
    try:
        if path.stat().st_size > max_bytes:
            raise DataError(f"{path} is too large", expected=f"at most {max_bytes:,} bytes")
        with path.open("rb") as file:
            content = _Machine().run(file)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", remedy="unpack the archive again") from error
    except (ValueError, IndexError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged, or a pickle of something else ({error})",
            expected="a dictionary of arrays, lists and text",
            remedy="unpack the archive again",
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}", expected="a dictionary")
    return content


class _Machine:
    """A stack and what was stored aside, as pickles have them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.stored: dict[int, Any] = {}

    def run(self, file: Any) -> Any:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return self.stack.pop()
            self.step(opcode.name, argument)
        raise ValueError("it does not end")

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in NUMBERS_AND_TEXT:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in STORE:
            self.stored[int(argument)] = stack[-1]
        elif name in RECALL:
            stack.append(self.stored[int(argument)])
        elif name == "MARK":
            stack.append(MARK)
        elif name in TUPLES or name == "TUPLE":
            stack.append(tuple(self.marked() if name == "TUPLE" else self.last(TUPLES[name])))
        elif name in ("EMPTY_LIST", "LIST"):
            stack.append([] if name == "EMPTY_LIST" else self.marked())
        elif name in ("APPEND", "APPENDS"):
            added = self.last(1) if name == "APPEND" else self.marked()
            _only(stack[-1], list).extend(added)
        elif name in ("EMPTY_DICT", "DICT"):
            stack.append({} if name == "EMPTY_DICT" else _pairs(self.marked()))
        elif name in ("SETITEM", "SETITEMS"):
            added = self.last(2) if name == "SETITEM" else self.marked()
            _only(stack[-1], dict).update(_pairs(added))
        elif name == "GLOBAL":
            stack.append(Name(argument))
        elif name == "REDUCE":
            function, arguments = self.last(2)
            stack.append(_called(function, arguments))
        elif name == "BUILD":
            target, state = self.last(2)
            stack.append(_with_state(target, state))
        elif name not in NOISE:
            raise ValueError(f"the opcode {name}")

    def last(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise IndexError("nothing left")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def marked(self) -> list[Any]:
        start = next((i for i in range(len(self.stack) - 1, -1, -1) if self.stack[i] is MARK), None)
        if start is None:
            raise IndexError("no mark")
        taken = self.stack[start + 1 :]
        del self.stack[start:]
        return taken


def _only(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} instead of {kind.__name__}")
    return value


def _pairs(values: list[Any]) -> dict[str, Any]:
    return {_only(key, str): value for key, value in zip(values[::2], values[1::2], strict=True)}


def _called(function: Any, arguments: Any) -> Any:
    """A fresh array or type of NumPy; the only calls that are known."""
    name = _only(function, Name).name
    if name in ARRAY:
        return PickledArray()
    if name == "numpy dtype":
        return Dtype(_only(arguments[0], str))
    raise ValueError(f"a call of {name}")


def _with_state(target: Any, state: Any) -> Any:
    """The array or type with what its pickle says of it.

    Arrays have (version, shape, type, whether columns come first, bytes); types have (version, byte order, ...).
    """
    if isinstance(target, Dtype):
        target.order = _only(state[1], str)
        return target
    _only(target, PickledArray)
    _, shape, dtype, columns_first, content = state
    raw = content.encode("latin-1") if isinstance(content, str) else _only(content, bytes)
    kind = _only(dtype, Dtype)
    if kind.code not in ("u1", "i4", "i8") or columns_first or kind.order == ">":
        raise ValueError(f"an array of type {kind.order}{kind.code}")
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"an array of shape {shape}")
    if math.prod(shape) * np.dtype(kind.code).itemsize != len(raw):
        raise ValueError(f"{len(raw)} bytes for an array of shape {shape}")
    target.dtype, target.shape, target.content = kind.code, tuple(shape), raw
    return target
