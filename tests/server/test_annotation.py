"""The annotation page's requests: who may make them, what comes back, what is stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from samples.annotation import fill_queue

from rlhf_loop.feedback.store import tokens
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.recipe import Recipe
from rlhf_loop.records import Critique, Edit, Preference, Score
from rlhf_loop.server.app import create_app
from rlhf_loop.server.pages import pages
from rlhf_loop.server.pages.annotation import prepare
from rlhf_loop.server.service import Service

ROOT = Path(__file__).parents[2]
EVIL = '<img src=x onerror="alert(1)"><script>alert(2)</script>'


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "feedback.db") as opened:
        yield opened


class Person:
    """Somebody with a page."""

    def __init__(self, service: Service, name: str, role: Any = "annotator"):
        _, secret = tokens.create(service.store, role, name)
        self.client = TestClient(create_app(service), base_url="http://testserver", follow_redirects=False)
        self.headers = {"Origin": "http://testserver"}
        answer = self.client.post("/login", data={"token": secret, "next": "/annotate"}, headers=self.headers)
        assert (answer.status_code, answer.headers["location"]) == (303, "/annotate")
        self.page = self.client.get("/annotate")
        assert self.page.status_code == 200

    def post(self, what: str, body: Any = None) -> Any:
        return self.client.post(f"/annotate/api/{what}", json=body or {}, headers=self.headers)

    def card(self) -> Any:
        return self.post("next").json()["card"]

    def submit(self, card: Any, verdict: str = "first", **more: Any) -> Any:
        given = {"submission": "0123456789", "answers": [{}, {}], **more}
        return self.post("submit", {"question": card["question"], "verdict": verdict, **given})


def test_a_page_and_its_requests_need_a_token(store: Store) -> None:
    fill_queue(store)
    service = Service(store=store)
    ann = Person(service, "ann")
    nobody = TestClient(create_app(service), follow_redirects=False)
    sent = nobody.get("/annotate", headers={"Accept": "text/html"})
    assert (sent.status_code, sent.headers["location"]) == (303, "/login?next=/annotate")
    for what in ("next", "extend", "release", "submit", "undo", "more"):
        assert nobody.post(f"/annotate/api/{what}", json={}).status_code == 401
        assert ann.client.post(f"/annotate/api/{what}", json={}).status_code == 403, "sent by no page of ours"
    assert ann.post("more").status_code == 403, "an annotator is no admin"
    assert "Log in" in nobody.get("/login").text


def test_a_card_shows_texts_and_nothing_that_tells_where_they_come_from(store: Store) -> None:
    (question,) = fill_queue(store, 1, text=f" {EVIL}")
    card = Person(Service(store=store), "ann").card()
    shown = json.dumps(card)
    for hidden in ("base", "policy", '"x0"', '"y0"', "priority", "reason"):
        assert hidden not in shown
    assert card["question"] == question.id
    for text in [*(m["html"] for m in card["messages"]), *(a["html"] for a in card["answers"])]:
        assert "<script" not in text
        assert "<img" not in text
        assert "alert(2)" in text, "shown as text"
    assert {answer["text"][:5] for answer in card["answers"]} == {"It is", "Some "}
    assert [answer["text"][a:b] for answer in card["answers"] for a, b in answer["sentences"]]


def test_what_a_reward_model_wrote_of_an_answer_is_shown_as_the_machine_s(store: Store) -> None:
    (question,) = fill_queue(store, 1)
    rows = [("a", 0.5, "Too long <img src=x>."), ("b", 1.0, None)]
    ids = {"a": question.a_id, "b": question.b_id}
    store.add_scores(
        [Score(completion_id=ids[side], reward_model="rm", value=v, critique=said) for side, v, said in rows]
    )
    ann = Person(Service(store=store), "ann")
    shown = {answer["text"]: answer["machine"] for answer in ann.card()["answers"]}
    texts = {completion.id: completion.text for completion in store.completions()}
    assert shown == {texts[ids["a"]]: "Too long <img src=x>.", texts[ids["b"]]: ""}
    assert "0.5" not in json.dumps(ann.card()), "what it scored is not shown"
    page = ann.client.get("/annotate").text
    assert page.count("What a machine wrote of answer") == 2
    script = (Path(pages.__file__).parent / "static" / "annotate.js").read_text()
    assert "machine-text-${n}`).textContent = answer.machine" in script, "as text, never as markup"


def test_a_submission_is_stored_whole_and_once(store: Store) -> None:
    fill_queue(store, 2)
    ann = Person(Service(store=store), "ann")
    card = ann.card()
    about = {"comment": "Begin with the number.", "tags": ["unclear"], "spans": [{"start": 0, "end": 2}]}
    given = {"strength": "clearly", "answers": [about, {"edit": "Shorter."}], "visible_seconds": 0.0}
    for _ in range(2):
        answer = ann.submit(card, "second", **given)
        assert (answer.status_code, answer.json()) == (200, {"note": "", "redacted": 0})
    preference, critique, edit = store.feedback()
    assert isinstance(preference, Preference)
    assert isinstance(critique, Critique)
    assert isinstance(edit, Edit)
    assert preference.annotator.id == "ann"
    assert (preference.strength, preference.lead_time) == (1.0, 0.0)
    after = ann.post("next", {"day_start": 0}).json()
    assert after["progress"] == {"today": 1, "total": 1, "open": 1}
    assert after["card"]["question"] != card["question"]


def test_personal_data_that_people_type_is_taken_out(store: Store) -> None:
    fill_queue(store, 1)
    ann = Person(Service(store=store), "ann")
    card = ann.card()
    answers = [{"comment": "Write to jo@example.org instead.", "edit": "Call jo@example.org."}, {}]
    assert ann.submit(card, "tie", answers=answers).json()["redacted"] == 2
    assert "jo@" not in "".join(str(record) for record in store.feedback())


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"verdict": "best"}, 422),
        ({"submission": "short"}, 422),
        ({"answers": [{}]}, 422),
        ({"answers": [{"spans": [{"start": 5, "end": 5000}]}, {}]}, 400),
        ({"question": "nowhere"}, 400),
        ({"unknown": 1}, 422),
        ({"answers": [{"comment": "x" * 20_001}, {}]}, 422),
        ({"visible_seconds": -1}, 422),
    ],
)
def test_a_wrong_submission_is_refused_whole(store: Store, body: dict[str, Any], status: int) -> None:
    fill_queue(store, 1)
    ann = Person(Service(store=store), "ann")
    given = {"question": ann.card()["question"], "verdict": "tie", "submission": "0123456789", "answers": [{}, {}]}
    assert ann.post("submit", {**given, **body}).status_code == status
    assert store.feedback(effective=False) == []


def test_a_card_is_extended_released_and_taken_back(store: Store) -> None:
    fill_queue(store, 1)
    service = Service(store=store)
    ann, bob = Person(service, "ann"), Person(service, "bob")
    card = ann.card()
    held = {"question": card["question"]}
    assert bob.card() is None
    assert ann.post("extend", held).json() == {"held": True}
    assert bob.post("extend", held).json() == {"held": False}
    assert ann.post("release", held).json() == {"released": True}
    assert bob.card()["question"] == card["question"]
    bob.submit(card)
    assert bob.post("undo").json() == {"undone": True}
    assert ann.card() is None
    assert bob.post("undo").json() == {"undone": False}


def test_several_people_get_a_card_up_to_its_overlap_and_each_once(store: Store) -> None:
    fill_queue(store, 1, overlap=2)
    service = Service(store=store)
    people = [Person(service, name) for name in ("ann", "bob", "cat")]
    cards = [person.card() for person in people]
    assert [card is not None for card in cards] == [True, True, False]
    for person, card in zip(people[:2], cards[:2], strict=True):
        person.submit(card)
        assert person.card() is None
    assert store.questions(status="open") == []


def test_the_page_shows_the_guideline_tags_and_shortcuts_of_the_recipe(store: Store, tmp_path: Path) -> None:
    recipe = Recipe.load(ROOT / "recipes" / "smoke.yaml")
    recipe.annotation.guideline = f"Prefer **short** answers. {EVIL}"
    recipe.annotation.tags = ["too long", 'say "no"']
    page = Person(Service(store=store, recipe=recipe), "ann").page
    assert "<strong>" in page.text
    assert "<script>alert" not in page.text
    assert 'data-tag="say &#34;no&#34;"' in page.text
    for key in ("1", "2", "3", "4", "5", "0", "S", "U", "M", "E", "Enter"):
        assert f"<kbd>{key}</kbd>" in page.text
    assert 'style="' not in page.text
    assert "onclick" not in page.text
    assert page.headers["cache-control"] == "no-store"


def test_an_admin_is_told_how_the_next_round_starts(store: Store, tmp_path: Path) -> None:
    service = Service(store=store, run_dir=tmp_path / "run")
    command = f"rlhf-loop run {tmp_path / 'run' / 'recipe.yaml'} --run-dir {tmp_path / 'run'} --rounds 1"
    assert command in Person(service, "boss", "admin").page.text
    assert "rlhf-loop run" not in Person(service, "ann").page.text


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"day_start": 1e999}', b"\xff\xfe", b'{"day_start": "x"}', b"null", b"[" * 100_000]
)
def test_requests_that_are_no_json_or_the_wrong_json_are_refused(store: Store, body: bytes) -> None:
    ann = Person(Service(store=store), "ann")
    for what in ("next", "submit", "extend", "release"):
        answer = ann.client.post(
            f"/annotate/api/{what}", content=body, headers={**ann.headers, "Content-Type": "application/json"}
        )
        assert answer.status_code in (400, 422), (what, answer.status_code)


def test_texts_of_any_kind_are_stored_as_they_were_typed(store: Store) -> None:
    fill_queue(store, 1)
    ann = Person(Service(store=store), "ann")
    comment = "日本 🙂 \u202e <b>&amp;</b> ' \" \\ ; DROP TABLE feedback; --\n\ttab"
    assert ann.submit(ann.card(), "tie", answers=[{"comment": comment}, {}]).status_code == 200
    assert [record.comment for record in store.feedback(kinds=["critique"])] == [comment]


def test_what_the_pages_load_is_there_and_nothing_else(store: Store) -> None:
    ann = Person(Service(store=store), "ann")
    for part in ann.page.text.split('="/static/')[1:]:
        answer = ann.client.get("/static/" + part.split('"')[0])
        assert answer.status_code == 200
        assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
    for name in ("..%2Fannotation.py", "%2e%2e/annotation.py", "nothing.js"):
        assert ann.client.get(f"/static/{name}").status_code == 404


def test_a_run_without_cards_gets_some_at_the_start_and_more_when_asked(store: Store, tmp_path: Path) -> None:
    fill_queue(store, 8)
    store.add_completions([replace(c, id=f"new {c.id}", round=1, text=f"new {c.text}") for c in store.completions()])
    recipe = Recipe.load(ROOT / "recipes" / "smoke.yaml")
    recipe.annotation.calibration = tmp_path / "known.jsonl"
    recipe.annotation.calibration.write_text('{"prompt": "Spell it.", "chosen": "it", "rejected": "ti"}\n')
    service = Service(store=store, recipe=recipe)
    ann = Person(service, "ann", "admin")
    assert prepare(service) == ["calibration: 1 cards with known answers, 1 of them new"], "there are cards already"

    def judge_all() -> int:
        done = 0
        while card := ann.card():
            ann.submit(card, submission=f"about-{card['question']}")
            done += 1
        return done

    assert judge_all() in (8, 9), "perhaps with the one whose answer is known"
    assert prepare(service)[1:] == [
        "the queue was empty: 5 cards from the newest answers were added, for the next round"
    ]
    assert prepare(service)[1:] == []
    assert judge_all() in (5, 6)
    assert ann.post("more").json() == {"added": 3}
    assert all(question.round == 1 for question in store.questions(status="open"))


def test_a_run_that_people_annotate_gets_no_cards_that_it_would_wait_for(store: Store) -> None:
    fill_queue(store, 8)
    store.add_completions([replace(c, id=f"new {c.id}", round=1, text=f"new {c.text}") for c in store.completions()])
    service = Service(store=store, recipe=Recipe.load(ROOT / "recipes" / "smoke.yaml", ["feedback.annotator=null"]))
    ann = Person(service, "ann")
    while card := ann.card():
        ann.submit(card, submission=f"about-{card['question']}")
    assert prepare(service) == []
    assert store.questions(status="open") == []
