"""What a reward model reads: a prompt, a completion, and whether the completion ended by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_loop.records import Completion, Message, PreferencePair, Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """One prompt with one completion; equal ones are the same text and are computed once."""

    prompt: tuple[tuple[str, str], ...]  # (role, content) of each turn
    completion: str
    finished: bool = True  # ended with EOS; False: cut off at the length limit

    def messages(self) -> list[Message]:
        """The prompt as conversational messages."""
        return [Message(role=role, content=content) for role, content in self.prompt]

    def shown(self) -> str:
        """Its beginning, to name it in an error."""
        prompt = self.prompt[-1][1] if self.prompt else ""
        return f"prompt {_shortened(prompt)!r}, completion {_shortened(self.completion)!r}"


def make_text(prompt: Sequence[Message], completion: str, finished: bool = True) -> Text:
    """A `Text` of conversational messages."""
    turns = tuple((message["role"], message["content"]) for message in prompt)
    return Text(prompt=turns, completion=completion, finished=finished)


def texts_of_pairs(pairs: Sequence[PreferencePair]) -> tuple[list[Text], list[tuple[int, int]]]:
    """The distinct texts of `pairs`, and for each pair the numbers of its chosen and rejected one."""
    numbers: dict[Text, int] = {}
    indices = []
    for pair in pairs:
        chosen = _of_turns(pair.prompt, pair.chosen, pair.chosen_finished)
        rejected = _of_turns(pair.prompt, pair.rejected, pair.rejected_finished)
        number = numbers.setdefault(chosen, len(numbers))
        indices.append((number, numbers.setdefault(rejected, len(numbers))))
    return list(numbers), indices


def texts_of_completions(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Text]:
    """The text of each completion; `prompts` are looked up by id, so each need be there only once."""
    by_id = {prompt.id: prompt for prompt in prompts}
    return [make_text(by_id[c.prompt_id].messages, c.text, c.finish_reason == "stop") for c in completions]


def encode(tokenizer: Any, text: Text, system_prompt: str | None = None) -> tuple[list[int], int]:
    """Token ids of a text, and how many of them are the prompt's.

    They are the ids that a policy reads and writes: the prompt up to the assistant's turn, the completion's tokens,
    and EOS when it finished. (A chat template applied to the whole conversation would end every answer alike.)
    """
    messages = text.messages()
    if system_prompt and not any(message["role"] == "system" for message in messages):
        messages.insert(0, Message(role="system", content=system_prompt))
    prompt: list[int] = list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
    ids = prompt + list(tokenizer(text.completion, add_special_tokens=False)["input_ids"])
    return ([*ids, tokenizer.eos_token_id] if text.finished else ids), len(prompt)


def _of_turns(prompt: Sequence[Message], answer: Sequence[Message], finished: bool) -> Text:
    """A completion of several turns is scored on its last one, the others being part of the prompt."""
    return make_text([*prompt, *answer[:-1]], answer[-1]["content"], finished)


def _shortened(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
