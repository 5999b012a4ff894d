"""Losses, gradients and metrics of our DPO and KTO trainers against those of TRL's own classes, on one batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import families
from samples.updates import LOSSES, losses
from transformers import AutoModelForCausalLM, Gemma4TextConfig
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from rlhf_loop.models.loading import load_policy, load_tokenizer
from rlhf_loop.recipe import Lora, Policy, Update
from rlhf_loop.records import LabelledCompletion, PreferencePair
from rlhf_loop.updates import dpo, kto
from rlhf_loop.updates.log_probs import PairLogProbs, backbone
from rlhf_loop.updates.pair_rows import alike_in_rows, pair_rows, worth_it
from rlhf_loop.updates.train_and_save import Training

ANSWERS = [
    "light",
    "it scatters all light",
    "leaves",
    "a short answer says what matters and stops",
    "no",
    "think first",
]


class StockDPO(DPOTrainer):
    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


class StockKTO(KTOTrainer):
    _prepare_dataset = kto._Tokenised._prepare_dataset


def say(text: str, role: str = "assistant") -> tuple[dict[str, str], ...]:
    return ({"role": role, "content": text},)


PAIRS = [
    PreferencePair(
        id=str(n), prompt_id=str(n), group=str(n), prompt=say("What is snow? " * (2 + n), "user"),
        chosen=say(ANSWERS[n]), rejected=say(ANSWERS[n + 2]), chosen_id=f"a{n}", rejected_id=f"b{n}", origin="human",
        chosen_finished=n != 1,
    )
    for n in range(4)
]  # fmt: skip
LABELS = [
    LabelledCompletion(
        id=str(n), prompt_id=str(n), group=str(n), prompt=say("What is tea?" * (1 + n), "user"),
        completion=say(ANSWERS[n]), label=n % 2 == 0, completion_id=f"a{n}", origin="human",
    )
    for n in range(4)
]  # fmt: skip


def trainer_of(
    monkeypatch: pytest.MonkeyPatch, module: Any, stock: type | None, model: Path, output: Path, lora: str | None,
    **settings: Any,
) -> Any:  # fmt: skip
    """A trainer with trained weights that differ from its reference."""
    values = {"per_device_train_batch_size": 4, **settings}
    update = Update(
        algorithm="dpo" if module is dpo else "kto",
        lora=Lora(r=4, alpha=8, target_modules=lora) if lora else None,
        trainer=values,
    )
    policy = Policy(model=str(model), dtype=settings.pop("dtype", "float32"))
    training = Training(start=model, reference=model, output=output, policy=policy, settings=update, seed=0)
    with monkeypatch.context() as patch:
        if stock is not None:
            patch.setattr(module, "_Tokenised", stock)
        rows, config = (PAIRS, DPOConfig) if module is dpo else (LABELS, KTOConfig)
        trainer, _, _ = module._trainer(rows, training, training.arguments(config))
    torch.manual_seed(1)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape)
    return trainer


def one_batch(trainer: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, float]]:
    """Loss, gradients and metrics of the first rows."""
    trainer._metrics["train"] = defaultdict(list)
    inputs = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[n] for n in range(4)]))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    gradients = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, {name: values[-1] for name, values in trainer._metrics["train"].items()}


def assert_same(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=1e-5)
    assert ours[1].keys() == theirs[1].keys()
    assert any(gradient.abs().max() > 1e-4 for gradient in theirs[1].values())
    for name, gradient in theirs[1].items():
        torch.testing.assert_close(ours[1][name], gradient, atol=1e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    assert ours[2] == pytest.approx(theirs[2], rel=1e-4, abs=1e-5)


UPPER_HALF = r".*(layers|h)\.1\..*(_proj|c_attn|c_fc)"
EVERYWHERE = r".*(_proj|c_attn|c_fc|w1)"


@pytest.mark.parametrize("loss", losses())
def test_every_loss_is_trls(
    monkeypatch: pytest.MonkeyPatch, family: Callable[[str], Path], tmp_path: Path, loss: str
) -> None:
    settings = {"loss_type": loss, "beta": 0.3, **LOSSES.get(loss, {})}
    results = [
        one_batch(trainer_of(monkeypatch, dpo, stock, family("llama3"), tmp_path, UPPER_HALF, **settings))
        for stock in (None, StockDPO)
    ]
    assert_same(*results)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
        {"ld_alpha": 0.5},
        {"f_divergence_type": "js_divergence"},
        {"use_weighting": True},
        {"max_length": 60, "truncation_mode": "keep_end"},
        {"max_length": 60},
        {"precompute_ref_log_probs": True},
        {"gradient_checkpointing": True},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_every_setting_is_trls(
    monkeypatch: pytest.MonkeyPatch, family: Callable[[str], Path], tmp_path: Path, settings: dict[str, Any]
) -> None:
    results = [
        one_batch(trainer_of(monkeypatch, dpo, stock, family("llama2"), tmp_path, UPPER_HALF, **settings))
        for stock in (None, StockDPO)
    ]
    assert_same(*results)


@pytest.mark.parametrize("lora", [UPPER_HALF, EVERYWHERE, None], ids=["upper", "all", "full"])
@pytest.mark.parametrize("name", list(families.ENDS))
def test_of_every_family_and_of_all_that_may_be_trained(
    monkeypatch: pytest.MonkeyPatch, family: Callable[[str], Path], tmp_path: Path, name: str, lora: str | None
) -> None:
    if name == "gpt2" and lora is not None:
        lora = lora.replace("_proj", "c_proj")
    results = [
        one_batch(trainer_of(monkeypatch, dpo, stock, family(name), tmp_path, lora)) for stock in (None, StockDPO)
    ]
    assert_same(*results)


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("lora", [UPPER_HALF, None], ids=["upper", "full"])
@pytest.mark.parametrize("precomputed", [False, True])
def test_kto_is_trls(
    monkeypatch: pytest.MonkeyPatch, family: Callable[[str], Path], tmp_path: Path, loss: str, lora: str | None,
    precomputed: bool,
) -> None:  # fmt: skip
    settings = {"loss_type": loss, "beta": 0.3, "precompute_ref_log_probs": precomputed}
    results = [
        one_batch(trainer_of(monkeypatch, kto, stock, family("llama3"), tmp_path, lora, **settings))
        for stock in (None, StockKTO)
    ]
    assert_same(*results)


def test_frozen_layers_are_computed_once_a_batch(
    monkeypatch: pytest.MonkeyPatch, family: Callable[[str], Path], tmp_path: Path
) -> None:
    trainer = trainer_of(monkeypatch, dpo, None, family("llama3"), tmp_path, UPPER_HALF)
    calls = []
    layers = backbone(trainer.model).layers
    for number, layer in enumerate(layers):
        layer.self_attn.register_forward_hook(lambda *_, number=number: calls.append(number))
    trainer._allows_rows = True
    one_batch(trainer)
    assert calls == [0, 1, 1]
    assert not any("forward" in layer.__dict__ for layer in layers)


def test_layers_that_hand_keys_to_those_above_are_computed_each_time(
    monkeypatch: pytest.MonkeyPatch, family: Callable[[str], Path], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = Gemma4TextConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, global_head_dim=8, vocab_size=400, vocab_size_per_layer_input=400, hidden_size_per_layer_input=8,
        num_kv_shared_layers=2, layer_types=["sliding_attention", "full_attention"] * 2, initializer_range=0.1,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = tmp_path / "model"
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    load_tokenizer(family("llama2")).save_pretrained(model)
    lora = r".*layers\.3\.self_attn\.(q|o)_proj"
    results = []
    for stock in (None, StockDPO):
        trainer = trainer_of(monkeypatch, dpo, stock, model, tmp_path, lora)
        results.append(one_batch(trainer))
        assert stock is not None or len(trainer._frozen) == 3
    assert_same(*results)


def test_a_prompt_is_read_once_where_that_is_less_and_the_model_allows_it(
    monkeypatch: pytest.MonkeyPatch, family: Callable[[str], Path], tmp_path: Path
) -> None:
    read = []
    for name in ("llama2", "mistral"):  # whose window is shorter than these prompts
        trainer = trainer_of(monkeypatch, dpo, None, family(name), tmp_path, EVERYWHERE)
        trainer._allows_rows = True
        trainer.model.get_base_model().model.register_forward_pre_hook(
            lambda _, __, named: read.append(tuple(named["input_ids"].shape)), with_kwargs=True
        )
        one_batch(trainer)
    (rows, width), reference, (twice, length), _ = read
    assert (rows, width) == reference
    assert (rows, twice) == (4, 8)
    assert rows * width < twice * length


@pytest.mark.parametrize("name", [*families.ENDS, "lfm2"])
def test_rows_are_tried_before_they_are_used(family: Callable[[str], Path], name: str) -> None:
    """Convolutions carry the chosen answer into the rejected one; all that knows attention alone gives the same."""
    model, _ = load_policy(family(name), Policy(model=str(family(name)), dtype="float32"))
    batch = a_batch(prompt=5)
    with torch.no_grad():
        assert alike_in_rows(model.base_model, batch) == (name != "lfm2")


def a_batch(prompt: int, answers: tuple[int, ...] = (3, 2, 1, 4)) -> dict[str, torch.Tensor]:
    """Two pairs, by default of 3 and 2, and of 1 and 4 tokens."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    ids = iter(range(10, 100))
    take = lambda count: [next(ids) for _ in range(count)]  # noqa: E731
    rows = [
        {"prompt_ids": take(prompt), "chosen_ids": take(answers[0]), "rejected_ids": take(answers[1])},
        {"prompt_ids": take(prompt + 1), "chosen_ids": take(answers[2]), "rejected_ids": take(answers[3])},
    ]
    return DataCollatorForPreference(pad_token_id=0)(rows)


def test_rows_hold_each_prompt_once() -> None:
    rows = pair_rows(a_batch(prompt=2))
    assert rows.input_ids.tolist() == [
        [10, 11, 12, 13, 14, 11, 15, 16, 10],  # the last is padding
        [17, 18, 19, 20, 19, 21, 22, 23, 24],
    ]
    assert rows.position_ids.tolist() == [[0, 1, 2, 3, 4, 1, 2, 3, 0], [0, 1, 2, 3, 2, 3, 4, 5, 6]]
    assert rows.labels.tolist() == [
        [-100, 12, 13, 14, -100, 15, 16, -100, -100],
        [-100, -100, 20, -100, 21, 22, 23, 24, -100],
    ]
    seen = rows.seen[0, 0].int().tolist()
    assert seen[4] == [1, 1, 1, 1, 1, 0, 0, 0, 0]
    assert seen[6] == [1, 0, 0, 0, 0, 1, 1, 0, 0]
    assert all(sum(row) for row in seen)


def test_long_answers_to_short_prompts_stay_apart() -> None:
    long, short = a_batch(prompt=1, answers=(9, 9, 8, 8)), a_batch(prompt=9)
    assert not worth_it(pair_rows(long), long, 8)
    assert worth_it(pair_rows(short), short, 8)


def test_the_seams_of_trl_that_this_leans_on_are_there() -> None:
    import inspect

    for trainer, ours in (
        (DPOTrainer, PairLogProbs),
        (KTOTrainer, kto._Tokenised),
    ):
        assert list(inspect.signature(trainer.compute_ref_log_probs).parameters) == ["self", "model", "inputs"]
        source = inspect.getsource(trainer._compute_loss)
        assert "if self.precompute_ref_logps:" in source
        assert all(f'["{column}"]' in source for column in ours.reference_columns)
