"""Does consensus weighted by reliability train a better reward model than raw votes? On real votes of crowd workers.

Part `ukp` of `feedback_quality.py`. Data: UKPConvArg1, about 14,000 pairs of arguments of 16 debates, each judged by
five workers. The reward model is the linear head on a frozen model, its features computed once; only the labels that
it learns from differ:

    raw        each vote that prefers a side is a pair
    majority   the side with more votes, a pair each; even ones are left out
    margin     the same with (for - against) / (for + against) as the margin: what a round does by default
    weighted   each vote that prefers a side is a pair, weighted by the worker's reliability (Dawid and Skene)
    posterior  both ways around, weighted by Dawid and Skene's probability that the side is better, given its votes
    consensus  both ways around, weighted by the Davidson model's probability, from all of the debate's weighted votes
    margin_of_consensus  the side that the consensus prefers, with its strength as the margin

The head is that of `rewards/head.py` (the same loss and penalty, chosen by the same cross-validation), with weighted
pairs. Labels are made from the votes of training debates alone. Differences to `raw` and `majority` are paired: on the
same held-out pairs, groups (sides of a debate) being resampled.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from reward_ukp import SPECS, read_pairs, topic
from torch.nn.functional import logsigmoid

from rlhf_loop.feedback.quality.coefficients import bootstrap, krippendorff_alpha, verdict_counts
from rlhf_loop.feedback.quality.consensus import consensus
from rlhf_loop.feedback.quality.dawid_skene import reliability
from rlhf_loop.feedback.quality.votes import FIRST, SECOND, Votes, votes_of
from rlhf_loop.models.wheel_model import WHEEL_MODEL
from rlhf_loop.recipe import Policy
from rlhf_loop.records import Annotator, Preference
from rlhf_loop.reward_spec import parse_spec
from rlhf_loop.rewards.head import Features, group_folds
from rlhf_loop.rewards.metrics import length_balanced_accuracy
from rlhf_loop.rewards.texts import make_text

PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)
FOLDS = 8  # of two debates each
SPAM = (0.0, 0.3)  # share of workers whose votes are replaced by coin flips
RESAMPLES = 2000
Labels = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]  # preferred, other, margin, weight


def compare(data: Path, folder: Path) -> dict[str, Any]:
    """The comparison on the held-out pairs of `ukp_pairs_valid`, and on the pairs of all debates in turn."""
    preferences, texts = read_votes(data)
    votes = votes_of(preferences)
    group = np.array([name.partition("|")[0] for name in votes.prompts])  # a side of a debate
    group = group[votes.prompt]  # (U,)
    features = cached_features(votes, texts, folder / "ukp_features.npy")
    words = np.array([len(texts[id].split()) for id in votes.completions])
    valid = read_pairs(data / "ukp_pairs_valid.jsonl.gz")
    held_out = {topic(pair) for pair in valid}
    clear = {frozenset((pair.chosen[0]["content"], pair.rejected[0]["content"])) for pair in valid}
    sides = [texts[id] for id in votes.completions]
    asked = zip(votes.first.tolist(), votes.second.tolist(), strict=True)
    in_file = np.array([frozenset((sides[one], sides[other])) in clear for one, other in asked])
    alpha = bootstrap(krippendorff_alpha, verdict_counts(votes))
    result: dict[str, Any] = {
        "votes": len(votes),
        "pairs": votes.units,
        "workers": len(votes.annotators),
        "alpha": [alpha.value, alpha.low, alpha.high],
    }
    names = sorted({name.partition("_")[0] for name in group})
    order = np.random.default_rng(0).permutation(len(names))
    folds = [set(np.array(names)[part]) for part in np.array_split(order, FOLDS)]
    for spam in SPAM:
        started = time.perf_counter()
        seen = spammed(votes, spam)
        key = f"spam_{spam:g}"
        result[key] = {
            "held_out_debates": measure(seen, votes, group, [held_out], features, words, in_file),
            "all_debates_in_turn": measure(seen, votes, group, folds, features, words, np.ones(votes.units, bool)),
            "seconds": round(time.perf_counter() - started, 1),
        }
        show(key, result[key])
    return result


def read_votes(data: Path) -> tuple[list[Preference], dict[str, str]]:
    """Every vote as a preference, prompt ids being side|prompt, and the text of each argument."""
    texts: dict[str, str] = {}
    with gzip.open(data / "ukp_arguments.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            texts[row["id"].removeprefix("arg")] = row["text"]
    preferences = []
    winners = {"a1": "a", "a2": "b", "equal": "tie"}
    with gzip.open(data / "ukp_votes_reasons.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            about = {"prompt_id": f"{row['topic']}|{row['prompt']}"}
            about |= {"a_id": row["a1"].removeprefix("arg"), "b_id": row["a2"].removeprefix("arg")}
            for number, (who, said, *_) in enumerate(row["annotations"]):
                annotator = Annotator(id=f"worker-{who}")
                id = f"{row['id']}-{number}"
                preferences.append(Preference(id=id, annotator=annotator, winner=winners[said], **about))
    return preferences, texts


def cached_features(votes: Votes, texts: dict[str, str], path: Path) -> torch.Tensor:
    """Standardised features of every argument, turned onto their principal axes (C, at most C), float64.

    Turning changes neither the loss nor the penalty of a linear head, and makes it cheaper.
    """
    if not path.exists():
        prompt_of = dict(zip(votes.first.tolist(), votes.prompt.tolist(), strict=True))
        prompt_of |= dict(zip(votes.second.tolist(), votes.prompt.tolist(), strict=True))
        rows = []
        for number, id in enumerate(votes.completions):
            prompt = votes.prompts[prompt_of[number]].partition("|")[2]
            rows.append(make_text([{"role": "user", "content": prompt}], texts[id]))
        order = sorted(range(len(rows)), key=lambda number: len(rows[number].completion))
        started = time.perf_counter()
        made = Features(parse_spec(SPECS["frozen_head"]), Policy(model=WHEEL_MODEL))([rows[number] for number in order])
        found = np.empty(made.shape, dtype=np.float32)
        found[order] = made.numpy()
        np.save(path, found)
        print(f"features of {len(rows)} arguments in {time.perf_counter() - started:.0f} s", flush=True)
    features = torch.from_numpy(np.load(path))
    features = ((features - features.mean(0)) / features.std(0, correction=0).clamp_min(1e-6)).double()
    return features @ torch.linalg.svd(features, full_matrices=False).Vh.T


def spammed(votes: Votes, share: float) -> Votes:
    """The votes, with those of a share of the workers replaced by a side at random."""
    draw = np.random.default_rng(1)
    spammers = draw.random(len(votes.annotators)) < share
    verdict = np.where(spammers[votes.annotator], draw.integers(0, 2, len(votes)), votes.verdict)
    fields = {name: getattr(votes, name) for name in Votes.__dataclass_fields__}
    return Votes(**{**fields, "verdict": verdict})


def labels(votes: Votes) -> dict[str, Labels]:
    """What each way makes of the votes."""
    people = reliability(votes)
    found = consensus(votes, people)
    counts = verdict_counts(votes)
    for_first, for_second = counts[:, FIRST], counts[:, SECOND]
    judged = np.flatnonzero(counts.sum(1) > 0)
    decided = votes.take(votes.decided)
    won = decided.verdict == FIRST
    side = (votes.first[decided.unit], votes.second[decided.unit])
    raw = (np.where(won, *side), np.where(won, side[1], side[0]))
    uneven = np.flatnonzero(for_first != for_second)
    better = for_first[uneven] > for_second[uneven]
    first, second = votes.first, votes.second
    most = (np.where(better, first[uneven], second[uneven]), np.where(better, second[uneven], first[uneven]))
    margin = np.abs(for_first - for_second)[uneven] / (for_first + for_second)[uneven]
    two = people.posterior[:, [FIRST, SECOND]]
    posterior = two[:, 0] / np.maximum(two.sum(1), 1e-12)
    prefers = found.preference[judged] > 0.5
    sides = (first[judged], second[judged])
    strength = np.abs(2 * found.preference[judged] - 1)
    certain = 1 - people.posterior[judged][:, 2:].sum(1)
    return {
        "raw": (*raw, *_plain(len(won))),
        "majority": (*most, *_plain(len(uneven))),
        "margin": (*most, margin, np.ones(len(uneven))),
        "weighted": (*raw, np.zeros(len(won)), people.weight[decided.annotator]),
        "posterior": both_ways(*sides, posterior[judged], certain),
        "consensus": both_ways(*sides, found.preference[judged], np.ones(len(judged))),
        "margin_of_consensus": (
            np.where(prefers, *sides),
            np.where(prefers, sides[1], sides[0]),
            strength,
            np.ones(len(judged)),
        ),
    }


def both_ways(first: Any, second: Any, probability: NDArray[np.float64], weight: NDArray[np.float64]) -> Labels:
    """Each pair in both directions, weighted by the probability that the first side is better and that it is not."""
    weights = np.concatenate([weight * probability, weight * (1 - probability)])
    sides = np.concatenate([first, second]), np.concatenate([second, first])
    return (*sides, np.zeros(len(weights)), weights)


def _plain(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.zeros(n), np.ones(n)


def measure(
    seen: Votes,
    truth: Votes,
    group: NDArray[Any],
    held_out: list[set[str]],
    features: torch.Tensor,
    words: NDArray[np.int64],
    among: NDArray[np.bool_],
) -> dict[str, Any]:
    """Trains on the votes `seen` of all debates but the held-out ones, in turn; measures on the `truth` of those.

    Measured are pairs (U,) `among` which one side has more votes.
    """
    debate = np.array([name.partition("_")[0] for name in group])
    counts = verdict_counts(truth)
    margins: dict[str, NDArray[np.float64]] = {}
    tested = np.zeros(truth.units, dtype=bool)
    for debates in held_out:
        inside = np.isin(debate, list(debates))
        tested |= inside
        training = seen.take(~inside[seen.unit])
        for name, columns in labels(training).items():
            rewards = train(features, columns, seen)
            whole = margins.setdefault(name, np.zeros(truth.units))
            whole[inside] = (rewards[truth.first] - rewards[truth.second])[inside]
    uneven = tested & among & (counts[:, FIRST] != counts[:, SECOND])
    rows = np.flatnonzero(uneven)
    better = np.where(counts[rows, FIRST] > counts[rows, SECOND], 1.0, -1.0)
    longer = better * (words[truth.first] - words[truth.second])[rows]
    n, agreeing = counts[rows][:, :2].sum(1), counts[rows][:, :2]
    scores = {}
    for name, margin in margins.items():
        signed = margin[rows]
        right = (signed * better > 0) + 0.5 * (signed == 0)
        with_votes = np.where(signed > 0, agreeing[:, 0], agreeing[:, 1]) / n
        loss = (agreeing * np.logaddexp(0, np.stack([-signed, signed], 1))).sum(1) / n
        scores[name] = {"right": right, "votes": with_votes, "loss": loss}
    return summary(scores, group[rows], longer)


def train(features: torch.Tensor, labels: Labels, votes: Votes) -> NDArray[np.float64]:
    """Rewards (C,) of the head trained on these labels, its penalty chosen by cross-validation by prompt."""
    preferred, other, margin, weight = merged(labels)
    group_of = np.zeros(len(features), dtype=np.int64)
    group_of[votes.first], group_of[votes.second] = votes.prompt, votes.prompt
    folds = group_folds([str(g) for g in group_of[preferred]], 5, 0)
    losses = {}
    for penalty in PENALTIES:
        losses[penalty] = 0.0
        for fold in range(int(folds.max()) + 1):
            inside, held = folds != fold, folds == fold
            rewards = fit(features, preferred[inside], other[inside], margin[inside], weight[inside], penalty)
            loss = np.logaddexp(0, rewards[other[held]] - rewards[preferred[held]])
            losses[penalty] += float(weight[held] @ loss)
    return fit(features, preferred, other, margin, weight, min(losses, key=lambda value: losses[value]))


def merged(labels: Labels) -> Labels:
    """Equal pairs with equal margins as one, with the sum of their weights."""
    preferred, other, margin, weight = labels
    rows, number = np.unique(np.stack([preferred, other, margin], axis=1), axis=0, return_inverse=True)
    whole = rows[:, :2].astype(np.int64)
    return whole[:, 0], whole[:, 1], rows[:, 2], np.bincount(number.ravel(), weight)


def fit(
    features: torch.Tensor, preferred: Any, other: Any, margin: Any, weight: Any, penalty: float
) -> NDArray[np.float64]:
    """Rewards (C,) of the head that minimises the weighted mean loss: `rewards.head.fit`, with weights."""
    chosen, rejected = torch.from_numpy(preferred), torch.from_numpy(other)
    less, share = torch.from_numpy(margin), torch.from_numpy(weight / weight.sum())
    head = torch.zeros(features.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [head], max_iter=500, tolerance_grad=1e-6, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        rewards = features @ head
        loss = -(share @ logsigmoid(rewards[chosen] - rewards[rejected] - less)) + penalty / 2 * head @ head
        loss.backward()
        return loss

    optimizer.step(closure)
    return np.asarray((features @ head.detach()).numpy())


def summary(scores: dict[str, dict[str, Any]], clusters: NDArray[Any], longer: NDArray[Any]) -> dict[str, Any]:
    """Each way's measures, and its differences to `raw` and `majority`; intervals are from resampling groups."""
    names, number = np.unique(clusters, return_inverse=True)
    draw = np.random.default_rng(0)
    rows = [np.flatnonzero(number == k) for k in range(len(names))]
    samples = [np.concatenate([rows[k] for k in draw.integers(len(rows), size=len(rows))]) for _ in range(RESAMPLES)]
    everything = np.arange(len(clusters))
    measures: dict[str, Callable[[dict[str, Any], NDArray[np.int64]], float]] = {
        "accuracy": lambda s, at: float(s["right"][at].mean()),
        "length_balanced_accuracy": lambda s, at: length_balanced_accuracy(s["right"][at], longer[at]) or 0.5,
        "agreement_with_votes": lambda s, at: float(s["votes"][at].mean()),
        "log_loss_of_votes": lambda s, at: float(s["loss"][at].mean()),
    }
    result: dict[str, Any] = {"pairs": len(clusters), "groups": len(names)}
    for measure_name, value in measures.items():
        drawn = {name: np.array([value(s, at) for at in samples]) for name, s in scores.items()}
        whole = {name: value(s, everything) for name, s in scores.items()}
        result[measure_name] = {}
        for name in scores:
            row = {"mean": whole[name], "interval": _interval(drawn[name])}
            for base in ("raw", "majority"):
                if base != name:
                    row[f"less_{base}"] = [whole[name] - whole[base], *_interval(drawn[name] - drawn[base])]
            result[measure_name][name] = row
    return result


def _interval(values: NDArray[np.float64]) -> list[float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return [float(low), float(high)]


def show(key: str, result: dict[str, Any]) -> None:
    """The differences, on a terminal."""
    for where in ("held_out_debates", "all_debates_in_turn"):
        found = result[where]
        print(f"{key}, {where}: {found['pairs']} pairs of {found['groups']} groups ({result['seconds']} s)")
        for name, row in found["accuracy"].items():
            against = [
                f"less {base} {row[f'less_{base}'][0]:+.4f} "
                f"[{row[f'less_{base}'][1]:+.4f}, {row[f'less_{base}'][2]:+.4f}]"
                for base in ("raw", "majority")
                if f"less_{base}" in row
            ]
            loss, balanced = found["log_loss_of_votes"][name], found["length_balanced_accuracy"][name]
            print(
                f"  {name:20s} accuracy {row['mean']:.4f} [{row['interval'][0]:.3f}, {row['interval'][1]:.3f}], "
                f"length-balanced {balanced['mean']:.4f}, log-loss {loss['mean']:.4f}; {'; '.join(against)}",
                flush=True,
            )
