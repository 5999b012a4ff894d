"""Losses of critiques beside those of updates: what is trained on, what is logged, what is refused.

Run by torchrun, this file is what each of two processes does.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import trl
from peft import load_peft_weights
from samples.updates import CRITIQUED, PAIRS, answer_log_probs, critiqued, policy, settings, train, with_critiques

from rlhf_loop.critique_methods import Hindsight, Unlikelihood
from rlhf_loop.errors import UserError
from rlhf_loop.models.loading import load_policy
from rlhf_loop.models.training import read_log
from rlhf_loop.models.turns import Tokens, Turns
from rlhf_loop.records import CritiquedCompletion, Span
from rlhf_loop.updates.terms.examples import Context, with_told
from rlhf_loop.updates.terms.hindsight import TOLD as HEED
from rlhf_loop.updates.terms.hindsight import HindsightTerm
from rlhf_loop.updates.terms.predict import QUESTION
from rlhf_loop.updates.terms.term import log_probs_of
from rlhf_loop.updates.terms.trainer import WithTerms
from rlhf_loop.updates.terms.unlikelihood import TOLD as DESCRIBED
from rlhf_loop.updates.terms.unlikelihood import UnlikelihoodTerm

UNTESTED = {"hindsight": {"entry_test": False}}  # a random model makes nothing of critiques
ALL = {"predict": {}, "unlikelihood": {}, **UNTESTED}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_peft_weights(str(folder / "policy"), device="cpu")


def first(folder: Path) -> dict[str, Any]:
    return read_log(folder / "train_log.jsonl")[0]


def one_step(algorithm: str, **trainer: Any) -> Any:
    return settings(algorithm, max_steps=1, **trainer)


@pytest.mark.parametrize(
    ("algorithm", "methods"),
    [
        *(("dpo", {name: ALL[name]}) for name in ALL),
        *(("sft", {name: ALL[name]}) for name in ALL),
        *((algorithm, ALL) for algorithm in ("kto", "rejection_sampling", "ppo", "grpo", "rloo")),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)  # fmt: skip
def test_an_update_learns_from_critiques_too(
    tiny_policy: Path, tmp_path: Path, algorithm: str, methods: dict[str, Any]
) -> None:
    update = settings(algorithm, max_steps=4)
    metrics = train(tiny_policy, tmp_path / "with", update, **with_critiques(methods))
    train(tiny_policy, tmp_path / "without", update)
    assert metrics["critiques"].keys() == methods.keys()
    for name, counts in metrics["critiques"].items():
        assert counts["examples"] == (10 if name == "unlikelihood" else 12)  # of four good answers a quarter of eight
        losses = [row[f"critiques/{name}_loss"] for row in read_log(tmp_path / "with" / "train_log.jsonl")]
        assert len(losses) == 4
    theirs = weights(tmp_path / "without")
    assert any((mine - theirs[name]).abs().max() > 1e-4 for name, mine in weights(tmp_path / "with").items())
    assert not any("critiques" in name for row in read_log(tmp_path / "without" / "train_log.jsonl") for name in row)


@pytest.mark.parametrize("algorithm", ["dpo", "kto", "sft", "ppo"])
def test_without_a_method_a_training_is_what_it_is_without_this_code(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    update = settings(algorithm, max_steps=2)
    train(tiny_policy, tmp_path / "block", update, **with_critiques({}))
    monkeypatch.delattr(WithTerms, "compute_loss")
    train(tiny_policy, tmp_path / "stock", update)
    for name in ("policy/adapter_model.safetensors", "train_log.jsonl"):
        assert (tmp_path / "block" / name).read_bytes() == (tmp_path / "stock" / name).read_bytes()


def asked_and_said(row: CritiquedCompletion) -> tuple[list[Any], list[Any]]:
    """The conversation that ends with the critique."""
    question = {"role": "user", "content": QUESTION}
    return [*row.prompt, *row.completion, question], [{"role": "assistant", "content": row.critique}]


def tokens_of(tokenizer: Any, conversation: Sequence[Any], answer: Sequence[Any]) -> int:
    both = tokenizer.apply_chat_template([*conversation, *answer], return_dict=False)
    asked = tokenizer.apply_chat_template(list(conversation), add_generation_prompt=True, return_dict=False)
    return len(both) - len(asked) - len(tokenizer.encode("\n"))


def test_predicted_are_the_critiques_tokens_after_prompt_answer_and_question(tiny_policy: Path, tmp_path: Path) -> None:
    train(tiny_policy, tmp_path, one_step("dpo"), **with_critiques({"predict": {"weight": 0.3, "batch_size": 12}}))
    model, tokenizer = load_policy(tiny_policy, policy(tiny_policy))
    conversations = [asked_and_said(row) for row in CRITIQUED]
    lengths = torch.tensor([tokens_of(tokenizer, *conversation) for conversation in conversations])
    expected = -(answer_log_probs(model, tokenizer, conversations) / lengths).mean()
    logged = first(tmp_path)
    assert logged["critiques/predict_loss"] == pytest.approx(expected.item(), rel=1e-5)
    own = torch.tensor(2.0).log().item()  # of dpo, before its first step
    assert logged["loss"] == pytest.approx(own + 0.3 * expected.item(), rel=1e-4)


def each_log_prob(model: Any, tokenizer: Any, conversation: Sequence[Any], answer: Sequence[Any]) -> torch.Tensor:
    """Of an answer's tokens, computed by itself: (T,)."""
    count = tokens_of(tokenizer, conversation, answer)
    both = tokenizer.apply_chat_template([*conversation, *answer], return_dict=False)
    ids = torch.tensor([both[: len(both) - len(tokenizer.encode("\n"))]])
    with torch.no_grad():
        every = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return every.gather(1, ids[0, 1:, None])[-count:, 0]


def test_answers_are_read_after_prompts_with_the_critique_and_without(tiny_policy: Path, tmp_path: Path) -> None:
    rows = [row for row in CRITIQUED if row.label is False]
    methods = {
        "unlikelihood": {"batch_size": 12, "threshold": 1.0},
        "hindsight": {**UNTESTED["hindsight"], "batch_size": 12},
    }
    train(tiny_policy, tmp_path, one_step("sft"), **with_critiques(methods, rows))  # fmt: skip
    model, tokenizer = load_policy(tiny_policy, policy(tiny_policy))
    contrasts, hindsights, meant, tokens = [], [], 0, 0
    for row in rows:
        untold = each_log_prob(model, tokenizer, row.prompt, row.completion)
        described = with_told(row.prompt, DESCRIBED.format(critique=row.critique))
        told = each_log_prob(model, tokenizer, described, row.completion)
        contrast = [-(1 - u.exp()).log() if t > u else -u for t, u in zip(told, untold, strict=True)]
        contrasts.append((sum(contrast) / len(untold) - told.mean()) / 2)
        meant, tokens = meant + int((told > untold).sum()), tokens + len(untold)
        heeding = with_told(row.prompt, HEED.format(critique=row.critique))
        told = each_log_prob(model, tokenizer, heeding, row.completion)
        hindsights.append(-((told - untold) * untold)[2:].mean())
    logged = first(tmp_path)
    assert logged["critiques/unlikelihood_loss"] == pytest.approx((sum(contrasts) / len(rows)).item(), rel=1e-4)
    assert logged["critiques/unlikelihood_inappropriate"] == pytest.approx(meant / tokens)
    assert logged["critiques/hindsight_loss"] == pytest.approx((sum(hindsights) / len(rows)).item(), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("algorithm", ["dpo", "sft", "ppo"])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_losses_in_bfloat16_are_those_in_float32_to_rounding(
    tiny_policy: Path, tmp_path: Path, algorithm: str, checkpointing: bool
) -> None:
    for name, bf16 in (("half", True), ("full", False)):
        update = one_step(algorithm, bf16=bf16, gradient_checkpointing=checkpointing)
        train(tiny_policy, tmp_path / name, update, **with_critiques(ALL))
    half, full = first(tmp_path / "half"), first(tmp_path / "full")
    assert half["critiques/predict_loss"] == pytest.approx(full["critiques/predict_loss"], rel=2e-2)
    assert half["critiques/predict_loss"] != full["critiques/predict_loss"]


@pytest.mark.parametrize("algorithm", ["dpo", "sft", "kto"])
def test_accumulated_batches_make_the_step_of_one(tiny_policy: Path, tmp_path: Path, algorithm: str) -> None:
    sizes: dict[str, dict[str, int]] = {
        "one": {"per_device_train_batch_size": 8},
        "four": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    }
    for name, size in sizes.items():
        methods = {"predict": {"weight": 1.0}, **UNTESTED}
        update = one_step(algorithm, optim="sgd", **size)
        train(tiny_policy, tmp_path / name, update, **with_critiques(methods))
    assert first(tmp_path / "four")["critiques/predict_loss"] == pytest.approx(
        first(tmp_path / "one")["critiques/predict_loss"], rel=1e-5
    )
    if algorithm != "kto":  # whose KL is of a batch's
        theirs = weights(tmp_path / "four")
        for name, mine in weights(tmp_path / "one").items():
            torch.testing.assert_close(mine, theirs[name], atol=1e-6, rtol=1e-4)


def test_padding_is_told_by_length_where_its_token_is_the_end_token(tiny_policy: Path) -> None:
    model, tokenizer = load_policy(tiny_policy, policy(tiny_policy))
    end = Turns(tokenizer, model).end
    sequences = [Tokens(prompt=(5, 6), answer=(7, end, 0)), Tokens(prompt=(8,), answer=(end,))]  # 0 fills up
    calls = []

    def fused(input_ids: Any, attention_mask: Any, labels: Any, **_: Any) -> Any:
        calls.append(labels.tolist())
        every = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1].log_softmax(-1)
        return type("Output", (), {"log_probs": every.gather(2, input_ids[:, 1:, None])[..., 0]})

    log_probs, mask = log_probs_of(fused, sequences, "cpu")
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert calls == [[[-100, -100, 7, end, 0], [-100, end, -100, -100, -100]]]
    for row, one in enumerate(sequences):
        ids = torch.tensor([[*one.prompt, *one.answer]])
        alone = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        torch.testing.assert_close(log_probs[row][mask[row] > 0], alone[len(one.prompt) - 1 :], atol=1e-5, rtol=1e-5)


def test_the_tokens_that_were_sampled_are_trained_and_an_end_only_where_the_answer_ended(tiny_policy: Path) -> None:
    model, tokenizer = load_policy(tiny_policy, policy(tiny_policy))
    turns = Turns(tokenizer, model)
    context = Context(turns=turns, policy=policy(tiny_policy), limit=None)
    text = CRITIQUED[0].text
    letters = [turns._ids(letter)[0] for letter in text]  # not how the tokenizer would split it
    assert turns.text(letters) == text
    cut = replace(CRITIQUED[0], token_ids=tuple(letters), finished=False)
    for told in (None, "Be brief."):
        assert context.answer(cut, told).answer == tuple(letters)
    ended = replace(CRITIQUED[0], token_ids=(*letters, turns.end))
    assert context.answer(ended).answer == (*letters, turns.end)
    assert context.answer(replace(CRITIQUED[0], finished=False)).answer[-1] != turns.end


def test_marked_answers_are_counted(tiny_policy: Path, tmp_path: Path) -> None:
    rows = [critiqued(0, spans=(Span(start=0, end=2),)), *CRITIQUED[1:]]
    metrics = train(tiny_policy, tmp_path, one_step("sft"), **with_critiques({"unlikelihood": {}}, rows))
    counts = metrics["critiques"]["unlikelihood"]
    assert (counts["marked"], counts["good"]) == (1, 2)
    assert counts["left_out"] == {"more good answers than good_share": 2}


def test_each_rank_makes_the_same_passes_whatever_its_rows_are(tiny_policy: Path) -> None:
    """Where weights are shared out, ranks that make fewer would be waited for."""
    model, tokenizer = load_policy(tiny_policy, policy(tiny_policy))
    context = Context(turns=Turns(tokenizer, model), policy=policy(tiny_policy), limit=None)
    term = UnlikelihoodTerm(Unlikelihood(), CRITIQUED, context, seed=0)
    good = [example for example in term.examples if example.told is None]
    bad = [example for example in term.examples if example.told is not None]
    for examples in (good, bad[:2], [bad[0], *good]):
        passes = []

        def read(sequences: Sequence[Tokens], passes: list[int] = passes) -> tuple[torch.Tensor, torch.Tensor]:
            passes.append(len(sequences))
            return torch.full((len(sequences), 9), -1.0), torch.ones(len(sequences), 9)

        loss, metrics = term.loss(read, examples)
        assert len(passes) == 2
        assert loss.item() == pytest.approx(1.0)  # nothing is more likely when it is told
        share = metrics["inappropriate"].item()
        assert share != share if examples is good else share == 0  # NaN: it says nothing


def test_an_answer_that_somebody_complained_of_is_not_a_good_one(tiny_policy: Path, tmp_path: Path) -> None:
    rows = [*CRITIQUED, critiqued(0, label=True, critique="")]
    metrics = train(tiny_policy, tmp_path, one_step("sft"), **with_critiques({"unlikelihood": {"good_share": 9}}, rows))
    counts = metrics["critiques"]["unlikelihood"]
    assert (counts["examples"], counts["good"]) == (12, 4)
    assert counts["left_out"] == {"called good by one, complained of by another": 1}


def test_without_critiques_a_loss_stays_off_and_says_so(tiny_policy: Path, tmp_path: Path) -> None:
    metrics = train(tiny_policy, tmp_path / "none", one_step("dpo"), **with_critiques(ALL, []))
    for counts in metrics["critiques"].values():
        assert (counts["examples"], counts["off"]) == (0, "there are no critiques yet")
    train(tiny_policy, tmp_path / "off", one_step("dpo"))
    names = ("policy/adapter_model.safetensors", "train_log.jsonl")
    assert [(tmp_path / "none" / n).read_bytes() for n in names] == [(tmp_path / "off" / n).read_bytes() for n in names]


def test_critiques_that_do_not_fit_are_left_out_and_counted(tiny_policy: Path, tmp_path: Path) -> None:
    rows = [critiqued(n, critique="It should say more. " * 400) for n in range(4)]
    metrics = train(tiny_policy, tmp_path, one_step("dpo", max_length=256), **with_critiques(ALL, rows))
    for name in ("predict", "hindsight"):
        assert metrics["critiques"][name] == {
            "examples": 0,
            "left_out": {"longer than 256 tokens": 4},
            "off": "none of 4 critiques can be trained on (4 longer than 256 tokens)",
        }
    assert metrics["critiques"]["unlikelihood"]["left_out"] == {
        "longer than 256 tokens": 3,
        "more good answers than good_share": 1,
    }
    assert not any("critiques" in name for name in first(tmp_path))


def test_hindsight_is_refused_with_the_numbers_where_the_policy_makes_nothing_of_critiques(
    tiny_policy: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"nats a token.*12 prompts|12 answers to 12 prompts.*nats a token.*`predict`"):
        train(tiny_policy, tmp_path, one_step("dpo"), **with_critiques({"hindsight": {}}))
    assert not (tmp_path / "policy").exists()


def test_hindsight_is_refused_where_too_few_critiques_can_tell(tiny_policy: Path, tmp_path: Path) -> None:
    rows = [critiqued(n, critique="It should be a whole sentence.") for n in range(12)]
    with pytest.raises(UserError, match="8 prompts or more"):
        train(tiny_policy, tmp_path, one_step("dpo"), **with_critiques({"hindsight": {}}, rows))


def test_the_control_is_trained_without_the_entry_test(tiny_policy: Path, tmp_path: Path) -> None:
    rows = [replace(row, said_of="c0") for row in CRITIQUED]
    train(tiny_policy, tmp_path, one_step("dpo"), **with_critiques({"hindsight": {}}, rows))
    assert "critiques/hindsight_signal" in first(tmp_path)


def test_the_entry_test_lets_a_policy_pass_that_heeds_right_critiques_alone(tiny_policy: Path) -> None:
    model, tokenizer = load_policy(tiny_policy, policy(tiny_policy))
    context = Context(turns=Turns(tokenizer, model), policy=policy(tiny_policy), limit=None)
    term = HindsightTerm(Hindsight(), CRITIQUED, context, seed=0)
    right = {example.told.prompt: n for n, example in enumerate(term.examples)}

    def read(sequences: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(len(one.answer) for one in sequences)
        mask = torch.tensor([[n < len(one.answer) for n in range(width)] for one in sequences]).float()
        told = torch.tensor([[-0.5 - 0.01 * right[one.prompt] if one.prompt in right else 0.0] for one in sequences])
        return -1 + told.expand(-1, width), mask

    found = term.check(read)
    assert found["right"] == pytest.approx(-0.5 - 0.01 * 5.5, abs=1e-5)
    assert found["unrelated"] == pytest.approx(0.0, abs=1e-6)
    assert found["difference_low"] < found["right"] < found["difference_high"] < 0


def test_the_seams_of_trl_that_this_leans_on_are_there() -> None:
    scaled = dict.fromkeys((trl.DPOTrainer, trl.KTOTrainer, trl.RLOOTrainer), False)
    scaled |= {trl.SFTTrainer: None, trl.GRPOTrainer: True}
    assert {kind: kind.loss_is_scaled_for_ga for kind in scaled} == scaled
    step = inspect.getsource(transformers.Trainer.training_step)
    assert "loss = loss / self.current_gradient_accumulation_steps" in step
    assert "self.model_accepts_loss_kwargs and num_items_in_batch is not None" in step
    assert "self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)" in step
    for kind in scaled:
        assert "self._metrics[mode].clear()" in inspect.getsource(kind.log)  # what is logged with the others


def as_one_of_two(base: Path, output: Path) -> None:
    """What each of the two processes does."""
    train(base, output, two_ranks_step(4), **with_critiques(ALL))


def two_ranks_step(size: int) -> Any:
    return one_step("dpo", optim="sgd", per_device_train_batch_size=size)


def test_two_processes_make_the_step_of_one(tiny_policy: Path, tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", __file__,
         str(tiny_policy), str(tmp_path / "two")],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-4000:]
    train(tiny_policy, tmp_path / "one", two_ranks_step(8), **with_critiques(ALL))
    assert len(PAIRS) == 8
    theirs = weights(tmp_path / "two")
    for name, mine in weights(tmp_path / "one").items():
        torch.testing.assert_close(mine, theirs[name], atol=1e-6, rtol=1e-4)
    mine, theirs = first(tmp_path / "one"), first(tmp_path / "two")
    for name in ("critiques/predict_loss", "critiques/hindsight_signal"):
        assert mine[name] == pytest.approx(theirs[name], rel=1e-4)


if __name__ == "__main__":
    as_one_of_two(Path(sys.argv[1]), Path(sys.argv[2]))
