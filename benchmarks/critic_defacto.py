"""Does writing a critique make a better reward model? On summaries that people explained and corrected (DeFacto).

    python benchmarks/critic_defacto.py --data DIR [--seeds 0 1 2] [--out FILE] [--work DIR]

DIR holds `defacto_critiques_train.jsonl.gz` and `defacto_critiques_val.jsonl.gz` (Liu et al. 2022, "On Improving
Summarization Factual Consistency from Natural Language Feedback", MIT): `{"id", "response", "has_error", "critique",
"revised"}` a line. People read a model's summary of a news article beside the article, said what in it the article does
not support, and corrected it, or said why nothing is wrong. `critic_arms.py` says which three reward models are
compared, and how.

A pair is a corrected summary over the one that it corrects; what people said of summaries are the critiques. The data
do not hold the articles: a reward model reads the summary alone, and can learn which claims tend to be unsupported, or
what people's corrections look like. So two kinds of held-out pairs are measured:

    corrected    a correction over the summary that it corrects, as in training
    error_free   a summary in which people found no error over another article's in which they did: both by the model

Corrections are shorter in seven of ten pairs: 1 less `longer_wins` is what counting words gives. Each seed draws other
training pairs; the held-out ones are the same, and articles are resampled. No setting was chosen on these figures.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

from critic_arms import Drawn, compare, specs

from rlhf_loop.records import CritiquedCompletion, Message, PreferencePair, stable_id

PAIRS, ERROR_FREE = 160, 40  # to train on; and summaries without an error, whose critiques are learned from too
HELD_OUT, OTHERS = 140, 100  # corrections; and summaries without an error
PROMPT: tuple[Message, ...] = ({"role": "user", "content": "Summarise the news article in a sentence."},)
SPECS = specs(
    "Does this summary say anything that is not in the article? Say what in a sentence.",
    40,
    num_train_epochs=1,
    per_device_train_batch_size=4,
)
Row = dict[str, Any]


def main() -> None:
    compare(__doc__, SPECS, draw)


def draw(data: Path, seed: int) -> Drawn:
    """Pairs and critiques of the training file by `seed`, and the same held-out pairs of the other for all seeds."""
    with_error, error_free = read(data / "defacto_critiques_train.jsonl.gz")
    random_numbers = random.Random(seed)
    with_error = random_numbers.sample(with_error, min(PAIRS, len(with_error)))
    error_free = random_numbers.sample(error_free, min(ERROR_FREE, len(error_free)))
    wrong, right = read(data / "defacto_critiques_val.jsonl.gz")
    wrong, right = wrong[:HELD_OUT], right[:OTHERS]
    return Drawn(
        train=[pair(row["id"], row["revised"], row["response"]) for row in with_error],
        critiques=[critique(row) for row in [*with_error, *error_free]],
        held_out={
            "corrected": [pair(row["id"], row["revised"], row["response"]) for row in wrong],
            "error_free": [
                pair(row["id"], row["response"], other["response"]) for row, other in zip(right, wrong, strict=False)
            ],
        },
        about={},
    )


def read(path: Path) -> tuple[list[Row], list[Row]]:
    """The rows with an error that somebody corrected, and those without an error, in the file's order."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    corrected = [row for row in rows if row["has_error"] and row["revised"] not in ("", row["response"])]
    return corrected, [row for row in rows if not row["has_error"]]


def pair(article: str, chosen: str, rejected: str) -> PreferencePair:
    """One summary over another; each article is a prompt of its own, asked in the same words."""
    return PreferencePair(
        id=stable_id(article, chosen, rejected), prompt_id=article, group=article, prompt=PROMPT,
        chosen=said(chosen), rejected=said(rejected), chosen_id=stable_id(article, chosen),
        rejected_id=stable_id(article, rejected), origin="human",
    )  # fmt: skip


def critique(row: Row) -> CritiquedCompletion:
    """What people said of a row's summary."""
    words = " ".join(row["critique"].split())
    return CritiquedCompletion(
        id=row["id"], prompt_id=row["id"], group=row["id"], prompt=PROMPT, completion=said(row["response"]),
        completion_id=stable_id(row["id"], row["response"]), critique=words[:1].upper() + words[1:],
        label=not row["has_error"], origin="human", annotator="defacto",
    )  # fmt: skip


def said(text: str) -> tuple[Message, ...]:
    """A summary as the assistant's turn."""
    return ({"role": "assistant", "content": text},)


if __name__ == "__main__":
    main()
