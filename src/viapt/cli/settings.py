"""`--set key=value`: text to the arguments of a method's constructor, by their annotations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from viapt.errors import ConfigError, did_you_mean, raise_all
from viapt.methods import arguments, method_class

BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def parse_settings(
    settings: Iterable[str], method: str, option: str = "--set", more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """`["num_prompts=5", "reduction=random"]` to keyword arguments of a method.

    Args:
        settings: each "key=value"; tuples are written with commas, None as "none".
        method: its name.
        option: what messages say that the settings were given to.
        more: settings besides the method's arguments, and their types.

    Raises:
        ConfigError: no such method, or with all that is wrong: no such argument (the closest is named), a value that
            does not fit, a key given twice.
    """
    cls = method_class(method)
    hints = get_type_hints(cls.__init__)
    known = {name: hints[name] for name in arguments(cls)} | dict(more or {})
    values, seen, wrong = dict[str, Any](), list[str](), list[ConfigError]()
    for setting in settings:
        try:
            key, value = parse_setting(setting, method, option, known)
        except ConfigError as error:
            wrong.append(error)
        else:
            values[key] = value
        seen.append(setting.partition("=")[0])
    twice = [key for key in dict.fromkeys(seen) if key in known and seen.count(key) > 1]
    wrong += [ConfigError(f"{option} {key} is given twice", expected="each key once") for key in twice]
    raise_all(wrong)
    return values


def parse_setting(setting: str, method: str, option: str, known: Mapping[str, Any]) -> tuple[str, Any]:
    """Key and value of "key=value"; see `parse_settings`.

    Raises:
        ConfigError: it is none, or not one that is known, or its value does not fit.
    """
    key, equals, text = setting.partition("=")
    if not equals:
        raise ConfigError(f"{option} {setting}", expected="key=value, for instance num_prompts=5")
    if key not in known:
        raise ConfigError(
            f"{option} {setting}: {method} has no argument {key!r}",
            expected=f"one of {', '.join(known)}" if known else "no settings at all",
            remedy=did_you_mean(key, known),
        )
    try:
        return key, convert(text, known[key])
    except ValueError:
        raise ConfigError(f"{option} {setting}", expected=f"for {key}, {describe(known[key])}") from None


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
