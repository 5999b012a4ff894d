"""vLLM itself, in float32, against the loop's own engine: where it is installed, on whatever it runs on here.

On a CPU its kernels want heads of 32 or more, so the model is a tiny one with such heads.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_loop import Loop, Recipe
from rlhf_loop.engines import Vllm
from rlhf_loop.files import read_json
from rlhf_loop.generation import generate
from rlhf_loop.generation.sampling import _smallest_kept
from rlhf_loop.generation.transformers_engine import sample_ids
from rlhf_loop.generation.vllm_engine import Writer
from rlhf_loop.machine import visible_accelerators
from rlhf_loop.models.loading import load_policy, merge_policy, save_policy
from rlhf_loop.models.turns import Turns
from rlhf_loop.recipe import Generation, Policy
from rlhf_loop.record_files import read_records
from rlhf_loop.records import Completion, Message, Prompt

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.skipif(visible_accelerators() > 0, reason="on a GPU vLLM computes no adapters in float32"),
]

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "recipes" / "smoke.yaml"
FLOAT32 = Policy(model="none", dtype="float32")
FIRST, SECOND = "policy-001-first", "policy-002-second"


@pytest.fixture(scope="module", autouse=True)
def _little_memory() -> None:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


@pytest.fixture(scope="module")
def base(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with heads of 32 and the tokenizer of `tiny-random:0`."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("wide")
    config = AutoConfig.from_pretrained(tiny_policy)
    config.head_dim = 32
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_policy).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two random adapters on every linear layer, those of the MLPs among them, by the ids of their policies."""
    from peft import LoraConfig, get_peft_model

    folders = {}
    for seed, (id, rank) in enumerate({FIRST: 4, SECOND: 12}.items()):
        torch.manual_seed(seed)
        model, tokenizer = load_policy(base, FLOAT32)
        lora = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", init_lora_weights=False)
        folders[id] = tmp_path_factory.mktemp("adapters") / id
        save_policy(get_peft_model(model, lora), tokenizer, folders[id], str(base))
        assert any("down_proj" in name for name in read_json(folders[id] / "adapter_config.json")["target_modules"])
    return folders


@pytest.fixture(scope="module")
def prompts(base: Path) -> list[list[int]]:
    """Token ids of 16 conversations of different lengths."""
    _, tokenizer = load_policy(base, FLOAT32)
    asked = [[Message(role="user", content=f"Name colour {i}, " + "and why, " * (5 * (i % 4)))] for i in range(16)]
    return [Turns(tokenizer).prompt(one) for one in asked]


@pytest.fixture(scope="module")
def ends(base: Path) -> list[int]:
    model, tokenizer = load_policy(base, FLOAT32)
    return sorted(Turns(tokenizer, model).ends)


GREEDY = {"temperature": 0.0, "max_tokens": 24}
DRAWN = {"temperature": 1.0, "max_tokens": 24}
CUT = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "max_tokens": 12}


@pytest.fixture(scope="module")
def answered(
    base: Path,
    adapters: dict[str, Path],
    prompts: list[list[int]],
    ends: list[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What one vLLM said to requests for the base and for two policies, one after the other and back."""
    folder = tmp_path_factory.mktemp("answers")
    writer = Writer(adapters[SECOND], SECOND, FLOAT32, Vllm(max_model_len=512))
    names = {
        id: {"name": id, "number": 7 + number, "path": str(path)} for number, (id, path) in enumerate(adapters.items())
    }
    one, many = [[0]] * len(prompts), [list(range(100 * i, 100 * i + 16)) for i in range(len(prompts))]

    def asked(sampling: dict[str, Any], seeds: list[list[int]], of: list[list[int]] = prompts, id: str = "") -> Any:
        request = {"prompts": of, "seeds": seeds, "sampling": {**sampling, "stop_token_ids": ends}}
        return request | ({"adapter": names[id]} if id else {})

    requests = {
        "greedy": asked(GREEDY, one),
        f"greedy {FIRST}": asked(GREEDY, one, id=FIRST),
        f"greedy {SECOND}": asked(GREEDY, one, id=SECOND),
        f"greedy {FIRST} again": asked(GREEDY, one, id=FIRST),
        "greedy again": asked(GREEDY, one),
        "drawn": asked(DRAWN, many),  # 256 rows
        "drawn again": asked(DRAWN, many),
        "drawn alone": asked(DRAWN, [many[5][3:4]], prompts[5:6]),
        "cut": asked(CUT, many),
        "log_probs": {"log_probs": prompts, "max_tokens": 32},
        f"log_probs {FIRST}": {"log_probs": prompts, "max_tokens": 32, "adapter": names[FIRST]},
        f"log_probs {SECOND}": {"log_probs": prompts, "max_tokens": 32, "adapter": names[SECOND]},
    }
    arguments, out = folder / "arguments.json", folder / "answers.json"
    arguments.write_text(json.dumps({"start": writer._started_with, "requests": list(requests.values())}))
    script = ROOT / "tests" / "samples" / "vllm_answers.py"
    environment = writer._environment()
    environment["PYTHONPATH"] = f"{ROOT}:{environment.get('PYTHONPATH', '')}"
    subprocess.run([sys.executable, script, arguments, out], env=environment, check=True, timeout=900)
    said = json.loads(out.read_text())
    return {**dict(zip(requests, said["answers"], strict=True)), "interface": said}


def own(policy: Path, prompts: list[list[int]], **sampling: Any) -> list[list[list[int]]]:
    model, tokenizer = load_policy(policy, FLOAT32, merged=True)
    settings = Generation(samples_per_prompt=1, max_new_tokens=24, **sampling)
    keys = [(0, 0, str(number)) for number in range(len(prompts))]
    return sample_ids(model, tokenizer, prompts, keys, [1] * len(prompts), settings)


def log_probs(policy: Path, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Of each token after a prompt, all of the vocabulary: (T, V)."""
    model, _ = load_policy(policy, FLOAT32)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1)


@pytest.mark.parametrize("id", ["", FIRST, SECOND])
def test_log_probabilities_are_those_of_transformers(
    id: str,
    answered: dict[str, Any],
    base: Path,
    adapters: dict[str, Path],
    prompts: list[list[int]],
    record_property: Callable[[str, object], None],
) -> None:
    policy = adapters.get(id, base)
    differences = []
    for prompt, said in zip(prompts, answered[f"log_probs {id}".strip()], strict=True):
        tokens, values = [token for token, _ in said], torch.tensor([value for _, value in said])
        expected = log_probs(policy, prompt, tokens).gather(1, torch.tensor(tokens)[:, None])[:, 0]
        differences.append((expected - values).abs())
    worst = float(torch.cat(differences).max())
    record_property("largest difference", worst)
    assert worst <= 1e-4


@pytest.mark.parametrize("id", ["", FIRST, SECOND])
def test_greedy_answers_are_those_of_the_own_engine(
    id: str, answered: dict[str, Any], base: Path, adapters: dict[str, Path], prompts: list[list[int]]
) -> None:
    assert answered[f"greedy {id}".strip()] == own(adapters.get(id, base), prompts, temperature=0.0)


def test_policies_of_one_process_do_not_mix(answered: dict[str, Any]) -> None:
    names = ("greedy", f"greedy {FIRST}", f"greedy {SECOND}")
    assert len({json.dumps(answered[name]) for name in names}) == 3
    assert answered[f"greedy {FIRST} again"] == answered[f"greedy {FIRST}"]
    assert answered["greedy again"] == answered["greedy"]


def test_a_seed_gives_the_same_answer_whatever_is_written_beside_it(answered: dict[str, Any]) -> None:
    assert answered["drawn again"] == answered["drawn"]
    assert answered["drawn alone"] == [answered["drawn"][5][3:4]]
    assert len({tuple(answer) for samples in answered["drawn"] for answer in samples}) == 256


def test_an_answer_holds_the_token_that_ended_it_and_nothing_after_it(
    answered: dict[str, Any], ends: list[int]
) -> None:
    answers = [answer for samples in answered["drawn"] for answer in samples]
    ended = [answer for answer in answers if answer[-1] in ends]
    assert ended
    assert all(len(answer) == 24 for answer in answers if answer not in ended)
    assert not any(token in ends for answer in answers for token in answer[:-1])


def test_top_k_and_top_p_leave_what_the_own_engine_leaves(
    answered: dict[str, Any], base: Path, prompts: list[list[int]]
) -> None:
    for prompt, samples in zip(prompts[:4], answered["cut"], strict=False):
        for answer in samples[:4]:
            weights = (log_probs(base, prompt, answer) / CUT["temperature"]).exp()  # (T, V)
            smallest = _smallest_kept(weights, CUT["top_p"], CUT["top_k"])
            drawn = weights.gather(1, torch.tensor(answer)[:, None])
            assert (drawn >= smallest * (1 - 1e-4)).all()


def test_the_stand_in_has_the_interface_of_vllm(answered: dict[str, Any]) -> None:
    fake = str(ROOT / "tests" / "samples" / "fake_vllm")
    code = f"import sys; sys.path.insert(0, {fake!r}); import inspect, json, vllm\n"
    code += "print(json.dumps([list(inspect.signature(k).parameters) for k in (vllm.LLM, vllm.SamplingParams)]))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    llm, sampling = json.loads(told.stdout)
    assert set(llm) <= set(answered["interface"]["llm"])
    assert set(sampling) <= set(answered["interface"]["sampling"])
    assert set(inspect.signature(Vllm).parameters) <= set(answered["interface"]["llm"])


def test_a_policy_that_was_merged_or_trained_whole_answers_as_its_adapter_does(
    answered: dict[str, Any], adapters: dict[str, Path], tmp_path: Path
) -> None:
    merge_policy(adapters[SECOND], tmp_path / "merged", FLOAT32)
    asked = [Message(role="user", content=f"Name colour {i}, " + "and why, " * (5 * (i % 4))) for i in range(16)]
    found = {}
    for policy in (adapters[SECOND], tmp_path / "merged"):
        found[policy] = generate(
            policy,
            [Prompt(id=f"p{i}", group="g", messages=(one,)) for i, one in enumerate(asked)],
            Generation(engine="vllm", samples_per_prompt=1, max_new_tokens=24, temperature=0.0),
            policy_settings=FLOAT32,
            policy_id=SECOND,
            round=0,
            seed=0,
        )
    for completions in found.values():
        assert [[list(one.token_ids or ())] for one in completions] == answered[f"greedy {SECOND}"]


def test_a_whole_round_is_written_evaluated_and_learned_from(base: Path, tmp_path: Path) -> None:
    changes = [f"policy.model={base}", "generation.engine=vllm", "rounds=1", "generation.vllm.max_model_len=512"]
    run = tmp_path / "run"
    Loop(Recipe.load(SMOKE, changes), run_dir=run).run()
    candidate = read_json(run / "round_001" / "manifest.json")["figures"]["evaluated"]
    answers = read_records(run / "round_001" / "evaluate" / "answers.parquet", Completion)
    assert {one.policy for one in answers} == {candidate}
    evaluation = read_json(run / "round_001" / "evaluate" / "evaluation.json")
    assert evaluation["kl"] is not None
