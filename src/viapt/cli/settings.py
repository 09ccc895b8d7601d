"""`--set key=value`: text to the arguments of a method's constructor, by their annotations."""

from __future__ import annotations

from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from viapt.errors import ConfigError, did_you_mean
from viapt.methods import arguments, method_class

BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def parse_settings(settings: Iterable[str], method: str, option: str = "--set") -> dict[str, Any]:
    """`["num_prompts=5", "reduction=random"]` to keyword arguments of a method.

    Args:
        settings: each "key=value"; tuples are written with commas, None as "none".
        method: its name.
        option: what messages say that the settings were given to.

    Raises:
        ConfigError: no such method or argument (the closest is named), a value that does not fit, a key given twice.
    """
    cls = method_class(method)
    known, hints = arguments(cls), get_type_hints(cls.__init__)
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"{option} {setting}", expected="key=value, for instance num_prompts=5")
        if key not in known:
            raise ConfigError(
                f"{option} {setting}: {method} has no argument {key!r}",
                expected=f"one of {', '.join(known)}" if known else "no settings at all",
                remedy=did_you_mean(key, known),
            )
        if key in values:
            raise ConfigError(f"{option} {key} is given twice", expected="each key once")
        try:
            values[key] = convert(text, hints[key])
        except ValueError:
            raise ConfigError(f"{option} {setting}", expected=f"for {key}, {describe(hints[key])}") from None
    return values


def convert(text: str, hint: Any) -> Any:
    """Text to a value of a type: bool, int, float, str, None, Literal, tuple of fixed length, or a union of these.

    Raises:
        ValueError: the text does not fit.
    """
    origin, choices = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        for choice in sorted(choices, key=lambda choice: choice is not NoneType):
            try:
                return convert(text, choice)
            except ValueError:
                continue
        raise ValueError(text)
    if origin is Literal:
        return {str(choice): choice for choice in choices}[text] if text in map(str, choices) else _refuse(text)
    if origin is tuple:
        parts = text.strip("()").split(",")
        return tuple(convert(part.strip(), choice) for part, choice in zip(parts, choices, strict=True))
    if hint is NoneType:
        return None if text.lower() in ("none", "null") else _refuse(text)
    if hint is bool:
        return BOOLEANS[text.lower()] if text.lower() in BOOLEANS else _refuse(text)
    if hint in (int, float, str):
        return hint(text)
    raise TypeError(f"--set cannot convert to {hint}")


def describe(hint: Any) -> str:
    """A type in words."""
    origin, choices = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(describe, choices))
    if origin is Literal:
        return "one of " + ", ".join(map(str, choices))
    if origin is tuple:
        return f"{len(choices)} values with a comma between them, each {describe(choices[0])}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "none"}
    return words[hint]


def _refuse(text: str) -> Any:
    raise ValueError(text)
