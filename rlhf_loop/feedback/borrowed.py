"""Feedback of other projects that a run learns from (`feedback.from`), with its prompts and answers.

It is read when a round's snapshot is taken, and stands in the snapshot alone, never in the run's store:

    borrowed_prompts.parquet  borrowed_completions.parquet  borrowed_feedback.parquet

Ids of feedback, and names of annotators, end with `@SOURCE`, so that whatever names them says where they came from; ids
of prompts and answers do where the run's own store has something else under theirs. Answers count as imported.
What was deleted in the source is looked for before each step, and taken out of the run's files (see
`privacy/forgetting.py`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.privacy.deletion_files import BORROWED
from rlhf_loop.feedback.store.location import Location, locate
from rlhf_loop.feedback.store.same_record import without_file
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.feedback.store.table_rows import about
from rlhf_loop.files import read_json
from rlhf_loop.files.store_address import is_project_name, project_name
from rlhf_loop.record_files import write_records
from rlhf_loop.records import Completion, Feedback, Prompt
from rlhf_loop.run_dir import RunDir

DeletedKind = Literal["prompt", "completion", "feedback"]

PROMPTS, COMPLETIONS, FEEDBACK = BORROWED
"""Files of a snapshot."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A project, or a store, whose feedback is borrowed."""

    name: str  # that of a project of the run's store; of another store its database, or its file's name
    location: Location


@dataclass(frozen=True, kw_only=True, slots=True)
class Borrowed:
    """What was read of the sources."""

    prompts: dict[str, Prompt] = field(default_factory=dict)
    completions: dict[str, Completion] = field(default_factory=dict)
    feedback: list[Feedback] = field(default_factory=list)
    own_answers: set[str] = field(default_factory=set)  # ids of answers of the run's store that the feedback is about
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """For each source: `taken`, and what was left out: `held_out_here`, `not_for_training_there`, `deleted_here`,
    `already_here`."""

    def write(self, folder: Path) -> None:
        """Into the folder of a snapshot."""
        write_records(folder / PROMPTS, list(self.prompts.values()))
        write_records(folder / COMPLETIONS, list(self.completions.values()))
        write_records(folder / FEEDBACK, self.feedback)


def sources_of(store: str, named: Iterable[str]) -> list[Source]:
    """The sources that `feedback.from` names: projects of the run's store, or other stores.

    Raises `UserError` for the run's own project, and for two that could not be told apart.
    """
    home = locate(store)
    found: dict[str, Source] = {}
    for one in named:
        of_store = is_project_name(one)
        location = home.of_project(project_name(one)) if of_store else locate(one)
        if location.name == home.name:
            shown = one if of_store else location.name
            raise UserError(f"feedback.from: {shown} is the run's own project, whose feedback it learns from anyway")
        name = location.shown_project if of_store else location.short_name
        if name in found:
            raise UserError(f"feedback.from: two of the sources are called {name}; give each once")
        found[name] = Source(name=name, location=location)
    return list(found.values())


def borrow(sources: Sequence[Source], store: Store) -> Borrowed:
    """The feedback of the sources that is in force, on prompts that are for training there and not held out in `store`.

    Held out here is a prompt of another split than `train`, whatever it is there: known by its id, its text, or its
    group. Raises `UserError` for a source that is not there or cannot be read.
    """
    if not sources:
        return Borrowed()
    own = {prompt.id: prompt for prompt in store.prompts()}
    held_out = [prompt for prompt in own.values() if prompt.split != "train"]
    kept_apart = {(kind, value) for prompt in held_out for kind, value in _known_by(prompt)}
    borrowed = Borrowed()
    seen: dict[str, Feedback] = {}
    for source in sources:
        with Store.open_to_read(source.location.address) as there, there.database.read():
            said = there.feedback()
            prompts = {prompt.id: prompt for prompt in there.prompts(ids={record.prompt_id for record in said})}
            ids = [record.id for record in said]
            seen |= {record.id: record for record in store.feedback(effective=False, ids=ids)}
            deleted = _deleted_here(store, said)
            counts, wanted = Counter[str](), []
            for record in said:
                prompt, same = prompts[record.prompt_id], seen.get(record.id)
                own_prompt = own.get(prompt.id)
                if not kept_apart.isdisjoint(_known_by(prompt)):
                    counts["held_out_here"] += 1
                elif prompt.split != "train" and (own_prompt is None or own_prompt.messages != prompt.messages):
                    counts["not_for_training_there"] += 1
                elif not deleted.isdisjoint(_names(record)):
                    counts["deleted_here"] += 1
                elif same is not None and without_file(same) == without_file(record):
                    counts["already_here"] += 1
                else:
                    wanted.append(record)
                    seen.setdefault(record.id, record)
            counts["taken"] = len(wanted)
            borrowed.counts[source.name] = dict(counts)
            answers = {c.id: c for c in there.completions(ids={id for record in wanted for id in about(record)})}
        _take(borrowed, source.name, wanted, answers, prompts, own, store)
    return borrowed


def _known_by(prompt: Prompt) -> list[tuple[str, str]]:
    return [("id", prompt.id), ("group", prompt.group), ("text", " ".join(prompt.asked.split()))]


def _names(record: Feedback) -> list[tuple[DeletedKind, str]]:
    answers: list[tuple[DeletedKind, str]] = [("completion", id) for id in about(record)]
    return [("feedback", record.id), ("prompt", record.prompt_id), *answers]


def _deleted_here(store: Store, said: Sequence[Feedback]) -> set[tuple[DeletedKind, str]]:
    """What feedback of another project names that was deleted in this store: it is not taken again."""
    wanted: dict[DeletedKind, list[str]] = defaultdict(list)
    for record in said:
        for kind, id in _names(record):
            wanted[kind].append(id)
    return {(kind, id) for kind, ids in wanted.items() for id in store.deleted(kind, ids)}


def _take(
    borrowed: Borrowed,
    source: str,
    wanted: Sequence[Feedback],
    answers: Mapping[str, Completion],
    prompts: Mapping[str, Prompt],
    own: Mapping[str, Prompt],
    store: Store,
) -> None:
    """Adds the records of a source, under ids that nothing else of the snapshot has."""
    prompt_ids: dict[str, str] = {}
    for id in dict.fromkeys(record.prompt_id for record in wanted):
        other = own.get(id) or borrowed.prompts.get(id)
        taken = other is not None and other.messages != prompts[id].messages
        new = prompt_ids[id] = at_source(id, source) if taken else id
        if new not in own:
            borrowed.prompts.setdefault(new, _copied_prompt(prompts[id], new, source))
    own_answers = {answer.id: answer for answer in store.completions(ids=answers)}
    answer_ids: dict[str, str] = {}
    for id, answer in answers.items():
        prompt_id = prompt_ids.get(answer.prompt_id, answer.prompt_id)
        there = own_answers.get(id) or borrowed.completions.get(id)
        taken = there is not None and (there.prompt_id, there.text) != (prompt_id, answer.text)
        new = answer_ids[id] = at_source(id, source) if taken else id
        if new in own_answers:
            borrowed.own_answers.add(new)
        else:
            borrowed.completions.setdefault(new, _copied_answer(answer, new, prompt_id))
    borrowed.feedback.extend(_copied_feedback(record, source, prompt_ids, answer_ids) for record in wanted)


def _copied_prompt(prompt: Prompt, id: str, source: str) -> Prompt:
    return replace(prompt, id=id, split="train", source=source, reference=None, columns={})


def _copied_answer(answer: Completion, id: str, prompt_id: str) -> Completion:
    """Of another model, so neither its tokens nor what it revises say anything here."""
    return Completion(
        id=id,
        prompt_id=prompt_id,
        text=answer.text,
        policy="import",
        round=0,
        finish_reason=answer.finish_reason,
        tokens=answer.tokens,
    )


def _copied_feedback(
    record: Feedback, source: str, prompt_ids: Mapping[str, str], answer_ids: Mapping[str, str]
) -> Feedback:
    about_answers: dict[str, Any] = {
        name: answer_ids[id]
        for name in ("completion_id", "a_id", "b_id")
        if (id := getattr(record, name, None)) is not None
    }
    return replace(
        record,
        id=at_source(record.id, source),
        prompt_id=prompt_ids[record.prompt_id],
        annotator=replace(record.annotator, id=at_source(record.annotator.id, source)),
        round=0,
        supersedes=None,
        **about_answers,
    )


def borrowed_in(run: RunDir) -> dict[str, dict[str, int]]:
    """What the last snapshot of a run took of each source, and what it left out; empty where nothing is borrowed."""
    for number in reversed(run.rounds()):
        file = run.step(number, "snapshot") / "validation.json"
        if file.exists():
            found: dict[str, dict[str, int]] = read_json(file).get("borrowed", {})
            return found
    return {}


def at_source(id: str, source: str) -> str:
    """An id, or the name of an annotator, that says which source it is of."""
    return f"{id}@{source}"
