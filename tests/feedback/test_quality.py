"""What `feedback check` measures of a store's feedback, on records and stores that show it."""

from __future__ import annotations

import html
import json
import random
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from samples.cli import rlhf_loop
from samples.feedback import completion, fill, preference, prompt

from rlhf_loop.feedback.circles import in_circles
from rlhf_loop.feedback.intake.import_file import import_file
from rlhf_loop.feedback.quality import bias, calibration, near_duplicates
from rlhf_loop.feedback.quality.activity import ActivityReader
from rlhf_loop.feedback.quality.annotators import annotator_rows
from rlhf_loop.feedback.quality.check import check
from rlhf_loop.feedback.quality.consensus import consensus, consensus_preferences
from rlhf_loop.feedback.quality.contradictions import contradictions
from rlhf_loop.feedback.quality.dawid_skene import reliability
from rlhf_loop.feedback.quality.drift import drift
from rlhf_loop.feedback.quality.measures import agreement, agreement_with_others, longer_wins, shown_first_wins
from rlhf_loop.feedback.quality.stats import stats
from rlhf_loop.feedback.quality.summary import annotator_lines, lines
from rlhf_loop.feedback.quality.votes import BOTH_BAD, FIRST, SECOND, TIE, Votes, read_votes, votes_of, words_of
from rlhf_loop.feedback.store.conditions import CALIBRATION_PRIORITY
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.feedback.validation import validate
from rlhf_loop.recipe import Validation
from rlhf_loop.records import Completion, Preference, Prompt, Question, Retraction
from rlhf_loop.report.quality_page import render
from rlhf_loop.rows.pairs import pairs_from_feedback

PEOPLE = {f"good-{i}": 0.9 for i in range(6)} | {"clicker": 0.5, "left": 0.85}


def crowd(prompts: int = 60, judges: int = 4, seed: int = 0) -> tuple[list[Prompt], list[Completion], list[Preference]]:
    """Answers of known quality, judged by people of known reliability; one prefers what is shown first."""
    draw = random.Random(seed)
    asked = [prompt(f"p{i}", f"Question number {i} of many, about {draw.random()}") for i in range(prompts)]
    answers, said = [], []
    for p in asked:
        quality = {f"{p.id}-{k}": draw.gauss(0, 1) for k in range(3)}
        for id in quality:
            words = " ".join(str(draw.random()) for _ in range(draw.randrange(5, 30)))
            answers.append(completion(id, words, p.id))
        for a, b in ((0, 1), (0, 2), (1, 2)):
            one, other = f"{p.id}-{a}", f"{p.id}-{b}"
            better, worse = ("a", "b") if quality[one] > quality[other] else ("b", "a")
            for who in draw.sample(list(PEOPLE), judges):
                order = draw.choice(["ab", "ba"])
                winner = better if draw.random() < PEOPLE[who] else worse
                if who == "left" and draw.random() < 0.7:
                    winner = order[0]
                values = {"prompt_id": p.id, "shown_order": order, "created_at": 1e9 + len(said), "lead_time": 3.0}
                said.append(preference(f"f{len(said):05d}", one, other, winner, who, **values))
    return asked, answers, said


def store_of(said: list[Preference], answers: list[Completion], asked: list[Prompt]) -> Store:
    store = Store.open(":memory:")
    store.add_prompts(asked)
    store.add_completions(answers)
    store.add_feedback(said)
    return store


def votes(*said: tuple[str, str, str, str]) -> Votes:
    """Of (a, b, winner, who)."""
    return votes_of([preference(f"f{n}", *row) for n, row in enumerate(said)])


def test_sides_do_not_depend_on_how_a_pair_was_shown() -> None:
    found = votes_of(
        [
            preference("1", "x", "y", "a", "ann", shown_order="ab"),
            preference("2", "y", "x", "a", "bob", shown_order="ba"),
            preference("3", "y", "x", "tie", "cat"),
            preference("4", "x", "y", "both_bad", "dan", shown_order="ba"),
        ]
    )
    assert found.units == 1
    assert found.verdict.tolist() == [FIRST, SECOND, TIE, BOTH_BAD]
    assert found.shown.tolist() == [FIRST, FIRST, -1, SECOND]


def test_a_store_gives_the_same_columns_as_its_records(tmp_path: Path) -> None:
    asked, answers, said = crowd(5)
    corrected = preference(
        "new", said[0].a_id, said[0].b_id, "tie", said[0].annotator.id, prompt_id="p0", supersedes=said[0].id
    )
    taken_back = Retraction(id="gone", prompt_id="p0", annotator=said[1].annotator, supersedes=said[1].id)
    with store_of([*said, corrected], answers, asked) as store:
        store.add_feedback([taken_back])
        found, expected = read_votes(store), votes_of([*said[2:], corrected])
        assert found.ids == expected.ids
        for name in ("unit", "annotator", "verdict", "shown", "time", "first", "second", "prompt"):
            assert np.array_equal(getattr(found, name), getattr(expected, name)), name
        words = {c.id: len(c.text.split()) for c in answers}
        assert words_of(store, found).tolist() == [words[id] for id in found.completions]


def test_only_the_last_verdict_of_an_annotator_on_a_pair_agrees_with_others() -> None:
    found = votes(("x", "y", "a", "ann"), ("x", "y", "b", "ann"), ("x", "y", "b", "bob"))
    assert found.last_of_each().ids == ["f1", "f2"]
    said = [
        preference(f"f{n}", "x", "y", w, who) for n, (w, who) in enumerate([("a", "ann"), ("b", "ann"), ("b", "bob")])
    ]
    assert agreement(votes_of(said)).agreed == 1.0


@pytest.mark.parametrize("judges", [4, 120])
def test_everybody_is_compared_with_everybody_else_on_a_pair(judges: int) -> None:
    """However many judge it: only the coefficients, whose tables grow with the square, look at some of them."""
    draw = random.Random(judges)
    said = [
        (f"x{n}", f"y{n}", draw.choice(["a", "a", "b", "tie"]), f"person {k}") for n in range(3) for k in range(judges)
    ]
    said += [("y0", "x0", "b", "person 0")]  # said again, the other way around: this one counts
    found = votes(*said)
    last = {(a if a < b else b, who): (winner if a < b else "ab"["ab".index(winner) - 1]) for a, b, winner, who in said}
    agreed, compared = agreement_with_others(found)
    for a, name in enumerate(found.annotators):
        others = [(unit, who) for unit, who in last if who != name and (unit, name) in last]
        assert compared[a] == len(others)
        assert agreed[a] == sum(last[unit, who] == last[unit, name] for unit, who in others)
    assert agreement(found).comparisons == compared.sum() // 2


def test_all_that_tell_of_a_store_say_the_same_of_it() -> None:
    """`feedback stats`, `feedback check` and the dashboard, where some tells two answers of one text apart."""
    asked, answers, said = crowd(20)
    again = [completion(f"{id}-again", "The same.", "p0") for id in ("one", "two")]
    same = [
        preference(f"same-{n}", "one-again", "two-again", "a", who, prompt_id="p0", shown_order="ab", lead_time=9.0)
        for n, who in enumerate(["good-0", "good-1"] * 20)
    ]
    with store_of([*said, *same], [*answers, *again], asked) as store:
        checked, counted, shown = check(store, duplicates=False), stats(store), ActivityReader(store).read()
    told_apart = votes_of(said)
    expected = asdict(agreement(told_apart))
    assert counted["agreement"] == asdict(shown.agreement) == expected
    alpha = checked["agreement"]["krippendorff_alpha"]
    assert (alpha["value"], alpha["low"], alpha["high"], alpha["n"]) == (
        *(expected[name] for name in ("alpha", "alpha_low", "alpha_high")), expected["pairs"],
    )  # fmt: skip
    assert counted["first_shown_wins"] == asdict(shown.first_shown_wins)
    assert checked["position"] == {**counted["first_shown_wins"], "p": shown.first_shown_wins.p}
    assert checked["position"]["n"] == sum(p.winner in ("a", "b") for p in said), "not those of one text"
    assert checked["length"] == {**counted["longer_wins"], "p": checked["length"]["p"]}
    rows = {row["annotator"]: row for row in checked["annotators"]}
    assert {row.name for row in shown.annotators} == rows.keys()
    for row in shown.annotators:
        one = rows[row.name]
        assert asdict(row.first_shown_wins) == one["first_shown_wins"]
        assert row.agreed == (round(one["agreement"]["share"] * one["agreement"]["n"]), one["agreement"]["n"])
        assert row.seconds == one["median_seconds"] == 3.0


def test_coin_flips_have_no_alpha_whatever_the_ids_are() -> None:
    draw = random.Random(0)
    said = [
        preference(f"f{n}-{who}", f"x{n}", f"y{n}", draw.choice("ab"), who)
        for n in range(1000)
        for who in ("ann", "bob")
    ]
    found = agreement(votes_of(said))
    assert abs(found.alpha) < 0.08
    assert found.alpha_low < 0 < found.alpha_high


def test_consensus_outvotes_those_who_guess() -> None:
    """Two who guess say b, one who is right says a: known from the other pairs."""
    draw = random.Random(0)
    said = []
    for n in range(200):
        better = draw.choice("ab")
        for who in ("sure-1", "sure-2", "sure-3"):
            said.append((f"x{n}", f"y{n}", better, who))
        for who in ("guess-1", "guess-2"):
            said.append((f"x{n}", f"y{n}", draw.choice("ab"), who))
    said += [
        ("x-last", "y-last", "a", "sure-1"),
        ("x-last", "y-last", "b", "guess-1"),
        ("x-last", "y-last", "b", "guess-2"),
    ]
    found = votes(*said)
    people = reliability(found)
    weight = dict(zip(found.annotators, people.weight, strict=True))
    assert min(weight[f"sure-{i}"] for i in (1, 2, 3)) > 0.9
    assert max(weight[f"guess-{i}"] for i in (1, 2)) < 0.3
    assert consensus(found, people).preference[-1] > 0.6


def test_consensus_preferences_train_like_any_others() -> None:
    asked, answers, said = crowd()
    made = consensus_preferences(said)
    assert len(made) == 180
    assert all(0 <= p.strength <= 1 for p in made)
    pairs, dropped = pairs_from_feedback(made, {c.id: c for c in answers}, {p.id: p for p in asked})
    assert len(pairs) == 180 - dropped.get("tie", 0) - dropped.get("both_bad", 0)
    assert {pair.origin for pair in pairs} == {"human"}
    tie = [preference(f"t{n}", "x", "y", "tie", who) for n, who in enumerate(("ann", "bob", "cat"))]
    assert [p.winner for p in consensus_preferences(tie)] == ["tie"]
    assert [p.strength for p in consensus_preferences(tie)] == [pytest.approx(0)]
    bad = [preference(f"t{n}", "x", "y", "both_bad", who) for n, who in enumerate(("ann", "bob", "cat"))]
    assert [p.winner for p in consensus_preferences(bad)] == ["both_bad"]


def test_consensus_uses_what_was_said_of_other_answers() -> None:
    found = consensus(
        votes(
            *[
                row
                for who in ("ann", "bob")
                for row in (("x", "y", "a", who), ("y", "z", "a", who), ("x", "z", "tie", who))
            ]
        )
    )
    theta = found.strengths.theta
    assert theta[0] > theta[1] > theta[2]
    assert found.preference[2] > 0.6  # x against z, called even, between what beats and what is beaten


def test_position_and_length_biases_are_found_with_their_tests() -> None:
    draw = random.Random(0)
    answers = {f"{side}{n}": draw.randrange(5, 60) for n in range(600) for side in "xy"}
    said = []
    for n in range(600):
        order = draw.choice(["ab", "ba"])
        longer = "a" if answers[f"x{n}"] > answers[f"y{n}"] else "b"
        odds = (0.8 if order[0] == "a" else -0.8) + (0.7 if longer == "a" else -0.7)
        winner = "a" if draw.random() < 1 / (1 + np.exp(-odds)) else "b"
        said.append(preference(f"f{n}", f"x{n}", f"y{n}", winner, "ann", shown_order=order, prompt_id=f"p{n}"))
    found = votes_of(said)
    words = np.array([answers[id] for id in found.completions])
    place, length = shown_first_wins(found).share(), longer_wins(found, words).share()
    assert place.p < 1e-9
    assert 0.6 < place.low < place.share < place.high < 0.75
    assert length.p < 1e-6
    effects = bias.regression(found, words)["effects"]
    assert effects["shown_first"]["low"] < np.exp(0.8) < effects["shown_first"]["high"]
    assert effects["twice_as_long"]["low"] > 1
    undecided = shown_first_wins(votes(("x", "y", "tie", "ann"))).share()
    assert (undecided.n, undecided.share, undecided.p) == (0, None, None)
    assert bias.regression(votes(("x", "y", "a", "ann")), np.array([3, 4])) is None


def test_contradictions_of_one_between_several_and_in_circles() -> None:
    found = contradictions(
        votes(
            ("x", "y", "a", "ann"), ("y", "x", "a", "ann"),  # both ways
            ("u", "v", "a", "ann"), ("u", "v", "a", "ann"),  # the same again
            ("x", "z", "a", "ann"), ("x", "z", "b", "bob"),  # disputed
            ("u", "v", "a", "bob"),
            ("k", "l", "a", "ann"), ("l", "m", "a", "ann"), ("k", "m", "b", "ann"),  # a circle
        )
    )  # fmt: skip
    assert (found["own"]["share"], found["own"]["n"]) == (0.5, 2)
    assert found["own"]["examples"] == ["ann on x | y"]
    assert (found["between"]["share"], found["between"]["n"]) == (0.5, 2)
    assert (found["circles"]["n"], found["circles"]["share"], found["circles"]["prompts"]) == (5, 3 / 5, 1)


def test_circles_are_found_as_by_trying_every_path() -> None:
    draw = np.random.default_rng(0)
    for _ in range(40):
        edges = np.array([(x, y) for x in range(7) for y in range(7) if x != y and draw.random() < 0.2]).reshape(-1, 2)
        reach = {tuple(edge) for edge in edges.tolist()}
        while more := {(x, z) for x, y in reach for w, z in reach if y == w} - reach:
            reach |= more
        expected = [(loser, winner) in reach for winner, loser in edges.tolist()]
        assert in_circles(edges[:, 0], edges[:, 1]).tolist() == expected


def test_drift_of_agreement_and_of_calibration_is_found_at_its_time() -> None:
    draw = random.Random(0)
    said, known = [], {}
    for n in range(300):
        better = draw.choice("ab")
        known[(f"x{n}", f"y{n}")] = FIRST if better == "a" else SECOND
        skill = 0.95 if n < 200 else 0.55
        for place, who in enumerate(("ann", "bob", "cat")):
            winner = better if draw.random() < skill else "ab"[better == "a"]
            when = 1e9 + 10 * n + place
            said.append(preference(f"f{n}-{who}", f"x{n}", f"y{n}", winner, who, created_at=when, shown_order="ab"))
    found = votes_of(said)
    answered = calibration.answers(found, known)
    assert (answered.items, len(answered.row)) == (300, 900)
    changes = drift(found, answered)
    for name in ("agreement", "calibration"):
        change = changes[name]["change"]
        assert change["p"] < 1e-6
        assert change["at"] == pytest.approx(1e9 + 2000, abs=300)
        assert change["before"] > change["after"] + 0.2
        assert sum(window["n"] for window in changes[name]["windows"]) == change["n"]
    assert changes["first_shown_wins"]["change"]["p"] > 0.001
    assert drift(votes(("x", "y", "a", "ann")), calibration.answers(found.take([]), {})) == {}


def test_calibration_items_are_compared_however_they_were_shown() -> None:
    with Store.open(":memory:") as store:
        store.add_prompts([prompt()])
        store.add_completions([completion(id) for id in "abc"])
        about = {"prompt_id": "p", "round": 0}
        card = {**about, "priority": CALIBRATION_PRIORITY, "overlap": 0}
        store.add_questions(
            [
                Question(id="q1", a_id="b", b_id="a", known="a", reason='it says "known": "b"', **card),
                Question(id="q2", a_id="a", b_id="c", known="tie", **card),
                Question(id="q3", a_id="b", b_id="c", **about),
            ]
        )
        store.add_feedback(
            [
                preference("1", "a", "b", "b", "ann"), preference("2", "b", "a", "b", "bob"),
                preference("3", "c", "a", "tie", "ann"), preference("4", "b", "c", "a", "ann"),
            ]
        )  # fmt: skip
        found = read_votes(store)
        answered = calibration.answers(found, calibration.known_answers(store))
    assert answered.items == 2
    assert [found.ids[row] for row in answered.row] == ["1", "2", "3"]
    assert answered.passed.tolist() == [True, False, True]


def test_annotators_are_told_apart() -> None:
    asked, answers, said = crowd(150)
    with store_of(said, answers, asked) as store:
        found = read_votes(store)
        nothing = calibration.answers(found, {})
        rows = {r["annotator"]: r for r in annotator_rows(found, reliability(found), words_of(store, found), nothing)}
    assert sum(row["verdicts"] for row in rows.values()) == len(said)
    assert all(rows[f"good-{i}"]["accuracy"]["low"] > rows["clicker"]["accuracy"]["high"] for i in range(6))
    assert rows["clicker"]["flags"] == ["agrees with others little more than by chance"]
    assert rows["left"]["flags"] == ["prefers the first answer shown"]
    assert not any(rows[f"good-{i}"]["flags"] for i in range(6))
    assert rows["good-0"]["median_seconds"] == 3.0
    for row in rows.values():
        assert row["accuracy"]["low"] <= row["accuracy"]["share"] <= row["accuracy"]["high"]


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def test_signatures_estimate_the_jaccard_similarity() -> None:
    draw = random.Random(0)
    pairs = []
    for changed in range(0, 40, 2):
        words = [str(draw.randrange(10**6)) for _ in range(120)]
        other = list(words)
        for place in draw.sample(range(120), changed):
            other[place] = str(draw.randrange(10**6))
        pairs.append((" ".join(words), " ".join(other)))
    exact = [len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b)) for a, b in pairs]
    one = near_duplicates.signatures(a for a, _ in pairs)
    other = near_duplicates.signatures(b for _, b in pairs)
    assert np.abs(near_duplicates.similarity(one, other) - exact).max() < 4 * 0.056
    assert near_duplicates.similarity(one, other)[0] == 1.0


def test_near_duplicates_are_found_among_many_and_nothing_else() -> None:
    draw = random.Random(0)
    texts = [" ".join(str(draw.randrange(5000)) for _ in range(draw.randrange(3, 80))) for _ in range(3000)]
    copies = {}
    for n in range(0, 200, 2):
        words = [*texts[n].split(), *(str(draw.randrange(5000)) for _ in range(60))]
        texts[n] = " ".join(words)
        words[draw.randrange(len(words))] = "changed"
        copies[n] = len(texts)
        texts.append(" ".join(words).upper())
    texts += ["", "", "one", "two words", "one"]
    found = near_duplicates.clusters(near_duplicates.signatures(texts))
    groups = [set(rows) for rows in found.groups()]
    expected = [{n, copy} for n, copy in copies.items()]
    hits = sum(pair in groups for pair in expected)
    assert hits >= 99
    others = [rows for rows in groups if rows not in expected]
    assert sorted(map(sorted, others)) == [[3100, 3101], [3102, 3104]]
    assert near_duplicates.clusters(near_duplicates.signatures([])).groups() == []


def test_signatures_do_not_depend_on_what_comes_along() -> None:
    texts = [f"a text about number {n} and nothing else at all" for n in range(50)]
    alone = np.concatenate([near_duplicates.signatures([text]) for text in texts])
    assert np.array_equal(near_duplicates.signatures(texts), alone)


def test_everything_of_a_store_as_figures_text_and_page() -> None:
    asked, answers, said = crowd()
    asked[1] = prompt("p1", asked[0].messages[0]["content"], split="test")
    with store_of(said, answers, asked) as store:
        card = {"prompt_id": "p0", "round": 0, "priority": CALIBRATION_PRIORITY, "overlap": 0}
        store.add_questions([Question(id="q", a_id="p0-0", b_id="p0-1", known="a", **card)])
        found = check(store)
    assert found == json.loads(json.dumps(found))
    assert (found["preferences"], found["pairs"]) == (720, 180)
    assert found["near_duplicates"]["across_splits"]["training_prompts"] == 1
    assert found["calibration"]["items"] == 1
    assert len(found["agreement"]["cohen_kappa"]) == 10
    text = "\n".join(lines(found))
    for part in (
        "Krippendorff's alpha 0.",
        "clicker",
        "prefers the first answer shown",
        "1 of 59 training prompts",
        "circles",
    ):
        assert part in text
    validation = {
        "total": 720, "usable": 700, "pairs": 180, "quarantined": [], "set_aside": 20, "needed": 3,
        "counts": {"tie": 20, "leakage": 0},
    }  # fmt: skip
    page = render("<b>a store</b>", validation, found)
    assert "&lt;b&gt;a store" in page
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "Krippendorff" in page
    assert "clicker" in page


EXPLAINED = {
    "Cohen's kappa is shown for": lambda q: q["agreement"]["cohen_kappa"],
    "p: how probable": lambda q: q["position"]["n"] or q["length"]["n"],
    "A preference for longer answers": lambda q: q["length"]["n"],
    "Accuracy: the probability": lambda q: any(row["accuracy"]["share"] is not None for row in q["annotators"]),
    "Weight: what a verdict counts": lambda q: any(row["weight"] is not None for row in q["annotators"]),
    "Kappa: Cohen's, against": lambda q: any(row["kappa"] is not None for row in q["annotators"]),
    "Seconds: the median": lambda q: any(row["median_seconds"] is not None for row in q["annotators"]),
    'What stands under "look at"': lambda q: any(row["flags"] for row in q["annotators"]),
    "The consensus weighs": lambda q: q["preferences"],
}  # fmt: skip


def test_the_page_explains_what_stands_on_it_and_nothing_else() -> None:
    validation = {"total": 0, "usable": 0, "pairs": 0, "quarantined": [], "set_aside": 0, "needed": None, "counts": {}}
    asked, answers, said = crowd()
    one = [preference("1", "p0-0", "p0-1", "tie", prompt_id="p0", who="ann")]  # nothing decided, nobody to agree with
    told = []
    for feedback in (said, one, []):
        with store_of(feedback, answers, asked) as store:
            found = check(store)
        page = html.unescape(render("x", validation, found))
        shown = {words for words in EXPLAINED if words in page}
        assert shown == {words for words, stands in EXPLAINED.items() if stands(found)}
        told.append(len(shown))
    assert told[0] > told[1] > told[2] == 0


@pytest.mark.parametrize("filled", [False, True])
def test_little_or_no_feedback_is_no_error(filled: bool) -> None:
    with Store.open(":memory:") as store:
        if filled:
            fill(store)
        found = check(store)
    text = lines(found)
    assert text
    validation = {"total": 0, "usable": 0, "pairs": 0, "quarantined": [], "set_aside": 0, "needed": None, "counts": {}}
    assert "<html" in render("x", validation, found)
    if not filled:
        assert text == ["quality       nothing to measure: no preferences"]


def test_the_table_of_annotators_with_short_names_is_in_line() -> None:
    nothing = {"share": None, "n": 0}
    row = {"annotator": "ann", "verdicts": 3, "accuracy": nothing, "kappa": None, "flags": []}
    head, line = annotator_lines([{**row, "first_shown_wins": nothing, "calibration_passed": nothing}])
    assert head.index("verdicts") + len("verdicts") == line.index("3") + 1


def test_the_command_prints_writes_json_and_writes_a_page(tmp_path: Path) -> None:
    asked, answers, said = crowd(20)
    path = tmp_path / "feedback.db"
    with Store.open(path) as store:
        store.add_prompts(asked)
        store.add_completions(answers)
        store.add_feedback(said)
    page = tmp_path / "quality.html"
    printed = rlhf_loop("feedback", "check", path, "--html", page, "--no-near-duplicates").stdout
    assert "240 pieces of feedback" in printed
    assert "Fleiss' kappa" in printed
    assert "near-duplicates" not in printed
    assert page.read_text().startswith("<!doctype html>")
    found = json.loads(rlhf_loop("feedback", "check", "--store", path, "--json").stdout)
    assert found["total"] == 240
    assert found["quality"]["near_duplicates"]["pairs"]["n"] == 60
    assert "name one store" in rlhf_loop("feedback", "check", code=2).stderr


def test_an_answer_compared_with_itself_counts_in_no_measure(store: Store, tmp_path: Path) -> None:
    """Validation quarantines it; a circle, a consensus or agreement of it would say nothing."""
    rows = [
        {"prompt": "Q?", "chosen": "Same.", "rejected": "Same.", "annotator": "a"},
        {"prompt": "Q?", "chosen": "Same.", "rejected": " Same.\n", "annotator": "a"},
        {"prompt": "Q?", "chosen": " Same.\n", "rejected": "Same.", "annotator": "b"},
        {"prompt": "Q?", "chosen": "Same.", "rejected": "S ame.", "annotator": "a"},
    ]
    (tmp_path / "same.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_file(store, tmp_path / "same.jsonl")
    found = check(store)
    assert (found["preferences"], found["consensus"]["pairs"], found["agreement"]["pairs"]) == (1, 1, 0)
    assert found["contradictions"]["circles"]["n"] == 1
    assert found["contradictions"]["circles"]["share"] == 0.0
    assert stats(store)["agreement"]["pairs"] == 0
    completions, prompts = {c.id: c for c in store.completions()}, {p.id: p for p in store.prompts()}
    report = validate(store.feedback(), completions, prompts, Validation())
    assert (report.counts["identical"], report.counts["cycle"], len(report.usable)) == (3, 0, 1)
    assert len(votes_of([record for record in store.feedback() if isinstance(record, Preference)])) == 3
