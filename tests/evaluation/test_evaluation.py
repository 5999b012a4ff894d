from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_loop import evaluation
from rlhf_loop.errors import UserError
from rlhf_loop.evaluation import Models, language_model, text, winrate
from rlhf_loop.evaluation.language_model import Tokens
from rlhf_loop.feedback.intake.prompts import read_prompts
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.models.loading import load_policy
from rlhf_loop.models.turns import Turns, encode_prompts
from rlhf_loop.recipe import Evaluation, Policy, Recipe
from rlhf_loop.records import Completion, Message, Prompt
from rlhf_loop.stages.evaluate import _plain_text
from rlhf_loop.steps.snapshot import snapshot

ROOT = Path(__file__).parents[2]

# win-rate


def _rate(outcomes: list[float], groups: list[str] | None = None, **settings: Any) -> dict[str, Any]:
    return winrate.win_rate(
        outcomes, [0.0] * len(outcomes), groups or [str(i) for i in range(len(outcomes))], **settings
    )


def test_ties_count_half_and_are_counted():
    rate = _rate([1.0, 0.0, -1.0, 0.05], tie_below=0.1)
    assert (rate["mean"], rate["n"], rate["wins"], rate["ties"], rate["losses"]) == (0.5, 4, 1, 2, 1)


def _wilson(p: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


@pytest.mark.parametrize(("wins", "n"), [(48, 64), (32, 64), (150, 200), (12, 20)])
def test_without_ties_the_interval_is_close_to_wilson(wins: int, n: int):
    rate = _rate([1.0] * wins + [-1.0] * (n - wins), bootstrap=20_000)
    low, high = _wilson(wins / n, n)
    assert rate["low"] == pytest.approx(low, abs=0.02)
    assert rate["high"] == pytest.approx(high, abs=0.02)


def test_an_interval_of_all_wins_is_not_a_point():
    rate = _rate([1.0] * 64)
    assert rate["mean"] == rate["high"] == 1.0
    assert 0.9 < rate["low"] <= 0.95  # Wilson's is 0.943


def test_an_interval_of_all_ties_is_narrow_but_not_a_point():
    rate = _rate([0.0] * 64)
    assert rate["mean"] == 0.5
    assert 0.45 <= rate["low"] < 0.5 < rate["high"] <= 0.55


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    for truth in (0.5, 0.8, 0.95):
        covered = 0
        for trial in range(300):
            rate = _rate(list(np.where(generator.random(60) < truth, 1.0, -1.0)), seed=trial, bootstrap=300)
            covered += rate["low"] <= truth <= rate["high"]
        assert covered / 300 >= 0.92


def test_answers_to_one_prompt_do_not_count_as_independent():
    outcomes = [1.0 if i % 4 else -1.0 for i in range(64)]
    together = _rate([o for o in outcomes for _ in range(4)], [str(i) for i in range(64) for _ in range(4)])
    alone = _rate(outcomes)
    apart = _rate([o for o in outcomes for _ in range(4)])
    assert together["high"] - together["low"] == pytest.approx(alone["high"] - alone["low"], rel=0.05)
    assert apart["high"] - apart["low"] < 0.6 * (together["high"] - together["low"])


def test_the_interval_is_a_function_of_the_seed():
    outcomes = [1.0] * 30 + [-1.0] * 20
    assert _rate(outcomes, seed=1) == _rate(outcomes, seed=1)
    assert _rate(outcomes, seed=1) != _rate(outcomes, seed=2)


def test_higher_confidence_gives_a_wider_interval():
    outcomes = [1.0] * 30 + [-1.0] * 20
    wide, narrow = _rate(outcomes, confidence=0.99), _rate(outcomes, confidence=0.8)
    assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]


def test_infinite_scores_are_compared_and_missing_ones_refused():
    rate = winrate.win_rate([math.inf, math.inf, 0.0], [0.0, math.inf, math.inf], ["a", "b", "c"])
    assert (rate["wins"], rate["ties"], rate["losses"]) == (1, 1, 1)
    with pytest.raises(ValueError, match=r"no number for comparison 1 \(prompt b\)"):
        winrate.win_rate([0.0, math.nan], [0.0, 0.0], ["a", "b"])
    with pytest.raises(ValueError, match="no comparisons"):
        winrate.win_rate([], [], [])
    with pytest.raises(ValueError, match="2 and 1 scores"):
        winrate.win_rate([1, 2], [1], ["a", "b"])


def test_no_held_out_prompts_are_said_with_the_setting_that_gives_some(tmp_path):
    recipe = Recipe.load(ROOT / "recipes" / "smoke.yaml")
    with Store.open(":memory:") as store:
        store.add_prompts(read_prompts(recipe.prompts.train[0], "train"))
        with pytest.raises(UserError, match=r"split `test`.*`prompts\.test`"):
            snapshot(store, recipe, 0, tmp_path, "base")
    with pytest.raises(UserError, match=r"prompts\.test"):
        evaluation.evaluate(
            [], [], [], None, judge=lambda p, a: [], judge_name="j", simulated=True, settings=recipe.evaluation
        )


def test_length_matched_keeps_only_answers_of_like_length():
    words_a, words_b = [10] * 10 + [100] * 10, [12] * 10 + [10] * 10
    scores_a = [-1.0] * 10 + [1.0] * 10  # wins exactly where it is longer
    groups = [str(i) for i in range(20)]
    rate = winrate.length_matched(scores_a, [0.0] * 20, words_a, words_b, groups, 0.2)
    assert rate is not None
    assert (rate["n"], rate["wins"], rate["losses"]) == (10, 0, 10)
    assert winrate.length_matched(scores_a, [0.0] * 20, words_a, words_b, groups, 0.1) is None


# text


def test_distinct_counts_different_ngrams_over_all():
    texts = ["the cat sat", "The cat ran"]
    assert text.distinct(texts, 1) == 4 / 6
    assert text.distinct(texts, 2) == 3 / 4
    assert text.distinct(texts, 3) == 1.0
    assert text.distinct(["one"], 2) is None


def test_repeated_ngrams_are_those_seen_before_in_the_same_text():
    assert text.repeated_ngrams(["a b c d a b c d"], 4) == pytest.approx(1 / 5)  # 5 four-grams, 4 of them new
    assert text.repeated_ngrams(["a b c d", "a b c d"], 4) == 0.0
    assert text.repeated_ngrams(["a b"], 4) is None


def test_self_bleu_is_one_for_equal_texts_and_small_for_different_ones():
    assert text.self_bleu(["the cat sat on the mat"] * 3) == pytest.approx(1.0)
    different = text.self_bleu(["the cat sat on a mat", "dogs will never fly over houses"])
    assert different is not None
    assert different < 0.1
    assert text.self_bleu(["only one", ""]) is None


def _naive_self_bleu(texts: list[str]) -> float:
    """Straight from the definition: every text against all others, each n-gram clipped by its highest count."""
    words = [text.tokenize(t) for t in texts]
    values = []
    for i, hypothesis in enumerate(words):
        others = words[:i] + words[i + 1 :]
        logs = []
        for n in range(1, min(4, len(hypothesis)) + 1):
            grams = [tuple(hypothesis[j : j + n]) for j in range(len(hypothesis) - n + 1)]
            clip = {
                g: max(sum(tuple(o[j : j + n]) == g for j in range(len(o) - n + 1)) for o in others) for g in set(grams)
            }
            matched = sum(min(grams.count(g), clip[g]) for g in set(grams))
            logs.append(math.log((matched if matched else 0.1) / len(grams)))
        closest = min((len(o) for o in others), key=lambda size: (abs(size - len(hypothesis)), size))
        penalty = 1.0 if len(hypothesis) >= closest else math.exp(1 - closest / len(hypothesis))
        values.append(penalty * math.exp(sum(logs) / len(logs)))
    return sum(values) / len(values)


def test_self_bleu_equals_the_definition():
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(list("abcde"), size=generator.integers(1, 15))) for _ in range(20)]
    assert text.self_bleu(texts) == pytest.approx(_naive_self_bleu(texts), rel=1e-12)


def _completion(prompt: str, answer: str, sample: int = 0, finished: bool = True, who: str = "p") -> Completion:
    return Completion(
        id=f"{who}-{prompt}-{sample}",
        prompt_id=prompt,
        text=answer,
        policy=who,
        round=1,
        sample=sample,
        tokens=2 * len(answer.split()),
        finish_reason="stop" if finished else "length",
    )


def test_length_gives_words_tokens_and_the_finished_share():
    answers = [_completion("a", "one two three"), _completion("b", "one", finished=False)]
    assert text.length(answers) == {"words": 2.0, "tokens": 4.0, "finished": 0.5}


def test_diversity_counts_empty_answers():
    assert text.diversity(["", " ", "a b c d", "e f g h"])["empty"] == 0.5


# language model

POLICY = Policy(model="tiny", dtype="float32")


@pytest.fixture
def tiny(tiny_policy: Path) -> tuple[Any, Any]:
    return load_policy(tiny_policy, POLICY)


def _changed(model: Any, scale: float = 0.05) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model


def _sequences(vocabulary: int, number: int = 9) -> list[Tokens]:
    generator = np.random.default_rng(3)
    return [
        Tokens(
            prompt=tuple(int(x) for x in generator.integers(0, vocabulary, size=generator.integers(1, 12))),
            answer=tuple(int(x) for x in generator.integers(0, vocabulary, size=i)),
        )
        for i in range(number)
    ]


def _naive(model: Any, item: Tokens) -> torch.Tensor:
    """Log-probabilities at the answer's positions, one sequence without padding, in double precision."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([item.prompt + item.answer])).logits[0].double()
    return logits.log_softmax(-1)[len(item.prompt) - 1 : -1] if item.answer else logits[:0]


@pytest.mark.parametrize("batch_tokens", [1, 40, 8192])
def test_likelihoods_equal_a_naive_reference(tiny_policy: Path, batch_tokens: int, monkeypatch: pytest.MonkeyPatch):
    policy, reference = _changed(load_policy(tiny_policy, POLICY)[0]), load_policy(tiny_policy, POLICY)[0]
    sequences = _sequences(reference.config.vocab_size)
    monkeypatch.setattr(language_model, "CHUNK_LOGITS", 3 * reference.config.vocab_size)  # several chunks an answer
    for item, got in zip(
        sequences, language_model.likelihoods(policy, sequences, reference, batch_tokens), strict=True
    ):
        p, q = _naive(policy, item), _naive(reference, item)
        place = (range(len(item.answer)), item.answer)
        assert got.tokens == len(item.answer)
        assert got.log_prob == pytest.approx(p[place].sum().item(), abs=1e-4)
        assert got.reference_log_prob == pytest.approx(q[place].sum().item(), abs=1e-4)
        assert got.kl == pytest.approx((p.exp() * (p - q)).sum().item(), abs=1e-4)
    assert sum(item.kl for item in language_model.likelihoods(policy, sequences, reference)) > 0.01


def test_kl_of_identical_models_is_exactly_zero(tiny_policy: Path):
    policy, reference = load_policy(tiny_policy, POLICY)[0], load_policy(tiny_policy, POLICY)[0]
    for item in language_model.likelihoods(policy, _sequences(policy.config.vocab_size), reference):
        assert item.kl == 0.0
        assert item.log_prob == item.reference_log_prob


def test_a_peft_policy_is_compared_with_its_base(tiny_policy: Path):
    from peft import LoraConfig, get_peft_model

    base = load_policy(tiny_policy, POLICY)[0]
    adapted = get_peft_model(load_policy(tiny_policy, POLICY)[0], LoraConfig(r=4, target_modules="all-linear"))
    sequences = _sequences(base.config.vocab_size)
    assert all(item.kl == 0.0 for item in language_model.likelihoods(adapted, sequences))  # a fresh adapter is nothing
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1)
    inside = language_model.likelihoods(adapted, sequences)
    outside = language_model.likelihoods(adapted, sequences, base)
    assert [x.kl for x in inside] == pytest.approx([x.kl for x in outside], abs=1e-6)
    assert sum(x.kl for x in inside) > 0.01


def test_kl_is_the_expectation_of_k1_over_all_answers(tiny_policy: Path):
    policy, reference = _changed(load_policy(tiny_policy, POLICY)[0], 0.3), load_policy(tiny_policy, POLICY)[0]
    answers = [Tokens(prompt=(5, 6), answer=(token,)) for token in range(policy.config.vocab_size)]
    stats = language_model.likelihoods(policy, answers, reference)
    probability = np.exp([item.log_prob for item in stats])
    assert probability.sum() == pytest.approx(1, abs=1e-5)
    expected = np.sum(probability * [item.log_prob - item.reference_log_prob for item in stats])
    assert expected > 0.01
    assert [item.kl for item in stats] == pytest.approx([expected] * len(stats), abs=1e-5)


def test_different_vocabularies_are_refused(tiny: tuple[Any, Any], tiny_policy: Path):
    other = load_policy(tiny_policy, POLICY)[0]
    other.resize_token_embeddings(other.config.vocab_size + 8)
    with pytest.raises(UserError, match="same tokenizer"):
        language_model.likelihoods(tiny[0], _sequences(20), other)


def test_without_a_reference_the_error_says_what_to_give(tiny: tuple[Any, Any]):
    with pytest.raises(UserError, match="PeftModel"):
        language_model.likelihoods(tiny[0], _sequences(20))


def test_batches_keep_within_both_limits(monkeypatch: pytest.MonkeyPatch):
    sequences = sorted(_sequences(50, 30), key=lambda item: len(item.prompt + item.answer))
    monkeypatch.setattr(language_model, "BATCH_LOGITS", 2000)
    batches = [[sequences[i] for i in numbers] for numbers in language_model._batches(sequences, 100, 50)]
    assert sorted((item for batch in batches for item in batch), key=sequences.index) == sequences
    assert len(batches) < len(sequences)
    for batch in batches:
        width = max(len(item.prompt + item.answer) for item in batch)
        assert len(batch) == 1 or len(batch) * width <= 100
        assert len(batch) == 1 or len(batch) * max(len(item.answer) for item in batch) * 50 <= 2000


def test_perplexity_is_weighted_by_tokens_and_uniform_models_have_the_vocabulary_size():
    assert language_model.perplexity([-10 * math.log(7), -30 * math.log(7)], [10, 30]) == pytest.approx(7)
    assert language_model.perplexity([-math.log(2), -3 * math.log(4)], [1, 3]) == pytest.approx(2**1.75)
    assert language_model.perplexity([0.0], [0]) is None


def test_plain_text_perplexity_equals_a_naive_reference_and_cuts_long_lines(tiny: tuple[Any, Any]):
    model, tokenizer = tiny
    lines = ["A short line of words.", "", "Another line that is a good deal longer than the first one was. " * 5]
    total, tokens = 0.0, 0
    for line in lines:
        ids = tokenizer(line.strip())["input_ids"]
        for start in range(0, len(ids), 16):
            item = Tokens(prompt=tuple(ids[start : start + 1]), answer=tuple(ids[start + 1 : start + 16]))
            if item.answer:
                total += _naive(model, item)[range(len(item.answer)), item.answer].sum().item()
                tokens += len(item.answer)
    got = language_model.plain_text_perplexity(model, tokenizer, lines, window=16)
    assert got == pytest.approx(math.exp(-total / tokens), rel=1e-5)
    with pytest.raises(UserError, match="plain_text"):
        language_model.plain_text_perplexity(model, tokenizer, ["", " "])


def test_answers_are_encoded_after_their_conversation_with_the_end_where_they_ended(tiny: tuple[Any, Any]):
    _, tokenizer = tiny
    conversation = [Message(role="user", content="Hello there")]
    stopped, cut = language_model.encode_answers(
        Turns(tokenizer), [conversation] * 2, [_completion("a", "Yes."), _completion("a", "Yes.", finished=False)]
    )
    assert list(stopped.prompt) == encode_prompts(tokenizer, [conversation])[0]
    assert stopped.answer == (*cut.answer, tokenizer.eos_token_id)
    assert tokenizer.decode(cut.answer) == "Yes."


# the whole evaluation

SETTINGS = Evaluation.model_validate({"judge": {"kind": "rule"}})
PROMPTS = [Prompt(id=f"q{i}", messages=(Message(role="user", content=f"Question {i}?"),), group="g") for i in range(10)]


def _shorter_is_better(prompts: Any, completions: Any) -> list[float]:
    assert [p.id for p in prompts] == [c.prompt_id for c in completions]
    return [-float(len(c.text.split())) for c in completions]


def _evaluate(candidate: Any, base: Any, previous: Any = None, **more: Any) -> dict[str, Any]:
    settings = {"judge": _shorter_is_better, "judge_name": "brief", "simulated": True, "settings": SETTINGS} | more
    return evaluation.evaluate(PROMPTS, candidate, base, previous, **settings)


def test_evaluate_compares_the_same_samples_of_the_same_prompts():
    candidate = [_completion(p.id, "short answer", s) for s in (0, 1) for p in PROMPTS]
    base = [_completion(p.id, "a much longer answer", s, who="base") for p in reversed(PROMPTS) for s in (1, 0)]
    previous = [_completion(p.id, "short" if s else "quite a long answer", s) for p in PROMPTS for s in (0, 1)]
    result = _evaluate(candidate, base, previous)
    assert result["win_rate_vs_base"]["wins"] == 20
    assert (result["win_rate_vs_previous"]["wins"], result["win_rate_vs_previous"]["losses"]) == (10, 10)
    assert result["length_matched_win_rate_vs_base"] is None
    assert result["judge"] == {"name": "brief", "simulated": True, "candidate": -2, "base": -4, "previous": -2.5}
    assert result["length"]["ratio"] == 0.5
    assert len(result["rows"]) == 20
    assert result["rows"][0]["base_id"] == "base-q0-0"


def test_in_the_first_round_the_previous_policy_is_the_base():
    candidate = [_completion(p.id, "short answer") for p in PROMPTS]
    base = [_completion(p.id, "a longer answer") for p in PROMPTS]
    result = _evaluate(candidate, base)
    assert result["win_rate_vs_previous"] == result["win_rate_vs_base"]
    assert result["kl"] is None


def test_the_proxy_is_reported_beside_the_judge():
    candidate = [_completion(p.id, "short answer") for p in PROMPTS]
    base = [_completion(p.id, "a longer answer") for p in PROMPTS]
    result = _evaluate(candidate, base, proxy=lambda p, c: [float(len(x.text)) for x in c])
    assert result["proxy"]["win_rate_vs_base"]["losses"] == 10
    assert result["win_rate_vs_base"]["wins"] == 10


def test_answers_to_other_prompts_are_refused_by_name():
    candidate = [_completion(p.id, "short answer") for p in PROMPTS]
    with pytest.raises(UserError, match="sample 0 of prompt q3"):
        _evaluate(candidate, [c for c in candidate if c.prompt_id != "q3"])
    with pytest.raises(UserError, match="prompt q99"):
        _evaluate([*candidate, _completion("q99", "x")], candidate)
    with pytest.raises(UserError, match="is not a number"):
        _evaluate(candidate, candidate, judge=lambda p, c: [math.nan] * len(c))


def test_evaluate_measures_kl_and_perplexity_with_models(tiny_policy: Path):
    import json

    base_model, tokenizer = load_policy(tiny_policy, POLICY)
    policy = _changed(load_policy(tiny_policy, POLICY)[0])
    candidate = [_completion(p.id, "short answer") for p in PROMPTS]
    base = [_completion(p.id, "a longer answer", finished=False) for p in PROMPTS]
    models = Models(policy=policy, reference=base_model, tokenizer=tokenizer, settings=POLICY)
    result = _evaluate(candidate, base, models=models, plain_text=["Some plain text to read.", "And some more of it."])
    assert result["kl"]["per_completion"] == pytest.approx(np.mean([row["kl"] for row in result["rows"]]))
    assert result["kl"]["per_token"] < result["kl"]["per_completion"]
    assert result["perplexity"]["ratio"] == result["perplexity"]["candidate"] / result["perplexity"]["base"]
    assert result["plain_text_perplexity"]["ratio"] != 1
    same = _evaluate(
        base,
        base,
        models=Models(policy=base_model, reference=base_model, tokenizer=tokenizer, settings=POLICY),
        plain_text=["Some plain text."],
    )
    assert same["kl"] == {"per_completion": 0.0, "per_token": 0.0, "k1": 0.0}
    assert same["perplexity"]["ratio"] == same["plain_text_perplexity"]["ratio"] == 1.0
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize("line", ["[1]", '"text"', '{"text": 5}', '{"words": "a"}', "{", b"\xff"])
def test_plain_text_that_is_none_is_named_with_its_file(line: str | bytes, tmp_path: Path) -> None:
    file = tmp_path / "plain.jsonl"
    file.write_bytes(b'{"text": "Prose."}\n' + (line if isinstance(line, bytes) else line.encode()))
    with pytest.raises(UserError, match=r'evaluation\.plain_text: .*plain\.jsonl must hold a \{"text"'):
        _plain_text(file)


def test_collapse_compares_answers_of_one_length_with_the_base_and_with_the_previous_policy():
    base = [_completion("a", "one two three four"), _completion("b", "five six seven")]
    ours = [_completion("a", "x y x y x y"), _completion("b", "five six seven eight")]
    found = text.collapse(ours, base, base)
    # cut to 4 and 3 words: xy yx xy, and five six, six seven: 4 of 5; the base's are 5 of 5
    assert found["distinct_2_ratio"] == pytest.approx(4 / 5)
    assert found["overlap"]["mean"] == 0.0
    longer = [_completion("a", "one two three four five"), _completion("b", "five six seven")]
    again = text.collapse(longer, base, base)
    assert again["distinct_2_ratio"] == 1.0
    assert again["overlap"] == {"mean": 0.5, "low": None, "high": None, "n": 2 - 1}  # b has no run of four
    assert text.collapse([_completion("a", "")], [_completion("a", "")], [_completion("a", "")]) == {
        "distinct_2_ratio": None,
        "overlap": None,
    }


def test_a_policy_that_gives_half_of_all_prompts_one_answer_says_half_as_much():
    base = [_completion(f"p{i}", " ".join(f"w{i}{j}" for j in range(9))) for i in range(40)]
    ours = [_completion(c.prompt_id, base[0].text if i % 2 else c.text) for i, c in enumerate(base)]
    assert text.collapse(ours, base, base)["distinct_2_ratio"] == pytest.approx(0.5)
