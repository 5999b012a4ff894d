"""The pictures of the README: a run's report and its annotation page in Chromium, light and dark.

    python benchmarks/pictures.py [RUN]      # RUN: by default runs/quickstart, which `make quickstart` makes

Writes PNG files of at most 200 KB to docs/pictures. The run is only read: the page is served from a copy of its store.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image
from playwright.sync_api import sync_playwright

from rlhf_loop.feedback.store.store import Store
from rlhf_loop.recipe import Recipe
from rlhf_loop.server.app import create_app
from rlhf_loop.server.pages.annotation import prepare
from rlhf_loop.server.service import Service

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
WIDTH, HEIGHT = 1120, 960  # of the window; two fit beside each other
PIXELS = 1280  # of a picture's width
MOST_BYTES = 200_000
ANSWERS = ".answer .text.markdown"
FEWEST_WORDS = 8
CRITIQUE = "One short sentence with the answer first."


def main() -> None:
    """Takes the four pictures."""
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart").resolve()
    if not (run / "report.html").exists():
        sys.exit(f"no report in {run}: `make quickstart` makes a run, and `rlhf-loop report {run}` its report")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no Chromium to take pictures with: apt-get install chromium")
    with annotation_page(run) as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            options: Any = {"viewport": {"width": WIDTH, "height": HEIGHT}, "device_scale_factor": PIXELS / WIDTH}
            page = browser.new_context(color_scheme=scheme, reduced_motion="reduce", **options).new_page()
            page.goto((run / "report.html").as_uri())
            keep(page.screenshot(), f"report-{scheme}")
            page.goto(f"{address}/annotate")
            judge(page)
            page.wait_for_timeout(500)  # colours change slowly
            keep(page.screenshot(), f"annotate-{scheme}")
        browser.close()


def judge(page: Any) -> None:
    """Prefers the shorter answer of the first card whose answers are sentences, and says why the other is worse."""
    while True:
        page.wait_for_selector("#card:not([hidden])")
        words = [len(text.split()) for text in page.locator(ANSWERS).all_inner_texts()]
        if min(words) >= FEWEST_WORDS:
            break
        before = page.inner_text("#conversation")
        page.click("#skip")
        page.wait_for_function("before => document.querySelector('#conversation').innerText !== before", arg=before)
    page.reload()  # without what the page says of a skip
    page.wait_for_selector("#card:not([hidden])")
    shorter = words.index(min(words))
    page.keyboard.press("24"[shorter])
    page.keyboard.press("ba"[shorter])  # the critique of the other one
    page.keyboard.type(CRITIQUE)


@contextlib.contextmanager
def annotation_page(run: Path) -> Iterator[str]:
    """The service of a run, on a copy of its store."""
    recipe = Recipe.load(run / "recipe.yaml")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "feedback.db"
        copy.touch(mode=0o600)
        with contextlib.closing(sqlite3.connect(run / "feedback.db")) as source:
            with contextlib.closing(sqlite3.connect(copy)) as target:
                source.backup(target)
        with Store.open(copy) as store:
            listener = socket.create_server(("127.0.0.1", 0))
            service = Service(store=store, recipe=recipe, open_access=True)
            prepare(service)  # cards to judge, where none wait
            settings: Any = {"log_level": "warning", "timeout_graceful_shutdown": 1}
            server = uvicorn.Server(uvicorn.Config(create_app(service), **settings))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
            thread.start()
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            server.should_exit = True
            thread.join()


def keep(png: bytes, name: str) -> None:
    """Writes a picture with a palette, which a page of flat colours needs no more than."""
    image = Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    path = PICTURES / f"{name}.png"
    image.save(path, optimize=True)
    print(f"{path.relative_to(Path.cwd())}  {path.stat().st_size / 1000:.0f} kB")
    if path.stat().st_size > MOST_BYTES:
        sys.exit(f"{path} is larger than {MOST_BYTES / 1000:.0f} kB: take a smaller part of the page")


if __name__ == "__main__":
    main()
