"""The page at `/`: files of this package, which ask the same API as everybody else, and nobody beside it."""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI, Response

from viapt.serve.problems import Problem

FOLDER, START = "page", "index.html"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """The routes. The files hold nothing that is anybody's: they are read without a token, and ask for it."""
    known = {
        file.name: (file.read_bytes(), TYPES[f".{file.name.rpartition('.')[2]}"])
        for file in (files("viapt.serve") / FOLDER).iterdir()
    }

    @app.get("/", include_in_schema=False)
    async def start() -> Response:
        return await part(START)

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        if name not in known:
            raise Problem(404, "http_404", f"The page has no part {name!r}")
        content, kind = known[name]
        return Response(content, media_type=f"{kind}; charset=utf-8", headers=HEADERS)


def is_page(path: str) -> bool:
    """Whether this is a part of the page, there or not."""
    return path == "/" or path.startswith("/page/")
