"""More answers than are kept: the best by the round's reward model (Stiennon et al. 2020, arXiv 2009.01325)."""

from __future__ import annotations

import math

from rlhf_loop.generation import Asked
from rlhf_loop.generation.strategies import fresh
from rlhf_loop.generation.strategies.given import Given, Written
from rlhf_loop.rows.parts import best_first


def write(given: Given) -> Written:
    """The best `samples_per_prompt` of `best_of_n.n` answers to each prompt, each text once; before there is a reward
    model, fresh ones.

    An answer that the reward model has nothing to say of comes after all that it scores.
    """
    if given.score is None:
        written = fresh.write(given)
        written.counts["prompts before a reward model"] += len(given.prompts)
        return written
    asked = [Asked(prompt=prompt, note={"best_of": given.settings.best_of_n.n}) for prompt in given.prompts]
    groups = given.sample(asked, given.settings.best_of_n.n)
    scores = given.score([completion for group in groups for completion in group])
    written = Written(completions=[])
    written.counts["samples"] = sum(map(len, groups))
    written.counts["samples without a score"] = written.counts["samples"] - len(scores)
    for group in groups:
        kept: dict[str, str] = {}  # text -> id
        for completion, _ in best_first(group, [scores.get(c.id, -math.inf) for c in group]):
            if completion.text.strip() in kept:
                written.set_aside.append((completion, "same text as a better one"))
            elif len(kept) == given.settings.samples_per_prompt:
                written.set_aside.append((completion, "scored lower"))
            else:
                kept[completion.text.strip()] = completion.id
        written.completions += [completion for completion in group if completion.id in kept.values()]
    return written
