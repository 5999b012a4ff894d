"""Trackers for real, each launched in each way: what they were told of training and evaluation is read back from their
own files. Those that are not installed are skipped, saying so."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf_loop import Recipe
from rlhf_loop.errors import UserError

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"
ROUNDS = 2
STEPS = 2  # of training in each round

pytestmark = pytest.mark.usefixtures("model_cache")


def read_tensorboard(folder: Path) -> Iterator[tuple[str, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for place in {path.parent for path in folder.rglob("events.out.tfevents*")}:
        events = EventAccumulator(str(place))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            yield from ((tag, event.step) for event in events.Scalars(tag))


def read_wandb(folder: Path) -> Iterator[tuple[str, float]]:
    from wandb.proto import wandb_internal_pb2

    for file in folder.rglob("*.wandb"):
        for data in wandb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                assert record.run.project == "run"
            if kind == "history":
                values = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                step = values.get("train/global_step", values.get("evaluation/round"))
                yield from ((name, step) for name in values)


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Its log: a header of 7 bytes, then blocks of 32 KiB with records of checksum, length and kind (whole 1, first 2,
    middle 3, last 4)."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        length, kind = struct.unpack_from("<HB", data, place + 4)
        if left < 7 or kind == 0:
            place += left
            continue
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def read_trackio(folder: Path) -> Iterator[tuple[str, float]]:
    with sqlite3.connect(folder / "trackio" / "run.db") as database:
        for (metrics,) in database.execute("SELECT metrics FROM metrics"):
            values = json.loads(metrics)
            step = values.get("train/global_step", values.get("evaluation/round"))
            yield from ((name, step) for name in values)


def read_mlflow(folder: Path) -> Iterator[tuple[str, float]]:
    with sqlite3.connect(folder / "mlflow.db") as database:
        names = {name for (name,) in database.execute("SELECT name FROM experiments")}
        assert "run" in names
        for name, step in database.execute("SELECT key, step FROM metrics"):
            yield (name if "/" in name else f"train/{name}"), step


READERS = {"tensorboard": read_tensorboard, "wandb": read_wandb, "trackio": read_trackio, "mlflow": read_mlflow}


def track(folder: Path, trackers: str, launch: str, *settings: str, code: int = 0) -> str:
    """A run of the smoke recipe in `folder`, which the trackers write to as well."""
    start = ["-m", "torch.distributed.run", "--nproc_per_node", "2"] if launch == "ranks" else []
    environment = {
        **os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(folder), "TRACKIO_DIR": str(folder / "trackio"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }  # fmt: skip
    command = [
        sys.executable, *start, "-m", "rlhf_loop", "run", str(SMOKE), "--run-dir", str(folder / "run"),
        f"report_to=[{trackers}]", f"launch={launch}", f"update.trainer.max_steps={STEPS}", *settings,
    ]  # fmt: skip
    finished = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace", timeout=600
    )
    assert finished.returncode == code, finished.stdout[-2000:] + finished.stderr[-4000:]
    return finished.stderr


def seen(reader: Any, folder: Path) -> dict[str, list[float]]:
    steps: dict[str, list[float]] = {}
    for name, step in reader(folder):
        steps.setdefault(name, []).append(step)
    return {name: sorted(values) for name, values in steps.items()}


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["inline", "child", "ranks"])
@pytest.mark.parametrize("tracker", READERS)
def test_a_tracker_is_told_of_training_over_all_rounds_and_of_each_evaluation(
    tracker: str, launch: str, tmp_path: Path
) -> None:
    pytest.importorskip(tracker, reason=f"{tracker} is not installed: pip install {tracker}")
    track(tmp_path, tracker, launch)
    told = seen(READERS[tracker], tmp_path)
    assert told["train/loss"] == list(range(1, ROUNDS * STEPS + 1))
    assert told["evaluation/win_rate_vs_base/mean"] == list(range(ROUNDS + 1))


@pytest.mark.slow
def test_a_tracker_that_does_not_start_is_an_error_in_words_before_anything_is_computed(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install mlflow")
    file = tmp_path / "a_file"
    file.write_text("")
    os.environ["MLFLOW_EXPERIMENT_NAME"] = "x" * 10_000
    try:
        said = track(tmp_path, "mlflow", "inline", code=2)
    finally:
        del os.environ["MLFLOW_EXPERIMENT_NAME"]
    assert "report_to: mlflow did not start" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("all", "name the trackers one by one"),
        ("[all]", "name the trackers one by one"),
        ("none", "`report_to: []`"),
        ("[none]", "`report_to: []`"),
        ("tensorboard", "`report_to: [tensorboard]`"),
        ("[tensorbord]", "did you mean `tensorboard`?"),
        ("[comet_ml]", "there are: tensorboard, wandb, mlflow, trackio"),
        ("[1]", "no tracker `1` is known"),
    ],
)
def test_what_names_no_tracker_is_refused_when_the_recipe_is_loaded(written: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        Recipe.load(SMOKE, [f"report_to={written}"])
    assert "report_to: " in str(refused.value)
    assert said in str(refused.value)


def test_a_tracker_that_is_not_installed_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for tracker in READERS:
        with pytest.raises(UserError, match=f"{tracker} is not installed: `pip install {tracker}`"):
            Recipe.load(SMOKE, [f"report_to=[{tracker}]"])
        # A run is looked at on machines that lack its trackers.
        assert Recipe.load(SMOKE, [f"report_to=[{tracker}]"], to_run=False).report_to == [tracker]
