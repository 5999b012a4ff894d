"""What endpoints cost is told, may be limited while a run goes on, and goes with a user's texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from samples.reports import make_run

from rlhf_loop import Recipe
from rlhf_loop.endpoints.answers import FILE, Answers, Reply
from rlhf_loop.feedback.privacy.deletion_files import redact_run
from rlhf_loop.feedback.privacy.deletion_rows import Deletion
from rlhf_loop.kept_recipe import RecipeChanged, check_recipe, keep_recipe
from rlhf_loop.report import status, write_report
from rlhf_loop.report.status import what_next
from rlhf_loop.run_dir import RunDir
from rlhf_loop.steps.made_once import StepMaker

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"
JUDGE = {"base_url": "http://localhost:8000/v1", "model": "m"}


def with_endpoint(**settings: Any) -> Recipe:
    return Recipe.load(SMOKE, [f"endpoints={{judge: { ({**JUDGE, **settings})!r}}}".replace("None", "null")])


def spend(run: RunDir) -> None:
    answers = Answers(run.path / FILE)
    for n in range(3):
        assert answers.may_ask("judge", None)
        answers.keep(
            str(n), "judge", Reply(text="A", prompt_tokens=1200, completion_tokens=2), about=(f"prompt-{n}-x",)
        )
    answers.count("judge", cached=5, failures=1)
    answers.close()


def test_status_and_report_tell_what_was_spent(tmp_path: Path) -> None:
    run = make_run(tmp_path, rounds=1)
    assert status(run)["endpoints"] == {}
    assert "Endpoints" not in write_report(run).read_text()
    spend(run)
    values = status(run)
    assert values["endpoints"]["judge"]["prompt_tokens"] == 3600
    assert what_next(values).splitlines()[0] == (
        "endpoint judge: 3 requests, 3,600 tokens read and 6 written, 5 answered from the run's file, "
        "1 questions without an answer"
    )
    page = write_report(run).read_text()
    assert "<h2>Endpoints</h2>" in page
    assert "<td>3,600</td><td>6</td><td>5</td><td>1</td>" in page


def test_limits_and_speed_may_change_while_a_run_goes_on_and_make_nothing_again(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    before = with_endpoint(max_requests=10)
    keep_recipe(before, run)
    after = with_endpoint(max_requests=500, concurrency=32, timeout=5, api_key_env="OTHER_KEY", max_total_tokens=10**6)
    keep_recipe(after, run)

    def key(recipe: Recipe) -> Any:
        return StepMaker(run, recipe, lambda file, report: None, None).blocks("endpoints")  # type: ignore[arg-type]

    assert key(before) == key(after)
    for changed in ({"model": "n"}, {"base_url": "http://localhost:8001/v1"}, {"temperature": 1.0}):
        with pytest.raises(RecipeChanged, match=rf"endpoints\.judge\.{next(iter(changed))}"):
            check_recipe(with_endpoint(**changed), run)
        assert key(with_endpoint(**changed)) != key(before)


def test_a_deletion_takes_out_what_was_answered_about_it(tmp_path: Path) -> None:
    run = make_run(tmp_path, rounds=1)
    spend(run)
    answers = Answers(run.path / FILE)
    answers.keep("quote", "judge", Reply(text="You said: my cat has eaten all of it"))
    none: set[str] = set()
    mine = Deletion(
        prompts={"prompt-1-x"},
        completions=none,
        feedback=none,
        texts={"my cat has eaten all of it"},
        comments=none,
        annotators=none,
    )
    assert redact_run(run, mine, "somebody")[FILE] == 2
    assert [answers.find(key) is not None for key in ("0", "1", "2", "quote")] == [True, False, True, False]
    assert answers.spent("judge").requests == 3
    assert FILE not in redact_run(run, mine, "somebody")
