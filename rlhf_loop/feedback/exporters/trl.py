"""TRL's data sets: pairs, and answers that were called good or bad."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from rlhf_loop.feedback.exporters.pages import effective_feedback, texts_of
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Completion, Feedback, Preference, Prompt, Thumb


def preferences(store: Store, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """Rows of `prompt, chosen, rejected` (conversations) and `margin`, the strength of the preference."""
    for record, prompt, completions in _trained_on(store, left_out):
        if not isinstance(record, Preference) or record.winner not in ("a", "b"):
            what = record.winner if isinstance(record, Preference) else record.kind
            left_out[f"{what} left out (no pair)"] += 1
            continue
        chosen, rejected = record.a_id, record.b_id
        if record.winner == "b":
            chosen, rejected = rejected, chosen
        yield {
            "prompt": list(prompt.messages),
            "chosen": [{"role": "assistant", "content": completions[chosen].text}],
            "rejected": [{"role": "assistant", "content": completions[rejected].text}],
            "margin": record.strength or 0.0,  # TRL looks at the first row only to see whether there are margins
        }


def unpaired(store: Store, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """Rows of `prompt, completion, label`, from thumbs and from pairs of which both are bad."""
    for record, prompt, completions in _trained_on(store, left_out):
        if isinstance(record, Thumb):
            labelled = [(record.completion_id, record.label)]
        elif isinstance(record, Preference) and record.winner == "both_bad":
            labelled = [(record.a_id, False), (record.b_id, False)]
        else:
            what = record.winner if isinstance(record, Preference) and record.winner == "tie" else record.kind
            left_out[f"{what} left out (of no single answer it says good or bad)"] += 1
            continue
        for completion_id, label in labelled:
            yield {
                "prompt": list(prompt.messages),
                "completion": [{"role": "assistant", "content": completions[completion_id].text}],
                "label": label,
            }


def _trained_on(store: Store, left_out: Counter[str]) -> Iterator[tuple[Feedback, Prompt, dict[str, Completion]]]:
    """The feedback in force with its prompt and completions, but for conversations that nothing is trained on."""
    for page in effective_feedback(store, left_out):
        prompts, completions = texts_of(store, page)
        for record in page:
            prompt = prompts[record.prompt_id]
            if prompt.split == "untrained":
                left_out[
                    f"{record.kind} left out (of a conversation with more than text, which is not trained on)"
                ] += 1
            else:
                yield record, prompt, completions
