"""Runs that use one store, of the same recipe and seed too: what one promotes moves no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_loop import policies
from rlhf_loop.errors import UserError
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files.step_folders import step_folder
from rlhf_loop.recipe import Recipe
from rlhf_loop.records import Artifact
from rlhf_loop.runs import BASE, Run

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    with Store.open(tmp_path / "store.db") as opened:
        yield opened


def begun(folder: Path, store: Store, *overrides: str) -> Run:
    """A run of the store that is about to make its rounds."""
    recipe = Recipe.load(SMOKE, [f"store={store.database.path}", *overrides])
    run = Run(recipe, folder)
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    store.add_artifact(Artifact(id=BASE, kind="policy", path=recipe.policy.model, round=0))
    run.begin(store)
    return run


def makes(run: Run, store: Store, n: int, weights: bytes) -> str:
    """Round `n`'s policy, made of these weights and promoted."""
    with step_folder(run.run_dir.step(n, "update"), "key", {}) as folder:
        (folder / "policy").mkdir()
        (folder / "policy" / "model.safetensors").write_bytes(weights)
    id = run.made_in(n)
    store.add_artifact(Artifact(id=id, kind="policy", path="", round=n, parent=BASE))
    run.promote(store, id)
    return id


def test_a_second_run_of_the_same_recipe_does_not_move_the_firsts_promoted_policy(store: Store, tmp_path: Path) -> None:
    first = begun(tmp_path / "first", store)
    made = [makes(first, store, n, b"weights %d" % n) for n in (1, 2)]
    second = begun(tmp_path / "second", store)
    assert second.promoted_id(store) == BASE
    assert makes(second, store, 1, b"weights 1") == made[0]  # by content, the same policy
    assert (first.promoted_id(store), second.promoted_id(store)) == (made[1], made[0])
    assert first.promoted_before(store, 3) == made[1]
    assert policies.rollback(second.run_dir.path) == BASE
    assert (first.promoted_id(store), second.promoted_id(store)) == (made[1], BASE)
    assert policies.rollback(first.run_dir.path) == made[0]
    assert (first.promoted_id(store), second.promoted_id(store)) == (made[0], BASE)
    assert [policy for policy, _ in store.promotions()] == [BASE, *made, made[0], BASE, made[0]]


def test_a_run_of_an_earlier_version_keeps_its_promoted_policy(store: Store, tmp_path: Path) -> None:
    first = begun(tmp_path / "first", store)
    made = [makes(first, store, n, b"weights %d" % n) for n in (1, 2)]
    (first.run_dir.path / "promotions.json").unlink()  # which only the store knew then
    assert first.promoted_id(store) == made[1]
    first.begin(store)
    makes(begun(tmp_path / "second", store), store, 1, b"weights 1")
    assert first.promoted_id(store) == made[1]
    assert [policy for policy, _ in first.promotions(store)] == [BASE, *made]


def test_a_promotion_that_was_cut_off_between_store_and_folder_is_made_again(store: Store, tmp_path: Path) -> None:
    run = begun(tmp_path / "run", store)
    kept = run.run_dir.promotions()
    made = makes(run, store, 1, b"weights")
    run.run_dir.keep_promotions(kept)
    assert run.promoted_id(store) == BASE
    run.promote(store, made)
    assert run.promoted_id(store) == made
    assert [policy for policy, _ in store.promotions()] == [BASE, made]


def test_a_damaged_file_of_promotions_names_its_remedy(store: Store, tmp_path: Path) -> None:
    run = begun(tmp_path / "run", store)
    made = makes(run, store, 1, b"weights")
    file = run.run_dir.path / "promotions.json"
    for text in ("{", "[]", "{}", '{"promotions": [["base"]]}', '{"promotions": 3}', '{"promotions": [["base", "x"]]}'):
        file.write_text(text)
        with pytest.raises(UserError, match=r"promotions\.json is damaged .*delete it: .* read from the store then"):
            run.promoted_id(store)
    file.unlink()
    assert run.promoted_id(store) == made


def test_a_run_in_a_project_uses_the_project_alone(tmp_path: Path) -> None:
    named = f"{tmp_path / 'store.db'}?project=team-a"
    with Store.open(tmp_path / "store.db") as home, Store.open(named) as project:
        run = begun(tmp_path / "run", home, "project=Team-A")
        assert Store.open(run.store_url).name == project.name
        assert run.recipe.project == "team-a"
        with pytest.raises(UserError, match=r"store: name the project of the store as `project: NAME`"):
            Recipe.load(SMOKE, [f"store={named}"])
        with pytest.raises(UserError, match=r"project: the store inside a run is that run's alone"):
            Recipe.load(SMOKE, ["project=team-a"])
        with pytest.raises(UserError, match=r"'Team A' is no name of a project"):
            Recipe.load(SMOKE, [f"store={tmp_path / 'store.db'}", "project=Team A"])
