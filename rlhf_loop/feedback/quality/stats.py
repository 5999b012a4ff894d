"""What the store holds, in figures: for `rlhf-loop feedback stats`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from rlhf_loop.feedback.quality import measures
from rlhf_loop.feedback.quality.votes import identical_pairs, votes_of, words_of
from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Feedback, Preference


def stats(store: Store) -> dict[str, Any]:
    """Counts by kind, annotator, round and split; ties; agreement; how far position and length sway the verdicts.

    Plain JSON types. Only feedback that no correction supersedes is counted; measures leave out pairs of one
    text, as `check` does.
    """
    feedback = store.feedback()
    counts = store.counts()
    preferences = [record for record in feedback if isinstance(record, Preference)]
    splits = {prompt.id: prompt.split for prompt in store.prompts()}
    with store.database.read() as connection:
        same = identical_pairs(connection)
    votes = votes_of(record for record in preferences if frozenset((record.a_id, record.b_id)) not in same)
    return {
        "counts": counts,
        "prompts_by_split": _count(splits.values()),
        "completions_by_round": _completions_by_round(store),
        "feedback_by_kind": _count(record.kind for record in feedback),
        "feedback_by_round": _count(record.round for record in feedback),
        "feedback_by_split": _count(splits[record.prompt_id] for record in feedback),
        "feedback_by_annotator": _per_annotator(feedback),
        "superseded": counts["feedback"] - len(feedback),
        "verdicts": _count(preference.winner for preference in preferences),
        "with_critique": sum(bool(record.comment) for record in feedback),
        "agreement": asdict(measures.agreement(votes)),
        "first_shown_wins": asdict(measures.shown_first_wins(votes).share()),
        "longer_wins": asdict(measures.longer_wins(votes, words_of(store, votes)).share()),
    }


def lines(stats: dict[str, Any]) -> list[str]:
    """`stats` for people."""
    counts = stats["counts"]
    together = stats["agreement"]
    text = [
        f"prompts       {counts['prompts']}{_parts(stats['prompts_by_split'])}",
        f"completions   {counts['completions']}{_parts(stats['completions_by_round'], 'round ')}",
        f"scores        {counts['scores']}",
        f"questions     {counts['questions']}, {counts['open_questions']} of them open",
        f"feedback      {sum(stats['feedback_by_kind'].values())}{_parts(stats['feedback_by_kind'])}",
    ]
    if stats["feedback_by_kind"]:
        text += [
            f"  by split    {_listed(stats['feedback_by_split'])}",
            f"  by round    {_listed(stats['feedback_by_round'], 'round ')}",
            f"  verdicts    {_listed(stats['verdicts']) or 'none'}",
            f"  critiques   {stats['with_critique']} pieces of feedback have one",
        ]
        by_annotator = sorted(stats["feedback_by_annotator"].items(), key=lambda item: -sum(item[1].values()))
        text += [f"  annotator   {name}: {_listed(kinds)}" for name, kinds in by_annotator[:10]]
        if len(by_annotator) > 10:
            text.append(f"  annotator   and {len(by_annotator) - 10} more")
    for source, borrowed in stats.get("borrowed", {}).items():
        text.append(f"borrowed      from {source}: {_listed({k.replace('_', ' '): n for k, n in borrowed.items()})}")
    if together["comparisons"]:
        alpha = "not defined" if together["alpha"] is None else f"{together['alpha']:.2f}"
        if together["alpha_low"] is not None:
            alpha += f" [{together['alpha_low']:.2f}, {together['alpha_high']:.2f}]"
        text.append(
            f"agreement     {together['agreed']:.0%} over {together['pairs']} pairs that several people judged; "
            f"Krippendorff's alpha {alpha} (1 perfect, 0 chance)"
        )
    else:
        text.append("agreement     unknown: no pair was judged by two annotators")
    for name, key in (("first shown", "first_shown_wins"), ("longer one", "longer_wins")):
        value = stats[key]
        if value["n"]:
            text.append(
                f"{name:<13} wins {value['share']:.0%} [{value['low']:.0%}, {value['high']:.0%}] of {value['n']} pairs"
            )
    if stats["superseded"]:
        text.append(f"corrections   {stats['superseded']} records are superseded and not counted")
    if counts["quarantine"]:
        text.append(f"quarantine    {counts['quarantine']} rows were refused")
    return text


def _completions_by_round(store: Store) -> dict[str, int]:
    column = tables.completions.c
    with store.database.read() as connection:
        rows = connection.execute(sa.select(column.round, sa.func.count()).group_by(column.round))
        return {str(round): count for round, count in sorted(rows.tuples())}


def _per_annotator(feedback: Iterable[Feedback]) -> dict[str, dict[str, int]]:
    """Annotator -> kind of feedback -> how many."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for record in feedback:
        counts[record.annotator.id][record.kind] += 1
    return {annotator: dict(kinds) for annotator, kinds in sorted(counts.items())}


def _count(values: Iterable[Any]) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(values).items())}


def _parts(counts: dict[str, int], before: str = "") -> str:
    return f": {_listed(counts, before)}" if counts else ""


def _listed(counts: dict[str, int], before: str = "") -> str:
    shown = [
        f"{before}{name} {count}" if not before else f"{count} in {before}{name}" for name, count in counts.items()
    ]
    return ", ".join(shown)
