"""The engine that lets vLLM write: what it is told, what becomes of its answers, and how it fails.

A stand-in with vLLM's interface answers here; `test_vllm_real.py` asks vLLM itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlhf_loop import Loop, Recipe
from rlhf_loop.engines import Vllm
from rlhf_loop.errors import UserError
from rlhf_loop.files import read_json
from rlhf_loop.files.damage import check_step
from rlhf_loop.generation import generate
from rlhf_loop.generation.vllm_engine import Writer
from rlhf_loop.kept_recipe import RecipeChanged
from rlhf_loop.models.loading import load_policy, save_policy
from rlhf_loop.models.turns import Turns
from rlhf_loop.recipe import Generation, Policy, parse
from rlhf_loop.record_files import read_records
from rlhf_loop.records import Completion, Message, Prompt

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "recipes" / "smoke.yaml"
FAKE = ROOT / "tests" / "samples" / "fake_vllm"
PROMPTS = [
    Prompt(id=f"p{i}", group=f"p{i}", messages=(Message(role="user", content=f"Name colour {i}."),)) for i in range(3)
]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """Puts the stand-in in vLLM's place; gives what it was told, call by call."""
    file = tmp_path / "vllm.log"
    monkeypatch.setenv("PYTHONPATH", f"{FAKE}:{ROOT}")
    monkeypatch.syspath_prepend(FAKE)
    monkeypatch.setenv("FAKE_VLLM_LOG", str(file))
    return lambda: [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def written(
    policy: Any, prompts: Sequence[Prompt] = PROMPTS, round: int = 0, id: str = "policy-1", **settings: Any
) -> list[Completion]:
    return generate(
        policy,
        prompts,
        Generation(**{"engine": "vllm", "samples_per_prompt": 2, "max_new_tokens": 12, **settings}),
        policy_settings=Policy(model="none", dtype="float32", system_prompt="Be brief."),
        policy_id=id,
        round=round,
        seed=1,
    )


def adapter(base: Path, folder: Path, rank: int = 12) -> Path:
    """A random adapter on every linear layer, as an update leaves one."""
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load_policy(base, Policy(model=str(base), dtype="float32"))
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", init_lora_weights=False)
    save_policy(get_peft_model(model, lora), tokenizer, folder, str(base))
    return folder


def test_vllm_is_told_the_tokens_of_the_conversation_the_settings_and_a_seed_for_each_sample(
    log: Callable[[], list[dict[str, Any]]], tiny_policy: Path
) -> None:
    written(tiny_policy, temperature=0.8, top_p=0.9, top_k=7, vllm={"max_model_len": 256})
    start, asked = log()
    given = start["start"]
    assert (given["model"], given["dtype"], given["max_model_len"]) == (str(tiny_policy), "float32", 256)
    assert given["enable_prefix_caching"]
    assert not given["enable_lora"]
    _, tokenizer = load_policy(tiny_policy, Policy(model=str(tiny_policy)))
    turns = Turns(tokenizer)
    read = [turns.prompt([Message(role="system", content="Be brief."), *prompt.messages]) for prompt in PROMPTS]
    assert [prompt["prompt_token_ids"] for prompt in asked["prompts"]] == [ids for ids in read for _ in range(2)]
    seeds = [sampling.pop("seed") for sampling in asked["sampling"]]
    assert len(set(seeds)) == 6
    assert all(
        sampling
        == {
            "temperature": 0.8,
            "top_p": 0.9,
            "top_k": 7,
            "max_tokens": 12,
            "stop_token_ids": sorted(turns.ends),
            "ignore_eos": True,
            "detokenize": False,
        }
        for sampling in asked["sampling"]
    )
    assert asked["adapter"] is None


def test_answers_are_records_like_those_of_the_own_engine(
    log: Callable[[], list[dict[str, Any]]], tiny_policy: Path
) -> None:
    seen: list[tuple[int, int]] = []
    settings = Generation(engine="vllm", samples_per_prompt=4, max_new_tokens=12)
    model = Policy(model="none", dtype="float32")
    found = generate(
        tiny_policy, PROMPTS, settings, policy_settings=model, policy_id="policy-1", round=3, seed=1,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert [(one.prompt_id, one.sample, one.policy, one.round) for one in found] == [
        (f"p{i}", sample, "policy-1", 3) for i in range(3) for sample in range(4)
    ]
    turns = Turns(load_policy(tiny_policy, model)[1])
    for one in found:
        assert one.token_ids is not None
        assert (one.text, one.tokens) == (turns.text(one.token_ids), len(one.token_ids))
        assert one.finish_reason == ("stop" if one.token_ids[-1] in turns.ends else "length")
    assert {one.finish_reason for one in found} == {"stop", "length"}
    assert seen[-1] == (12, 12)


def test_an_answer_depends_on_seed_round_prompt_and_sample_and_not_on_its_company(
    log: Callable[[], list[dict[str, Any]]], tiny_policy: Path
) -> None:
    once = written(tiny_policy)
    alone = written(tiny_policy, PROMPTS[1:2])
    later = written(tiny_policy, round=1)
    assert [one.text for one in alone] == [one.text for one in once if one.prompt_id == "p1"]
    assert {one.token_ids for one in later}.isdisjoint(one.token_ids for one in once)


def test_an_adapter_goes_beside_its_base_under_the_policys_name(
    log: Callable[[], list[dict[str, Any]]], tiny_policy: Path, tmp_path: Path
) -> None:
    folder = adapter(tiny_policy, tmp_path / "adapter")
    first = written(folder, id="policy-001-a")
    second = written(folder, id="policy-002-b")
    start, asked, _, again = log()
    given = start["start"]
    assert (given["model"], given["enable_lora"], given["max_lora_rank"]) == (str(tiny_policy), True, 16)
    assert (asked["adapter"], again["adapter"]) == ("policy-001-a", "policy-002-b")
    assert [one.token_ids for one in first] != [one.token_ids for one in second]
    writers = [
        Writer(folder, id, Policy(model="none", dtype="float32"), Vllm()) for id in ("policy-001-a", "policy-002-b")
    ]
    assert len({writer._adapter["number"] for writer in writers}) == 2


def test_a_rank_beyond_those_of_vllm_is_refused(
    log: Callable[[], list[dict[str, Any]]], tiny_policy: Path, tmp_path: Path
) -> None:
    folder = adapter(tiny_policy, tmp_path / "adapter", rank=4)
    config = read_json(folder / "adapter_config.json")
    (folder / "adapter_config.json").write_text(json.dumps({**config, "r": 600}))
    with pytest.raises(UserError, match="has rank 600, and vLLM takes adapters up to 512; merge it"):
        written(folder)


def test_a_process_is_no_rank_and_keeps_what_the_user_set(
    log: Callable[[], list[dict[str, Any]]], tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("MASTER_PORT", "1")
    written(tiny_policy)
    environment = log()[0]["environment"]
    assert environment["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert environment["VLLM_NO_USAGE_STATS"] == "1"
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert {"ACCELERATE_USE_FSDP", "MASTER_PORT", "RANK"}.isdisjoint(environment)


def test_on_a_cpu_nothing_is_compiled_and_no_prompt_read_in_parts_on_a_gpu_memory_is_bounded(
    log: Callable[[], list[dict[str, Any]]], tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    written(tiny_policy)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c")
    monkeypatch.setenv("LOCAL_RANK", "2")
    written(tiny_policy, vllm={"gpu_memory_utilization": 0.5})
    cpu, _, gpu, _ = log()
    assert (cpu["start"]["enforce_eager"], cpu["start"]["enable_chunked_prefill"]) == (True, False)
    assert cpu["environment"]["TORCHDYNAMO_DISABLE"] == "1"
    assert (gpu["start"]["enforce_eager"], gpu["start"]["enable_chunked_prefill"]) == (False, True)
    assert gpu["start"]["gpu_memory_utilization"] == 0.5
    assert "TORCHDYNAMO_DISABLE" not in gpu["environment"]
    assert gpu["environment"]["CUDA_VISIBLE_DEVICES"] == "GPU-c"


def test_its_process_ends_when_it_is_closed_and_another_begins_when_it_is_asked_again(
    log: Callable[[], list[dict[str, Any]]], tiny_policy: Path
) -> None:
    writer = Writer(tiny_policy, "policy-1", Policy(model="none", dtype="float32"), Vllm())
    sampling = {"max_tokens": 3, "stop_token_ids": [2]}
    first = writer.write([[5, 6]], [[1]], sampling)
    assert writer.write([[5, 6]], [[1]], sampling) == first
    writer.close()
    assert writer.write([[5, 6]], [[1]], sampling) == first
    writer.close()
    pids = [told["pid"] for told in log() if "start" in told]
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_request_is_not_waited_for_when_its_reader_is_gone(
    log: Callable[[], list[dict[str, Any]]], tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM_FAILS", "slow")
    writer = Writer(tiny_policy, "policy-1", Policy(model="none", dtype="float32"), Vllm())
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            writer.write([[5, 6]], [[1]], {"max_tokens": 3, "stop_token_ids": [2]})
        except BaseException as error:
            errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    while not any("prompts" in told for told in log()):
        time.sleep(0.05)
    process = psutil.Process(log()[0]["pid"])
    assert writer._process is not None
    assert writer._process.stdin is not None
    writer._process.stdin.close()  # as when who started it was killed
    process.wait(timeout=20)
    asking.join(timeout=20)
    assert [type(error) for error in errors] == [UserError]


@pytest.mark.parametrize(
    ("fails", "words"),
    [
        ("start", r"vLLM failed with .*: ValueError: Free memory on device .* are set in `generation.vllm`"),
        ("refusing", r"ValueError: The decoder prompt \(length \d+\) is longer"),
        ("dying", r"its process ended with exit code 9. Its last lines:"),
    ],
)
def test_a_failure_of_vllm_is_told_with_its_words_and_the_remedy(
    fails: str, words: str, log: Callable[[], list[dict[str, Any]]], tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM_FAILS", fails)
    with pytest.raises(UserError, match=f"(?s){words}.*`generation.engine: transformers` writes without it"):
        written(tiny_policy)


def test_a_damaged_adapter_is_named_before_vllms_words(
    log: Callable[[], list[dict[str, Any]]], tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlhf_loop.files.step_folders import step_folder

    monkeypatch.setenv("FAKE_VLLM_FAILS", "start")
    with step_folder(tmp_path / "round_001" / "update", "key", {}) as partial:
        adapter(tiny_policy, partial / "policy")
    folder = tmp_path / "round_001" / "update" / "policy"
    check_step(folder)
    weights = bytearray((folder / "adapter_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "adapter_model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors"):
        written(folder)


def test_a_prompt_that_does_not_fit_is_named_with_the_limit_that_it_breaks(
    log: Callable[[], list[dict[str, Any]]], tiny_policy: Path
) -> None:
    long = Prompt(id="long", group="long", messages=(Message(role="user", content="so " * 3000),))
    with pytest.raises(UserError, match=r"prompt long has \d+ tokens; .* does not fit into the model's 2048"):
        written(tiny_policy, [long])
    with pytest.raises(UserError, match=r"prompt p0 has .* into the 20 of generation.vllm.max_model_len"):
        written(tiny_policy, vllm={"max_model_len": 20})
    assert log() == []


def test_a_whole_run_is_written_and_evaluated_by_vllm_whose_settings_may_change(
    log: Callable[[], list[dict[str, Any]]], tmp_path: Path, model_cache: Path
) -> None:
    def recipe(*changes: str) -> Recipe:
        return Recipe.load(SMOKE, ["generation.engine=vllm", "rounds=1", "critiques={checks: {}}", *changes])

    run = tmp_path / "run"
    Loop(recipe(), run_dir=run).run()
    told = log()
    names = {call["adapter"] for call in told if "prompts" in call}
    candidate = read_json(run / "round_001" / "manifest.json")["figures"]["evaluated"]
    assert names == {None, candidate}  # the base, and the adapter under its policy's name
    answers = read_records(run / "round_001" / "evaluate" / "answers.parquet", Completion)
    assert {one.policy for one in answers} == {candidate}
    asked = sum(len(call["prompts"]) for call in told if call.get("adapter") == candidate)
    assert asked >= len(answers)
    assert read_json(run / "round_001" / "evaluate" / "evaluation.json")["kl"] is not None
    assert not any(psutil.pid_exists(call["pid"]) for call in told if "start" in call)

    Loop(recipe("generation.vllm.gpu_memory_utilization=0.5"), run_dir=run).run()
    assert log() == told  # nothing is made again
    with pytest.raises(RecipeChanged, match=r"generation\.engine: "):
        Loop(recipe("generation.engine=transformers"), run_dir=run).run()


def test_best_of_n_gives_its_memory_back_before_the_reward_model_scores(
    log: Callable[[], list[dict[str, Any]]], tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlhf_loop.stages import generate as stage

    there: list[list[bool]] = []
    load = stage.load

    def loading(*arguments: Any) -> Any:
        there.append([psutil.pid_exists(call["pid"]) for call in log() if "start" in call])
        return load(*arguments)

    monkeypatch.setattr(stage, "load", loading)
    best = "generation={engine: vllm, strategy: best_of_n, best_of_n: {n: 4}, samples_per_prompt: 2, max_new_tokens: 8}"
    Loop(Recipe.load(SMOKE, [best, "rounds=1"]), run_dir=tmp_path / "run").run()
    assert there
    assert not any(any(one) for one in there)


def test_a_recipe_for_vllm_where_it_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "vllm" else object())
    with pytest.raises(UserError, match=r"vLLM is not installed: `pip install 'rlhf-loop\[vllm\]'`"):
        Recipe.load(SMOKE, ["generation.engine=vllm"])
    Recipe.load(SMOKE, ["generation.engine=vllm"], to_run=False)


def test_a_process_without_vllm_names_the_extra(tiny_policy: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "vllm.py").write_text("raise ImportError('No module named vllm')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    with pytest.raises(UserError, match=r"No module named vllm\); `pip install 'rlhf-loop\[vllm\]'`"):
        written(tiny_policy)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"policy": {"model": "m", "dtype": "float32"}}, "set `dtype: bfloat16`"),
        ({"policy": {"model": "m", "dtype": "float32"}, "update": {"lora": None}}, None),
        ({"policy": {"model": "m", "dtype": "bfloat16"}}, None),
        ({"generation": {"engine": "vllm", "temperature": 0.001}}, "generation.temperature: vLLM takes none between"),
    ],
)
def test_what_vllm_does_not_take_is_refused_on_a_gpu(
    changes: dict[str, Any], words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    recipe: dict[str, Any] = {
        "name": "x",
        "policy": {"model": "m", "dtype": "bfloat16"},
        "prompts": {"train": ["a"], "test": ["b"]},
        "feedback": {"annotator": {"kind": "simulated"}},
        "reward": {"model": "r"},
        "generation": {"engine": "vllm"},
        "evaluation": {"judge": {"kind": "rule"}},
    }
    if words is None:
        parse({**recipe, **changes})
        return
    with pytest.raises(UserError) as caught:
        parse({**recipe, **changes})
    assert words in str(caught.value)


def test_recipes_of_other_engines_keep_their_keys() -> None:
    assert "vllm" not in Generation().model_dump()
    assert Generation(engine="vllm").model_dump()["vllm"] == Vllm().model_dump()


RANK = """
import json, sys
from pathlib import Path
from rlhf_loop.models import distributed
from rlhf_loop.recipe import Recipe
from rlhf_loop.records import Message, Prompt
from rlhf_loop.stages.arguments import StageArguments
from rlhf_loop.stages.generate import sample

out, policy, smoke = sys.argv[1:]
engine = "generation={engine: vllm, samples_per_prompt: 2, vllm: {tensor_parallel_size: 2}}"
recipe = Recipe.load(smoke, [engine, "update.lora=null"])
prompts = [Prompt(id=f"p{i}", group="g", messages=(Message(role="user", content=f"Name {i}."),)) for i in range(5)]
arguments = StageArguments(
    stage="generate", title="t", round=0, key="k", output=out, recipe={}, values={"policy": policy, "policy_id": "p"}
)
distributed.start()
said = sample(recipe, recipe.generation, prompts, arguments, lambda *told: None)
Path(out, f"rank{distributed.rank()}.json").write_text(json.dumps([[c.prompt_id, c.sample, c.token_ids] for c in said]))
"""


@pytest.mark.slow
def test_ranks_whose_gpus_hold_one_model_together_start_it_once_and_all_have_its_answers(
    log: Callable[[], list[dict[str, Any]]], tmp_path: Path, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    arguments = [str(script), str(tmp_path), str(tiny_policy), str(SMOKE)]
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", *arguments],
        check=True,
        timeout=300,
    )
    together = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert together[0] == together[1]
    assert [(prompt, sample) for prompt, sample, _ in together[0]] == [(f"p{i}", n) for i in range(5) for n in range(2)]
    start, asked = log()
    assert (start["start"]["tensor_parallel_size"], len(asked["prompts"])) == (2, 10)
    assert start["environment"]["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert {"RANK", "WORLD_SIZE", "MASTER_ADDR", "LOCAL_RANK"}.isdisjoint(start["environment"])
