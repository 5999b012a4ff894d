"""Whether it is time for a round: what is new in the store, against the recipe's `watch:` block.

Everything is read from the store and the run's files, so a watcher that starts again decides as the one before it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow.parquet as pq

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.arrivals import Arrivals, arrivals_after, newest_number
from rlhf_loop.feedback.quality.measures import agreement
from rlhf_loop.feedback.quality.votes import plain_text, votes_of
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.feedback.store.table_rows import about
from rlhf_loop.feedback.validation import validate
from rlhf_loop.files import read_json
from rlhf_loop.files.damage import reading
from rlhf_loop.files.step_folders import read_manifest
from rlhf_loop.recipe import Recipe, Watch
from rlhf_loop.records import Feedback, Implicit, Preference
from rlhf_loop.run_dir import RunDir
from rlhf_loop.steps.snapshot import learns_from_pairs
from rlhf_loop.watch.consumed import Eats, consumed, consumers, hunger, in_words, possible_kinds


@dataclass(frozen=True, kw_only=True, slots=True)
class News:
    """The feedback that the next round would learn from and the last one did not."""

    next_round: int
    count: int  # valid pieces that something in the round trains on
    oldest: float | None  # seconds since the epoch; None when there are none
    per_tag: dict[str, int]  # valid pieces by the tags of their prompts
    preferences: list[Preference]  # the new ones, with those that others outvoted; none is on two answers of one text
    missing_pairs: int  # how many more pairs the round needs (`feedback.validation.min_pairs`)
    refused: dict[str, int] = field(default_factory=dict)  # new pieces that are not valid, by kind
    useless: int = 0  # new pieces that nothing in the round trains on, though nothing is wrong with them
    consumers: dict[str, Eats] = field(default_factory=dict)  # what learns from feedback, and from what
    starved: dict[str, Eats] = field(default_factory=dict)  # those that would have nothing to train on


def arrivals(store: Store, run: RunDir) -> Arrivals:
    """The feedback for the next round that the snapshot of the last complete round had not looked at.

    What is taken back or replaced meanwhile does not count.
    """
    complete = run.complete_rounds()
    last = complete[-1] if complete else 0
    with store.database.read():  # one state of the store
        return arrivals_after(store, _looked_at(store, run, last), last)


def news(store: Store, recipe: Recipe, run: RunDir) -> News:
    """What is new since the snapshot of the last complete round. Takes as long as validation does."""
    there = arrivals(store, run)
    seen = _taken(run, there.next_round - 1)
    prompts = {prompt.id: prompt for prompt in store.prompts()}
    feedback = [record for record in store.feedback() if record.round < there.next_round]
    completions = {c.id: c for c in store.completions(ids={id for record in feedback for id in about(record)})}
    report = validate(feedback, completions, prompts, recipe.feedback.validation)
    fresh = [r for r in report.usable if r.id not in seen and _counts(r, recipe)]
    fresh += [r for r in report.set_aside if r.id in there.fresh and _counts(r, recipe)]
    who = consumers(recipe)
    trained = consumed(recipe, who, there.next_round, report, completions, prompts)
    set_aside = {record.id for record in report.set_aside}
    # Where nothing learns from feedback, what has arrived is the only reason for a round.
    usable = [r for r in fresh if (r.id in trained.ids if who else r.id not in set_aside)]
    tags = Counter(tag for record in usable for tag in prompts[record.prompt_id].tags)
    refused: Counter[str] = Counter(record.kind for record, _ in report.quarantined if record.id in there.fresh)
    return News(
        next_round=there.next_round,
        count=len(usable),
        oldest=min((record.created_at for record in usable), default=None),
        per_tag=dict(tags),
        preferences=[
            record
            for record in feedback
            if isinstance(record, Preference)
            and record.id in there.fresh
            and plain_text(completions[record.a_id].text) != plain_text(completions[record.b_id].text)
        ],
        missing_pairs=(report.needed or 0) if learns_from_pairs(recipe) else 0,
        refused=dict(refused),
        useless=len(fresh) - len(usable),
        consumers=who,
        starved=trained.starved,
    )


def early_obstacles(there: Arrivals, recipe: Recipe, *, now: float, last_end: float | None) -> list[str]:
    """The obstacles that can be told without validation: the time of day, and fewer arrivals than are needed."""
    settings = recipe.watch
    waits = _times(settings, now, last_end)
    who, count = consumers(recipe), len(there.fresh)
    if who:
        count = sum(there.kinds[kind] for kind in possible_kinds(who))
    if _too_few(count, there.oldest, settings, now):
        waits.append(_few(count, len(there.fresh) - count, who, settings, "at most " if count else ""))
    return waits


def obstacles(found: News, settings: Watch, *, now: float, last_end: float | None) -> list[str]:
    """Why no round starts now, in words; empty: one does.

    `now` and `last_end` (when the last round ended; None: none has): seconds since the epoch.
    """
    waits = _times(settings, now, last_end)
    if _too_few(found.count, found.oldest, settings, now):
        refused = f" ({sum(found.refused.values())} more are not valid)" if found.refused else ""
        waits.append(_few(found.count, found.useless, found.consumers, settings) + refused)
    for tag, wanted in settings.min_per_tag.items():
        if (there := found.per_tag.get(tag, 0)) < wanted:
            waits.append(f"{there} of {wanted} new pieces on `{tag}`")
    if found.missing_pairs:
        waits.append(f"{found.missing_pairs} more pairs are needed (feedback.validation.min_pairs)")
    if not waits:
        waits += hunger(found.starved)
    if not waits and settings.min_agreement is not None:
        waits += _disagreement(found.preferences, settings.min_agreement)
    return waits


def is_quiet(hours: str | None, now: float) -> bool:
    """Whether `now` (seconds since the epoch) lies in the window `HH:MM-HH:MM` of local time, the end not included.

    A window may go over midnight. Raises `UserError` for times that no clock shows.
    """
    if hours is None:
        return False
    start, end = (_minutes(part, hours) for part in hours.split("-"))
    local = time.localtime(now)
    minute = 60 * local.tm_hour + local.tm_min
    return start <= minute < end if start <= end else minute >= start or minute < end


def last_end(run: RunDir) -> float | None:
    """When the last step of the last complete round ended, in seconds since the epoch; None before there is one."""
    complete = run.complete_rounds()
    if not complete:
        return None
    manifests = [read_manifest(folder) for folder in run.round(complete[-1]).iterdir() if folder.is_dir()]
    ends = [m["started"] + m["seconds"] for m in manifests if m is not None]
    return max(ends, default=None)


def _taken(run: RunDir, last: int) -> set[str]:
    """Ids that the snapshot of round `last` took. Round 0 learns from none."""
    folder = run.step(last, "snapshot")
    if last == 0 or read_manifest(folder) is None:
        return set()
    with reading(folder / "feedback.parquet"):
        table = pq.read_table(folder / "feedback.parquet", columns=["id"])
    return set(table.column("id").to_pylist())


def _looked_at(store: Store, run: RunDir, last: int) -> int:
    """The number of the newest piece of feedback that the snapshot of round `last` looked at."""
    folder = run.step(last, "snapshot")
    if last == 0 or read_manifest(folder) is None:
        return 0
    state = folder / "state.json"
    newest = read_json(state).get("newest_feedback") if state.exists() else None
    number = None if newest is None else newest_number(store, [newest])
    if number is None:  # it was deleted
        known = _taken(run, last) | {entry["id"] for entry in read_json(folder / "validation.json")["quarantined"]}
        number = newest_number(store, known)
    return number or 0


def _times(settings: Watch, now: float, last_end: float | None) -> list[str]:
    waits = [f"quiet hours, {settings.quiet_hours}"] if is_quiet(settings.quiet_hours, now) else []
    since = None if last_end is None else (now - last_end) / 60
    if since is not None and 0 <= since < settings.cool_down_minutes:  # below 0 the clock was set back
        waits.append(f"cooling down for {settings.cool_down_minutes - since:.1f} more minutes")
    return waits


def _too_few(count: int, oldest: float | None, settings: Watch, now: float) -> bool:
    age = 0.0 if oldest is None else (now - oldest) / 3600
    is_old = count > 0 and settings.max_age_hours is not None and age > settings.max_age_hours
    return count < settings.min_new and not is_old


def _few(count: int, useless: int, who: Mapping[str, Eats], settings: Watch, bound: str = "") -> str:
    """How many there are, and why those that nothing in the round trains on do not count."""
    if not useless or not who:
        return f"{count} of {settings.min_new} new pieces of feedback"
    return f"{count + useless} new pieces, {bound}{count} of which {in_words(who)} (watch.min_new: {settings.min_new})"


def _counts(record: Feedback, recipe: Recipe) -> bool:
    """What users did rather than said counts only where the recipe makes it a thumb."""
    return not isinstance(record, Implicit) or record.action in recipe.feedback.implicit


def _disagreement(preferences: Sequence[Preference], wanted: float) -> list[str]:
    found = agreement(votes_of(preferences))
    if found.alpha is None:
        return [
            f"agreement of the new preferences cannot be measured, {wanted:g} is asked for: have pairs judged twice "
            "(annotation.overlap: 2), or leave watch.min_agreement out"
        ]
    if found.alpha < wanted:
        return [f"agreement of the new preferences is {found.alpha:.2f} over {found.pairs} pairs, below {wanted:g}"]
    return []


def _minutes(text: str, hours: str) -> int:
    hour, minute = (int(part) for part in text.split(":"))
    if hour > 23 or minute > 59:
        raise UserError(f"watch.quiet_hours: `{hours}` has no such time as {text}; give HH:MM-HH:MM, as 22:00-07:00")
    return 60 * hour + minute
