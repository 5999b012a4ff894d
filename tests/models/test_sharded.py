"""Trainings that FSDP2 and DeepSpeed share out over ranks: what they save, and that they go on after a kill.

Ranks are started by `accelerate launch` with the configs of recipes/accelerate; see sharded_ranks.py. What the slow
tests measure goes into `--junitxml=FILE`; sharded_matrix.py makes the table of docs/runs.md of it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from samples import sharded_ranks

from rlhf_loop.errors import UserError
from rlhf_loop.models import distributed
from rlhf_loop.models.files import resolve_model
from rlhf_loop.models.loading import load_policy
from rlhf_loop.recipe import Policy

CONFIGS = Path(__file__).parents[2] / "recipes" / "accelerate"
SIZES = ("lora", "full")
WITH_ADAM = [f"{update}-{size}" for update in ("sft", "dpo", "kto", "reward") for size in SIZES]
CRITIC = "critic-lora-sgd"
WITH_SGD = [*(f"{case}-sgd" for case in WITH_ADAM), CRITIC]
ONLINE = [f"{update}-{size}" for update in ("grpo", "rloo", "ppo") for size in SIZES]
RESUMED = [f"{case}-resumed" for case in (*WITH_ADAM, *ONLINE)]
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="DeepSpeed is not installed; on a CPU: DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed",
)
LAUNCHERS = ("fsdp2", "fsdp2_hsdp", "deepspeed_zero2", "deepspeed_zero3", "deepspeed_zero3_offload")
FEWER = ("fsdp2_hsdp", "deepspeed_zero3_offload")
"""Those that train dpo, ppo and reward models alone, to save time."""
RANKS = {"fsdp2_hsdp": 4}
TWO_TIMES_TWO = ("--parallelism_config_dp_replicate_size", "2", "--parallelism_config_dp_shard_size", "2")


@cache
def base() -> str:
    return str(resolve_model("tiny-random:0"))


@cache
def isolated() -> list[str]:
    """A network of loopback alone for the ranks, where one may be made."""
    command = ["unshare", "--net", "bash", "-c", 'ip link set lo up && exec "$@"', "bash"]
    try:
        made = subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        made = False
    return command if made else []


def launched(launcher: str, out: Path, *cases: str, ranks: int = 0, precision: str = "no") -> Path:
    """Runs `cases` with an Accelerate config, on 2 processes unless `RANKS` or `ranks` says otherwise; gives `out`."""
    out.mkdir(parents=True, exist_ok=True)
    launch = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{launcher}.yaml"),
        "--num_processes", str(ranks or RANKS.get(launcher, 2)), "--num_machines", "1", "--mixed_precision", precision,
        "--main_process_port", "0", *(TWO_TIMES_TWO if launcher == "fsdp2_hsdp" else ()),
    ]  # fmt: skip
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "SAMPLED_BY_TRL": "1",
        "PYTHONPATH": os.pathsep.join([str(CONFIGS.parent.parent), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    finished = subprocess.run(
        [*isolated(), *launch, sharded_ranks.__file__, base(), str(out), *cases],
        capture_output=True, text=True, timeout=1800, env=environment,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-6000:]
    return out


def by_launcher(*cases: str, launchers: tuple[str, ...] = LAUNCHERS) -> pytest.MarkDecorator:
    """Parametrizes a test by launcher, or by launcher and those of `cases` that it runs."""

    def marks(launcher: str) -> Any:
        return needs_deepspeed if "deepspeed" in launcher else ()

    if not cases:
        return pytest.mark.parametrize("launcher", [pytest.param(one, marks=marks(one)) for one in launchers])
    pairs = [pytest.param(one, case, marks=marks(one)) for one in launchers for case in run_by(one, *cases)]
    return pytest.mark.parametrize(("launcher", "case"), pairs)


def run_by(launcher: str, *cases: str) -> list[str]:
    return [case for case in cases if launcher not in FEWER or case.startswith(("dpo", "ppo", "reward"))]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    folder = folder / "policy" if (folder / "policy").exists() else folder
    found = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert found
    return found


def difference(mine: Path, theirs: Path) -> float:
    """The largest between two trained models, which have the same names, shapes and types."""
    one, other = weights(mine), weights(theirs)
    assert {name: tensor.shape for name, tensor in one.items()} == {name: t.shape for name, t in other.items()}
    assert all(tensor.dtype == other[name].dtype for name, tensor in one.items())
    return max(float((tensor.double() - other[name].double()).abs().max()) for name, tensor in one.items())


def trained_parameters(folder: Path) -> int:
    """How many numbers a reward model's metrics say were trained."""
    return int(json.loads((folder / "metrics.json").read_text())["trained_parameters"])


def moved(folder: Path) -> bool:
    """Whether a training changed any weight."""
    start = weights(Path(base()))
    return any(
        float((tensor - start[name] if name in start else tensor).abs().max()) > 1e-6
        for name, tensor in weights(folder).items()
        if name in start or "lora_B" in name
    )


@pytest.fixture
def differs(record_property: Callable[[str, Any], None]) -> Callable[..., float]:
    """`difference`, kept in the report as that of a launcher's `case` from what `compared` names."""

    def measured(launcher: str, case: str, mine: Path, theirs: Path, compared: str) -> float:
        found = difference(mine, theirs)
        record_property("difference", json.dumps([launcher, case, compared, found]))
        return found

    return measured


# Without DeepSpeed and in seconds


def test_fsdp2_saves_the_adapter_that_one_process_trains(tmp_path: Path) -> None:
    """With the shipped config, where only the main rank reads the weights; a critic in three stages."""
    cases = ("dpo-lora", "dpo-lora-critiques-sgd", CRITIC)
    for case in cases:
        sharded_ranks.run(case, base(), tmp_path / "one" / case)
    out = launched("fsdp2", tmp_path / "fsdp2", *cases)
    assert "FSDP" in json.loads((out / "dpo-lora.done.json").read_text())["state"]
    for case in cases:
        assert difference(out / case, tmp_path / "one" / case) < 5e-6
    assert difference(out / cases[0], out / cases[1]) > 1e-4
    assert trained_parameters(out / CRITIC) == trained_parameters(tmp_path / "one" / CRITIC) > 0
    assert max(float(tensor.abs().max()) for name, tensor in weights(out / "dpo-lora").items() if "lora_B" in name) > 0
    load_policy(out / "dpo-lora" / "policy", Policy(model=base(), dtype="float32"))


def test_the_first_version_of_fsdp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "ACCELERATE_USE_FSDP": "true"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="`fsdp_version: 2`"):
        distributed.start()


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_reads_each_config(file: Path) -> None:
    from accelerate.commands.config import load_config_from_file

    config = load_config_from_file(str(file))
    said = yaml.safe_load(file.read_text())
    for name, value in said.items():
        if not isinstance(value, dict):
            assert str(getattr(config, name)).endswith(str(value)), name
    if file.stem == "fsdp2_hsdp":
        sizes = said["parallelism_config"]
        replicas, shards = (sizes[f"parallelism_config_dp_{name}_size"] for name in ("replicate", "shard"))
        assert (replicas, replicas * shards) == (said["num_machines"], said["num_processes"])


# Slow: all updates and launchers


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Callable[[str], Path]:
    """Where a launcher has left all its cases, which it runs once."""
    outputs: dict[str, Path] = {}

    def by(launcher: str) -> Path:
        if launcher not in outputs:
            outputs[launcher] = tmp_path_factory.mktemp(launcher)  # before they run: they may fail
            cases = WITH_SGD if launcher == "ddp" else run_by(launcher, *WITH_SGD, *WITH_ADAM, *ONLINE, *RESUMED)
            launched(launcher, outputs[launcher], *cases)
        return outputs[launcher]

    return by


@pytest.fixture(scope="module")
def unshared(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Callable[[str, str], tuple[str, Path]]:
    """With what a launcher's case is compared: the training of whole models in this process; for those that sample,
    since each rank does with random numbers of its own, on as many ranks of DDP."""
    alone = tmp_path_factory.mktemp("one_process")
    beside: dict[tuple[Any, ...], Path] = {}

    def reference(launcher: str, case: str) -> tuple[str, Path]:
        if case not in ONLINE:
            if not (alone / case).exists():
                sharded_ranks.run(case, base(), alone / case)
            return "one process", alone / case
        ranks, cases = RANKS.get(launcher, 2), run_by(launcher, *ONLINE)
        key = (ranks, *cases)
        if key not in beside:
            beside[key] = launched("ddp", tmp_path_factory.mktemp(f"ddp_{ranks}"), *cases, ranks=ranks)
        return "ddp", beside[key] / case

    return reference


@pytest.mark.slow
@pytest.mark.parametrize("case", WITH_SGD)
def test_two_ranks_train_what_one_process_trains(
    case: str, trained: Callable[..., Path], unshared: Callable[..., Any], differs: Callable[..., float]
) -> None:
    compared, reference = unshared("ddp", case)
    assert differs("ddp", case, trained("ddp") / case, reference, compared) < 1e-6


@pytest.mark.slow
@by_launcher(*WITH_SGD, *WITH_ADAM, *ONLINE)
def test_shares_are_put_together_to_what_whole_models_train(
    launcher: str, case: str, trained: Callable[..., Path], unshared: Callable[..., Any], differs: Callable[..., float]
) -> None:
    out = trained(launcher)
    assert ("FSDP" if "fsdp" in launcher else "DEEPSPEED") in (out / f"{case}.done.json").read_text()
    compared, reference = unshared(launcher, case)
    assert differs(launcher, case, out / case, reference, compared) < (2e-6 if "sgd" in case else 1e-4)
    assert moved(out / case)
    if case.startswith(("reward", "critic")):
        assert trained_parameters(out / case) == trained_parameters(reference) > 0
    assert not any("ppo_critic" in name or "lm_head" in name for name in weights(out / case))  # it is tied


@pytest.mark.slow
@by_launcher(*RESUMED)
def test_a_stopped_training_goes_on_to_the_same_weights(
    launcher: str, case: str, trained: Callable[..., Path], differs: Callable[..., float]
) -> None:
    out = trained(launcher)
    stopped = json.loads((out / f"{case}.stopped.json").read_text())
    assert "checkpoints/checkpoint-2/COMPLETE" in stopped["files"]
    assert stopped["saved"] == [2]  # what began anew would have saved after its second step again; the last gets none
    # DeepSpeed's Adam for main memory multiplies beta^t up from step to step, and computes it anew when it goes on.
    limit = 5e-7 if launcher == "deepspeed_zero3_offload" else 0
    assert differs(launcher, case, out / case, out / case.removesuffix("-resumed"), "never stopped") <= limit
    assert not (out / case / "checkpoints").exists()


@pytest.mark.slow
@by_launcher()
def test_a_checkpoint_of_an_adapter_has_the_size_of_an_adapter(launcher: str, trained: Callable[..., Path]) -> None:
    """Of its weights and the optimizer's; of the base, which has ten times as many, none."""
    out = trained(launcher)
    adapter = sum(tensor.nbytes for tensor in weights(out / "dpo-lora").values())
    files = json.loads((out / "dpo-lora-resumed.stopped.json").read_text())["files"]
    shares = "pytorch_model_fsdp_0/" if "fsdp" in launcher else "global_step2/"
    held = sum(
        size for name, size in files.items() if shares in name and "optim" not in name and ".metadata" not in name
    )
    whole = sum(tensor.nbytes for tensor in weights(Path(base())).values())
    per_file = 1100 * len(weights(out / "dpo-lora"))  # what torch.save writes beside a tensor
    assert adapter / 2 < held < 2 * adapter + 2 * per_file < whole


@pytest.mark.slow
@by_launcher(launchers=("fsdp2", "deepspeed_zero3"))
def test_a_whole_run_on_ranks(launcher: str, tmp_path: Path) -> None:
    """Reward model, update and evaluation in one process a rank, one after the other."""
    out = launched(launcher, tmp_path, "loop")
    assert (out / "loop" / "round_001" / "manifest.json").exists()
    policy = out / "loop" / "round_001" / "update" / "policy"
    load_policy(policy, Policy(model="tiny-random:0", dtype="float32"))


@pytest.mark.slow
@by_launcher(launchers=("fsdp2", "deepspeed_zero3"))
def test_online_updates_ask_a_reward_model_that_is_shared_out(
    launcher: str, tmp_path: Path, differs: Callable[..., float]
) -> None:
    cases = [f"{update}-lora-rewarded" for update in ("grpo", "rloo", "ppo")]
    out, beside = (launched(name, tmp_path / name, *cases) for name in (launcher, "ddp"))
    for case in cases:
        assert differs(launcher, case, out / case, beside / case, "ddp") < 1e-4
        assert moved(out / case)
        whole, shares = (json.loads((folder / f"{case}.held.json").read_text()) for folder in (beside, out))
        assert whole[0] == whole[1] == shares[0]
        assert shares[1] == pytest.approx(shares[0] / 2, rel=0.01)


@pytest.mark.slow
@by_launcher()
def test_adapters_of_a_bfloat16_policy_are_saved_in_float32(launcher: str, tmp_path: Path) -> None:
    out = launched(launcher, tmp_path, "dpo-lora-bf16", "dpo-full-bf16", precision="bf16")
    adapter = weights(out / "dpo-lora-bf16")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    assert not all(torch.equal(tensor, tensor.bfloat16().float()) for tensor in adapter.values())
    load_policy(out / "dpo-full-bf16" / "policy", Policy(model=base(), dtype="bfloat16"))


@pytest.mark.slow
@by_launcher(launchers=("fsdp2", "deepspeed_zero2", "deepspeed_zero3"))
def test_what_is_sent_to_vllm_leaves_no_trace_in_a_shared_base(launcher: str, tmp_path: Path) -> None:
    case = "grpo-lora-bf16-vllm"
    syncs = json.loads((launched(launcher, tmp_path, case, precision="bf16") / case / "syncs.json").read_text())
    assert len(syncs) > 1
    assert all(sync["kept"] for sync in syncs)
    assert all(sync["sent"] == len(weights(Path(base()))) for sync in syncs)
    assert syncs[-1]["moved"] > 0  # the adapter is in what was sent
