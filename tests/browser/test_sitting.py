"""Whole sittings on the annotation page, in a real browser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from samples.annotation import fill_queue, held

from rlhf_loop.feedback.store import tokens
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Completion, Critique, Edit, Preference, Prompt, Question
from rlhf_loop.server.service import Service

pytestmark = pytest.mark.browser

WIDE, NARROW = (1280, 860), (360, 740)


def verdicts(store: Store) -> list[str]:
    """What was said, in the order in which the answers were shown: first, second, tie, both_bad or skip."""
    said = []
    for record in store.feedback(kinds=["preference", "skip"]):
        if isinstance(record, Preference) and record.winner in ("a", "b"):
            said.append("first" if record.winner == record.shown_order[0] else "second")
        else:
            said.append(getattr(record, "winner", "skip"))
    return said


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_a_sitting_by_mouse(sitting: Any, store: Store, size: tuple[int, int]) -> None:
    fill_queue(store, 6)
    one = sitting(*size)
    page = one.open()
    for value in ("first:clearly", "second:slightly", "tie", "both_bad"):
        before = one.card()
        page.click(f"label:has(input[value='{value}'])")
        page.click("#save")
        page.wait_for_function("before => document.querySelector('#conversation').innerText !== before", arg=before)
    page.click("#skip")
    page.wait_for_selector("#status:has-text('Skipped')")
    page.click("label:has(input[value='first:slightly'])")
    page.click("#save")
    page.wait_for_selector("#empty:not([hidden])")
    assert verdicts(store) == ["first", "second", "tie", "both_bad", "skip", "first"]
    strengths = [record.strength for record in store.feedback(kinds=["preference"])]
    assert strengths == [1.0, 0.5, None, None, 0.5]
    assert "6 today · 1 waiting" in page.inner_text("#progress"), "the card that was skipped waits for somebody else"


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_a_sitting_by_keyboard_alone(sitting: Any, store: Store, size: tuple[int, int]) -> None:
    fill_queue(store, 5)
    one = sitting(*size)
    page = one.open()
    keys = page.keyboard
    assert page.evaluate("document.activeElement.id") == "card-title", "a screen reader begins at the card"
    keys.press("1")
    keys.press("b")  # the critique of answer B, where one can type at once
    keys.type("Too vague 12345; give the number u s.")
    keys.press("Control+Enter")
    one.saved()
    keys.press("5")
    keys.press("e")
    keys.press("Control+a")
    keys.type("It is 2.")
    keys.press("Escape")
    keys.press("Enter")
    page.wait_for_selector("#status:has-text('Saved')")
    page.wait_for_function("() => !document.querySelector('input[name=verdict]:checked')")
    page.focus("input[value='first:clearly']")  # arrows move through the scale, as in any group of radio buttons
    keys.press("Space")
    keys.press("ArrowRight")
    keys.press("ArrowRight")
    keys.press("Enter")
    page.wait_for_function("() => !document.querySelector('input[name=verdict]:checked')")
    keys.press("s")
    page.wait_for_selector("#status:has-text('Skipped')")
    keys.press("0")
    keys.press("Enter")
    page.wait_for_selector("#empty:not([hidden])")
    assert page.evaluate("document.activeElement.id") == "empty-title"
    assert verdicts(store) == ["first", "second", "tie", "skip", "both_bad"]
    critique, edit = (record for record in store.feedback() if isinstance(record, (Critique, Edit)))
    assert critique.comment == "Too vague 12345; give the number u s."
    assert edit.edited_completion == "It is 2."


def test_nothing_is_saved_without_a_verdict(sitting: Any, store: Store) -> None:
    fill_queue(store, 1)
    page = sitting().open()
    page.keyboard.press("Enter")
    page.wait_for_selector("#status.wrong:has-text('Choose a verdict')")
    assert page.evaluate("document.activeElement.name") == "verdict"
    assert store.feedback() == []


def test_undo_brings_the_card_back_with_what_was_said(sitting: Any, store: Store) -> None:
    fill_queue(store, 2)
    one = sitting()
    page = one.open()
    first = one.card()
    page.keyboard.press("1")
    page.keyboard.press("a")
    page.keyboard.type("It rambles on and on.")
    page.keyboard.press("Control+Enter")
    page.wait_for_function("before => document.querySelector('#conversation').innerText !== before", arg=first)
    page.keyboard.press("u")
    page.wait_for_selector("#status:has-text('taken back')")
    assert one.card() == first
    assert store.feedback() == []
    assert page.input_value("#comment-0") == "It rambles on and on."
    assert page.is_checked("input[value='first:clearly']")
    page.keyboard.press("3")
    page.keyboard.press("Enter")
    page.wait_for_function("before => document.querySelector('#conversation').innerText !== before", arg=first)
    assert verdicts(store) == ["tie"]


def test_passages_are_marked_by_mouse_where_they_stand_in_the_text(sitting: Any, store: Store) -> None:
    text = "# Why 🙂\n\nThe **sky** is *blue*, they say \\*always\\*.\n\n- one & two\n"
    store.add_prompts([Prompt(id="p", messages=({"role": "user", "content": "Why?"},), group="p")])
    store.add_completions([Completion(id=i, prompt_id="p", text=text, policy="base", round=0) for i in ("a", "b")])
    store.add_questions([Question(id="q", prompt_id="p", a_id="a", b_id="b", round=0)])
    page = sitting().open()
    for words in ("sky is blue", "one & two", "🙂"):
        page.evaluate(SELECT, ["#text-0", words])
        page.wait_for_selector("#mark:not([hidden])")
        page.click("#mark")
        page.wait_for_selector(f"#passages-0 q:has-text('{words.split(' ')[0]}')")
    assert page.locator("#text-0 mark").count() >= 3
    page.locator("#passages-0 li").nth(1).locator("select").select_option("incorrect")
    page.locator("#passages-0 li").nth(1).locator("input").fill("It is not always blue.")
    page.locator("#passages-0 li").nth(0).locator("button").click()
    page.click("#critique-0 .chip:has-text('unclear')")
    page.keyboard.press("Escape")
    page.locator("#card-title").focus()
    page.keyboard.press("4")
    page.keyboard.press("Enter")
    page.wait_for_selector("#empty:not([hidden])")
    (critique,) = (record for record in store.feedback() if isinstance(record, Critique))
    marked = {text[span.start : span.end]: (span.label, span.comment) for span in critique.spans}
    assert marked == {
        "sky** is *blue": ("incorrect", "It is not always blue."),
        "one & two": ("", ""),
        text: ("unclear", ""),
    }


SELECT = """([where, words]) => {
  const walker = document.createTreeWalker(document.querySelector(where), NodeFilter.SHOW_TEXT);
  const nodes = []; let all = '';
  while (walker.nextNode()) { nodes.push([walker.currentNode, all.length]); all += walker.currentNode.data; }
  const at = all.indexOf(words), end = at + words.length;
  if (at < 0) throw new Error('not there: ' + words);
  const place = (offset) => { const [n, s] = nodes.filter(([, s]) => s <= offset).at(-1); return [n, offset - s]; };
  const range = document.createRange();
  range.setStart(...place(at)); const [n, o] = place(end - 1); range.setEnd(n, o + 1);
  getSelection().removeAllRanges(); getSelection().addRange(range);
}"""


def test_sentences_are_marked_by_keyboard(sitting: Any, store: Store) -> None:
    (question,) = fill_queue(store, 1)
    page = sitting().open()
    page.keyboard.press("a")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.wait_for_selector("#text-0 mark")
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#empty:not([hidden])")
    (critique,) = (record for record in store.feedback() if isinstance(record, Critique))
    answer = next(c.text for c in store.completions() if c.id == critique.completion_id)
    assert answer[critique.spans[0].start : critique.spans[0].end] in ("It is **0**.", "Some number, perhaps 1.")
    assert question.id == "q0"


def test_what_was_typed_survives_a_reload(sitting: Any, store: Store) -> None:
    fill_queue(store, 1)
    one = sitting()
    page = one.open()
    page.keyboard.press("a")
    page.keyboard.type("Half a thought")
    one.open()
    assert page.input_value("#comment-0") == "Half a thought"


def save_but_lose_the_answer(page: Any) -> None:
    def lose(route: Any) -> None:
        """The service stores what is sent, and the browser hears nothing of it."""
        sent = route.request
        origin = sent.url.removesuffix(urlsplit(sent.url).path)
        stored = httpx.post(sent.url, content=sent.post_data_buffer, headers={**sent.headers, "Origin": origin})
        assert stored.status_code == 200, stored.text
        route.abort()

    page.keyboard.press("1")
    page.route("**/api/submit", lose)
    page.keyboard.press("Enter")
    page.wait_for_selector("#status.wrong:has-text('Not saved')")
    page.unroute("**/api/submit")


def test_nothing_is_lost_or_doubled_when_the_service_cannot_be_reached(sitting: Any, store: Store) -> None:
    fill_queue(store, 1)
    one = sitting()
    page = one.open()
    save_but_lose_the_answer(page)
    page.keyboard.press("Enter")
    page.wait_for_selector("#empty:not([hidden])")
    assert verdicts(store) == ["first"]
    assert len(store.feedback(effective=False)) == 1
    one.wrong = [line for line in one.wrong if "Failed to load resource" not in line]


def test_a_change_after_an_answer_that_seemed_lost_is_stored(sitting: Any, store: Store) -> None:
    fill_queue(store, 1)
    one = sitting()
    page = one.open()
    save_but_lose_the_answer(page)
    page.keyboard.press("5")
    page.keyboard.press("Enter")
    page.wait_for_selector("#empty:not([hidden])")
    assert verdicts(store) == ["second"]
    one.wrong = [line for line in one.wrong if "Failed to load resource" not in line]


def test_nobody_sees_what_somebody_else_typed_in_the_same_browser(sitting: Any, store: Store, service: Service) -> None:
    fill_queue(store, 1)
    service.open_access = False
    one = sitting()
    for name, typed in (("ann", "half a thought of ann's"), ("bob", "")):
        _, secret = tokens.create(store, "annotator", name)
        one.page.goto(one.address + "/annotate")
        one.page.fill("#token", secret)
        one.page.keyboard.press("Enter")
        one.page.wait_for_selector("#card:not([hidden])")
        assert one.page.input_value("#comment-0") == ""
        one.page.keyboard.press("a")
        one.page.keyboard.type(typed)
        one.page.locator("#card-title").focus()
        one.page.click("text=Log out")
        one.page.wait_for_selector("#token")


def test_a_link_in_a_mail_leads_to_the_cards_and_a_form_of_another_site_to_nothing(
    browser: Any, address: str, store: Store, service: Service
) -> None:
    fill_queue(store, 1)
    service.open_access = False
    _, secret = tokens.create(store, "annotator", "ann")
    context = browser.new_context()
    context.route(
        "http://localhost:9/*",  # another site than 127.0.0.1
        lambda route: route.fulfill(
            content_type="text/html",
            body=f'<a href="{address}/annotate">judge</a><form method="post" action="{address}/logout"><button>go',
        ),
    )
    page = context.new_page()
    page.goto(address + "/annotate")
    page.fill("#token", secret)
    page.keyboard.press("Enter")
    page.wait_for_selector("#card:not([hidden])")
    page.goto("http://localhost:9/mail")
    page.click("a")
    page.wait_for_selector("#card:not([hidden])")
    page.goto("http://localhost:9/mail")
    with page.expect_response(f"{address}/logout") as refused:
        page.click("button")
    assert refused.value.status == 403
    page.goto(address + "/annotate")
    page.wait_for_selector("#card:not([hidden])")
    context.close()


def test_a_double_click_on_save_stores_one_answer(sitting: Any, store: Store) -> None:
    fill_queue(store, 2)
    page = sitting().open()
    page.keyboard.press("1")
    page.dblclick("#save")
    page.wait_for_selector("#status:has-text('Saved'), #status:has-text('Choose')")
    assert verdicts(store) == ["first"]


def test_scripts_in_texts_do_nothing(sitting: Any, store: Store, service: Service) -> None:
    evil = (
        " <script>alert(1)</script><img src=x onerror=alert(2)> [x](javascript:alert(3)) ![y](http://example.org/z.png)"
    )
    service.annotation.guideline = evil
    service.annotation.tags[:] = ['"><script>alert(4)</script>']
    fill_queue(store, 1, text=evil)
    one = sitting()
    page = one.open()
    assert "alert(1)" in one.card()
    page.keyboard.press("a")
    page.keyboard.type(evil)
    page.evaluate(SELECT, ["#text-0", "<img src=x"])
    page.locator("#card-title").focus()
    page.keyboard.press("m")
    page.wait_for_selector("#passages-0 q")
    assert page.locator("main script, main img").count() == 0
    assert page.locator("main a[href^=javascript]").count() == 0
    page.locator("#card-title").focus()
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.wait_for_selector("#empty:not([hidden])")
    one.open("/")
    one.open("/trace?id=%3Cscript%3Ealert(5)%3C/script%3E")
    assert page.locator("main script").count() == 0
    service.annotation.tags[:] = ["incorrect"]


def test_two_people_never_get_the_same_card(sitting: Any, store: Store, service: Service) -> None:
    fill_queue(store, 6)
    service.open_access = False
    people = {}
    for name in ("ann", "bob"):
        _, secret = tokens.create(store, "annotator", name)
        one = sitting()
        one.page.goto(one.address + "/annotate")
        one.page.fill("#token", secret)
        one.page.keyboard.press("Enter")
        one.page.wait_for_selector("#card:not([hidden])")
        people[name] = one
    seen: dict[str, list[str]] = {"ann": [], "bob": []}
    for _ in range(3):
        assert people["ann"].card() != people["bob"].card()
        for name, one in people.items():
            seen[name].append(one.card())
            one.page.keyboard.press("2")
            one.page.keyboard.press("Enter")
            one.page.wait_for_function(
                "before => document.querySelector('#conversation').innerText !== before || "
                "!document.querySelector('#empty').hidden",
                arg=seen[name][-1],
            )
    assert not set(seen["ann"]) & set(seen["bob"])
    assert len(store.feedback()) == 6
    assert {record.annotator.id for record in store.feedback()} == {"ann", "bob"}


def test_leaving_the_page_gives_the_card_back(sitting: Any, store: Store, service: Service) -> None:
    (question,) = fill_queue(store, 1)
    one = sitting()
    one.open()
    assert held(store, "you") == [question]
    one.open("/")
    one.page.wait_for_timeout(300)
    assert held(store, "you") == []


def test_an_admin_adds_cards_when_there_is_nothing_to_judge(sitting: Any, store: Store) -> None:
    fill_queue(store, 6)
    page = sitting().open()
    for number in range(6):
        page.wait_for_selector(f"#progress:has-text('{number} today')")
        page.keyboard.press("3")
        page.keyboard.press("Enter")
    page.wait_for_selector("#empty:not([hidden])")
    page.click("#more")
    page.wait_for_selector("#empty-text:has-text('Every pair of the newest answers was asked about')")
    old = {c.id: c for c in store.completions()}
    store.add_completions([replace(c, id=f"new {id}", round=1, text=f"Now: {c.text}") for id, c in old.items()])
    page.click("#more")
    page.wait_for_selector("#card:not([hidden])")
    assert "5 waiting" in page.inner_text("#progress")


@pytest.mark.parametrize(("scheme", "size"), [("light", WIDE), ("dark", (320, 640))], ids=["light wide", "dark narrow"])
def test_texts_can_be_read_in_light_and_dark(
    sitting: Any, store: Store, scheme: str, size: tuple[int, int], tmp_path: Path
) -> None:
    """Contrast of 4.5 to 1 (WCAG 2.2, AA) of all texts on a card with a verdict, a critique and marks."""
    fill_queue(store, 1)
    one = sitting(*size, color_scheme=scheme)
    page = one.open()
    page.keyboard.press("4")
    page.keyboard.press("a")
    page.click("#critique-0 .chip")
    page.evaluate(SELECT, ["#text-0", "e"])
    page.locator("#card-title").focus()
    page.keyboard.press("m")
    page.screenshot(path=tmp_path / "card.png", full_page=True)
    assert page.evaluate(CONTRAST) == []
    one.open("/")
    assert page.evaluate(CONTRAST) == []


CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgb(getComputedStyle(e).backgroundColor);
      if (colour[3] > 250) return colour;
    }
    return [255, 255, 255];
  };
  const left_out = ':disabled, svg, .hidden-text, .skip-link';
  const wrong = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.data.trim());
    if (!own || !e.checkVisibility({visibilityProperty: true, opacityProperty: true}) || e.closest(left_out)) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) wrong.push(`${e.tagName} ${e.className} ${e.textContent.trim().slice(0, 30)} ${ratio}`);
  }
  return wrong;
}"""


def test_every_control_has_a_name_and_the_page_its_landmarks(sitting: Any, store: Store) -> None:
    fill_queue(store, 1)
    page = sitting().open()
    for n in (0, 1):
        page.click(f"[data-action=critique][data-answer='{n}']")
        page.click(f"[data-action=edit][data-answer='{n}']")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, textarea, a')].filter((e) =>
          e.checkVisibility() && !e.textContent.trim() && !e.getAttribute('aria-label') && !e.labels?.length)
          .map((e) => e.outerHTML)"""
    )
    assert nameless == []
    for landmark in ("header", "main", "nav", "[role=status][aria-live=polite]", "article[aria-labelledby]", "h1"):
        assert page.locator(landmark).count() >= 1, landmark
    assert page.evaluate("document.documentElement.lang") == "en"
    seen = set()
    for _ in range(60):  # everything can be reached with Tab, and shows that it has the focus
        page.keyboard.press("Tab")
        seen.add(
            page.evaluate(
                "document.activeElement.id || document.activeElement.name || document.activeElement.className"
            )
        )
        outline = page.evaluate(
            "(() => { const e = document.activeElement; const shown = e.matches('.choice input') ? e.parentElement : e;"
            " return e === document.body || getComputedStyle(shown).outlineStyle !== 'none'; })()"
        )
        assert outline, page.evaluate("document.activeElement.outerHTML")
    assert {"comment-0", "edit-1", "verdict", "skip", "save", "help-button", "chip"} <= seen


def test_single_keys_can_be_switched_off(sitting: Any, store: Store) -> None:
    fill_queue(store, 1)
    page = sitting().open()
    page.keyboard.press("?")
    page.uncheck("#keys-on")
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    assert page.locator("input[name=verdict]:checked").count() == 0
    page.keyboard.press("?")
    assert not page.evaluate("document.getElementById('help').open")
