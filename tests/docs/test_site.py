"""The site of docs/ (`make docs`): every page is on it, and no link of it leads nowhere."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def pages_of(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in pages_of(entry)]


def test_every_page_is_in_the_navigation_once() -> None:
    settings = tomllib.loads((ROOT / "zensical.toml").read_text())
    named = pages_of(settings["project"]["nav"])
    assert sorted(named) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def test_every_room_of_the_package_is_in_the_reference() -> None:
    named = {name for page in (DOCS / "api").glob("*.md") for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)}
    for name in named:
        place = ROOT / name.replace(".", "/")
        assert place.with_suffix(".py").exists() or (place / "__init__.py").exists(), f"there is no {name}"
    rooms = {path.parent.name for path in (ROOT / "rlhf_loop").glob("*/__init__.py")}
    assert {f"rlhf_loop.{room}" for room in rooms - {"cli", "data"}} <= named


class Links(HTMLParser):
    """What a page refers to, and the places in it that can be referred to."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.places: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("href", "src") and value:
                self.targets.add(value)
            elif name in ("id", "name") and value:
                self.places.add(value)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    pytest.importorskip("zensical", reason="no zensical: pip install 'rlhf-loop[docs]'")
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    (tmp_path / "rlhf_loop").symlink_to(ROOT / "rlhf_loop")
    built = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--clean"],
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    site = tmp_path / "build" / "docs"
    read: dict[Path, Links] = {}
    for page in site.rglob("*.html"):
        read[page] = Links()
        read[page].feed(page.read_text())
    assert len(read) > 25
    for page, links in read.items():
        if page.name == "404.html":  # shown in the place of any page, from the root of a server
            continue
        for target in links.targets:
            path, place = urldefrag(target)
            if re.match(r"[a-z]+:", path):
                assert path.startswith("https://"), f"{page.name}: {target}"
                continue
            led_to = (page.parent / unquote(path)).resolve() if path else page
            assert led_to.exists(), f"{page.relative_to(site)} leads to {target}"
            if place and led_to.suffix == ".html" and place != "__skip":
                assert unquote(place) in read[led_to].places, f"{page.relative_to(site)} leads to {target}"
    found = json.loads((site / "search.json").read_text())
    assert "PPOTrainer" in json.dumps(found)
    assert "all of them, each round" in (site / "api" / "recipe.html").read_text(), "settings with their comments"
