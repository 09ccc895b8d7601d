"""What Ray's HTTP proxies do for us: whoever asked a replica that died is told to come back, in our form of errors.

A proxy hands a request to one replica and cannot give it to another, since its body has passed by. Where the replica
dies before it has answered, the proxy sends nothing, which its server makes a 500 without a word. Where it dies after
the last byte of its answer, but before it has said that this was the last, the server would close the connection, on
which the client, who has counted, may have sent the next request.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from viapt.serve.problems import Problem

CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"  # Ray's own variable: what it calls for its middleware
BUSY = Problem(503, "busy", "All replicas have as many requests as they take on", retry_after=1)
DIED = Problem(503, "replica_died", "The replica that had the request died", retry_after=1)
AWAY = Problem(503, "draining", "The server is starting or shutting down", retry_after=5)
RAYS_OWN = {404: AWAY, 429: BUSY, 503: BUSY}  # statuses in which a proxy itself answers, in plain text


class Retriable:
    """ASGI middleware of a proxy."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/-/"):  # for whoever watches the proxy
            await self.app(scope, receive, send)
            return
        problem: Problem | None = DIED
        left: int | None = None  # bytes of an answer that goes on, where it has said how many it has

        async def noted(message: Message) -> None:
            nonlocal problem, left
            if message["type"] == "http.response.start":
                headers = {bytes(key).lower(): bytes(value) for key, value in message["headers"]}
                ours = headers.get(b"content-type") == b"application/json"  # as all errors of the application
                problem = None if ours else RAYS_OWN.get(message["status"])
                left = int(headers[b"content-length"]) if b"content-length" in headers else None
            elif left is not None:
                left = left - len(message.get("body", b"")) if message.get("more_body") else None
            if problem is None:
                await send(message)

        await self.app(scope, receive, noted)
        if problem is not None:
            await problem.response()(scope, receive, send)
        elif left == 0:
            await send({"type": "http.response.body"})


def retriable() -> list[Middleware]:
    """What Ray asks for."""
    return [Middleware(Retriable)]
