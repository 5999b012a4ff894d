"""What the assemble step makes of critiques: pairs among the others, and a file for losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from samples.feedback import completion, prompt

from rlhf_loop.files import read_json
from rlhf_loop.recipe import parse
from rlhf_loop.record_files import read_records, write_records
from rlhf_loop.records import CritiquedCompletion, PreferencePair, Score
from rlhf_loop.rows.parts import answer
from rlhf_loop.steps.assemble import assemble


def row(id: str, label: bool | None = False, **values: Any) -> CritiquedCompletion:
    given = {"completion_id": id, "origin": "human", "round": 1, **values}
    return CritiquedCompletion(
        id=f"row {id}", prompt_id="p", group="p", prompt=prompt().messages, completion=answer(f"answer {id}"),
        label=label, annotator="ann", feedback_ids=(f"f{id}",), **given,
    )  # fmt: skip


ROWS = [
    row("a", critique="It names the wrong cause.", spans=()),
    row("b", label=None, revision="Because of scattering."),
    row("c", label=True, round=0, critique="Short and right."),
    row("d", critique="It is about the sea.", origin="simulated"),
]


def assembled(tmp_path: Path, round: int = 2, rows: list[CritiquedCompletion] = ROWS, **settings: Any) -> Path:
    """The folder that the step makes of the rows, a pair of people, and the candidates x and y of the same prompt."""
    recipe = parse(
        {
            "name": "x",
            "policy": {"model": "tiny-random:0"},
            "prompts": {"train": ["train.jsonl"], "test": ["test.jsonl"]},
            "feedback": {"annotator": {"kind": "simulated"}},
            "reward": {"model": "reward_models/frozen_head"},
            "evaluation": {"judge": {"kind": "rule"}},
            **settings,
        }
    )
    frozen, folder = tmp_path / "snapshot", tmp_path / "assemble"
    frozen.mkdir()
    folder.mkdir()
    people = PreferencePair(
        id="people", prompt_id="p", group="p", prompt=prompt().messages, chosen=answer("answer c"),
        rejected=answer("answer a"), chosen_id="c", rejected_id="a", origin="human", margin=0.5, round=1,
    )  # fmt: skip
    write_records(frozen / "prompts.parquet", [prompt()])
    write_records(frozen / "pairs.parquet", [people])
    if recipe.critiques is not None:
        write_records(frozen / "critiques.parquet", rows)
    write_records(tmp_path / "completions.parquet", [completion("x"), completion("y")])
    for name, values in (("scores", {"x": 2.0, "y": 0.5}), ("critiqued_scores", {"a": 0.0, "d": 1.0})):
        scores = [Score(completion_id=id, reward_model="rm", value=value) for id, value in values.items()]
        write_records(tmp_path / f"{name}.parquet", scores)
    assemble(
        recipe,
        round,
        "dpo",
        frozen=frozen,
        folder=folder,
        completions=tmp_path / "completions.parquet",
        scores=tmp_path / "scores.parquet",
        critiqued_scores=tmp_path / "critiqued_scores.parquet",
    )
    return folder


def origins(folder: Path) -> list[str]:
    return [pair.origin for pair in read_records(folder / "training_data.parquet", PreferencePair)]


def test_pairs_of_critiques_stand_between_peoples_and_the_reward_models(tmp_path: Path) -> None:
    folder = assembled(tmp_path, critiques={"edits": {}, "fresh": {"margin": 0.5}})
    assert origins(folder) == ["human", "edit", "fresh", "fresh", "reward"]
    summary = read_json(folder / "summary.json")
    assert summary["by_origin"] == {"human pairs": 1, "edit pairs": 1, "fresh pairs": 2, "reward pairs": 1}
    assert summary["critiques"]["fresh"] == {
        "pairs": 2, "said_by": {"human": 1, "simulated": 1}, "already_there": 0, "none": {},
    }  # fmt: skip
    assert not (folder / "critiques.parquet").exists()


def test_a_users_next_message_gives_a_pair_and_is_called_implicit(tmp_path: Path) -> None:
    said_next = replace(ROWS[0], origin="implicit", feedback_ids=(), critique="No, why is it blue?")
    folder = assembled(tmp_path, rows=[said_next, ROWS[3]], critiques={"fresh": {}})
    assert read_json(folder / "summary.json")["critiques"]["fresh"]["said_by"] == {"implicit": 1, "simulated": 1}


def test_over_max_pairs_edits_stay_longest_and_the_reward_models_go_first(tmp_path: Path) -> None:
    for number, kept in ((4, ["edit", "fresh", "fresh", "human"]), (2, ["edit", "human"])):
        folder = tmp_path / str(number)
        folder.mkdir()
        made = assembled(folder, critiques={"edits": {}, "fresh": {}}, pairing={"max_pairs": number})
        assert sorted(origins(made)) == kept


def test_feedback_rounds_hold_for_critiques_too(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"critiques": {"edits": {}, "fresh": {}}, "pairing": {"feedback_rounds": 1}}
    folder = assembled(tmp_path, round=3, **settings)
    assert origins(folder) == ["reward"]
    assert read_json(folder / "summary.json")["critiques"]["edits"]["pairs"] == 0


def test_losses_get_the_critiques_that_have_words(tmp_path: Path) -> None:
    folder = assembled(tmp_path, critiques={"predict": {}, "control": "shuffled"})
    rows = read_records(folder / "critiques.parquet", CritiquedCompletion)
    assert [row.completion_id for row in rows] == ["a", "c", "d"]
    summary = read_json(folder / "summary.json")
    assert summary["critiques"] == {"terms": ["predict"], "rows_for_terms": 3}
    assert summary["by_origin"]["human critiques"] == 2
    assert summary["by_origin"]["simulated critiques"] == 1
    assert summary["control"] == "shuffled"


def test_without_the_block_nothing_is_different(tmp_path: Path) -> None:
    folder = assembled(tmp_path)
    assert origins(folder) == ["human", "reward"]
    assert sorted(path.name for path in folder.iterdir()) == ["summary.json", "training_data.parquet"]
    assert read_json(folder / "summary.json").keys() == {"feedback", "reward", "rows", "consumes", "by_origin"}
