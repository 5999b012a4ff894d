"""What feedback must survive before it trains anything.

Nothing is lost: what does not pass is quarantined or set aside, with the reason, and counted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from rlhf_loop.feedback.circles import in_circles
from rlhf_loop.feedback.store.table_rows import about, pair_key, verdict
from rlhf_loop.feedback.vague import is_vague
from rlhf_loop.feedback.validation_report import CHECKS, ValidationReport
from rlhf_loop.recipe import Validation
from rlhf_loop.records import (
    HELD_OUT,
    Completion,
    Critique,
    Edit,
    Feedback,
    Implicit,
    Preference,
    Prompt,
    Rating,
    Skip,
    Thumb,
)
from rlhf_loop.rows.critiqued import ALL_KINDS, Limits

LEAK_WORDS = 8  # answers shorter than this may well be the same by chance
EXAMPLES = 3


def validate(
    feedback: Sequence[Feedback],
    completions: Mapping[str, Completion],
    prompts: Mapping[str, Prompt],
    settings: Validation,
) -> ValidationReport:
    """Checks feedback, in the order given, against the completions and prompts that it names.

    Contradictory verdicts on a pair are settled by `settings.contradictions`: with `majority` the side with more
    votes stays, with the vote margin (for - against) / (for + against) as its strength. Vague critiques are removed
    from the preferences that carry them, which stay. Leakage is looked for between the feedback on training prompts
    and the prompts and completions of the other splits; the training side goes.
    Takes a few seconds for 100,000 preferences.
    """
    check = _Checks(feedback, completions, prompts, settings)
    check.references()
    check.untrained()
    check.answers()
    check.leakage()
    check.duplicates()
    check.undecided()
    check.contradictions()
    check.critiques()
    check.cycles()
    return check.report()


def limits_of(settings: Validation, kinds: Collection[str] = ALL_KINDS, system_prompt: str | None = None) -> Limits:
    """Which critiques are left out of what is learned from, by the same settings."""
    return Limits(
        is_vague=partial(is_vague, min_words=settings.min_critique_words),
        max_words=settings.max_words,
        kinds=kinds,
        system_prompt=system_prompt,
    )


class _Checks:
    """The feedback that is still in, and what became of the rest."""

    def __init__(
        self,
        feedback: Sequence[Feedback],
        completions: Mapping[str, Completion],
        prompts: Mapping[str, Prompt],
        settings: Validation,
    ) -> None:
        self.all = list(feedback)
        self.remaining = list(feedback)
        self.completions = completions
        self.prompts = prompts
        self.settings = settings
        self.quarantined: list[tuple[Feedback, str]] = []
        self.set_aside: list[Feedback] = []
        self.counts: Counter[str] = Counter(dict.fromkeys(CHECKS, 0))
        self.examples: dict[str, list[str]] = defaultdict(list)

    def references(self) -> None:
        """Takes out what names prompts or completions that are not there."""

        def reason(record: Feedback) -> str | None:
            if record.prompt_id not in self.prompts:
                return f"there is no prompt {record.prompt_id}"
            for id in about(record):
                if id not in self.completions:
                    return f"there is no completion {id}"
                if self.completions[id].prompt_id != record.prompt_id:
                    return f"completion {id} answers another prompt"
            return None

        self._quarantine("unknown", reason)

    def untrained(self) -> None:
        """Sets aside what is about conversations that nothing is trained on."""
        kept: list[Feedback] = []
        for record in self.remaining:
            if self.prompts[record.prompt_id].split == "untrained":
                self._count("untrained", f"{record.id}: on prompt {record.prompt_id}")
                self.set_aside.append(record)
            else:
                kept.append(record)
        self.remaining = kept

    def answers(self) -> None:
        """Takes out what is about empty, identical or over-long answers."""
        words = {id: len(self._text(id).split()) for id in self._mentioned()}

        def empty(record: Feedback) -> str | None:
            if not self.prompts[record.prompt_id].asked.strip():
                return f"prompt {record.prompt_id} is empty"
            if isinstance(record, Edit) and not record.edited_completion.strip():
                return "the edited answer is empty"
            return next((f"completion {id} is empty" for id in about(record) if not words[id]), None)

        def identical(record: Feedback) -> str | None:
            ids = about(record)
            if not isinstance(record, Preference) or words[ids[0]] != words[ids[1]]:
                return None
            plain, other = (" ".join(self._text(id).split()) for id in ids)
            return f"both answers are {plain[:60]!r}" if plain == other else None

        def overlong(record: Feedback) -> str | None:
            limit = self.settings.max_words
            long = [id for id in about(record) if words[id] > limit]
            return f"completion {long[0]} has {words[long[0]]} words, the limit is {limit}" if long else None

        self._quarantine("empty", empty)
        self._quarantine("identical", identical)
        self._quarantine("overlong", overlong)

    def leakage(self) -> None:
        """Takes out feedback on training prompts that stand, or whose answers stand, in a held-out split too."""
        held_prompts = {
            text: prompt.split
            for prompt in self.prompts.values()
            if prompt.split in HELD_OUT and (text := _normal(prompt.asked))
        }
        held_answers = {
            _normal(completion.text): prompt.split
            for completion in self.completions.values()
            if (prompt := self.prompts.get(completion.prompt_id)) is not None and prompt.split in HELD_OUT
        }
        if not held_prompts and not held_answers:
            return
        leaked = {
            prompt.id: split
            for prompt in self.prompts.values()
            if prompt.split == "train" and (split := held_prompts.get(_normal(prompt.asked))) is not None
        }
        normal = {id: _normal(self._text(id)) for id in self._mentioned()} if held_answers else {}

        def reason(record: Feedback) -> str | None:
            if self.prompts[record.prompt_id].split != "train":
                return None
            if record.prompt_id in leaked:
                return f"its prompt also stands in the split {leaked[record.prompt_id]}"
            for id in about(record) if held_answers else ():
                if normal[id] in held_answers and len(normal[id].split()) >= LEAK_WORDS:
                    return f"completion {id} also stands in the split {held_answers[normal[id]]}"
            return None

        self._quarantine("leakage", reason)

    def duplicates(self) -> None:
        """Takes out what the same annotator said of the same thing before."""
        seen: dict[tuple[Any, ...], str] = {}

        def reason(record: Feedback) -> str | None:
            first = seen.setdefault((record.annotator.id, record.kind, *_said(record)), record.id)
            return f"the same as {first}" if first != record.id else None

        self._quarantine("duplicate", reason)

    def undecided(self) -> None:
        """Sets ties, both-bad verdicts and skips aside: sound, but no pair."""
        kept: list[Feedback] = []
        for record in self.remaining:
            if isinstance(record, Skip):
                self._count("skip", f"{record.id}: by {record.annotator.id}")
            elif isinstance(record, Preference) and record.winner in ("tie", "both_bad"):
                self._count(record.winner, f"{record.id}: by {record.annotator.id}")
            else:
                kept.append(record)
                continue
            self.set_aside.append(record)
        self.remaining = kept

    def contradictions(self) -> None:
        """Settles pairs that were judged both ways."""
        votes: dict[str, dict[str, int]] = defaultdict(dict)
        for record in self.remaining:
            if isinstance(record, Preference):
                counts, winner = votes[pair_key(record.a_id, record.b_id)], verdict(record)
                counts[winner] = counts.get(winner, 0) + 1
        disputed = {pair: Counter(counts).most_common() for pair, counts in votes.items() if len(counts) > 1}

        def reason(record: Feedback) -> str | None:
            pair = pair_key(record.a_id, record.b_id) if isinstance(record, Preference) else ""
            if not isinstance(record, Preference) or pair not in disputed:
                return None
            (winner, most), (_, fewest) = disputed[pair]
            if self.settings.contradictions == "drop":
                return f"its pair was judged both ways, {most} to {fewest}"
            if most == fewest:
                return f"its pair was judged both ways as often, {most} to {fewest}"
            return f"outvoted {most} to {fewest}" if verdict(record) != winner else None

        self._quarantine("contradiction", reason)
        for number, record in enumerate(self.remaining if disputed else ()):
            if isinstance(record, Preference) and (pair := pair_key(record.a_id, record.b_id)) in disputed:
                (_, most), (_, fewest) = disputed[pair]
                self.remaining[number] = replace(record, strength=(most - fewest) / (most + fewest))

    def critiques(self) -> None:
        """Removes vague critiques from what carries them; a critique that is nothing else, and has no tag that says
        what is wrong, goes whole."""
        minimum = self.settings.min_critique_words
        kept: list[Feedback] = []
        for record in self.remaining:
            comments = [span.comment for span in record.spans] if isinstance(record, Critique) else []
            if not isinstance(record, Critique) if record.comment is None else not is_vague(record.comment, minimum):
                kept.append(record)
            elif any(not is_vague(comment, minimum) for comment in comments):
                kept.append(replace(record, comment=None))
            elif isinstance(record, Critique) and any(span.label.strip() for span in record.spans):
                if record.comment is not None:
                    self._count("vague_critique", f"{record.id}: {record.comment[:80]!r}")
                kept.append(replace(record, comment=None))
            else:
                self._count("vague_critique", f"{record.id}: {(record.comment or '')[:80]!r}")
                if isinstance(record, Critique):
                    self.quarantined.append((record, "a critique too vague to act on"))
                else:
                    kept.append(replace(record, comment=None))
        self.remaining = kept

    def cycles(self) -> None:
        """Counts the preferences inside a circle: both completions in one strongly connected part of their prompt."""
        decided = [record for record in self.remaining if isinstance(record, Preference)]
        number: dict[str, int] = {}
        sides = [[number.setdefault(id, len(number)) for id in (r.a_id, r.b_id)] for r in decided]
        victories = [(b, a) if r.winner == "b" else (a, b) for r, (a, b) in zip(decided, sides, strict=True)]
        winner, loser = np.array(victories, dtype=np.int64).reshape(-1, 2).T
        for place in np.flatnonzero(in_circles(winner, loser)):
            self._count("cycle", f"{decided[place].id}: on prompt {decided[place].prompt_id}")

    def report(self) -> ValidationReport:
        """What came of it."""
        decided = [record for record in self.remaining if isinstance(record, Preference)]
        training = [record for record in decided if self.prompts[record.prompt_id].split == "train"]
        pairs = len({pair_key(record.a_id, record.b_id) for record in training})
        missing = self.settings.min_pairs - pairs
        per_annotator: dict[str, dict[str, int]] = {}
        for name, records in (
            ("given", self.all),
            ("usable", self.remaining),
            ("quarantined", [record for record, _ in self.quarantined]),
            ("set_aside", self.set_aside),
        ):
            for record in records:
                empty = {"given": 0, "usable": 0, "quarantined": 0, "set_aside": 0}
                per_annotator.setdefault(record.annotator.id, empty)[name] += 1
        return ValidationReport(
            usable=self.remaining,
            quarantined=self.quarantined,
            set_aside=self.set_aside,
            counts=dict(self.counts),
            examples=dict(self.examples),
            per_annotator=per_annotator,
            total=len(self.all),
            pairs=pairs,
            min_pairs=self.settings.min_pairs,
            needed=missing if missing > 0 else None,
        )

    def _quarantine(self, check: str, reason: Callable[[Feedback], str | None]) -> None:
        """Takes out the records for which `reason` gives one."""
        kept: list[Feedback] = []
        for record in self.remaining:
            why = reason(record)
            if why is None:
                kept.append(record)
            else:
                place = f" ({record.source})" if record.source else ""
                self.quarantined.append((record, why))
                self._count(check, f"{record.id}{place}: {why}")
        self.remaining = kept

    def _count(self, check: str, example: str) -> None:
        self.counts[check] += 1
        if len(self.examples[check]) < EXAMPLES:
            self.examples[check].append(example)

    def _mentioned(self) -> set[str]:
        """The completions that the feedback which is still in is about."""
        return {id for record in self.remaining for id in about(record)}

    def _text(self, completion_id: str) -> str:
        return self.completions[completion_id].text


def _said(record: Feedback) -> tuple[Any, ...]:
    """What a record says, without who, when and where."""
    if isinstance(record, Preference):
        return pair_key(record.a_id, record.b_id), verdict(record)
    if isinstance(record, Rating):
        return record.completion_id, record.score, record.scale
    if isinstance(record, Thumb):
        return record.completion_id, record.label
    if isinstance(record, Critique):
        return record.completion_id, record.comment, record.spans
    if isinstance(record, Edit):
        return record.completion_id, record.edited_completion
    if isinstance(record, Implicit):
        return record.completion_id, record.action, record.created_at  # one may copy an answer twice
    return tuple(sorted(about(record)))


def _normal(text: str) -> str:
    return " ".join(text.lower().split())
