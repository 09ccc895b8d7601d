"""A real browser for tests, where there is one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from serve_cases import PATIENCE

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium: .ci/browser installs Debian's")


@contextmanager
def chromium() -> Iterator[Any]:
    """One for each test: while it is open, an event loop runs in this thread, and other tests want their own."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = started.chromium.launch(executable_path=PROGRAM, args=arguments, timeout=1000 * PATIENCE)
        yield opened
        opened.close()
