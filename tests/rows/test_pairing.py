from __future__ import annotations

import random
import time
from collections import Counter

import pytest

from rlhf_loop.errors import UserError
from rlhf_loop.records import Annotator, Completion, Message, Preference, PreferencePair, Prompt, Question, Score
from rlhf_loop.rows.pairs import PAIRS, pairs_from_feedback, pairs_from_scores
from rlhf_loop.rows.questions import QUESTIONS, choose_questions


def prompt(name: str = "p") -> Prompt:
    return Prompt(id=name, messages=(Message(role="user", content=f"Tell me about {name}."),), group=f"group of {name}")


def completion(name: str, prompt_id: str = "p", text: str | None = None, **more: object) -> Completion:
    values = {"policy": "base", "round": 0, "sample": 0, **more}
    return Completion(id=name, prompt_id=prompt_id, text=f"answer {name}" if text is None else text, **values)


def preference(winner: str, name: str = "f", a: str = "x", b: str = "y", **more: object) -> Preference:
    values = {"annotator": Annotator(id="ann"), "prompt_id": "p", **more}
    return Preference(id=name, a_id=a, b_id=b, winner=winner, **values)


def scored(values: dict[str, float], model: str = "rm") -> list[Score]:
    return [Score(completion_id=name, reward_model=model, value=value) for name, value in values.items()]


XY = {"x": completion("x"), "y": completion("y", finish_reason="length")}


def made(strategy: str, values: dict[str, float], texts: dict[str, str] | None = None, **more: object):
    answers = [completion(name, text=(texts or {}).get(name)) for name in values]
    return pairs_from_scores(strategy, [prompt()], answers, scored(values), **more)


def sides(pairs: list[PreferencePair]) -> list[tuple[str, str]]:
    return [(pair.chosen_id, pair.rejected_id) for pair in pairs]


def test_the_winner_is_chosen_and_provenance_goes_along():
    given = preference("b", strength=0.75, comment="Too long: cut it.", round=2)
    pairs, dropped = pairs_from_feedback([given], XY, {"p": prompt()})
    assert not dropped
    (pair,) = pairs
    assert (pair.chosen_id, pair.rejected_id, pair.margin) == ("y", "x", 0.75)
    assert pair.chosen == ({"role": "assistant", "content": "answer y"},)
    assert pair.prompt == prompt().messages
    assert pair.group == "group of p"
    assert (pair.feedback_ids, pair.critiques, pair.round, pair.origin) == (("f",), ("Too long: cut it.",), 2, "human")
    assert (pair.chosen_finished, pair.rejected_finished) == (False, True)


def test_every_preference_that_gives_no_pair_is_counted_by_reason():
    same = {**XY, "z": completion("z", text=" answer x ")}
    given = [
        preference("tie", "1"),
        preference("both_bad", "2"),
        preference("a", "3", b="gone"),
        preference("a", "4", prompt_id="gone"),
        preference("a", "5", b="z"),
        preference("a", "6", round=5),
        preference("a", "7"),
        preference("b", "8", a="y", b="x"),
    ]
    pairs, dropped = pairs_from_feedback(given, same, {"p": prompt()}, round=5)
    assert sides(pairs) == [("x", "y")]
    assert pairs[0].feedback_ids == ("7", "8")
    assert dropped == {
        "tie": 1,
        "both_bad": 1,
        "unknown_completion": 1,
        "unknown_prompt": 1,
        "identical_texts": 1,
        "of_a_later_round": 1,
        "merged_with_the_same_preference": 1,
    }
    assert sum(dropped.values()) + len(pairs) == len(given)


def test_merged_preferences_have_the_mean_strength_of_those_that_gave_one():
    given = [preference("a", "1", strength=0.2), preference("a", "2", strength=0.6), preference("a", "3")]
    (pair,), _ = pairs_from_feedback(given, XY, {"p": prompt()})
    assert pair.margin == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("kind", "source", "origin"),
    [("HUMAN", "x:1", "human"), ("LLM", "", "llm"), ("CODE", "", "code"), ("CODE", "simulated", "simulated")],
)
def test_the_origin_says_who_judged(kind, source, origin):
    given = preference("a", annotator=Annotator(id="ann", kind=kind), source=source)
    (pair,), _ = pairs_from_feedback([given], XY, {"p": prompt()})
    assert pair.origin == origin


def test_best_worst_takes_the_extremes_with_their_difference_as_margin():
    pairs, summary = made("best_worst", {"a": 0.25, "b": 1.5, "c": -1.0, "d": 0.5})
    assert sides(pairs) == [("b", "c")]
    assert pairs[0].margin == 2.5
    assert (pairs[0].origin, pairs[0].reward_model) == ("reward", "rm")
    assert (summary["pairs"], summary["candidates"]) == (1, 4)


def test_best_random_pairs_the_best_with_each_other_answer_over_seeds():
    rejected = Counter(
        sides(made("best_random", {"a": 0.0, "b": 3.0, "c": 1.0, "d": 2.0}, seed=seed)[0])[0][1] for seed in range(300)
    )
    assert set(rejected) == {"a", "c", "d"}
    assert min(rejected.values()) > 60  # 100 expected of each, standard deviation 8


def test_all_above_margin_makes_exactly_the_pairs_that_differ_enough():
    values = {"a": 0.0, "b": 0.5, "c": 1.0, "d": 1.25}
    pairs, _ = made("all_above_margin", values, min_margin=0.5)
    expected = {(x, y) for x in values for y in values if values[x] - values[y] >= 0.5}
    assert set(sides(pairs)) == expected
    assert len(pairs) == len(expected)


@pytest.mark.parametrize("strategy", PAIRS)
def test_no_strategy_pairs_equal_scores_or_identical_texts(strategy):
    pairs, summary = made(strategy, {"a": 1.0, "b": 1.0})
    assert not pairs
    assert summary["prompts_without_margin"] == 1
    pairs, summary = made(strategy, {"a": 1.0, "b": 0.0}, texts={"a": "same", "b": "same "})
    assert not pairs
    assert (summary["identical_texts"], summary["prompts_with_one_answer"]) == (1, 1)


@pytest.mark.parametrize("strategy", PAIRS)
def test_min_margin_holds_and_the_order_of_the_input_changes_nothing(strategy):
    rng = random.Random(1)
    prompts = [prompt(f"p{i}") for i in range(20)]
    answers = [completion(f"p{i}-{j}", f"p{i}", sample=j) for i in range(20) for j in range(4)]
    scores = scored({answer.id: rng.choice((0.0, 0.4, 1.0)) for answer in answers})
    value = {score.completion_id: score.value for score in scores}
    pairs, _ = pairs_from_scores(strategy, prompts, answers, scores, min_margin=0.5, seed=3)
    assert pairs
    assert all(pair.margin == value[pair.chosen_id] - value[pair.rejected_id] >= 0.5 for pair in pairs)
    rng.shuffle(answers)
    rng.shuffle(scores)
    assert pairs_from_scores(strategy, prompts, answers, scores, min_margin=0.5, seed=3)[0] == pairs


def test_the_summary_accounts_for_every_completion():
    answers = [completion("a"), completion("b"), completion("c"), completion("d", "elsewhere")]
    _, summary = pairs_from_scores("best_worst", [prompt()], answers, scored({"a": 1.0, "b": 0.0, "d": 1.0}))
    assert (summary["candidates"], summary["unscored"], summary["of_other_prompts"]) == (2, 1, 1)


def test_max_pairs_keeps_a_random_share_and_says_how_many_were_left_out():
    prompts = [prompt(f"p{i}") for i in range(30)]
    answers = [completion(f"p{i}-{j}", f"p{i}") for i in range(30) for j in range(2)]
    scores = scored({answer.id: float(answer.id[-1]) for answer in answers})
    kept = [pairs_from_scores("best_worst", prompts, answers, scores, max_pairs=10, seed=seed) for seed in (0, 0, 1)]
    assert [len(pairs) for pairs, _ in kept] == [10, 10, 10]
    assert kept[0][0] == kept[1][0] != kept[2][0]
    assert kept[0][1]["left_out_over_max_pairs"] == 20


def test_unknown_strategies_and_mixed_reward_models_are_refused_with_the_remedy():
    with pytest.raises(UserError, match=r"pairing.strategy: there is no `best`.*best_worst, best_random"):
        made("best", {"a": 1.0})
    with pytest.raises(UserError, match=r"feedback.question_strategy: there is no `any`"):
        choose_questions("any", [], [], None, 1, 0, 0)
    with pytest.raises(UserError, match="several reward models"):
        pairs_from_scores("best_worst", [], [], scored({"a": 1.0}) + scored({"a": 1.0}, model="other"))


def crowd(n_prompts: int = 10, samples: int = 4) -> tuple[list[Prompt], list[Completion], list[Score]]:
    rng = random.Random(0)
    prompts = [prompt(f"p{i}") for i in range(n_prompts)]
    answers = [
        completion(f"p{i}-{j}", f"p{i}", sample=j, text=" ".join(rng.choices("abcdefghijklm", k=8)))
        for i in range(n_prompts)
        for j in range(samples)
    ]
    return prompts, answers, scored({answer.id: rng.random() for answer in answers})


def pair_of(question: Question) -> frozenset[str]:
    return frozenset((question.a_id, question.b_id))


@pytest.mark.parametrize("strategy", QUESTIONS)
@pytest.mark.parametrize("with_scores", [True, False])
def test_every_prompt_is_asked_about_once_before_any_twice(strategy, with_scores):
    prompts, answers, scores = crowd()
    questions = choose_questions(strategy, prompts, answers, scores if with_scores else None, 25, round=1, seed=0)
    asked = [question.prompt_id for question in questions]
    assert set(Counter(asked[:10]).values()) == set(Counter(asked[10:20]).values()) == {1}
    assert len({pair_of(question) for question in questions}) == len({question.id for question in questions}) == 25
    assert [q.priority for q in questions] == sorted((q.priority for q in questions), reverse=True)
    assert all(
        q.a_id != q.b_id and q.a_id.startswith(q.prompt_id) and q.b_id.startswith(q.prompt_id) for q in questions
    )


@pytest.mark.parametrize("strategy", QUESTIONS)
def test_questions_are_the_same_again_and_never_repeat_what_was_asked(strategy):
    prompts, answers, scores = crowd()
    first = choose_questions(strategy, prompts, answers, scores, 25, round=1, seed=0)
    assert choose_questions(strategy, prompts, answers[::-1], scores[::-1], 25, round=1, seed=0) == first
    asked = {pair_of(question) for question in first}
    rest = choose_questions(strategy, prompts, answers, scores, 100, round=2, seed=0, already_asked=asked)
    assert len(rest) == 10 * 6 - 25
    assert not asked & {pair_of(question) for question in rest}
    # five prompts had three questions, five had two: those with fewer come first
    assert {question.prompt_id for question in rest[:5]} == {
        prompt_id for prompt_id, n in Counter(q.prompt_id for q in first).items() if n == 2
    }


def test_scored_strategies_ask_what_their_names_say():
    values = {"a": 0.0, "b": 0.7, "c": 1.0, "d": 0.9}
    answers = [completion(name) for name in values]
    expected = {"closest": {"c", "d"}, "best_two": {"c", "d"}, "best_worst": {"a", "c"}}
    for strategy, ids in expected.items():
        (question,) = choose_questions(strategy, [prompt()], answers, scored(values), 1, 0, 0)
        assert pair_of(question) == ids
    values["d"] = 0.65
    (question,) = choose_questions("closest", [prompt()], answers, scored(values), 1, 0, 0)
    assert pair_of(question) == {"b", "d"}
    assert question.reason == "scores differ by 0.05"


def test_closest_takes_the_least_certain_prompts_when_questions_are_few():
    prompts, answers, scores = crowd(50)
    value = {score.completion_id: score.value for score in scores}
    questions = choose_questions("closest", prompts, answers, scores, 10, 0, 0)
    gaps = [abs(value[q.a_id] - value[q.b_id]) for q in questions]
    smallest = sorted(
        min(abs(value[f"p{i}-{j}"] - value[f"p{i}-{k}"]) for j in range(4) for k in range(j)) for i in range(50)
    )
    assert gaps == pytest.approx(smallest[:10])


def test_spread_asks_about_the_answers_that_share_the_fewest_words():
    texts = {"a": "ice floats on water", "b": "ice floats on cold water", "c": "because frozen things weigh less"}
    answers = [completion(name, text=text) for name, text in texts.items()]
    (question,) = choose_questions("spread", [prompt()], answers, None, 1, 0, 0)
    assert "c" in pair_of(question)


def test_identical_answers_are_never_asked_about():
    answers = [completion("a", text="same"), completion("b", text="same")]
    assert choose_questions("random", [prompt()], answers, None, 5, 0, 0) == []


def test_the_better_scored_answer_stands_on_either_side():
    prompts, answers, scores = crowd(200)
    value = {score.completion_id: score.value for score in scores}
    questions = choose_questions("best_worst", prompts, answers, scores, 200, 0, 0)
    first = sum(value[q.a_id] > value[q.b_id] for q in questions)
    assert 70 < first < 130  # 100 expected, standard deviation 7


def test_a_hundred_thousand_candidates_take_seconds():
    prompts, answers, scores = crowd(20_000, 5)
    started = time.process_time()
    assert len(choose_questions("closest", prompts, answers, scores, 64, 0, 0)) == 64
    assert len(choose_questions("spread", prompts, answers, None, 64, 0, 0)) == 64
    assert pairs_from_scores("best_worst", prompts, answers, scores)[1]["pairs"] > 19_000
    assert time.process_time() - started < 30
    many = [completion(f"c{i}", text=f"text {i}") for i in range(20_000)]
    assert len(choose_questions("spread", [prompt()], many, None, 64, 0, 0)) == 64


def test_diverse_takes_the_rarest_good_answer_and_the_commonest_bad_one():
    texts = {
        "best": "a cat sat on the mat",
        "rare": "purple thunder sang quietly",
        "plain": "a cat sat on the hat",
        "odd": "zebras juggle seven lemons",
        "worst": "a cat sat on the bat",
    }
    values = {"best": 1.0, "rare": 0.8, "plain": 0.3, "odd": 0.1, "worst": 0.0}
    pairs, _ = made("diverse", values, texts)
    assert sides(pairs) == [("rare", "worst")]  # `plain` is as common, and scored higher
    assert pairs[0].margin == pytest.approx(0.8)
    assert sides(made("best_worst", values, texts)[0]) == [("best", "worst")]


def test_diverse_makes_no_pair_where_all_scores_are_equal_or_the_margin_is_small():
    assert made("diverse", {"x": 1.0, "y": 1.0})[0] == []
    assert made("diverse", {"x": 1.0, "y": 0.9}, min_margin=0.2)[0] == []
    assert sides(made("diverse", {"x": 1.0, "y": 0.9})[0]) == [("x", "y")]
