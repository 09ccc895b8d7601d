"""What the documentation site adds to its theme works in a real browser."""

from __future__ import annotations

from pathlib import Path

from browser_cases import chromium, needs_browser
from serve_cases import PATIENCE

ROOT = Path(__file__).parents[1]
PAGE = """<!doctype html><body><script src="iframe-worker.js"></script><script>
const worker = new Worker(new URL("worker.js", location));
worker.addEventListener("message", (event) => { document.title += `${event.data};`; });
worker.postMessage("one");
worker.postMessage("two");
</script>"""
WORKER = """const imported = importScripts("first.js", "second.js");
addEventListener("message", async (event) => {
  await imported;
  postMessage(event.data + words.join());
});"""


@needs_browser
def test_a_page_from_the_disk_has_workers(tmp_path: Path) -> None:
    (tmp_path / "iframe-worker.js").write_text((ROOT / "docs/assets/iframe-worker.js").read_text())
    (tmp_path / "index.html").write_text(PAGE)
    (tmp_path / "worker.js").write_text(WORKER)
    (tmp_path / "first.js").write_text("var words = [];")
    (tmp_path / "second.js").write_text("words.push(' and');")
    with chromium() as browser:
        page = browser.new_page()
        page.goto((tmp_path / "index.html").as_uri())
        page.wait_for_function("document.title.includes('two')", timeout=1000 * PATIENCE)
        assert page.title() == "one and;two and;"
