"""Tasks that share a backbone and a batch answer as each of them does alone; each costs its adapter and no more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from artifact_cases import fitted
from viapt.artifact import load
from viapt.backbones.base import Backbone
from viapt.errors import ArtifactError, ConfigError, DataError
from viapt.explanation import layer_attention
from viapt.inference import predict
from viapt.mixture import Mixture, passes, size
from viapt.multitask import MultiTask, Question
from viapt.testing.subject import tiny_backbones, tiny_vit

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "paper": ("viapt", {}),
    "other": ("viapt", {"num_prompts": 4, "num_instance_prompts": 3, "reduction": "select"}),
    "every": ("viapt", {"instance_every": True, "kept_dim": "adaptive", "image_gate": True, "max_kept_dim": 6}),
    "more": ("viapt", {"num_prompts": 6, "num_instance_prompts": 1}),
    "deep": ("vpt-deep", {"num_prompts": 4}),
    "deeper": ("vpt-deep", {"num_prompts": 7}),
    "shallow": ("vpt-shallow", {"num_prompts": 4}),
    "fourier": ("vfpt", {"num_prompts": 4}),
    "linear": ("linear", {}),
    "probe": ("linear", {}),
    "lora": ("lora", {"rank": 2}),
    "e2vpt": ("e2vpt", {"num_prompts": 4, "key_value_prompts": 2}),
    "ssf": ("ssf", {}),
    "partial": ("partial", {}),
    "adapter-plus": ("adapter-plus", {"width": 3}),
}


def write(folder: Path, build: Callable[[], Backbone], names: list[str]) -> dict[str, Path]:
    """Adapters with heads large enough for every difference to show, and unlike each other."""
    found = {}
    for seed, name in enumerate(names):
        method, options = METHODS[name]
        model = fitted(build(), method, seed=seed, **options)
        torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(seed))
        found[name] = model.save_pretrained(folder / name)
    return found


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write(tmp_path_factory.mktemp("adapters"), tiny_vit, list(METHODS))


@pytest.fixture(scope="module")
def tasks(adapters: dict[str, Path]) -> MultiTask:
    return MultiTask(tiny_vit(), adapters)


def pictures(count: int, size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(5))


def alone(directory: Path, build: Callable[[], Backbone], image: Tensor, question: Question) -> Any:
    """The same question to the task alone, on a backbone of its own, with no other image."""
    model = load(directory, build())
    return predict(model, image[None], question.policy, question.rounds, question.seed)


def mixed(names: list[str], images: int) -> list[Question]:
    """Every task with every policy, tasks and images in turns."""
    policies: list[Any] = ["mean", "fixed", "multi"]
    return [
        Question(name, (k + shift) % images, policy, rounds=3, seed=k)
        for shift, policy in enumerate(policies)
        for k, name in enumerate(names)
    ]


@pytest.mark.parametrize("kind", tiny_backbones())
def test_a_mixed_batch_answers_as_each_task_alone(kind: str, tmp_path: Path) -> None:
    build = tiny_backbones()[kind]
    names = list(METHODS) if kind == "vit" else ["paper", "deep", "shallow", "linear", "lora"]
    if kind == "eva02":  # whose attention takes no stand-in, and says so
        names.remove("lora")
    adapters, images = write(tmp_path, build, names), pictures(4, build().preprocessing.image_size)
    questions = mixed(names, 4)
    answers = MultiTask(build(), adapters).answer(images, questions)
    distinct = set()
    for question, answer in zip(questions, answers, strict=True):
        expected = alone(adapters[question.task], build, images[question.image], question)
        torch.testing.assert_close(answer.probabilities, expected.probabilities[0], rtol=0, atol=1e-5)
        assert answer.rounds == int(expected.rounds[0])
        assert (answer.spread is None) == (expected.spread is None)
        if answer.spread is not None:
            torch.testing.assert_close(answer.spread, expected.spread[0], rtol=0, atol=1e-5)
        distinct.add(tuple(answer.probabilities.mul(1000).round().tolist()))
    assert len(distinct) > len(questions) // 2


def test_answers_depend_neither_on_the_order_nor_on_the_size_of_a_pass(
    tasks: MultiTask, adapters: dict[str, Path]
) -> None:
    images, questions = pictures(4), mixed(list(adapters), 4)
    answers = tasks.answer(images, questions)
    small = MultiTask(tiny_vit(), adapters, rows=2).answer(images, questions[::-1])[::-1]
    for one, other in zip(answers, small, strict=True):
        torch.testing.assert_close(one.probabilities, other.probabilities, rtol=0, atol=1e-5)


def test_predict_gives_what_each_task_predicts(tasks: MultiTask, adapters: dict[str, Path]) -> None:
    images = pictures(5)
    found = tasks.predict(images, ["deep", "paper", "deep"], policy="multi", rounds=2, seed=4, batch_size=2)
    assert list(found) == ["deep", "paper"]
    for name, prediction in found.items():
        expected = predict(load(adapters[name], tiny_vit()), images, "multi", 2, 4)
        assert prediction.labels == expected.labels
        torch.testing.assert_close(prediction.probabilities, expected.probabilities, rtol=0, atol=1e-5)
        torch.testing.assert_close(prediction.spread, expected.spread, rtol=0, atol=1e-5)
        assert torch.equal(prediction.rounds, expected.rounds)
    assert list(tasks.predict(images[:1])) == list(adapters)
    assert list(tasks.predict(images[:1], "linear")) == ["linear"]


def test_rows_go_through_the_blocks_together(tasks: MultiTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call of each block for each number of prompts, whatever the number of tasks; none twice for a probe."""
    calls: list[int] = []
    advance = tasks.backbone.advance

    def counted(layer: int, tokens: Tensor, *rest: Any) -> Any:
        calls.append(tokens.shape[0])
        return advance(layer, tokens, *rest)

    monkeypatch.setattr(tasks.backbone, "advance", counted)
    together = ["paper", "every", "other", "shallow"]
    tasks.answer(pictures(3), [Question(name, image) for name in together for image in range(3)])
    assert calls == [12, 12, 12]
    calls.clear()
    tasks.answer(pictures(3), [Question(name, image) for name in ("linear", "probe") for image in (0, 2)])
    assert calls == [2, 2, 2]
    calls.clear()
    tasks.answer(pictures(1), [Question("deep", 0), Question("fourier", 0), Question("deeper", 0)])
    assert calls == [2, 2, 2, 1, 1, 1]


def test_passes_are_bounded_and_hold_every_row_once(tasks: MultiTask) -> None:
    rows = tasks.rows_of(mixed(list(tasks), 4), tasks, 4)
    found = list(passes(rows, 3))
    assert sorted(row.question for rows in found for row in rows) == sorted(row.question for row in rows)
    for together in found:
        prompts = {row.model.method.num_prompts for row in together}
        assert len(prompts) == 1
        assert size(together) <= 3
        assert len(together) <= 3 or (prompts == {0} and len({row.image for row in together}) <= 3)


def counting(call: Callable[..., Any], counts: list[int], hold: Callable[[], Any]) -> Callable[..., Any]:
    """The same call, which notes how many threads are in it and holds each of them up."""
    inside: list[object] = []

    def counted(*arguments: Any) -> Any:
        inside.append(one := object())
        counts.append(len(inside))
        hold()
        try:
            return call(*arguments)
        finally:
            inside.remove(one)

    return counted


def asked_at_once(tasks: MultiTask, questions: list[list[Question]], images: Tensor) -> list[Any]:
    """The answers of as many threads as lists of questions."""
    with ThreadPoolExecutor(len(questions)) as threads:
        return list(threads.map(lambda some: tasks.answer(images, some), questions))


@pytest.mark.parametrize("allowed", [1, 3])
def test_as_many_passes_as_allowed_are_made_at_the_same_time(
    allowed: int, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, images = MultiTask(tiny_vit(), adapters), pictures(2)
    tasks.allow(allowed)
    barrier, counts = threading.Barrier(allowed), []

    def hold() -> None:
        barrier.wait(timeout=60)
        time.sleep(0.02)  # others would come in

    monkeypatch.setattr(tasks.backbone, "embed", counting(tasks.backbone.embed, counts, hold))
    names = ["deep", "paper", "linear", "shallow", "deeper", "more"]
    questions = [[Question(name, 1, "multi", 1, 3)] for name in names]
    for question, answer in zip(questions, asked_at_once(tasks, questions, images), strict=True):
        expected = alone(adapters[question[0].task], tiny_vit, images[1], question[0])
        torch.testing.assert_close(answer[0].probabilities, expected.probabilities[0], rtol=0, atol=1e-5)
    assert max(counts) == allowed and len(counts) == len(names)


@pytest.mark.parametrize("name", ["every", "paper", "lora", "ssf", "adapter-plus", "linear"])
def test_a_task_answers_several_questions_at_the_same_time(
    name: str, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And shows its attention meanwhile: nothing that is remembered of one pass is seen by another."""
    tasks, images = MultiTask(tiny_vit(), {name: adapters[name]}), pictures(3)
    tasks.allow(3)
    barrier, backbone, seen = threading.Barrier(3), tasks[name].backbone, threading.local()

    def held(call: Callable[..., Any], *arguments: Any) -> Any:
        if not hasattr(seen, "waited"):  # each of the three waits once, where its prompts are about to enter
            seen.waited = barrier.wait(timeout=60)
        return call(*arguments)

    looked_at = layer_attention(load(adapters[name], tiny_vit()), images[:1])
    for verb in ("advance", "block"):  # of a pass, and of whoever looks on
        monkeypatch.setattr(backbone, verb, partial(held, getattr(backbone, verb)))
    questions = [[Question(name, image, "multi", 2, 3)] for image in (1, 2)]
    with ThreadPoolExecutor(1) as thread:
        looking = thread.submit(layer_attention, tasks[name], images[:1])
        answers = asked_at_once(tasks, questions, images)
        torch.testing.assert_close(looking.result().maps, looked_at.maps, rtol=0, atol=1e-5)
    for question, answer in zip(questions, answers, strict=True):
        expected = alone(adapters[name], tiny_vit, images[question[0].image], question[0])
        torch.testing.assert_close(answer[0].probabilities, expected.probabilities[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", tiny_backbones())
def test_every_backbone_makes_passes_at_the_same_time(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, names = tiny_backbones()[kind], ["paper", "deep", "shallow", "linear"]
    adapters, images = write(tmp_path, build, names), pictures(4, build().preprocessing.image_size)
    tasks = MultiTask(build(), adapters)
    tasks.allow(4)
    barrier = threading.Barrier(4)

    def together(call: Callable[..., Any], *arguments: Any) -> Any:
        barrier.wait(timeout=60)  # before each block
        return call(*arguments)

    monkeypatch.setattr(tasks.backbone, "advance", partial(together, tasks.backbone.advance))
    questions = [[Question(name, image, "multi", 2, 3)] for image, name in enumerate(names)]
    for question, answer in zip(questions, asked_at_once(tasks, questions, images), strict=True):
        expected = alone(adapters[question[0].task], build, images[question[0].image], question[0])
        torch.testing.assert_close(answer[0].probabilities, expected.probabilities[0], rtol=0, atol=1e-5)


def test_methods_that_learn_weights_of_the_backbone_take_turns(
    adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They put them into their view of it for as long as a pass takes."""
    tasks, images, counts = MultiTask(tiny_vit(), {"partial": adapters["partial"]}), pictures(2), []
    tasks.allow(4)
    model, question = tasks["partial"], Question("partial", 1)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    monkeypatch.setattr(model, "embed", counting(model.embed, counts, partial(time.sleep, 0.01)))
    expected = alone(adapters["partial"], tiny_vit, images[1], question)
    for answer in asked_at_once(tasks, [[question]] * 8, images):
        torch.testing.assert_close(answer[0].probabilities, expected.probabilities[0], rtol=0, atol=1e-5)
    assert counts == [1] * 8
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def storages(model: torch.nn.Module) -> dict[int, int]:
    """Address -> bytes of the memory behind all parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}


def test_a_task_costs_its_adapter_alone(adapters: dict[str, Path]) -> None:
    """What training alone needs is not kept, and of the backbone nothing twice."""
    tasks = MultiTask(tiny_vit())
    backbone = storages(tasks.backbone)
    for name, directory in adapters.items():
        before = {place for model in tasks.values() for place in storages(model)} | set(backbone)
        model = tasks.add(name, directory)
        added = {place: size for place, size in storages(model).items() if place not in before}
        transient = model.method.transient_state()
        tensors = {**dict(model.method.named_parameters()), **dict(model.method.named_buffers())}
        own = [tensor for path, tensor in tensors.items() if path not in transient] + [*model.head.parameters()]
        assert sum(added.values()) <= sum(tensor.nbytes for tensor in own) + 64 * len(transient)
        assert set(backbone) <= set(storages(model))
    assert storages(tasks.backbone) == backbone
    assert tasks["paper"].method.transient_state()


def test_tasks_come_and_go(adapters: dict[str, Path]) -> None:
    tasks, image = MultiTask(tiny_vit(), {"a": adapters["deep"]}), pictures(1)
    first = tasks.predict(image, "a")["a"].probabilities
    with pytest.raises(ConfigError, match="already"):
        tasks.add("a", adapters["paper"])
    tasks.add("a", adapters["paper"], replace=True)
    second = tasks.predict(image, "a")["a"].probabilities
    torch.testing.assert_close(second, predict(load(adapters["paper"], tiny_vit()), image).probabilities)
    assert not torch.allclose(first, second, atol=1e-2)
    tasks.remove("a")
    assert not tasks and len(tasks) == 0
    with pytest.raises(ConfigError, match="No tasks"):
        tasks.predict(image)
    with pytest.raises(ConfigError, match="no task 'a'"):
        tasks.remove("a")


def test_a_task_that_was_removed_is_not_kept(adapters: dict[str, Path]) -> None:
    tasks = MultiTask(tiny_vit(), {"a": adapters["deep"]})
    tasks.predict(pictures(1))
    tasks.remove("a")
    with tasks.turn() as loop:
        assert isinstance(loop.method, Mixture) and not loop.method.parts


def test_another_backbone_is_refused_and_changes_nothing(adapters: dict[str, Path], tmp_path: Path) -> None:
    tasks = MultiTask(tiny_vit(), {"deep": adapters["deep"]})
    model = tasks["deep"]
    foreign = write(tmp_path, lambda: tiny_vit(init_values=0.5), ["linear"])["linear"]
    with pytest.raises(ArtifactError, match="those that"):
        tasks.add("foreign", foreign)
    with pytest.raises(ArtifactError):
        tasks.add("deep", tmp_path / "nothing", replace=True)
    assert list(tasks) == ["deep"] and tasks["deep"] is model


def test_the_backbone_keeps_its_precision(adapters: dict[str, Path], tmp_path: Path) -> None:
    model = load(adapters["deep"], tiny_vit(), precision="bfloat16")
    tasks = MultiTask(tiny_vit(), {"rounded": model.save_pretrained(tmp_path / "rounded")})
    assert tasks.backbone.dtype == torch.float32
    rounded = MultiTask(tiny_vit().to(torch.bfloat16), {"exact": adapters["deep"]})
    assert rounded.backbone.dtype == torch.bfloat16
    expected = predict(model, pictures(2)).probabilities
    torch.testing.assert_close(rounded.predict(pictures(2))["exact"].probabilities, expected, rtol=0, atol=1e-5)


def test_a_method_that_depends_on_the_batch_is_refused(tmp_path: Path) -> None:
    directory = fitted(tiny_vit(), reduction="batch").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="other images"):
        MultiTask(tiny_vit(), {"batch": directory})


@pytest.mark.parametrize(
    ("question", "error", "words"),
    [
        (Question("shalow", 0), ConfigError, "did you mean 'shallow'"),
        (Question("deep", 2), DataError, "image 2"),
        (Question("deep", -1), DataError, "image -1"),
        (Question("deep", 0, "multi", rounds=0), ConfigError, "rounds = 0"),
        (Question("deep", 0, "fixed", seed=-1), ConfigError, "seed = -1"),
        (Question("deep", 0, "often"), ConfigError, "often"),  # type: ignore[arg-type]
    ],
)
def test_impossible_questions(tasks: MultiTask, question: Question, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        tasks.answer(pictures(2), [question])


def test_impossible_arguments(tasks: MultiTask) -> None:
    with pytest.raises(ConfigError, match="rows = 0"):
        MultiTask(tiny_vit(), rows=0)
    with pytest.raises(ConfigError, match="batch_size"):
        tasks.predict(pictures(1), batch_size=0)
    with pytest.raises(DataError, match="no images"):
        tasks.predict([])
    with pytest.raises(DataError, match="shape"):
        tasks.answer(pictures(1, (16, 16)), [])


def test_numbers_that_are_not_finite_are_found(adapters: dict[str, Path]) -> None:
    tasks = MultiTask(tiny_vit(), {"deep": adapters["deep"], "linear": adapters["linear"]})
    images = pictures(2)
    images[1] = float("nan")
    with pytest.raises(DataError, match="image 1"):
        tasks.predict(images)
    sound = tasks.answer(images, [Question("deep", 1), Question("deep", 0)])[1]
    torch.testing.assert_close(
        sound.probabilities, predict(load(adapters["deep"], tiny_vit()), images[:1]).probabilities[0]
    )


def test_tasks_are_swapped_while_others_ask(adapters: dict[str, Path]) -> None:
    """Every answer is the one of the old task or of the new one, whole."""
    tasks, images = MultiTask(tiny_vit(), {"a": adapters["deep"], "b": adapters["paper"]}), pictures(2)
    possible = [tasks.predict(images, name)[name].probabilities for name in ("a", "b")]
    steady, wrong, failed = possible[1], [], []
    stop = threading.Event()

    def ask() -> None:
        try:
            while not stop.is_set():
                found = tasks.predict(images, ["a", "b"])
                a, b = found["a"].probabilities, found["b"].probabilities
                if not any(torch.allclose(a, p, atol=1e-5) for p in possible) or not torch.allclose(
                    b, steady, atol=1e-5
                ):
                    wrong.append(found)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for k in range(6):
        tasks.add("a", adapters[("paper", "deep")[k % 2]], replace=True)
        tasks.add("c", adapters["lora"])
        tasks.remove("c")
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong and not failed


def test_the_global_random_numbers_are_left_alone(adapters: dict[str, Path]) -> None:
    numbers = torch.get_rng_state()
    MultiTask(tiny_vit(), {"a": adapters["paper"]}).predict(pictures(1), policy="multi")
    assert torch.equal(torch.get_rng_state(), numbers)
