"""What a reward model reads: a prompt, a completion, and whether the completion ended by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rlhf_loop.errors import shortened
from rlhf_loop.models.turns import Turns, with_system_prompt
from rlhf_loop.records import Completion, Message, PreferencePair, Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """One prompt with one completion; equal ones are the same text and are computed once."""

    prompt: tuple[tuple[str, str], ...]  # (role, content) of each turn
    completion: str
    finished: bool = True  # ended with EOS; False: cut off at the length limit
    token_ids: tuple[int, ...] | None = None  # as it was sampled, in the tokenizer of the policy
    by_policy: bool = True  # False: imported, and read in the chat template's own form
    about: tuple[str, ...] = field(default=(), compare=False)  # ids of records whose text it is, for deletions

    def messages(self) -> list[Message]:
        """The prompt as conversational messages."""
        return [Message(role=role, content=content) for role, content in self.prompt]

    def shown(self) -> str:
        """Its beginning, to name it in an error."""
        prompt = self.prompt[-1][1] if self.prompt else ""
        return f"prompt {shortened(prompt, 60)!r}, completion {shortened(self.completion, 60)!r}"


def make_text(
    prompt: Sequence[Message],
    completion: str,
    finished: bool = True,
    token_ids: Sequence[int] | None = None,
    by_policy: bool = True,
    about: Sequence[str] = (),
) -> Text:
    """A `Text` of conversational messages; `about`: ids of the prompt, the completion, or who wrote it by hand."""
    turns = tuple((message["role"], message["content"]) for message in prompt)
    ids = None if token_ids is None else tuple(map(int, token_ids))
    return Text(
        prompt=turns,
        completion=completion,
        finished=finished,
        token_ids=ids,
        by_policy=by_policy,
        about=tuple(about),
    )


def texts_of_pairs(pairs: Sequence[PreferencePair]) -> tuple[list[Text], list[tuple[int, int]]]:
    """The distinct texts of `pairs`, and for each pair the numbers of its chosen and rejected one."""
    numbers: dict[Text, int] = {}
    indices = []
    for pair in pairs:
        written = pair.feedback_ids if pair.origin == "edit" else ()  # by a person, whose text the chosen side is
        chosen = _of_turns(
            pair.prompt,
            pair.chosen,
            pair.chosen_finished,
            pair.chosen_token_ids,
            pair.chosen_by_policy,
            (pair.prompt_id, pair.chosen_id, *written),
        )
        rejected = _of_turns(
            pair.prompt,
            pair.rejected,
            pair.rejected_finished,
            pair.rejected_token_ids,
            pair.rejected_by_policy,
            (pair.prompt_id, pair.rejected_id),
        )
        number = numbers.setdefault(chosen, len(numbers))
        indices.append((number, numbers.setdefault(rejected, len(numbers))))
    return list(numbers), indices


def texts_of_completions(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Text]:
    """The text of each completion; `prompts` are looked up by id, so each need be there only once."""
    by_id = {prompt.id: prompt for prompt in prompts}
    return [
        make_text(
            by_id[c.prompt_id].messages,
            c.text,
            c.finish_reason == "stop",
            c.token_ids,
            c.by_policy,
            (c.prompt_id, c.id),
        )
        for c in completions
    ]


def of_completions(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[tuple[str, str, Text]]:
    """(prompt id, completion id, text) of each completion."""
    texts = texts_of_completions(prompts, completions)
    return [(one.prompt_id, one.id, text) for one, text in zip(completions, texts, strict=True)]


def of_pairs(pairs: Sequence[PreferencePair]) -> list[tuple[str, str, Text]]:
    """The same of both sides of each pair."""
    texts, indices = texts_of_pairs(pairs)
    return [
        (pair.prompt_id, id, texts[number])
        for pair, sides in zip(pairs, indices, strict=True)
        for id, number in zip((pair.chosen_id, pair.rejected_id), sides, strict=True)
    ]


def encode(turns: Turns, text: Text, system_prompt: str | None = None) -> tuple[list[int], int]:
    """Token ids of a text, and how many of them are the prompt's: what the policy read and wrote (`Turns.tokens`)."""
    tokens = turns.tokens(
        with_system_prompt(text.messages(), system_prompt),
        [Message(role="assistant", content=text.completion)],
        finished=text.finished,
        token_ids=text.token_ids,
        by_policy=text.by_policy,
    )
    return [*tokens.prompt, *tokens.answer], len(tokens.prompt)


def _of_turns(
    prompt: Sequence[Message],
    answer: Sequence[Message],
    finished: bool,
    token_ids: Sequence[int] | None,
    by_policy: bool,
    about: Sequence[str],
) -> Text:
    """A completion of several turns is scored on its last one, the others being part of the prompt."""
    return make_text([*prompt, *answer[:-1]], answer[-1]["content"], finished, token_ids, by_policy, about)
