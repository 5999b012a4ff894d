"""Everything that `rlhf-loop feedback check` says of the quality of a store's feedback, in figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from rlhf_loop.feedback.quality import bias, calibration, coefficients, measures, near_duplicates
from rlhf_loop.feedback.quality.annotators import annotator_pairs, annotator_rows
from rlhf_loop.feedback.quality.consensus import Consensus, consensus
from rlhf_loop.feedback.quality.contradictions import contradictions
from rlhf_loop.feedback.quality.dawid_skene import reliability
from rlhf_loop.feedback.quality.drift import drift
from rlhf_loop.feedback.quality.significance import Share, share
from rlhf_loop.feedback.quality.votes import BOTH_BAD, TIE, Votes, judged_texts, read_votes, words_of
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import HELD_OUT, Prompt

COHEN_PAIRS = 10
EXAMPLES = 5
SURE = 0.9


def check(store: Store, *, duplicates: bool = True) -> dict[str, Any]:
    """Measures the preferences of a store that nothing supersedes; plain JSON types.

    `duplicates`: look for near-duplicate prompts and answers too, which takes most of the time. Intervals are 95%;
    every share has its `n`. A measure that has nothing to look at is None, or has `n` 0.
    """
    votes = read_votes(store)
    words = words_of(store, votes)
    answered = calibration.answers(votes, calibration.known_answers(store))
    last = votes.last_of_each()
    people = reliability(last)
    agreed = measures.agreement(votes)
    counts = coefficients.verdict_counts(votes)
    return {
        "preferences": len(votes),
        "pairs": votes.units,
        "prompts": len(votes.prompts),
        "verdicts": _verdicts(votes),
        "agreement": {
            "pairs": agreed.pairs,
            "comparisons": agreed.comparisons,
            "agreed": agreed.agreed,
            "krippendorff_alpha": {
                "value": agreed.alpha,
                "low": agreed.alpha_low,
                "high": agreed.alpha_high,
                "n": agreed.pairs,
            },
            "fleiss_kappa": asdict(coefficients.bootstrap(coefficients.fleiss_kappa, counts)),
            "cohen_kappa": [
                {
                    "annotators": [votes.annotators[one], votes.annotators[other]],
                    **asdict(coefficients.bootstrap_kappa(table)),
                }
                for one, other, table in annotator_pairs(votes, COHEN_PAIRS)
            ],
        },
        "consensus": _consensus(votes, consensus(votes, people), len(people.objective), people.converged),
        "position": _with_p(measures.shown_first_wins(votes).share()),
        "length": _with_p(measures.longer_wins(votes, words).share()),
        "position_and_length": bias.regression(votes, words),
        "contradictions": contradictions(votes),
        "calibration": {
            "items": answered.items,
            **asdict(share(int(answered.passed.sum()), len(answered.passed))),
        },
        "drift": drift(votes, answered),
        "annotators": annotator_rows(votes, people, words, answered),
        "near_duplicates": _near_duplicates(store, votes) if duplicates else None,
    }


def _with_p(found: Share) -> dict[str, Any]:
    return {**asdict(found), "p": found.p}


def _verdicts(votes: Votes) -> dict[str, int]:
    said = np.bincount(votes.verdict, minlength=4)
    return {"decided": int(said[:2].sum()), "tie": int(said[TIE]), "both_bad": int(said[BOTH_BAD])}


def _consensus(votes: Votes, found: Consensus, iterations: int, converged: bool) -> dict[str, Any]:
    """How sure the consensus is: pairs by what it says, and how probable the preferred side is."""
    said = np.bincount(found.verdict, minlength=4)
    sure = np.maximum(found.preference, 1 - found.preference)[found.verdict < TIE]
    return {
        "pairs": votes.units,
        "decided": int(said[:2].sum()),
        "tie": int(said[TIE]),
        "both_bad": int(said[BOTH_BAD]),
        "probability": {
            "mean": float(sure.mean()) if len(sure) else None,
            "sure": int((sure >= SURE).sum()),
            "unsure": int((sure < 0.6).sum()),
        },
        "tie_parameter": found.strengths.nu,
        "iterations": iterations,
        "converged": converged,
    }


def _near_duplicates(store: Store, votes: Votes) -> dict[str, Any]:
    """Prompts like each other, held-out prompts like training prompts, judged pairs whose sides are alike."""
    prompts = store.prompts()
    texts = [prompt.asked for prompt in prompts]
    found = near_duplicates.clusters(near_duplicates.signatures(texts))
    groups = found.groups()
    split = [prompt.split for prompt in prompts]
    leaks = [rows for rows in groups if len({split[r] in HELD_OUT for r in rows}) == 2]
    rows_of = {id: row for row, id in enumerate(votes.completions)}
    places: list[int] = []

    def judged() -> Iterable[str]:
        for id, text in judged_texts(store):
            if id in rows_of:
                places.append(rows_of[id])
                yield text

    signatures = near_duplicates.signatures(judged())
    row_of = np.full(len(votes.completions), -1, dtype=np.int64)
    row_of[places] = np.arange(len(places))
    first, second = row_of[votes.first], row_of[votes.second]
    alike = np.concatenate(
        [np.zeros(0)]
        + [
            near_duplicates.similarity(signatures[first[part]], signatures[second[part]])
            for part in np.array_split(np.arange(votes.units), votes.units // 100_000 + 1)
        ]
    )
    same = np.flatnonzero(alike >= near_duplicates.SIMILAR)
    answers = near_duplicates.clusters(signatures).groups()
    return {
        "similar": near_duplicates.SIMILAR,
        "prompts": {
            **asdict(share(sum(len(rows) for rows in groups), len(prompts))),
            "groups": len(groups),
            "examples": [[_shown(prompts[r], texts[r]) for r in rows[:3]] for rows in groups[:EXAMPLES]],
        },
        "across_splits": {
            "groups": len(leaks),
            "training_prompts": sum(split[r] == "train" for rows in leaks for r in rows),
            "n": sum(s == "train" for s in split),
            "examples": [[f"{split[r]} {_shown(prompts[r], texts[r])}" for r in rows[:3]] for rows in leaks[:EXAMPLES]],
        },
        "answers": {
            **asdict(share(sum(len(rows) for rows in answers), len(places))),
            "groups": len(answers),
        },
        "pairs": {
            **asdict(share(len(same), votes.units)),
            "examples": [
                f"{votes.completions[votes.first[u]]} | {votes.completions[votes.second[u]]}" for u in same[:EXAMPLES]
            ],
        },
    }


def _shown(prompt: Prompt, text: str) -> str:
    return f"{prompt.id}: {text[:120]}"
