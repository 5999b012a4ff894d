"""The dashboard: its figures against those computed otherwise, its pages, and where feedback went."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from samples.annotation import fill_queue
from samples.feedback import completion, fill, preference, prompt
from samples.reports import make_run

from rlhf_loop.feedback.asking.calibration import add_calibration
from rlhf_loop.feedback.asking.judgements import Judgement, shown_order
from rlhf_loop.feedback.asking.judging import next_card, submit
from rlhf_loop.feedback.privacy.deletion import delete_user, user_key
from rlhf_loop.feedback.provenance.conversation_records import trace
from rlhf_loop.feedback.quality.activity import DAY, HOUR, ActivityReader
from rlhf_loop.feedback.quality.measures import agreement, shown_first_wins
from rlhf_loop.feedback.quality.votes import votes_of
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Annotator, Artifact, Preference, Retraction, Skip, Thumb
from rlhf_loop.report import charts, write_report
from rlhf_loop.server.app import create_app
from rlhf_loop.server.pages import dashboard
from rlhf_loop.server.pages.dashboard import Dashboard
from rlhf_loop.server.service import Service

NOW = 1_800_000_000.0


def votes(n: int, seed: int = 0) -> list[Preference]:
    """Verdicts of five people about ten pairs, over the last three weeks."""
    draw = random.Random(seed)
    return [
        preference(
            f"{seed}-{i}",
            a="a",
            b=f"b{draw.randrange(10)}",
            winner=draw.choice(["a", "a", "b", "tie"]),
            who=f"person {draw.randrange(5)}",
            shown_order=draw.choice(["ab", "ba", None]),
            lead_time=draw.choice([None, 3.0, 9.0]),
            created_at=NOW - draw.random() * 21 * DAY,
        )
        for i in range(n)
    ]


def with_votes(store: Store, n: int) -> None:
    store.add_prompts([prompt()])
    store.add_completions([completion("a"), *(completion(f"b{i}") for i in range(10))])
    store.add_feedback(votes(n))


def test_figures_are_those_of_the_whole_store_however_often_they_were_read(store: Store) -> None:
    with_votes(store, 60)
    reader = ActivityReader(store)
    reader.read(NOW)
    about = {"prompt_id": "p", "annotator": Annotator(id="person 0"), "created_at": NOW}
    store.add_feedback(votes(40, seed=1))
    store.add_feedback(
        [
            Retraction(id="r", supersedes="0-3", **about),
            preference("new", b="b1", winner="b", who="person 0", supersedes="1-5", created_at=NOW),
            Skip(id="s", a_id="a", b_id="b2", **about),
            Thumb(id="t", completion_id="a", label=True, **about),
        ]
    )
    for found in (reader.read(NOW), ActivityReader(store).read(NOW)):
        effective = store.feedback()
        preferences = [record for record in effective if isinstance(record, Preference)]
        assert found.kinds == {"preference": len(preferences), "skip": 1, "thumb": 1}
        assert found.corrected == 2
        assert sum(row.total for row in found.annotators) == 103
        assert found.agreement == agreement(votes_of(preferences))
        assert found.agreement.comparisons > 20
        assert found.first_shown_wins == shown_first_wins(votes_of(preferences)).share()
        given = [record.created_at for record in store.feedback(effective=False) if record.kind != "retraction"]
        assert sum(n for _, n in found.days) == sum(at >= found.days[0][0] for at in given)
        for start, n in [*found.hours, *found.days]:
            length = HOUR if (start, n) in found.hours else DAY
            assert n == sum(start <= at < start + length for at in given)


def test_an_annotator_is_measured_against_the_others(store: Store) -> None:
    store.add_prompts([prompt()])
    store.add_completions([completion(id) for id in ("a", "b", "c")])
    said = [("ann", "a", "b", "a"), ("bob", "b", "a", "b"), ("cat", "a", "b", "b"), ("ann", "a", "c", "tie")]
    store.add_feedback(
        [
            preference(f"f{i}", a, b, winner, who, lead_time=float(i), shown_order="ab")
            for i, (who, a, b, winner) in enumerate(said)
        ]
    )
    ann, bob, cat = sorted(ActivityReader(store).read(NOW).annotators, key=lambda row: row.name)
    assert (ann.agreed, bob.agreed, cat.agreed) == ((1, 2), (1, 2), (0, 2))
    assert ann.seconds == 1.5
    assert ann.first_shown_wins is not None
    assert (ann.first_shown_wins.share, ann.first_shown_wins.n) == (1.0, 1)


def test_cards_with_known_answers_are_scored(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "known.jsonl"
    path.write_text('{"prompt": "Spell it.", "chosen": "it", "rejected": "ti"}\n')
    add_calibration(store, path)
    fill_queue(store, 1)
    card, _ = next_card(store, "ann", 60, calibration_share=0.999) or (None, 0.0)
    assert card is not None
    assert card.known is not None
    right = "first" if card.known == shown_order("ann", card)[0] else "second"
    submit(store, "ann", Judgement(submission="s", question_id=card.id, verdict=right), 0)  # type: ignore[arg-type]
    assert ActivityReader(store).read(NOW).annotators[0].calibration == (1, 1)
    submit(store, "ann", Judgement(submission="t", question_id=card.id, verdict="tie"), 0)
    found = ActivityReader(store).read(NOW)
    assert found.annotators[0].calibration == (0, 1)
    assert (found.open, found.answered) == (1, 0), "known answers are no work that waits"


@pytest.mark.parametrize("said_since", [0, 3, 500])
def test_deleted_feedback_is_counted_no_longer_however_much_came_since(store: Store, said_since: int) -> None:
    with_votes(store, 20)
    store.add_feedback(
        [preference(f"last-{n}", b="b0", who="gone") for n in range(3)]
    )  # SQLite gives their numbers again
    reader = ActivityReader(store)
    assert "gone" in {row.name for row in reader.read(NOW).annotators}
    delete_user(store, "gone", [], rewrite_report=write_report)
    store.add_feedback([preference(f"new-{n}", b="b0", who="new") for n in range(said_since)])
    found = reader.read(NOW)
    assert found == ActivityReader(store).read(NOW)
    assert found.kinds == {"preference": len(store.feedback())}
    assert "gone" not in {row.name for row in found.annotators}


def test_figures_are_read_once_in_a_while(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "KEPT_SECONDS", 3600.0)
    with_votes(store, 60)
    shown = Dashboard(Service(store=store))
    before = shown.figures()
    asked: list[str] = []
    sa.event.listen(store.database.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    assert shown.figures() is before
    assert asked == []
    ActivityReader(store).read()
    assert asked  # it is heard where the store is asked


# -- pages -------------------------------------------------------------------------------------------------------------


def admin_of(service: Service) -> TestClient:
    service.open_access = True
    return TestClient(create_app(service), base_url="http://127.0.0.1", follow_redirects=False)


def test_the_dashboard_shows_rounds_policies_and_people(store: Store, tmp_path: Path) -> None:
    fill(store)
    run = make_run(tmp_path)
    page = admin_of(Service(store=store, run_dir=run.path)).get("/").text
    assert [page.count(f">{word}</span>") for word in ("promoted", "kept the last")] == [2, 1]
    assert "policy-1" in page
    assert "&lt;script&gt;" not in page.split("<table")[0], "no text of a model stands on the page"
    assert page.count('<svg role="img"') == 1, "nothing was said lately: there are rounds alone"
    assert "against the base policy" in page
    assert ">ann</a>" in page
    assert " style=" not in page, "the pages' content security policy forbids it"
    assert "<style" not in page


def test_charts_are_drawn_when_what_they_show_has_changed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    draw = charts.svg_of
    monkeypatch.setattr(charts, "svg_of", lambda figure, said, *tips: drawn.append(said) or draw(figure, said, *tips))
    monkeypatch.setattr(dashboard, "KEPT_SECONDS", -1.0)
    monkeypatch.setattr(time, "time", lambda: NOW)
    with_votes(store, 5)
    shown = Dashboard(Service(store=store, run_dir=make_run(tmp_path).path))
    first = shown.figures()
    assert len(drawn) == 3
    assert shown.figures()["hours"] is first["hours"]
    assert len(drawn) == 3
    store.add_feedback([preference("now", b="b1", created_at=NOW)])
    again = shown.figures()
    assert len(drawn) == 5, "the hours and the days, but not the rounds"
    assert f"{time.strftime('%H:00', time.gmtime(NOW))}: 1<" in again["hours"].svg, "what a pointer on a bar is told"


def test_the_dashboard_of_an_empty_store_says_so(store: Store) -> None:
    page = admin_of(Service(store=store)).get("/")
    assert page.status_code == 200
    assert "no feedback yet" in page.text


def test_a_damaged_round_leaves_the_rest_of_the_dashboard(store: Store, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run.step(1, "gate") / "decision.json").write_text("{")
    page = admin_of(Service(store=store, run_dir=run.path)).get("/")
    assert page.status_code == 200
    assert "decision.json is damaged" in page.text


def test_only_an_admin_sees_the_dashboard(store: Store) -> None:
    from rlhf_loop.feedback.store import tokens

    service = Service(store=store)
    _, secret = tokens.create(store, "annotator", "ann")
    client = TestClient(create_app(service), follow_redirects=False)
    headers = {"Authorization": f"Bearer {secret}"}
    assert client.get("/", headers={"Accept": "text/html"}).headers["location"] == "/login?next=/"
    assert client.get("/", headers=headers).headers["location"] == "/annotate"
    assert client.get("/trace?id=ann", headers=headers).status_code == 403


# -- where did it go ---------------------------------------------------------------------------------------------------


def test_a_piece_of_feedback_is_followed_to_the_models_it_trained(store: Store) -> None:
    fill(store)
    found = trace(store, "f9", round=1)
    assert found is not None
    assert found.what == "feedback"
    assert [(use.id, use.kind, use.round, use.promoted) for use in found.uses] == [
        ("rm", "reward_model", 1, False),
        ("policy-1", "policy", 1, True),
    ]
    assert found.pieces[0].state == "trained 2 models"


@pytest.mark.parametrize(
    ("id", "state"),
    [
        ("f1", "replaced by a later one before anything learned from it"),
        ("f7", "counted; a skip trains nothing"),
        ("later", "waits for round 4"),
        ("held-out", "on a prompt that nothing is trained on (split test)"),
        ("bad", "left out: validation before round 3: because"),
        ("f4", "read, but no model was trained on it (its pair was left out, or not needed)"),
    ],
)
def test_feedback_that_trained_nothing_says_why(store: Store, id: str, state: str) -> None:
    fill(store)
    store.add_feedback(
        [
            preference("later", round=3, who="x"),
            preference("held-out", "d", "d", prompt_id="q", who="x"),
            preference("bad", who="y"),
        ]
    )
    store.quarantine_feedback([(store.feedback(ids=["bad"])[0], "because", 3)])
    found = trace(store, id, round=3)
    assert found is not None
    assert found.uses == []
    assert found.pieces[0].state == state


def test_what_is_said_before_the_first_round_waits_for_it(store: Store) -> None:
    store.add_prompts([prompt()])
    store.add_completions([completion("a"), completion("b")])
    store.add_artifact(Artifact(id="base", kind="policy", path="base", round=0))
    store.add_feedback([preference("f1")])
    found = trace(store, "f1", round=0)
    assert found is not None
    assert found.pieces[0].state == "waits for round 1"


def test_a_store_that_is_served_alone_knows_of_the_rounds_that_used_it(store: Store) -> None:
    fill(store)
    found = trace(store, "f4", round=0)
    assert found is not None
    assert found.pieces[0].state.startswith("read, but no model was trained on it")


def test_people_models_answers_and_users_are_followed_too(store: Store) -> None:
    fill(store)
    by_person = trace(store, "ann", round=1)
    assert by_person is not None
    assert by_person.what == "annotator"
    assert by_person.total == len([r for r in store.feedback(effective=False) if r.annotator.id == "ann"])
    assert {use.id: use.pieces for use in trace(store, "llm", 1).uses} == {"rm": 1, "policy-1": 1}  # type: ignore[union-attr]
    model = trace(store, "policy-1", 1)
    assert model is not None
    assert (model.what, model.total, [use.pieces for use in model.uses]) == ("artifact", 2, [2])
    assert trace(store, "base", 1).total == 0  # type: ignore[union-attr]
    answer = trace(store, "a", 1)
    assert answer is not None
    assert (answer.what, answer.total) == ("completion", 7)
    assert trace(store, "d", 1).total == 0  # type: ignore[union-attr]
    key = user_key(store, "jo@example.org")
    store.add_feedback([Thumb(id="theirs", prompt_id="p", annotator=Annotator(id=key), completion_id="a", label=True)])
    of_user = trace(store, "jo@example.org", 1, key)
    assert of_user is not None
    assert [piece.id for piece in of_user.pieces] == ["theirs"]
    assert trace(store, "nobody", 1) is None


def test_the_trace_page_shows_what_became_of_feedback(store: Store) -> None:
    fill(store)
    client = admin_of(Service(store=store))
    assert "trained 2 models" in client.get("/trace?id=f9").text
    assert "Nothing in this store" in client.get("/trace?id=%3Cb%3E").text
    assert "&lt;b&gt;" in client.get("/trace?id=%3Cb%3E").text
    assert client.get("/trace").status_code == 200
    store.add_artifact(Artifact(id="<i>", kind="policy", path="x", round=2, trained_on=("f9",)))
    assert "<i>" not in client.get("/trace?id=f9").text
