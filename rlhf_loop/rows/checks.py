"""Complaints as standing checks: each is asked again of every new policy, on the same prompt.

After RLCF (arXiv 2507.18624), which makes checklists of instructions; here they are made of what people said. A check
asks for a rule where one understands the complaint (`check_rules.py`), else for a judge. It is about a training
prompt, so it says whether what people complained of is gone there, and nothing of other prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlhf_loop.records import Check, CheckResult, Completion, CritiquedCompletion, Prompt, stable_id
from rlhf_loop.resampling import grouped_mean
from rlhf_loop.reward_columns import COMPLAINTS
from rlhf_loop.rows.check_rules import RULES, passes, rules_in
from rlhf_loop.rows.parts import said_by

JUDGE = "judge"
"""What a check asks for that no rule understands."""


def checks_of(rows: Iterable[CritiquedCompletion], most: int, judged: bool) -> tuple[list[Check], Counter[str]]:
    """The last `most` checks in the order of `rows`, and counts of what is none, by reason.

    Complaints with words or tags make them; of a complaint with tags each tag counts, of others the words. What the
    same answer is asked for twice by the same kind (people, models that judge, ...) is one check. `judged`: there is a
    judge.
    """
    found: dict[tuple[str, str, str], Check] = {}
    left_out: Counter[str] = Counter()
    for row in rows:
        said = [tag for tag in dict.fromkeys(span.label.strip() for span in row.spans) if tag] or [row.critique]
        if row.label is not False or not any(said):
            continue
        asked: dict[str, tuple[int | None, list[str]]] = {}
        for text in said:
            for name, limit in rules_in(text, row.text, row.finished) or [(JUDGE, None)]:
                asked.setdefault(name, (limit, []))[1].append(text)
        for name, (limit, texts) in asked.items():
            if name == JUDGE and not judged:
                left_out["no_rule_understands_it_and_there_is_no_judge"] += 1
                continue
            key = (row.completion_id, name, row.origin)
            check = _check(row, name, limit, [row.critique] if row.critique else texts)
            if key in found:
                check = _joined(found.pop(key), check)  # at the end, for it was said again
            found[key] = check
    checks = list(found.values())
    if len(checks) > most:
        left_out["older_than_max_checks"] = len(checks) - most
    return checks[-most:], left_out


def counts_of(checks: Sequence[Check], left_out: Mapping[str, int]) -> dict[str, Any]:
    """What will be asked, for reports."""
    return {
        "checks": len(checks),
        "by_asks": dict(Counter(check.asks for check in checks)),
        "left_out": dict(left_out),
    }


def with_rules(prompts: Iterable[Prompt], checks: Iterable[Check]) -> list[Prompt]:
    """The prompts with the rules that complaints about their answers mean, for reward functions: name and limit, as in
    `too_long 18`. Of several limits of one rule the newest."""
    rules: dict[str, dict[str, str]] = {}
    for check in checks:
        if check.asks != JUDGE:
            limit = "" if check.limit is None else f" {check.limit}"
            rules.setdefault(check.prompt_id, {})[check.asks] = f"{check.asks}{limit}"
    return [
        replace(prompt, columns={**prompt.columns, COMPLAINTS: list(rules[prompt.id].values())})
        if prompt.id in rules
        else prompt
        for prompt in prompts
    ]


def wanted(asks: str, limit: int | None) -> str:
    """What a check wants, in words for people."""
    return "the judge finds it better" if asks == JUDGE else RULES[asks].wants.format(limit=limit)


def by_rule(check: Check, answer: Completion) -> bool:
    """Whether an answer passes a check that asks for a rule."""
    return passes(check.asks, check.limit, answer.text, answer.finish_reason == "stop")


def result(check: Check, answer: Completion, now: bool | None, before: bool | None) -> CheckResult:
    """What became of a complaint: `now` whether the new policy's answer passes, `before` whether the last one's did."""
    return CheckResult(
        id=check.id,
        prompt_id=check.prompt_id,
        group=check.group,
        completion_id=check.completion_id,
        text=check.text,
        asks=check.asks,
        limit=check.limit,
        critiques=check.critiques,
        critique_ids=check.critique_ids,
        origin=check.origin,
        feedback_ids=check.feedback_ids,
        answer_id=answer.id,
        answer=answer.text,
        outcome="not_told" if now is None else "fixed" if now else "came_back" if before else "still_there",
        before=before,
    )


def summary(results: Sequence[CheckResult], seed: int) -> dict[str, Any]:
    """Counts of outcomes, over all and by what is asked, as plain JSON types.

    `share_fixed`: `{mean, low, high, n}` over the checks that got an answer, prompt groups resampled. `fixed_before`:
    how many the last promoted policy's answers pass; `share_came_back`: of these; None where there are none.
    """
    told = [one for one in results if one.outcome != "not_told"]
    before = [one for one in told if one.before]
    counts = Counter(one.outcome for one in results)
    asked = sorted({one.asks for one in results})
    return {
        "checks": len(results),
        **{outcome: counts[outcome] for outcome in ("fixed", "still_there", "came_back", "not_told")},
        "fixed_before": len(before),
        "share_fixed": _share(told, seed),
        "share_came_back": counts["came_back"] / len(before) if before else None,
        "by_asks": {name: _outcomes([one for one in results if one.asks == name]) for name in asked},
        "by_origin": dict(Counter(one.origin for one in results)),
    }


def in_words(found: Mapping[str, Any]) -> str:
    """`summary` in a sentence: 12 of 15 complaints fixed, 1 came back."""
    told = found["checks"] - found["not_told"]
    if not told:
        return "no complaint could be asked again"
    unanswered = f"; {found['not_told']} not told" if found["not_told"] else ""
    return f"{found['fixed']} of {told} complaints fixed, {found['came_back']} came back{unanswered}"


def _check(row: CritiquedCompletion, asks: str, limit: int | None, texts: Sequence[str]) -> Check:
    assert row.origin != "implicit"  # nobody was asked: a next message is no critique
    said = said_by((text, row.feedback_ids) for text in texts)
    return Check(
        id=stable_id("check", row.completion_id, asks, row.origin),
        prompt_id=row.prompt_id,
        group=row.group,
        completion_id=row.completion_id,
        text=row.text,
        finished=row.finished,
        token_ids=row.token_ids,
        by_policy=row.by_policy,
        asks=asks,
        limit=limit,
        critiques=tuple(said),
        critique_ids=tuple(said.values()),
        origin=row.origin,
        feedback_ids=row.feedback_ids,
        round=row.round,
    )


def _joined(first: Check, again: Check) -> Check:
    """One check of both complaints."""
    both = (first, again)
    said = said_by(pair for one in both for pair in zip(one.critiques, one.critique_ids, strict=True))
    return replace(
        again,
        critiques=tuple(said),
        critique_ids=tuple(said.values()),
        feedback_ids=tuple(dict.fromkeys([*first.feedback_ids, *again.feedback_ids])),
        round=max(first.round, again.round),
    )


def _outcomes(results: Sequence[CheckResult]) -> dict[str, int]:
    return dict(Counter(one.outcome for one in results))


def _share(told: Sequence[CheckResult], seed: int) -> dict[str, Any] | None:
    fixed = [float(one.outcome == "fixed") for one in told]
    return grouped_mean(fixed, [one.group for one in told], seed=seed)
