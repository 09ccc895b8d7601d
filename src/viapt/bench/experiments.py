"""The questions that the paper leaves, as data: who takes part, who is compared with whom, along which axis.

Another question is another `Experiment` in `EXPERIMENTS`, or another entrant in one that is there. Settings that an
entrant does not name are the method's defaults, so that all but one thing is equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from viapt.bench.entrants import Entrant
from viapt.methods import method_class
from viapt.methods.base import arguments


@dataclass(frozen=True)
class Family:
    """A question that paired tests answer: some entrants against one; Holm's correction is over these alone."""

    title: str
    reference: Entrant
    others: tuple[Entrant, ...]


@dataclass(frozen=True)
class Axis:
    """A setting with an order: where is the best value, and is it inside the range?

    Attributes:
        label: of the axis.
        points: (value, entrant), from the lowest value to the highest.
    """

    label: str
    points: tuple[tuple[str, Entrant], ...]


@dataclass(frozen=True)
class Design:
    """An experiment on a backbone of a certain width.

    Attributes:
        families, axes: what is compared.
        twins: pairs whose numbers must be identical.
        others: who takes part besides.
    """

    families: tuple[Family, ...] = ()
    axes: tuple[Axis, ...] = ()
    twins: tuple[tuple[Entrant, Entrant], ...] = ()
    others: tuple[Entrant, ...] = ()

    @property
    def entrants(self) -> list[Entrant]:
        """All of them, each once."""
        found: list[Entrant] = []
        for family in self.families:
            found += [family.reference, *family.others]
        for axis in self.axes:
            found += [entrant for _, entrant in axis.points]
        found += [entrant for pair in self.twins for entrant in pair]
        return list({entrant.name: entrant for entrant in [*found, *self.others]}.values())


@dataclass(frozen=True)
class Experiment:
    """A question, and what is done to answer it.

    Attributes:
        design: by the backbone's embedding dimension d.
        tasks, seeds: unless something else is asked for.
        protocol: what of the protocol belongs to the question, unless something else is asked for.
    """

    name: str
    title: str
    question: str
    design: Callable[[int], Design]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    protocol: dict[str, Any] = field(default_factory=dict)


def viapt(**options: Any) -> Entrant:
    """The method with some settings."""
    return Entrant("viapt", options)


DEFAULT = viapt()
WITHOUT_INSTANCE = viapt(num_instance_prompts=0)
WITHOUT_NOISE = viapt(instance_noise=False)
UNSCALED = {"carry_scale": 1.0, "calibrate_carry": False}  # what is kept enters the next block as it left the last
# Learns in each block p * d numbers as VPT-Deep, LoRA on the matrix of queries, keys and values rank * (d + 3 d).
EQUAL_LORA = Entrant("lora", {"rank": arguments(method_class("vpt-deep"))["num_prompts"].default // 4})


def corner_cases(d: int) -> Design:
    """Both corners, and the methods that they are."""
    return Design(
        twins=((Entrant("vpt-deep"), viapt(kept_dim=0)), (Entrant("vpt-shallow"), shallow_corner(d))),
    )


def shallow_corner(d: int) -> Entrant:
    """ViaPT that is VPT-Shallow."""
    return viapt(kept_dim=d, num_instance_prompts=0, **UNSCALED)


def kept_dim(d: int) -> Design:
    """From nothing to everything, at the default scale and unscaled; and W_i of d numbers, with gates or with what is
    kept added to it. At m = d the scale and the generator are taken away one by one, until VPT-Shallow is left.
    """
    shares = {"0": 0, "1/24": 24, "1/12": 12, "1/6": 6, "1/4": 4, "1/3": 3, "1/2": 2, "1": 1}
    points = {share: viapt(kept_dim=d // part if part else 0) for share, part in shares.items()}
    unscaled = {share: viapt(kept_dim=d // shares[share], **UNSCALED) for share in ("1/12", "1/4", "1/2", "1")}
    usual, everything = points["1/12"], points["1"]
    peeled = unscaled["1"], viapt(kept_dim=d, num_instance_prompts=0), shallow_corner(d)
    rest = tuple(points.values())
    adaptive = viapt(kept_dim="adaptive"), viapt(kept_dim="adaptive", image_gate=True)
    wide = (*adaptive, viapt(fresh_dim="full"))
    return Design(
        families=(
            Family("Is anything better than keeping nothing?", points["0"], rest[1:]),
            Family("Is anything better than keeping everything?", everything, rest[:-1]),
            Family("Is keeping everything better unscaled, or without a generator?", everything, peeled),
            Family("Is adaptive compression, or fresh parameters of full width, better than m = d / 12?", usual, wide),
        ),
        axes=(
            Axis("m / d", tuple(points.items())),
            Axis("m / d, unscaled", (("0", points["0"]), *unscaled.items())),
        ),
    )


def inference(_: int) -> Design:
    """The default, and one with so much noise that sampling matters."""
    return Design(others=(DEFAULT, viapt(initial_std=0.1), viapt(initial_std=1.0)))


def generator(_: int) -> Design:
    """Around the default: p = 10, lambda = 7, two channels, kernels 1 and 3, full, one distribution for all."""
    widths = tuple((str(c), viapt(generator_width=c) if c != 2 else DEFAULT) for c in (1, 2, 4, 8))
    kernels = tuple(viapt(generator_kernels=sizes) for sizes in ((1, 1), (3, 3), (1, 5)))
    shares = tuple((f"{k}/10", viapt(num_instance_prompts=k) if k != 7 else DEFAULT) for k in (0, 2, 5, 7, 10))
    stds = tuple((f"{s:g}", viapt(initial_std=s) if s != 0.01 else DEFAULT) for s in (0.001, 0.01, 0.1, 1.0))
    aware, sampled = tuple(e for _, e in shares[1:]), tuple(e for _, e in stds)
    wide = tuple(e for _, e in widths if e != DEFAULT)
    shapes = viapt(generator_depthwise=True), viapt(per_prompt=True), viapt(spatial=True)
    paces = viapt(instance_warmup=50), viapt(generator_lr=0.3), viapt(generator_lr=3.0)
    return Design(
        families=(
            Family("Is instance-awareness worth anything against lambda = 0?", WITHOUT_INSTANCE, aware),
            Family("Is sampling worth anything against the mean alone?", WITHOUT_NOISE, sampled),
            Family("Is another generator better than the default one?", DEFAULT, (*wide, *kernels, *shapes)),
            Family("Is it better to let the generator learn at another pace?", DEFAULT, paces),
            Family("Are instance prompts worth more in every block?", DEFAULT, (viapt(instance_every=True),)),
        ),
        axes=(
            Axis("lambda / p", shares),
            Axis("generator width", widths),
            Axis("initial std", stds),
        ),
    )


def reduction(_: int) -> Design:
    """Running: the basis is taken at steps 1, 2, 4, ..., up to `calibration_steps`, then frozen; it is aligned by
    construction. Gradient can flow through it in these steps only (docs/method.md), so also where it never freezes.
    """
    early, late, never = (viapt(calibration_steps=steps) for steps in (1, 64, 1_000_000))
    uncentred, shared = viapt(center_basis=False), viapt(shared_basis=True)
    through, never_through = viapt(basis_gradient=True), viapt(calibration_steps=1_000_000, basis_gradient=True)
    batch, instance, linear, random, select = (
        viapt(reduction=name) for name in ("batch", "instance", "linear", "random", "select")
    )
    literal, random_unscaled = viapt(reduction="batch", **UNSCALED), viapt(reduction="random", **UNSCALED)
    scales = tuple((f"{s:g}", viapt(carry_scale=s) if s != 0.1 else DEFAULT) for s in (0.0, 0.03, 0.1, 0.3, 1.0))
    variation, normalised = viapt(carried="variation"), viapt(carry_norm=True)
    unscaled, detached = viapt(**UNSCALED), viapt(detach_carried=True)
    rest = tuple(e for _, e in scales[1:] if e != DEFAULT)
    return Design(
        families=(
            Family("Is PCA better than a random subspace?", random, (DEFAULT, uncentred, instance, batch)),
            Family("Is it where both are carried unscaled?", random_unscaled, (unscaled, literal)),
            Family("Is another way to take the basis better?", DEFAULT, (early, late, never, uncentred, shared)),
            Family("Is gradient through the basis worth anything?", DEFAULT, (through,)),
            Family("Is it where the basis never freezes?", never, (never_through,)),
            Family("Is another reduction better than the default?", DEFAULT, (batch, instance, linear, random, select)),
            Family("Is it worth anything to carry?", scales[0][1], (DEFAULT, *rest)),
            Family("Is another way to carry better?", DEFAULT, (variation, normalised, unscaled, detached)),
        ),
        axes=(Axis("carry scale", scales),),
    )


def structured(_: int) -> Design:
    """Rendered geometry; LoRA learns as many numbers as VPT-Deep, or the next smaller number that it can."""
    others = (*(Entrant(name) for name in ("linear", "vpt-shallow", "vpt-deep")), EQUAL_LORA)
    return Design(families=(Family("Is another method better than ViaPT on geometry?", DEFAULT, others),))


SMALL = "elpv", "silhouettes", "orientation"
MIXED = "elpv", "silhouettes", "fashion", "orientation"
GEOMETRY = "azimuth", "elevation", "distance", "orientation", "count"

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "corner-cases",
            "The two corners",
            "Is ViaPT with m = 0 VPT-Deep, and with m = d VPT-Shallow: identical numbers, not similar ones?",
            corner_cases,
            SMALL,
            # In bfloat16 the two add the gradients of prompts that all images share up in different precisions.
            protocol={"precision": "float32"},
        ),
        Experiment(
            "kept-dim",
            "How much to keep",
            "Which m is the best, and does it lie inside the range from 0 to d, as the paper says?",
            kept_dim,
            MIXED,
        ),
        Experiment(
            "inference",
            "Policies of inference",
            "What do one sample and R samples change against the mean: accuracy, its spread, calibration, cost?",
            inference,
            MIXED,
            protocol={"rounds": 20, "draws": 3},
        ),
        Experiment(
            "generator",
            "The generator of instance prompts",
            "Which generator is the best; is sampling worth anything against the mean alone, and instance-awareness "
            "against lambda = 0?",
            generator,
            SMALL,
        ),
        Experiment(
            "reduction",
            "What to keep",
            "Is PCA better than random, as the paper says, and which way to find the kept subspace is the best?",
            reduction,
            SMALL,
        ),
        Experiment(
            "structured",
            "Geometry",
            "Which method learns geometry: azimuth, elevation, distance, orientation and number of objects?",
            structured,
            GEOMETRY,
            seeds=(0, 1, 2, 3, 4),
        ),
    )
}
