"""Teaching: a task from labelled photos, fitted beside the server, used, downloaded; refused, cancelled."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI

from artifact_cases import fitted
from cli_cases import write_backbone, write_photos
from serve_cases import PATIENCE, bomb, picture, serve, upload
from viapt.artifact import TENSORS, load
from viapt.create import create_model
from viapt.errors import ArtifactError, ConfigError
from viapt.history import Epoch
from viapt.inference import predict
from viapt.model import PromptedClassifier
from viapt.multitask import MultiTask
from viapt.serve import teaching
from viapt.serve.lesson import RUN
from viapt.serve.limits import Limits
from viapt.serve.problems import Problem
from viapt.serve.teaching import Lesson, Teacher
from viapt.testing.subject import tiny_vit
from viapt.training import HISTORY

COLOURS = {"rød": (220, 40, 40), "a/b, green": (40, 200, 40)}
EPOCH = Epoch(1, 2, 0.1, 1.5, 0.25, None, None, 3.0)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_backbone(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def adapters(backbone: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters") / "old"
    create_model(backbone, "linear", classes=["x", "y"], precision="float32").save_pretrained(folder)
    return {"old": folder}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    """Six photos of each class."""
    folder = write_photos(tmp_path_factory.mktemp("photos"), {"0": COLOURS["rød"], "1": COLOURS["a/b, green"]}, 6)
    found = [[file.read_bytes() for file in sorted((folder / name).iterdir())] for name in ("0", "1")]
    return dict(zip(COLOURS, found, strict=True))


def lesson(photos: dict[str, list[bytes]], **fields: Any) -> dict[str, Any]:
    """Arguments of httpx for a request to teach."""
    labels = [label for label, some in photos.items() for _ in some]
    content = upload(*[photo for some in photos.values() for photo in some])
    return content | {"data": {"name": "new", "labels": labels, "method": "linear", "epochs": "2"} | fields}


async def over(client: httpx.AsyncClient, id: str) -> dict[str, Any]:
    """A teaching after its end."""
    while True:
        found = (await client.get(f"/v1/teachings/{id}")).json()
        if found["state"] not in ("preparing", "fitting", "saving"):
            return found
        await asyncio.sleep(0.02)


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {teaching.LOCK}


def refused(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.json()["error"]["code"] == code
    return response.json()["error"]


def save(model: PromptedClassifier, folder: Path) -> None:
    """What a fit leaves behind."""
    model.save_pretrained(folder / RUN)
    (folder / RUN / HISTORY).write_text(json.dumps(asdict(EPOCH)) + "\n")


class Held(Teacher):
    """One whose fit is a model that was made before, once it may end."""

    model: PromptedClassifier
    free: asyncio.Event

    async def fit(self, lesson: Lesson) -> None:
        save(self.model, self.scratch(lesson))
        await self.free.wait()


@pytest.fixture
def held(backbone: str, monkeypatch: pytest.MonkeyPatch) -> type[Held]:
    Held.model = create_model(backbone, "linear", classes=list(COLOURS), precision="float32", seed=5)
    monkeypatch.setattr("viapt.serve.app.Teacher", Held)
    return Held


def test_a_task_is_taught_used_and_downloaded(
    backbone: str, adapters: dict[str, Path], photos: dict[str, list[bytes]], tmp_path: Path
) -> None:
    """By viapt's own fit, in a process of its own, while others are answered."""
    folder = tmp_path / "taught"

    async def scenario(client: httpx.AsyncClient, _: FastAPI) -> None:
        offered = (await client.get("/v1/tasks")).json()["teaching"]
        assert offered["photos"] == 400 and "linear" in offered["methods"]
        begun = await client.post("/v1/teachings", **lesson(photos, epochs="3", method="vpt-deep"))
        assert begun.status_code == 202, begun.text
        one = begun.json()
        assert one["photos"] == dict.fromkeys(COLOURS, 6) and one["held_back"] and one["curve"] == []
        while not (found := (await client.get(f"/v1/teachings/{one['id']}")).json())["curve"]:
            assert found["state"] in ("preparing", "fitting"), found
            response = await client.post("/v1/classify", **upload(picture(1), tasks="old"))
            assert response.status_code == 200
            await asyncio.sleep(0.02)
        found = await over(client, one["id"])
        assert found["state"] == "done" and found["error"] is None, found
        assert [epoch["epoch"] for epoch in found["curve"]] == [1, 2, 3]
        assert all(epoch["val_accuracy"] is not None for epoch in found["curve"])
        assert left_in(folder) == {"new"}
        tasks = {task["name"]: task for task in (await client.get("/v1/tasks")).json()["tasks"]}
        assert tasks["new"]["taught"] and not tasks["old"]["taught"]
        assert sorted(tasks["new"]["classes"]) == sorted(COLOURS) and tasks["new"]["method"] == "vpt-deep"
        packed = zipfile.ZipFile(io.BytesIO((await client.get("/v1/tasks/new/adapter")).content))
        names = {"new/adapter_config.json", "new/adapter_model.safetensors", "new/README.md"}
        assert set(packed.namelist()) == names
        packed.extractall(tmp_path / "downloaded")
        expected = predict(load(tmp_path / "downloaded" / "new"), [picture(7)])
        response = await client.post("/v1/classify", **upload(picture(7), tasks="new"))
        answer = response.json()["images"][0]["tasks"]["new"]
        found = torch.tensor(list(answer["probabilities"].values()))
        torch.testing.assert_close(found, expected.probabilities[0], rtol=0, atol=1e-5)

    serve(adapters, scenario, backbone=backbone, teach=folder)

    async def again(client: httpx.AsyncClient, _: FastAPI) -> None:
        assert [task["name"] for task in (await client.get("/v1/tasks")).json()["tasks"]] == ["old", "new"]

    serve(adapters, again, backbone=backbone, teach=folder)  # what was taught is there when the server comes back


def test_a_fit_is_cancelled_and_its_process_gone(
    backbone: str, adapters: dict[str, Path], photos: dict[str, list[bytes]], tmp_path: Path, monkeypatch: Any
) -> None:
    started: list[asyncio.subprocess.Process] = []
    create = asyncio.create_subprocess_exec

    async def noted(*arguments: str, **options: Any) -> asyncio.subprocess.Process:
        started.append(await create(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", noted)

    async def scenario(client: httpx.AsyncClient, _: FastAPI) -> None:
        one = (await client.post("/v1/teachings", **lesson(photos, epochs="200"))).json()
        while not started:
            await asyncio.sleep(0.01)
        both = await asyncio.gather(*(client.delete(f"/v1/teachings/{one['id']}") for _ in range(2)))
        assert [response.json()["state"] for response in both] == ["cancelled"] * 2
        assert started[0].returncode is not None and left_in(tmp_path) == set()
        await client.post("/v1/teachings", **lesson(photos, epochs="200"))
        while len(started) < 2:
            await asyncio.sleep(0.01)

    serve(adapters, scenario, backbone=backbone, teach=tmp_path)  # ends while the second one is fitted
    assert started[1].returncode is not None and left_in(tmp_path) == set()


def test_a_fit_does_not_outlive_its_server(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lesson.json")  # which nobody writes: it waits, until it is ended
    command = [sys.executable, "-P", "-m", "viapt.serve.lesson", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            process.communicate(b"", timeout=PATIENCE)  # its input ends
        finally:
            process.kill()
    assert process.returncode == -signal.SIGTERM


def test_one_at_a_time_with_the_time_it_takes(
    backbone: str, adapters: dict[str, Path], photos: dict[str, list[bytes]], tmp_path: Path, held: type[Held]
) -> None:
    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        held.free = asyncio.Event()
        one = (await client.post("/v1/teachings", **lesson(photos))).json()
        while not (found := (await client.get(f"/v1/teachings/{one['id']}")).json())["curve"]:
            assert found["state"] in ("preparing", "fitting"), found
            await asyncio.sleep(0.001)
        assert found["state"] == "fitting" and found["curve"][0]["train_loss"] == 1.5
        response = await client.post("/v1/teachings", **lesson(photos, name="other"))
        refused(response, 429, "busy")
        assert int(response.headers["retry-after"]) >= 1
        held.free.set()
        assert (await over(client, one["id"]))["state"] == "done"
        listed = (await client.get("/v1/teachings")).json()["teachings"]
        assert [each["id"] for each in listed] == [one["id"]]

    serve(adapters, scenario, backbone=backbone, teach=tmp_path)


def test_names_that_are_taken_and_tasks_that_are_replaced(
    backbone: str, adapters: dict[str, Path], photos: dict[str, list[bytes]], tmp_path: Path, held: type[Held]
) -> None:
    (tmp_path / "occupied").mkdir()

    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        held.free = asyncio.Event()
        held.free.set()

        async def teach(**fields: Any) -> None:
            one = (await client.post("/v1/teachings", **lesson(photos, **fields))).json()
            assert (await over(client, one["id"]))["state"] == "done"

        await teach()
        first = (tmp_path / "new" / "adapter_config.json").read_bytes()
        for name, replace in (("new", "false"), ("old", "true"), ("occupied", "true")):
            refused(
                await client.post("/v1/teachings", **lesson(photos, name=name, replace=replace)), 409, "task_exists"
            )
        held.model = create_model(backbone, "linear", classes=list(COLOURS), precision="float32", seed=6)
        await teach(replace="true")
        assert (tmp_path / "new" / "adapter_config.json").read_bytes() != first
        refused(await client.post("/v1/teachings", **lesson(photos, name="third")), 409, "too_many_tasks")
        refused(await client.get("/v1/tasks/old/adapter"), 404, "unknown_task")

    serve(adapters, scenario, Limits(taught=1), backbone=backbone, teach=tmp_path)


def test_a_disk_that_refuses_leaves_everything_as_it_was(
    backbone: str,
    adapters: dict[str, Path],
    photos: dict[str, list[bytes]],
    tmp_path: Path,
    held: type[Held],
    monkeypatch: Any,
) -> None:
    def full(*_: Any) -> None:
        raise ArtifactError("the disk is full")

    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        held.free = asyncio.Event()
        held.free.set()
        one = (await client.post("/v1/teachings", **lesson(photos))).json()
        await over(client, one["id"])
        kept = app.state.service.tasks["new"].head.weight.clone()
        monkeypatch.setattr(teaching, "commit", full)
        held.model = create_model(backbone, "linear", classes=list(COLOURS), precision="float32", seed=6)
        for fields in ({"replace": "true"}, {"name": "second"}):
            one = (await client.post("/v1/teachings", **lesson(photos, **fields))).json()
            found = await over(client, one["id"])
            assert found["state"] == "failed" and "disk is full" in found["error"]["message"]
        assert list(app.state.service.tasks) == ["old", "new"] and left_in(tmp_path) == {"new"}
        assert torch.equal(app.state.service.tasks["new"].head.weight, kept)

    serve(adapters, scenario, backbone=backbone, teach=tmp_path)


def test_a_fault_of_the_servers_ends_the_teaching_and_is_told(
    backbone: str,
    adapters: dict[str, Path],
    photos: dict[str, list[bytes]],
    tmp_path: Path,
    held: type[Held],
    monkeypatch: Any,
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a secret")

    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        monkeypatch.setattr(held, "prepare", broken)
        one = (await client.post("/v1/teachings", **lesson(photos))).json()
        found = await over(client, one["id"])
        assert found["state"] == "failed" and "secret" not in found["error"]["message"]
        assert (await client.get("/healthz")).status_code == 200

    serve(adapters, scenario, backbone=backbone, teach=tmp_path)


def test_a_fit_that_takes_too_long_is_ended(
    backbone: str, adapters: dict[str, Path], photos: dict[str, list[bytes]], tmp_path: Path, held: type[Held]
) -> None:
    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        held.free = asyncio.Event()
        one = (await client.post("/v1/teachings", **lesson(photos))).json()
        found = await over(client, one["id"])
        assert found["state"] == "failed" and "longer than" in found["error"]["message"]
        assert left_in(tmp_path) == set()

    serve(adapters, scenario, Limits(fit_seconds=0.05), backbone=backbone, teach=tmp_path)


def test_all_that_is_wrong_is_said_at_once(
    backbone: str, adapters: dict[str, Path], photos: dict[str, list[bytes]], tmp_path: Path
) -> None:
    good, cut = photos["rød"][0], photos["rød"][0][:200]
    wrong: list[tuple[dict[str, Any], Sequence[str]]] = [
        (lesson({"a": [good], "b": [good]}, name="../up", epochs="0", method="full"), ["../up", "0 epochs", "'full'"]),
        (lesson({"a": [good]}), ["1 class(es)"]),
        (lesson({"a": [good], "b": [good]}, classes=["a", "b", "c"]), ["'c' has no photos"]),
        (lesson({"a": [good], "b": [good]}, classes=["a", "c"]), ["'c' has no photos", "'b' is not among"]),
        (lesson({"a": [good], "b": [good]}, classes=["a", "b", "b"]), ["'b' occurs twice"]),
        (lesson({"a": [good], " b": [good]}), ["' b' is not of 1 to"]),
        (lesson({"a": [good], "b\n": [good]}), ["is not of 1 to"]),
        (lesson({"a": [good], "b": [good]}, labels=["a", "b", "a"]), ["2 photos and 3 labels"]),
        (lesson({"a": [good, cut], "b": [b"hello", bomb()]}), ["1.png", "2.png", "3.png", "truncated", "too large"]),
        (lesson({"a": [good] * 5, "b": [good] * 5}), ["10 photos are more than 8"]),
        (lesson({str(k): [good] for k in range(5)}), ["5 class(es)"]),
    ]

    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        for request, words in wrong:
            error = refused(await client.post("/v1/teachings", **request), 422, "unusable_lesson")
            assert all(word in error["message"] for word in words), error
        for name in ("", ".", "..", ".hidden", "a/b", "a\\b", "a\0b", "a\nb", " a", "a ", "a  b", "-a", "x" * 61):
            response = await client.post("/v1/teachings", **lesson({"a": [good], "b": [good]}, name=name))
            assert response.status_code == 422, name
        refused(await client.post("/v1/teachings", data={"name": "new"}), 422, "invalid_request")
        refused(await client.get(f"/v1/teachings/{'0' * 32}"), 404, "unknown_teaching")
        refused(await client.get("/v1/teachings/nonsense"), 422, "invalid_request")
        assert (await client.get("/v1/teachings")).json() == {"teachings": []} and left_in(tmp_path) == set()

    limits = Limits(photos=8, classes=4, pixels=10_000)
    serve(adapters, scenario, limits, backbone=backbone, teach=tmp_path)


def test_without_a_folder_nothing_is_taught(adapters: dict[str, Path], backbone: str, photos: dict[str, Any]) -> None:
    async def scenario(client: httpx.AsyncClient, _: FastAPI) -> None:
        assert (await client.get("/v1/tasks")).json()["teaching"] is None
        refused(await client.post("/v1/teachings", **lesson(photos)), 403, "teaching_is_off")
        refused(await client.get("/v1/teachings"), 403, "teaching_is_off")
        refused(await client.get("/v1/tasks/old/adapter"), 403, "teaching_is_off")

    serve(adapters, scenario, backbone=backbone)


def test_one_server_a_folder_and_what_was_left_over_is_swept_away(
    backbone: str, adapters: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / f"{teaching.SCRATCH}abc" / "photos").mkdir(parents=True)
    tasks = MultiTask(backbone, adapters)
    first = Teacher(tasks, tmp_path, Limits())
    assert left_in(tmp_path) == set()
    with pytest.raises(ConfigError, match="Another server"):
        Teacher(tasks, tmp_path, Limits())
    asyncio.run(first.close())
    asyncio.run(Teacher(tasks, tmp_path, Limits()).close())
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="Nothing can be written"):
        Teacher(tasks, tmp_path / "file" / "folder", Limits())
    with pytest.raises(ConfigError, match="cannot be built again"):
        Teacher(MultiTask(tiny_vit()), tmp_path / "other", Limits())


def test_a_name_that_is_taken_when_the_server_starts(backbone: str, adapters: dict[str, Path], tmp_path: Path) -> None:
    create_model(backbone, "linear", classes=["x", "y"], precision="float32").save_pretrained(tmp_path / "old")
    with pytest.raises(ConfigError) as found:
        Teacher(MultiTask(backbone, adapters), tmp_path, Limits())
    assert all(str(folder) in str(found.value) for folder in (adapters["old"], tmp_path / "old"))


def test_a_folder_that_is_given_twice_is_loaded_once(backbone: str, tmp_path: Path) -> None:
    create_model(backbone, "linear", classes=["x", "y"], precision="float32").save_pretrained(tmp_path / "old")
    tasks = MultiTask(backbone, {"old": tmp_path / ".." / tmp_path.name / "old"})
    model = tasks["old"]
    teacher = Teacher(tasks, tmp_path, Limits())
    assert teacher.taught == ["old"] and tasks["old"] is model
    asyncio.run(teacher.close())


def test_what_was_taught_and_cannot_be_loaded_stops_nobody(
    backbone: str, adapters: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named in the log, stays where it is, and its name stays taken."""
    create_model(backbone, "linear", classes=["x", "y"], precision="float32").save_pretrained(tmp_path / "good")
    fitted(tiny_vit(), "linear").save_pretrained(tmp_path / "foreign")
    shutil.copytree(tmp_path / "good", tmp_path / "damaged")
    (tmp_path / "damaged" / TENSORS).write_bytes(b"no tensors")
    teacher = Teacher(MultiTask(backbone, adapters), tmp_path, Limits())
    assert teacher.taught == ["good"] and list(teacher.tasks) == ["old", "good"]
    assert [name for name in ("damaged", "foreign", "good") if str(tmp_path / name) in caplog.text] == [
        "damaged",
        "foreign",
    ]
    assert {"damaged", "foreign"} < left_in(tmp_path)
    with pytest.raises(Problem, match="task 'damaged' already"):
        teacher.check_name("damaged", True)
    asyncio.run(teacher.close())
