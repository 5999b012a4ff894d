"""What a person says on the annotation page after a run is learned from when the run goes on."""

from __future__ import annotations

from pathlib import Path

from fastapi.testclient import TestClient

from rlhf_loop.feedback.store.store import Store
from rlhf_loop.loop import Loop
from rlhf_loop.recipe import Recipe
from rlhf_loop.record_files import read_records
from rlhf_loop.records import Feedback, PreferencePair
from rlhf_loop.run_dir import RunDir
from rlhf_loop.server.app import create_app
from rlhf_loop.server.pages.annotation import prepare
from rlhf_loop.server.service import Service

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"


def test_five_cards_after_a_run_feed_its_next_round(tmp_path: Path, model_cache: Path) -> None:
    recipe = Recipe.load(SMOKE)
    run = tmp_path / "run"
    Loop(recipe, run_dir=run).run(rounds=1)
    with Store.open(run / "feedback.db") as store:
        service = Service(store=store, recipe=recipe, run_dir=run, open_access=True)
        prepare(service)
        client = TestClient(create_app(service), base_url="http://localhost")
        headers = {"Origin": "http://localhost"}
        judged = 0
        while (card := client.post("/annotate/api/next", json={}, headers=headers).json()["card"]) is not None:
            given = {"question": card["question"], "verdict": "first", "submission": f"0123456789-{judged}"}
            answer = client.post(
                "/annotate/api/submit",
                json={**given, "answers": [{"comment": "Too long to read."}, {}]},
                headers=headers,
            )
            assert answer.status_code == 200, answer.text
            judged += 1
        assert judged == 5
    Loop(recipe, run_dir=run).run(rounds=2)
    frozen = RunDir(run).step(2, "snapshot")
    mine = [f for f in read_records(frozen / "feedback.parquet", Feedback) if f.annotator.kind == "HUMAN"]
    assert sum(f.kind == "preference" for f in mine) == 5
    pairs = read_records(frozen / "pairs.parquet", PreferencePair)
    assert sum(pair.origin == "human" for pair in pairs) == 5
    with Store.open(run / "feedback.db") as store:
        policy = next(a for a in store.artifacts(kind="policy") if a.round == 2)
        used = {id for pair in pairs if pair.origin == "human" for id in pair.feedback_ids}
        assert used <= {f.id for f in mine}
        assert used & set(policy.trained_on)
