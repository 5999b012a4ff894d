from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from samples.cli import rlhf_loop
from samples.faults import command

from rlhf_loop import Loop, Recipe
from rlhf_loop.cli import with_home
from rlhf_loop.cli.shared import existing_run, store_url
from rlhf_loop.copies import push
from rlhf_loop.errors import UserError
from rlhf_loop.feedback.files.rows import read_rows
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files.step_folders import read_manifest
from rlhf_loop.records import Artifact

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "recipes" / "smoke.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "smoke"
    Loop(Recipe.load(SMOKE), run_dir=folder).run()
    return folder


@pytest.mark.parametrize("module", ["rlhf_loop", "rlhf_loop.cli", "rlhf_loop.loop", "rlhf_loop.policies"])
def test_importing_the_doors_does_not_import_torch(module: str) -> None:
    code = f"import {module}, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_help_answers_at_once() -> None:
    best = 99.0
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "feedback" in rlhf_loop("--help").stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert best < 0.7  # of a core's seconds, whatever else the machine does


def test_status_tells_where_a_run_stands(run: Path) -> None:
    state = json.loads(rlhf_loop("status", run, "--json").stdout)
    assert [r["round"] for r in state["rounds"]] == [0, 1, 2]
    assert set(state["rounds"][1]["win_rate_vs_base"]) >= {"mean", "low", "high", "n"}
    assert state["rounds"][2]["decision"] in ("promoted", "kept")
    assert set(state["rounds"][2]["timings"]) >= {"update", "evaluate", "generate"}
    assert "win-rate" in rlhf_loop("status", run).stdout


def test_report_writes_the_page_again(run: Path) -> None:
    (run / "report.html").unlink()
    assert rlhf_loop("report", run).stdout.strip() == str(run.resolve() / "report.html")
    assert (run / "report.html").stat().st_size > 10_000


def test_a_finished_run_is_not_made_again(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.glob("round_*/**/*") if path.is_file()}
    said = rlhf_loop("run", SMOKE, "--run-dir", run).stdout
    assert "2 rounds complete" in said
    assert "own_pairs.yaml feedback.imports.0.path=YOUR_PAIRS.jsonl" in said
    assert {path: path.stat().st_mtime_ns for path in run.glob("round_*/**/*") if path.is_file()} == before


def test_a_changed_recipe_under_a_run_is_refused_with_what_changed(run: Path) -> None:
    error = rlhf_loop("run", SMOKE, "seed=5", "--run-dir", run, code=2).stderr
    assert "seed: 0 -> 5" in error
    assert "--run-dir" in error


def test_a_run_folder_of_another_recipe_is_refused(run: Path, tmp_path: Path) -> None:
    error = rlhf_loop("run", SMOKE, "name=other", "--run-dir", run, code=2).stderr
    assert "holds a run of recipe `smoke`" in error


def test_mistakes_end_with_one_line_and_exit_code_2(tmp_path: Path) -> None:
    error = rlhf_loop("run", tmp_path / "none.yaml", code=2).stderr
    assert error.startswith("error: no recipe at")
    assert "Traceback" not in error
    assert "is no run" in rlhf_loop("status", tmp_path, code=2).stderr


def test_a_path_that_is_not_there_is_answered_with_what_was_meant(tmp_path: Path) -> None:
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "recipe.yaml").write_text("name: quickstart\n")
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    (tmp_path / ".hidden.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"quikstart is no run.* \(did you mean .*/quickstart\?\)\. Runs"):
        existing_run(tmp_path / "quikstart")
    with pytest.raises(UserError, match=r"is no run: it has no recipe.yaml \(in .* there is: quickstart\)"):
        existing_run(tmp_path)
    with pytest.raises(UserError, match=r"there is no run at .*quikstart \(did you mean .*/quickstart\?\)"):
        store_url(str(tmp_path / "quikstart"))
    assert store_url(str(tmp_path / "new.db")) == str(tmp_path / "new.db")
    with pytest.raises(UserError, match=r"there is no file .*votes\.jsonl \(in .* there is: pairs\.jsonl\)$"):
        list(read_rows(tmp_path / "votes.jsonl"))
    with pytest.raises(UserError, match=r"there is no file .*x\.jsonl \(there is no folder .*/none either\)$"):
        list(read_rows(tmp_path / "none" / "x.jsonl"))
    with pytest.raises(UserError, match=r"no recipe at .* \(did you mean .*/smoke\.yaml\?\)\. `rlhf-loop init"):
        Recipe.load(SMOKE.with_name("smok.yaml"))
    with pytest.raises(UserError, match=r"recipes is a folder; name a recipe's file \(in .* there is: chat_thumbs"):
        Recipe.load(SMOKE.parent)


@pytest.mark.parametrize(
    "words",
    [
        ["run", "SMOKE", "--run-dir", "FILE"],
        ["run", "SMOKE", "run_dir=FILE/below"],
        ["watch", "SMOKE", "--once", "--run-dir", "FILE/below"],
        ["compare", "SWEEP", "--folder", "FILE"],
        ["fetch", "COPY", "FILE/below"],
        ["init", "FILE"],
        ["policy", "export", "RUN", "FILE/below"],
        ["report", "RUN", "--output", "FILE/below"],
        ["feedback", "check", "RUN", "--html", "FILE/below"],
        ["feedback", "export", "FILE/below", "--format", "trl", "--store", "RUN"],
        ["feedback", "export", "FILE/below", "--format", "parquet", "--store", "RUN"],
        ["token", "create", "ann", "--store", "FILE/below.db"],
    ],
)
def test_a_file_in_place_of_a_folder_is_told(
    words: list[str], run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    named = {"SMOKE": SMOKE, "SWEEP": SMOKE.parent / "compare" / "algorithms.yaml", "RUN": run}
    if words[0] == "fetch":
        push(run, str(tmp_path / "copy"))
    for name, path in {**named, "COPY": tmp_path / "copy", "FILE": tmp_path / "file"}.items():
        words = [word.replace(name, str(path)) for word in words]
    ended = command(capfd, *words)
    assert ended.code == 2
    assert ended.sentence.startswith(f"error: {tmp_path}/file is a file and no folder"), ended.error
    assert ended.sentence.endswith(". Name another folder, or move the file away")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("words", [["report", "--output", "."], ["feedback", "check", "--html", "."]])
def test_a_folder_in_place_of_a_file_is_told(words: list[str], run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command(capfd, *words, run).sentence == "error: . is a folder and no file. Name a file, such as one in it"


def test_a_token_for_a_store_that_is_not_there_says_that_one_was_made(tmp_path: Path) -> None:
    made = rlhf_loop("token", "create", "ann", "--store", tmp_path / "new.db")
    assert "there was no store at" in made.stderr
    assert len(made.stdout.splitlines()) == 1
    assert "there was no store" not in rlhf_loop("token", "create", "bob", "--store", tmp_path / "new.db").stderr
    assert not list(tmp_path.glob("quikstart*"))
    assert "no run" in rlhf_loop("token", "create", "ann", "--store", tmp_path / "quikstart", code=2).stderr
    assert not (tmp_path / "quikstart").exists()


def test_init_lays_out_recipes_that_load(tmp_path: Path) -> None:
    rlhf_loop("init", tmp_path / "mine")
    for recipe in (tmp_path / "mine" / "recipes").glob("*.yaml"):
        Recipe.load(recipe)
    assert (tmp_path / "mine" / "reward_models" / "frozen_head" / "reward_model.yaml").exists()
    assert "exists" in rlhf_loop("init", tmp_path / "mine", code=2).stderr


def test_doctor_says_what_works_here() -> None:
    findings = json.loads(rlhf_loop("doctor", "--json").stdout)
    states = {finding["name"]: finding["state"] for finding in findings}
    assert states["python"] == states["torch"] == states["trl"] == "works"
    assert {"memory", "disk", "accelerator", "model cache"} <= set(states)
    assert {"postgres", "server", "endpoints", "vllm", "deepspeed", "qlora"} <= set(states)


def test_one_stage_runs_alone_and_makes_the_same_files(run: Path) -> None:
    folder = run / "round_001" / "score"
    before = (folder / "scores.parquet").read_bytes()
    rlhf_loop("stage", run / "round_001" / "score.arguments.json")
    assert (folder / "scores.parquet").read_bytes() == before


def test_policies_are_listed_and_promoted(run: Path) -> None:
    rows = json.loads(rlhf_loop("policy", "list", run, "--json").stdout)
    assert [row["round"] for row in rows] == [0, 1, 2]
    rlhf_loop("policy", "promote", run, rows[2]["id"])
    assert [row["promoted"] for row in json.loads(rlhf_loop("policy", "list", run, "--json").stdout)][2]
    rlhf_loop("policy", "promote", run, "base")
    assert "nothing to roll back" in rlhf_loop("policy", "rollback", run, code=2).stderr
    assert "there are: base" in rlhf_loop("policy", "promote", run, "policy-9", code=2).stderr


def test_rollback_goes_to_the_policy_that_was_promoted_before_and_a_second_one_further_back(
    run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(run / "recipe.yaml", folder)
    with Store.open(folder / "feedback.db") as store:
        # As `update.start_from: base` leaves them: each one's parent is the base.
        for number, parent in enumerate([None, "base", "base", "base"]):
            name = f"policy-{number}" if number else "base"
            store.add_artifact(Artifact(id=name, kind="policy", path="", round=number, parent=parent))
            store.promote(name)
    said = [rlhf_loop("policy", "rollback", folder).stdout.split()[-1] for _ in range(2)]
    assert said == ["policy-2", "policy-1"]
    rlhf_loop("policy", "promote", folder, "policy-3")
    assert rlhf_loop("policy", "rollback", folder).stdout.split()[-1] == "policy-1"
    assert rlhf_loop("policy", "rollback", folder).stdout.split()[-1] == "base"


def test_an_exported_policy_loads_with_plain_transformers_and_answers_the_same(run: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlhf_loop.models.loading import load_policy

    rows = json.loads(rlhf_loop("policy", "list", run, "--json").stdout)
    rlhf_loop("policy", "export", run, tmp_path / "merged", "--policy", rows[1]["id"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    ours, _ = load_policy(rows[1]["path"], Recipe.load(SMOKE).policy)
    ids = tokenizer("a question", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, ours(ids).logits, atol=1e-5)
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "SIMULATED" in card
    assert rows[1]["id"] in card
    assert json.loads((tmp_path / "merged" / "lineage.json").read_text())
    rlhf_loop("policy", "export", run, tmp_path / "adapter", "--policy", rows[1]["id"], "--form", "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    assert "no empty folder" in rlhf_loop("policy", "export", run, tmp_path / "adapter", code=2).stderr


def test_people_answer_questions_and_the_loop_goes_on(tmp_path: Path) -> None:
    values = yaml.safe_load(SMOKE.read_text())
    values["feedback"]["annotator"] = None
    recipe = tmp_path / "people.yaml"
    values["prompts"] = {k: [str(SMOKE.parent / p) for p in v] for k, v in values["prompts"].items()}
    values["reward"]["model"] = str(ROOT / "reward_models" / "frozen_head")
    recipe.write_text(yaml.safe_dump(values))
    run = tmp_path / "run"
    said = rlhf_loop("run", recipe, "--run-dir", run).stdout
    assert "waiting for labels: 8 questions" in said
    questions = tmp_path / "questions.jsonl"
    rlhf_loop("feedback", "export", questions, "--format", "questions", "--store", run)
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    assert len(rows) == 8
    for number, row in enumerate(rows):
        row["winner"] = "ab"[number % 2]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rlhf_loop("feedback", "import", questions, "--store", run)
    said = rlhf_loop("run", recipe, "--run-dir", run, "--rounds", "1").stdout
    assert "1 round complete" in said
    with Store.open(run / "feedback.db") as store:
        assert {record.annotator.kind for record in store.feedback()} == {"HUMAN"}
    stats = json.loads(rlhf_loop("feedback", "stats", "--store", run, "--json").stdout)
    assert stats
    assert rlhf_loop("feedback", "check", "--store", run).stdout


def test_malformed_feedback_is_quarantined_with_file_and_line(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    good = {"id": "1", "prompt": "Name a colour.", "chosen": "Blue is one.", "rejected": "No."}
    file.write_text(json.dumps(good) + "\n{broken\n" + json.dumps({**good, "id": "2", "chosen": 5}) + "\n")
    store = tmp_path / "feedback.db"
    said = rlhf_loop("feedback", "import", file, "--store", store).stdout
    assert "rejected      2  kept in the quarantine" in said
    assert "pairs.jsonl:2" in said
    assert "pairs.jsonl:3" in said
    assert "pairs.jsonl:2" in rlhf_loop("feedback", "check", "--store", store).stdout
    exported = tmp_path / "out.jsonl"
    rlhf_loop("feedback", "export", exported, "--format", "trl", "--store", store)
    assert json.loads(exported.read_text())["chosen"][0]["content"] == "Blue is one."


def test_the_recipe_for_ones_own_pairs_runs_on_a_file_of_pairs(tmp_path: Path, model_cache: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"Say number {n // 6}.", "chosen": f"It is {n // 6}, as asked {n % 6}.", "rejected": f"No {n % 6}."}
        for n in range(120)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = ["policy.model=tiny-random:0", "policy.dtype=float32", "generation.max_new_tokens=8",
             "update.trainer.max_steps=2"]  # fmt: skip
    recipe = ROOT / "recipes" / "own_pairs.yaml"
    rlhf_loop("run", recipe, f"feedback.imports.0.path={file}", *small, "--rounds", "2", "--run-dir", tmp_path / "run")
    state = json.loads(rlhf_loop("status", tmp_path / "run", "--json").stdout)
    assert [r["complete"] for r in state["rounds"]] == [True, True, True]
    # No new pairs came in round 2, so the reward model of round 1 stayed.
    assert (tmp_path / "run" / "round_001" / "reward").exists()
    assert not (tmp_path / "run" / "round_002" / "reward").exists()
    assert "reward model frozen_head" in (tmp_path / "run" / "report.html").read_text()


def test_ctrl_c_inside_training_stops_cleanly_and_the_same_command_goes_on(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "smoke"
    command = [sys.executable, "-m", "rlhf_loop", "run", str(SMOKE), "--rounds", "1", "--run-dir", str(folder)]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = folder / "round_001" / "update.partial" / "train_log.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=60)
    assert running.returncode == 130, error
    assert "Nothing is lost" in error
    assert "Traceback" not in error
    assert not (folder / "round_001" / "update").exists()
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    ours, whole = (read_manifest(place / "round_001" / "update") for place in (folder, run))
    assert ours is not None
    assert whole is not None
    assert ours["files"] == whole["files"]


def test_trackers_see_steps_counted_over_all_rounds(tmp_path: Path, model_cache: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "smoke"
    Loop(Recipe.load(SMOKE, ["report_to=[tensorboard]"]), run_dir=folder).run()
    seen: dict[str, list[int]] = {}
    for place in sorted({path.parent for path in folder.rglob("events.out.tfevents*")}):
        events = EventAccumulator(str(place))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            seen.setdefault(tag, []).extend(event.step for event in events.Scalars(tag))
    per_round = len((folder / "round_001" / "update" / "train_log.jsonl").read_text().splitlines())
    steps = sorted(seen["train/loss"])
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > per_round
    assert sorted(seen["evaluation/win_rate_vs_base/mean"]) == [0, 1, 2]


def test_a_home_directory_is_found_where_shells_leave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    typed = ["--run-dir=~/runs/a=b", "~/votes.jsonl", "update.trainer.beta=0.2", "--store", "x~/y", "--map=prompt=~x"]
    assert [with_home(word) for word in typed] == ["--run-dir=/home/ann/runs/a=b", "/home/ann/votes.jsonl", *typed[2:]]
