"""Images by their address: what is fetched, and what a client cannot have the server reach."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from artifact_cases import fitted
from serve_cases import picture, serve, upload
from viapt.serve.fetching import Fetcher, is_public
from viapt.serve.limits import Limits
from viapt.serve.problems import Problem
from viapt.testing.subject import tiny_vit

LOCAL = "127.0.0.1"
PRIVATE = [
    *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1"),
    *("169.254.169.254", "192.0.0.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::1", "fe80::1%1", "fc00::1", "fd12::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
    *("64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::", "2002:a00:1::", "2001:db8::1", "", "localhost", "1"),
    *("fec0::1", "64:ff9b:1::7f00:1", "::127.0.0.1", "::1.1.1.1", "3fff::1", "100::1", "5f00::1", "2001:0:a00:1::1"),
]
PUBLIC = ["1.1.1.1", "93.184.215.14", "172.32.0.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_the_internets(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_of_the_internet(address: str) -> None:
    assert is_public(address)


@asynccontextmanager
async def listening(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """The port of a server on loopback that has hung up everywhere when it ends: no stream outlives its loop."""
    calls: list[asyncio.Task[None]] = []

    async def call(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls.append(asyncio.ensure_future(call(reader, writer)))

    async with await asyncio.start_server(begin, LOCAL, 0) as server:
        yield server.sockets[0].getsockname()[1]
    await asyncio.gather(*calls, return_exceptions=True)


class Web:
    """Answers by path, of a server on loopback; and what was asked of it."""

    def __init__(self, answers: dict[str, bytes]) -> None:
        self.answers, self.heads, self.port = answers, list[str](), 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        writer.write(self.answers[head.split()[1]])
        await writer.drain()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Web]:
        async with listening(self.answer) as self.port:
            yield self


def reply(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def fetcher(allowed: Callable[[str], bool] = is_public, size: int = 100_000, seconds: float = 30.0) -> Fetcher:
    """One that finds every host on loopback but those that are called private."""

    async def find(host: str, port: int) -> list[str]:
        if host.endswith("nowhere.test"):
            raise OSError(host)
        if host[0].isdigit():  # an address stands for itself
            return [host]
        return {"private.test": ["10.0.0.1"], "mixed.test": ["1.1.1.1", "10.0.0.1"]}.get(host, [LOCAL])

    return Fetcher(size, seconds, find, allowed)


def here(address: str) -> bool:
    """As strict as the real check, but for the server of the test."""
    return address == LOCAL or is_public(address)


def failing(found: Problem, status: int, code: str) -> None:
    assert (found.status_code, found.code) == (status, code), found.detail


def test_what_is_fetched_comes_from_the_checked_address_under_its_own_name() -> None:
    web = Web({"/a.png?x=1": reply(b"A"), "/b": reply(b"", "302 Found", Location="/c"), "/c": reply(b"C")})

    async def scenario() -> None:
        async with web.open():
            base = f"http://pictures.test:{web.port}"
            assert await fetcher(here).fetch([f"{base}/a.png?x=1", f"{base}/b"]) == [b"A", b"C"]
        assert all(f"host: pictures.test:{web.port}" in head.lower() for head in web.heads)
        assert all("accept-encoding: identity" in head.lower() for head in web.heads) and len(web.heads) == 3

    asyncio.run(scenario())


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "http://[::1]/", "http://localhost/", "https://private.test/x"])
def test_private_addresses_are_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(Problem) as refused:
        asyncio.run(fetcher().fetch([url]))
    failing(refused.value, 422, "address_refused")


def test_one_private_address_among_those_of_a_host_is_enough_to_refuse_it() -> None:
    with pytest.raises(Problem, match="not public"):
        asyncio.run(fetcher().fetch(["http://mixed.test/"]))


@pytest.mark.parametrize(
    "url",
    [
        *(
            "file:///etc/passwd",
            "ftp://pictures.test/",
            "data:image/png;base64,AA",
            "gopher://x",
            "//x/y",
            "x",
            "http://",
        ),
        *(
            "http://user:secret@pictures.test/",
            "http://pictures.test/" + "x" * 3000,
            "http://[::1",
            "http://xn--/",
            "http://xn--ls8h.test/a.png",
            "http://a:99999999/",
        ),
    ],
)
def test_what_is_no_address_of_an_image(url: str) -> None:
    with pytest.raises(Problem) as refused:
        asyncio.run(fetcher(here).fetch([url]))
    failing(refused.value, 422, "address_refused")


@given(st.text() | st.text().map("http://{}".format) | st.text("xn-ab8.", min_size=1).map("http://xn--{}/".format))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    """Where one leads is not asked: nobody has an address here."""

    async def nowhere(host: str, _: int) -> list[str]:
        raise OSError(host)

    with pytest.raises(Problem) as found:
        asyncio.run(Fetcher(1000, 30.0, nowhere).fetch([text]))
    assert (found.value.status_code, found.value.code) in [(422, "address_refused"), (422, "unreachable_image")]


@pytest.mark.parametrize(
    ("location", "code"),
    [
        ("http://private.test/", "address_refused"),
        ("http://127.0.0.2/", "address_refused"),
        ("file:///etc/passwd", "address_refused"),
        ("http://xn--ls8h.test/", "unreachable_image"),
        ("/loop", "unreachable_image"),
        ("http://nowhere.test/", "unreachable_image"),
    ],
)
def test_where_an_address_moves_to_is_checked_anew(location: str, code: str) -> None:
    web = Web({"/": reply(b"", "302 Found", Location=location), "/loop": reply(b"", "302 Found", Location="/loop")})

    async def scenario() -> None:
        async with web.open():
            with pytest.raises(Problem) as refused:
                await fetcher(here).fetch([f"http://pictures.test:{web.port}/"])
            failing(refused.value, 422, code)

    asyncio.run(scenario())


def test_answers_that_are_no_image_or_too_large() -> None:
    web = Web(
        {
            "/missing": reply(b"", "404 Not Found"),
            "/packed": reply(b"x", Content_Encoding="gzip"),
            "/nonsense": b"hello\r\n\r\n",
            "/large": reply(b"x" * 2000),
            "/half": reply(b"x" * 600),
        }
    )

    async def refused(*paths: str) -> tuple[int, str]:
        with pytest.raises(Problem) as problem:
            await fetcher(here, size=1000).fetch([f"http://pictures.test:{web.port}{path}" for path in paths])
        return problem.value.status_code, problem.value.code

    async def scenario() -> None:
        async with web.open():
            for path in ("/missing", "/packed", "/nonsense"):
                assert await refused(path) == (422, "unreachable_image")
            assert await refused("/large") == (413, "request_too_large")
            assert await refused("/half", "/half") == (413, "request_too_large")  # the bound is one of all together

    asyncio.run(scenario())


def test_a_slow_answer_is_given_up() -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()  # until the client has gone

    async def scenario() -> None:
        async with listening(silent) as port:
            with pytest.raises(Problem, match="not there within"):
                await fetcher(here, seconds=0.2).fetch([f"http://pictures.test:{port}/"])

    asyncio.run(scenario())


def test_classifying_by_address(tmp_path: Path) -> None:
    """Answers are those of the same picture uploaded; without leave, none is fetched."""
    fitted(tiny_vit(), "linear").save_pretrained(tmp_path / "probe")
    web = Web({"/a.png": reply(picture(1)), "/page": reply(b"<html>")})

    async def allowed(client: httpx.AsyncClient, _: FastAPI) -> None:
        assert (await client.get("/v1/tasks")).json()["urls"] is True
        async with web.open():
            url = f"http://pictures.test:{web.port}/a.png"
            response = await client.post("/v1/classify", **upload(picture(2), urls=[url]))
            uploaded, addressed = response.json()["images"]
            assert (uploaded["name"], addressed["name"]) == ("0.png", url)
            same = await client.post("/v1/classify", **upload(picture(1)))
            expected = same.json()["images"][0]["tasks"]["probe"]["probabilities"]
            assert addressed["tasks"]["probe"]["probabilities"] == pytest.approx(expected, abs=1e-6)
            alone = await client.post("/v1/classify", data={"urls": [url]})
            assert [image["name"] for image in alone.json()["images"]] == [url]
            broken = await client.post("/v1/classify", data={"urls": [url.replace("a.png", "page")]})
            assert broken.json()["error"]["code"] == "unreadable_image"
            many = await client.post("/v1/classify", **upload(picture(), picture(), urls=[url]))
            assert many.json()["error"]["code"] == "too_many_images"

    async def forbidden(client: httpx.AsyncClient, _: FastAPI) -> None:
        response = await client.post("/v1/classify", data={"urls": ["http://pictures.test/"]})
        assert (response.status_code, response.json()["error"]["code"]) == (403, "urls_are_off")

    serve({"probe": tmp_path / "probe"}, allowed, Limits(images=2), fetcher=fetcher(here))
    serve({"probe": tmp_path / "probe"}, forbidden)


def test_others_are_answered_while_an_address_dawdles(tmp_path: Path) -> None:
    """Rows are taken on when the pictures are there; what could never be taken on is not fetched."""
    fitted(tiny_vit()).save_pretrained(tmp_path / "paper")
    asked, answer = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await answer.wait()
        writer.write(reply(picture(1)))
        await writer.drain()

    async def scenario(client: httpx.AsyncClient, _: FastAPI) -> None:
        async with listening(slow) as port:
            data = {"urls": [f"http://pictures.test:{port}/"], "policy": "multi", "rounds": "4"}
            waiting = asyncio.create_task(client.post("/v1/classify", data=data))
            await asked.wait()
            assert (await client.post("/v1/classify", **upload(picture(2)))).status_code == 200
            asked.clear()
            too_many = await client.post("/v1/classify", data=data | {"rounds": "5"})
            assert too_many.json()["error"]["code"] == "too_many_rows" and not asked.is_set()
            answer.set()
            assert (await waiting).status_code == 200

    serve({"paper": tmp_path / "paper"}, scenario, Limits(queue=4), fetcher=fetcher(here))
