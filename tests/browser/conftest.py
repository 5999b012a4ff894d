"""A real browser (Debian's Chromium, driven by Playwright) and a real server on loopback."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from rlhf_loop.feedback.store.store import Store
from rlhf_loop.recipe import Recipe
from rlhf_loop.server.app import create_app
from rlhf_loop.server.service import Service

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; the tests are skipped where it is not installed. Its driver holds an event loop in this thread, so it
    is ended before tests that need one of their own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'rlhf-loop[dev]'")
    if CHROMIUM is None:
        pytest.skip("no Chromium to drive: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "feedback.db") as opened:
        yield opened


@pytest.fixture
def service(store: Store) -> Service:
    """A service of a recipe with a guideline, open to whoever is on this machine."""
    recipe = Recipe.load(ROOT / "recipes" / "smoke.yaml")
    recipe.annotation.guideline = "Prefer the answer that is **brief** and correct."
    return Service(store=store, recipe=recipe, open_access=True)


@pytest.fixture
def address(service: Service) -> Iterator[str]:
    """The service, listening on a free port of this machine."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(service), log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


class Sitting:
    """A page and what went wrong on it."""

    def __init__(self, browser: Any, address: str, width: int, height: int, **options: Any):
        self.context = browser.new_context(viewport={"width": width, "height": height}, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)  # ends a wait for what never comes; says nothing of speed
        self.wrong: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on(
            "console", lambda said: self.wrong.append(said.text) if said.type in ("error", "warning") else None
        )
        self.page.on("dialog", lambda dialog: (self.wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.address = address

    def open(self, path: str = "/annotate") -> Any:
        """Goes to a page; a card or the empty page is there afterwards."""
        self.page.goto(self.address + path)
        if path == "/annotate":
            self.page.wait_for_selector("#card:not([hidden]), #empty:not([hidden])")
        return self.page

    def card(self) -> str:
        """The prompt of the card that is shown."""
        return str(self.page.inner_text("#conversation"))

    def saved(self) -> None:
        """Waits until the last answer is stored and the next card is there."""
        self.page.wait_for_selector("#status:has-text('Saved'), #status:has-text('Skipped')")

    def check(self) -> None:
        """Nothing went wrong, nothing was loaded from elsewhere, and nothing is wider than the page."""
        assert self.wrong == []
        assert all(url.startswith(self.address) for url in self.requests), self.requests
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.fixture
def sitting(browser: Any, address: str) -> Iterator[Any]:
    """Makes sittings; each is checked at the end."""
    made: list[Sitting] = []

    def make(width: int = 1280, height: int = 860, **options: Any) -> Sitting:
        made.append(Sitting(browser, address, width, height, **options))
        return made[-1]

    yield make
    for one in made:
        one.check()
        one.context.close()
