"""Candidates that a model behind a server writes: what it is asked, whose they are, and who learns from them."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from samples.endpoint import Fault, completion, running

from rlhf_loop import Loop, Recipe
from rlhf_loop.endpoints.client import Endpoints
from rlhf_loop.endpoints.settings import EndpointSettings
from rlhf_loop.errors import UserError
from rlhf_loop.files import read_json
from rlhf_loop.generation import generate
from rlhf_loop.models.files import resolve_model
from rlhf_loop.recipe import Generation, Policy, parse
from rlhf_loop.record_files import read_records
from rlhf_loop.records import Completion, Demonstration, Message, Prompt

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "recipes" / "smoke.yaml"
PROMPTS = [
    Prompt(id=f"p{i}", group=f"p{i}", messages=(Message(role="user", content=f"Name colour {i}."),)) for i in range(3)
]


def written(url: str, prompts: Sequence[Prompt] = PROMPTS, round: int = 0, **settings: Any) -> list[Completion]:
    client = Endpoints({"big": EndpointSettings(base_url=url, model="writer-70b", max_retries=0)})["big"]
    return generate(
        (client, None),
        prompts,
        Generation(engine="endpoint", endpoint="big", samples_per_prompt=2, **settings),
        policy_settings=Policy(model="none", system_prompt="Be brief."),
        policy_id="endpoint:big:writer-70b",
        round=round,
        seed=1,
    )


def answers(request: dict[str, Any]) -> str:
    return f"{request['messages'][-1]['content']} Blue, {request['seed']}."


def test_what_is_asked_is_the_conversation_and_the_settings_of_generation() -> None:
    with running(answers) as (server, url):
        found = written(url, PROMPTS[:1], temperature=0.8, top_p=0.9, max_new_tokens=33)
        again = written(url, PROMPTS[:1], round=1)
    asked = server.asked[0]
    assert asked["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name colour 0."},
    ]
    assert (asked["temperature"], asked["top_p"], asked["max_tokens"], "top_k" in asked) == (0.8, 0.9, 33, False)
    assert len({request["seed"] for request in server.asked}) == 4  # of each sample and round
    assert [one.sample for one in found] == [0, 1]
    assert {one.text for one in found}.isdisjoint(one.text for one in again)


def test_the_answers_are_the_endpoints_and_have_no_tokens_of_the_policy() -> None:
    with running(lambda request: completion("Blue.", usage=(5, 9), finish_reason="length")) as (_, url):
        found = written(url)
    assert [(one.prompt_id, one.sample) for one in found] == [(f"p{i}", n) for i in range(3) for n in range(2)]
    for one in found:
        assert (one.policy, one.token_ids, one.tokens, one.finish_reason) == (
            "endpoint:big:writer-70b",
            None,
            9,
            "length",
        )
        assert not one.by_policy


def test_thoughts_are_no_part_of_an_answer_and_what_is_missing_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    def say(request: dict[str, Any]) -> Any:
        if "colour 1" in str(request):
            return "<think>never ends"
        return Fault(500) if "colour 2" in str(request) else "<think>Blue? </think>\n\nBlue."

    with running(say) as (_, url):
        with caplog.at_level(logging.WARNING, "rlhf_loop"):
            found = written(url)
        assert [(one.prompt_id, one.text) for one in found] == [("p0", "Blue.")] * 2
        with pytest.raises(UserError, match=r"endpoints.big: none of 2 answers was written \(2: the server failed"):
            written(url, PROMPTS[2:])
    assert "endpoint big did not write 4 of 6 answers" in caplog.text
    assert "2: the server failed (HTTP 500)" in caplog.text


def recipe_with(url: str, *overrides: str) -> Recipe:
    endpoints = json.dumps({"big": {"base_url": url, "model": "writer-70b"}})
    engine = "generation={engine: endpoint, endpoint: big, samples_per_prompt: 3, max_new_tokens: 16}"
    return Recipe.load(SMOKE, [f"endpoints={endpoints}", engine, "rounds=1", *overrides])


def test_an_own_model_learns_from_what_an_endpoint_wrote_and_is_evaluated_itself(
    tmp_path: Path, model_cache: Path
) -> None:
    run = tmp_path / "run"
    with running(answers) as (server, url):
        Loop(recipe_with(url, "update.algorithm=rejection_sampling"), run_dir=run).run()
        asked = len(server.asked)
        Loop(recipe_with(url, "update.algorithm=rejection_sampling"), run_dir=run).run()
    assert asked == len(server.asked) == 2 * 8 * 3
    candidates = read_records(run / "round_000" / "generate" / "completions.parquet", Completion)
    assert {one.policy for one in candidates} == {"endpoint:big:writer-70b"}
    rows = read_records(run / "round_001" / "assemble" / "training_data.parquet", Demonstration)
    assert rows
    assert all(row.origin == "best_of_n" and row.token_ids is None and not row.by_policy for row in rows)
    evaluated = read_records(run / "round_001" / "evaluate" / "answers.parquet", Completion)
    assert all(one.policy.startswith("policy-001-") and one.token_ids for one in evaluated)
    assert read_json(run / "round_001" / "manifest.json")["figures"]["generated_by"] == "endpoint:big:writer-70b"


def test_a_policy_behind_a_server_answers_and_is_judged_without_being_trained(tmp_path: Path) -> None:
    run = tmp_path / "run"
    reward = f"reward.model={ROOT / 'reward_models' / 'brief_and_complete'}"
    with running(answers) as (_, url):
        Loop(recipe_with(url, "policy={model: 'endpoint:big'}", "update.algorithm=none", reward), run_dir=run).run()
    evaluation = read_json(run / "round_000" / "evaluate" / "evaluation.json")
    assert (evaluation["kl"], evaluation["perplexity"]) == (None, None)
    assert evaluation["judge"]["candidate"] > 0
    judged = read_records(run / "round_000" / "evaluate" / "answers.parquet", Completion)
    assert {one.policy for one in judged} == {"endpoint:big:writer-70b"}
    assert (run / "round_001" / "ask" / "questions.parquet").exists()
    assert "endpoint:big" in (run / "report.html").read_text()
    with pytest.raises(UserError, match="answers behind a server and cannot be loaded here"):
        resolve_model("endpoint:big")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            [f"reward.model={ROOT / 'reward_models' / 'frozen_head'}"],
            "reward: frozen_head stands on the policy's weights",
        ),
        (["reward=null", "pairing.sources=[feedback]", "generation.embed={}"], "set `generation.embed.model`"),
        (["reward=null", "pairing.sources=[feedback]", "endpoints.big.api_key_env=NO_KEY"], "NO_KEY is not set"),
    ],
)
def test_what_an_endpoint_as_the_policy_lacks_is_told_before_anything_is_computed(
    changes: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    policy = ["policy={model: 'endpoint:big'}", "update.algorithm=none"]
    with pytest.raises(UserError, match=words):
        Loop(recipe_with("http://localhost/v1", *policy, *changes), run_dir=tmp_path / "run").run()
    assert not (tmp_path / "run" / "round_000").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"generation": {"endpoint": "big"}}, "give both or neither"),
        ({"generation": {"engine": "endpoint", "endpoint": "bog"}}, "generation.endpoint: there is no endpoint `bog`"),
        (
            {"generation": {"engine": "endpoint", "endpoint": "big"}, "update": {"algorithm": "grpo"}},
            "grpo learns from what the policy itself writes",
        ),
        ({"generation": {"engine": "endpoint", "endpoint": "big", "strategy": "best_of_n"}}, "set `strategy: fresh`"),
        ({"policy": {"model": "endpoint:big"}, "update": {"algorithm": "none"}}, "engine: endpoint, endpoint: big"),
        ({"policy": {"model": "endpoint:bog"}, "update": {"algorithm": "none"}}, "policy.endpoint: there is no"),
    ],
)
def test_what_an_endpoint_cannot_write_for_is_refused(changes: dict[str, Any], words: str) -> None:
    recipe: dict[str, Any] = {
        "name": "x",
        "policy": {"model": "m"},
        "endpoints": {"big": {"base_url": "http://localhost/v1", "model": "m"}},
        "prompts": {"train": ["a"], "test": ["b"]},
        "feedback": {"annotator": {"kind": "simulated"}},
        "reward": {"model": "r"},
        "evaluation": {"judge": {"kind": "rule"}},
    }
    with pytest.raises(UserError) as caught:
        parse({**recipe, **changes})
    assert words in str(caught.value)


def test_recipes_without_a_writer_keep_their_keys() -> None:
    assert "endpoint" not in Generation().model_dump()
