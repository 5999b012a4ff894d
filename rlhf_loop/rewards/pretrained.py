"""Reward models that somebody else trained: sequence classifiers of the hub or in a folder, used as they are.

Each reads a conversation with its own tokenizer, in the form that it was trained on: whole, its last turn closed. So an
answer that was cut off looks like one that ended, and a score depends on no tokens that a policy sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlhf_loop.errors import UserError
from rlhf_loop.files.damage import loading
from rlhf_loop.model_checks import classifier_outputs, positions
from rlhf_loop.models.distributed import whole_models
from rlhf_loop.models.files import resolve_model
from rlhf_loop.models.quiet import quiet
from rlhf_loop.models.shares import loading_options, placed
from rlhf_loop.models.turns import give_pad_token, with_system_prompt
from rlhf_loop.recipe import Policy
from rlhf_loop.records import Message
from rlhf_loop.reward_spec import PretrainedSpec
from rlhf_loop.rewards.base import Reward, Said
from rlhf_loop.rewards.scoring import in_batches, over_long
from rlhf_loop.rewards.texts import Text
from rlhf_loop.rewards.trunk import Float32Linear, set_padding_apart

SCORING_TOKENS = {"cpu": 4096}
SCORING_TOKENS_ACCELERATOR = 65536


def load(folder: Path, spec: PretrainedSpec, *, id: str, policy: Policy) -> PretrainedReward:
    """The model that `spec` names, in the policy's dtype; its last layer computes in float32. It reads no more tokens
    than it has positions for.

    Raises `UserError` where it is no classifier, where a part of it is not in its files and would be random, where its
    outputs are not those that `spec` weighs, and where it is not known how it reads a conversation.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    source, trusted = resolve_model(spec.model), policy.trust_remote_code
    with quiet(reports=False), loading(spec.model, "a reward model"), whole_models():
        config = AutoConfig.from_pretrained(source, trust_remote_code=trusted)
        weights = classifier_outputs(config.to_dict(), spec.model, spec.outputs)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trusted)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            source,
            dtype=getattr(torch, policy.precision),
            trust_remote_code=trusted,
            output_loading_info=True,
            **loading_options(),
        )
    if missing := sorted([*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])]):
        raise UserError(
            f"{spec.model} is no whole reward model: {missing[0]} is not in its files and would be random "
            f"({len(missing)} such). Give a sequence classifier that was trained as a reward model"
        )
    if spec.format == "chat_template" and not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer of {spec.model} has no chat template, so it is not known how the model reads a "
            "conversation. Set `format: pair` where it was trained on pairs of a prompt and an answer, else put the "
            "chat_template.jinja that it was trained with beside its tokenizer.json"
        )
    most = min(spec.max_length, positions(config.to_dict()) or spec.max_length)
    spec = spec.model_copy(update={"max_length": most})
    give_pad_token(tokenizer)
    tokenizer.truncation_side = "left"  # what is cut off is the beginning
    set_padding_apart(model, tokenizer)
    _compute_end_in_float32(model)
    model = placed(model.requires_grad_(False))
    return PretrainedReward(
        model, tokenizer, spec, weights, id=id, name=folder.name, system_prompt=policy.system_prompt
    )


class PretrainedReward(Reward):
    """Somebody else's reward model; equal texts are computed once."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        spec: PretrainedSpec,
        weights: Mapping[int, float],
        *,
        id: str,
        name: str,
        system_prompt: str | None,
    ):
        super().__init__(id, name)
        self.model = model
        self.tokenizer = tokenizer
        self.spec = spec
        self.weights = weights  # of its outputs
        self.system_prompt = system_prompt

    def values(self, texts: Sequence[Text], columns: Mapping[str, Sequence[Any]]) -> list[float | None]:
        """The weighted sum of the outputs for each text; over-long ones keep their end, and a warning says how many."""
        return [said.value for said in self.says(texts, columns)]

    def says(self, texts: Sequence[Text], columns: Mapping[str, Sequence[Any]]) -> list[Said]:
        """The same; where the spec names outputs, with each one's share."""
        distinct = list(dict.fromkeys(texts))
        rows = [self._read(text) for text in distinct]
        for number in over_long([row["input_ids"] for row in rows], self.spec.max_length):
            rows[number] = self._cut(distinct[number], rows[number])
        outputs = self._outputs(rows)
        said = {}
        for text, row in zip(distinct, outputs.tolist(), strict=True):
            shares = [weight * row[number] for number, weight in self.weights.items()]
            said[text] = Said(value=sum(shares), parts=dict(zip(self.spec.outputs or {}, shares, strict=False)))
        return [said[text] for text in texts]

    def _outputs(self, rows: Sequence[Mapping[str, list[int]]]) -> torch.Tensor:
        """The model's outputs (N, labels) of tokenised texts."""

        def forward(ids: torch.Tensor, mask: torch.Tensor, numbers: list[int]) -> torch.Tensor:
            options = {}
            if "token_type_ids" in rows[0]:  # which of two texts each token is of
                kinds = [rows[number]["token_type_ids"] for number in numbers]
                padded = [row + [0] * (ids.shape[1] - len(row)) for row in kinds]
                options["token_type_ids"] = torch.tensor(padded, device=ids.device)
            logits = self.model(input_ids=ids, attention_mask=mask, **options).logits
            if logits.ndim != 2 or logits.shape[1] <= max(self.weights):
                raise UserError(
                    f"{self.spec.model} gives outputs of the shape {tuple(logits.shape)} for {len(ids)} texts, and its "
                    f"config names {max(self.weights) + 1} or more for each: it is no sequence classifier"
                )
            return logits

        place = self.model.device
        budget = SCORING_TOKENS.get(place.type, SCORING_TOKENS_ACCELERATOR)
        ids = [row["input_ids"] for row in rows]
        return in_batches(forward, ids, pad_id=self.tokenizer.pad_token_id, device=place, budget=budget)

    def _read(self, text: Text) -> Mapping[str, list[int]]:
        """A text as the model reads it."""
        prompt = with_system_prompt(text.messages(), self.system_prompt)
        if self.spec.format == "pair":
            pair: Mapping[str, list[int]] = self.tokenizer(*_pair(prompt, text))
            return pair
        conversation = [*prompt, Message(role="assistant", content=text.completion)]
        try:
            ids = self.tokenizer.apply_chat_template(conversation, return_dict=False)
        except Exception as error:  # templates raise jinja errors of their own choosing
            roles = [message["role"] for message in conversation]
            raise UserError(f"the chat template of {self.spec.model} refuses the roles {roles}: {error}") from None
        return {"input_ids": list(ids)}

    def _cut(self, text: Text, row: Mapping[str, list[int]]) -> Mapping[str, list[int]]:
        """An over-long text without its beginning. A pair keeps the tokens around its two texts, one of which an
        encoder reads the reward at, and its answer as long as that fits."""
        limit = self.spec.max_length
        if self.spec.format != "pair":
            return {"input_ids": row["input_ids"][-limit:]}
        asked, answer = _pair(with_system_prompt(text.messages(), self.system_prompt), text)
        fits = len(row["input_ids"]) - limit < len(self.tokenizer(asked, add_special_tokens=False)["input_ids"])
        way = "only_first" if fits else "longest_first"
        cut: Mapping[str, list[int]] = self.tokenizer(asked, answer, truncation=way, max_length=limit)
        return cut


def _pair(prompt: Sequence[Message], text: Text) -> tuple[str, str]:
    return "\n".join(message["content"] for message in prompt), text.completion


def _compute_end_in_float32(model: Any) -> None:
    """The last linear layer that gives all the outputs; in bfloat16 rewards would have 8 bits, and close ones tie."""
    ends = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module.out_features == model.config.num_labels
    ]
    if ends:
        parent, _, name = ends[-1].rpartition(".")
        place = model.get_submodule(parent)
        setattr(place, name, Float32Linear(getattr(place, name)))
