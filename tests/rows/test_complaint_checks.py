"""Complaints as checks: which rule they mean, when it holds, and what a new policy's answer makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from samples.feedback import prompt

from rlhf_loop.records import Check, Completion, CritiquedCompletion, Span
from rlhf_loop.reward_columns import columns_of
from rlhf_loop.reward_function import find_function
from rlhf_loop.reward_spec import load_spec
from rlhf_loop.rows.check_rules import RULES, means_a_rule, passes, rules_in
from rlhf_loop.rows.checks import JUDGE, by_rule, checks_of, in_words, result, summary, wanted, with_rules
from rlhf_loop.rows.parts import answer

TWENTY = " ".join(f"word{i}" for i in range(19)) + " end."
LISTED = "Three ways:\n- walk\n- swim"


@pytest.mark.parametrize(
    ("complaint", "text", "finished", "rules"),
    [
        ("too long", TWENTY, True, [("too_long", 18)]),
        ("Shorter, please!", TWENTY, True, [("too_long", 18)]),
        ("62 words are too many for a small screen: cut it to 45 or fewer.", TWENTY, True, [("too_long", 18)]),
        ("It is not too long.", TWENTY, True, []),
        ("It isn't too long, but wrong.", TWENTY, True, []),
        ("Too short, it needs more detail.", TWENTY, True, [("too_short", 23)]),
        ("incomplete", "It was going to", True, [("cut_off", None)]),
        ("It was cut off.", "It ends well.", False, [("cut_off", None)]),
        ("incomplete", "It ends well.", True, []),  # something else is missing: no rule sees it
        ("It repeats itself.", "so we go on and so we go on and", True, [("repetition", None)]),
        ("It repeats the question.", "Why is the sky blue?", True, []),
        ("There is no answer.", "...", True, [("empty", None)]),
        ("no list please", LISTED, True, [("no_list", None)]),
        ("A list or formatting does not fit a small screen.", LISTED, True, [("no_list", None), ("markup", None)]),
        ("I wanted a list.", "You can walk. You can swim.", True, [("list", None)]),
        ("I wanted a list.", LISTED, True, []),
        ("Please leave out the markdown.", "**Walk.**", True, [("markup", None)]),
        ("That is not valid JSON", "{'a': 1}", True, [("json", None)]),
        ("That is not valid JSON", '{"a": 1}', True, []),
        ("Das ist viel zu lang.", TWENTY, True, []),
        ("It names a cause that is not the cause.", TWENTY, True, []),
        ("", TWENTY, True, []),
    ],
)
def test_words_mean_a_rule_that_the_answer_breaks(
    complaint: str, text: str, finished: bool, rules: list[tuple[str, int | None]]
) -> None:
    assert rules_in(complaint, text, finished) == rules


@pytest.mark.parametrize(
    ("rule", "limit", "good", "bad"),
    [
        ("too_long", 3, "One two three.", "One two three four."),
        ("too_short", 3, "One two three.", "One two."),
        ("cut_off", None, "It ends.", "It ends with"),
        ("repetition", None, "One two three four five.", "a b c d a b c d"),
        ("empty", None, "Yes.", "?!"),
        ("no_list", None, "First walk, then swim.", "1. walk\n2. swim"),
        ("list", None, "1. walk\n2. swim", "First walk, then swim."),
        ("markup", None, "First walk.", "# First\nwalk"),
        ("json", None, '[1, 2, "a"]', "It is [1, 2]."),
    ],
)
def test_a_rule_holds_or_not_and_never_for_an_empty_answer(rule: str, limit: int | None, good: str, bad: str) -> None:
    assert passes(rule, limit, good, True)
    assert not passes(rule, limit, bad, True)
    assert not passes(rule, limit, " \n", True)


def test_an_answer_that_was_cut_off_does_not_end() -> None:
    assert not passes("cut_off", None, "It ends.", False)


def test_every_rule_has_words_for_people() -> None:
    assert [wanted(name, 7) for name in RULES if "{" in wanted(name, 7)] == []
    assert wanted("too_long", 18) == "18 words or fewer"
    assert wanted(JUDGE, None) == "the judge finds it better"
    assert means_a_rule("too long")
    assert not means_a_rule("bad answer")


def row(critique: str, tags: tuple[str, ...] = (), **values: Any) -> CritiquedCompletion:
    given = {"id": critique, "completion_id": "c", "feedback_ids": (f"of {critique}",), "label": False, "round": 1}
    return CritiquedCompletion(
        **{
            "prompt_id": "p",
            "group": "p",
            "prompt": (),
            "completion": answer(TWENTY),
            "critique": critique,
            "spans": tuple(Span(start=0, end=4, label=tag) for tag in tags),
            "origin": "human",
            "annotator": "ann",
            **given,
            **values,
        }
    )


def test_what_a_model_complained_of_is_a_check_of_its_own() -> None:
    checks, _ = checks_of([row("It is too long."), row("Too long.", origin="llm")], most=10, judged=False)
    assert [(check.critiques, check.origin) for check in checks] == [
        (("It is too long.",), "human"), (("Too long.",), "llm"),
    ]  # fmt: skip
    assert len({check.id for check in checks}) == 2


def test_complaints_become_checks_of_a_rule_or_the_judge() -> None:
    rows = [
        row("It is too long."),
        row("Wrong cause."),
        row("Good one", label=True),
        row("", ("too long", "unsafe"), round=2, id="tags", feedback_ids=("t",)),
        row("", label=False, id="a thumb"),
        row("Nobody knows.", label=None),
    ]
    checks, left_out = checks_of(rows, most=10, judged=True)
    assert [(c.asks, c.limit, c.critiques, c.feedback_ids, c.origin, c.round) for c in checks] == [
        ("too_long", 18, ("It is too long.", "too long"), ("of It is too long.", "t"), "human", 2),
        (JUDGE, None, ("Wrong cause.", "unsafe"), ("of Wrong cause.", "t"), "human", 2),
    ]
    assert [c.critique_ids for c in checks] == [(("of It is too long.",), ("t",)), (("of Wrong cause.",), ("t",))]
    assert dict(left_out) == {}
    assert all(check.text == TWENTY for check in checks)


def test_who_said_each_of_a_checks_complaints_is_noted_also_where_several_said_the_same() -> None:
    rows = [
        row("", ("too long", "wordy"), id="1", feedback_ids=("by ann",)),
        row("", ("too long",), id="2", feedback_ids=("by bob", "by bob again"), annotator="bob"),
    ]
    (check,), _ = checks_of(rows, most=10, judged=False)
    assert dict(zip(check.critiques, check.critique_ids, strict=True)) == {
        "too long": ("by ann", "by bob", "by bob again"),
        "wordy": ("by ann",),
    }
    asked = result(check, Completion(id="a", prompt_id="p", text="Short.", policy="new", round=2), True, None)
    assert (asked.critiques, asked.critique_ids) == (check.critiques, check.critique_ids)


def test_without_a_judge_only_rules_are_asked_and_the_oldest_are_left_out_over_the_limit() -> None:
    rows = [row("too long", completion_id=f"c{i}", id=str(i)) for i in range(3)]
    checks, left_out = checks_of([row("Wrong cause."), *rows], most=2, judged=False)
    assert [check.completion_id for check in checks] == ["c1", "c2"]
    assert dict(left_out) == {"no_rule_understands_it_and_there_is_no_judge": 1, "older_than_max_checks": 1}
    again, _ = checks_of([*rows, row("Shorten it.", completion_id="c0", id="x")], most=2, judged=False)
    assert [check.completion_id for check in again] == ["c2", "c0"]  # it was said again


def test_what_became_of_complaints_is_counted_with_an_interval_by_prompt_group() -> None:
    checks = [
        Check(id=i, prompt_id=i, group=i, completion_id="c", text=TWENTY, asks="too_long", limit=18, origin="human")
        for i in "0123"
    ]
    short = Completion(id="a", prompt_id="0", text="Short.", policy="new", round=2)
    assert by_rule(checks[0], short)
    outcomes = [(True, None), (True, True), (False, True), (False, False)]
    results = [result(check, short, now, before) for check, (now, before) in zip(checks, outcomes, strict=True)]
    results.append(result(checks[0], short, None, None))
    assert [one.outcome for one in results] == ["fixed", "fixed", "came_back", "still_there", "not_told"]
    found = summary(results, seed=0)
    counted = {
        name: found[name] for name in ("checks", "fixed", "still_there", "came_back", "not_told", "fixed_before")
    }
    assert counted == {
        "checks": 5, "fixed": 2, "still_there": 1, "came_back": 1, "not_told": 1, "fixed_before": 2
    }  # fmt: skip
    share = found["share_fixed"]
    assert (share["mean"], share["n"]) == (0.5, 4)
    assert 0 <= share["low"] < 0.5 < share["high"] <= 1
    assert found["share_came_back"] == 0.5
    assert found["by_asks"] == {"too_long": {"fixed": 2, "came_back": 1, "still_there": 1, "not_told": 1}}
    assert in_words(found) == "2 of 4 complaints fixed, 1 came back; 1 not told"
    nothing = summary([], seed=0)
    assert (nothing["share_fixed"], nothing["share_came_back"]) == (None, None)
    assert in_words(nothing) == "no complaint could be asked again"


def test_the_rules_of_a_prompt_are_a_reward() -> None:
    rows = [row("too long"), row("too long", completion_id="d", completion=answer("one two three four five six.")),
            row("Wrong cause.", prompt_id="q")]  # fmt: skip
    checks, _ = checks_of([*rows, row("incomplete", completion=answer("It was"), completion_id="e")], 10, judged=True)
    asked = with_rules([prompt("p", columns={"unit": "m"}), prompt("q"), prompt("r")], checks)
    assert [one.columns for one in asked] == [
        {"unit": "m", "complaint_checks": ["too_long 5", "cut_off"]}, {}, {}
    ]  # fmt: skip
    folder = Path(__file__).parents[2] / "reward_models" / "complaint_checks"
    reward = find_function(folder, load_spec(folder))
    texts = ["One two.", [{"role": "assistant", "content": "One two three four five six."}], "One two", "Any."]
    columns = columns_of([asked[i] for i in (0, 0, 0, 2)])
    assert reward(completions=texts, finished=[True] * 4, **columns) == [1.0, 0.5, 0.5, None]
    assert reward(completions=texts[:1], finished=[False], **columns_of(asked[:1])) == [0.5]
    assert reward(completions=["Any."]) == [None]
