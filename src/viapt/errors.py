"""Errors that a user can act on: what was found, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Rule = tuple[str, bool, str]
"""The name of a value, whether the value is possible, and what is expected of it."""


class ViaptError(Exception):
    """A problem with the user's input, files or environment; never a bug of ours.

    The command line prints it as one paragraph and exits with code 2.

    Args:
        found: what is wrong, with the offending value.
        expected: what would have been right.
        remedy: what the user can do about it.
    """

    def __init__(self, found: str, *, expected: str = "", remedy: str = "") -> None:
        self.found, self.expected, self.remedy = found, expected, remedy
        parts = [found, f"Expected: {expected}" if expected else "", f"To do: {remedy}" if remedy else ""]
        super().__init__(" ".join(part if part.endswith((".", "!", "?")) else part + "." for part in parts if part))


class ConfigError(ViaptError):
    """An argument, option or configuration value is wrong."""


class DataError(ViaptError):
    """Images, labels, splits or data files are missing or wrong."""


class BackboneError(ViaptError):
    """A backbone cannot be built, or is not one that is supported."""


class ArtifactError(ViaptError):
    """A saved adapter or checkpoint cannot be read, or does not fit."""


class TrainingError(ViaptError):
    """Training cannot start or go on, for instance because the loss is not finite."""


class DivergenceError(TrainingError):
    """Loss, gradients or weights are not finite: with these settings training fails whenever it is tried."""


class FetchError(ViaptError):
    """A packaged download failed, or is not what it should be."""


class UnavailableError(FetchError):
    """A package cannot be had on this machine: it is made for another system, or its archive is out of reach."""


def check_rules(values: Mapping[str, Any], rules: Iterable[Rule]) -> None:
    """Refuse impossible values, all of them in one message.

    Args:
        values: by name; there may be others.
        rules: of one value there may be several.

    Raises:
        ConfigError: a rule does not hold.
    """
    broken = [(name, expected) for name, holds, expected in rules if not holds]
    if len(broken) == 1:
        ((name, expected),) = broken
        raise ConfigError(f"{name} = {values[name]!r} is not possible", expected=expected)
    if broken:
        found = ", ".join(f"{name} = {values[name]!r}" for name in dict(broken))
        raise ConfigError(f"Not possible: {found}", expected="; ".join(map(": ".join, broken)))


def raise_all(errors: Sequence[ConfigError]) -> None:
    """Say all that was found, in one message.

    Raises:
        ConfigError: there is something.
    """
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ConfigError(" ".join(dict.fromkeys(map(str, errors))))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A remedy for a misspelt word: the closest one that is known, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else ""
