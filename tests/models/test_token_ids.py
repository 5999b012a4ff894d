"""The token ids of an answer: kept with it, and gone with its text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from samples.server import service

from rlhf_loop.feedback.intake.redacting import redact_row
from rlhf_loop.feedback.privacy.redaction import make_redactor
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Completion, Prompt

PROMPT = Prompt(id="p", messages=({"role": "user", "content": "Who?"},), group="p")


def completion(**changes: Any) -> Completion:
    values = {"id": "c", "prompt_id": "p", "text": "It is ann@example.org.", "policy": "base", "round": 0}
    return Completion(**{**values, "token_ids": (3, 1, 2), **changes})


def test_they_are_stored_and_read_back(store: Store) -> None:
    store.add_prompts([PROMPT])
    store.add_completions([completion(), completion(id="d", token_ids=None)])
    assert [c.token_ids for c in store.completions()] == [(3, 1, 2), None]
    assert store.add_completions([completion(token_ids=None), completion(id="d")]) == 0  # the same answers


def test_an_import_that_redacts_a_text_takes_them_out() -> None:
    redactor = make_redactor("patterns")
    row = {"record": "completion", "text": "It is ann@example.org.", "token_ids": [3, 1, 2]}
    redacted, found = redact_row(row, redactor)
    assert found
    assert redacted["token_ids"] is None
    assert redact_row({**row, "text": "It is Ann."}, redactor)[0]["token_ids"] == [3, 1, 2]


@pytest.mark.parametrize("text", ["It is ann@example.org.", "It is she."])
def test_a_chat_keeps_them_where_it_keeps_the_text(text: str, tmp_path: Path) -> None:
    from rlhf_loop.server.chat.answers import Choice, save_answer

    with Store.open(f"sqlite:///{tmp_path / 'store.db'}") as store:
        served = service(store)
        choice = Choice(text=text, finish="stop", tokens=3, values={}, token_ids=(3, 1, 2))
        save_answer(served, "r", PROMPT, None, [choice], policy_id="base", sampling={}, seed=0, round=0)
        (kept,) = store.completions()
    assert kept.token_ids == ((3, 1, 2) if kept.text == text else None)
    assert (kept.text == text) == ("@" not in text)


def test_the_worker_says_them_unless_a_stop_text_cut_the_answer(tiny_policy: Path) -> None:
    from rlhf_loop.generation.worker import Worker
    from rlhf_loop.models.loading import load_policy
    from rlhf_loop.recipe import Policy

    model, tokenizer = load_policy(tiny_policy, Policy(model=str(tiny_policy), dtype="float32"), merged=True)
    said: list[dict[str, Any]] = []
    worker = Worker(model, tokenizer, 4096, lambda message: said.append(json.loads(json.dumps(message))))
    values = {"n": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 12, "seed": 1, "round": 0, "key": "k"}
    messages = [{"role": "user", "content": "Hello"}]

    def answer(id: str, stop: list[str]) -> tuple[str, dict[str, Any]]:
        worker.take({"id": id, "messages": messages, "stop": stop, **values})
        while not worker.idle:
            worker.work()
        mine = [message for message in said if message["id"] == id]
        return "".join(message.get("text", "") for message in mine), next(m for m in mine if "finish" in m)

    text, end = answer("whole", [])
    assert tokenizer.decode(end["token_ids"], skip_special_tokens=True) == text
    assert len(end["token_ids"]) == end["tokens"]
    part, cut = answer("cut", [text[3:5]])
    assert text.startswith(part)
    assert cut["token_ids"] is None
