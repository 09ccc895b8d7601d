"""The 34 tasks of the suites VTAB-1k, FGVC and HTA, one entry each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from viapt.data.benchmarks.releases import RELEASES
from viapt.errors import ConfigError, did_you_mean

BY_CLASS = "class of the release"


@dataclass(frozen=True)
class BenchmarkTask:
    """A task of a suite.

    Attributes:
        name: SUITE/NAME.
        release: the data set it is made of, a key of `RELEASES`.
        classes: how many.
        counts: images that are expected, by part: "train", "val", "test".
        split: the rule for original releases, of `viapt.data.benchmarks.splits`.
        label: how labels come about, in words; the rules are in `viapt.data.benchmarks.labels`.
        group: "natural", "specialized" or "structured" within VTAB, otherwise None.
        community: names of the task's folder in the community's layout of VTAB-1k; none elsewhere.
        metric: what is reported.
        notes: what a user has to know.
        differs: in what the images of a layout may be others than the publications', by layout.
    """

    name: str
    release: str
    classes: int
    counts: Mapping[str, int]
    split: str
    label: str = BY_CLASS
    group: str | None = None
    community: tuple[str, ...] = ()
    metric: str = "accuracy"
    notes: str = ""
    differs: Mapping[str, str] = field(default_factory=dict)
    layouts: Mapping[str, tuple[str, ...]] = field(init=False)
    """Layouts that are read, in order of preference, each with the names that the task's folder may have there."""

    def __post_init__(self) -> None:
        own = {"community": self.community} if self.community else {}
        released = dict(RELEASES[self.release].layouts)
        if self.suite == "vtab-1k":
            released.pop("fgvc-json", None)  # they are other splits than VTAB's
        saved = {} if self.label != BY_CLASS else {"huggingface": (f"huggingface/{self.release}",)}
        object.__setattr__(self, "layouts", own | released | saved)

    @property
    def suite(self) -> str:
        """ "vtab-1k", "fgvc" or "hta"."""
        return self.name.partition("/")[0]

    @property
    def title(self) -> str:
        """For people."""
        return RELEASES[self.release].title

    @property
    def licence(self) -> str:
        """Of the images."""
        return RELEASES[self.release].licence

    @property
    def citation(self) -> str:
        """The publication to cite."""
        return RELEASES[self.release].citation

    @property
    def source(self) -> str:
        """Where a user gets the original files."""
        return RELEASES[self.release].source


def _counts(train: int, val: int, test: int) -> dict[str, int]:
    return {"train": train, "val": val, "test": test}


def _vtab(test: int) -> dict[str, int]:
    return _counts(800, 200, test)


CIFAR100 = "Folder copies are not bit for bit the images of TensorFlow Datasets; results differ by about 10 points."
FOLDER_COPY = {"community": "a folder copy, whose images may not be those of TensorFlow Datasets"}
UNSCALED = "photos neither scaled down nor compressed again as in TensorFlow Datasets"
NOT_NORMALISED = {"retinopathy": "Kaggle's photos, not normalised as VTAB's (btgraham-300)"}
NAT, SPEC, STRUCT = "natural", "specialized", "structured"
COUNT = "number of objects, 3 to 10, minus 3"
DISTANCE = "depth of the closest object in pixels' coordinates, in bins from 0, 8, 8.5, 9, 9.5, 10 to 100"
CLOSEST = "distance of the closest vehicle, above -100, 8, 20 up to 999 m; 3 where there is none"

_TASKS = (
    # VTAB-1k, natural
    BenchmarkTask("vtab-1k/caltech101", "caltech101", 102, _vtab(6084), "vtab-caltech", group=NAT,
                  community=("caltech101",), notes="The class of background images counts."),
    BenchmarkTask("vtab-1k/cifar100", "cifar100", 100, _vtab(10_000), "vtab-90", group=NAT,
                  community=("cifar", "cifar100"), notes=CIFAR100, differs=FOLDER_COPY),
    BenchmarkTask("vtab-1k/dtd", "dtd", 47, _vtab(1880), "vtab-val", group=NAT, community=("dtd",)),
    BenchmarkTask("vtab-1k/flowers102", "flowers102", 102, _vtab(6149), "vtab-val", group=NAT,
                  community=("oxford_flowers102",)),
    BenchmarkTask("vtab-1k/pets", "pets", 37, _vtab(3669), "vtab-80", group=NAT, community=("oxford_iiit_pet",)),
    BenchmarkTask("vtab-1k/sun397", "sun397", 397, _vtab(21_750), "vtab-sun", group=NAT, community=("sun397",),
                  differs={"torchvision": UNSCALED, "huggingface": UNSCALED}),
    BenchmarkTask("vtab-1k/svhn", "svhn", 10, _vtab(26_032), "vtab-90", group=NAT, community=("svhn",)),
    # VTAB-1k, specialized
    BenchmarkTask("vtab-1k/eurosat", "eurosat", 10, _vtab(5400), "vtab-60-20-20", group=SPEC, community=("eurosat",)),
    BenchmarkTask("vtab-1k/patch-camelyon", "patch-camelyon", 2, _vtab(32_768), "vtab-val", group=SPEC,
                  community=("patch_camelyon",)),
    BenchmarkTask("vtab-1k/resisc45", "resisc45", 45, _vtab(6300), "vtab-60-20-20", group=SPEC,
                  community=("resisc45",)),
    BenchmarkTask("vtab-1k/retinopathy", "retinopathy", 5, _vtab(42_670), "vtab-val", "grade of the disease, 0 to 4",
                  SPEC, ("diabetic_retinopathy",),
                  notes="Kaggle's photos are not VTAB's: those of btgraham-300 exist converted only.",
                  differs=NOT_NORMALISED),
    # VTAB-1k, structured
    BenchmarkTask("vtab-1k/clevr-count", "clevr", 8, _vtab(15_000), "vtab-clevr", COUNT, STRUCT, ("clevr_count",)),
    BenchmarkTask("vtab-1k/clevr-distance", "clevr", 6, _vtab(15_000), "vtab-clevr", DISTANCE, STRUCT, ("clevr_dist",)),
    BenchmarkTask("vtab-1k/dmlab", "dmlab", 6, _vtab(22_735), "vtab-val", group=STRUCT, community=("dmlab",)),
    BenchmarkTask("vtab-1k/dsprites-location", "dsprites", 16, _vtab(73_728), "vtab-80-10-10",
                  "index of 32 horizontal positions, divided by 2", STRUCT, ("dsprites_loc",)),
    BenchmarkTask("vtab-1k/dsprites-orientation", "dsprites", 16, _vtab(73_728), "vtab-80-10-10",
                  "index of 40 orientations, divided by 2.5", STRUCT, ("dsprites_ori",)),
    BenchmarkTask("vtab-1k/kitti-distance", "kitti", 4, _vtab(711), "vtab-kitti", CLOSEST, STRUCT, ("kitti",)),
    BenchmarkTask("vtab-1k/smallnorb-azimuth", "smallnorb", 18, _vtab(12_150), "vtab-norb",
                  "azimuth, in steps of 20 degrees", STRUCT, ("smallnorb_azi",)),
    BenchmarkTask("vtab-1k/smallnorb-elevation", "smallnorb", 9, _vtab(12_150), "vtab-norb",
                  "elevation, in steps of 5 degrees from 30", STRUCT, ("smallnorb_ele",)),
    # FGVC
    BenchmarkTask("fgvc/cub200", "cub200", 200, _counts(5394, 600, 5794), "drawn-90"),
    BenchmarkTask("fgvc/dogs", "dogs", 120, _counts(10_800, 1200, 8580), "drawn-90"),
    BenchmarkTask("fgvc/flowers102", "flowers102", 102, _counts(1020, 1020, 6149), "official"),
    BenchmarkTask("fgvc/nabirds", "nabirds", 555, _counts(21_536, 2393, 24_633), "drawn-90"),
    BenchmarkTask("fgvc/stanford-cars", "stanford-cars", 196, _counts(7329, 815, 8041), "drawn-90"),
    # HTA
    BenchmarkTask("hta/cifar10", "cifar10", 10, _counts(40_000, 10_000, 10_000), "first-80"),
    BenchmarkTask("hta/cifar100", "cifar100", 100, _counts(40_000, 10_000, 10_000), "first-80"),
    BenchmarkTask("hta/cub200", "cub200", 200, _counts(5394, 600, 5794), "drawn-90"),
    BenchmarkTask("hta/dogs", "dogs", 120, _counts(10_800, 1200, 8580), "drawn-90"),
    BenchmarkTask("hta/dtd", "dtd", 47, _counts(1880, 1880, 1880), "official"),
    BenchmarkTask("hta/flowers102", "flowers102", 102, _counts(1020, 1020, 6149), "official"),
    BenchmarkTask("hta/food101", "food101", 101, _counts(60_600, 15_150, 25_250), "drawn-80"),
    BenchmarkTask("hta/gtsrb", "gtsrb", 43, _counts(21_300, 5340, 12_630), "drawn-80",
                  notes="The frames of one sign stay together, so that sizes differ a little from published ones."),
    BenchmarkTask("hta/nabirds", "nabirds", 555, _counts(21_536, 2393, 24_633), "drawn-90"),
    BenchmarkTask("hta/svhn", "svhn", 10, _counts(58_605, 14_652, 26_032), "first-80"),
)  # fmt: skip

TASKS = {task.name: task for task in _TASKS}
SUITES = {suite: tuple(name for name in TASKS if name.startswith(f"{suite}/")) for suite in ("vtab-1k", "fgvc", "hta")}


def find_task(name: str) -> BenchmarkTask:
    """A task by SUITE/NAME, or by NAME where that is unique.

    Raises:
        ConfigError: no such task, with the closest name; or several, with their names.
    """
    if name in TASKS:
        return TASKS[name]
    same = [full for full in TASKS if full.partition("/")[2] == name]
    if len(same) == 1:
        return TASKS[same[0]]
    if same:
        raise ConfigError(f"{name!r} is a task of several suites", expected=f"one of {', '.join(same)}")
    short = {full.partition("/")[2] for full in TASKS}
    raise ConfigError(
        f"There is no benchmark task {name!r}",
        expected=f"SUITE/NAME, with a suite of {', '.join(SUITES)}",
        remedy=did_you_mean(name, [*TASKS, *short]) or "see viapt data list",
    )


def find_tasks(name: str) -> tuple[BenchmarkTask, ...]:
    """The tasks of a suite, or one task.

    Raises:
        ConfigError: neither a suite nor a task.
    """
    if name in SUITES:
        return tuple(TASKS[full] for full in SUITES[name])
    return (find_task(name),)
