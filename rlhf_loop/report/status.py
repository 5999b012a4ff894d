"""Where a run stands: for `rlhf-loop status`."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rlhf_loop.cluster import platform
from rlhf_loop.cluster.jobs import records
from rlhf_loop.endpoints.answers import spent_in
from rlhf_loop.files.store_address import in_project
from rlhf_loop.report.data import Round, read_recipe, read_rounds
from rlhf_loop.run_dir import RunDir

if TYPE_CHECKING:
    from rich.table import Table


def status(run: RunDir) -> dict[str, Any]:
    """`{name, recipe, rounds, jobs, endpoints, waiting_for_labels, next}`, plain values for JSON.

    Each of `rounds` is `{round, complete, win_rate_vs_base: {mean, low, high, n}, decision, timings: {step: seconds}}`;
    the rate is None before an evaluation, the decision "promoted", "kept" or None. `jobs`: what `jobs` gives.
    `endpoints`: what was spent on each, `{requests, answers, prompt_tokens, completion_tokens, cached, failures, ...}`.
    `waiting_for_labels`: questions that people have not answered, None where an automatic annotator answers. `quota`,
    where people answer and there is one: what the service may use today, and what it used, in words. `next`: the
    command that goes on from here.
    Raises `UserError` if there is no run.
    """
    recipe, _ = read_recipe(run)
    rounds = read_rounds(run)
    waiting, quota = _of_store(run, recipe)
    last = max((r.number for r in rounds if r.complete), default=-1)
    again = f"rlhf-loop run {run.path / 'recipe.yaml'} --run-dir {run.path}"
    if last >= recipe.get("rounds", 0):
        following = f"rlhf-loop report {run.path}"
    elif waiting and last >= 0:
        place = shlex.quote(str(run.path))
        following = f"rlhf-loop feedback export questions.jsonl --format questions --store {place}"
    else:
        following = again
    return {
        "name": recipe.get("name", run.name),
        "recipe": str(run.path / "recipe.yaml"),
        "rounds": [_row(r) for r in rounds],
        "jobs": jobs(run),
        "endpoints": spent_in(run.path),
        "waiting_for_labels": waiting,
        **({"quota": quota} if quota else {}),
        "next": following,
    }


def jobs(run: RunDir) -> list[dict[str, Any]]:
    """Jobs of a cluster that were submitted for this run and its stages: `{platform, id, what, state, where, attempt,
    logs}` each. `state` is the platform's word, None where it cannot be asked; `where` nodes, or why there are none."""
    return [
        {
            "platform": record.platform,
            "id": record.id,
            "what": record.what,
            **asdict(platform(record.platform).state(record)),
        }
        for record in records(run.path)
    ]


def shown_jobs(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each of what `jobs` gave."""
    lines = []
    for job in found:
        state = f"{job['state'] or 'state unknown here'}{' ' * bool(job['where'])}{job['where']}"
        lines.append(f"{job['platform']} job {job['id']} ({job['what']}): {state}, attempt {job['attempt']}")
        lines.append(f"  logs: {job['logs']}")
    return lines


def render(values: dict[str, Any]) -> Table:
    """What `status` gave, as a table for the terminal."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title=values["name"], title_justify="left", title_style="bold")
    for name in ("round", "state", "win-rate vs base", "decision", "seconds"):
        table.add_column(name, justify="right" if name in ("round", "seconds") else "left", no_wrap=True)
    for row in values["rounds"]:
        rate = row["win_rate_vs_base"]
        table.add_row(
            str(row["round"]),
            "complete" if row["complete"] else "begun",
            shown_rate(rate),
            row["decision"] or "-",
            f"{sum(row['timings'].values()):.0f}",
        )
    return table


def what_next(values: dict[str, Any]) -> str:
    """What `status` gave of jobs and endpoints, and for people to do; the command in one line, so that it can be
    copied."""
    waiting = values["waiting_for_labels"]
    lines = shown_jobs(values["jobs"])
    lines += [f"endpoint {name}: {shown_spent(spent)}" for name, spent in values["endpoints"].items()]
    if waiting:
        lines.append(f"waiting for labels: {waiting} queued")
    if "quota" in values:
        lines.append(f"quota of the service today (UTC): {values['quota']}")
    return "\n".join([*lines, f"next: {values['next']}"])


def shown_spent(spent: Mapping[str, int]) -> str:
    """What was spent on an endpoint, in words."""
    told = [
        f"{spent['requests']:,} requests",
        f"{spent['prompt_tokens']:,} tokens read and {spent['completion_tokens']:,} written",
        f"{spent['cached']:,} answered from the run's file",
        f"{spent['failures']:,} questions without an answer",
    ]
    if spent["without_usage"]:
        told.append(f"{spent['without_usage']:,} answers of unknown length")
    return ", ".join(told)


def shown_rate(rate: Mapping[str, Any] | None) -> str:
    """A win-rate in a table."""
    if rate is None:
        return "-"
    return f"{with_interval(rate)} n={rate['n']}"


def with_interval(rate: Mapping[str, Any]) -> str:
    """A rate, and its interval where there are enough cases for one."""
    interval = "" if rate["low"] is None else f" [{rate['low']:.2f}, {rate['high']:.2f}]"
    return f"{rate['mean']:.2f}{interval}"


def _row(round: Round) -> dict[str, Any]:
    rate = round.win_rate_vs_base
    return {
        "round": round.number,
        "complete": round.complete,
        "win_rate_vs_base": {key: rate[key] for key in ("mean", "low", "high", "n")} if rate else None,
        "decision": round.outcome,
        "timings": round.timings,
    }


def _of_store(run: RunDir, recipe: dict[str, Any]) -> tuple[int | None, str | None]:
    """How many questions wait for people, and today's quota in words, where there is one; None and None when nobody is
    asked, or there is no store yet."""
    if (recipe.get("feedback") or {}).get("annotator") is not None:
        return None, None
    if not recipe.get("store") and not (run.path / "feedback.db").exists():
        return None, None
    from rlhf_loop.feedback.store import quotas
    from rlhf_loop.feedback.store.store import Store

    with Store.open(_store_url(run, recipe), create=False) as store:
        usage = quotas.usage(store)
        return store.open_questions(), usage.in_words() if usage.quota else None


def _store_url(run: RunDir, recipe: dict[str, Any]) -> str:
    return in_project(recipe.get("store") or run.store_url, recipe.get("project"))
