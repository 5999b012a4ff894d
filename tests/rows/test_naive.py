"""The baseline to beat: an answer with its critique as one text to imitate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf_loop.critique_methods import Naive
from rlhf_loop.errors import UserError
from rlhf_loop.files import read_json
from rlhf_loop.recipe import Recipe
from rlhf_loop.record_files import read_records, write_records
from rlhf_loop.records import CritiquedCompletion, Demonstration, Prompt
from rlhf_loop.rows.critiques import Material, demonstrations_of
from rlhf_loop.rows.parts import answer
from rlhf_loop.steps.assemble import assemble

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"
PROMPT = ({"role": "user", "content": "Why is the sky blue?"},)


def row(critique: str, **values: Any) -> CritiquedCompletion:
    given = {
        "prompt": PROMPT,
        "completion": answer(" It reflects. \n"),
        "token_ids": (1, 2),
        "origin": "human",
        **values,
    }
    return CritiquedCompletion(
        id=critique, prompt_id="p", group="p", completion_id="c", critique=critique, annotator="ann", **given
    )


ROWS = [row("That is not the cause.", feedback_ids=("f",), round=1), row("", label=False), row("", revision="Light.")]


def test_the_target_is_the_answer_a_blank_line_and_the_critique() -> None:
    (made,), none = demonstrations_of("naive", Naive(), Material(critiques=ROWS, prompts=(), round=1))
    assert made.completion == answer("It reflects.\n\nThat is not the cause.")
    assert (made.prompt, made.origin, made.by_policy, made.token_ids, made.finished) == (
        PROMPT,
        "critique",
        False,
        None,
        True,
    )
    assert (made.feedback_ids, made.completion_id, made.round) == (("f",), "c", 1)
    assert none == {"without_words": 2}


def test_an_sft_update_imitates_them_beside_what_it_has(tmp_path: Path) -> None:
    recipe = Recipe.load(SMOKE, ["critiques={naive: {}}", "update.algorithm=sft"])
    write_records(tmp_path / "prompts.parquet", [Prompt(id="p", messages=PROMPT, group="p")])
    write_records(tmp_path / "critiques.parquet", ROWS)
    write_records(tmp_path / "demonstrations.parquet", [])
    out = tmp_path / "out"
    out.mkdir()
    assemble(recipe, 1, "sft", frozen=tmp_path, folder=out)
    assert [one.origin for one in read_records(out / "training_data.parquet", Demonstration)] == ["critique"]
    summary = read_json(out / "summary.json")
    assert summary["by_origin"] == {"answers with their critiques": 1}
    assert summary["critiques"]["naive"] == {"demonstrations": 1, "none": {"without_words": 2}}


def test_an_update_that_imitates_nothing_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"critiques.naive: it gives demonstrations, and update.algorithm dpo learns from none; set"
    ):
        Recipe.load(SMOKE, ["critiques={naive: {}}"])
