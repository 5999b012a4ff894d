"""What the store keeps of a chat: the conversation as a prompt, each choice as a completion, and whose they are.

Texts are redacted before they are stored (`annotation.redact`); the answer that the user sees is not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rlhf_loop.feedback.privacy.deletion import remember
from rlhf_loop.feedback.store.quotas import note_used
from rlhf_loop.records import Completion, Message, Prompt, Split, stable_id
from rlhf_loop.server.service import Service

SOURCE = "chat"
"""What prompts from here have as `source`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """What an application sent."""

    messages: tuple[Message, ...]
    user: str | None  # the application's name for whom it talks to
    name: str | None  # of the conversation, in the application; None: what begins alike is one
    tags: tuple[str, ...] = ()
    beyond: dict[str, Any] = field(default_factory=dict)
    """What the model reads beside the texts, such as tools. The policy cannot be trained on what it would read then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One answer, whole."""

    text: str  # as it is stored
    finish: Literal["stop", "length"]
    tokens: int
    values: dict[str, Any]  # as OpenAI's API has it: `message`, `finish_reason`, `logprobs`, and what else was said
    token_ids: tuple[int, ...] | None = None


def choice_id(response_id: str, choice: int) -> str:
    """The id of a choice's completion: the first one has the response's own."""
    return response_id if choice == 0 else f"{response_id}-{choice}"


def prompt_of(service: Service, said: Conversation) -> tuple[Prompt, str | None]:
    """The prompt that a conversation is, and the key of its user.

    The same conversation up to the same turn, of the same user, is the same prompt: its answers can be compared. A
    conversation is one group, which is never split. One with more than text in it is kept, but untrained.
    """
    key = service.user_key(said.user) if said.user else None
    messages = tuple(Message(role=m["role"], content=service.redact(m["content"])) for m in said.messages)
    begins = next((i for i, m in enumerate(messages) if m["role"] == "user"), 0)
    about: Any = said.name if said.name is not None else messages[: begins + 1]
    group = stable_id(SOURCE, key, about)
    tags = tuple(service.redact(tag) for tag in said.tags)
    id = stable_id(SOURCE, group, messages, *([said.beyond] if said.beyond else []))
    split: Split = "untrained" if said.beyond else "train"
    return Prompt(id=id, messages=messages, group=group, split=split, tags=tags, source=SOURCE), key


def save_answer(
    service: Service,
    response_id: str,
    prompt: Prompt,
    key: str | None,
    choices: Sequence[Choice],
    *,
    policy_id: str,
    sampling: dict[str, Any],
    seed: int,
    round: int,
) -> None:
    """Stores an answer of all its choices, in one transaction."""
    store, sampling = service.store, service.redact_all(sampling)
    with store.transaction() as transaction:
        while transaction.deleted("prompt", [prompt.id]):  # the user was deleted, and asks the same again
            prompt = replace(prompt, id=stable_id(SOURCE, prompt.id))
        if not transaction.prompts(ids=[prompt.id]):
            transaction.add_prompts([prompt])
        texts = [service.redact(choice.text) for choice in choices]
        completions = [
            Completion(
                id=choice_id(response_id, number),
                prompt_id=prompt.id,
                text=text,
                policy=policy_id,
                round=round,
                sample=number,
                seed=seed,
                sampling=sampling,
                finish_reason=choice.finish,
                tokens=choice.tokens,
                token_ids=choice.token_ids if text == choice.text else None,  # they would still say it
            )
            for number, (choice, text) in enumerate(zip(choices, texts, strict=True))
        ]
        transaction.add_completions(completions)
        note_used(transaction, answers=len(completions), tokens=sum(one.tokens for one in completions))
        if key is not None:
            remember(transaction, key, "prompt", [prompt.id])
            remember(transaction, key, "completion", [c.id for c in completions])
    service.metrics.saved(completions)


def response(
    response_id: str, policy_id: str, choices: Sequence[Choice], usage: dict[str, Any] | None, fields: dict[str, Any]
) -> dict[str, Any]:
    """An answer in the words of OpenAI's API, with further `fields` of another server's."""
    return {
        **fields,
        "id": response_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": policy_id,
        "choices": [{"index": number, **choice.values} for number, choice in enumerate(choices)],
        "usage": usage,
    }


def usage(prompt_tokens: int, written: int) -> dict[str, int]:
    """Tokens, in the words of OpenAI's API."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": written,
        "total_tokens": prompt_tokens + written,
    }
