from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from samples.feedback import completion, preference, prompt

from rlhf_loop.feedback.intake.import_file import import_file
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.feedback.vague import is_vague
from rlhf_loop.feedback.validation import validate
from rlhf_loop.feedback.validation_report import ValidationReport
from rlhf_loop.recipe import Validation
from rlhf_loop.records import Annotator, Completion, Critique, Feedback, Prompt, Rating, Skip, Span

DATA = Path(__file__).parents[3] / "shared" / "data"
LONG = "the sky is blue because short waves of light are scattered more than long ones"


def check(
    feedback: list[Feedback],
    completions: list[Completion] | None = None,
    prompts: list[Prompt] | None = None,
    **settings: object,
) -> ValidationReport:
    known = [completion(id) for id in "abcdef"] if completions is None else completions
    return validate(
        feedback,
        {c.id: c for c in known},
        {p.id: p for p in prompts or [prompt()]},
        Validation(**{"min_pairs": 1, **settings}),
    )


def usable(report: ValidationReport) -> list[str]:
    return [record.id for record in report.usable]


def reasons(report: ValidationReport) -> dict[str, str]:
    return {record.id: reason for record, reason in report.quarantined}


def test_sound_feedback_passes_untouched() -> None:
    feedback = [preference("f1"), preference("f2", "b", "c", comment="Name the cause of it.")]
    report = check(feedback)
    assert report.usable == feedback
    assert (report.quarantined, report.set_aside, report.needed, report.pairs) == ([], [], None, 2)
    assert not any(report.counts.values())


def test_an_annotator_who_repeats_a_verdict_counts_once_however_it_was_shown() -> None:
    report = check([preference("f1"), preference("f2", "b", "a", "b"), preference("f3", who="bob")])
    assert usable(report) == ["f1", "f3"]
    assert reasons(report) == {"f2": "the same as f1"}


def test_a_contradiction_goes_by_majority_with_the_margin_of_the_vote_as_strength() -> None:
    votes = [preference(f"f{i}", who=f"w{i}", winner="b" if i == 3 else "a") for i in range(4)]
    report = check(votes)
    assert usable(report) == ["f0", "f1", "f2"]
    assert {record.strength for record in report.usable} == {0.5}
    assert reasons(report) == {"f3": "outvoted 3 to 1"}
    report = check([preference("f1"), preference("f2", "b", "a", "a", who="bob")])
    assert usable(report) == []
    assert reasons(report)["f2"] == "its pair was judged both ways as often, 1 to 1"
    assert usable(check(votes, contradictions="drop")) == []


def test_ties_and_skips_are_counted_and_set_aside() -> None:
    skip = Skip(id="s", prompt_id="p", a_id="a", b_id="b", annotator=Annotator(id="ann"))
    report = check([preference("f1", winner="tie"), preference("f2", "c", "d", "both_bad"), skip])
    assert (usable(report), report.quarantined, len(report.set_aside)) == ([], [], 3)
    assert [report.counts[name] for name in ("tie", "both_bad", "skip")] == [1, 1, 1]


def test_empty_identical_and_overlong_answers_are_quarantined() -> None:
    completions = [completion("a"), completion("b", " \n"), completion("c", "answer  a"), completion("d", "x " * 21)]
    rating = Rating(id="f4", prompt_id="p", completion_id="d", score=1.0, annotator=Annotator(id="ann"))
    feedback = [preference("f1", "a", "b"), preference("f2", "a", "c"), preference("f3", "a", "d"), rating]
    report = check(feedback, completions, max_words=20)
    assert reasons(report) == {
        "f1": "completion b is empty",
        "f2": "both answers are 'answer a'",
        "f3": "completion d has 21 words, the limit is 20",
        "f4": "completion d has 21 words, the limit is 20",
    }


def test_feedback_about_unknown_prompts_and_completions_is_quarantined() -> None:
    completions = [completion("a"), completion("b"), completion("x", prompt_id="q")]
    feedback = [preference("f1", "a", "nowhere"), preference("f2", prompt_id="gone"), preference("f3", "a", "x")]
    assert reasons(check(feedback, completions)) == {
        "f1": "there is no completion nowhere",
        "f2": "there is no prompt gone",
        "f3": "completion x answers another prompt",
    }


def test_the_training_side_of_a_leak_is_quarantined() -> None:
    prompts = [prompt(), prompt("t", " why is THE sky  blue?", split="test")]
    held_out = [completion("x", prompt_id="t"), completion("y", prompt_id="t")]
    feedback = [preference("f1"), preference("f2", "x", "y", prompt_id="t")]
    report = check(feedback, [completion("a"), completion("b"), *held_out], prompts)
    assert reasons(report) == {"f1": "its prompt also stands in the split test"}
    assert usable(report) == ["f2"]
    assert report.pairs == 0


def test_an_answer_that_stands_in_a_held_out_split_is_a_leak_when_it_is_no_short_phrase() -> None:
    prompts = [prompt(), prompt("j", "And the sea?", split="judge")]
    completions = [completion("a", LONG), completion("b"), completion("c"), completion("x", LONG.upper(), "j")]
    completions += [completion("y", "answer b", "j")]
    report = check([preference("f1"), preference("f2", "b", "c")], completions, prompts)
    assert reasons(report) == {"f1": "completion a also stands in the split judge"}


def test_feedback_on_a_prompt_without_text_is_quarantined_as_empty_and_is_no_leak() -> None:
    prompts = [prompt(text=" "), prompt("t", "", split="test")]
    report = check([preference("f1")], prompts=prompts)
    assert (usable(report), report.counts["empty"], report.counts["leakage"]) == ([], 1, 0)


@pytest.mark.parametrize(
    "text",
    ["bad", "TOO VAGUE", "too vague.", "Wrong!", "not good", "It's just bad.", "The answer is really not very good",
     "A1 is more convincing than A2", "👎", "", "I don't like it", "This makes no sense"],
)  # fmt: skip
def test_vague_critiques_are_recognised(text: str) -> None:
    assert is_vague(text, 3)


@pytest.mark.parametrize(
    "text",
    ["It repeats the first sentence.", "Give a source for the numbers", "Too long by half",
     "Stops in mid-sentence here", "The date is wrong: it was 1969", "不够具体，需要例子"],
)  # fmt: skip
def test_critiques_that_one_can_act_on_are_not_vague(text: str) -> None:
    assert not is_vague(text, 3)


@pytest.mark.parametrize("text", ["too long", "Shorter please", "cut off"])
def test_what_a_rule_understands_is_not_vague_however_short(text: str) -> None:
    assert not is_vague(text, min_words=3)


def test_a_vague_critique_is_not_given_on_and_the_preference_stays() -> None:
    about: dict = {"prompt_id": "p", "completion_id": "b", "annotator": Annotator(id="ann")}
    spans = (Span(start=0, end=3, comment="This year is off by one."),)
    feedback = [
        preference("f1", comment="Bad."),
        Critique(id="f2", comment="wrong", **about),
        Critique(id="f3", **about),
        Critique(id="f4", comment="Bad", spans=spans, **about),
        Critique(id="f5", comment="Say which year it was.", **about),
    ]
    report = check(feedback)
    assert [(record.id, record.comment) for record in report.usable] == [
        ("f1", None),
        ("f4", None),
        ("f5", "Say which year it was."),
    ]
    assert reasons(report) == dict.fromkeys(["f2", "f3"], "a critique too vague to act on")
    assert report.counts["vague_critique"] == 3


def test_preferences_in_a_circle_are_counted_and_stay() -> None:
    circle = [preference("f1", "a", "b"), preference("f2", "b", "c"), preference("f3", "c", "a")]
    chain = [preference("f4", "c", "d"), preference("f5", "d", "e"), preference("f6", "c", "e")]
    report = check(circle + chain)
    assert report.counts["cycle"] == 3
    assert len(report.usable) == 6
    assert check(chain).counts["cycle"] == 0


def test_circles_are_found_as_by_trying_every_path() -> None:
    draw = random.Random(0)
    names = list("abcdef")
    for _ in range(50):
        pairs = [(x, y) for x in names for y in names if x < y and draw.random() < 0.5]
        feedback = [preference(f"{x}{y}", x, y, draw.choice("ab")) for x, y in pairs]
        edges = {(f.a_id, f.b_id) if f.winner == "a" else (f.b_id, f.a_id) for f in feedback}
        reach = set(edges)
        while True:
            more = {(x, z) for x, y in reach for y2, z in reach if y == y2} - reach
            if not more:
                break
            reach |= more
        assert check(feedback).counts["cycle"] == sum((loser, winner) in reach for winner, loser in edges)


def test_too_little_feedback_names_the_number_needed() -> None:
    report = check([preference("f1"), preference("f2", who="bob")], min_pairs=5)
    assert (report.pairs, report.needed) == (1, 4)
    assert "1 usable pairs, 4 more are needed" in report.lines()[-1]


def test_the_report_counts_by_annotator_and_gives_up_to_three_examples() -> None:
    feedback = [preference(f"f{i}", "a", "nowhere", source=f"x.jsonl:{i}") for i in range(5)]
    report = check([*feedback, preference("g", who="bob"), preference("h", winner="tie", who="bob")])
    assert report.per_annotator == {
        "ann": {"given": 5, "usable": 0, "quarantined": 5, "set_aside": 0},
        "bob": {"given": 2, "usable": 1, "quarantined": 0, "set_aside": 1},
    }
    assert report.examples["unknown"] == [f"f{i} (x.jsonl:{i}): there is no completion nowhere" for i in range(3)]
    values = report.to_dict()
    assert (values["total"], values["usable"], values["counts"]["unknown"]) == (7, 1, 5)
    assert len(values["quarantined"]) == 5
    assert any(line.strip().startswith("5 name a prompt") for line in report.lines())


def test_nothing_is_lost_whatever_comes() -> None:
    draw = random.Random(1)
    texts = ["", "short", LONG, "same", "same", "x " * 30]
    completions = [completion(f"c{i}", draw.choice(texts)) for i in range(12)]
    feedback = [
        preference(
            f"f{i}", f"c{draw.randrange(14)}", f"c{draw.randrange(12)}", draw.choice(["a", "b", "tie", "both_bad"]),
            who=draw.choice("xyz"), comment=draw.choice([None, "bad", "Say why it is so."]),
        )
        for i in range(300)
    ]  # fmt: skip
    report = check(feedback, completions, max_words=20)
    found = [*usable(report), *reasons(report), *(record.id for record in report.set_aside)]
    assert sorted(found) == sorted(record.id for record in feedback)


def test_a_hundred_thousand_preferences_take_seconds() -> None:
    completions = {f"c{i}": completion(f"c{i}", f"text {i} {LONG}") for i in range(20_000)}
    draw = random.Random(0)
    ids = list(completions)
    feedback = [preference(f"f{i}", draw.choice(ids), draw.choice(ids), who=f"w{i % 9}") for i in range(100_000)]
    started = time.process_time()
    report = validate(feedback, completions, {"p": prompt()}, Validation())
    assert time.process_time() - started < 30
    assert report.total == 100_000


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the real feedback is not at {DATA.name} beside the checkout")
def test_real_debates_are_validated() -> None:
    with Store.open(":memory:") as store:
        import_file(store, DATA / "ukp_pairs_train.jsonl.gz", redact="none")
        report = validate(
            store.feedback(),
            {c.id: c for c in store.completions()},
            {p.id: p for p in store.prompts()},
            Validation(),
        )
    assert (report.pairs, report.counts["contradiction"], report.needed) == (7150, 12, None)
    assert 0 < report.counts["vague_critique"] < 100


def test_a_critique_of_tags_alone_says_what_is_wrong() -> None:
    tagged = (Span(start=0, end=3, label="too long"),)
    about: dict = {"prompt_id": "p", "completion_id": "b", "spans": tagged}
    of_ann = Critique(id="f1", annotator=Annotator(id="ann"), **about)
    report = check([of_ann, Critique(id="f2", annotator=Annotator(id="bob"), comment="bad", **about)])
    assert [(record.comment, record.spans) for record in report.usable] == [(None, tagged)] * 2
    assert report.counts["vague_critique"] == 1
