"""The password of a store is in the run's own recipe alone: in no file of a step, in no message; and it may change."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.borrowed import sources_of
from rlhf_loop.feedback.store.location import locate
from rlhf_loop.files.store_address import without_password
from rlhf_loop.kept_recipe import RecipeChanged, check_recipe, keep_recipe
from rlhf_loop.progress import RunProgress
from rlhf_loop.recipe import Recipe
from rlhf_loop.run_dir import RunDir
from rlhf_loop.steps.made_once import StepMaker

DEBATE = Path(__file__).parents[2] / "recipes" / "debate_dpo.yaml"
STORE, OTHER = "postgresql://ann:secret@host/db", "postgresql://host/other?password=secret&user=ann"


def recipe(store: str = STORE, other: str = OTHER) -> Recipe:
    return Recipe.load(DEBATE, [f"store={store}", f'feedback.from=["{other}"]'], to_run=False)


@pytest.mark.parametrize(
    ("store", "told"),
    [
        (STORE, "postgresql://ann@host/db"),
        ("postgresql://ann:a/b?c#d@host/db?project=x", "postgresql://ann@host/db?project=x"),
        (OTHER, "postgresql://host/other?user=ann"),
        ("postgresql://host/other?sslpassword=secret", "postgresql://host/other"),
        ("postgresql://ann@home:secret@host/db?oauth_client_secret=secret", "postgresql://ann@home@host/db"),
        ("postgresql://host/db", "postgresql://host/db"),
        ("sqlite:////home/a:b@c/votes.db", "sqlite:////home/a:b@c/votes.db"),
        ("/home/a:b@c/votes.db?project=x", "/home/a:b@c/votes.db?project=x"),
    ],
)
def test_a_store_without_its_password(store: str, told: str) -> None:
    assert without_password(store) == told


def test_a_password_may_change_while_a_run_goes_on_and_nothing_else_of_a_store(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    keep_recipe(recipe(), run)
    run.step(0, "snapshot").mkdir(parents=True)  # the run is begun: its sources are what they are
    check_recipe(recipe("postgresql://ann:new@host/db", "postgresql://host/other?user=ann"), run)
    for changed in (
        recipe("postgresql://ann:secret@host/db2"),
        recipe(other="postgresql://host/third?password=secret"),
    ):
        with pytest.raises(RecipeChanged) as told:
            check_recipe(changed, run)
        assert "secret" not in str(told.value)


def test_a_step_is_told_no_password(tmp_path: Path) -> None:
    maker = StepMaker(RunDir(tmp_path), recipe(), lambda file, progress: None, RunProgress())
    assert maker.values["store"] == "postgresql://ann@host/db"
    assert maker.blocks("feedback")["feedback"]["from"] == ["postgresql://host/other?user=ann"]


def test_messages_of_stores_hold_no_password() -> None:
    assert locate(OTHER).name == "postgresql+psycopg://host/other?user=ann"
    for one in (STORE, "sqlite://ann:secret@host/db"):
        with pytest.raises(UserError) as told:
            sources_of(STORE, [one])
        assert "secret" not in str(told.value)
