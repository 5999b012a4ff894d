"""Models that are only read, shared out over ranks: all numbers are those of whole models in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from samples import shared_ranks
from samples.rewards import bradley_terry, critic_spec, critiques_of, encoder, make_pairs

from rlhf_loop import Loop, Recipe
from rlhf_loop.models import distributed, shares
from rlhf_loop.recipe import Policy
from rlhf_loop.reward_spec import parse_spec, write_spec
from rlhf_loop.rewards import train_reward_model

ROOT = Path(__file__).parents[2]
POLICY = Policy(model="tiny-random:0", dtype="float32")
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
HSDP = {**FSDP, "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2", "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2"}


def on_ranks(folder: Path, out: Path, *cases: str, environment: dict[str, str], ranks: int = 2) -> str:
    """Runs `cases` of shared_ranks.py, as a config of Accelerate says in `environment`; gives its errors."""
    out.mkdir(parents=True, exist_ok=True)
    finished = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--standalone",
         shared_ranks.__file__, str(folder), str(out), *cases],
        capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    assert (finished.returncode == 0) == ("broken" not in cases), finished.stderr[-9000:]
    return finished.stderr


def numbers(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a JSON value, by where they stand."""
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(inner, f"{place}/{key}")
    else:
        yield place, value


def assert_same(mine: Any, theirs: Any, limit: float = 1e-6) -> None:
    one, other = dict(numbers(mine)), dict(numbers(theirs))
    assert one.keys() == other.keys()
    for place, value in one.items():
        expected = pytest.approx(other[place], abs=limit, rel=limit) if isinstance(value, float) else other[place]
        assert value == expected, place


def halves(out: Path, ranks: int = 2, of: int = 2) -> None:
    """Of every model that was shared out a rank held about one part of so many."""
    held = json.loads((out / "held.json").read_text())
    assert len(held) == ranks
    for rank in held:
        assert rank
        for whole, share in rank:
            assert share == pytest.approx(whole / of, rel=0.1)


def test_stages_on_two_ranks_that_share_their_models_make_what_one_process_makes(
    tmp_path: Path, model_cache: Path
) -> None:
    """The reward model, the policy with its adapter and the base below it, and at last the policy that writes."""
    text = tmp_path / "plain.jsonl"
    text.write_text('{"text": "Rain falls when the drops in a cloud grow too heavy for the air to hold."}\n' * 3)
    changes = [f"reward.model={ROOT / 'reward_models' / 'bradley_terry'}", f"evaluation.plain_text={text}"]
    Loop(Recipe.load(ROOT / "recipes" / "smoke.yaml", changes), run_dir=tmp_path / "run").run(rounds=1)
    made = tmp_path / "run" / "round_001"
    out = tmp_path / "out"
    stages = (("stage", "score"), ("stage", "evaluate"), ("small", "generate"))
    cases = [f"{kind} {made / name}.arguments.json" for kind, name in stages]
    said = on_ranks(tmp_path, out, *cases, environment=FSDP)
    assert "generation.vllm.tensor_parallel_size" in said  # of the policy that is too large for a device
    halves(out)
    for file in ("score/scores.parquet", "evaluate/answers.parquet", "generate/completions.parquet"):
        assert_same(*(pq.read_table(folder / file).to_pylist() for folder in (out / "round_001", made)))
    file = "evaluate/evaluation.json"
    assert_same(*(json.loads((folder / file).read_text()) for folder in (out / "round_001", made)))
    assert json.loads((made / file).read_text())["kl"]["per_completion"] > 1e-4


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        (FSDP, True),
        (HSDP, True),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, False),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, True),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "zero3.json"}, True),
        ({**FSDP, "WORLD_SIZE": "1"}, False),
    ],
)
def test_models_are_shared_out_where_the_config_shares_out_weights(
    environment: dict[str, str], expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("zero3.json").write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", **environment}.items():
        monkeypatch.setenv(name, value)
    assert shares.shared_out() is expected
    assert shares.loading_options() == ({"device_map": "meta"} if expected else {})


def test_a_rank_takes_part_in_what_others_come_to_until_all_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks by turns: this one comes to the second collective once, the other to each twice."""
    monkeypatch.setattr(distributed, "_collectives", [])
    other = iter([0, 0, 1, 1, distributed._DONE])
    monkeypatch.setattr(distributed, "_least", lambda mine: min(mine, next(other)))
    did: list[str] = []
    first = distributed.add_collective(lambda: did.append("part in the first"))
    second = distributed.add_collective(lambda: did.append("part in the second"))
    assert (first, second) == (0, 1)
    with distributed.in_step():
        distributed.begin_collective(second)
        did.append("the second")
    assert did == ["part in the first", "part in the first", "the second", "part in the second"]


# Slow: all kinds of models


REWARDS = ("bradley_terry", "bradley_terry-full", "bradley_terry-bf16", "head", "critic", "pretrained")
POLICIES = ("lora", "lora-bf16", "gemma", "phi3", "gpt2", "mistral")
CASES = [
    *(f"reward {name} {rows}" for name in REWARDS for rows in (1, 5)),
    *(f"policy {name} {rows}" for name in POLICIES for rows in (1, 3)),
]


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory, model_cache: Path, tiny_policy: Path, family: Callable[[str], Path]
) -> Path:
    """A folder of trained reward models and of policies."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlhf_loop.generation import write_greedily

    folder = tmp_path_factory.mktemp("models")
    pairs = make_pairs(4)
    specs = {
        "bradley_terry": bradley_terry(), "bradley_terry-full": bradley_terry(lora=None),
        "bradley_terry-bf16": bradley_terry(), "head": parse_spec({"kind": "head"}), "critic": critic_spec(),
    }  # fmt: skip
    for name, spec in specs.items():
        policy = POLICY.model_copy(update={"dtype": "bfloat16" if "bf16" in name else "float32"})
        given = {"critiques": critiques_of(pairs), "writer": write_greedily} if name == "critic" else {}
        train_reward_model(spec, pairs, folder / name, policy=policy, eval_pairs=[], seed=0, **given)
    encoder(folder / "encoder", AutoTokenizer.from_pretrained(tiny_policy))
    (folder / "pretrained").mkdir()
    spec = {"kind": "pretrained", "model": str(folder / "encoder"), "format": "pair"}
    write_spec(parse_spec(spec), folder / "pretrained")
    for name in POLICIES:
        if not name.startswith("lora"):
            (folder / name).symlink_to(family(name))
            continue
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_policy), config)
        adapted.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def whole(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process finds of all cases."""
    out = tmp_path_factory.mktemp("whole")
    for case in CASES:
        shared_ranks.run(case, models, out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("environment", "ranks"), [(FSDP, 2), (FSDP, 3), (HSDP, 4)], ids=["fsdp2", "three", "hsdp"])
def test_every_kind_of_model_reads_the_same_shared_out(
    environment: dict[str, str], ranks: int, models: Path, whole: Path, tmp_path: Path
) -> None:
    on_ranks(models, tmp_path, *CASES, environment=environment, ranks=ranks)
    for case in CASES:
        mine, theirs = (json.loads((out / f"{case}.json").read_text()) for out in (tmp_path, whole))
        assert_same(mine, theirs, 1e-6 if "bf16" not in case else 1e-2)
    halves(tmp_path, ranks, of=3 if ranks == 3 else 2)


@pytest.mark.slow
def test_where_one_rank_fails_the_others_do_not_wait(models: Path, tmp_path: Path) -> None:
    assert "so it is" in on_ranks(models, tmp_path, "broken", environment=FSDP)
