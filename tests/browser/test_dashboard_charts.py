"""The dashboard's charts, in a real browser."""

from __future__ import annotations

from typing import Any

import pytest
from samples.annotation import fill_queue

from rlhf_loop.feedback.store.store import Store

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_have_the_colours_of_the_page_and_nothing_that_its_policy_forbids(
    sitting: Any, store: Store, scheme: str
) -> None:
    """What a content security policy forbids is an error on the console, for which each sitting is checked."""
    fill_queue(store, 2)
    one = sitting(color_scheme=scheme)
    page = one.open()
    page.keyboard.press("1")
    page.click("#save")
    one.saved()
    one.open("/")
    assert page.locator("figure svg").count() == 2
    colour_of = "name => getComputedStyle(document.documentElement).getPropertyValue(name)"
    page.evaluate("() => { document.body.append(document.createElement('output')) }")
    painted = """name => {
        const one = document.querySelector("output");
        one.style.color = `var(${name})`;
        return getComputedStyle(one).color;
    }"""
    fills = page.eval_on_selector_all("figure svg [id*=bar] path", "all => all.map(one => getComputedStyle(one).fill)")
    assert len(fills) == 24 + 14
    assert set(fills) == {page.evaluate(painted, "--blue")}
    words = page.eval_on_selector_all("figure svg text", "all => all.map(one => getComputedStyle(one).fill)")
    assert set(words) == {page.evaluate(painted, "--muted")}
    fonts = page.eval_on_selector_all("figure svg text", "all => all.map(one => getComputedStyle(one).fontFamily)")
    assert set(fonts) == {page.evaluate("getComputedStyle(document.body).fontFamily")}
    assert page.evaluate(colour_of, "--page") == {"light": "#f5f6f8", "dark": "#10151b"}[scheme]
