"""Feedback and prompts of people's ratings of sentences from film reviews, for `recipes/movie_dpo.yaml`.

    python benchmarks/movie_ratings.py FOLDER --out recipes/data/movie

The ratings: 15 to 29 people rated each sentence from -4 (extremely negative) to 4 (extremely positive). Hutto and
Gilbert (2014), "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", published them in
https://github.com/cjhutto/vaderSentiment under `additional_resources/hutto_ICWSM_2014` (MIT; the sentences are those of
Pang and Lee's film reviews). FOLDER holds the two files of there, `movieReviewSnippets_GroundTruth.txt` and
`movieReviewSnippets_anonDataRatings.txt`, or the same as JSON Lines, `vader_movie_*.jsonl.gz` with `{"id", "text",
"ratings"}` a line.

Written are `pairs.jsonl`, which `feedback import` reads as it is, and the prompts `dev.jsonl` and `test.jsonl`. What is
asked is to finish a sentence of a review from its first two words. Where at least `ALIKE[0]` sentences begin alike, two
of them (of `ALIKE[1]` at most) are a pair if their mean ratings differ by at least `CLEAR` standard errors of that
difference; its votes are those of each rater of the one against each of the other. A sentence is in at most
`PAIRS_OF_A_SENTENCE` pairs. The held-out prompts are openings of a single sentence, which is in no pair; its text is
not written anywhere.

Printed is also how far the judge of these recipes, the VADER lexicon, and people agree: on which sentence of a pair is
better, and on all sentences. The lexicon's words were rated by people as well, one by one; no sentence is an entry.
"""

from __future__ import annotations

import argparse
import gzip
import html
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean, variance
from typing import Any

from rlhf_loop.files import write_text
from rlhf_loop.records import stable_id
from rlhf_loop.reward_function import find_function
from rlhf_loop.reward_spec import load_spec

VADER = Path(__file__).parent.parent / "reward_models" / "vader"

ALIKE = (8, 12)
CLEAR = 3.0  # standard errors
PAIRS_OF_A_SENTENCE = 4
COMMON = 20  # held-out openings begin with a word that at least so many sentences begin with: names are left out
HELD_OUT = 200  # prompts of each of dev and test
ASK = "Finish this sentence from a review of a film. Write only the sentence.\n\n"


@dataclass(frozen=True, slots=True)
class Rated:
    """A sentence, and what people gave it."""

    id: str
    text: str
    ratings: tuple[int, ...]

    @property
    def opening(self) -> str:
        """Its first two words, as they are compared."""
        return re.sub(r"[^\w' ]", "", shown_opening(self.text)).lower()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    sentences = read(arguments.folder)
    made = {"pairs": pairs(sentences), **held_out(sentences)}
    for name, rows in made.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(arguments.out / f"{name}.jsonl", "".join(lines))
    asked = len({row["prompt"] for row in made["pairs"]})
    compared = len({row[side] for row in made["pairs"] for side in ("chosen", "rejected")})
    print(f"{len(sentences)} sentences: {len(made['pairs'])} pairs of {compared} of them, to {asked} prompts")
    print(f"{len(made['dev'])} prompts in dev.jsonl and {len(made['test'])} in test.jsonl, of other sentences")
    print(json.dumps(agreement(sentences, made["pairs"])))


def read(folder: Path) -> list[Rated]:
    """The sentences of both forms of the data, each text once, in the order of their ids; `SystemExit` says what is
    wrong with the files."""
    try:
        found = {one.text: one for one in _published(folder) or _json_lines(folder)}
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"what {folder} holds is not whole, or not of the form above: {error!r}") from None
    if not found:
        raise SystemExit(f"{folder} holds neither movieReviewSnippets_GroundTruth.txt nor vader_movie_*.jsonl.gz")
    return sorted(found.values(), key=lambda one: one.id)


def pairs(sentences: Iterable[Rated]) -> list[dict[str, Any]]:
    """Rows `{id, group, prompt, chosen, rejected, votes}` of sentences that begin alike."""
    alike: dict[str, list[Rated]] = defaultdict(list)
    for one in sentences:
        alike[one.opening].append(one)
    rows = []
    for opening, group in sorted(alike.items()):
        if len(group) < ALIKE[0]:
            continue
        group = sorted(group, key=lambda one: stable_id("alike", one.id))[: ALIKE[1]]
        used: Counter[str] = Counter()
        clear = [pair for pair in combinations(group, 2) if standard_errors_apart(*pair) >= CLEAR]
        for pair in sorted(clear, key=lambda pair: stable_id("pair", pair[0].id, pair[1].id)):
            if max(used[one.id] for one in pair) < PAIRS_OF_A_SENTENCE:
                used.update(one.id for one in pair)
                better, worse = sorted(pair, key=lambda one: -fmean(one.ratings))
                rows.append(
                    {
                        "id": f"{better.id}>{worse.id}",
                        "group": opening,
                        "prompt": ASK + shown_opening(group[0].text),
                        "chosen": better.text,
                        "rejected": worse.text,
                        "votes": votes(better.ratings, worse.ratings),
                    }
                )
    return rows


def standard_errors_apart(a: Rated, b: Rated) -> float:
    """|mean a - mean b| over the standard error of this difference (Welch 1947)."""
    squared = sum(variance(one.ratings) / len(one.ratings) for one in (a, b))
    difference = abs(fmean(a.ratings) - fmean(b.ratings))
    return difference / max(squared**0.5, 1e-9)


def votes(better: Iterable[int], worse: Iterable[int]) -> dict[str, int]:
    """Each rater of the one against each of the other: how often the one was rated higher, lower and alike. The margin
    of these votes, which `feedback import` makes the strength of the preference, is Cliff's delta."""
    compared = [(a > b) - (a < b) for a in better for b in worse]
    return {"chosen": compared.count(1), "rejected": compared.count(-1), "tie": compared.count(0)}


def held_out(sentences: list[Rated]) -> dict[str, list[dict[str, Any]]]:
    """Rows `{id, group, prompt}` of dev and test, of openings that one sentence alone has."""
    of_opening = Counter(one.opening for one in sentences)
    of_word = Counter(_first_word(one) for one in sentences)
    single = [one for one in sentences if of_opening[one.opening] == 1 and of_word[_first_word(one)] >= COMMON]
    single = [one for one in single if len(one.text.split()) > 2]
    drawn = sorted(single, key=lambda one: stable_id("held out", one.id))
    rows = [{"id": one.id, "group": one.opening, "prompt": ASK + shown_opening(one.text)} for one in drawn]
    return {"dev": rows[:HELD_OUT], "test": rows[HELD_OUT : 2 * HELD_OUT]}


def agreement(sentences: list[Rated], rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of the lexicon with people: the share of pairs whose better sentence it scores higher (ties half), and Spearman's
    correlation over all sentences."""
    from scipy.stats import spearmanr

    vader = find_function(VADER, load_spec(VADER))
    texts = [one.text for one in sentences]
    score = dict(zip(texts, vader(completions=texts), strict=True))
    above = [
        (score[row["chosen"]] > score[row["rejected"]]) - (score[row["chosen"]] < score[row["rejected"]])
        for row in rows
    ]
    means = [fmean(one.ratings) for one in sentences]
    return {
        "pairs": round(0.5 + 0.5 * fmean(above), 3) if above else 0.5,
        "sentences_spearman": round(float(spearmanr([score[text] for text in texts], means).statistic), 3),
    }


def shown_opening(text: str) -> str:
    """The first two words that hold a letter or a digit."""
    return " ".join([word for word in text.split() if re.search(r"\w", word)][:2])


def _first_word(one: Rated) -> str:
    return one.opening.partition(" ")[0]


def _published(folder: Path) -> list[Rated]:
    texts, ratings = (folder / f"movieReviewSnippets_{name}.txt" for name in ("GroundTruth", "anonDataRatings"))
    if not texts.exists():
        return []
    given = {id: json.loads(of_each) for id, _, _, of_each in _cells(ratings)}
    return [_rated(f"movieReviewSnippets-{id}", text, given[id]) for id, _, text in _cells(texts)]


def _cells(path: Path) -> Iterator[list[str]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.strip():
            yield line.split("\t")


def _json_lines(folder: Path) -> list[Rated]:
    found = []
    for path in sorted(folder.glob("vader_movie_*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        found += [_rated(row["id"], row["text"], row["ratings"]) for row in rows]
    return found


def _rated(id: str, text: str, ratings: Iterable[int]) -> Rated:
    return Rated(id, " ".join(html.unescape(text).split()), tuple(ratings))


if __name__ == "__main__":
    main()
