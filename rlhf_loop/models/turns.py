"""Which tokens a policy reads and writes: the one answer that sampling, updates, rewards and evaluation go by.

A policy reads a conversation as its chat template writes it for generation, and writes tokens until one that ends a
turn. Those tokens cannot be had back from their text: special tokens and unusual splits are lost in it, and a template
that is applied to a whole conversation adds an end to what was cut off, or takes a thought out. So the tokens that were
sampled are kept with an answer (`Completion.token_ids`) and used wherever it is trained on, scored or evaluated. An
answer without them is tokenised: after the prompt when the policy wrote it, in the template's own form when it did not.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.records import Message

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """A prompt (of one token or more) and an answer to it as token ids, with the end token where it ended by itself."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class Turns:
    """What ends a turn for a model and its tokenizer, and how prompts and answers are written for it.

    `ends`: tokens that end a turn: those of the model's generation config and config, the tokenizer's eos, and the one
    with which the chat template closes an assistant's turn. `end`: the one that is put after a text that ended.
    """

    def __init__(self, tokenizer: Any, model: Any = None):
        self.tokenizer = tokenizer
        self.closing = _closing_token(tokenizer)
        self.end: int | None = tokenizer.eos_token_id if self.closing is None else self.closing
        ends = {*_eos_of(model), self.closing, tokenizer.eos_token_id}
        self.ends = frozenset(int(token) for token in ends if token is not None)
        self.unfit = 0  # answers whose token ids were not this tokenizer's

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation as the chat template writes it, up to where the policy's turn begins.

        Raises `UserError` where the template refuses it.
        """
        return encode_prompts(self.tokenizer, [messages])[0]

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether an answer of these ids ended by itself, rather than at a limit."""
        return bool(len(ids)) and int(ids[-1]) in self.ends

    def text(self, ids: Sequence[int]) -> str:
        """An answer's text."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def tokens(
        self,
        prompt: Sequence[Message],
        answer: Sequence[Message],
        *,
        finished: bool,
        token_ids: Sequence[int] | None = None,
        by_policy: bool = True,
    ) -> Tokens:
        """What was read and what was written after it.

        `token_ids`: what was sampled, where that is known; used unless they are those of another text or tokenizer
        (counted in `unfit`). Without them an answer `by_policy` is its text after the prompt, with `end` where it is
        `finished`; one of anybody else is what the template makes of it as the last turn, to the token that closes it.
        """
        read = self.prompt(prompt)
        alone = len(answer) == 1
        text = answer[-1]["content"] if answer else ""
        if token_ids is not None and alone:
            if self._fits(token_ids, text, finished):
                return Tokens(prompt=tuple(read), answer=tuple(token_ids))
            self.unfit += 1
        if not by_policy or not alone:
            written = self._as_last_turn(prompt, answer, read, finished)
            if written is not None:
                return written
        before = self._rendered(prompt, add_generation_prompt=True)
        ids = self._following(before, read, text)
        return Tokens(prompt=tuple(read), answer=tuple(self._with_end(ids) if finished else ids))

    def say_unfit(self, of: int) -> None:
        """Warns of answers whose token ids could not be used."""
        if self.unfit:
            logger.warning(
                "%d of %d answers were sampled with another tokenizer, or their text was changed since: they are "
                "tokenised again from their text",
                self.unfit,
                of,
            )

    def _fits(self, ids: Sequence[int], text: str, finished: bool) -> bool:
        """Whether the ids are those of the text, in this tokenizer."""
        if not len(ids) or not all(0 <= i < len(self.tokenizer) for i in ids) or self.text(ids) != text:
            return False
        last = int(ids[-1])
        return (last in self.ends or last in self.tokenizer.added_tokens_decoder) if finished else last not in self.ends

    def _as_last_turn(
        self, prompt: Sequence[Message], answer: Sequence[Message], read: list[int], finished: bool
    ) -> Tokens | None:
        """The template's own form, or None where the template leaves a part of the text out (a thought)."""
        whole = self._rendered([*prompt, *answer])
        text = answer[-1]["content"].strip() if answer else ""
        if whole.count(text) <= self._rendered(prompt).count(text):
            return None
        before = self._rendered(prompt, add_generation_prompt=True)
        if whole.startswith(before):
            ids = self._following(before, read, whole[len(before) :])
        else:  # the template opens the turn otherwise than for generation
            written = self._ids(whole)
            shared = next(
                (n for n, (a, b) in enumerate(zip(read, written, strict=False)) if a != b), min(len(read), len(written))
            )
            read, ids = read[:shared], written[shared:]
        if self.closing in ids:
            place = len(ids) - 1 - ids[::-1].index(self.closing)
            return Tokens(prompt=tuple(read), answer=tuple(ids[: place + finished]))
        return Tokens(prompt=tuple(read), answer=tuple(self._with_end(ids) if finished else ids))

    def _with_end(self, ids: list[int]) -> list[int]:
        return ids if self.end is None or ids[-1:] == [self.end] else [*ids, self.end]

    def _following(self, before: str, read: list[int], text: str) -> list[int]:
        """Token ids of `text` where it follows `before`: some tokenizers put a space before what begins a text."""
        whole = self._ids(before + text)
        return whole[len(read) :] if whole[: len(read)] == read else self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _rendered(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=add_generation_prompt, tokenize=False
            )
        except Exception as error:
            raise _refused(messages, "", error) from None
        return text


def encode_prompts(tokenizer: Any, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
    """Token ids of each conversation as the chat template writes it, up to where the policy's turn begins."""
    encoded = []
    for number, conversation in enumerate(conversations):
        try:
            ids = tokenizer.apply_chat_template(list(conversation), add_generation_prompt=True, return_dict=False)
        except Exception as error:
            # Templates raise jinja errors of their own choosing, for instance for a role they do not know.
            raise _refused(conversation, str(number), error) from None
        encoded.append(list(ids))
    return encoded


def with_system_prompt(messages: Sequence[Message], system_prompt: str | None) -> list[Message]:
    """A conversation with the system prompt first, if it has no system turn of its own."""
    if not system_prompt or any(message["role"] == "system" for message in messages):
        return list(messages)
    return [Message(role="system", content=system_prompt), *messages]


def opens_no_turn(tokenizer: Any) -> bool:
    """Whether the chat template writes a header before an assistant's turn, but not when it is asked for one.

    Such a policy is sampled without the header that it was trained with.
    """
    try:
        asked = tokenizer.apply_chat_template(_PROBE[:1], add_generation_prompt=True, tokenize=False)
        plain = tokenizer.apply_chat_template(_PROBE[:1], tokenize=False)
        whole = tokenizer.apply_chat_template(_PROBE, tokenize=False)
    except Exception:  # a template that refuses so short a conversation; a real one will tell
        return False
    return bool(asked == plain and whole.startswith(asked) and whole[len(asked) :].partition(_ANSWER)[0].strip())


_ANSWER = "Leaves in hot water"
_PROBE = [Message(role="user", content="What is tea?"), Message(role="assistant", content=_ANSWER)]


def _closing_token(tokenizer: Any) -> int | None:
    """The token with which the chat template closes an assistant's turn; None where it closes it with no token."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        whole = tokenizer.apply_chat_template(_PROBE, tokenize=False)
    except Exception:  # as above
        return None
    _, found, after = whole.rpartition(_ANSWER)
    added = tokenizer.added_tokens_decoder
    ids = tokenizer(after, add_special_tokens=False)["input_ids"] if found else []
    return next((int(i) for i in ids if i in added), None)


def _eos_of(model: Any) -> set[int]:
    """What the model's own files call eos."""
    ids: set[int] = set()
    config = getattr(model, "config", None)
    for place in (getattr(model, "generation_config", None), config, config and config.get_text_config()):
        eos = getattr(place, "eos_token_id", None)
        ids.update([] if eos is None else [eos] if isinstance(eos, int) else eos)
    return ids


def _refused(messages: Sequence[Message], number: str, error: Exception) -> UserError:
    roles = [message["role"] for message in messages]
    return UserError(f"the chat template refuses conversation{number and ' ' + number} (roles {roles}): {error}")


def give_pad_token(tokenizer: Any) -> None:
    """Makes padding distinct from the end of a turn where the vocabulary allows it.

    With `pad == eos`, whatever skips padding also skips the end of the answer: it is then neither trained nor
    scored, and a policy forgets to stop.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    vocabulary = tokenizer.get_vocab()
    for token in ("<|endoftext|>", "<pad>", "[PAD]", tokenizer.unk_token):
        if token in vocabulary and token != tokenizer.eos_token:
            tokenizer.pad_token = token
            return
    tokenizer.pad_token = tokenizer.eos_token
