"""The pictures of the page in docs/pictures: `python docs/pictures/take.py` (needs the extra `dev` and a Chromium).

Two tasks of the packaged suite are drawn and fitted briefly, a server is started, and a browser is led over its page.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from PIL import Image
from playwright.sync_api import Page, ViewportSize, sync_playwright

from viapt.data.rendered import TASKS, render
from viapt.runs import Settings, run

HERE = Path(__file__).parent
SIZE: ViewportSize = {"width": 1180, "height": 760}
TASK_NAMES = {"count": "viapt", "distance": "vpt-deep"}
TRAIN, EPOCHS, PATIENCE = 640, 8, 600


def photos(name: str, folder: Path, start: int, stop: int) -> list[Path]:
    """Pictures of a task, a folder for each class."""
    images, labels = render(name, start, stop, 0)
    found = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True), start):
        path = folder / TASKS[name].classes[label] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        found.append(path)
    return found


def fit(folder: Path) -> None:
    """Both tasks."""
    for name, method in TASK_NAMES.items():
        photos(name, folder / "data" / name, 0, TRAIN)
        asked = Settings(
            "packaged:vits14", image_size=98, method=method, epochs=EPOCHS, augmentation="none", test_fraction=0
        )
        run(folder / "data" / name, folder / "adapters" / name, asked)


def main(folder: Path) -> None:
    """Fit, serve, take."""
    fit(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "viapt", "serve", str(folder / "adapters"), "--port", str(port)]
    server = subprocess.Popen([*command, "--teach", str(folder / "taught")])
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
        while True:
            try:
                httpx.get(f"{url}/readyz", timeout=60).raise_for_status()
                break
            except httpx.HTTPError:
                assert server.poll() is None and time.monotonic() < deadline, "the server does not start"
                time.sleep(0.2)
        with sync_playwright() as started:
            arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
            path = shutil.which("chromium") or shutil.which("google-chrome")
            page = started.chromium.launch(executable_path=path, args=arguments).new_page(viewport=SIZE)
            page.set_default_timeout(1000 * PATIENCE)
            page.goto(url)
            lead(page, folder)
    finally:
        server.terminate()
        server.wait()


def lead(page: Page, folder: Path) -> None:
    """Over the page, and take what is seen."""
    some = photos("count", folder / "new", 1000, 1003)
    page.get_by_label("Choose pictures").set_input_files(some)
    page.get_by_label("several samples").check()
    page.get_by_role("button", name="Classify", exact=True).click()
    page.get_by_role("group", name="count about").first.wait_for()
    take(page, "page-classify")
    page.get_by_role("button", name="Attention of count").first.click()
    page.get_by_role("dialog", name="count").wait_for()
    take(page, "page-attention")
    page.keyboard.press("Escape")
    page.get_by_role("tab", name="Compare").click()
    take(page, "page-compare")
    page.get_by_role("tab", name="Teach").click()
    teach(page, folder)


def teach(page: Page, folder: Path) -> None:
    """Few objects or many, from twenty pictures of each."""
    photos("count", folder / "lesson", 2000, 2160)
    classes = TASKS["count"].classes
    page.get_by_label("Name of the new task").fill("few or many")
    for number, (label, kind) in enumerate((("few", classes[0]), ("many", classes[-1])), start=1):
        page.get_by_label(f"Name of class {number}").fill(label)
        page.get_by_label(f"Name of class {number}").press("Tab")
        page.get_by_label(f"Photos of {label}").first.set_input_files(sorted((folder / "lesson" / kind).iterdir())[:20])
    page.get_by_role("button", name="Teach", exact=True).click()
    page.get_by_text("Done: it is loaded").wait_for()
    page.locator("#progress").scroll_into_view_if_needed()
    take(page, "page-teach", full_page=True)


def take(page: Page, name: str, **options: Any) -> None:
    """One picture, in few colours: small."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(500)
    path = HERE / f"{name}.png"
    page.screenshot(path=path, **options)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    with TemporaryDirectory() as scratch:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch))
