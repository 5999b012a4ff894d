"""Pairs and prompts that `benchmarks/movie_ratings.py` makes of people's ratings of sentences."""

from __future__ import annotations

import gzip
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rlhf_loop.feedback.intake.prompts import read_prompts
from rlhf_loop.feedback.intake.read_whole import read
from rlhf_loop.records import Preference

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"

PRAISED = ("7", "The film is a delight &amp; a   joy.", [3, 4, 3, 2])
LIKED = ("8", "The film, in the end, is pleasant.", [1, 2, 1, 2])
SCORNED = ("9", "The film is a bore.", [-2, -3, -2, 1])
ALONE = ("10", "A sleepy affair that nobody needs.", [-1, -1, -2, -1])


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("movie_ratings")
    monkeypatch.setattr(module, "COMMON", 1)
    monkeypatch.setattr(module, "ALIKE", (2, 12))
    return module


def published(folder: Path, *sentences: tuple[str, str, list[int]]) -> Path:
    """The two files as their authors publish them."""
    lines = [(id, sum(ratings) / len(ratings), text, ratings) for id, text, ratings in sentences]
    (folder / "movieReviewSnippets_GroundTruth.txt").write_text("".join(f"{i}\t{m}\t{t}\n" for i, m, t, _ in lines))
    (folder / "movieReviewSnippets_anonDataRatings.txt").write_text(
        "".join(f"{i}\t{m}\t0.5\t{r}\n" for i, m, _, r in lines)
    )
    return folder


def test_sentences_that_begin_alike_and_are_rated_clearly_apart_become_a_pair(
    script: ModuleType, tmp_path: Path
) -> None:
    sentences = script.read(published(tmp_path, PRAISED, LIKED, SCORNED, ALONE))
    praised, scorned = (one for one in sentences if one.id.endswith(("-7", "-9")))
    # means 3 and -1.5; variances 2/3 and 3; so 4.5 / sqrt(2/3/4 + 3/4)
    assert script.standard_errors_apart(praised, scorned) == pytest.approx(4.5 / (11 / 12) ** 0.5)
    rows = script.pairs(sentences)
    apart = {(row["chosen"], row["rejected"]) for row in rows}
    assert apart == {
        ("The film is a delight & a joy.", "The film is a bore."),
        ("The film is a delight & a joy.", "The film, in the end, is pleasant."),  # 1.5 / sqrt(1/6 + 1/12) = 3
        ("The film, in the end, is pleasant.", "The film is a bore."),  # 3 / sqrt(1/12 + 3/4) = 3.3
    }
    assert {(row["group"], row["prompt"].split("\n")[-1]) for row in rows} == {("the film", "The film")}


def test_a_sentence_that_its_raters_do_not_agree_on_is_in_no_pair(script: ModuleType, tmp_path: Path) -> None:
    torn = ("8", "The film is what you make of it.", [4, -4, 4, 2])
    assert script.pairs(script.read(published(tmp_path, torn, SCORNED))) == []  # 3 / sqrt(43/12 + 3/4) = 1.4


def test_votes_are_those_of_each_rater_against_each(script: ModuleType) -> None:
    assert script.votes([2, 3], [2, -1, 4]) == {"chosen": 3, "rejected": 2, "tie": 1}


def test_a_sentence_is_in_few_pairs(script: ModuleType, tmp_path: Path) -> None:
    worse = [(str(n), f"The film is a bore {n}.", [-2, -3, -2, -3]) for n in range(20, 30)]
    rows = script.pairs(script.read(published(tmp_path, PRAISED, *worse)))
    assert len(rows) == script.PAIRS_OF_A_SENTENCE


def test_what_is_written_is_imported_and_no_held_out_sentence_is_in_it(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [(str(n), f"Some thing{n} that one may see.", [1, 1, 2]) for n in range(6)]
    folder = published(tmp_path, PRAISED, LIKED, SCORNED, ALONE, *others)
    monkeypatch.setattr(script, "HELD_OUT", 3)
    monkeypatch.setattr(sys, "argv", ["movie_ratings.py", str(folder), "--out", str(tmp_path / "out")])
    script.main()
    result = read(tmp_path / "out" / "pairs.jsonl")
    assert (result.rows, result.refused) == (3, [])
    strengths = [f.strength for f in result.feedback if isinstance(f, Preference)]
    assert sorted(strengths) == pytest.approx([14 / 16, 14 / 16, 1.0])
    held = [read_prompts(tmp_path / "out" / f"{name}.jsonl", "test") for name in ("dev", "test")]
    assert [len(prompts) for prompts in held] == [3, 3]
    asked = [prompt.asked for prompts in held for prompt in prompts]
    assert len(set(asked)) == 6
    assert not {prompt.group for prompts in held for prompt in prompts} & {prompt.group for prompt in result.prompts}
    assert "one may see" not in "".join((tmp_path / "out" / f"{n}.jsonl").read_text() for n in ("pairs", "dev", "test"))


def test_both_forms_of_the_data_say_the_same(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "lines").mkdir()
    with gzip.open(tmp_path / "lines" / "vader_movie_train.jsonl.gz", "wt") as file:
        for id, text, ratings in (PRAISED, SCORNED):
            file.write(json.dumps({"id": f"movieReviewSnippets-{id}", "text": text, "ratings": ratings}) + "\n")
    assert script.read(tmp_path / "lines") == script.read(published(tmp_path, PRAISED, SCORNED))


def test_a_folder_without_the_data_is_said_to_be(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds neither"):
        script.read(tmp_path)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the real feedback is not at {DATA.name} beside the checkout")
def test_the_real_ratings_give_pairs_that_are_imported_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module("movie_ratings")
    sentences = script.read(DATA)
    assert len(sentences) == 8999  # one of 9,000 is there twice
    rows, held = script.pairs(sentences), script.held_out(sentences)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = read(tmp_path / "pairs.jsonl")
    assert (result.rows, result.refused) == (len(rows), [])
    texts = {one.id: one.text for one in sentences}
    trained_on = {completion.text for completion in result.completions}
    drawn = [texts[row["id"]] for name in ("dev", "test") for row in held[name]]
    assert len(set(drawn)) == 2 * script.HELD_OUT
    assert not trained_on & set(drawn)
    lexicon = pytest.importorskip("vaderSentiment.vaderSentiment").SentimentIntensityAnalyzer().lexicon
    assert not {text.lower() for text in texts.values()} & lexicon.keys()  # which docs/evaluation.md says
    longer = sum(len(row["chosen"].split()) > len(row["rejected"].split()) for row in rows) / len(rows)
    assert 0.4 < longer < 0.6  # length tells nothing


@pytest.mark.parametrize("ratings", [None, "junk\n", "", "7\t0.1\t0.5\t[3, 4\n"], ids=["none", "junk", "empty", "cut"])
def test_files_that_are_not_whole_are_told(script: ModuleType, tmp_path: Path, ratings: str | None) -> None:
    file = published(tmp_path, PRAISED) / "movieReviewSnippets_anonDataRatings.txt"
    file.unlink() if ratings is None else file.write_text(ratings)
    with pytest.raises(SystemExit, match="is not whole, or not of the form above"):
        script.read(tmp_path)
