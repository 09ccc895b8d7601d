"""The pictures of the page in docs/pictures: `python docs/pictures/take.py` (needs the extra `dev` and a Chromium).

Two tasks of the packaged suite are drawn and fitted briefly, a server is started, and a browser is led over its page.
A folder as an argument keeps what was fitted, for the next time.
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

import httpx
from PIL import Image
from playwright.sync_api import Page, ViewportSize, sync_playwright

from viapt.data.rendered import render
from viapt.runs import Settings, run

HERE = Path(__file__).parent
SIZE: ViewportSize = {"width": 1180, "height": 760}
METHODS = {"elevation": "viapt", "azimuth": "linear"}  # both are seen in one picture
LABELS = {  # coarser than the suite's: a short fit is enough
    "elevation": ["low"] * 3 + ["halfway"] * 3 + ["high"] * 3,
    "azimuth": ["towards us"] * 3 + ["right"] * 4 + ["away"] * 5 + ["left"] * 4 + ["towards us"] * 2,
}
TRAIN, EPOCHS, LESSON, PATIENCE = 360, 8, 10, 1800


def photos(name: str, folder: Path, start: int, stop: int) -> list[Path]:
    """Pictures of a task, a folder for each class."""
    images, labels = render(name, start, stop, 0)
    found = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True), start):
        path = folder / LABELS[name][label] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        found.append(path)
    return found


def fit(folder: Path) -> None:
    """Both tasks, but for those that are there."""
    for name, method in METHODS.items():
        if (folder / "adapters" / name).exists():
            continue
        photos(name, folder / "data" / name, 0, TRAIN)
        asked = Settings(
            "packaged:vits14",
            image_size=98,
            method=method,
            epochs=EPOCHS,
            batch_size=16,
            augmentation="none",
            test_fraction=0,
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
    some = photos("elevation", folder / "new", 1000, 1003)
    page.get_by_label("Choose pictures").set_input_files(some)
    page.get_by_label("several samples").check()
    page.get_by_role("button", name="Classify", exact=True).click()
    page.get_by_role("group", name="elevation about").first.wait_for()
    take(page, "page-classify")
    page.get_by_role("button", name="Attention of elevation").first.click()
    page.get_by_role("dialog", name="elevation").wait_for()
    take(page, "page-attention", SIZE["height"])
    page.keyboard.press("Escape")
    page.get_by_role("tab", name="Compare").click()
    take(page, "page-compare")
    page.get_by_role("tab", name="Teach").click()
    teach(page, folder)


def teach(page: Page, folder: Path) -> None:
    """Seen from the side or from above, from sixteen pictures of each."""
    photos("elevation", folder / "lesson", 2000, 2060)
    page.get_by_label("Name of the new task").fill("side or above")
    for number, (label, kind) in enumerate((("side", "low"), ("above", "high")), start=1):
        page.get_by_label(f"Name of class {number}").fill(label)
        page.get_by_label(f"Name of class {number}").press("Tab")
        page.get_by_label(f"Photos of {label}").first.set_input_files(sorted((folder / "lesson" / kind).iterdir())[:16])
    page.get_by_label("Epochs").fill(str(LESSON))
    page.get_by_role("button", name="Teach", exact=True).click()
    page.get_by_text("Done: it is loaded").wait_for()
    take(page, "page-teach")


def take(page: Page, name: str, height: int | None = None) -> None:
    """One picture, as high as the page or as this, and in few colours: small."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(500)
    path = HERE / f"{name}.png"
    high = height or page.evaluate("document.body.offsetHeight")
    page.screenshot(path=path, full_page=True, clip={"x": 0, "y": 0, "width": SIZE["width"], "height": high})
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    with TemporaryDirectory() as scratch:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch))
