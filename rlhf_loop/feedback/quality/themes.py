"""What people complain about, and whether it gets better: their reasons in groups, by tags where they gave some, else
by words, without a model.

The measure is the share of judged answers that somebody complained of for a reason, in each round; its interval
resamples prompts. A text that no word of the lexicon is in counts as `other`; of these, those that do not read as
English are counted apart.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_loop.annotators.english import FUNCTION_WORDS
from rlhf_loop.feedback.store.table_rows import about
from rlhf_loop.records import Critique, Edit, Feedback, Implicit, Preference, Rating, Retraction, Skip, Thumb
from rlhf_loop.resampling import Floats, percentile_interval, resampled_ratios
from rlhf_loop.rows.critiqued import losers_of, verdicts_of
from rlhf_loop.rows.parts import origin_of

LEXICON: dict[str, tuple[str, ...]] = {
    "length": (
        "long", "short", "length", "brief", "concise", "succinct", "verbos", "wordy", "rambl", "trim", "padding",
        "fluff",
    ),
    "tone": (
        "tone", "rude", "polite", "impolite", "friendl", "unfriendl", "formal", "informal", "cold", "arrogan",
        "condescend", "patroni", "preach", "lectur", "harsh", "sarcas", "aggressiv", "robotic", "stiff", "apologi",
    ),
    "facts": (
        "wrong", "incorrect", r"correct(?!ly)", "false", "inaccura", "accura", "error", "mistake",
        r"fact(?:s|ual|ually)?\b", "hallucinat", "made up", "makes up", "invent", "untrue", "outdated", "source",
        "citation", "evidence",
    ),
    "relevance": (
        "off.topic", "topic", "irrelevan", "relevan", "unrelated", "question", "request", "asked", "wander", "ignor",
        "never mentions", "instruction", "misunderst", "beside the point",
    ),
    "clarity": (
        "unclear", r"clear(?!ly)", "clarity", "confus", "understand", "incoheren", "coheren", "ambig", "vague",
        "jargon", "complicated", "grammar", "spelling", "typo", "sentences?", "readab", "unreadab", "nonsens",
        "gibberish", "repeat", "repetit",
    ),
    "completeness": (
        "incomplete", r"complete(?!ly)", "missing", "misses", "lack", "omit", "leaves out", "left out", "detail",
        "example", "cut off", "cuts off", "unfinished", "finish", "stops in the middle", "partial", "depth", "shallow",
        "superficial", "not enough",
    ),
    "safety": (
        "unsafe", r"safe(?:ty|r)?\b", "harm", "danger", "offens", "toxic", r"hate(?:s|ful)?\b", "bias", "racis",
        "sexis", "illegal", "privacy", "violen", "inappropriate", "refus",
    ),
    "format": (
        "format", "markdown", "bullet", r"lists?\b", r"tables?\b", "heading", "code block", "layout", "paragraph",
        "indent", "json", "latex", "emoji", "symbol", "capital", "punctuat",
    ),
}  # fmt: skip
"""Theme -> beginnings of words (regular expressions) that stand for it."""

OTHER = "other"
THEMES = (*LEXICON, OTHER)

Place = tuple[int, str, str]
"""A judged answer: round, prompt, completion."""

Ints = NDArray[np.int64]

FUNCTION_WORDS_SHARE = 0.2
"""Of the words of an English text at least; neighbouring languages share one or two."""

RESAMPLES, FEWEST = 2000, 500
MOST_DRAWN = 2**22  # numbers drawn for a round's intervals, where `FEWEST` allows it
CONFIDENCE = 0.95


def themes_of(text: str, tags: Iterable[str] = ()) -> list[str]:
    """The themes of one complaint, in the order of `THEMES`: those of its tags, where it has any, else those of its
    words; `other` where they name none."""
    given = [tag for tag in tags if tag.strip()]
    said = "\n".join(given) if given else text
    return [theme for theme, pattern in _PATTERNS.items() if pattern.search(said)] or [OTHER]


def reads_as_english(text: str) -> bool:
    """Whether enough of its words hold English sentences together. A few words may not, though they are English."""
    words = re.findall(r"[\w']+", text.lower())
    return sum(word in FUNCTION_WORDS for word in words) >= FUNCTION_WORDS_SHARE * len(words)


def themes(feedback: Sequence[Feedback]) -> dict[str, Any]:
    """Counts of complaints and of answers by theme, over all and by round, as plain JSON types.

    Only people's complaints count where there are any; else those of the first kind there is (`whose`), and `others`
    says how many each other kind made. `themes` has the share of judged answers complained of by theme (`share, low,
    high, n`), the same in each round, and the change from the first round to the last, whose interval allows for as
    many comparisons as there are themes (Bonferroni).
    """
    found = list(_complaints(feedback))
    made = Counter(origin for origin, *_ in found)
    whose = next((kind for kind in ("human", "llm", "code", "simulated") if made[kind]), None)
    mine = [complaint for complaint in found if complaint[0] == whose]
    judged = _judged(feedback, whose)
    answers: dict[str, set[Place]] = {theme: set() for theme in THEMES}
    texts: Counter[str] = Counter()
    unknown = 0
    for _, place, text, tags in mine:
        reasons = themes_of(text, tags)
        unknown += reasons == [OTHER] and not any(tags) and not reads_as_english(text)
        texts.update(reasons)
        for theme in reasons:
            answers[theme].add(place)
    named = sorted((theme for theme in THEMES if answers[theme]), key=lambda theme: -texts[theme])
    shares = _Shares(judged, [answers[theme] for theme in named])
    overall, rounds, change = (shares.measured(), shares.rounds(), shares.change()) if named else ([], {}, None)
    return {
        "whose": whose,
        "others": {kind: count for kind, count in made.items() if kind != whose},
        "complaints": len(mine),
        "judged": len(judged),
        "not_english": unknown,
        "themes": {
            theme: {
                "complaints": texts[theme],
                **overall[place],
                "rounds": [{"round": round, **measured[place]} for round, measured in rounds.items()],
                "change": change[place] if change else None,
            }
            for place, theme in enumerate(named)
        },
    }


def lines(found: Mapping[str, Any]) -> list[str]:
    """`themes` for people."""
    if found["whose"] is None:
        return []
    text = [
        f"complaints    {found['complaints']:,} by {WHOSE[found['whose']]}, on {found['judged']:,} judged "
        f"answer{'s' * (found['judged'] != 1)}; the share of these that somebody complained of for"
    ]
    for theme, row in found["themes"].items():
        text.append(f"  {theme:<12} {_shown(row)}{change_in_words(row['change'])}")
    if found["not_english"]:
        text.append(
            f"  {found['not_english']:,} of `other` do not read as English, which is all that the lexicon knows"
        )
    return text


WHOSE = {
    "human": "people",
    "llm": "a model that judges",
    "code": "code",
    "simulated": "a simulated annotator, not by people",
}


def change_in_words(change: Mapping[str, Any] | None) -> str:
    """`; round 1 to 3: -12 points [-20, -4], less of it`, or that no change is shown."""
    if change is None:
        return ""
    said = "less of it" if change["high"] < 0 else "more of it" if change["low"] > 0 else "no change shown"
    points = [100 * change[name] for name in ("difference", "low", "high")]
    shown = "{:+.0f} points [{:+.0f}, {:+.0f}]".format(*points)
    return f"; round {change['from']} to {change['to']}: {shown}, {said}"


class _Shares:
    """Of the judged answers, the shares that were complained of by T themes, by round and prompt."""

    def __init__(self, judged: Iterable[Place], complained: Sequence[AbstractSet[Place]]):
        self.counts: dict[int, dict[str, Ints]] = defaultdict(dict)  # round -> prompt -> (T + 1,), all answers last
        for place in judged:
            round, prompt_id, _ = place
            of_prompt = self.counts[round].setdefault(prompt_id, np.zeros(len(complained) + 1, dtype=np.int64))
            of_prompt += [place in answers for answers in complained] + [True]

    def measured(self, round: int | None = None) -> list[dict[str, Any]]:
        """`{share, low, high, n}` of each theme in a round (None: in all); no interval where all is of one prompt."""
        counts = self._table(round)
        *totals, n = (int(number) for number in counts.sum(0))
        intervals: list[tuple[float | None, float | None]] = [(None, None)] * len(totals)
        if len(counts) > 1:
            drawn = self._drawn(round)
            intervals = [percentile_interval(of_theme, CONFIDENCE) for of_theme in drawn.T]
        return [
            {"share": total / n, "low": low, "high": high, "n": n}
            for total, (low, high) in zip(totals, intervals, strict=True)
        ]

    def rounds(self) -> dict[int, list[dict[str, Any]]]:
        """The same of each round."""
        return {round: self.measured(round) for round in sorted(self.counts)}

    def change(self) -> list[dict[str, Any]] | None:
        """Of each theme, from the first round to the last, its interval for as many comparisons as there are themes;
        None where there is one round, or where prompts are too few for an interval."""
        first, last = min(self.counts, default=0), max(self.counts, default=0)
        if first == last or min(len(self.counts[first]), len(self.counts[last])) < 2:
            return None
        drawn = self._drawn(last) - self._drawn(first)
        confidence = 1 - (1 - CONFIDENCE) / drawn.shape[1]
        changes = []
        for before, after, of_theme in zip(self.measured(first), self.measured(last), drawn.T, strict=True):
            low, high = percentile_interval(of_theme, confidence)
            changes.append(
                {"from": first, "to": last, "difference": after["share"] - before["share"], "low": low, "high": high}
            )
        return changes

    def _table(self, round: int | None) -> Ints:
        """(G, T + 1): of each prompt, the answers complained of by theme, and all that were judged."""
        if round is not None:
            return np.array([self.counts[round][prompt_id] for prompt_id in sorted(self.counts[round])])
        summed: dict[str, Ints] = {}
        for part in self.counts.values():
            for prompt_id, counts in part.items():
                summed[prompt_id] = summed.get(prompt_id, 0) + counts
        return np.array([summed[prompt_id] for prompt_id in sorted(summed)])

    def _drawn(self, round: int | None) -> Floats:
        """(resamples, T): shares of resampled prompts, as many for each round, and fewer the more prompts there are."""
        if round is None and len(self.counts) == 1:
            (round,) = self.counts
        if round not in self._kept:
            counts = self._table(round).astype(np.float64)
            prompts = max(map(len, self.counts.values()))
            self._kept[round] = resampled_ratios(
                counts[:, :-1],
                counts[:, -1:],
                seed=0 if round is None else round + 1,
                resamples=max(FEWEST, min(RESAMPLES, MOST_DRAWN // prompts)),
            )
        return self._kept[round]

    @cached_property
    def _kept(self) -> dict[int | None, Floats]:
        return {}


def _complaints(feedback: Sequence[Feedback]) -> Iterator[tuple[str, Place, str, list[str]]]:
    """Whose, of which answer (round, prompt, completion), in which words, with which tags. The same words of the same
    person about the same answer count once."""
    verdicts = verdicts_of(feedback)
    seen: set[tuple[str, str, str, tuple[str, ...]]] = set()
    for record in sorted(feedback, key=lambda r: not isinstance(r, Critique)):  # which has the tags
        text, tags = (record.comment or "").strip(), []
        if isinstance(record, Preference):
            ids = losers_of(record)
        elif isinstance(record, Critique):
            ids = [] if verdicts.get((record.annotator.id, record.completion_id)) else [record.completion_id]
            tags = list(dict.fromkeys(span.label for span in record.spans if span.label.strip()))
            text = "\n".join([text, *(span.comment for span in record.spans)]).strip()
        elif isinstance(record, Thumb | Rating):
            bad = verdicts.get((record.annotator.id, record.completion_id)) is False  # None: in the middle of the scale
            ids = [record.completion_id] if bad else []
        elif isinstance(record, Edit):
            ids = [record.completion_id]
        else:
            continue
        for completion_id in ids if text or tags else ():
            said = (record.annotator.id, completion_id, (record.comment or "").strip() or text, ())
            if said not in seen:
                seen.add(said)
                yield origin_of(record), (record.round, record.prompt_id, completion_id), text, tags


def _judged(feedback: Iterable[Feedback], whose: str | None) -> list[Place]:
    return sorted(
        {
            (record.round, record.prompt_id, completion_id)
            for record in feedback
            if not isinstance(record, Skip | Implicit | Retraction) and origin_of(record) == whose
            for completion_id in about(record)
        }
    )


def _shown(row: Mapping[str, Any]) -> str:
    interval = "" if row["low"] is None else f" [{row['low']:.0%}, {row['high']:.0%}]"
    return f"{row['share']:.0%}{interval} ({row['complaints']:,} complaint{'s' * (row['complaints'] != 1)})"


_PATTERNS = {theme: re.compile(rf"\b(?:{'|'.join(stems)})", re.IGNORECASE) for theme, stems in LEXICON.items()}
