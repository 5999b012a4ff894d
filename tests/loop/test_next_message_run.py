"""What users say next in chats that were served: it trains a tiny policy, is shown apart, and leaves with the user."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_loop.feedback.privacy.deletion import delete_user
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import read_json
from rlhf_loop.loop import Loop
from rlhf_loop.recipe import Recipe
from rlhf_loop.record_files import read_records
from rlhf_loop.records import CritiquedCompletion, Message
from rlhf_loop.report import write_report
from rlhf_loop.run_dir import RunDir
from rlhf_loop.server.chat.answers import Choice, Conversation, prompt_of, save_answer
from rlhf_loop.server.service import Service

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"
SECRET = "No, I asked about the walnut tree behind our house"


def serve(service: Service, user: str, *texts: str) -> None:
    """A chat, as the service stores it turn by turn: each conversation so far with its answer."""
    turns = [Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(texts)]
    for place in range(0, len(turns), 2):
        prompt, key = prompt_of(service, Conversation(messages=tuple(turns[: place + 1]), user=user, name=None))
        said = turns[place + 1]["content"] if place + 1 < len(turns) else "Understood."
        choice = Choice(text=said, finish="stop", tokens=3, values={}, token_ids=(5, 6, 7))
        given = {"policy_id": "base", "sampling": {}, "seed": 0, "round": 0}
        save_answer(service, f"{user}-{place}", prompt, key, [choice], **given)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("next") / "run"
    recipe = Recipe.load(SMOKE, ["critiques={predict: {}, next_message: {}}"])
    Loop(recipe, run_dir=folder).run(rounds=0)
    with Store.open(folder / "feedback.db") as store:
        service = Service(store=store, recipe=recipe, run_dir=folder)
        serve(service, "jo", "Name a tree.", "An oak.", SECRET, "A walnut.", "Thank you, and how tall is it?")
        serve(service, "max", "Name a bird.", "A crow, which is black and clever.", "<b>shorter, please")
    Loop(recipe, run_dir=folder).run(rounds=1)
    return folder


def implicit(run: Path, step: str) -> list[CritiquedCompletion]:
    rows = read_records(RunDir(run).step(1, step) / "critiques.parquet", CritiquedCompletion)
    return [row for row in rows if row.origin == "implicit"]


def test_next_messages_train_the_policy_beside_critiques_and_are_counted_apart(run: Path) -> None:
    files = RunDir(run)
    rows = implicit(run, "snapshot")
    assert {(row.text, row.critique, row.label, row.token_ids) for row in rows} == {
        ("An oak.", SECRET, False, (5, 6, 7)),
        ("A walnut.", "Thank you, and how tall is it?", None, (5, 6, 7)),
        ("A crow, which is black and clever.", "<b>shorter, please", False, (5, 6, 7)),
    }
    assert implicit(run, "assemble") == rows
    found = read_json(files.step(1, "snapshot") / "validation.json")
    assert found["next_messages"] == {"messages": 3, "complaints": 2, "of_stored_answers": 3, "left_out": {}}
    assert "implicit" not in found["critiques"]["by_origin"]
    summary = read_json(files.step(1, "assemble") / "summary.json")
    assert summary["by_origin"]["next messages of users"] == 3
    predict = read_json(files.step(1, "update") / "metrics.json")["critiques"]["predict"]
    assert predict["examples"] == 3 + sum(found["critiques"]["by_origin"].values())
    html = (run / "report.html").read_text()
    assert "What users said next (implicit)" in html
    assert "<b>shorter" not in html


def test_they_leave_every_file_with_the_user_and_the_policy_is_named_to_be_trained_anew(run: Path) -> None:
    with Store.open(run / "feedback.db") as store:
        deleted = delete_user(store, "jo", [run], rewrite_report=write_report)
    for step in ("snapshot", "assemble"):
        assert {row.text for row in implicit(run, step)} == {"A crow, which is black and clever."}
    for path in run.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".html", ".parquet"):
            assert b"walnut tree" not in path.read_bytes(), path
    assert ("policy", 1, "directly") in {(model["kind"], model["round"], model["learned"]) for model in deleted.models}
    assert deleted.deleted["prompt"] == 3
