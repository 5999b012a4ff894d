"""What each node of a SkyPilot task runs: the launcher, and copies of the run that outlive the node."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from samples.runs import outputs

from rlhf_loop import Loop, Recipe
from rlhf_loop.copies import fetch
from rlhf_loop.launch.node import command
from rlhf_loop.run_dir import RunDir

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes" / "cluster" / "skypilot" / "run.sh"
SMOKE = ROOT / "recipes" / "smoke.yaml"
SHORT = ["generation.max_new_tokens=8", "update.trainer.max_steps=1"]
TOLD = {"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NODE_IPS": "127.0.0.1", "SKYPILOT_NUM_NODES": "1"}
"""What SkyPilot tells a node; `SKYPILOT_NUM_GPUS_PER_NODE` where there are some."""
RLHF_LOOP = f"""#!/bin/bash
exec {sys.executable} -m rlhf_loop "$@"
"""

# A launcher that makes as many rounds as $ROUNDS, and an rlhf-loop that notes what it was asked.
LAUNCHER = """#!/bin/bash
trap 'exit 143' TERM
for ROUND in $(seq 0 $((ROUNDS - 1))); do
  mkdir -p "$RLHF_LOOP_RUN/round_00$ROUND" && touch "$RLHF_LOOP_RUN/round_00$ROUND/manifest.json"
  until [ "$(grep -c push "$CALLS")" -gt "$ROUND" ]; do sleep 0.02; done
done
echo "launched $*" >>"$CALLS"
exit "${CODE:-0}"
"""
NOTES = """#!/bin/bash
echo "$*" >>"$CALLS"
[ "$1" != push ] || [ "$(grep -c push "$CALLS")" -gt "${FAILURES:-0}" ]
"""


def start(folder: Path, programs: Mapping[str, str], *words: str, **variables: str) -> subprocess.Popen[str]:
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    for name, text in programs.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    told = {
        **os.environ,
        **TOLD,
        "PATH": path,
        "RLHF_LOOP_PUSH_EVERY": "0.05",
        "CALLS": str(folder / "calls"),
        **variables,
    }
    return subprocess.Popen(
        ["bash", str(SCRIPT), *words], cwd=folder, env=told, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def calls(folder: Path, **variables: str) -> tuple[int, list[str]]:
    """The exit code of a node with stubs, and what was called on it."""
    folder.mkdir(exist_ok=True)
    (folder / "calls").touch()
    told = {"RLHF_LOOP_RUN": "./run", **variables}
    node = start(folder, {"python3": LAUNCHER, "rlhf-loop": NOTES}, "r.yaml", **told)
    said, _ = node.communicate(timeout=30)
    assert "error" not in said
    return node.returncode, (folder / "calls").read_text().splitlines()


LAUNCHED = "launched -m rlhf_loop.launch.node skypilot rlhf_loop run r.yaml"
FETCH, PUSH = "fetch --if-any s3://a/b ./run", "push ./run s3://a/b"


@pytest.mark.parametrize(
    ("variables", "code", "called"),
    [
        ({"ROUNDS": "0"}, 0, [FETCH, LAUNCHED]),
        ({"ROUNDS": "2"}, 0, [FETCH, PUSH, PUSH, LAUNCHED, PUSH]),
        ({"ROUNDS": "1", "CODE": "3"}, 3, [FETCH, PUSH, LAUNCHED, PUSH]),
        ({"ROUNDS": "0", "CODE": "3"}, 3, [FETCH, LAUNCHED]),
    ],
)
def test_rounds_are_fetched_before_and_pushed_as_they_are_made(
    tmp_path: Path, variables: dict[str, str], code: int, called: list[str]
) -> None:
    assert calls(tmp_path, RLHF_LOOP_COPIES="s3://a/b", **variables) == (code, called)


def test_a_push_is_tried_again_and_a_run_whose_last_round_is_nowhere_else_has_failed(tmp_path: Path) -> None:
    assert calls(tmp_path, RLHF_LOOP_COPIES="s3://a/b", ROUNDS="0", FAILURES="9") == (0, [FETCH, LAUNCHED])
    (tmp_path / "run" / "round_000").mkdir(parents=True)
    (tmp_path / "run" / "round_000" / "manifest.json").touch()
    (tmp_path / "calls").unlink()
    told = {"RLHF_LOOP_COPIES": "s3://a/b", "ROUNDS": "0"}
    assert calls(tmp_path, FAILURES="2", **told) == (0, [LAUNCHED, *[PUSH] * 3]), "a run that is there is not fetched"
    (tmp_path / "calls").unlink()
    assert calls(tmp_path, FAILURES="9", **told) == (1, [LAUNCHED, *[PUSH] * 5])


def test_what_ends_a_node_reaches_its_launcher_at_once_and_an_end_is_not_waited_for(tmp_path: Path) -> None:
    told = {"RLHF_LOOP_COPIES": "s3://a/b", "RLHF_LOOP_RUN": "./run", "RLHF_LOOP_PUSH_EVERY": "60"}
    (tmp_path / "calls").touch()
    node = start(tmp_path, {"python3": LAUNCHER, "rlhf-loop": NOTES}, "r.yaml", ROUNDS="1", **told)
    while not list(tmp_path.glob("run/round_*/manifest.json")):
        time.sleep(0.02)
    node.send_signal(signal.SIGTERM)
    node.communicate(timeout=30)
    assert (node.returncode, (tmp_path / "calls").read_text().splitlines()) == (143, [FETCH, PUSH, PUSH])
    assert calls(tmp_path / "other", **told, ROUNDS="0") == (0, [FETCH, LAUNCHED])


def test_a_run_in_a_place_that_outlives_its_nodes_is_not_copied(tmp_path: Path) -> None:
    assert calls(tmp_path, ROUNDS="0", CODE="3") == (3, [LAUNCHED])


def test_a_node_knows_the_others_by_what_skypilot_tells_it() -> None:
    told = {**TOLD, "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5\n"}
    assert command("skypilot", ["rlhf_loop", "run"], {**told, "SKYPILOT_NUM_GPUS_PER_NODE": "8"}) == [
        "accelerate", "launch", "--multi_gpu", "--mixed_precision", "bf16", "--num_machines", "2",
        "--machine_rank", "1", "--num_processes", "16", "--main_process_ip", "10.0.0.4", "--main_process_port", "29500",
        "-m", "rlhf_loop", "run",
    ]  # fmt: skip
    assert command("skypilot", ["rlhf_loop", "run"], told)[:7] == [
        "torchrun", "--nnodes", "2", "--node_rank", "1", "--nproc_per_node", "1",
    ]  # fmt: skip


@pytest.mark.slow
def test_two_nodes_make_a_run_together(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    nodes = []
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
        told = {"SKYPILOT_NODE_RANK": rank, "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1"}
        words = [str(SMOKE), *SHORT, "--rounds", "1", "--run-dir", str(tmp_path / "run")]
        nodes.append(start(tmp_path / rank, {}, *words, PYTHONPATH=str(ROOT), MASTER_PORT=port, **told))
    said = [node.communicate(timeout=400)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert RunDir(tmp_path / "run").complete_rounds() == [0, 1]


@pytest.mark.slow
def test_a_job_whose_node_is_gone_goes_on_from_the_last_whole_round(tmp_path: Path) -> None:
    words = [str(SMOKE), *SHORT, "--rounds", "2", "--run-dir", "./run"]
    place, kept = tmp_path / "bucket", RunDir(tmp_path / "bucket")
    told = {"RLHF_LOOP_RUN": "./run", "RLHF_LOOP_COPIES": str(place), "PYTHONPATH": str(ROOT)}

    def node(name: str) -> subprocess.Popen[str]:
        (tmp_path / name).mkdir()
        return start(tmp_path / name, {"rlhf-loop": RLHF_LOOP}, *words, **told)

    first = node("first")
    deadline = time.monotonic() + 240
    while not kept.complete_rounds() and time.monotonic() < deadline:
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=120)
    assert first.returncode != 0, said
    pushed = kept.complete_rounds()
    assert pushed
    assert 2 not in pushed, "the test was too slow to interrupt it"
    shutil.rmtree(tmp_path / "first")
    second = node("second")
    said, _ = second.communicate(timeout=400)
    assert second.returncode == 0, said
    assert kept.complete_rounds() == [0, 1, 2]
    fetch(str(place), tmp_path / "fetched")
    Loop(Recipe.load(SMOKE, SHORT), run_dir=tmp_path / "undisturbed").run(rounds=2)
    assert outputs(tmp_path / "fetched") == outputs(tmp_path / "undisturbed")
