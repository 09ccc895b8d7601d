"""What is refused before anything starts, what a search asks, and which code counts."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from bench_cases import METHODS, VIAPT, small_plan, small_world, write_suite
from viapt.bench import provenance
from viapt.bench.entrants import Entrant
from viapt.bench.jobs import check_place
from viapt.bench.plan import Problems, facts_of, sizes_for
from viapt.bench.protocol import Protocol
from viapt.bench.search import check_space, corners, probes, search, space_of
from viapt.bench.task_data import hash_of, parts_of
from viapt.cli.bench import parse_entrant
from viapt.cli.bench_options import parse_range, parse_space
from viapt.data.packaged import PackagedTask, load_task
from viapt.errors import ConfigError, TrainingError
from viapt.history import best_epoch
from viapt.methods import create_method, list_methods, method_class
from viapt.testing import tiny_backbones


@pytest.fixture
def backbone(tmp_path, monkeypatch):
    monkeypatch.setenv("VIAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return small_world(tmp_path)


def task_of(labels, classes, name="toy"):
    labels = np.array(labels)
    return PackagedTask(name, np.zeros((len(labels), 2, 2, 3), np.uint8), labels, classes, "MIT", "toy 1", "0" * 64)


def test_all_problems_are_said_at_once(backbone):
    with pytest.raises(ConfigError) as caught:
        small_plan(
            backbone,
            entrants=[
                Entrant("viapt", {"kept_dim": 25}),  # m > d
                Entrant("viapt", {"num_prompts": 3, "num_instance_prompts": 4}),  # lambda > p
                Entrant("linear", training={"lr": -1.0}),
                Entrant("linear", training={"lr": -1.0}),
                Entrant("e2vpt", training={"prune_segments": 1.0}),
                Entrant("e2vpt", training={"prune_tokens": 0.05}),  # of 10
                Entrant("linear", training={"lr": None}),
                Entrant("linear", training={"lr": True}),
                Entrant("vfpt", training={"prune_segments": 0.5}),
            ],
            tasks=["elpv", "silhuettes"],
            seeds=[0, 0, -1],
            image_sizes={"elvp": 32},
            val=3,
        )
    text = str(caught.value)
    for words in (
        ["14 problems, and nothing was started", "kept_dim", "24"],
        ["prune_tokens = 0.05 of 10 masks none", "linear(lr=None): lr = None", "lr = True", "for lr, a number"],
        ["prune_segments = 1.0 is not possible", "vfpt(prune_segments=0.5): no setting 'prune_segments'"],
        ["num_instance_prompts", "lr = -1.0", "linear(lr=-1.0) is given twice"],
        ["no task 'silhuettes'", "did you mean 'silhouettes'?", "no task 'elvp'"],
        ["seed 0 is given twice", "'elpv' (120 images) is too small for its 4 classes: the val part (3 images)"],
    ):
        assert all(word in text for word in words), text


def test_nothing_to_do_is_a_problem(backbone):
    with pytest.raises(ConfigError, match="No methods"):
        small_plan(backbone, entrants=[])


def test_the_same_settings_in_another_order_are_the_same_method(backbone):
    first, again = {"kept_dim": 8, "carry_scale": 1.0}, {"carry_scale": 1.0, "kept_dim": 8}
    name = r"viapt\(kept_dim=8, carry_scale=1\.0\)"
    for second in (again, again | {"num_prompts": 10}):  # a default, said
        with pytest.raises(ConfigError, match=rf"^The method {name} is given twice"):
            small_plan(backbone, entrants=[Entrant("viapt", first), Entrant("viapt", second)])
    small_plan(backbone, entrants=[Entrant("viapt", first), Entrant("viapt", again | {"kept_dim": 7})])


def test_a_search_without_optuna_is_a_problem_beforehand(backbone, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"^2 problems.*seed -1.*A search needs optuna.*viapt\[bench\]"):
        small_plan(backbone, trials=2, seeds=[-1])
    small_plan(backbone)


def test_a_whole_grid_needs_no_optuna(backbone, monkeypatch):
    """If it is whole for every method, and the protocol is that of a suite."""
    monkeypatch.setitem(sys.modules, "optuna", None)
    grid = {"lr": {"choices": [0.1, 1.0]}}
    asked = {"entrants": [Entrant("linear"), Entrant("vpt-deep")], "suite": {"optimizer": "adamw"}}
    small_plan(backbone, trials=2, space=grid, **asked)
    more = grid | {"vpt-deep.num_prompts": {"choices": [1, 2]}}
    for changes in ({"trials": 3}, {"trials": 4, "space": more}, {"trials": 2, "suite": None}):
        with pytest.raises(ConfigError, match=r"^A search needs optuna"):
            small_plan(backbone, **asked | {"space": grid} | changes)


def test_a_backbone_that_is_none_is_said_with_the_rest(backbone):
    with pytest.raises(ConfigError, match=r"2 problems.*/nowhere/config.json.*no task 'nothing'"):
        small_plan("local-dir:/nowhere", tasks=["nothing"])
    with pytest.raises(ConfigError, match="33"):
        small_plan(backbone, image_size=33)


def test_tasks_that_are_no_tasks():
    with pytest.raises(ConfigError, match="single class 'a'"):
        facts_of(task_of([0] * 9, ["a"]), Protocol(train=3, val=3))
    with pytest.raises(ConfigError) as caught:
        facts_of(task_of([0, 1] * 6, ["a", "b", "c"]), Protocol(train=4, val=4, test=0))
    for words in (
        "12 images) is too small for its 3 classes",
        "the train part (4 images): none of c",
        "--train, --val",
    ):
        assert words in str(caught.value)
    assert "the val part (4 images): none of c" in str(caught.value)
    rare = task_of([0, 1] * 20 + [2, 2], ["a", "b", "c"])
    facts_of(rare, Protocol(train=18, val=10, test=3))  # nobody reads the test part
    with pytest.raises(ConfigError, match="test part"):
        facts_of(rare, Protocol(train=18, val=10, test=3, read_test=True))
    with pytest.raises(ConfigError, match=r"test part.*leave the task out"):  # it has no more images to give
        facts_of(rare, Protocol(read_test=True))


# Sizes


PICTURES = st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=90)
ASKED = st.fixed_dictionaries({"train": st.integers(1, 100), "val": st.integers(1, 100), "test": st.integers(0, 100)})


@given(PICTURES, st.booleans(), ASKED, st.integers(0, 99))
def test_sizes_are_limits(pictures, official, asked, seed):
    """Pictures have a class, and may be of an official test part."""
    labels, held = np.array([c for c, _ in pictures], np.int64), np.array([h for _, h in pictures], bool)
    task = replace(task_of(labels, list("abcd")), official_test=held if official else None)
    besides = int((~held).sum()) if official else len(labels) - len(labels) // 3
    reserve = int(held.sum()) if official else len(labels) // 3
    sizes = sizes_for(task, asked)
    if asked["train"] + asked["val"] <= besides:
        assert sizes == asked
        return
    if besides < 2:
        with pytest.raises(ConfigError, match="to train and validate on"):
            parts_of(task, sizes, seed)
        return
    assert all(sizes[part] <= asked[part] for part in asked) and min(sizes["train"], sizes["val"]) >= 1
    assert sizes["train"] + sizes["val"] == besides and sizes["test"] == min(asked["test"], reserve)
    share = besides * asked["val"] / (asked["train"] + asked["val"])
    assert abs(sizes["val"] - share) < 1
    parts = parts_of(task, sizes, seed)
    joined = np.concatenate(list(parts.values()))
    assert len(set(joined.tolist())) == len(joined)
    assert [len(parts[part]) for part in ("train", "val")] == [sizes["train"], sizes["val"]]
    assert hash_of(parts) == hash_of(parts_of(task, sizes, seed))
    left = np.isin(np.arange(len(labels)), joined) & ~np.isin(np.arange(len(labels)), parts["test"])
    for label in range(4):  # validation by classes' shares in what is not reserved
        share = sizes["val"] * np.mean(labels[left] == label)
        assert abs(np.sum(labels[parts["val"]] == label) - share) < 1


def test_splits_of_larger_tasks_are_what_they_were():
    """Recorded before sizes were limits, or before there was a reserve: a split must never change by one index."""
    recorded = {
        (2624, 4, 0): "a3393f75d78faa8b9b12ababa05c8920e2be9ff78a99abc8f6be97dd24caa0a2",
        (10_000, 9, 3): "6022f6225c8dce2f94b5642fc20e20678e722ee40e8bbe2c0e33abbe00d8695e",
    }
    for (count, classes, seed), expected in recorded.items():
        task = task_of(np.arange(count) % classes, [str(label) for label in range(classes)])
        facts = facts_of(task, Protocol(split_seed=seed))
        assert (facts.split_hash, facts.images) == (expected, None)
    begin = {
        (800, 200): ("89989bc57dc615f6", "955c367b718a2014"),
        (400, 200): ("d7b43a1994f0353e", "5d303c9c060946d1"),
        (400, 1000): ("7b861a0bf96d1831", "f507d5bf4fae25a7"),
    }
    task = task_of(np.arange(9000) % 7, list("abcdefg"))
    for (train, val), expected in begin.items():
        for one, hash_ in zip((task, replace(task, official_test=np.arange(9000) >= 6000)), expected, strict=True):
            assert hash_of(parts_of(one, {"train": train, "val": val, "test": 2000}, 1)).startswith(hash_)


def test_the_default_sizes_suit_a_task_as_small_as_stamps(backbone, monkeypatch):
    labels = np.repeat(np.arange(6), [35, 64, 50, 31, 38, 17])
    stamps = task_of(labels, list("abcdef"), "stamps")
    facts = facts_of(stamps, Protocol(read_test=True))
    assert facts.images == {"train": 126, "val": 31, "test": 78}
    monkeypatch.setattr("viapt.bench.plan.load_task", lambda name, *_: stamps if name == "stamps" else load_task(name))
    plan = small_plan(backbone, tasks=["elpv", "stamps"], train=60, val=20, test=20)
    assert all(plan.job(METHODS[0], task, 0, read_test=False).images["train"] == 60 for task in plan.tasks)
    plan = small_plan(backbone, tasks=["elpv", "stamps"], train=70, val=10)
    elpv, small = (plan.job(METHODS[0], task, 0, read_test=False).images for task in plan.tasks)
    assert elpv == {"train": 70, "val": 10, "test": 30} and small == elpv
    plan = small_plan(backbone, tasks=["elpv", "stamps"], train=400, val=100, test=50)
    elpv, small = (plan.job(METHODS[0], task, 0, read_test=False).images for task in plan.tasks)
    assert elpv == {"train": 64, "val": 16, "test": 40} and small == {"train": 126, "val": 31, "test": 50}


def test_a_task_that_cannot_be_had_does_not_stop_the_others(backbone, tmp_path):
    plan = small_plan(backbone, tasks=["elpv", "silhouettes"])
    assert [task.name for task in plan.tasks] == ["elpv", "silhouettes"] and not plan.unavailable
    (tmp_path / "cache" / "task-silhouettes.safetensors").unlink()
    plan = small_plan(backbone, tasks=["elpv", "silhouettes"])
    assert [task.name for task in plan.tasks] == ["elpv"] and list(plan.unavailable) == ["silhouettes"]


def test_what_the_cache_lacks_is_prepared_before_the_readers_eyes(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr("viapt.data.packaged.RENDERED", 120)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    (tmp_path / "cache" / "task-silhouettes.safetensors").unlink()
    tasks = ["elpv", "silhouettes", "distance"]

    def told(**changes):
        output = io.StringIO()
        plan = small_plan(backbone, tasks=tasks, console=Console(file=output), **changes)
        return plan, output.getvalue()

    plan, text = told()
    assert [task.name for task in plan.tasks] == ["elpv", "distance"]
    assert list(plan.unavailable) == ["silhouettes"] and not plan.unavailable["silhouettes"].startswith("silhouettes: ")
    first, *rest = text.splitlines()
    assert first == "Not in the cache, and prepared first: silhouettes, distance"
    assert [line.split(": ")[:2] for line in rest] == [["silhouettes", "failed"], ["distance", rest[1].split(": ")[1]]]
    assert "120 pictures" in rest[1] and (tmp_path / "cache" / "task-distance.safetensors").exists()
    tasks.remove("silhouettes")
    again, text = told()
    assert text == "" and [task.data_hash for task in again.tasks] == [task.data_hash for task in plan.tasks]


@pytest.mark.parametrize("shown", [True, False])
def test_where_something_is_wrong_nothing_is_prepared(backbone, tmp_path, monkeypatch, shown):
    (tmp_path / "cache" / "task-silhouettes.safetensors").unlink()
    looked_at = []
    monkeypatch.setattr("viapt.bench.plan.fetch_all", lambda *_: pytest.fail("fetched"))
    monkeypatch.setattr("viapt.bench.plan.load_task", lambda name: looked_at.append(name) or load_task(name))
    output = io.StringIO()
    asked = {"tasks": ["elpv", "silhouettes"], "console": Console(file=output) if shown else None}
    impossible = [Entrant("viapt", {"kept_dim": 25})]
    with pytest.raises(ConfigError, match=r"kept_dim = 25.* Not in the cache, and not looked at: silhouettes\.$"):
        small_plan(backbone, entrants=impossible, **asked)
    with pytest.raises(ConfigError, match=r"^2 problems.*kept_dim.*the val part \(3 images\).*looked at: silhouettes"):
        small_plan(backbone, entrants=impossible, val=3, **asked)
    with pytest.raises(ConfigError, match=r"^There is no task 'moon'.*looked at: silhouettes"):
        small_plan(backbone, **asked | {"tasks": ["silhouettes", "moon"]})
    assert looked_at == ["elpv", "elpv"] and not output.getvalue()


def test_precision_is_that_of_the_planned_device(backbone, monkeypatch):
    """Of a GPU that is not here, nobody knows whether it has units for bfloat16."""
    monkeypatch.setattr("viapt.precision.bfloat16_gain", lambda: 2.0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = [small_plan(backbone, precision="auto", device=device) for device in (None, "cpu", "cuda")]
    assert [plan.protocol.precision for plan in found] == ["bfloat16", "bfloat16", "float32"]
    assert [plan.device for plan in found] == ["cpu", "cpu", "cuda"]


def test_keys_follow_what_decides(backbone, tmp_path):
    def key(entrant=METHODS[1], seed=0, **changes):
        plan = small_plan(backbone, **changes)
        return plan.job(entrant, plan.tasks[0], seed, read_test=False).key

    first = key()
    assert key(trials=2) == key(metric="mean_per_class_accuracy") == first
    explicit = Entrant("viapt", VIAPT | {"initial_std": 0.01}, {"lr": 0.005})  # the defaults, said
    assert key(explicit) == first
    others = [key(seed=1), key(METHODS[0]), key(epochs=2), key(train=39), key(split_seed=1), key(precision="bfloat16")]
    others += [key(Entrant("viapt", VIAPT | {"kept_dim": 5})), key(augmentation="light"), key(tasks=["silhouettes"])]
    write_suite(tmp_path / "cache", ("silhouettes", "elpv"))  # other pictures under the same name
    others.append(key())
    assert len({first, *others}) == len(others) + 1


def test_the_protocol_names_everything_that_is_out_of_range():
    with pytest.raises(ConfigError, match="epochs = 0, augmentation = 'wild', trials = -1"):
        Protocol(epochs=0, augmentation="wild", trials=-1)
    with pytest.raises(ConfigError, match="space"):
        Protocol(space={"lr": {"low": 0.1, "high": 1.0}})
    with pytest.raises(ConfigError, match=r"^search_seed = 5 is not possible.*without trials"):
        Protocol(search_seed=5)
    assert Protocol.nearest({"trials": -1, "search_seed": 5, "epochs": 3}) == Protocol(epochs=3)
    older = Protocol(trials=2, search_seed=5).to_dict()
    assert Protocol.from_dict(older).search_seed == 5
    assert Protocol.from_dict(older | {"trials": 0}) == Protocol()  # nothing was searched with it
    protocol = Protocol(image_sizes={"elpv": 70}, trials=2, space={"lr": {"low": 0.1, "high": 1.0}})
    assert Protocol.from_dict(protocol.to_dict()) == protocol
    assert protocol.image_size_of("elpv") == 70 and protocol.image_size_of("fashion") == 98


# Search


def asked(space, start, trials, seed, value):
    """The points of a search on a function, and its answer."""
    steps, points = search(space, start, trials, seed), []
    try:
        point = next(steps)
        while True:
            points.append(point)
            point = steps.send(value(point))
    except StopIteration as end:
        return points, end.value


def test_a_search_is_repeatable_starts_at_the_defaults_and_finds_the_top():
    space = {"lr": {"low": 1e-4, "high": 1.0, "log": True}, "kept_dim": {"choices": [8, 16, 32]}}
    start = {"lr": 0.005, "kept_dim": 16, "clip": None}

    def value(point):
        return -abs(np.log10(point["lr"]) + 2) - (point["kept_dim"] != 32)

    points, best = asked(space, start, 40, 0, value)
    assert len(points) == 40 and points[0] == {"lr": 0.005, "kept_dim": 16}
    assert best == max(points, key=value) and best["kept_dim"] == 32 and 0.003 < best["lr"] < 0.03
    assert asked(space, start, 40, 0, value) == (points, best)
    assert asked(space, start, 40, 1, value)[0][1:] != points[1:]
    assert asked(space, {"lr": 5.0}, 3, 0, value)[0][0]["lr"] <= 1.0  # outside the space


def test_trials_that_fail_count_and_are_not_chosen():
    space = {"lr": {"low": 0.0, "high": 1.0}}
    points, best = asked(space, {}, 6, 0, lambda point: None if point["lr"] > 0.5 else point["lr"])
    good = [point for point in points if point["lr"] <= 0.5]
    assert len(points) == 6 and 0 < len(good) < 6 and best == max(good, key=lambda point: point["lr"])
    assert asked(space, {}, 3, 0, lambda _: None)[1] is None


def test_each_method_searches_what_it_has():
    space = {
        "lr": {"low": 0.1, "high": 1},
        "kept_dim": {"choices": [1, 2]},
        "vpt-deep.num_prompts": {"choices": [3, 4]},
    }
    protocol = Protocol(trials=3, space=space)
    found = {name: list(space_of(Entrant(name), protocol)) for name in ("linear", "vpt-deep", "viapt")}
    assert found == {"linear": ["lr"], "vpt-deep": ["lr", "num_prompts"], "viapt": ["lr", "kept_dim"]}
    own = {"low": 0.2, "high": 0.3}
    for names in (["lr", "linear.lr"], ["linear.lr", "lr"]):  # whatever comes first
        both = Protocol(trials=1, space={name: own if "." in name else space["lr"] for name in names})
        assert space_of(Entrant("linear"), both) == {"lr": own}
        assert space_of(Entrant("viapt"), both) == {"lr": space["lr"]}
    assert list(space_of(Entrant("linear"), Protocol(trials=1))) == ["lr", "weight_decay"]
    assert space_of(Entrant("linear"), Protocol()) == {}
    assert list(corners({})) == [{}] and len(list(corners(space))) == 8


@pytest.mark.parametrize("method", list_methods())
def test_by_default_every_method_searches_around_its_own_rate(method):
    space, own = space_of(Entrant(method), Protocol(trials=1)), method_class(method).learning_rate
    assert space["lr"] == {"low": pytest.approx(own / 10), "high": pytest.approx(own * 10), "log": True}
    first = next(search(space, {"lr": own, "weight_decay": 0.01}, 1, 0))
    assert first == {"lr": own, "weight_decay": 0.01}  # the defaults


def test_a_search_through_impossible_settings_is_refused(backbone):
    space = {"viapt.kept_dim": {"low": 0, "high": 99, "log": False}, "lr": {"low": 0.1, "high": 1.0}}
    with pytest.raises(ConfigError, match="99"):
        small_plan(backbone, trials=2, space=space)
    with pytest.raises(ConfigError, match="both given and searched"):
        small_plan(backbone, trials=2, space={"kept_dim": {"choices": [1, 2]}, "lr": {"low": 0.1, "high": 1.0}})
    with pytest.raises(ConfigError, match=r"Nothing to search"):
        small_plan(backbone, trials=2, space={"initial_std": {"low": 0.1, "high": 1.0}})
    with pytest.raises(ConfigError, match=r"No method has 'vpt-deep\.num_prompts'"):
        small_plan(
            backbone, trials=2, space={"vpt-deep.num_prompts": {"choices": [1, 2]}, "lr": {"low": 0.1, "high": 1.0}}
        )
    with pytest.raises(ConfigError, match=r"No method has 'viapt\.lr'"):
        lr = {"low": 0.1, "high": 1.0}
        small_plan(backbone, entrants=[Entrant("vpt-deep")], trials=2, space={"lr": lr, "viapt.lr": lr})


def test_impossible_values_within_a_range_are_seen_beforehand(backbone):
    """Of 24 dimensions, 5 and 7 segments are none."""
    pair = [Entrant("linear"), Entrant("e2vpt", {"num_prompts": 2})]
    space = {"segments": {"low": 1, "high": 8}, "lr": {"low": 0.1, "high": 1.0}}
    with pytest.raises(ConfigError, match=r"2 problems.*segments = 5 .*segments = 7 "):
        small_plan(backbone, entrants=pair, trials=2, space=space)
    small_plan(backbone, entrants=pair, trials=2, space=space | {"segments": {"low": 1, "high": 4}})
    found = probes({"a": {"low": 0, "high": 64}, "b": {"low": 0.0, "high": 1.0}})
    assert len(found) == 4  # too many numbers: the corners alone
    many = {f"x{i}": {"low": 0, "high": 3} for i in range(30)}
    assert len(probes(many)) == 1 + 30 * 3 and {"x0": 2} | {f"x{i}": 0 for i in range(1, 30)} in probes(many)


@given(st.integers(0, 4), st.integers(0, 2), st.booleans(), st.sampled_from([0.0, 1.0]), st.booleans())
@settings(max_examples=15)
def test_settings_that_change_nothing_at_a_point_are_left_out(kept, generated, spatial, scale, gate):
    point = {"kept_dim": kept or "adaptive", "num_instance_prompts": generated, "spatial": spatial}
    point |= {"carry_scale": scale, "image_gate": gate}
    backbone = tiny_backbones()["vit"]()
    at = Entrant("viapt", {"num_prompts": 12}).at(point)
    effective = at.effective(backbone, point)
    config = effective.configuration(backbone)  # and nothing is refused
    idle = create_method("viapt", backbone.widths, backbone.depth, backbone.patch_size, **config).without_effect()
    assert set(effective.options) <= set(at.options) and not set(effective.options) & set(idle) - {"num_prompts"}
    if not generated:
        assert "spatial" not in effective.options
    if scale and kept:
        assert "image_gate" not in effective.options and effective.options["kept_dim"] == kept


def test_variants_of_viapt_are_a_space(backbone):
    space = {"kept_dim": {"choices": ["adaptive", 8]}, "image_gate": {"choices": [True, False]}}
    space |= {"spatial": {"choices": [True, False]}, "num_instance_prompts": {"choices": [0, 2]}}
    small_plan(backbone, entrants=[Entrant("viapt", {"num_prompts": 12})], trials=2, space=space)
    with pytest.raises(ConfigError, match="image_gate = True has no effect"):
        small_plan(backbone, entrants=[Entrant("viapt", {"kept_dim": 8, "image_gate": True})])


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"lrr": {"low": 1, "high": 2}}, "did you mean 'lr'"),
        ({"linear.kept_dim": {"choices": [1, 2]}}, "kept_dim"),
        ({"lr": {"low": 2, "high": 1}}, "LOW < HIGH"),
        ({"lr": {"low": 0, "high": 1, "log": True}}, "above 0"),
        ({"lr": {"choices": [1]}}, "two choices"),
    ],
)
def test_spaces_that_are_none(space, words):
    with pytest.raises(ConfigError, match=words):
        check_space(space)


# Text


@given(st.floats(1e-6, 1.0), st.integers(0, 9), st.sampled_from(["running", "random"]), st.booleans())
def test_methods_as_text(lr, m, reduction, shared):
    text = f"viapt:lr={lr!r};kept_dim={m};reduction={reduction};shared_basis={shared};generator_kernels=1,5"
    entrant = parse_entrant(text)
    expected = {"kept_dim": m, "reduction": reduction, "shared_basis": shared, "generator_kernels": (1, 5)}
    assert entrant == Entrant("viapt", expected, {"lr": lr})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("viapd", "did you mean 'viapt'"),
        ("viapt:", "key=value"),
        ("viapt:kept=3", "kept_dim"),
        ("viapt:kept_dim=x", "a whole number"),
        ("linear:lr=fast", "for lr, a number"),
        ("linear:lr=1;lr=2", "twice"),
        ("linear:num_prompts=1", "one of lr, weight_decay, warmup_epochs, clip"),
        ("linear:weight-decay=1", "did you mean 'weight_decay'"),
        ("linear:lr", "key=value"),
        ("vpt-deep:prune_tokens=0.5", "prune_tokens"),
        ("e2vpt:prune_tokens=half", "for prune_tokens, a number"),
    ],
)
def test_methods_that_are_none(text, words):
    with pytest.raises(ConfigError, match=words):
        parse_entrant(text)


def test_everything_that_is_wrong_with_a_method_is_said():
    text = "viapt:kept=3;kept_dim=x;lr=fast;lr=1;num_prompts"
    with pytest.raises(ConfigError) as caught:
        parse_entrant(text)
    for words in ("kept=3: viapt has no argument", "kept_dim=x.", "lr=fast.", "lr is given twice", "num_prompts."):
        assert f"{text}: {words}" in str(caught.value)


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.booleans())
def test_ranges_as_text(low, high, log):
    found = parse_range(f"{low!r}..{high!r}{':log' if log else ''}")
    assert found == {"low": low, "high": high, "log": log}


def test_choices_as_text():
    assert parse_range("8, 1e-2,none,true,running") == {"choices": [8, 0.01, None, True, "running"]}
    assert parse_range("1..8") == {"low": 1, "high": 8, "log": False}
    space = parse_space(["linear.lr=0..1", "clip=1,none", "num_prompts=1..8"], Problems())
    assert repr(space["linear.lr"]) == "{'low': 0.0, 'high': 1.0, 'log': False}"  # not the whole numbers 0 and 1
    assert repr(space["clip"]) == "{'choices': [1.0, None]}" and repr(space["num_prompts"]["low"]) == "1"
    for text in ("1..x", "true..2", "1..2:exp", "1.."):
        with pytest.raises(ConfigError, match="is no range"):
            parse_range(text)


def test_names():
    assert Entrant("viapt").name == Entrant("viapt", {"num_prompts": 10}).name == "viapt"
    assert Entrant("viapt", {"kept_dim": 32}, {"lr": 0.1}).name == "viapt(kept_dim=32, lr=0.1)"
    assert Entrant("viapt", {"kept_dim": 32}).at({"lr": 0.1, "num_prompts": 3}) == Entrant(
        "viapt", {"kept_dim": 32, "num_prompts": 3}, {"lr": 0.1}
    )


# Which code counts


def test_code_is_compared_without_comments_docstrings_and_layout(tmp_path):
    def code(text):
        path = tmp_path / "x.py"
        path.write_text(text)
        return provenance.code_of(path)

    first = code('"""Doc."""\ndef f(x):\n    """Doc."""\n    return x + 1  # why\n')
    assert code("def f(x):\n\n    return (x\n      + 1)\n") == first
    assert code('def f(x):\n    """Only this."""\n') == code("def f(x):\n    pass\n")
    assert code("def f(x):\n    return x + 2\n") != first


def test_libraries_count_where_they_compute(backbone):
    plan = small_plan(backbone, entrants=[*METHODS, Entrant("lora")])
    jobs = [plan.job(entrant, plan.tasks[0], 0, read_test=False) for entrant in plan.entrants]
    everywhere = {"torch", "torchvision", "timm", "numpy", "pillow", "python"}
    assert [set(job.versions) - everywhere for job in jobs] == [set(), set(), {"peft"}]
    assert all(job.versions["torch"] == version("torch") for job in jobs)
    assert set(provenance.versions("linear", "transformers:x")) == everywhere | {"transformers"}
    check_place(replace(jobs[2], versions={name: jobs[2].versions[name] for name in everywhere}))  # an old job
    with pytest.raises(TrainingError, match=r"peft .*, planned with 0\.1"):
        check_place(replace(jobs[2], versions=jobs[2].versions | {"peft": "0.1"}))


def test_which_files_count():
    counted = {str(p.relative_to(provenance.PACKAGE)) for p in provenance.PACKAGE.rglob("*.py") if provenance.counts(p)}
    assert {"training.py", "reduction.py", "data/packaged.py", "methods/base.py", "bench/jobs.py"} <= counted
    assert (
        f"{best_epoch.__module__.removeprefix('viapt.')}.py" in counted
    )  # it says which weights of a training are measured
    assert not {"cli/fit.py", "methods/viapt.py", "methods/vpt.py", "bench/store.py", "report/plots.py"} & counted
    assert [path.name for path in provenance.own_files("viapt")] == [
        *("basis_gradient.py", "carry.py", "instance_generator.py", "viapt.py", "viapt_arguments.py")
    ]
    shared = {code.partition("-")[0] for code in provenance.CODE.values()}
    assert len(shared) == 1 and provenance.CODE["viapt"] != provenance.CODE["linear"]
    assert all(
        (provenance.PACKAGE / room).exists() or (provenance.PACKAGE / f"{room}.py").exists()
        for room in provenance.IDLE - {"serve"}
    )
