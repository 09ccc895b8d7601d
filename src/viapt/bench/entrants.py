"""Who takes part in a comparison: a method with settings of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from viapt.backbones.base import Backbone
from viapt.bench.protocol import TRAINING, Protocol
from viapt.errors import ConfigError
from viapt.methods import check_effect, create_method, fits, method_class
from viapt.methods.base import PromptMethod, arguments
from viapt.methods.e2vpt import E2VPT
from viapt.pruning import PRUNING, check_shares, masked_of


def training_settings(method: str) -> dict[str, Any]:
    """The settings that a training of this method may have for itself, and their types."""
    return TRAINING | (dict.fromkeys(PRUNING, float) if method == E2VPT.name else {})


@dataclass(frozen=True)
class Entrant:
    """A method, keyword arguments of its constructor, and settings of its training (`training_settings`)."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What tables call it: the method, and the settings that were given and are not its defaults."""
        short = self.without_defaults()
        shown = ", ".join(f"{key}={value}" for key, value in (short.options | short.training).items())
        return f"{self.method}({shown})" if shown else self.method

    def without_defaults(self) -> Entrant:
        """The same without arguments that are the method's defaults: two are equal if they ask for the same."""
        defaults = {name: parameter.default for name, parameter in arguments(method_class(self.method)).items()}
        options = {key: value for key, value in self.options.items() if value != defaults.get(key)}
        return Entrant(self.method, options, self.training)

    def at(self, point: Mapping[str, Any]) -> Entrant:
        """The same with the settings of a point of a search space."""
        known = training_settings(self.method)
        options = {key: value for key, value in point.items() if key not in known}
        training = {key: value for key, value in point.items() if key in known}
        return Entrant(self.method, self.options | options, self.training | training)

    def effective(self, backbone: Backbone, settings: Collection[str]) -> Entrant:
        """The same, with those of some settings left out that change nothing, and shares as what they mask.

        Raises:
            ConfigError: it is impossible.
        """
        method = create_method(self.method, backbone.widths, backbone.depth, backbone.patch_size, **self.options)
        idle = [name for name in self.options if name in settings and name in method.without_effect()]
        if idle:
            rest = {key: value for key, value in self.options.items() if key != idle[0]}
            return Entrant(self.method, rest, self.training).effective(backbone, settings)
        found = {name: masked_of(share, n) / n for name, share, n in self.shares(method) if name in settings}
        return Entrant(self.method, self.options, self.training | found)

    def configuration(self, backbone: Backbone) -> dict[str, Any]:
        """All keyword arguments of the method on a backbone, defaults included.

        Raises:
            ConfigError: they are impossible (m > d, lambda > p ...), or without effect, as a share that masks nothing.
        """
        method = create_method(self.method, backbone.widths, backbone.depth, backbone.patch_size, **self.options)
        check_effect(method, self.options)
        for name, share, n in self.shares(method):
            if share > 0 and masked_of(share, n) < 1:
                raise ConfigError(f"{name} = {share} of {n} masks none", expected=f"0, or at least 1 / {n}")
        return method.config()

    def shares(self, method: PromptMethod) -> list[tuple[str, float, int]]:
        """What it prunes: the setting, its share, and of how many; nothing of other methods than e2vpt."""
        given = [name for name in PRUNING if name in self.training and isinstance(method, E2VPT)]
        return [(name, self.training[name], getattr(method, PRUNING[name])) for name in given]

    def training_under(self, protocol: Protocol) -> dict[str, Any]:
        """The settings of its training under a protocol.

        Raises:
            ConfigError: a setting that is none, a value of another kind, or a share that cannot be pruned.
        """
        known = training_settings(self.method)
        unknown = [name for name in self.training if name not in known]
        if unknown:
            raise ConfigError(f"{self.name}: no setting {unknown[0]!r}", expected=f"one of {', '.join(known)}")
        for name, value in self.training.items():
            if not fits(value, known[name]):
                expected = f"for {name}, a number{' or none' if fits(None, known[name]) else ''}"
                raise ConfigError(f"{self.name}: {name} = {value!r}", expected=expected)
        check_shares(**{name: share for name, share in self.training.items() if name in PRUNING})
        own: dict[str, Any] = {
            "lr": method_class(self.method).learning_rate,
            "weight_decay": protocol.weight_decay,
            "warmup_epochs": protocol.epochs / 10 if protocol.warmup_epochs is None else protocol.warmup_epochs,
            "clip": protocol.clip,
        }
        return own | {name: 0.0 for name in known if name in PRUNING} | self.training
