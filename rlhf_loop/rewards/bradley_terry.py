"""Bradley-Terry reward models through TRL's RewardTrainer, each distinct text forwarded once.

The loss is -log sigmoid(r(chosen) - r(rejected) - margin) (Bradley and Terry 1952; Llama 2, arXiv 2307.09288,
equation 2, for the margin). People compare the same answers many times, so the pairs of one prompt share their texts;
InstructGPT (arXiv 2203.02155, section 3.5) therefore trains all comparisons of a prompt as one batch element.
Here too an element is a prompt with all its pairs, and `per_device_train_batch_size` counts such elements. With
distinct answers everywhere an element is one pair and everything is as in TRL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from transformers import PrinterCallback, TrainerCallback
from trl import RewardConfig, RewardTrainer

from rlhf_loop.batches import batches
from rlhf_loop.errors import UserError
from rlhf_loop.files import read_json, write_json
from rlhf_loop.files.damage import reading
from rlhf_loop.models.checkpoints import last_complete, remove_all
from rlhf_loop.models.distributed import is_main, sharded_map
from rlhf_loop.models.memory import tune_cpu_memory
from rlhf_loop.models.quiet import quiet
from rlhf_loop.models.shares import shared_out
from rlhf_loop.models.training import callbacks, mean_loss, trained_parameters, training_arguments
from rlhf_loop.models.turns import Turns
from rlhf_loop.models.weights import save_weights
from rlhf_loop.progress import Progress
from rlhf_loop.recipe import Policy
from rlhf_loop.records import PreferencePair
from rlhf_loop.reward_spec import BradleyTerrySpec
from rlhf_loop.rewards.base import Reward
from rlhf_loop.rewards.elements import elements
from rlhf_loop.rewards.head import cross_validate, fit, group_folds
from rlhf_loop.rewards.scoring import ends, in_batches, padded
from rlhf_loop.rewards.texts import Text, encode, texts_of_pairs
from rlhf_loop.rewards.trunk import load_classifier, lora_config

FORWARD_TOKENS = {"cpu": 2048}
"""Padded tokens of one forward in training, by device; elsewhere an element is one forward."""
PROBE_L2 = (0.01, 0.1, 1.0, 10.0)
SCORING_TOKENS = {"cpu": 4096}
SCORING_TOKENS_ACCELERATOR = 65536


def train(
    spec: BradleyTerrySpec,
    pairs: Sequence[PreferencePair],
    output: Path,
    *,
    policy: Policy,
    seed: int,
    report_to: Sequence[str],
    progress: Progress | None,
    extra_callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Trains on `pairs`, writes safetensors and tokenizer to `output`, and gives counts and timings.

    Goes on from the last whole checkpoint in `output/checkpoints` (written each `save_steps`) and removes them at the
    end. Raises `UserError` when no pair is left or the weights stop being finite.
    """
    tune_cpu_memory()
    torch.manual_seed(seed)  # the new output layer and the adapter begin from random numbers
    model, tokenizer = load_classifier(spec.base, policy, full=spec.lora is None)
    rows, counts = batch_elements(spec, pairs, Turns(tokenizer, model), policy.system_prompt)
    checkpoint = last_complete(output / "checkpoints")
    probed = output / "checkpoints" / "probe.json"
    if spec.probe and checkpoint is None and isinstance(getattr(model, "score", None), torch.nn.Linear):
        counts["probe_loss"] = probe(model, _readable(model, spec, policy), rows, tokenizer.pad_token_id, seed)
        if is_main():
            write_json(probed, {"loss": counts["probe_loss"]})
    elif checkpoint is not None and probed.exists():
        with reading(probed):
            counts["probe_loss"] = read_json(probed)["loss"]
    settings = {**spec.trainer, "remove_unused_columns": False}
    arguments = training_arguments(RewardConfig, output, seed, settings, policy.precision)
    with quiet():
        trainer = UniqueTextsRewardTrainer(
            model,
            arguments,
            data_collator=Collator(tokenizer.pad_token_id),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=lora_config(spec.lora) if spec.lora else None,
        )
        for callback in [*callbacks(output / "train_log.jsonl", report_to, 0, progress), *extra_callbacks]:
            trainer.add_callback(callback)
        trainer.remove_callback(PrinterCallback)  # the log goes to its file, and progress to the caller
        result = trainer.train(resume_from_checkpoint=checkpoint)
    model = trainer.accelerator.unwrap_model(trainer.model)
    remedy = "lower `trainer.learning_rate` in its reward_model.yaml, or set `trainer.max_grad_norm: 1.0`"
    with quiet(reports=False):
        save_weights(model, output, _reference(spec, policy), remedy=remedy)
    if is_main():
        tokenizer.save_pretrained(str(output))
        remove_all(output / "checkpoints")
    return {
        **counts,
        "steps": int(trainer.state.global_step),
        "train_loss": mean_loss(output / "train_log.jsonl"),
        "train_seconds": float(result.metrics["train_runtime"]),
        "trained_parameters": trained_parameters(model),
    }


def probe(model: Any, readable: Any, rows: Sequence[Mapping[str, Any]], pad_id: int, seed: int) -> float:
    """Puts into the output layer the best linear reward on the features of the untrained model; gives its loss.

    `readable`: the same model, or as it can be read where `model` is not yet where it computes.

    Training then begins where a linear probe ends and has to unlearn less of what the model knows ("linear probing,
    then fine-tuning", Kumar et al. 2022, arXiv 2202.10054). The loss is the cross-validated one of a pair.
    """
    texts = [ids for row in rows for ids in row["texts"]]
    features = torch.stack(sharded_map(lambda share: list(_last_features(readable, share, pad_id)), texts))  # (N, D)
    mean, scale = features.mean(0), features.std(0, correction=0).clamp_min(1e-6)
    inputs = ((features - mean) / scale).double()
    starts = [sum(len(row["texts"]) for row in rows[:number]) for number in range(len(rows))]
    chosen, rejected = (
        torch.tensor([start + i for start, row in zip(starts, rows, strict=True) for i in row[side]])
        for side in ("chosen", "rejected")
    )
    margin = torch.tensor([m for row in rows for m in row["margin"]], dtype=torch.float64)
    folds = group_folds([row["group"] for row in rows for _ in row["chosen"]], 5, seed)
    losses = cross_validate(inputs, chosen, rejected, margin, folds, PROBE_L2)
    weight = fit(inputs, chosen, rejected, margin, min(losses, key=lambda l2: losses[l2])) / scale
    with torch.no_grad():
        model.score.weight.copy_(weight[None])
    return min(losses.values())


def _readable(model: Any, spec: BradleyTerrySpec, policy: Policy) -> Any:
    """The untrained model, shared out where its training will be; random numbers go on as if it were `model` itself."""
    if not shared_out():
        return model
    with torch.random.fork_rng():
        return load_classifier(spec.base, policy, full=spec.lora is None, only_read=True)[0]


def load(folder: Path, spec: BradleyTerrySpec, *, id: str, policy: Policy) -> Reward:
    """The reward model that `train` wrote to `folder`; raises `UserError` when it holds no weights."""
    adapter = (folder / "adapter_config.json").exists()
    if not adapter and not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} holds no weights: it says how to train a reward model; train it first")
    if adapter:
        model, tokenizer = load_classifier(spec.base, policy, adapter=folder, only_read=True)
    else:
        model, tokenizer = load_classifier(str(folder), policy, only_read=True)
    return BradleyTerryReward(model, tokenizer, spec, id=id, name=folder.name, system_prompt=policy.system_prompt)


class BradleyTerryReward(Reward):
    """A trained model with one output; equal texts are computed once."""

    def __init__(
        self, model: Any, tokenizer: Any, spec: BradleyTerrySpec, *, id: str, name: str, system_prompt: str | None
    ):
        super().__init__(id, name)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.turns = Turns(tokenizer, model)
        self.spec = spec
        self.system_prompt = system_prompt

    def values(self, texts: Sequence[Text], columns: Mapping[str, Sequence[Any]]) -> list[float | None]:
        """The output at the last token of each text; over-long ones keep their end, and a warning says how many."""
        distinct = list(dict.fromkeys(texts))
        rows = encode_all(self.turns, distinct, self.system_prompt, self.spec.max_length)
        device = self.model.device
        values = in_batches(
            lambda ids, mask, numbers: self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0],
            rows,
            pad_id=self.tokenizer.pad_token_id,
            device=device,
            budget=SCORING_TOKENS.get(device.type, SCORING_TOKENS_ACCELERATOR),
        )
        by_text = dict(zip(distinct, values.tolist(), strict=True))
        return [by_text[text] for text in texts]

    def is_end(self, token: int) -> bool:
        """Whether it ends a turn in its tokenizer, which is taken to be the policy's."""
        return self.turns.ended([token])


class UniqueTextsRewardTrainer(RewardTrainer):  # type: ignore[misc]
    """RewardTrainer whose batches hold each text once and pairs as indices into the texts."""

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
        return dataset  # tokenised, and filtered by length, in `batch_elements`

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss of the batch's pairs: the same number as without sharing texts.

        The trainer takes the mean over ranks, of which each may have another number of pairs: each weighs its own."""
        rewards = self._forward(model, inputs["input_ids"], inputs["attention_mask"])  # (N,)
        chosen, rejected = rewards[inputs["chosen"]], rewards[inputs["rejected"]]  # (P,) each
        loss = -logsigmoid(chosen - rejected - inputs["margin"]).mean()
        if self.args.center_rewards_coefficient is not None:  # arXiv 2312.09244, equation 2
            loss = loss + self.args.center_rewards_coefficient * ((chosen + rejected) ** 2).mean()
        pairs = torch.tensor(float(len(chosen)), device=loss.device)
        loss = loss * (pairs / self.accelerator.reduce(pairs, "mean"))
        self._count(rewards.detach(), (chosen - rejected).detach(), inputs["attention_mask"])
        return (loss, {"rewards": rewards}) if return_outputs else loss

    def _forward(self, model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Rewards (N,) of texts (N, T).

        Alone on a CPU, texts of like length go together, so that little is computed on padding. Several ranks must
        make the same number of forwards (each one is a collective), so there it is one.
        """
        lengths = mask.sum(1).tolist()
        budget = FORWARD_TOKENS.get(ids.device.type) if self.accelerator.num_processes == 1 else None
        if budget is None:
            rewards: torch.Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0]
            return rewards.float()
        parted = batches(lengths, budget)
        parts = []
        for numbers in parted:
            longest = max(lengths[number] for number in numbers)
            part = model(input_ids=ids[numbers, :longest], attention_mask=mask[numbers, :longest], use_cache=False)
            parts.append(part.logits[:, 0].float())
        order = torch.tensor([number for numbers in parted for number in numbers])
        return torch.cat(parts)[torch.argsort(order)]

    def _count(self, rewards: torch.Tensor, margins: torch.Tensor, mask: torch.Tensor) -> None:
        """Adds to the means that `RewardTrainer.log` reports, over the pairs of all ranks."""
        mode = "train" if self.model.training else "eval"
        mine = torch.stack(
            [
                torch.tensor(float(len(margins)), device=margins.device),
                (margins > 0).float().sum(),
                margins.sum(),
                torch.tensor(float(len(rewards)), device=margins.device),
                rewards.sum(),
                mask.sum().float(),
            ]
        )
        pairs, right, margin, texts, reward, tokens = self.accelerator.reduce(mine, "sum").tolist()
        if mode == "train":
            self._total_train_tokens += int(tokens)
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        self._metrics[mode]["accuracy"].append(right / pairs)
        self._metrics[mode]["margin"].append(margin / pairs)
        self._metrics[mode]["mean_reward"].append(reward / texts)


class Collator:
    """Batch elements as tensors: texts (N, T) of all of them, pairs (P,) as indices into those."""

    def __init__(self, pad_id: int):
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """The batch of `rows`, as `batch_elements` made them."""
        texts = [ids for row in rows for ids in row["texts"]]
        ids, mask = padded(texts, self.pad_id, "cpu")
        batch: dict[str, torch.Tensor] = {"input_ids": ids, "attention_mask": mask}
        starts = [sum(len(row["texts"]) for row in rows[:number]) for number in range(len(rows))]
        for side in ("chosen", "rejected"):
            numbers = [start + i for start, row in zip(starts, rows, strict=True) for i in row[side]]
            batch[side] = torch.tensor(numbers)
        batch["margin"] = torch.tensor([margin for row in rows for margin in row["margin"]], dtype=torch.float)
        return batch


def batch_elements(
    spec: BradleyTerrySpec, pairs: Sequence[PreferencePair], turns: Turns, system_prompt: str | None = None
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The pairs of each prompt as rows of texts, as `elements` makes them, and counts of what is in them."""
    texts, indices = texts_of_pairs(pairs)
    ids = [encode(turns, text, system_prompt)[0] for text in texts]
    return elements(pairs, indices, ids, max_length=spec.max_length, max_texts=spec.max_texts)


def encode_all(turns: Turns, texts: Sequence[Text], system_prompt: str | None, max_length: int) -> list[list[int]]:
    """Token ids of each text for scoring: all are scored, those over `max_length` tokens by their end."""
    return ends([encode(turns, text, system_prompt)[0] for text in texts], max_length)


def _last_features(model: Any, rows: Sequence[Sequence[int]], pad_id: int) -> torch.Tensor:
    """What the output layer reads at the last token of each row: (N, D)."""
    seen: list[torch.Tensor] = []
    hook = model.score.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    device = model.device

    def forward(ids: torch.Tensor, mask: torch.Tensor, numbers: list[int]) -> torch.Tensor:
        seen.clear()
        model(input_ids=ids, attention_mask=mask, use_cache=False)
        return seen[0][torch.arange(len(ids), device=device), mask.sum(1) - 1]  # (B, D)

    was_training = model.training
    model.eval()
    try:
        budget = SCORING_TOKENS.get(device.type, SCORING_TOKENS_ACCELERATOR)
        return in_batches(forward, rows, pad_id=pad_id, device=device, budget=budget)
    finally:
        hook.remove()
        model.train(was_training)


def _reference(spec: BradleyTerrySpec, policy: Policy) -> str:
    return policy.model if spec.base == "policy" else spec.base
