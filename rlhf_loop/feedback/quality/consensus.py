"""One verdict a pair from what several people said, with how sure it is.

Who said it counts by reliability (`dawid_skene.DawidSkene.weight`), and what was said of a prompt's other answers
counts too: if a beat b and b beat c, a is probably better than c (`davidson`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf_loop.feedback.quality.davidson import PENALTY, Strengths, davidson
from rlhf_loop.feedback.quality.dawid_skene import DawidSkene, reliability
from rlhf_loop.feedback.quality.votes import BOTH_BAD, FIRST, SECOND, TIE, Votes, votes_of
from rlhf_loop.records import Annotator, Preference, stable_id

Floats = NDArray[np.float64]

VERDICTS = ("a", "b", "tie", "both_bad")
"""Of a preference whose a is the first side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Consensus:
    """What U pairs come to."""

    people: DawidSkene
    strengths: Strengths
    outcomes: Floats  # (U, 3) P(first better), P(second better), P(tie), from all comparisons of the prompt
    preference: Floats  # (U,) P(first better) if one is
    weights: Floats  # (U,) the sum of the weights of the pair's votes

    @property
    def verdict(self) -> NDArray[np.int64]:
        """(U,) the most probable verdict; both bad where that is what the pair's own judges most probably saw."""
        likely = np.asarray(self.outcomes.argmax(1), dtype=np.int64)
        return np.where(self.people.posterior.argmax(1) == BOTH_BAD, BOTH_BAD, likely)


def consensus(votes: Votes, people: DawidSkene | None = None, penalty: float = PENALTY) -> Consensus:
    """The consensus of votes; an annotator who judged a pair several times counts with the last verdict.

    `people` is how reliable they are, by default fitted to these votes. `both_bad` counts as a tie between the sides.
    """
    votes = votes.last_of_each()
    people = people or reliability(votes)
    weight = people.weight[votes.annotator]

    def summed(*verdicts: int) -> Floats:
        said = np.isin(votes.verdict, verdicts)
        return np.bincount(votes.unit[said], weight[said], minlength=votes.units).astype(np.float64)

    wins, losses, ties = summed(FIRST), summed(SECOND), summed(TIE, BOTH_BAD)
    answers = len(votes.completions)
    strengths = davidson(votes.first, votes.second, wins, losses, ties, answers=answers, penalty=penalty)
    return Consensus(
        people=people,
        strengths=strengths,
        outcomes=strengths.outcomes(votes.first, votes.second),
        preference=strengths.preference(votes.first, votes.second),
        weights=wins + losses + ties,
    )


def consensus_preferences(preferences: list[Preference]) -> list[Preference]:
    """One preference for each pair that was judged, by the annotator "consensus".

    `strength` is |2p - 1| with p the probability that the first side is better if one is: 0 even, 1 certain. They are
    what `pairing.pairs_from_feedback` takes in place of the votes.
    """
    preferences = [record for record in preferences if record.a_id != record.b_id]  # as `votes_of` does
    votes = votes_of(preferences)
    found = consensus(votes)
    latest = np.zeros(votes.units, dtype=np.int64)
    np.maximum.at(latest, votes.unit, np.arange(len(votes)))
    made = []
    for unit, row in enumerate(latest):
        last = preferences[row]
        first, second = votes.completions[votes.first[unit]], votes.completions[votes.second[unit]]
        made.append(
            Preference(
                id=stable_id("consensus", first, second, last.id),
                prompt_id=votes.prompts[votes.prompt[unit]],
                a_id=first,
                b_id=second,
                winner=VERDICTS[found.verdict[unit]],  # type: ignore[arg-type]
                strength=float(abs(2 * found.preference[unit] - 1)),
                annotator=Annotator(id="consensus", kind=last.annotator.kind),
                created_at=last.created_at,
                round=last.round,
                source=last.source,
            )
        )
    return made
