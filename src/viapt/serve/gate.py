"""What a request meets before anybody reads it: the token, the number of others, the size and the speed of its body."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from viapt.serve.access import is_loopback
from viapt.serve.limits import Limits
from viapt.serve.metrics import Metrics
from viapt.serve.page import is_page
from viapt.serve.problems import Problem

OPEN = ("/healthz", "/readyz")  # for whoever starts and watches the process: they tell nothing else
WATCHING = "/metrics"  # not one of the requests that are counted, nor are the files of the page: they wait for nobody
LINGER = 5.0  # seconds that the rest of a body may take after the answer


class Gate:
    """ASGI middleware, the outermost one.

    Args:
        app: what it guards.
        token: that every request but those of `OPEN` and of the page must carry; None: none is needed.
        local: whether every request must name the server by a loopback name.
    """

    def __init__(self, app: ASGIApp, *, limits: Limits, metrics: Metrics, token: str | None, local: bool) -> None:
        self.app, self.limits, self.metrics, self.token, self.local = app, limits, metrics, token, local
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 499  # what nginx calls a client that went away

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.guarded(scope, receive, noted)
        except Exception:
            status = 500
            raise
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.monotonic() - began)

    async def guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or say why not.

        An answer whose request has not been read to its end is sent at once, but the rest is let pass by before the
        connection may close: one that is closed on unread bytes is reset, and its client might never see the answer.
        """
        body = Body(receive, self.limits)

        async def unhurried(message: Message) -> None:
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if last and not body.complete:
                await send({**message, "more_body": True})
                await body.drain()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        if scope["path"] in OPEN:
            await self.app(scope, body, unhurried)
            return
        try:
            self.check(scope)
        except Problem as problem:
            response = problem.response()
            response.headers["Connection"] = "close"  # its body may take longer than anybody waits
            await response(scope, body, unhurried)
            return
        counted = counts(scope)
        self.inside += counted
        try:
            await self.app(scope, body, unhurried)
        finally:
            self.inside -= counted

    def check(self, scope: Scope) -> None:
        """Refuse what can be refused by the headers alone.

        Raises:
            Problem: a request that another site had a browser send, a missing or wrong token, a body that says it is
                too large, too many requests at a time.
        """
        headers = dict(scope["headers"])
        check_origin(scope["method"], headers, self.local)
        if self.token is not None and not is_page(scope["path"]):
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self.token.encode()):
                raise Problem(
                    401,
                    "unauthorised",
                    "The token is wrong" if given else "There is no token",
                    expected="the header Authorization: Bearer TOKEN",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self.limits.request_bytes:
            raise too_large(self.limits)
        if self.inside >= self.limits.requests and counts(scope):
            raise Problem(
                503, "busy", f"{self.inside} requests are being answered", remedy="send it again later", retry_after=1
            )


def counts(scope: Scope) -> bool:
    """Whether this is one of the requests of which there may be so many at a time."""
    return scope["path"] != WATCHING and not is_page(scope["path"])


def check_origin(method: str, headers: dict[bytes, bytes], local: bool) -> None:
    """Refuse what a page of another site asks by way of somebody's browser, beyond looking.

    Raises:
        Problem: the page is of another site, or the name of this server is one that another site made up.
    """
    host, origin, site = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin", b"sec-fetch-site"))
    foreign = site not in ("same-origin", "none") if site else bool(origin) and origin.partition("://")[2] != host
    if foreign and method not in ("GET", "HEAD"):
        raise Problem(403, "foreign_origin", "A page of another site asks", expected="the page of this server itself")
    if local and not is_loopback(name_in(host)):
        raise Problem(403, "foreign_name", f"The server is called {host!r}", expected="localhost or 127.0.0.1")


def name_in(host: str) -> str:
    """Of a Host header, without the port; an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


class Body:
    """The messages of a request's body, as long as they are not too many and not too late."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self.receive, self.limits = receive, limits
        self.bytes, self.complete = 0, False
        self.deadline = time.monotonic() + limits.upload

    async def __call__(self) -> Any:
        if self.complete:
            return await self.receive()  # waits for the client to go away
        try:
            # Not `wait_for`, which may swallow a cancellation in Python 3.11, and so never end.
            async with asyncio.timeout(self.deadline - time.monotonic()):
                message = await self.receive()
        except TimeoutError:
            raise Problem(
                408, "slow_upload", f"The body did not arrive within {self.limits.upload:g} s", headers=CLOSE
            ) from None
        self.bytes += len(message.get("body", b""))
        if self.bytes > self.limits.request_bytes:
            raise too_large(self.limits)
        self.complete = is_last(message)
        return message

    async def drain(self) -> None:
        """Let the rest pass by, for `LINGER` seconds at most; nothing of it is kept."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while not self.complete:
                    self.complete = is_last(await self.receive())
                    await asyncio.sleep(0)  # or what is always there would never be too late


def is_last(message: Message) -> bool:
    """Whether no more of a body comes after this."""
    return message["type"] == "http.disconnect" or not message.get("more_body", False)


CLOSE = {"Connection": "close"}


def too_large(limits: Limits) -> Problem:
    """A body beyond the bound."""
    return Problem(
        413,
        "request_too_large",
        "The body of the request is too large",
        expected=f"at most {limits.request_bytes:,} bytes",
        remedy="send fewer or smaller images at a time",
        headers=CLOSE,
    )
