"""Errors as a client sees them: an HTTP status and one JSON object, whatever went wrong."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from viapt.errors import ViaptError

log = logging.getLogger("viapt.serve")
LESS = "send fewer images at a time, choose tasks, or ask for fewer rounds; or a server with a longer --timeout"


class Problem(HTTPException):
    """What is wrong with a request, or with the moment.

    Args:
        status: of HTTP.
        code: a word for programs.
        found, expected, remedy: as in `viapt.errors`.
        retry_after: seconds after which the same request may succeed.
    """

    def __init__(
        self,
        status: int,
        code: str,
        found: str,
        *,
        expected: str = "",
        remedy: str = "",
        retry_after: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        headers = dict(headers or {})
        if retry_after is not None:
            headers["Retry-After"] = str(retry_after)
        super().__init__(status, found, headers)
        self.code, self.expected, self.remedy = code, expected, remedy

    def response(self) -> JSONResponse:
        """What is sent."""
        return answer(self.status_code, self.code, self.detail, self.expected, self.remedy, self.headers)


def from_error(status: int, code: str, error: ViaptError) -> Problem:
    """An error of viapt's."""
    return Problem(status, code, error.found, expected=error.expected, remedy=error.remedy)


def answer(
    status: int, code: str, message: str, expected: str = "", remedy: str = "", headers: Any = None
) -> JSONResponse:
    """The one form that errors have."""
    error = {"code": code, "message": message, "expected": expected or None, "remedy": remedy or None}
    return JSONResponse({"error": error}, status, headers)


def install(app: FastAPI) -> None:
    """Have every error of an application take that form."""

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error, Problem):
            return error.response()
        return answer(error.status_code, f"http_{error.status_code}", str(error.detail), headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        places = [
            f"{'.'.join(str(part) for part in one['loc'] if part != 'body') or 'the body'}: {one['msg']}"
            for one in error.errors()
        ]
        return answer(422, "invalid_request", "; ".join(places), "a request as /openapi.json describes it")

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return answer(500, "internal", "The server failed; its log says why")
