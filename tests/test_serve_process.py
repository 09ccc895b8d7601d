"""One real process on loopback: the command, its client, and its end."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from serve_cases import PATIENCE, bomb, free_port, picture, reached, served, write_adapters
from viapt.cli import main
from viapt.errors import ConfigError, DataError
from viapt.serve.client import Client, check_fit, requests
from viapt.serve.limits import Limits
from viapt.serve.schema import TaskList

TOKEN = "a-token-of-some-length"
OVERVIEW: dict[str, Any] = {
    "tasks": [
        {
            "name": "paper",
            "method": "viapt",
            "classes": ["a", "b"],
            "samples": True,
            "precision": "float32",
            "taught": False,
        }
    ],
    "limits": {
        "images": 2,
        "request_bytes": 10**6,
        "pixels": 100,
        "rounds": 5,
        "queue": 5,
        "rows": 5,
        "timeout": 200.0,
    },
    "urls": False,
    "teaching": None,
    "backbone": "tiny",
    "precision": "float32",
    "fingerprint": "0",
}
ANSWER = {"label": "a", "probability": 1.0, "probabilities": {"a": 1.0, "b": 0.0}, "spread": None, "rounds": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters, pictures of which one is damaged, and others that are larger than the server takes."""
    folder = tmp_path_factory.mktemp("service")
    write_adapters(folder)
    (folder / "photos").mkdir()
    for k in range(3):
        (folder / "photos" / f"{k}.png").write_bytes(picture(k))
    (folder / "photos" / "3.png").write_bytes(picture(3)[:300])
    (folder / "large").mkdir()
    (folder / "large" / "pixels.png").write_bytes(bomb())
    (folder / "large" / "bytes.png").write_bytes(picture(4, (600, 600)))
    (folder / "large" / "caf\udce9.png").write_bytes(picture(5))  # Latin-1
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """It takes two pictures at a time, only one where each makes three rows, and no large ones."""
    limits = "--max-images", "2", "--queue", "5", "--max-megapixels", "0.5", "--max-mib", "1"
    with served(folder / "adapters", folder / "log", *limits, VIAPT_TOKEN=TOKEN) as found:
        yield found


def run(capsys: Any, *arguments: object) -> tuple[Any, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return stopped.value.code, *capsys.readouterr()


def test_the_client_gives_what_a_local_prediction_gives(
    server: tuple[str, Any], folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    ask = [folder / "photos", "--policy", "multi", "--rounds", 3, "--seed", 2, "--format", "json"]
    code, out, err = run(capsys, "predict", folder / "adapters" / "paper", *ask)
    assert code == 3 and "3.png" in err
    monkeypatch.setenv("VIAPT_TOKEN", TOKEN)
    remote_code, remote, err = run(capsys, "predict", "paper", *ask, "--server", server[0])
    assert remote_code == 3 and "3.png" in err
    expected, found = json.loads(out), json.loads(remote)
    assert len(expected) == len(found) == 3
    for one, other in zip(expected, found, strict=True):
        assert (one["path"], one["label"]) == (other["path"], other["label"])
        for kind in ("probabilities", "spread"):
            assert one[kind] == pytest.approx(other[kind], abs=1e-5)


def test_what_the_server_does_not_take_is_named_and_the_rest_is_answered(
    server: tuple[str, Any], folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIAPT_TOKEN", TOKEN)
    ask = "--format", "json", "--server", server[0]
    code, out, err = run(capsys, "predict", "paper", folder / "large", folder / "photos", *ask)
    assert code == 3 and "3 of 7 images cannot be read" in err
    assert "pixels.png: has 1,000,000 pixels, more than the server's 500,000" in err
    assert "bytes, too many for the server's 1,048,576" in err and "3.png" in err
    names = [Path(row["path"]).name for row in json.loads(out)]
    assert names == ["caf\\udce9.png", "0.png", "1.png", "2.png"]
    code, out, err = run(capsys, "predict", "paper", folder / "large" / "pixels.png", *ask)
    assert code == 2 and "none of 1 images can be read" in err and not out


def test_the_client_says_what_is_wrong(
    server: tuple[str, Any], folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = folder / "photos" / "0.png"
    monkeypatch.delenv("VIAPT_TOKEN", raising=False)
    wrong = {
        ("paper", photo, "--server", server[0]): "401",
        ("paper", photo, "--server", f"http://127.0.0.1:{free_port()}"): "does not answer",
        ("paper", photo, "--server", "nonsense"): "does not answer",
        ("paper", photo, "--server", server[0], "--compile"): "no effect",
        ("paper", photo, "--token-file", "x"): "no effect",
    }
    for arguments, words in wrong.items():
        code, _, err = run(capsys, "predict", *arguments)
        assert code == 2 and words in err, err
    monkeypatch.setenv("VIAPT_TOKEN", TOKEN)
    code, _, err = run(capsys, "predict", "papier", photo, "--server", server[0])
    assert code == 2 and "no task 'papier'" in err
    code, _, err = run(capsys, "predict", "paper", folder / "photos" / "3.png", "--server", server[0])
    assert code == 2 and "none of 1" in err
    code, _, err = run(capsys, "predict", "paper", photo, "--policy", "multi", "--rounds", 0, "--server", server[0])
    assert code == 2 and "rounds" in err
    many = "--policy", "multi", "--rounds", 6
    code, _, err = run(capsys, "predict", "paper", photo, *many, "--server", server[0])
    assert code == 2 and "6 rows" in err and "at most 5" in err and "fewer rounds" in err
    code, _, err = run(capsys, "predict", "deep", photo, *many, "--server", server[0])
    assert code == 0, err  # without instance prompts, rounds do not differ, and one is computed


def test_on_sigterm_what_has_begun_is_answered(server: tuple[str, subprocess.Popen[str]], folder: Path) -> None:
    url, process = server
    port = int(url.rpartition(":")[2])
    request = httpx.Request("POST", f"{url}/v1/classify", files={"images": ("a.png", picture())})
    body = request.read()
    head = (
        "POST /v1/classify HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\n"
        f"Authorization: Bearer {TOKEN}\r\nContent-Type: {request.headers['content-type']}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(head.encode())
        assert b"100 Continue" in connection.recv(1000)  # now somebody waits for the body
        process.send_signal(signal.SIGTERM)
        while reached(port):
            time.sleep(0.05)
        connection.sendall(body)
        answer = b""
        while piece := connection.recv(10_000):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200") and b'"paper"' in answer
    assert process.wait(PATIENCE) == 0, (folder / "log").read_text()


def test_another_address_needs_a_token(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VIAPT_TOKEN", raising=False)
    code, _, err = run(capsys, "serve", folder / "adapters", "--host", "0.0.0.0")
    assert code == 2 and "no token" in err
    code, _, err = run(capsys, "serve", folder / "photos")
    assert code == 2 and "no adapters" in err
    code, _, err = run(capsys, "serve", folder / "adapters", "--root", folder / "nowhere")
    assert code == 2 and "no folder" in err


def test_options_are_limits(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """And the end waits for a request that has begun: for its upload and its answer."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.delenv("VIAPT_TOKEN", raising=False)
    configs: list[uvicorn.Config] = []

    async def serve(server: uvicorn.Server) -> None:
        configs.append(server.config)

    monkeypatch.setattr(uvicorn.Server, "serve", serve)
    # What would outlive the test. Logging that is set up anew ends all handlers there are; absl's (openvino imports it)
    # then closes what it writes to, unless that is sys.stderr: pytest's file, while this test has another one.
    for name in ("signal.signal", "gc.freeze", "uvicorn.Config.configure_logging"):
        monkeypatch.setattr(f"viapt.serve.server.{name}", lambda *_: None)
    options = {
        "wait-ms": 7, "rows": 3, "passes": 2, "queue": 40, "timeout": 11.0, "upload-timeout": 13.5, "max-requests": 5,
        "max-tasks": 9, "max-rounds": 6, "max-images": 4, "max-mib": 2, "max-megapixels": 1.5,
    }  # fmt: skip
    given = [word for name, value in options.items() for word in (f"--{name}", value)]
    assert run(capsys, "serve", folder / "adapters", *given)[0] == 0
    (config,) = configs
    found: Any = config.app
    assert found.state.service.limits == Limits(
        wait=0.007, rows=3, passes=2, queue=40, timeout=11.0, upload=13.5, requests=5, tasks=9, rounds=6, images=4,
        request_bytes=2 * 2**20, pixels=1_500_000,
    )  # fmt: skip
    assert config.timeout_graceful_shutdown == 30
    assert config.timeout_keep_alive > 60  # of the load balancers' connections: it must not be the server who closes
    assert run(capsys, "serve", folder / "adapters", "--max-rounds", 0)[0] == 2


def replies(*given: httpx.Response) -> tuple[Client, list[httpx.Request]]:
    """A client whose server gives these answers, one after the other; and what it was asked."""
    asked: list[httpx.Request] = []

    def reply(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return given[len(asked) - 1]

    return Client("http://test", TOKEN, httpx.MockTransport(reply)), asked


def test_a_busy_server_is_asked_again() -> None:
    busy = [httpx.Response(code, headers={"Retry-After": "0"}) for code in (429, 503)]
    client, asked = replies(*busy, httpx.Response(200, json=OVERVIEW))
    assert client.overview().model_dump() == OVERVIEW
    client.close()
    assert [request.headers["authorization"] for request in asked] == [f"Bearer {TOKEN}"] * 3


def late(request: httpx.Request, most: int, slow: str) -> httpx.Response:
    """Of a server that answers about so many images in time, and never about that one."""
    names = re.findall(rb'(\w)\.png"', request.read())
    if len(names) > most or slow.encode() in names:
        error = {"code": "timeout", "message": "no answer within 200 s", "expected": None, "remedy": "a --timeout"}
        return httpx.Response(504, json={"error": error}, headers={"Retry-After": "1"})
    images = [{"name": name.decode(), "tasks": {"paper": ANSWER | {"rounds": int(name)}}} for name in names]
    return httpx.Response(200, json={"images": images})


def test_what_takes_too_long_is_divided_and_what_was_answered_is_kept(tmp_path: Path) -> None:
    files = [tmp_path / f"{k}.png" for k in range(1, 9)]
    for file in files:
        file.write_bytes(picture())
    overview, asked = TaskList.model_validate(OVERVIEW), []
    limits = overview.limits.model_copy(update={"images": 32, "rows": 6})

    def reply(request: httpx.Request) -> httpx.Response:
        asked.append((request.read().count(b"filename="), request.extensions["timeout"]["read"]))
        return late(request, 3, "5")

    with closing(Client("http://test", TOKEN, httpx.MockTransport(reply))) as client:
        found = client.predict(overview.tasks[0], limits, files, "mean", 5, 0, 32)
        assert found.prediction.rounds is not None
        assert found.prediction.rounds.tolist() == [1, 2, 3, 4, 6, 7, 8]
        assert found.places == [0, 1, 2, 3, 5, 6, 7] and "no answer within 200 s" in found.refused[4]
        assert [size for size, _ in asked] == [6, 3, 3, 1, 1, 1, 1, 1]
        assert all(seconds > 200 for _, seconds in asked)
        with pytest.raises(ConfigError, match="To do: a --timeout"):
            client.predict(overview.tasks[0], limits, files[4:5] * 2, "mean", 5, 0, 32)


@pytest.mark.parametrize(
    ("response", "error", "words"),
    [
        (httpx.Response(503, headers={"Retry-After": "3600"}, text="no"), ConfigError, "503 and nothing"),
        (httpx.Response(200, text="<html>"), ConfigError, "200 and nothing"),
        (httpx.Response(200, json={}), ConfigError, "200 and nothing"),
        (httpx.Response(200, json=[]), ConfigError, "200 and nothing"),
        (httpx.Response(200, json=OVERVIEW | {"tasks": [{"name": 1}]}), ConfigError, "200 and nothing"),
        (httpx.Response(200, json=OVERVIEW | {"limits": {"images": "many"}}), ConfigError, "200 and nothing"),
        (httpx.Response(404, json={"detail": "x"}), ConfigError, "404 and nothing"),
        (httpx.Response(404, json={"error": "x"}), ConfigError, "404 and nothing"),
        (httpx.Response(404, json=[]), ConfigError, "404 and nothing"),
        (
            httpx.Response(
                422, json={"error": {"code": "unreadable_image", "message": "0.png", "expected": None, "remedy": None}}
            ),
            DataError,
            "0.png",
        ),
    ],
)
def test_other_answers(response: httpx.Response, error: type[Exception], words: str) -> None:
    with closing(replies(response)[0]) as client, pytest.raises(error, match=words):
        client.overview()


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([{}], "200 and nothing"),
        ([{"name": "x", "tasks": {"paper": {"label": "a"}}}], "200 and nothing"),
        ([], "does not answer for each image"),
        ([{"name": "x", "tasks": {}}], "does not answer for each image"),
        ([{"name": "x", "tasks": {"deep": ANSWER}}], "does not answer for each image"),
        ([{"name": "x", "tasks": {"paper": ANSWER}}] * 2, "does not answer for each image"),
        ([{"name": "x", "tasks": {"paper": ANSWER | {"probabilities": {"a": 1.0}}}}], "and class of 'paper'"),
        ([{"name": "x", "tasks": {"paper": ANSWER | {"spread": {"a": 1.0}}}}], "and class of 'paper'"),
        ([{"name": "x", "tasks": {"paper": ANSWER | {"label": "c"}}}], "and class of 'paper'"),
    ],
)
def test_foreign_answers_about_images(images: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(picture())
    overview = TaskList.model_validate(OVERVIEW)
    client, _ = replies(httpx.Response(200, json={"images": images}))
    with closing(client), pytest.raises(ConfigError, match=words):
        client.predict(overview.tasks[0], overview.limits, [tmp_path / "x.png"], "mean", 5, 0, 32)


def test_requests_keep_to_the_servers_limits(tmp_path: Path) -> None:
    files = [tmp_path / str(k) for k in range(5)]
    for file, size in zip(files, (100, 100, 100, 20_000, 100), strict=True):
        file.write_bytes(b"x" * size)
    assert [len(batch) for batch in requests(files, 2, 50_000)] == [2, 2, 1]
    assert [len(batch) for batch in requests(files, 5, 23_000)] == [3, 1, 1]
    limits = TaskList.model_validate(OVERVIEW).limits.model_copy(update={"request_bytes": 15_000})
    check_fit(files[0], 100, limits)
    for file, pixels, words in ((files[3], 100, "20,000 bytes.*15,000"), (files[0], 101, "101 pixels.* 100")):
        with pytest.raises(DataError, match=words):
            check_fit(file, pixels, limits)
