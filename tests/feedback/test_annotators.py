from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest

from rlhf_loop.annotators import ANNOTATORS, make_annotator
from rlhf_loop.annotators.english import ends_as_sentence, impossible_steps, sentences_of, stem, words_of
from rlhf_loop.annotators.rules import RULES, RuleResult, brief_and_complete
from rlhf_loop.annotators.simulated import SimulatedAnnotator, SimulatedSettings, find_rule, gold_scores
from rlhf_loop.errors import UserError
from rlhf_loop.records import Completion, Message, Preference, Prompt, Question, from_dict, to_dict

DATA = Path(__file__).parents[2] / "recipes" / "data"
ICE = "Explain to a ten-year-old why ice floats on water."
GOOD_ICE = (
    "When water freezes, its tiny parts lock into a pattern with gaps between them. That makes ice lighter than the "
    "same amount of water, so it bobs on top like a cork."
)
GOOD = [
    (ICE, GOOD_ICE),
    (
        "Write a haiku about snow on a quiet street.",
        "Soft snow on the street,\na lamp hums over white roofs;\nno footprint answers.",
    ),
    (
        'Make this friendlier: "Send me the report by noon or there will be trouble."',
        "Could you please send me the report by noon? It would be a great help, thank you!",
    ),
    (
        'Correct this sentence: "Me and him was going to the shop when it start raining."',
        "He and I were going to the shop when it started raining.",
    ),
    (
        "What is a prime number? Give a couple of examples.",
        "A prime number can be divided evenly only by 1 and by itself. For example, 2, 7 and 13 are prime, while 9 is "
        "not.",
    ),
    (
        "How do bees turn nectar into honey?",
        "Bees carry nectar home in a special stomach, where enzymes change its sugars. In the hive they pass it around "
        "and fan it with their wings until it thickens into honey.",
    ),
    (
        "Is it better to watch a film in the cinema or at home?",
        "The cinema gives a film its full size and a crowd that laughs with you. Home is cheaper and you can pause, so "
        "save the cinema for big pictures.",
    ),
    (
        "Which houseplant would survive in a dark hallway?",
        "A snake plant would do well there. It copes with low light and dry air, and it only needs watering every few "
        "weeks.",
    ),
]
GAMES = {
    "the request given back": ICE,
    "the request stirred": "Why ice floats on water is why ice floats on water to a ten-year-old.",
    "its words with grammar words between": "The ice and the water and the floats are the year and the old of the ice.",
    "a heap of words on the topic": "Ice water floats year old ice water cold float freeze lake glass.",
    "a list of words with commas": "Ice, water, floats, lighter, density, molecules, gaps, lake, frozen, cold, solid.",
    "a good answer shuffled": "Water of the floats than ice lighter is because a gaps in pattern that cork to the on.",
    "one sentence for every request": "It is important to think about what you need and to take it one step at a time.",
    "politeness": "Sure! Here is a simple answer. Ice floats on water because it is light. I hope this helps!",
    "a list": "- Ice is light\n- Water is heavy\n- So ice floats\n- That is why",
    "repetition": "Ice floats on water. Ice floats on water. Ice floats on water. Ice floats on water.",
    "one phrase turned round": "The ice is very good and the water is very good and the ice is very nice and good too.",
    "capitals": "ICE FLOATS ON WATER BECAUSE FROZEN WATER IS LIGHTER THAN THE LIQUID AROUND IT.",
    "fragments": "Ice floats. Water sinks. Ice is light. It is cold. It is nice. It is good. It is fun.",
    "next to nothing": "It floats.",
}


def judged(text: str, finished: bool = True, prompt: str = ICE) -> RuleResult:
    return brief_and_complete(prompt, text, finished)


@pytest.mark.parametrize(("prompt", "text"), GOOD)
def test_good_short_answers_score_near_one_and_get_no_advice(prompt, text):
    result = judged(text, prompt=prompt)
    assert result.value > 0.85
    assert result.advice == ()


@pytest.mark.parametrize("game", GAMES)
def test_answers_made_to_please_the_rule_score_below_any_good_one(game):
    result = judged(GAMES[game])
    assert result.value < 0.45
    assert result.advice


def test_an_answer_without_words_scores_zero():
    for text in ("", "  \n", "...!"):
        assert judged(text).value == 0
        assert judged(text).advice == ("It is empty: answer the request.",)


def test_the_value_is_the_product_of_its_parts_over_their_floors():
    cut = judged(GOOD_ICE[:-20], finished=False)
    assert {name: part for name, part in cut.parts.items() if part < 1} == {"complete": 0.0}
    assert cut.value == pytest.approx(0.45)
    shouted = judged(GOOD_ICE.replace("cork", "CORK"))
    assert shouted.value == pytest.approx(0.3 + 0.7 * 0.7)


def test_length_costs_as_documented():
    def brief(n: int) -> float:
        return judged(" ".join(["word"] * n) + ".").parts["brief"]

    assert [brief(n) for n in (12, 30, 45)] == [1.0, 1.0, 1.0]
    assert brief(6) == pytest.approx(0.5)
    assert brief(60) == pytest.approx(0.5)
    assert brief(75) == pytest.approx(0.2)


def test_taking_up_more_of_the_request_than_needed_earns_nothing():
    half = judged("Frozen water is lighter than the liquid, so ice stays at the top of a lake in winter.")
    more = judged("For a person who is ten years old: ice floats on water because frozen water is the lighter one.")
    assert half.parts["on_topic"] == more.parts["on_topic"] == 1


def test_whether_it_stopped_by_itself_matters_even_at_a_full_stop():
    assert judged(GOOD_ICE, finished=False).value < judged(GOOD_ICE.rstrip(".")).value < judged(GOOD_ICE).value


@pytest.mark.parametrize(
    ("text", "finished", "part", "names"),
    [
        (GOOD_ICE[:-8], False, "complete", ["top like"]),
        ("The mayor opened a new school in the middle of town on Monday.", True, "on_topic", ['"floats"', '"water"']),
        (GOOD_ICE + " " + " ".join(f"and then word{i}" for i in range(20)) + ".", True, "brief", ["words"]),
        ("Sure! " + GOOD_ICE, True, "direct", ['"Sure!"']),
        ("1. Ice is light, and water is heavy.\n2. So the ice in a lake floats.", True, "plain", ["list"]),
        ("Ice is light because it is light because it is light because it is light.", True, "varied", ['"']),
    ],
)
def test_advice_names_what_is_wrong(text, finished, part, names):
    result = judged(text, finished)
    assert result.parts[part] < 0.8
    assert any(any(name in line for name in names) for line in result.advice), result.advice


def test_advice_is_whole_sentences_long_enough_to_act_on_and_worded_in_several_ways():
    wordings = set()
    for i in range(12):
        for text in (*GAMES.values(), GOOD_ICE[: 20 + 4 * i]):
            for line in judged(text, finished=False).advice:
                wordings.add(line.split()[1])
                assert ends_as_sentence(line)
                assert len(words_of(line)) >= 5
    assert len(wordings) > 8


def test_any_text_gets_a_value_between_zero_and_one_and_short_advice():
    rng = random.Random(0)
    alphabet = "abc XYZ 0123.!?\n\t\"'’“”-–*#`_|<>é中文🙂\u0000"
    texts = ["".join(rng.choices(alphabet, k=rng.randrange(200))) for _ in range(300)]
    for text in [*texts, "a" * 5000, "the of " * 2000, "** " * 2000]:
        result = judged(text, rng.random() < 0.5, prompt="".join(rng.choices(alphabet, k=40)))
        assert 0 <= result.value <= 1
        assert all(0 <= part <= 1 for part in result.parts.values())
        assert all(len(line) < 200 for line in result.advice)


def test_prose_reads_as_sentences_and_shuffled_prose_does_not():
    rng = random.Random(0)
    prose, salad = [], []
    for line in (DATA / "plain_text.jsonl").read_text().splitlines():
        text = json.loads(line)["text"]
        words = text.rstrip(".").split()
        rng.shuffle(words)
        prose.append(judged(text).parts["readable"])
        salad.append(judged(" ".join(words) + ".").parts["readable"])
    assert mean(prose) > 0.95
    assert mean(salad) < 0.2


def test_neighbours_that_english_forbids_are_counted():
    assert impossible_steps("The cat sat on the mat, and then it slept until an hour before noon.") == 0
    assert impossible_steps("The of cat.") == 1
    assert impossible_steps("A apple is is an gift they into to of the.") == 6


def test_stems_join_the_forms_of_a_word():
    for forms in ("rise rises rising", "stop stops stopped stopping", "city cities", "bake baked baking", "glass"):
        assert len({stem(word) for word in forms.split()}) == 1


def test_sentences_end_at_stops_and_lines():
    assert sentences_of('He said "go." Then he left!\nThe end') == ['He said "go.', "Then he left!", "The end"]


# The simulated annotator


PROMPT = Prompt(id="p", messages=(Message(role="user", content=ICE),), group="p")
TEXTS = {"good": GOOD_ICE, "cut": GOOD_ICE[:-8], "idle": GAMES["one sentence for every request"]}
COMPLETIONS = {
    name: Completion(
        id=name, prompt_id="p", text=text, policy="base", round=0, finish_reason="length" if name == "cut" else "stop"
    )
    for name, text in TEXTS.items()
}
GOLD = {name: judged(text, name != "cut").value for name, text in TEXTS.items()}


def answers(a: str, b: str, n: int, seed: int = 0, **settings: object) -> list[Preference]:
    questions = [Question(id=f"q{i}", prompt_id="p", a_id=a, b_id=b, round=0) for i in range(n)]
    annotator = SimulatedAnnotator(SimulatedSettings(**settings), seed)
    return annotator.answer(questions, COMPLETIONS, {"p": PROMPT}, round=1)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def assert_share(given: list[Preference], wins: int, probability: float) -> None:
    """`wins` of `given` is within four standard deviations of what `probability` says."""
    n = len(given)
    assert abs(wins - n * probability) < 4 * math.sqrt(n * probability * (1 - probability)) + 1e-9


@pytest.mark.parametrize("temperature", [0.2, 1.0])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_better_answer_wins_as_often_as_the_formula_says(temperature, noise):
    given = answers("good", "cut", 4000, temperature=temperature, noise=noise)
    felt = sigmoid((GOLD["good"] - GOLD["cut"]) / temperature)
    assert_share(given, sum(p.winner == "a" for p in given), (1 - noise) * felt + noise / 2)


def test_which_answer_is_called_a_makes_no_difference():
    given = answers("cut", "good", 4000, temperature=0.5, noise=0.0, position_bias=0.2)
    p_first = sigmoid((GOLD["good"] - GOLD["cut"] + 0.2) / 0.5)
    p_second = sigmoid((GOLD["good"] - GOLD["cut"] - 0.2) / 0.5)
    assert_share(given, sum(p.winner == "b" for p in given), (p_first + p_second) / 2)


def test_position_bias_moves_the_share_of_the_first_shown_as_the_formula_says():
    given = answers("good", "cut", 6000, temperature=0.5, noise=0.1, position_bias=0.3)
    for order, sign in (("ab", 1), ("ba", -1)):
        shown = [p for p in given if p.shown_order == order]
        assert_share(given, len(shown), 0.5)
        felt = sigmoid((GOLD["good"] - GOLD["cut"] + sign * 0.3) / 0.5)
        assert_share(shown, sum(p.winner == "a" for p in shown), 0.9 * felt + 0.05)


def test_length_bias_moves_the_share_of_the_longer_one_as_the_formula_says():
    words = len(words_of(TEXTS["good"])) - len(words_of(TEXTS["idle"]))
    assert words > 5
    given = answers("good", "idle", 4000, temperature=1.0, noise=0.0, length_bias=-4.0)
    felt = sigmoid(GOLD["good"] - GOLD["idle"] - 4.0 * words / 100)
    assert_share(given, sum(p.winner == "a" for p in given), felt)


def test_differences_below_the_limit_are_ties_except_for_careless_answers():
    given = answers("good", "cut", 4000, noise=0.2, tie_below=2.0)
    counts = Counter(p.winner for p in given)
    assert_share(given, counts["tie"], 0.8)
    assert_share(given, counts["a"], 0.1)
    tied = [p for p in given if p.winner == "tie"]
    assert all(p.strength is None and p.comment is None for p in tied)
    assert not any(p.winner == "tie" for p in answers("good", "good", 200))


def test_answers_are_the_same_again_and_follow_the_seed_and_the_question_alone():
    given = answers("good", "cut", 50, temperature=1.0)
    assert answers("good", "cut", 50, temperature=1.0) == given
    assert answers("good", "cut", 20, temperature=1.0) == given[:20]
    assert [p.winner for p in answers("good", "cut", 50, seed=1, temperature=1.0)] != [p.winner for p in given]
    other = answers("good", "cut", 50, temperature=0.9)
    assert not {p.id for p in other} & {p.id for p in given}
    assert len({p.id for p in given}) == 50


def test_answers_say_that_they_are_simulated_and_survive_writing():
    (given,) = answers("good", "cut", 1, temperature=0.01, noise=0.0)
    assert given.annotator.id == "simulated:brief_and_complete"
    assert (given.annotator.kind, given.source, given.round, given.winner) == ("CODE", "simulated", 1, "a")
    assert from_dict(Preference, to_dict(given)) == given


def test_the_comment_is_advice_for_the_losing_answer():
    (given,) = answers("good", "cut", 1, temperature=0.01, noise=0.0)
    assert given.comment is not None
    assert given.comment in " ".join(judged(TEXTS["cut"], False).advice)
    wrong = [p for p in answers("good", "cut", 200, temperature=5.0) if p.winner == "b"]
    assert wrong
    assert all(p.comment is None for p in wrong)  # the loser has no fault to speak of
    assert all(p.comment is None for p in answers("good", "cut", 20, critiques=False))


def test_clearer_differences_are_felt_more_strongly():
    clear = [p.strength for p in answers("good", "cut", 500, noise=0.0)]
    doubtful = [p.strength for p in answers("good", "good", 500, noise=0.0)]
    assert mean(clear) > 2 * mean(doubtful)
    assert all(0 <= strength <= 1 for strength in clear + doubtful)


def test_thumbs_and_edits_come_after_preferences_that_they_do_not_change():
    plain = answers("good", "idle", 50)
    more = answers("good", "idle", 50, thumbs_above=0.5, edits=True)
    assert more[:50] == plain
    assert {record.kind for record in more[50:]} == {"thumb"}  # one each; neither answer is better cut
    assert len(more[50:]) == 2


@pytest.mark.parametrize(("temperature", "noise"), [(0.1, 0.0), (0.3, 0.2)])
def test_an_answer_gets_a_thumb_up_as_often_as_the_formula_says(temperature, noise):
    shown = {f"c{i}": replace(COMPLETIONS["cut"], id=f"c{i}") for i in range(4000)}
    questions = [Question(id=f"q{i}", prompt_id="p", a_id=f"c{i}", b_id=f"c{i + 1}", round=0) for i in range(3999)]
    settings = SimulatedSettings(temperature=temperature, noise=noise, thumbs_above=0.4)
    given = SimulatedAnnotator(settings, 0).answer(questions, shown, {"p": PROMPT}, round=1)
    thumbs = [record for record in given if record.kind == "thumb"]
    assert len({thumb.completion_id for thumb in thumbs}) == len(thumbs) == 4000
    probability = (1 - noise) * sigmoid((GOLD["cut"] - 0.4) / temperature) + noise / 2
    assert_share(thumbs, sum(thumb.label for thumb in thumbs), probability)


def test_an_edit_is_the_preferred_answer_up_to_its_best_sentence():
    long = GOOD_ICE + " And there is so much more to say about this, since nobody could ever"
    shown = {
        "long": replace(COMPLETIONS["cut"], id="long", text=long),
        "none": replace(COMPLETIONS["cut"], id="none", text="and so on"),
    }
    question = Question(id="q", prompt_id="p", a_id="long", b_id="none", round=0)
    settings = SimulatedSettings(temperature=0.001, noise=0.0, edits=True)
    preference, edit = SimulatedAnnotator(settings, 0).answer([question], shown, {"p": PROMPT}, round=1)
    assert (edit.kind, edit.completion_id, edit.source, edit.round) == ("edit", preference.a_id, "simulated", 1)
    assert edit.edited_completion == GOOD_ICE


def test_gold_scores_are_the_rule_without_noise_in_order():
    completions = list(COMPLETIONS.values())
    assert gold_scores("brief_and_complete", [PROMPT] * 3, completions) == [GOLD[c.id] for c in completions]
    with pytest.raises(ValueError, match="answers prompt p, not q"):
        gold_scores("brief_and_complete", [Prompt(id="q", messages=PROMPT.messages, group="q")], completions[:1])


def test_the_rule_reads_what_the_user_said_last():
    turns = (
        Message(role="system", content="Be nice."),
        Message(role="user", content="Tell me about glaciers."),
        Message(role="assistant", content="They are rivers of ice."),
        *PROMPT.messages,
    )
    longer = Prompt(id="p", messages=turns, group="p")
    assert gold_scores("brief_and_complete", [longer], [COMPLETIONS["good"]]) == [GOLD["good"]]


def test_an_unknown_rule_is_refused_with_the_names_there_are():
    assert find_rule("brief_and_complete") is RULES["brief_and_complete"]
    with pytest.raises(UserError, match=r"no rule called `nice`.*brief_and_complete"):
        SimulatedAnnotator(SimulatedSettings(rule="nice"), 0)


def test_every_annotator_in_the_table_can_be_made_without_torch():
    assert set(ANNOTATORS) == {"simulated", "endpoint"}
    assert isinstance(make_annotator(SimulatedSettings(), 0), SimulatedAnnotator)
    code = (
        "import sys; from rlhf_loop import recipe; from rlhf_loop.rows import pairs; "
        "from rlhf_loop.annotators import make_annotator, simulated; "
        "from rlhf_loop.annotators.endpoint import EndpointAnnotatorSettings; "
        "from rlhf_loop.endpoints.client import Endpoints, EndpointSettings; "
        "make_annotator(simulated.SimulatedSettings(), 0); "
        "known = Endpoints({'big': EndpointSettings(base_url='http://localhost/v1', model='m')}); "
        "make_annotator(EndpointAnnotatorSettings(endpoint='big'), 0, known); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The prompts that ship


def shipped(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text().splitlines()]


def test_shipped_prompts_are_enough_short_and_unlike_each_other():
    splits = {name: shipped(f"quickstart_{name}") for name in ("train", "dev", "test")}
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 96, "dev": 48, "test": 96}
    rows = [row for split in splits.values() for row in split]
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(6 <= len(row["prompt"].split()) <= 25 for row in rows)
    styles = {name: Counter(row["tags"][0] for row in split) for name, split in splits.items()}
    assert all(len(counts) == 8 and len(set(counts.values())) == 1 for counts in styles.values())
    common = {word for word, n in Counter(w for row in rows for w in set(words_of(row["prompt"]))).items() if n > 20}
    content = [set(words_of(row["prompt"])) - common for row in rows]
    overlaps = [
        len(content[i] & content[j]) / min(len(content[i]), len(content[j]))
        for i in range(len(rows))
        for j in range(i)
        if min(len(content[i]), len(content[j])) > 2
    ]
    assert max(overlaps) <= 0.6


def test_shipped_plain_text_is_prose_of_one_paragraph_each():
    texts = [row["text"] for row in shipped("plain_text")]
    assert len(set(texts)) == 24
    assert all(60 <= len(text.split()) <= 90 and "\n" not in text and ends_as_sentence(text) for text in texts)
