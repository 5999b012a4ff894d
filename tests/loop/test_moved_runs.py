"""A run belongs to its contents: moved or copied, with its project or alone, it goes on as if it had stayed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from samples.runs import outputs, store_content
from typer.testing import CliRunner

from rlhf_loop import Loop, Recipe
from rlhf_loop.cli import app
from rlhf_loop.files import write_json
from rlhf_loop.files.paths import content, relocated
from rlhf_loop.kept_recipe import RecipeChanged, keep_recipe
from rlhf_loop.report import write_report
from rlhf_loop.report.status import status
from rlhf_loop.run_dir import STEPS, RunDir
from rlhf_loop.steps.made_once import StepMaker, without_place

ROOT = Path(__file__).parents[2]


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Path:
    from rlhf_loop.models.loading import load_policy
    from rlhf_loop.recipe import Policy

    folder = tmp_path_factory.mktemp("tiny") / "model"
    model, tokenizer = load_policy("tiny-random:0", Policy(model="tiny-random:0", dtype="float32"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def project(place: Path, tiny: Path) -> Path:
    """A project in a folder: recipe, prompts, reward model, the model itself and, beside the run, its store."""
    for name in ("recipes/data", "reward_models/frozen_head"):
        shutil.copytree(ROOT / name, place / name)
    shutil.copytree(tiny, place / "model")
    text = (ROOT / "recipes" / "smoke.yaml").read_text().replace("tiny-random:0", "../model")
    recipe = place / "recipes" / "smoke.yaml"
    recipe.write_text(f"{text}store: ../votes.db\nrun_dir: ../runs/smoke\n")
    return recipe


def loop(recipe: Path, *overrides: str, run: Path | None = None) -> Loop:
    return Loop(Recipe.load(recipe, overrides), run_dir=run)


def stop_after(made: Loop, monkeypatch: pytest.MonkeyPatch, round: int, step: str) -> None:
    """Runs until the step of the round is in its place."""
    original = {name: getattr(StepMaker, name) for name in ("step", "stage")}

    def patched(name: str) -> Any:
        def call(self: Any, n: int, done: str, *rest: Any, **named: Any) -> Any:
            folder = original[name](self, n, done, *rest, **named)
            if (n, done) == (round, step):
                raise Stopped
            return folder

        return call

    with monkeypatch.context() as patch:
        for name in original:
            patch.setattr(StepMaker, name, patched(name))
        with pytest.raises(Stopped):
            made.run()


def made_at(run: Path) -> dict[str, float]:
    """When each step was made."""
    return {
        f"{n}/{step}": json.loads((folder / "manifest.json").read_text())["started"]
        for n in RunDir(run).rounds()
        for step in STEPS
        if (folder := RunDir(run).step(n, step)).is_dir()
    }


def without_base(found: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Without the files that name the place of the base model."""
    named = ("adapter_config.json", "reward_model.yaml", "README.md")
    return {step: {f: h for f, h in files.items() if not f.endswith(named)} for step, files in found.items()}


def test_a_project_that_is_moved_in_the_middle_of_rounds_goes_on(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = loop(project(tmp_path / "whole", tiny))
    whole.run()
    place = tmp_path / "first"
    recipe = project(place, tiny)
    stops = [
        (0, "evaluate"),
        (1, "score"),
        (1, "update"),
        (1, "gate"),
        (1, "rescore"),
        (2, "assemble"),
        (2, "generate"),
    ]
    for number, (n, step) in enumerate(stops):
        stop_after(loop(recipe), monkeypatch, n, step)
        before = made_at(place / "runs" / "smoke")
        moved = tmp_path / f"deeper{number}" / "project" if number % 2 else tmp_path / f"moved{number}"
        moved.parent.mkdir(exist_ok=True)
        place.rename(moved)
        place, recipe = moved, moved / "recipes" / "smoke.yaml"
        stop = stops[number + 1] if number + 1 < len(stops) else None
        if stop is None:
            loop(recipe).run()
        after = made_at(place / "runs" / "smoke")
        assert before.items() <= after.items()
    run = place / "runs" / "smoke"
    assert RunDir(run).complete_rounds() == [0, 1, 2]
    assert without_base(outputs(run)) == without_base(outputs(tmp_path / "whole" / "runs" / "smoke"))


def test_every_door_opens_a_run_that_was_moved(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = project(tmp_path / "first", tiny)
    loop(recipe).run(rounds=1)
    shown = status(RunDir(tmp_path / "first" / "runs" / "smoke"))
    (tmp_path / "first").rename(tmp_path / "second")
    run = tmp_path / "second" / "runs" / "smoke"
    before = made_at(run)
    assert status(RunDir(run))["rounds"] == shown["rounds"]
    assert write_report(RunDir(run)).exists()
    for command in (
        ["policy", "list", str(run)],
        ["policy", "export", str(run), "exported"],
        ["feedback", "stats", "--store", str(run)],
        ["run", str(run / "recipe.yaml"), "--run-dir", str(run), "--rounds", "1"],
        ["watch", str(tmp_path / "second" / "recipes" / "smoke.yaml"), "watch.min_new=999", "--once"],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, (command, result.output, result.exception)
    assert not (tmp_path / "first").exists()
    assert str(tmp_path) not in (tmp_path / "exported" / "lineage.json").read_text()
    assert made_at(run) == before


def test_a_copy_belongs_to_the_project_that_was_copied_with_it(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = project(tmp_path / "first", tiny)
    stop_after(loop(recipe), monkeypatch, 0, "generate")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    made = loop(tmp_path / "second" / "recipes" / "smoke.yaml")
    before = store_content_of(tmp_path / "first" / "votes.db")
    made.run(rounds=0)
    assert store_content_of(tmp_path / "first" / "votes.db") == before
    assert str(tmp_path / "second" / "votes.db") in made.store_url
    with pytest.raises(RecipeChanged, match="seed: 0 -> 1"):
        loop(tmp_path / "second" / "recipes" / "smoke.yaml", "seed=1").run()


def test_a_run_apart_from_its_project_goes_on_when_either_is_moved(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = project(tmp_path / "disk" / "first", tiny)
    run = tmp_path / "scratch" / "run"
    stop_after(loop(recipe, run=run), monkeypatch, 0, "generate")
    before = made_at(run)
    (tmp_path / "disk" / "first").rename(tmp_path / "home")
    recipe = tmp_path / "home" / "recipes" / "smoke.yaml"
    run = run.rename(tmp_path / "run")
    loop(recipe, run=run).run(rounds=0)
    assert before.items() <= made_at(run).items()
    (tmp_path / "home" / "recipes" / "data" / "other.jsonl").write_text('{"prompt": "What else?"}\n')
    with pytest.raises(RecipeChanged, match=r"prompts\.train"):
        loop(recipe, "prompts.train=[home/recipes/data/other.jsonl]", run=run).run()


def test_paths_follow_a_run_only_where_something_is(tmp_path: Path) -> None:
    run = tmp_path / "new" / "runs" / "one"
    (tmp_path / "new" / "data").mkdir(parents=True)
    (tmp_path / "new" / "data" / "votes.db").touch()
    write_json(run / "places.json", {"places": [f"{tmp_path}/old/runs/one", str(run)], "contents": {}})
    old = {"a": f"{tmp_path}/old/data", "b": [f"sqlite:///{tmp_path}/old/data/votes.db", f"{tmp_path}/old/gone", 3]}
    new = {"a": f"{tmp_path}/new/data", "b": [f"sqlite:///{tmp_path}/new/data/votes.db", f"{tmp_path}/old/gone", 3]}
    assert relocated(old, run / "round_001") == new
    assert relocated(old, tmp_path) == old
    assert relocated("/elsewhere/data", run) == "/elsewhere/data"
    (run / "places.json").write_text("{")
    assert relocated(old, run) == old


def test_a_folder_is_known_by_what_it_holds(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"x" * (5 * 2**20))
    (two / "README.md").write_text("for readers")
    assert content(one) == content(two) != None  # noqa: E711
    (two / "model.safetensors").write_bytes(b"x" * (5 * 2**20 - 1) + b"y")
    assert content(one) != content(two)
    assert content(tmp_path / "nothing") is None


@pytest.mark.parametrize("text", ["/no_think\n" + "Be brief. " * 60, "/think \0", "/no_think"])
def test_a_text_that_begins_with_a_slash_is_no_path(text: str, tmp_path: Path) -> None:
    recipe = Recipe.load(ROOT / "recipes" / "smoke.yaml")
    recipe.policy.system_prompt = text
    keep_recipe(recipe, RunDir(tmp_path))
    keep_recipe(recipe, RunDir(tmp_path))
    assert content(text) is None
    one, two = (without_place({"system_prompt": text + more}, tmp_path) for more in ("", "/x"))
    assert one != two


def store_content_of(file: Path) -> dict[str, list]:
    folder = file.with_name("look")
    folder.mkdir(exist_ok=True)
    shutil.copy(file, folder / "feedback.db")
    return store_content(folder)
