"""Features of a text that a step computed are read where the text is scored again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from rlhf_loop import Loop, Recipe
from rlhf_loop.feedback.privacy.deletion_rows import Deletion, redact
from rlhf_loop.files import read_json
from rlhf_loop.recipe import Policy
from rlhf_loop.record_files import read_records
from rlhf_loop.records import Score
from rlhf_loop.reward_spec import HeadSpec
from rlhf_loop.rewards import head, kept_features
from rlhf_loop.rewards.kept_features import KeptFeatures
from rlhf_loop.rewards.texts import Text

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"
POLICY = Policy(model="tiny-random:0", dtype="float32")
TEXTS = [Text(prompt=(("user", f"What is {word}?"),), completion=f"A {word}.") for word in ("tea", "rain", "a kettle")]
SIDES = [(f"prompt-{number}", f"completion-{number}", text) for number, text in enumerate(TEXTS)]


def test_a_damaged_file_is_said_and_its_texts_are_computed_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    kept = KeptFeatures()
    first = head.Features(HeadSpec(), POLICY, kept)(TEXTS)
    for name in ("damaged", "whole"):
        (tmp_path / name).mkdir()
        kept.write(tmp_path / name, SIDES[:2] if name == "damaged" else SIDES[2:])
    path = tmp_path / "damaged" / "features.parquet"
    path.write_bytes(path.read_bytes()[:-40])

    again = KeptFeatures([tmp_path / "damaged", tmp_path / "whole"])
    assert len(again.rows) == 1  # of the whole one
    assert f"its texts are computed anew: {path} is damaged" in caplog.text
    assert torch.equal(head.Features(HeadSpec(), POLICY, again)(TEXTS), first)


def test_what_was_kept_is_not_computed_again_and_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = KeptFeatures()
    first = head.Features(HeadSpec(), POLICY, kept)(TEXTS)
    assert torch.equal(first, head.Features(HeadSpec(), POLICY)(TEXTS))
    kept.write(tmp_path, SIDES[:2])

    again = KeptFeatures([tmp_path])
    features = head.Features(HeadSpec(), POLICY, again)
    compute = features._compute
    monkeypatch.setattr(features, "_compute", lambda rows, starts: compute(rows, starts) if not rows else 1 / 0)
    assert torch.equal(features(TEXTS[:2]), first[:2])
    again.write(tmp_path / "again", SIDES)
    assert not (tmp_path / "again").exists()  # nothing new
    with pytest.raises(ZeroDivisionError):
        features(TEXTS)
    with pytest.raises(ZeroDivisionError):  # cut off where the first had ended
        features([Text(prompt=TEXTS[0].prompt, completion=TEXTS[0].completion, finished=False)])
    other = HeadSpec(layers=[0.5])
    assert not torch.equal(head.Features(other, POLICY, again)(TEXTS[:2]), first[:2])


def test_heads_of_a_step_on_one_trunk_load_it_once(monkeypatch: pytest.MonkeyPatch):
    loads: list[tuple[Any, ...]] = []
    load_trunk = head.load_trunk
    monkeypatch.setattr(head, "load_trunk", lambda *given: loads.append(given) or load_trunk(*given))
    kept = KeptFeatures()
    one, pooled = (head.Features(HeadSpec(pooling=pooling), POLICY, kept) for pooling in (["mean", "last"], ["last"]))
    assert len(loads) == 1
    assert one(TEXTS).shape[1] == 2 * pooled(TEXTS).shape[1]
    head.Features(HeadSpec(layers=[0.5]), POLICY, kept)
    assert len(loads) == 2


def test_a_deletion_takes_out_the_features_of_what_goes(tmp_path: Path):
    kept = KeptFeatures()
    head.Features(HeadSpec(), POLICY, kept)(TEXTS)
    kept.write(tmp_path, SIDES)
    names: dict[str, set[str]] = {"feedback": set(), "texts": set(), "comments": set(), "annotators": set()}
    gone = Deletion(prompts={"prompt-0"}, completions={"completion-1"}, **names)
    assert redact(tmp_path / kept_features.NAME, gone, write=True) == 2
    assert pq.read_table(tmp_path / kept_features.NAME)["completion_id"].to_pylist() == ["completion-2"]
    assert len(KeptFeatures([tmp_path]).rows) == 1


def test_a_file_of_features_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = KeptFeatures()
    size = head.Features(HeadSpec(), POLICY, kept)(TEXTS)[0].numel() * 4
    monkeypatch.setattr(kept_features, "MOST_BYTES", 2 * size)
    kept.write(tmp_path, SIDES)
    assert len(KeptFeatures([tmp_path]).rows) == 2


def test_features_that_an_interrupted_training_left_are_kept_too(tmp_path: Path):
    folders = [tmp_path / name for name in ("whole", "resumed")]
    for folder, kept in zip(folders, (KeptFeatures(), KeptFeatures()), strict=True):
        folder.mkdir()
        head._cached_features(head.Features(HeadSpec(), POLICY, kept), TEXTS, tmp_path / "cache")
        kept.write(folder, SIDES)
    whole, resumed = ((folder / kept_features.NAME).read_bytes() for folder in folders)
    assert whole == resumed


def test_no_text_is_computed_twice_in_a_run_and_scores_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    computed: list[tuple[int, ...]] = []
    compute = head.Features._compute

    def counted(self: head.Features, rows: Any, starts: Any) -> torch.Tensor:
        computed.extend(map(tuple, rows))
        return compute(self, rows, starts)

    monkeypatch.setattr(head.Features, "_compute", counted)

    def run(name: str) -> tuple[list[float], list[dict[str, Any]]]:
        computed.clear()
        Loop(Recipe.load(SMOKE), tmp_path / name).run()
        rounds = [tmp_path / name / f"round_{number:03d}" for number in (1, 2)]
        scores = [folder / step / "scores.parquet" for folder in rounds for step in ("score", "rescore")]
        values = [score.value for file in scores for score in read_records(file, Score)]
        return values, [read_json(folder / "reward" / "metrics.json") for folder in rounds]

    values, metrics = run("kept")
    assert len(set(computed)) == len(computed) > 0
    texts = len(computed)
    begin = KeptFeatures.__init__
    monkeypatch.setattr(KeptFeatures, "__init__", lambda self, folders=(): begin(self))
    anew, measured = run("anew")
    assert len(computed) > 1.5 * texts
    assert anew == pytest.approx(values, abs=1e-4)
    for one, other in zip(metrics, measured, strict=True):
        assert one["frozen_head"]["accuracy"] == other["frozen_head"]["accuracy"]
