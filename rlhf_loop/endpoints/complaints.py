"""Whether an answer takes up a complaint, asked of a model behind a server: a number of 0 to 100, the mean of several.

After RLCF (arXiv 2507.18624, section 3), whose judge scores each requirement of a checklist so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_loop.endpoints.answers import Reply
from rlhf_loop.endpoints.asks import Ask, Unanswered, Unreadable, mean
from rlhf_loop.endpoints.client import Client
from rlhf_loop.endpoints.judging import MATERIAL, NOT_OF_THE_FORM, conversation, json_object, marked
from rlhf_loop.records import Completion, Message, Prompt, sound, stable_id

LOW, HIGH = 0, 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Complaint:
    """What was said of an answer, and an answer that may do better."""

    prompt: Prompt
    criticised: Completion
    said: tuple[str, ...]
    said_in: tuple[str, ...] = ()  # ids of the feedback that says it
    answer: Completion


def taken_up(
    client: Client, asked: Sequence[Complaint], samples: int, temperature: float | None
) -> list[float | Unanswered]:
    """How far each answer takes up its complaint, 0 to 100: the mean over the `samples` that were answered.

    `temperature`: None leaves it to the endpoint. Unanswered where no sample was. Raises `UserError` as `Client.ask`
    does.
    """
    fields = {} if temperature is None else {"temperature": temperature}
    asks = [
        Ask(
            messages=_messages(one),
            about=(one.prompt.id, one.criticised.id, one.answer.id, *one.said_in),
            sample=sample,
            schema=_SCHEMA,
            fields=fields,
        )
        for one in asked
        for sample in range(samples)
    ]
    said = client.ask(asks, _read)
    return [mean(said[i * samples : (i + 1) * samples]) for i in range(len(asked))]


def _messages(one: Complaint) -> tuple[Message, ...]:
    request = conversation(one.prompt.messages)
    earlier, said, answer = sound(one.criticised.text), sound("\n".join(one.said)), sound(one.answer.text)
    code = stable_id("marks", request, earlier, said, answer)
    cut = "\nThe new answer was cut off at a limit of length." if one.answer.finish_reason == "length" else ""
    texts = {"request": request, "earlier": earlier, "complaint": said, "answer": answer}
    return (
        Message(role="system", content=_INSTRUCTIONS.format(material=MATERIAL.format(code=code))),
        Message(role="user", content="\n\n".join(marked(name, code, text) for name, text in texts.items()) + cut),
    )


_INSTRUCTIONS = """Somebody complained of an earlier answer to a request. Say how far a new answer to the same request \
is free of what the complaint is about, by a whole number from 0 (it deserves the same complaint) to 100 (the \
complaint is taken up, and nothing else became worse for it). An answer that does not answer the request is worth 0. \
{material}

Reply with one JSON object and nothing else, such as {{"score": 50}}."""
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"score": {"type": "integer", "minimum": LOW, "maximum": HIGH}},
    "required": ["score"],
    "additionalProperties": False,
}


def _read(reply: Reply) -> float:
    score = json_object(reply).get("score")
    if isinstance(score, bool) or not isinstance(score, int) or not LOW <= score <= HIGH:
        raise Unreadable(NOT_OF_THE_FORM)
    return float(score)
