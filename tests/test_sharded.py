"""Trainings that FSDP2 and DeepSpeed share out over ranks: what they save, and that they go on after a kill.

Ranks are started by `accelerate launch` with the configs of recipes/accelerate; see sharded_ranks.py.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import sharded_ranks
import torch
import yaml
from safetensors.torch import load_file

from rlhf_loop import distributed
from rlhf_loop.errors import UserError
from rlhf_loop.model_files import resolve_model
from rlhf_loop.models import load_policy
from rlhf_loop.recipe import Policy

CONFIGS = Path(__file__).parent.parent / "recipes" / "accelerate"
OFFLINE = [f"{update}-{size}-sgd" for update in ("sft", "dpo", "kto", "reward") for size in ("lora", "full")]
ONLINE = [f"{update}-{size}" for update in ("grpo", "rloo", "ppo") for size in ("lora", "full")]
WITH_ADAM = ["sft-full", "dpo-lora", "kto-full", "reward-lora"]
RESUMED = [f"{case}-resumed" for case in (*WITH_ADAM, "grpo-lora", "ppo-lora", "ppo-full")]
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="DeepSpeed is not installed; on a CPU: DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed",
)
LAUNCHERS = [
    "fsdp2",
    pytest.param("deepspeed_zero2", marks=needs_deepspeed),
    pytest.param("deepspeed_zero3", marks=needs_deepspeed),
]


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


def launched(config: str, out: Path, *cases: str, ranks: int = 2, options: tuple[str, ...] = ()) -> Path:
    """Runs `cases` on `ranks` processes; gives `out`."""
    out.mkdir(parents=True, exist_ok=True)
    launch = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{config}.yaml"),
        "--num_processes", str(ranks), "--num_machines", "1", "--mixed_precision", "no", "--main_process_port", "0",
        *options,
    ]  # fmt: skip
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "SAMPLED_BY_TRL": "1",
        "PYTHONPATH": os.pathsep.join([str(CONFIGS.parent.parent), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    finished = subprocess.run(
        [*isolated(), *launch, sharded_ranks.__file__, base(), str(out), *cases],
        capture_output=True, text=True, timeout=900, env=environment,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-6000:]
    return out


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


# Without DeepSpeed and in seconds


def test_fsdp2_saves_the_adapter_that_one_process_trains(tmp_path: Path) -> None:
    """With the shipped config, where only the main rank reads the weights."""
    sharded_ranks.run("dpo-lora", base(), tmp_path / "one" / "dpo-lora")
    out = launched("fsdp2", tmp_path / "fsdp2", "dpo-lora")
    assert "FSDP" in json.loads((out / "dpo-lora.done.json").read_text())["state"]
    assert difference(out / "dpo-lora", tmp_path / "one" / "dpo-lora") < 5e-6
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
def ddp(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Path:
    return launched("ddp", tmp_path_factory.mktemp("ddp"), *OFFLINE, *WITH_ADAM, *ONLINE)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> dict[str, Path]:
    return {}


def out_of(launcher: str, outputs: dict[str, Path], factory: pytest.TempPathFactory) -> Path:
    if launcher not in outputs:
        outputs[launcher] = factory.mktemp(launcher)
        launched(launcher, outputs[launcher], *OFFLINE, *WITH_ADAM, *ONLINE, *RESUMED)
    return outputs[launcher]


@pytest.mark.slow
@pytest.mark.parametrize("case", OFFLINE)
def test_two_ranks_train_what_one_process_trains(case: str, ddp: Path, tmp_path: Path) -> None:
    sharded_ranks.run(case, base(), tmp_path / case)
    assert difference(ddp / case, tmp_path / case) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("case", [*OFFLINE, *WITH_ADAM, *ONLINE])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_shares_are_put_together_to_what_whole_models_train(
    launcher: str, case: str, ddp: Path, outputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = out_of(launcher, outputs, tmp_path_factory)
    assert ("FSDP" if launcher == "fsdp2" else "DEEPSPEED") in (out / f"{case}.done.json").read_text()
    assert difference(out / case, ddp / case) < (2e-6 if "sgd" in case else 1e-4)
    assert not any("ppo_critic" in name or "lm_head" in name for name in weights(out / case))  # it is tied


@pytest.mark.slow
@pytest.mark.parametrize("case", RESUMED)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_stopped_training_goes_on_to_the_same_weights(
    launcher: str, case: str, outputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = out_of(launcher, outputs, tmp_path_factory)
    files = json.loads((out / f"{case}.files.json").read_text())
    assert "checkpoints/checkpoint-2/COMPLETE" in files
    assert difference(out / case, out / case.removesuffix("-resumed")) == 0
    assert not (out / case / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_checkpoint_of_an_adapter_has_the_size_of_an_adapter(
    launcher: str, outputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of its weights and the optimizer's; of the base, which has ten times as many, none."""
    out = out_of(launcher, outputs, tmp_path_factory)
    adapter = sum(tensor.nbytes for tensor in weights(out / "dpo-lora").values())
    files = json.loads((out / "dpo-lora-resumed.files.json").read_text())
    shares = "pytorch_model_fsdp_0/" if launcher == "fsdp2" else "global_step2/"
    held = sum(
        size for name, size in files.items() if shares in name and "optim" not in name and ".metadata" not in name
    )
    whole = sum(tensor.nbytes for tensor in weights(Path(base())).values())
    per_file = 1100 * len(weights(out / "dpo-lora"))  # what torch.save writes beside a tensor
    assert adapter / 2 < held < 2 * adapter + 2 * per_file < whole


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS[:1] + LAUNCHERS[2:])
def test_a_whole_run_on_ranks(launcher: str, tmp_path: Path) -> None:
    """Reward model, update and evaluation in one process a rank, one after the other."""
    out = launched(launcher, tmp_path, "loop")
    assert (out / "loop" / "round_001" / "manifest.json").exists()
    policy = out / "loop" / "round_001" / "update" / "policy"
    load_policy(policy, Policy(model="tiny-random:0", dtype="float32"))


@pytest.mark.slow
@needs_deepspeed
def test_with_weights_and_optimizer_in_main_memory(ddp: Path, tmp_path: Path) -> None:
    """With DeepSpeed's own Adam, which is compiled when it is first used."""
    out = launched("deepspeed_zero3_offload", tmp_path, "dpo-lora", "dpo-full-sgd", "ppo-full", "dpo-lora-resumed")
    for case in ("dpo-lora", "dpo-full-sgd", "ppo-full"):
        assert difference(out / case, ddp / case) < (2e-6 if "sgd" in case else 1e-4)
    assert difference(out / "dpo-lora", out / "dpo-lora-resumed") == 0


@pytest.mark.slow
def test_hybrid_sharding_on_two_times_two_ranks(ddp: Path, tmp_path: Path) -> None:
    sizes = ("--parallelism_config_dp_replicate_size", "2", "--parallelism_config_dp_shard_size", "2")
    cases = [
        "dpo-lora-sgd",
        "dpo-full-sgd",
        "reward-lora-sgd",
        "dpo-full",
        "dpo-full-resumed",
        "ppo-full",
        "ppo-full-resumed",
    ]
    out = launched("fsdp2_hsdp", tmp_path, *cases, ranks=4, options=sizes)
    for case in ("dpo-lora-sgd", "dpo-full-sgd", "reward-lora-sgd"):
        assert difference(out / case, ddp / case) < 2e-6
    for case in ("dpo-full", "ppo-full"):
        assert difference(out / case, out / f"{case}-resumed") == 0


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_adapters_of_a_bfloat16_policy_are_saved_in_float32(launcher: str, tmp_path: Path) -> None:
    out = launched(launcher, tmp_path, "dpo-lora-bf16", "dpo-full-bf16", options=("--mixed_precision", "bf16"))
    adapter = weights(out / "dpo-lora-bf16")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    assert not all(torch.equal(tensor, tensor.bfloat16().float()) for tensor in adapter.values())
    load_policy(out / "dpo-full-bf16" / "policy", Policy(model=base(), dtype="bfloat16"))
