"""Prompt methods: every module here that defines a named `PromptMethod` is found by itself."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch

from viapt.errors import ConfigError, did_you_mean
from viapt.methods.base import PromptMethod, arguments
from viapt.widths import Widths


def _discover() -> dict[str, type[PromptMethod]]:
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    classes = [value for module in modules for value in vars(module).values() if inspect.isclass(value)]
    found = {c.name: c for c in classes if issubclass(c, PromptMethod) and hasattr(c, "name")}
    return dict(sorted(found.items()))


METHODS = _discover()


def list_methods() -> list[str]:
    """Names of the prompt methods, as `create_model(method=...)` takes them."""
    return list(METHODS)


def method_class(name: str) -> type[PromptMethod]:
    """The class behind a name.

    Raises:
        ConfigError: if there is none, with the closest names.
    """
    if name not in METHODS:
        raise ConfigError(
            f"There is no method {name!r}", expected=f"one of {', '.join(METHODS)}", remedy=did_you_mean(name, METHODS)
        )
    return METHODS[name]


def create_method(name: str, dim: Widths, depth: int, patch_size: tuple[int, int], **options: Any) -> PromptMethod:
    """Build a method from its name and keyword arguments (lists, as JSON has them, serve as tuples).

    Raises:
        BackboneError: the method cannot serve blocks of several widths.
        ConfigError: unknown method, unknown argument, or a value of the wrong type or out of range.
    """
    return method_class(name)(dim, depth, patch_size, **check_arguments(name, options))


def check_arguments(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a method, checked against its constructor's annotations; lists become tuples.

    Raises:
        ConfigError: unknown method, unknown argument, or a value of the wrong type.
    """
    cls = method_class(name)
    known, hints = arguments(cls), get_type_hints(cls.__init__)
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    for key, value in options.items():
        if key not in known:
            raise ConfigError(
                f"{name} has no argument {key!r}",
                expected=f"one of {', '.join(known)}" if known else "no arguments",
                remedy=did_you_mean(key, known),
            )
        if not fits(value, hints[key]):
            choices = ", ".join(map(str, get_args(hints[key]))) if get_origin(hints[key]) is Literal else ""
            expected = f"one of {choices}" if choices else f"{known[key].annotation}"
            raise ConfigError(f"{key} = {value!r} is not possible", expected=expected)
    return options


def fits(value: Any, hint: Any) -> bool:
    """Whether a value suits an annotation: a number, a string, a Literal, a tuple of fixed length, or a union."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, kind) for kind in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(fits, value, inner))
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def check_effect(method: PromptMethod, given: Mapping[str, Any]) -> None:
    """Refuse arguments that somebody gave and that change nothing.

    A value that is the default, that leaving the argument out would give, or that switches something off (0, False,
    None), is no misunderstanding: a configuration that was read from a method makes that method again.

    Args:
        method: as built from `given` and the defaults.
        given: what the user named.

    Raises:
        ConfigError: naming each argument and the reason.
    """
    idle, known, found = method.without_effect(), arguments(type(method)), dict[str, str]()
    for key, value in given.items():
        value = tuple(value) if isinstance(value, list) else value
        if key in idle and value and value not in (known[key].default, without(key, method, given)):
            found[key] = f"{key} = {value!r} has no effect: {idle[key]}"
    if found:
        raise ConfigError("; ".join(found.values()), remedy=f"leave {', '.join(found)} out")


def without(key: str, method: PromptMethod, given: Mapping[str, Any]) -> Any:
    """What an argument is if it is left out and all others are given."""
    others = {name: value for name, value in given.items() if name != key}
    with torch.random.fork_rng(devices=[]):  # what is drawn after this stays as it is
        return create_method(method.name, method.built_for, method.depth, method.patch_size, **others).config()[key]
