"""How many texts of which length a round of a recipe has at most: read from its own files, where they are there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.intake.prompts import read_prompts
from rlhf_loop.feedback.intake.read_whole import read
from rlhf_loop.recipe import Recipe
from rlhf_loop.records import Message, Prompt

PROMPT_TOKENS, PROMPTS = 256, 512
"""What is assumed of prompts that are not there to be read."""
_LARGEST = 16 * 2**20  # bytes of a file of feedback that is read
_TOKENISED = 64  # texts, the longest by characters
_CHARACTERS = 3  # of a token, where there is no tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Implied:
    """Upper bounds: of the lengths of texts in tokens, and of how many a round has."""

    prompt: int  # the longest, with the recipe's system prompt, as the chat template writes it
    answer: int  # the longest: `generation.max_new_tokens`, or an imported one
    new: int  # `generation.max_new_tokens`
    train: int  # training prompts
    held_out: int
    pairs: int  # imported
    labels: int  # imported thumbs
    demonstrations: int  # imported edits, and references of training prompts
    notes: tuple[str, ...]  # where they are from, and what was assumed


def implied(recipe: Recipe) -> Implied:
    """Reads the recipe's prompts and feedback. Raises `UserError` for files that cannot be read."""
    notes: list[str] = []
    prompts = {split: _prompts(recipe, split, notes) for split in ("train", "dev", "test")}
    found = {"pairs": 0, "labels": 0, "demonstrations": sum(p.reference is not None for p in prompts["train"])}
    answers: list[str] = [p.reference for p in prompts["train"] if p.reference is not None]
    of_feedback: dict[str, list[Prompt]] = {"train": [], "test": []}
    for one in recipe.feedback.imports:
        result = _feedback(one.path, one.format, notes)
        if result is None:
            continue
        kinds = [record.kind for record in result.feedback]
        found["pairs"] += kinds.count("preference")
        found["labels"] += kinds.count("thumb")
        found["demonstrations"] += kinds.count("edit")
        answers += [completion.text for completion in result.completions]
        of_feedback["test" if one.split == "test" else "train"] += result.prompts
    if recipe.prompts.from_feedback:
        apart = recipe.prompts.test_fraction if not of_feedback["test"] else 0.0
        held = round(apart * len(of_feedback["train"]))
        prompts["train"] = [*prompts["train"], *of_feedback["train"]]
        prompts["test"] = [*prompts["test"], *of_feedback["test"], *of_feedback["train"][:held]]
    held_out = prompts[recipe.evaluation.split]
    everything = [p for split in prompts.values() for p in split]
    tokens = _Tokens(recipe)
    if everything:
        prompt = tokens.of_prompts([list(p.messages) for p in everything])
        notes.append(f"the longest of {len(everything)} prompts has {prompt} tokens{tokens.how}")
    else:
        prompt = PROMPT_TOKENS
        notes.append(f"prompts of {PROMPT_TOKENS} tokens and {PROMPTS} of them are assumed: their files are not here")
    new = recipe.generation.max_new_tokens
    longest = max(new, tokens.of_texts(answers)) if answers else new
    notes.append(f"answers of {longest} tokens: " + ("the longest imported" if longest > new else "the limit"))
    count = len(held_out) or (0 if everything else PROMPTS // 4)
    return Implied(
        prompt=prompt,
        answer=longest,
        new=new,
        train=len(prompts["train"]) or PROMPTS,
        held_out=min(count, recipe.evaluation.max_prompts or count),
        notes=tuple(notes),
        **found,
    )


def _prompts(recipe: Recipe, split: Any, notes: list[str]) -> list[Prompt]:
    found: list[Prompt] = []
    for path in getattr(recipe.prompts, split):
        if not path.exists():
            notes.append(f"{path.name} is not here, so nothing is known of its prompts")
            continue
        found += read_prompts(path, split)
    return found


def _feedback(path: Path, format_name: str, notes: list[str]) -> Any:
    """What a file of feedback holds; None of one that is not here, or is too large to look through."""
    if not path.exists():
        notes.append(f"{path.name} is not here, so nothing is known of its feedback")
        return None
    if path.is_file() and path.stat().st_size > _LARGEST:
        notes.append(f"{path.name} is large and was not read, so nothing is known of its feedback")
        return None
    return read(path, format_name)


class _Tokens:
    """Lengths in tokens of the recipe's model, or by characters where its tokenizer is not here."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.tokenizer: Any = None
        if recipe.policy.endpoint is None:
            from rlhf_loop.models.loading import load_tokenizer

            with suppress(UserError, OSError, ValueError):  # of a folder with a configuration alone
                self.tokenizer = load_tokenizer(recipe.policy.model, recipe.policy)
        self.how = "" if self.tokenizer is not None else f", at {_CHARACTERS} characters a token: no tokenizer is here"

    def of_prompts(self, conversations: Sequence[list[Message]]) -> int:
        """The most tokens that one of them has, with the system prompt."""
        from rlhf_loop.models.turns import encode_prompts, with_system_prompt

        asked = [with_system_prompt(one, self.recipe.policy.system_prompt) for one in conversations]
        asked = sorted(asked, key=lambda one: -sum(len(m["content"] or "") for m in one))[:_TOKENISED]
        if self.tokenizer is None:
            return max(sum(8 + len(m["content"] or "") // _CHARACTERS for m in one) for one in asked)
        return max(map(len, encode_prompts(self.tokenizer, asked)))

    def of_texts(self, texts: Sequence[str]) -> int:
        """The most tokens that one of them has."""
        longest = sorted(texts, key=lambda text: -len(text))[:_TOKENISED]
        if self.tokenizer is None:
            return max(1 + len(text) // _CHARACTERS for text in longest)
        return max(1 + len(ids) for ids in self.tokenizer(longest, add_special_tokens=False)["input_ids"])
