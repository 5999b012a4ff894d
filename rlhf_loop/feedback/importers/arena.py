"""Chatbot Arena: `{"question_id", "model_a", "model_b", "winner", "conversation_a", "conversation_b"}`.

`winner` is `model_a`, `model_b`, `tie` or `tie (bothbad)`. The release of 140,000 votes writes `both_bad`, and contents
as lists of parts; that of Kaggle has `prompt`, `response_a`, `response_b` as lists in JSON and three columns of
`winner_...`, and calls both bad a tie; later ones have texts there and `winner`.

Both conversations must share everything before the answers that were compared: where both models had answered before,
or others in an earlier vote of the session, there is no common prompt, and the row is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_loop.feedback.files.row import RowError
from rlhf_loop.feedback.importers.asked import asked
from rlhf_loop.feedback.importers.conversations import decoded, messages_of, prompt_before
from rlhf_loop.feedback.importers.fields import (
    Place,
    completion_of,
    optional_id,
    optional_number,
    prompt_of,
    said_by,
    text_of,
)
from rlhf_loop.feedback.importers.times import time_in
from rlhf_loop.feedback.importers.words import Winner, winner_of
from rlhf_loop.records import Message, Preference

RECOGNISES = 'Chatbot Arena: rows of {"model_a", "model_b", "winner", "conversation_a", "conversation_b"}'
REQUIRED = [
    ("model_a", "model_b", "winner", "conversation_a", "conversation_b"),
    ("model_a", "model_b", "response_a", "response_b", "winner_model_a"),
    ("prompt", "response_a", "response_b", "winner"),
    ("prompt", "response_1", "response_2", "winner"),
]


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    return any(all(key in row for key in keys) for keys in REQUIRED)


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, both completions and the preference of a row."""
    first, second = _conversation(row, "a"), _conversation(row, "b")
    messages, answer = prompt_before(first, "conversation_a")
    others, other = prompt_before(second, "conversation_b")
    if messages != others:
        raise RowError(
            "the conversations differ before the last answers (both models had answered before), so these have no "
            "common prompt"
        )
    if _earlier_turns(row, len(messages) // 2 + 1) > 0:
        raise RowError("other models had answered in an earlier vote of the session, so there is no common prompt")
    winner = _winner(row)
    prompt = prompt_of(messages, place)
    a, b = completion_of(prompt, answer), completion_of(prompt, other)
    external = optional_id(row, "question_id") or optional_id(row, "id")
    who = optional_id(row, "judge") or optional_id(row, "judge_hash") or optional_id(row, "evaluation_session_id")
    kind = "LLM" if who is not None and who.startswith("gpt") else "HUMAN"
    common = said_by(
        place,
        who,
        "preference",
        prompt.id,
        a.id,
        b.id,
        winner,
        kind=kind,
        external_id=external,
        created_at=time_in(row, "tstamp", "timestamp"),
    )
    about: dict[str, Any] = {"prompt_id": prompt.id, "a_id": a.id, "b_id": b.id}
    blind = str(row.get("anony", True)).lower() != "false"
    return [prompt, a, b, Preference(winner=winner, shown_order="ab", blind=blind, **about, **common)]


def _conversation(row: Mapping[str, Any], side: str) -> tuple[Message, ...]:
    value = row.get(f"conversation_{side}")
    if value is not None:
        return messages_of(_loaded(value, f"conversation_{side}"), f"conversation_{side}")
    name = next((name for name in (f"response_{side}", f"response_{'ab'.index(side) + 1}") if name in row), "")
    prompts, answers = decoded(row.get("prompt")), decoded(row.get(name))
    if row.get("prompt") is not None and isinstance(row.get(name), str) and not isinstance(answers, list):
        return (*asked(row), Message(role="assistant", content=text_of(row[name], name)))
    if not isinstance(prompts, list) or not isinstance(answers, list) or len(prompts) != len(answers):
        raise RowError(f"`prompt` and `{name or f'response_{side}'}` must be texts, or lists of as many of them")
    turns = []
    for prompt, answer in zip(prompts, answers, strict=True):
        answer = "" if answer is None else answer  # the model gave none, and people voted on that
        turns += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return messages_of(turns, name)


def _earlier_turns(row: Mapping[str, Any], turns: int) -> int:
    """How many exchanges came before the two conversations; only the release of 140,000 votes has any.

    `turns`: the exchanges of one conversation.
    """
    full = row.get("full_conversation")
    if full is not None:
        return len(_loaded(full, "full_conversation")) - turns
    return int(optional_number(row, "evaluation_order") or 1) - 1


def _loaded(value: Any, name: str) -> Any:
    """A list as it is, or out of its text."""
    found = decoded(value)
    if not isinstance(found, list):
        raise RowError(f"`{name}` must be a conversation, or one in JSON" if value else f"`{name}` is missing")
    return found


def _winner(row: Mapping[str, Any]) -> Winner:
    if "winner" in row:
        models = [row.get("model_a"), row.get("model_b")]
        if row["winner"] in models and models[0] != models[1]:  # by its name, which may be any word
            return "a" if row["winner"] == models[0] else "b"
        winner = winner_of(row["winner"])
    else:
        won = [
            name
            for name in ("model_a", "model_b", "tie")
            if str(row.get(f"winner_{name}")).strip().lower() in ("1", "1.0", "true")
        ]
        winner = winner_of(won[0]) if len(won) == 1 else None
    if winner is None:
        raise RowError(f"`winner` must be model_a, model_b, tie or tie (bothbad), got {str(row.get('winner'))[:60]!r}")
    return winner
