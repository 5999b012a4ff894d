"""What people complain about: reasons by tags and words, shares of judged answers with intervals, and trends."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from samples.cli import rlhf_loop
from samples.feedback import completion, preference, prompt

from rlhf_loop.feedback.quality.themes import THEMES, change_in_words, reads_as_english, themes, themes_of
from rlhf_loop.feedback.quality.themes import lines as theme_lines
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.recipe import Annotation
from rlhf_loop.records import Annotator, Critique, Edit, Feedback, Rating, Skip, Span, Thumb
from rlhf_loop.report.theme_charts import theme_chart


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Far too long, and it repeats itself.", ["length", "clarity"]),
        ("It sounds rude.", ["tone"]),
        ("That is factually incorrect.", ["facts"]),
        ("It does not answer the question.", ["relevance"]),
        ("I cannot understand it.", ["clarity"]),
        ("It is cut off in the middle.", ["completeness"]),
        ("This could be dangerous.", ["safety"]),
        ("Use bullet points.", ["format"]),
        ("Clearly not what I wanted, completely useless.", ["other"]),
        ("He is a factor listening at a tablespoon.", ["other"]),  # words that only begin like some of the list
        ("Zu viele Wiederholungen.", ["other"]),
        ("", ["other"]),
    ],
)
def test_a_text_has_the_themes_of_its_words(text: str, expected: list[str]) -> None:
    assert themes_of(text) == expected


def test_tags_go_before_words_and_those_of_the_annotation_page_all_have_a_theme() -> None:
    assert themes_of("It is rude.", ["too long"]) == ["length"]
    assert themes_of("It is rude.", ["house style"]) == ["other"]
    assert themes_of("It is rude.", [" "]) == ["tone"]
    assert [themes_of("", [tag]) for tag in Annotation().tags] == [
        ["facts"], ["completeness"], ["relevance"], ["clarity"], ["length"], ["safety"],
    ]  # fmt: skip


def test_english_is_told_from_others() -> None:
    assert reads_as_english("I did not like the way it said that.")
    assert reads_as_english("Just not it.")
    for text in ("Het antwoord is te saai en niet goed", "Trop bavard et pas beau du tout", "答えは間違っています"):
        assert not reads_as_english(text)


def said(kind: type[Any], id: str, of: str, who: str = "ann", round: int = 0, **values: Any) -> Any:
    annotator = values.pop("annotator", None) or Annotator(id=who)
    return kind(id=id, prompt_id=of[0], completion_id=of, annotator=annotator, round=round, **values)


def test_shares_are_of_judged_answers_and_each_complaint_counts_once() -> None:
    long = "It is far too long to read."
    feedback: list[Feedback] = [
        preference("f1", "p1", "p2", "a", prompt_id="p", comment=long),
        said(Critique, "f2", "p2", comment=long, spans=(Span(start=0, end=9, label="unclear"),)),  # the same, tagged
        preference("f3", "q1", "q2", "tie", prompt_id="q", comment=long),  # about neither
        preference("f4", "r1", "r2", "both_bad", prompt_id="r", comment="Both are wrong."),
        said(Thumb, "f5", "s1", label=True, comment="Nice and short."),  # no complaint
        said(Thumb, "f6", "s2", label=False),  # without words
        said(Rating, "f7", "t1", score=1.0, comment="It is rude to me."),
        said(Rating, "m", "t2", score=3.0, comment="It could be a bit longer."),  # of the middle: neither
        said(Edit, "f8", "t2", edited_completion="Better.", comment="It was rude to her."),
        said(Critique, "f9", "s1", comment="It could be shorter still."),  # by who called it good
        Skip(id="f10", prompt_id="u", annotator=Annotator(id="ann"), completion_id="u1", comment="Too long for me."),
    ]
    found = themes(feedback)
    assert (found["whose"], found["others"], found["not_english"]) == ("human", {}, 0)
    assert (found["complaints"], found["judged"]) == (5, 10)
    shown = {theme: (row["complaints"], row["share"], row["n"]) for theme, row in found["themes"].items()}
    assert shown == {"facts": (2, 0.2, 10), "tone": (2, 0.2, 10), "clarity": (1, 0.1, 10)}
    assert list(shown) == ["tone", "facts", "clarity"]
    assert all(row["change"] is None and len(row["rounds"]) == 1 for row in found["themes"].values())


def test_simulated_complaints_are_never_peoples() -> None:
    rule = Annotator(id="simulated:rule", kind="CODE")
    simulated = said(Critique, "s", "p1", annotator=rule, source="simulated", comment="It is too long.")
    found = themes([simulated])
    assert found["whose"] == "simulated"
    assert "simulated annotator, not by people" in "\n".join(theme_lines(found))
    both = themes([simulated, said(Critique, "h", "q1", comment="It is rude.")])
    assert (both["whose"], both["others"], list(both["themes"])) == ("human", {"simulated": 1}, ["tone"])
    assert both["judged"] == 1


def test_what_the_lexicon_cannot_know_is_other_and_counted() -> None:
    found = themes([said(Critique, f"f{n}", f"p{n}", comment=text) for n, text in enumerate(FOREIGN)])
    assert list(found["themes"]) == ["other"]
    assert (found["complaints"], found["not_english"]) == (3, 2)
    assert "2 of `other` do not read as English" in "\n".join(theme_lines(found))


FOREIGN = ["Trop bavard et pas beau du tout.", "答えは間違っています。", "I did not like it at all."]


def rounds(shares: dict[int, float], prompts: int) -> list[Feedback]:
    """In each round one judged answer a prompt, of which this share is called too long."""
    feedback: list[Feedback] = []
    for round, share in shares.items():
        for n in range(prompts):
            bad = n < share * prompts
            comment = {"comment": "It is too long."} if bad else {}
            feedback.append(
                Thumb(
                    id=f"{round}-{n}", prompt_id=f"p{n}", completion_id=f"{round}-{n}", round=round, label=not bad,
                    annotator=Annotator(id="ann"), **comment,
                )
            )  # fmt: skip
    return feedback


def test_intervals_of_shares_and_changes_are_those_of_the_binomial_where_each_prompt_has_one_answer() -> None:
    n = 1000
    row = themes(rounds({1: 0.4, 3: 0.2}, n))["themes"]["length"]
    first, last = row["rounds"]
    assert [(r["round"], r["share"], r["n"]) for r in row["rounds"]] == [(1, 0.4, n), (3, 0.2, n)]
    for measured in (first, last):
        error = 1.96 * math.sqrt(measured["share"] * (1 - measured["share"]) / n)
        assert measured["low"] == pytest.approx(measured["share"] - error, abs=0.004)
        assert measured["high"] == pytest.approx(measured["share"] + error, abs=0.004)
    change = row["change"]
    assert (change["from"], change["to"]) == (1, 3)
    assert change["difference"] == pytest.approx(-0.2)
    error = 1.96 * math.sqrt(0.4 * 0.6 / n + 0.2 * 0.8 / n)
    assert change["low"] == pytest.approx(-0.2 - error, abs=0.006)
    assert change["high"] == pytest.approx(-0.2 + error, abs=0.006)
    assert change_in_words(change).endswith("less of it")


def test_a_small_change_is_not_called_one() -> None:
    change = themes(rounds({0: 0.3, 1: 0.2}, 20))["themes"]["length"]["change"]
    assert change["low"] < 0 < change["high"]
    assert change_in_words(change).endswith("no change shown")
    assert change_in_words(themes(rounds({0: 0.1, 1: 0.6}, 200))["themes"]["length"]["change"]).endswith("more of it")


def test_without_a_second_prompt_there_is_no_interval() -> None:
    row = themes(rounds({0: 1.0, 1: 1.0}, 1))["themes"]["length"]
    assert (row["low"], row["rounds"][0]["low"], row["change"]) == (None, None, None)


def test_nothing_said_is_nothing_shown() -> None:
    assert themes([])["whose"] is None
    assert themes([preference("f")])["themes"] == {}
    assert theme_lines(themes([])) == []


def test_the_page_and_the_json_of_a_check_have_them(store: Store, store_url: str, tmp_path: Path) -> None:
    asked = [prompt(f"p{n}") for n in range(4)]
    answers = [completion(f"p{n}-{k}", f"{k} is an answer", p.id) for n, p in enumerate(asked) for k in range(2)]
    given = [
        preference(f"f{n}", f"p{n}-0", f"p{n}-1", prompt_id=f"p{n}", round=n % 2, comment="<b>Too</b> long, and wrong.")
        for n in range(4)
    ]
    store.add_prompts(asked)
    store.add_completions(answers)
    store.add_feedback(given)
    store.close()
    page = tmp_path / "page.html"
    told = rlhf_loop("feedback", "check", store_url, "--html", page, "--no-near-duplicates").stdout
    assert "  length       50% [50%, 50%] (4 complaints)" in told
    assert "What is complained of" in page.read_text()
    assert "Reasons of complaints" in page.read_text()
    found = json.loads(rlhf_loop("feedback", "check", store_url, "--json", "--no-near-duplicates").stdout)
    assert found["quality"]["themes"]["themes"]["length"]["complaints"] == 4
    assert found["critiques"]["by_origin"] == {"human": 4}
    chart = theme_chart(found["quality"]["themes"])
    assert chart is not None
    assert "that people complained of, by reason" in chart.note
    simulated = theme_chart({**found["quality"]["themes"], "whose": "simulated"})
    assert simulated is not None
    assert "that a simulated annotator complained of, by reason" in simulated.note


def test_all_themes_have_a_name_of_their_own() -> None:
    assert THEMES == (
        "length", "tone", "facts", "relevance", "clarity", "completeness", "safety", "format", "other",
    )  # fmt: skip
