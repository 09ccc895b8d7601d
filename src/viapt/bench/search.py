"""Search with Optuna, the same number of trials for each method: on validation images, with the epochs of the protocol.

A search is a function of the protocol and of the values that its trials found: it asks for one trial after the other,
and its sampler has a seed. So it needs no memory of its own: taken up after an interruption it asks the same questions,
and the store knows the answers. Searches of different methods and tasks run side by side.

A space is a JSON object, name -> range. A name is a setting of the training (`lr`, `weight_decay`, `warmup_epochs`,
`clip`; of e2vpt `prune_tokens` and `prune_segments`), an argument of methods (`kept_dim`: of those that have it), or an
argument of one method (`viapt.kept_dim`). A range is
`{"low": 0.001, "high": 0.1, "log": true}` or `{"choices": [8, 16, 32]}`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from viapt.bench.entrants import Entrant, training_settings
from viapt.bench.protocol import Protocol
from viapt.errors import ConfigError, did_you_mean
from viapt.methods import list_methods, method_class
from viapt.methods.base import arguments

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

AROUND = 10.0  # a method's own learning rate is divided and multiplied by it for the ends of the default range
WEIGHT_DECAY = {"low": 1e-4, "high": 1e-1, "log": True}
MAX_CORNERS = 1024  # that are looked at before a search
MAX_VALUES = 64  # of a range of whole numbers, likewise

Space = Mapping[str, Mapping[str, Any]]
Point = dict[str, Any]


def space_of(entrant: Entrant, protocol: Protocol) -> dict[str, Mapping[str, Any]]:
    """The part of the protocol's space that this method has; nothing where nothing is searched."""
    if not protocol.trials:
        return {}
    known = settings_of(entrant.method)
    space = protocol.space or default_space(entrant.method)
    return {key: space[name] for key, name in names_of(space, entrant.method).items() if key in known}


def names_of(space: Mapping[str, Any], method: str) -> dict[str, str]:
    """What a space calls each setting of a method: METHOD.SETTING before SETTING."""
    split = {name: name.rpartition(".") for name in space}
    general = {setting: name for name, (owner, _, setting) in split.items() if not owner}
    return general | {setting: name for name, (owner, _, setting) in split.items() if owner == method}


def settings_of(method: str) -> list[str]:
    """All that can be searched of a method: settings of its training, and its arguments."""
    return [*training_settings(method), *arguments(method_class(method))]


def default_space(method: str) -> dict[str, Any]:
    """Of the two settings that every training has; a rate that is usual for prompts ruins a backbone that is tuned."""
    rate = method_class(method).learning_rate
    return {"lr": {"low": rate / AROUND, "high": rate * AROUND, "log": True}, "weight_decay": WEIGHT_DECAY}


def check_space(space: Space) -> None:
    """Refuse a space that is none.

    Raises:
        ConfigError: an unknown method or setting, an empty range, or one that a logarithm cannot span.
    """
    for name, values in space.items():
        method, _, setting = name.rpartition(".")
        known = {key: None for one in ([method] if method else list_methods()) for key in settings_of(one)}
        if setting not in known:
            raise ConfigError(f"Nothing to search is called {name!r}", remedy=did_you_mean(setting, known))
        if "choices" in values:
            good, expected = len(values["choices"]) > 1, "at least two choices"
        else:
            good = values["low"] < values["high"] and (not values.get("log") or values["low"] > 0)
            expected = "LOW < HIGH, above 0 if logarithmic"
        if not good:
            raise ConfigError(f"The range of {name} is {dict(values)}", expected=expected)


def corners(space: Space) -> Iterator[Point]:
    """The points where every setting is a choice, or an end of its range; one empty point if there are none."""
    ends = {name: ends_of(values) for name, values in space.items()}
    for values in itertools.product(*ends.values()):
        yield dict(zip(ends, values, strict=True))


def probes(space: Space) -> list[Point]:
    """Points that show before a search what is impossible in it: corners, and values one setting at a time.

    These are all choices, the ends of a range, and all numbers of a short range of whole ones, each with the others at
    their first corner. Of a space of very many corners these points are all.
    """
    first = {name: ends_of(values)[0] for name, values in space.items()}
    alone = [first | {name: value} for name, values in space.items() for value in [*ends_of(values), *inner(values)]]
    few = math.prod(len(ends_of(values)) for values in space.values()) <= MAX_CORNERS
    points = [*(corners(space) if few else ()), *alone]
    return [point for place, point in enumerate(points) if point not in points[:place]]


def ends_of(values: Mapping[str, Any]) -> list[Any]:
    """All choices, or both ends of a range."""
    return list(values.get("choices") or (values["low"], values["high"]))


def inner(values: Mapping[str, Any]) -> range:
    """The numbers between the ends of a short range of whole ones."""
    short = is_whole(values) and values["high"] - values["low"] < MAX_VALUES
    return range(values["low"] + 1, values["high"]) if short else range(0)


def is_whole(values: Mapping[str, Any]) -> bool:
    """Whether a range holds whole numbers alone."""
    return "choices" not in values and all(isinstance(values[end], int) for end in ("low", "high"))


def search(space: Space, start: Point, trials: int, seed: int) -> Generator[Point, float | None, Point | None]:
    """Yields the points of the trials, is sent their values (higher is better; None: failed), returns the best point.

    The first trial is at `start`, as far as it lies in the space. The best point is the first of the highest value;
    None if all trials failed.

    Args:
        space: by setting.
        start: the defaults.
        trials: how many.
        seed: of the sampler.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    distributions = {name: distribution(values) for name, values in space.items()}
    study.enqueue_trial({name: value for name, value in start.items() if inside(value, space.get(name))})
    tried: list[tuple[float, Point]] = []
    for _ in range(trials):
        trial = study.ask(distributions)
        value = yield dict(trial.params)
        if value is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, value)
            tried.append((value, dict(trial.params)))
    return max(tried, key=lambda pair: pair[0])[1] if tried else None


def grid(space: Space) -> Generator[Point, float | None, Point | None]:
    """As `search`, but all points of choices, each once; the best is the first of the highest value.

    Choices come in order, so that of equals the smallest learning rate wins, as with VPT.
    """
    tried: list[tuple[float, Point]] = []
    for point in corners({name: {"choices": sorted(values["choices"])} for name, values in space.items()}):
        value = yield point
        if value is not None:
            tried.append((value, point))
    return max(tried, key=lambda pair: pair[0])[1] if tried else None


def is_grid(space: Space, trials: int) -> bool:
    """Whether the trials are as many as a space of choices has points."""
    return all("choices" in values for values in space.values()) and trials == math.prod(
        len(values["choices"]) for values in space.values()
    )


def exhaustive(protocol: Protocol, space: Space) -> bool:
    """Whether every point of a suite's grid is a trial."""
    return protocol.suite is not None and is_grid(space, protocol.trials)


def needs_optuna(protocol: Protocol, entrants: Iterable[Entrant] = ()) -> bool:
    """Whether a search samples: that of the protocol's space, or that of the part of it which some method has."""
    spaces = [protocol.space, *(space_of(entrant, protocol) for entrant in entrants)]
    return protocol.trials > 0 and not all(exhaustive(protocol, space) for space in spaces)


def inside(value: Any, values: Mapping[str, Any] | None) -> bool:
    """Whether a range holds a value."""
    if values is None:
        return False
    if "choices" in values:
        return value in values["choices"]
    return isinstance(value, int | float) and values["low"] <= value <= values["high"]


def distribution(values: Mapping[str, Any]) -> BaseDistribution:
    """A range as Optuna has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if "choices" in values:
        return CategoricalDistribution(values["choices"])
    return (IntDistribution if is_whole(values) else FloatDistribution)(
        values["low"], values["high"], log=values.get("log", False)
    )


def require_optuna() -> None:
    """Say now that it is missing.

    Raises:
        ConfigError: it is.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "A search needs optuna, which is not installed", remedy="pip install 'viapt[bench]'"
        ) from error
