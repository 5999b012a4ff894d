"""A linear Bradley-Terry head on features of a frozen model.

Features are hidden states of a few layers, pooled over the completion's tokens and standardised. The head w minimises

    mean over pairs of -log sigmoid(w.(x_chosen - x_rejected) - margin)  +  l2/2 |w|^2

which is convex: L-BFGS in float64 finds the one minimum in seconds. The penalty l2 is the one with the smallest
held-out loss in cross-validation by prompt group.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch.nn.functional import logsigmoid

from rlhf_loop.errors import UserError
from rlhf_loop.files import fingerprint
from rlhf_loop.models.distributed import is_main, sharded_map
from rlhf_loop.models.identity import computed_by
from rlhf_loop.models.turns import Turns
from rlhf_loop.recipe import Policy
from rlhf_loop.records import PreferencePair
from rlhf_loop.reward_spec import HeadSpec
from rlhf_loop.rewards.base import Reward
from rlhf_loop.rewards.kept_features import KeptFeatures
from rlhf_loop.rewards.metrics import log_loss
from rlhf_loop.rewards.scoring import in_batches
from rlhf_loop.rewards.texts import Text, encode, texts_of_pairs
from rlhf_loop.rewards.trunk import load_trunk

WEIGHTS = "head.safetensors"
SCORING_TOKENS = {"cpu": 4096}
SCORING_TOKENS_ACCELERATOR = 65536


def train(
    spec: HeadSpec,
    pairs: Sequence[PreferencePair],
    output: Path,
    *,
    policy: Policy,
    seed: int,
    kept: KeptFeatures | None = None,
) -> dict[str, Any]:
    """Trains on `pairs` and writes the head to `output`; gives counts, timings and the cross-validation.

    Features are kept in `output/cache` while it runs, so an interrupted training need not compute them again.
    """
    if not pairs:
        raise UserError("there are no pairs to train the reward model on")
    texts, indices = texts_of_pairs(pairs)
    started = time.perf_counter()
    features = _cached_features(Features(spec, policy, kept), texts, output / "cache")  # (N, D)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    mean, scale = features.mean(0), features.std(0, correction=0).clamp_min(1e-6)
    inputs = ((features - mean) / scale).double()
    chosen, rejected = torch.tensor(indices).T
    margin = torch.tensor([pair.margin for pair in pairs], dtype=torch.float64)
    folds = group_folds([pair.group for pair in pairs], spec.folds, seed)
    losses = cross_validate(inputs, chosen, rejected, margin, folds, spec.l2)
    l2 = min(losses, key=lambda value: losses[value])
    weight = fit(inputs, chosen, rejected, margin, l2)
    if is_main():
        tensors = {"weight": weight.float(), "mean": mean.float(), "scale": scale.float()}
        save_file(tensors, output / WEIGHTS)
        shutil.rmtree(output / "cache", ignore_errors=True)
    return {
        "pairs": len(pairs),
        "pairs_used": len(pairs),
        "dropped_too_long": 0,
        "distinct_texts": len(texts),
        "features": features.shape[1],
        "l2": l2,
        "cross_validated_loss": {str(value): loss for value, loss in losses.items()},
        "folds": int(folds.max()) + 1,
        "feature_seconds": round(seconds, 3),
        "train_seconds": round(time.perf_counter() - started, 3),
    }


def load(folder: Path, spec: HeadSpec, *, id: str, policy: Policy, kept: KeptFeatures | None = None) -> Reward:
    """The head that `train` wrote to `folder` on its trunk; raises `UserError` when it holds no weights."""
    if not (folder / WEIGHTS).exists():
        raise UserError(f"{folder} holds no {WEIGHTS}: it says how to train a reward model; train it first")
    return HeadReward(Features(spec, policy, kept), load_file(folder / WEIGHTS), id=id, name=folder.name)


class HeadReward(Reward):
    """A trained head; equal texts are computed once."""

    def __init__(self, features: Features, tensors: Mapping[str, torch.Tensor], *, id: str, name: str):
        super().__init__(id, name)
        self.features = features
        self.tensors = tensors

    def values(self, texts: Sequence[Text], columns: Mapping[str, Sequence[Any]]) -> list[float | None]:
        """w.(x - mean) / scale for each text."""
        distinct = list(dict.fromkeys(texts))
        inputs = (self.features(distinct) - self.tensors["mean"]) / self.tensors["scale"]
        by_text = dict(zip(distinct, (inputs @ self.tensors["weight"]).tolist(), strict=True))
        return [by_text[text] for text in texts]

    def is_end(self, token: int) -> bool:
        """Whether it ends a turn in its tokenizer, which is taken to be the policy's."""
        return self.features.turns.ended([token])


class Features:
    """Pooled hidden states of a frozen model, which is loaded once; those that `kept` holds are not computed again."""

    def __init__(self, spec: HeadSpec, policy: Policy, kept: KeptFeatures | None = None):
        self.spec = spec
        self.policy = policy
        self.system_prompt = policy.system_prompt
        reference = policy.model if spec.base == "policy" else spec.base
        model = fingerprint(computed_by(reference, policy), spec.layers)
        # heads on one trunk share it, and so does one in training with itself afterwards
        loaded = {} if kept is None else kept.trunks
        if model not in loaded:
            loaded[model] = load_trunk(spec.base, policy, spec.layers)
        self.trunk, self.tokenizer, self.layers = loaded[model]
        self.turns = Turns(self.tokenizer, self.trunk)
        self.kept = kept
        self.made_of = fingerprint(model, sorted(spec.pooling))

    def __call__(self, texts: Sequence[Text]) -> torch.Tensor:
        """Features (N, layers x poolings x width) of texts, float32; over-long texts keep their end."""
        rows, starts = self._rows(texts)
        if self.kept is None:
            return self._compute(rows, starts)
        keys = [self.kept.key(self.made_of, *row) for row in zip(rows, starts, strict=True)]
        found = [self.kept.find(key) for key in keys]
        missing = [number for number, one in enumerate(found) if one is None]
        new = self._compute([rows[number] for number in missing], [starts[number] for number in missing])
        for number, features in zip(missing, new, strict=True):
            found[number] = features
        for text, key, features in zip(texts, keys, found, strict=True):
            self.kept.add(text, key, features)
        return torch.stack([one for one in found if one is not None]) if texts else new

    def note(self, texts: Sequence[Text], features: torch.Tensor) -> None:
        """Hands on features that were computed before."""
        if self.kept is not None:
            for text, row, start, values in zip(texts, *self._rows(texts), features, strict=True):
                self.kept.add(text, self.kept.key(self.made_of, row, start), values)

    def _rows(self, texts: Sequence[Text]) -> tuple[list[list[int]], list[int]]:
        """The tokens of each text, and where the completion begins in them."""
        encoded = [encode(self.turns, text, self.system_prompt) for text in texts]
        rows = [ids[-self.spec.max_length :] for ids, _ in encoded]
        # at least its last token (EOS, or the prompt's end if it is empty) is pooled
        starts = [
            min(max(0, prompt - (len(ids) - len(row))), len(row) - 1)
            for (ids, prompt), row in zip(encoded, rows, strict=True)
        ]
        return rows, starts

    def _compute(self, rows: Sequence[Sequence[int]], starts: Sequence[int]) -> torch.Tensor:
        def forward(ids: torch.Tensor, mask: torch.Tensor, numbers: list[int]) -> torch.Tensor:
            states = self.trunk(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
            positions = torch.arange(ids.shape[1], device=ids.device)
            first = torch.tensor([starts[number] for number in numbers], device=ids.device)
            answer = ((positions[None] >= first[:, None]) & (mask > 0)).float()  # (B, T)
            parts = []
            for layer in self.layers:
                state = states.hidden_states[layer].float()  # (B, T, width)
                if "mean" in self.spec.pooling:
                    parts.append((state * answer[:, :, None]).sum(1) / answer.sum(1, keepdim=True))
                if "last" in self.spec.pooling:
                    parts.append(state[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1])
            return torch.cat(parts, dim=1)

        device = self.trunk.device
        return in_batches(
            forward,
            rows,
            pad_id=self.tokenizer.pad_token_id,
            device=device,
            budget=SCORING_TOKENS.get(device.type, SCORING_TOKENS_ACCELERATOR),
        )


def fit(
    inputs: torch.Tensor, chosen: torch.Tensor, rejected: torch.Tensor, margin: torch.Tensor, l2: float
) -> torch.Tensor:
    """The weight (D,) that minimises the penalised Bradley-Terry loss of pairs (P,) of rows of `inputs` (N, D)."""
    weight = torch.zeros(inputs.shape[1], dtype=inputs.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=500, tolerance_grad=1e-6, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        rewards = inputs @ weight  # (N,)
        loss = -logsigmoid(rewards[chosen] - rewards[rejected] - margin).mean() + l2 / 2 * weight @ weight
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach()


def cross_validate(
    inputs: torch.Tensor,
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    margin: torch.Tensor,
    folds: NDArray[np.int64],
    penalties: Sequence[float],
) -> dict[float, float]:
    """For each penalty the mean held-out loss of a pair, the folds (P,) being held out in turn."""
    losses = {}
    for l2 in penalties:
        margins = np.zeros(len(folds))
        for fold in range(int(folds.max()) + 1):
            inside = torch.from_numpy(folds != fold)
            weight = fit(inputs, chosen[inside], rejected[inside], margin[inside], l2)
            rewards = (inputs @ weight).numpy()
            held = np.flatnonzero(folds == fold)
            margins[held] = rewards[chosen.numpy()[held]] - rewards[rejected.numpy()[held]]
        losses[l2] = log_loss(margins)
    return losses


def group_folds(groups: Sequence[str], count: int, seed: int) -> NDArray[np.int64]:
    """The fold of each pair; a group is in one fold. With a single group pairs are drawn one by one."""
    draw = np.random.default_rng(seed)
    keys = list(dict.fromkeys(groups))
    if len(keys) < 2:
        return np.asarray(draw.permutation(len(groups)) % max(2, min(count, len(groups))), dtype=np.int64)
    fold_of = dict(zip(keys, draw.permutation(len(keys)) % min(count, len(keys)), strict=True))
    return np.array([fold_of[group] for group in groups], dtype=np.int64)


def _cached_features(features: Features, texts: Sequence[Text], folder: Path) -> torch.Tensor:
    """Features of `texts`, each rank computing its share; read back if this very training computed them before."""
    made_of = (features.spec, features.policy, list(texts))
    key = hashlib.sha256(repr(made_of).encode()).hexdigest()[:24]
    path = folder / f"{key}.safetensors"
    if path.exists():
        result = load_file(path)["features"]
        features.note(texts, result)
        return result
    by_length = sorted(range(len(texts)), key=lambda number: len(texts[number].completion))
    rows = sharded_map(lambda share: list(features([texts[number] for number in share])), by_length)
    result = torch.empty(len(texts), rows[0].shape[0])
    for number, row in zip(by_length, rows, strict=True):
        result[number] = row
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file({"features": result}, partial)
        partial.replace(path)
    return result
