"""What the service answers: right answers, and for everything that is wrong its status and a clear JSON error."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from artifact_cases import fitted
from serve_cases import check, held, picture, refused, serve, sound, until, upload, write_tasks
from viapt.artifact import TENSORS
from viapt.errors import ArtifactError, ConfigError
from viapt.multitask import MultiTask
from viapt.serve.access import check_reach, is_loopback, read_token
from viapt.serve.limits import Limits
from viapt.serve.tasks import adapters_in
from viapt.testing.subject import tiny_vit

TOKEN = "a-token-of-some-length"

# Of an upload that ends too early, Starlette leaves the temporary file to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed file .tempfile.SpooledTemporaryFile:ResourceWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    write_tasks(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(folder: Path) -> dict[str, Path]:
    return adapters_in([folder])


@pytest.mark.parametrize("policy", ["mean", "fixed", "multi"])
def test_answers_are_those_of_each_task_alone(adapters: dict[str, Path], policy: str) -> None:
    async def scenario(client: httpx.AsyncClient, _: FastAPI) -> None:
        pictures = [picture(1), picture(2, (50, 33))]
        sampling = {"mean": {}, "fixed": {"seed": "7"}, "multi": {"seed": "7", "rounds": "3"}}[policy]
        response = await client.post("/v1/classify", **upload(*pictures, policy=policy, **sampling))
        assert response.status_code == 200, response.text
        images = response.json()["images"]
        assert [image["name"] for image in images] == ["0.png", "1.png"]
        for image, data in zip(images, pictures, strict=True):
            assert list(image["tasks"]) == list(adapters)
            for name, answer in image["tasks"].items():
                check(answer, adapters[name], data, policy, 3, 7)
        response = await client.post("/v1/classify", **upload(pictures[0], tasks=["probe", "deep", "probe"]))
        assert list(response.json()["images"][0]["tasks"]) == ["probe", "deep"]

    serve(adapters, scenario)


def test_rounds_that_nobody_names_are_within_the_limit(adapters: dict[str, Path]) -> None:
    async def scenario(client: httpx.AsyncClient, _: FastAPI) -> None:
        for policy, rounds in (("mean", 1), ("multi", 3)):
            response = await client.post("/v1/classify", **upload(picture(), policy=policy))
            assert response.status_code == 200, response.text
            assert max(answer["rounds"] for answer in response.json()["images"][0]["tasks"].values()) == rounds

    serve(adapters, scenario, Limits(rounds=3))


def test_a_task_may_be_unloaded_and_another_loaded_while_it_is_asked(adapters: dict[str, Path], folder: Path) -> None:
    """Each request is answered by what was loaded when it came."""

    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        batcher = app.state.service.batcher

        def ask(seed: int) -> asyncio.Task[httpx.Response]:
            return asyncio.create_task(client.post("/v1/classify", **upload(picture(seed), tasks="deep")))

        with held(app) as begun:
            first = ask(1)
            await begun()
            second = ask(2)
            await until(lambda: len(batcher.jobs) == 1)
            assert (await client.delete("/v1/tasks/deep")).status_code == 200
            refused(await client.post("/v1/classify", **upload(picture(), tasks="deep")), 404, "unknown_task")
            assert (await client.put("/v1/tasks/deep", json={"directory": "paper"})).status_code == 200
            third = ask(3)
            await until(lambda: len(batcher.jobs) == 2)
        for seed, (name, response) in enumerate((("deep", first), ("deep", second), ("paper", third)), start=1):
            answer = (await response).json()["images"][0]["tasks"]["deep"]
            check(answer, adapters[name], picture(seed), "mean", 1, 0)
        assert (await client.delete("/v1/tasks/deep")).status_code == 200
        refused(await client.delete("/v1/tasks/deep"), 404, "unknown_task")

    serve(adapters, scenario, roots=[folder])


def test_tasks_are_listed_loaded_and_replaced(adapters: dict[str, Path], folder: Path) -> None:
    async def scenario(client: httpx.AsyncClient, _: FastAPI) -> None:
        found = (await client.get("/v1/tasks")).json()
        assert [(one["name"], one["method"], one["samples"]) for one in found["tasks"]] == [("a", "vpt-deep", False)]
        assert found["fingerprint"] == tiny_vit().fingerprint
        limits, names = Limits(), ("images", "request_bytes", "pixels", "rounds", "queue", "timeout")
        assert 1 <= found["limits"].pop("rows") <= limits.queue // 2
        assert found["limits"] == {name: getattr(limits, name) for name in names}
        refused(await client.put("/v1/tasks/a", json={"directory": "paper"}), 409, "task_exists")
        response = await client.put("/v1/tasks/a", json={"directory": "paper", "replace": True})
        assert response.json()["method"] == "viapt"
        response = await client.put("/v1/tasks/b", json={"directory": str(folder / "probe")})
        assert response.status_code == 200
        await sound(client, {"a": adapters["paper"], "b": adapters["probe"]})
        for name in ("a", "b"):
            assert (await client.delete(f"/v1/tasks/{name}")).status_code == 200
        refused(await client.post("/v1/classify", **upload(picture())), 503, "no_tasks")

    serve({"a": adapters["deep"]}, scenario, roots=[folder])


def test_adapters_that_must_not_be_loaded(adapters: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    corrupt, foreign = root / "corrupt", root / "foreign"
    shutil.copytree(adapters["deep"], corrupt)
    data = bytearray((corrupt / TENSORS).read_bytes())
    data[-5] ^= 1
    (corrupt / TENSORS).write_bytes(data)
    fitted(tiny_vit(init_values=0.5), "linear").save_pretrained(foreign)
    fitted(tiny_vit(), reduction="batch").save_pretrained(root / "batch")
    (root / "link").symlink_to(folder / "probe")
    (root / "empty").mkdir()

    async def scenario(client: httpx.AsyncClient, _: FastAPI) -> None:
        for name in ("corrupt", "foreign", "batch", "empty"):
            refused(await client.put("/v1/tasks/new", json={"directory": name}), 422, "unusable_adapter")
            again = {"directory": name, "replace": True}
            refused(await client.put("/v1/tasks/deep", json=again), 422, "unusable_adapter")
        for name in ("link", "..", ".", "../adapters", str(folder / "probe"), "/", "missing", "a\0b"):
            refused(await client.put("/v1/tasks/new", json={"directory": name}), 403, "not_allowed")
        for body in ({}, {"directory": ""}, {"directory": 5}, []):
            refused(await client.put("/v1/tasks/new", json=body), 422, "invalid_request")
        await sound(client, adapters)

    serve(adapters, scenario, roots=[root])


def test_tasks_are_bounded(adapters: dict[str, Path]) -> None:
    async def scenario(client: httpx.AsyncClient, _: FastAPI) -> None:
        load = {"directory": "deep"}
        assert (await client.put("/v1/tasks/second", json=load)).status_code == 200
        error = refused(await client.put("/v1/tasks/third", json=load), 409, "too_many_tasks")
        assert "2 tasks" in error["message"] and "at most 2" in error["expected"]
        assert (await client.put("/v1/tasks/second", json=load | {"replace": True})).status_code == 200
        assert (await client.delete("/v1/tasks/second")).status_code == 200
        assert (await client.put("/v1/tasks/third", json=load)).status_code == 200

    serve({"first": adapters["deep"]}, scenario, Limits(tasks=2), roots=[adapters["deep"].parent])


def test_loading_that_waits_holds_nobody_up(adapters: dict[str, Path]) -> None:
    """More changes at the same time than there are threads for uploads."""

    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        with app.state.service.tasks.changing:
            changes = [
                asyncio.create_task(client.put(f"/v1/tasks/t{k}", json={"directory": "deep"})) for k in range(50)
            ]
            await asyncio.sleep(0.1)
            large = picture(1) + bytes(2 * 2**20)  # one that is kept in a file, which threads read
            response = await asyncio.wait_for(client.post("/v1/classify", **upload(large, tasks="deep")), 60)
            assert response.status_code == 200
        assert {(await change).status_code for change in changes} == {200}

    serve(adapters, scenario, roots=[adapters["deep"].parent])


def test_without_roots_nothing_is_loaded(adapters: dict[str, Path]) -> None:
    async def scenario(client: httpx.AsyncClient, _: FastAPI) -> None:
        refused(await client.put("/v1/tasks/new", json={"directory": "deep"}), 403, "loading_is_off")

    serve(adapters, scenario)


def test_a_token_is_needed_for_all_but_health(adapters: dict[str, Path]) -> None:
    async def scenario(client: httpx.AsyncClient, _: FastAPI) -> None:
        for path in ("/v1/tasks", "/metrics", "/openapi.json", "/nowhere"):
            for headers in ({}, {"Authorization": TOKEN}, {"Authorization": f"Bearer {TOKEN}x"}):
                response = await client.get(path, headers=headers)
                refused(response, 401, "unauthorised")
                assert response.headers["www-authenticate"] == "Bearer"
        refused(await client.post("/v1/classify", **upload(picture())), 401, "unauthorised")
        for path in ("/healthz", "/readyz"):
            assert (await client.get(path)).status_code == 200
        await sound(client, adapters, Authorization=f"Bearer {TOKEN}")

    serve(adapters, scenario, token=TOKEN)


def test_metrics_count_what_happened(adapters: dict[str, Path]) -> None:
    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        await client.post("/v1/classify", **upload(picture(1), picture(2), tasks=["deep", "paper"]))
        await client.post("/v1/classify", **upload(b"no image"))
        lines = (await client.get("/metrics")).text.splitlines()
        for line in (
            'viapt_requests_total{route="/v1/classify",status="200"} 1.0',
            'viapt_requests_total{route="/v1/classify",status="422"} 1.0',
            "viapt_images_total 2.0",
            "viapt_batch_rows_sum 4.0",
            "viapt_queue_rows 0.0",
            "viapt_tasks 3.0",
            "viapt_passes 1.0",
        ):
            assert line in lines

    serve(adapters, scenario)


def test_the_schema_describes_answers_and_errors(adapters: dict[str, Path]) -> None:
    async def scenario(client: httpx.AsyncClient, _: FastAPI) -> None:
        schema = (await client.get("/openapi.json")).json()
        assert set(schema["paths"]) == {
            "/healthz", "/readyz", "/metrics", "/v1/tasks", "/v1/tasks/{name}", "/v1/tasks/{name}/adapter",
            "/v1/classify", "/v1/attention", "/v1/teachings", "/v1/teachings/{id}",
        }  # fmt: skip
        assert "text/plain" not in schema["paths"]["/metrics"]["get"]["responses"]["401"]["content"]
        answers = schema["paths"]["/v1/classify"]["post"]["responses"]
        assert "Answers" in json.dumps(answers["200"])
        assert all("ErrorBody" in json.dumps(answers[code]) for code in ("413", "422", "429", "503"))

    serve(adapters, scenario)


def test_a_service_whose_loop_has_ended_says_so(adapters: dict[str, Path]) -> None:
    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        await app.state.service.batcher.stop()
        for path in ("/healthz", "/readyz"):
            response = await client.get(path)
            assert (response.status_code, response.json()) == (503, {"status": "broken"})

    serve(adapters, scenario)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *((host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "192.168.0.5", "example.org", "localhost.example.org", "")),
    ],
)
def test_only_loopback_goes_without_a_token(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback
    check_reach(host, TOKEN)
    if loopback:
        check_reach(host, None)
    else:
        with pytest.raises(ConfigError, match="no token"):
            check_reach(host, None)


def test_tokens_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIAPT_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("VIAPT_TOKEN", TOKEN)
    assert read_token(None) == TOKEN
    file = tmp_path / "token"
    file.write_text("another-token-of-some-length\n")
    assert read_token(file) == "another-token-of-some-length"
    for text in ("", "short", "with a blank in the middle", "two-lines-that-are-long\nenough", "ü" * 20):
        file.write_text(text)
        with pytest.raises(ConfigError, match="token"):
            read_token(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(tmp_path / "missing")


def test_folders_of_adapters(folder: Path, tmp_path: Path) -> None:
    assert adapters_in([folder]) == {name: folder / name for name in ("deep", "paper", "probe")}
    assert adapters_in([folder / "deep", folder / "paper"]) == {n: folder / n for n in ("deep", "paper")}
    with pytest.raises(ConfigError, match="no adapters"):
        adapters_in([tmp_path])
    with pytest.raises(ConfigError, match="both be called 'deep'"):
        adapters_in([folder, folder / "deep"])


@pytest.mark.parametrize("wrong", [{"queue": 0}, {"wait": -1.0}, {"timeout": float("nan")}, {"rows": -3}])
def test_impossible_limits(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Limits(**wrong)


def test_a_foreign_adapter_is_refused_at_the_start(folder: Path, tmp_path: Path) -> None:
    fitted(tiny_vit(init_values=0.5), "linear").save_pretrained(tmp_path / "foreign")
    with pytest.raises(ArtifactError):
        MultiTask(tiny_vit(), adapters_in([folder, tmp_path]))
