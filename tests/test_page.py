"""The page in a real browser, with a real server: classify, compare, look, teach; by keyboard; axe finds nothing."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from browser_cases import chromium, needs_browser
from cli_cases import write_photos
from serve_cases import PATIENCE, picture, serve, served, upload, write_adapters
from viapt.artifact import load
from viapt.inference import predict
from viapt.serve.limits import Limits

TOKEN = "a-token-of-some-length"
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 40)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters of one tiny backbone, and photos of two classes."""
    folder = tmp_path_factory.mktemp("page")
    write_adapters(folder)
    write_photos(folder / "photos", COLOURS, 5)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """Two pictures for two tasks and four rounds are more than it takes at a time, and one picture is, too."""
    bounds = "--queue", "4", "--max-rounds", "4", "--max-megapixels", "1"
    options = "--teach", str(folder / "taught"), *bounds
    with served(folder / "adapters", folder / "log", *options, VIAPT_TOKEN=TOKEN) as (url, _):
        yield url


@pytest.fixture
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def page(browser: Any, server: str) -> Iterator[Any]:
    """The page, past the question for the token; whatever the browser complains of fails the test."""
    context = browser.new_context(accept_downloads=True)
    context.set_default_timeout(1000 * PATIENCE)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith((server, "blob:", "data:")) or complaints.append(asked.url))
    page.goto(server)
    page.get_by_label("Token", exact=True).fill(TOKEN)
    page.get_by_role("button", name="Go on").click()
    page.locator("html[data-ready]").wait_for()
    yield page
    context.close()
    # A browser also complains of refusals, which the page itself tells: the first question has no token yet.
    assert [text for text in complaints if "with a status of 4" not in text] == []


def files(folder: Path, label: str) -> list[Path]:
    return sorted((folder / "photos" / label).iterdir())


def focused(page: Any) -> str:
    """What has the focus, by its name or its id."""
    return page.evaluate("document.activeElement.ariaLabel || document.activeElement.id")


def accessible(page: Any) -> None:
    """axe-core, by its rules for WCAG 2.2 at level AA, contrast included, in both colour schemes."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = axe.run(page, options={"resultTypes": ["violations"]}).response["violations"]
        assert not [(one["id"], [node["html"] for node in one["nodes"]]) for one in found], scheme
    page.emulate_media(color_scheme="light")


@needs_browser
def test_pictures_are_classified_compared_and_looked_at(page: Any, folder: Path, server: str) -> None:
    photo = files(folder, "red")[0]
    page.get_by_label("Choose pictures").set_input_files([photo, files(folder, "green")[0]])
    page.get_by_label("several samples").check()
    page.get_by_label("Rounds").fill("4")
    page.get_by_role("button", name="Classify", exact=True).click()
    answer = page.get_by_role("group", name="paper about 00.png").first
    answer.wait_for()
    model = load(folder / "adapters" / "paper")
    expected = predict(model, [photo], "multi", 4, 0)
    assert focused(page) == "ask"
    assert answer.locator(".verdict").inner_text() == expected.labels[0]
    best = float(expected.probabilities[0].max())
    shown = re.match(r"([\d.]+) % ± ([\d.]+)", answer.locator("td").nth(1).inner_text())
    assert shown and float(shown[1]) == pytest.approx(100 * best, abs=0.06)
    assert float(shown[2]) == pytest.approx(
        100 * float(expected.spread[0][expected.probabilities[0].argmax()]), abs=0.06
    )
    accessible(page)

    page.get_by_role("button", name="Attention of paper over 00.png").first.click()
    dialog = page.get_by_role("dialog", name="paper:")
    dialog.wait_for()
    assert dialog.get_by_label("Who looks").locator("option").all_inner_texts()[0] == "The class token"
    words = dialog.locator("#map-words")
    before, drawn = words.inner_text(), dialog.locator("canvas").screenshot()
    dialog.get_by_label("Layer", exact=True).press("Home")
    assert words.inner_text() != before and dialog.locator("canvas").screenshot() != drawn
    accessible(page)
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert focused(page) == "Attention of paper over 00.png"

    page.get_by_role("tab", name="Compare").click()
    rows = page.get_by_role("table").locator("tbody tr")
    assert rows.count() == 2 and page.get_by_role("columnheader", name="deep").is_visible()
    assert expected.labels[0] in rows.first.locator("td").first.inner_text()
    accessible(page)


@needs_browser
def test_a_task_is_taught_by_keyboard_then_used_and_downloaded(page: Any, folder: Path) -> None:
    page.get_by_role("tab", name="Classify").focus()
    page.keyboard.press("ArrowLeft")
    assert page.get_by_role("tab", name="Teach").get_attribute("aria-selected") == "true"
    page.keyboard.press("Tab")
    page.keyboard.type("colours")
    page.get_by_label("Method").select_option("linear")
    page.get_by_label("Epochs").fill("3")
    accessible(page)
    for number, label in enumerate(COLOURS, start=1):
        page.get_by_label(f"Name of class {number}").fill(label)
        page.get_by_label(f"Name of class {number}").press("Tab")
        page.get_by_label(f"Photos of {label}").first.set_input_files(files(folder, label))
    page.get_by_label("Move 04.png to").last.select_option("red")
    assert page.get_by_role("listitem").filter(has=page.get_by_role("img", name="04.png")).count() == 2
    assert page.get_by_text("6 photos").is_visible() and page.get_by_text("4 photos").is_visible()
    page.get_by_label("Move 04.png to").last.select_option("green")
    accessible(page)
    page.get_by_role("button", name="Teach", exact=True).press("Enter")
    page.get_by_text("Done: it is loaded").wait_for()
    assert page.get_by_role("img", name="Loss after epoch 3").is_visible()
    assert "held back" in (page.get_by_role("img", name="Accuracy after epoch 3").get_attribute("aria-label") or "")
    accessible(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the adapter").press("Enter")
    assert download.value.suggested_filename == "colours.zip"
    download.value.save_as(folder / "colours.zip")
    zipfile.ZipFile(folder / "colours.zip").extractall(folder / "downloaded")
    assert load(folder / "downloaded" / "colours").classes == ["green", "red"]
    page.get_by_role("button", name="Use it").press("Enter")
    page.get_by_label("Choose pictures").set_input_files(files(folder, "red")[0])
    page.get_by_role("button", name="Classify", exact=True).click()
    page.get_by_role("group", name="colours about 00.png").wait_for()
    assert page.get_by_role("group", name="paper about").count() == 0
    page.reload()
    page.get_by_role("tab", name="Teach").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download colours").press("Enter")
    assert download.value.suggested_filename == "colours.zip"
    accessible(page)


@needs_browser
def test_large_photos_are_made_small_and_a_fit_is_cancelled(page: Any, folder: Path, tmp_path: Path) -> None:
    """As small as they must be for the server to take as many as it teaches with."""
    coarse = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    large = Image.fromarray(coarse).resize((2400, 1600), Image.Resampling.BICUBIC)
    large.save(tmp_path / "large.jpg", quality=95)
    large.resize((500, 333)).save(tmp_path / "heavy.png")
    photos = [tmp_path / "large.jpg", tmp_path / "heavy.png"]
    limits = Limits()
    share = limits.request_bytes // limits.photos
    assert all(photo.stat().st_size > share for photo in photos)
    page.get_by_role("tab", name="Teach").click()
    assert page.get_by_text("512 pixels").is_visible()
    page.get_by_label("Name of the new task").fill("cancelled")
    page.get_by_label("Epochs").fill("200")
    for number in (1, 2):
        page.get_by_label(f"Photos of class {number}").first.set_input_files(photos)
    with page.expect_request(lambda asked: asked.method == "POST" and asked.url.endswith("/v1/teachings")) as sent:
        page.get_by_role("button", name="Teach", exact=True).click()
    assert int(sent.value.all_headers()["content-length"]) < 4 * share

    page.route("**/v1/teachings/*", lambda route: route.fulfill(status=499), times=2)
    page.get_by_text("The server answers 499. It is asked again.").wait_for()
    page.get_by_text(re.compile("^(Getting ready|Learning)")).wait_for()
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_text("Cancelled: nothing was kept").wait_for()
    assert not page.get_by_role("button", name="Use it").is_visible() and focused(page) == "begin"
    assert not (folder / "taught" / "cancelled").exists()


def drop(page: Any, selector: str, names: list[str]) -> None:
    """Files of these names, each a picture of its own, dropped on an element."""
    page.evaluate(
        """async ([selector, names]) => {
          const dropped = new DataTransfer();
          for (const [k, name] of names.entries()) {
            const canvas = new OffscreenCanvas(40, 40);
            canvas.getContext("2d").fillStyle = `rgb(${90 * k} 80 80)`;
            canvas.getContext("2d").fillRect(0, 0, 40, 40);
            dropped.items.add(new File([await canvas.convertToBlob()], name, { type: "image/png" }));
          }
          const event = new DragEvent("drop", { dataTransfer: dropped, bubbles: true, cancelable: true });
          document.querySelector(selector).dispatchEvent(event);
          if (!event.defaultPrevented) throw new Error("the browser would open the file");
        }""",
        [selector, names],
    )


@needs_browser
def test_files_are_dropped_and_photos_dragged_between_boxes(page: Any) -> None:
    drop(page, "#drop", ["one.png", "two.png"])
    page.get_by_role("button", name="Classify", exact=True).click()
    for name in ("one.png", "two.png"):
        page.get_by_role("group", name=f"paper about {name}").wait_for()
    page.get_by_role("tab", name="Teach").click()
    drop(page, ".box:nth-of-type(1)", ["a.png", "b.png"])
    boxes = page.locator(".box")
    assert [boxes.nth(k).get_by_role("img").count() for k in range(2)] == [2, 0]
    page.get_by_role("img", name="a.png").drag_to(boxes.nth(1))
    boxes.nth(1).get_by_role("img", name="a.png").wait_for()
    assert [boxes.nth(k).get_by_role("img").count() for k in range(2)] == [1, 1]
    page.get_by_role("img", name="b.png").drag_to(boxes.nth(0))  # where it is already
    assert [boxes.nth(k).get_by_role("img").count() for k in range(2)] == [1, 1]


@needs_browser
def test_one_bad_picture_leaves_the_others_their_answers(page: Any, folder: Path, tmp_path: Path) -> None:
    """It is named, says what is wrong with it in words for people, and can be taken away."""
    (tmp_path / "cut.png").write_bytes(picture()[:200])
    Image.fromarray(np.zeros((1100, 1000, 3), np.uint8)).save(tmp_path / "large.png")
    red, green = (files(folder, label)[0] for label in COLOURS)
    page.get_by_label("Choose pictures").set_input_files([red, tmp_path / "cut.png", tmp_path / "large.png", green])
    page.get_by_role("button", name="Classify", exact=True).click()
    alert = page.get_by_role("alert").filter(has_text="Not classified: cut.png.")
    alert.wait_for()
    assert page.get_by_role("group", name="paper about").count() == 3
    bad = page.get_by_role("listitem").filter(has_text="cut.png")
    assert "This picture is damaged or truncated. Save it" in bad.inner_text() and "array" not in bad.inner_text()
    accessible(page)
    page.get_by_role("button", name="Remove cut.png").press("Enter")
    assert bad.count() == 0 and focused(page) == "Remove large.png"
    page.get_by_role("button", name="Remove 00.png").last.press("Enter")
    assert focused(page) == "Remove large.png"
    assert page.get_by_role("group", name="paper about large.png, picture 2").is_visible()


@needs_browser
def test_a_request_that_takes_too_long_is_halved(page: Any, folder: Path) -> None:
    """Down to one picture; the next requests are small at once, and one run does not begin during another."""
    page.evaluate(
        """() => {
          const real = window.fetch;
          const error = { code: "timeout", message: "There was no answer", expected: null, remedy: null };
          window.sizes = [];
          window.fetch = (path, options) => {
            if (path !== "/v1/classify") return real(path, options);
            const size = options.body.getAll("images").length;
            const late = size > 1 || !window.sizes.includes(1);
            window.sizes.push(size);
            return late ? Promise.resolve(Response.json({ error }, { status: 504 })) : real(path, options);
          };
        }"""
    )
    for task in page.locator("[name=task]:not([value=paper])").all():
        task.uncheck()
    page.get_by_label("Choose pictures").set_input_files([*files(folder, "red"), files(folder, "green")[0]])
    page.get_by_role("button", name="Classify", exact=True).dblclick()
    page.get_by_role("alert").filter(has_text="Not classified: 00.png.").wait_for()
    assert page.evaluate("window.sizes") == [2, *[1] * 6]
    assert page.get_by_role("group", name="paper about").count() == 5
    assert page.get_by_text("The server takes too long over this picture").count() == 1


@needs_browser
def test_transparent_photos_lie_on_white(page: Any) -> None:
    """As for the server, which reads them itself when they are small enough."""
    pixel = page.evaluate(
        """async () => {
          const { shrunk } = await import("/page/parts.js");
          const canvas = new OffscreenCanvas(800, 400);
          canvas.getContext("2d").fillStyle = "rgb(255 0 0 / 50%)";
          canvas.getContext("2d").fillRect(400, 0, 400, 400);
          const file = await shrunk(new File([await canvas.convertToBlob()], "half.png"), 80, () => false);
          const bitmap = await createImageBitmap(file);
          const seen = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
          seen.drawImage(bitmap, 0, 0);
          return [[...seen.getImageData(10, 20, 1, 1).data], [...seen.getImageData(70, 20, 1, 1).data], bitmap.width];
        }"""
    )
    assert pixel == [[255] * 4, [pytest.approx(255, abs=3), *[pytest.approx(127, abs=4)] * 2, 255], 80]


@needs_browser
def test_what_is_wrong_with_a_lesson_is_said_on_the_page(page: Any, folder: Path) -> None:
    page.get_by_role("tab", name="Teach").click()
    page.get_by_label("Name of the new task").fill("half")
    page.get_by_label("Photos of class 1").first.set_input_files(files(folder, "red"))
    page.get_by_role("button", name="Teach", exact=True).click()
    page.get_by_role("alert").filter(has_text="'class 2' has no photos").wait_for()
    assert focused(page) == "begin"


@needs_browser
def test_rounds_are_offered_as_far_as_the_server_allows(page: Any, folder: Path) -> None:
    rounds = page.locator("#rounds")
    assert rounds.input_value() == "4" and rounds.is_disabled()
    page.get_by_label("Choose pictures").set_input_files(files(folder, "red")[0])
    page.get_by_role("button", name="Classify", exact=True).click()
    page.get_by_role("group", name="paper about 00.png").wait_for()
    page.get_by_label("several samples").check()
    assert rounds.is_visible() and rounds.is_enabled()

    def one_round(route: Any) -> None:
        told = route.fetch().json()
        told["limits"]["rounds"] = 1
        route.fulfill(json=told)

    page.route("**/v1/tasks", one_round)
    page.reload()
    page.locator("html[data-ready]").wait_for()
    assert page.get_by_label("their mean").is_hidden() and page.get_by_label("several samples").is_hidden()


@needs_browser
def test_a_wrong_token_is_asked_for_again(browser: Any, server: str) -> None:
    with browser.new_context() as context:
        context.set_default_timeout(1000 * PATIENCE)
        page = context.new_page()
        page.goto(server)
        page.get_by_label("Token", exact=True).fill("wrong")
        page.get_by_role("button", name="Go on").press("Enter")
        page.get_by_text("That token is wrong.").wait_for()
        accessible(page)
        page.get_by_label("Token", exact=True).fill(TOKEN)
        page.keyboard.press("Enter")
        page.get_by_text("tasks on local-dir:").wait_for()


def test_the_page_is_served_without_a_token_and_may_ask_nobody_else(folder: Path) -> None:
    adapters = {"deep": folder / "adapters" / "deep"}

    async def scenario(client: httpx.AsyncClient, _: FastAPI) -> None:
        start = await client.get("/")
        assert start.status_code == 200 and start.headers["content-type"].startswith("text/html")
        for part in re.findall(r'(?:src|href)="(/page/[^"]+)"', start.text):
            response = await client.get(part)
            assert response.status_code == 200 and response.headers["x-content-type-options"] == "nosniff"
            policy = response.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert not re.findall(r"<script(?! type=\"module\" src)|<style|\son\w+=|\sstyle=", start.text)
        for name in ("nothing.js", "..%2Fapp.py", "%2e%2e%2fapp.py"):
            assert (await client.get(f"/page/{name}")).status_code == 404
        assert (await client.get("/v1/tasks")).status_code == 401

    serve(adapters, scenario, backbone=f"local-dir:{folder / 'tiny'}", token=TOKEN)


def test_pages_of_other_sites_ask_in_vain(folder: Path) -> None:
    """Neither by what a browser says of where a request comes from, nor under a name that somebody made up."""
    adapters = {"deep": folder / "adapters" / "deep"}

    async def scenario(client: httpx.AsyncClient, _: FastAPI) -> None:
        for headers, status in (
            ({}, 200),
            ({"Origin": "http://127.0.0.1:8000"}, 200),
            ({"Origin": "https://front.test", "Sec-Fetch-Site": "same-origin"}, 200),
            ({"Origin": "http://evil.test"}, 403),
            ({"Origin": "null"}, 403),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
            ({"Sec-Fetch-Site": "same-site"}, 403),
        ):
            given = headers | {"Host": "127.0.0.1:8000"}
            assert (await client.post("/v1/classify", **upload(picture()), headers=given)).status_code == status, (
                headers
            )
        names = {
            "localhost": 200,
            "localhost:80": 200,
            "[::1]:80": 200,
            "evil.test:80": 403,
            "127.0.0.1.evil.test": 403,
            "": 403,
        }
        for name, status in names.items():
            assert (await client.get("/v1/tasks", headers={"Host": name})).status_code == status, name

    serve(adapters, scenario, backbone=f"local-dir:{folder / 'tiny'}", local=True)
