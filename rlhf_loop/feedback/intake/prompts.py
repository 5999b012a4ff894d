"""Prompts from files, and which of them are kept for evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.files.row import Refused, RowError
from rlhf_loop.feedback.files.rows import read_rows
from rlhf_loop.feedback.importers.asked import asked, holds_question, system_turn
from rlhf_loop.feedback.importers.conversations import messages_of
from rlhf_loop.feedback.importers.fields import optional_id, optional_text, text_of
from rlhf_loop.records import Prompt, Split, stable_id
from rlhf_loop.reward_columns import RESERVED


def read_prompts(path: str | Path, split: Split = "train") -> list[Prompt]:
    """Prompts of a file of `{"prompt"}` or `{"messages"}` (or of a `question` and the like, see `importers/asked.py`),
    optionally with `system, id, group, reference, tags`; whatever else a row has (a `solution`) is kept for reward
    functions.

    Raises `UserError` naming file and line for every row that is no prompt (the first three; a recipe's own prompts
    are to be mended, not left out), and for an empty file.
    """
    path = Path(path)
    prompts: dict[str, Prompt] = {}
    problems: list[Refused] = []
    for row in read_rows(path):
        if isinstance(row, Refused):
            problems.append(row)
            continue
        try:
            prompt = _prompt(row.values, path, split)
            earlier = prompts.setdefault(prompt.id, prompt)
            if earlier != prompt:
                raise RowError(f"the id {prompt.id} stands for another prompt in an earlier row")
        except RowError as error:
            problems.append(Refused(str(path), row.line, str(error), row.raw))
    if problems:
        more = f"\n... and {len(problems) - 3} more rows" if len(problems) > 3 else ""
        raise UserError("\n".join(f"{problem}" for problem in problems[:3]) + more)
    if not prompts:
        raise UserError(f'{path} holds no prompts; give one a line, such as {{"id": "1", "prompt": "..."}}')
    return list(prompts.values())


def split_groups(
    groups: Iterable[str], seed: int, test_fraction: float, judge_fraction: float = 0.0
) -> dict[str, Split]:
    """Group of prompts -> `test`, `judge` or `train`: all of a group in the same one.

    Groups are taken in the order of a hash of seed and group until a split has its fraction of the *groups*, to the
    nearest one; a split with a fraction above 0 gets at least one group, and train as well.
    Raises `UserError` when there are too few groups for that.
    """
    groups = sorted(set(groups), key=lambda group: stable_id("split", seed, group))
    wanted = {"test": test_fraction, "judge": judge_fraction}
    sizes = {name: max(1, round(share * len(groups))) for name, share in wanted.items() if share > 0}
    if test_fraction + judge_fraction >= 1:
        raise UserError(
            f"test_fraction {test_fraction:g} and judge_fraction {judge_fraction:g} leave nothing to train on; "
            "together they must stay below 1"
        )
    if not groups:
        return {}
    while sum(sizes.values()) >= len(groups) and max(sizes.values(), default=1) > 1:
        sizes[max(sizes, key=lambda name: sizes[name])] -= 1
    if sum(sizes.values()) >= len(groups) and sizes:
        raise UserError(
            f"{len(groups)} groups of prompts cannot be split into train, {' and '.join(sizes)}; at least "
            f"{len(sizes) + 1} are needed. Give prompts a finer `group`, import more feedback, or set fractions to 0"
        )
    split_of: dict[str, Split] = dict.fromkeys(groups, "train")
    start = 0
    for name, size in sizes.items():
        split_of.update(dict.fromkeys(groups[start : start + size], name))  # type: ignore[arg-type]
        start += size
    return split_of


def _prompt(row: dict[str, Any], path: Path, split: Split) -> Prompt:
    given = [key for key in ("prompt", "messages") if row.get(key) is not None]
    if len(given) > 1 or not (given or holds_question(row)):
        raise RowError("a prompt needs `prompt` (text or messages) or `messages`" + (", not both" if given else ""))
    if given:  # further columns are for reward functions
        messages = messages_of(row[given[0]], given[0])
        if messages[0]["role"] not in ("system", "developer"):
            messages = (*system_turn(row), *messages)
    else:
        messages = asked(row)
    named = given[0] if given else "prompt"
    if not any(message["content"].strip() for message in messages if message["role"] not in ("system", "developer")):
        raise RowError(f"`{named}` is empty")
    if messages[-1]["role"] == "assistant":
        raise RowError(f"`{named}` ends with the assistant's turn; a prompt ends where the policy is to answer")
    tags = row.get("tags") or []
    if not isinstance(tags, list):
        raise RowError("`tags` must be a list of texts")
    id = optional_id(row, "id") or stable_id("prompt", messages, None)
    return Prompt(
        id=id,
        messages=messages,
        group=optional_id(row, "group") or id,
        split=split,
        reference=optional_text(row, "reference"),
        tags=tuple(text_of(tag, "tags") for tag in tags),
        source=path.name,
        columns=_further_columns(row),
    )


def _further_columns(row: dict[str, Any]) -> dict[str, Any]:
    """As JSON's types, in which they are kept; without those that are empty here."""
    further = {name: value for name, value in row.items() if name not in _KNOWN and value is not None}
    taken = sorted(set(further) & set(RESERVED))
    if taken:
        raise RowError(f"the column `{taken[0]}` has a meaning of its own for reward functions; call it otherwise")
    kept: dict[str, Any] = json.loads(json.dumps(further, default=str))
    return {name: value for name, value in kept.items() if value == value}  # NaN is how tables say nothing


_KNOWN = ("id", "prompt", "messages", "system", "group", "reference", "tags")
