"""A task that an annotation tool showed: what was asked, the answers to it, and verdicts about several of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from rlhf_loop.feedback.files.row import Note, RowError
from rlhf_loop.feedback.importers.asked import PARTS, WEAK, asked, holds_question
from rlhf_loop.feedback.importers.conversations import answer_of, decoded, prompt_before, turns_in
from rlhf_loop.feedback.importers.fields import Place, completion_of, id_of, prompt_of, said_by, text_of
from rlhf_loop.feedback.importers.words import asks_for_something_bad, asks_for_the_worse, plain, winner_of
from rlhf_loop.records import Completion, Preference, Prompt

ANSWERS = (
    "answer",
    "response",
    "completion",
    "output",
    "generation",
    "text",
    "summary",
    "reply",
    "chosen",
    "rejected",
    "candidate",
    "generated",
    "assistant",
    "model_output",
    "bot",
)
"""How the names of answers begin."""

LISTS = ("items", "options", "results", "candidates", "responses", "answers", "completions", "outputs", "generations")
"""Names of fields that hold a list of answers."""

BODIES = ("body", "text", "content", "response", "answer", "output", "completion", "value", "html", "title")
"""Names of the text of one answer in such a list."""

MOST = 50  # answers of a task: every pair of them may become a preference


class Task(NamedTuple):
    """What a tool showed: answers by their names, in order; `notes` of the fields that are not read."""

    prompt: Prompt
    answers: dict[str, Completion]
    notes: list[Note]

    def number(self, name: Any) -> int | None:
        """The place among the answers of one by its name, or its number from 1; None where there is none."""
        word = plain(name)
        names = [plain(key) for key in self.answers]
        if word in names:
            return names.index(word)
        for place, key in enumerate(self.answers.values()):
            if isinstance(name, str) and name.strip() and name.strip() == key.text.strip():
                return place
        digits = word.rsplit("_", 1)[-1]
        if digits.isdigit() and 0 < int(digits) <= len(names):
            return int(digits) - 1
        if len(names) == 2:
            return {"a": 0, "b": 1}.get(str(winner_of(name, (names[0], names[1]))))
        letter = ord(digits) - ord("a") if len(digits) == 1 and "a" <= digits <= "z" else -1
        return letter if 0 <= letter < len(names) else None


def task_of(values: Mapping[str, Any], place: Place, group: str | None = None) -> Task:
    """A task out of the fields of a record of any tool, by their names.

    Raises `RowError` where there is no prompt or no answer among them.
    """
    values = {key: value for key, value in values.items() if value not in (None, "", [], {})}
    lists = {key: decoded(values[key]) for key in values if plain(key) in LISTS}
    lists = {key: value for key, value in lists.items() if isinstance(value, list) and turns_of_list(value) is None}
    named = [key for key in values if key not in lists and plain(key).startswith(ANSWERS)]
    named = [key for key in named if plain(key) not in PARTS]
    fields = {plain(key): value for key, value in values.items() if key not in named and key not in lists}
    if not holds_question(fields):
        other = next((key for key in fields if key.startswith(_BEGINNINGS) or key.endswith(_ENDS)), None)
        if other is None and "text" in values and len(named) + len(lists) > 1:
            named.remove("text")
            fields["text"] = values["text"]
        elif other is not None:
            fields["prompt"] = fields.pop(other)
    if not holds_question(fields) and not any(key in fields for key in WEAK):
        talk = _talk(values, place, group)
        if talk is not None:
            return talk
    messages = asked(fields, given=place.given, weak=True)
    prompt = prompt_of(messages, place, group)
    answers = {key: completion_of(prompt, answer_of(values[key], key, messages)) for key in named}
    for key, value in lists.items():
        for number, (name, text) in enumerate(_listed(key, value), 1):
            answers[name if name not in answers else f"{key}_{number}"] = completion_of(prompt, text)
    if not answers and messages[-1]["role"] == "assistant":
        return _talk(values, place, group) or Task(prompt, answers, [])
    if not answers:
        there = ", ".join(map(str, list(values)[:8]))[:200]
        raise RowError(
            f"there is no answer beside the prompt: no field among {there} is called {', '.join(ANSWERS[:4])}"
        )
    if len(answers) > MOST:
        raise RowError(f"there are {len(answers)} answers; at most {MOST} can be read")
    weak = {key for key in WEAK if key in fields} if not holds_question(fields) else set()
    notes = [Note(f"the field {key[:60]} is not read") for key in fields if key not in PARTS and key not in weak]
    return Task(prompt, answers, notes)


def preferences(
    task: Task, order: Sequence[Sequence[int]], place: Place, who: Any, name: str, comment: str | None, **given: Any
) -> Iterator[Preference]:
    """A preference for each two answers that a ranking tells apart, and a tie for those it puts side by side.

    `order`: numbers of answers, those of one rank together, the best first.
    """
    ids = [completion.id for completion in task.answers.values()]
    ranks = {number: rank for rank, numbers in enumerate(order) for number in numbers}
    for first, second in combinations(sorted(ranks), 2):
        gap = ranks[second] - ranks[first]
        winner: Any = "tie" if gap == 0 else "a" if gap > 0 else "b"
        common = said_by(place, who, "preference", ids[first], ids[second], winner, name, **given)
        yield Preference(
            prompt_id=task.prompt.id, a_id=ids[first], b_id=ids[second], winner=winner, comment=comment, **common
        )


def choice(
    task: Task, number: int, place: Place, who: Any, name: str, comment: str | None, **given: Any
) -> Iterator[Preference | Note]:
    """A preference for the answer that was chosen over each other, or against it where the question `name` asks for the
    worst; nothing is said of the others among themselves. A note where it asks for something bad (`more_toxic`)."""
    if asks_for_something_bad(name):
        yield Note(f"{name[:40]} asks for something bad, so it does not say which answer is better")
        return
    others = [other for other in range(len(task.answers)) if other != number]
    order = [others, [number]] if asks_for_the_worse(name) else [[number], others]
    for preference in preferences(task, order, place, who, name, comment, **given):
        if preference.winner != "tie":
            yield preference


def ranking(value: Any, task: Task) -> list[list[int]] | None:
    """The order of a ranking, best first: names in order, or objects with `value` and `rank`; None where it is none."""
    value = decoded(value)
    if isinstance(value, Mapping) and isinstance(value.get("rank"), list):  # one list of each, as data sets hold them
        names = value.get("value", value.get("text"))
        if not isinstance(names, list) or len(names) != len(value["rank"]):
            return None
        value = [{"value": name, "rank": rank} for name, rank in zip(names, value["rank"], strict=True)]
    if not isinstance(value, list) or len(value) < 2:
        return None
    ranks: dict[int, float] = {}
    for position, item in enumerate(value):
        name, rank = item, float(position)
        if isinstance(item, Mapping):
            name = item.get("value", item.get("text", item.get("id")))
            given = item.get("rank", position)
            if isinstance(given, bool) or not isinstance(given, (int, float)):
                continue  # an answer that was not ranked
            rank = float(given)
        number = task.number(name)
        if number is None:
            return None
        ranks[number] = rank
    order = [[number for number in ranks if ranks[number] == rank] for rank in sorted(set(ranks.values()))]
    return order if len(ranks) > 1 else None


def turns_of_list(value: Any) -> Any:
    """The turns of a list that is a conversation; None for a list of anything else."""
    try:
        return turns_in(value, "")
    except RowError:
        return None


def _talk(values: Mapping[str, Any], place: Place, group: str | None) -> Task | None:
    """Of a task that shows a dialogue alone, the last turn is the answer."""
    for name, value in values.items():
        turns = turns_of_list(decoded(value)) if isinstance(value, (list, str)) else None
        if turns is not None and len(turns) > 1 and turns[-1]["role"] == "assistant":
            messages, answer = prompt_before(turns, name)
            prompt = prompt_of(messages, place, group)
            return Task(prompt, {name: completion_of(prompt, answer)}, [])
    return None


def _listed(key: str, value: list[Any]) -> Iterator[tuple[str, str]]:
    for number, item in enumerate(value, 1):
        name = f"{key}_{number}"
        if isinstance(item, Mapping):
            own = next((item[field] for field in BODIES if item.get(field)), None)
            name = id_of(item.get("id"), f"{key}.id") or name
            yield name, answer_of(own, f"{key}[{number - 1}]")
        else:
            yield name, text_of(item, f"{key}[{number - 1}]")


_BEGINNINGS = ("prompt", "question", "instruction", "query", "problem", "input", "user", "context", "message")
_ENDS = ("prompt", "question", "instruction", "query")
