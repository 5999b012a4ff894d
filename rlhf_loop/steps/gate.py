"""Step 7: promote the new policy, or keep the last one. Numbers in, decision out."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from rlhf_loop.recipe import Gate


def decide(evaluation: dict[str, Any], settings: Gate, complaints: dict[str, Any] | None = None) -> dict[str, Any]:
    """`{promoted, checks, reason}` from what `rlhf_loop.evaluation.evaluate` measured; `complaints`: what became of
    them (`rlhf_loop.rows.checks.summary`), where they were asked again.

    Each check is `{name, value, limit, passed, text}`; all must pass. A limit on something that was not measured
    fails, as nothing shows that it holds; only plain text may be absent, since a recipe need not name any (then the
    check passes and says so). The win-rate is judged by the low end of its interval: `non_inferiority` wants it at
    0.5 - margin or more (the new policy is not clearly worse), `superiority` above 0.5 (clearly better).
    """
    checks = [_win_rate(evaluation, settings)]
    if settings.max_kl is not None:
        value = _number(evaluation, "kl", "per_completion")
        checks.append(_at_most("kl", "KL to the base policy", value, settings.max_kl, " nats a completion"))
    if settings.max_perplexity_ratio is not None:
        value = _number(evaluation, "perplexity", "ratio")
        label = "base perplexity of its answers, over that of the base's answers,"
        checks.append(_at_most("perplexity_ratio", label, value, settings.max_perplexity_ratio, "x"))
    if settings.max_plain_text_ratio is not None:
        value = _number(evaluation, "plain_text_perplexity", "ratio")
        label = "perplexity on plain text, over the base's,"
        check = _at_most("plain_text_ratio", label, value, settings.max_plain_text_ratio, "x")
        if evaluation.get("plain_text_perplexity") is None:
            check |= {"passed": True, "text": "plain text was not measured: the recipe has no evaluation.plain_text"}
        checks.append(check)
    if settings.max_length_ratio is not None:
        value = _number(evaluation, "length", "ratio")
        label = "length of its answers, over that of the base's,"
        checks.append(_at_most("length_ratio", label, value, settings.max_length_ratio, "x"))
    if settings.min_distinct_ratio is not None:
        value = _number(evaluation, "collapse", "distinct_2_ratio")
        label = "share of different word pairs in its answers, over the base's,"
        checks.append(_at_least("distinct_ratio", label, value, settings.min_distinct_ratio, "x"))
    if settings.max_overlap is not None:
        value = _number(evaluation.get("collapse") or {}, "overlap", "mean")
        label = "share of its answers' 4-grams that the last policy's answers hold"
        checks.append(_at_most("overlap", label, value, settings.max_overlap, ""))
    calibration = (evaluation.get("judge") or {}).get("calibration")
    if calibration is not None:
        checks.append(judge_agreement(calibration))
    if settings.max_came_back is not None:
        checks.append(_came_back(complaints or {}, settings.max_came_back))
    failed = [check["text"] for check in checks if not check["passed"]]
    if failed:
        return {"promoted": False, "checks": checks, "reason": "kept the last policy: " + "; ".join(failed)}
    return {"promoted": True, "checks": checks, "reason": f"promoted: {checks[0]['text']}, and all limits hold"}


def judge_agreement(calibration: dict[str, Any]) -> dict[str, Any]:
    """The check of a judge that answered pairs with known answers (`steps/calibrate.py`): the share of them that it got
    right is at least `min_agreement`."""
    rate, limit = calibration["agreement"], calibration["min_agreement"]
    share, passed = rate["share"], rate["share"] >= limit
    text = (
        f"the judge agrees with {share:.2f} [{rate['low']:.2f}, {rate['high']:.2f}] of {rate['n']} pairs with known "
        f"answers; the limit is {limit:.2f}"
    )
    return {"name": "judge_agreement", "value": share, "limit": limit, "passed": passed, "text": text}


def _win_rate(evaluation: dict[str, Any], settings: Gate) -> dict[str, Any]:
    against = "the last policy" if settings.against == "previous" else "the base policy"
    low = _number(evaluation, f"win_rate_vs_{settings.against}", "low")
    superior = settings.rule == "superiority"
    limit = 0.5 if superior else 0.5 - settings.margin
    check: dict[str, Any] = {"name": f"win_rate_vs_{settings.against}", "value": low, "limit": limit}
    wanted = f"above {limit:.2f}" if superior else f"{limit:.2f} or more"
    if low is None:
        return check | {"passed": False, "text": f"the win-rate against {against} was not measured"}
    rate = evaluation[f"win_rate_vs_{settings.against}"]
    passed = low > limit if superior else low >= limit - 1e-12  # 0.5 - 0.05 is not exactly 0.45
    text = (
        f"win-rate against {against} is {rate['mean']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}] over {rate['n']} "
        f"answers; its low end {'is' if passed else 'must be'} {wanted}"
    )
    return check | {"passed": passed, "text": text}


def _came_back(complaints: dict[str, Any], limit: float) -> dict[str, Any]:
    """Of the complaints that the last promoted policy had fixed; where there are none, none can come back."""
    share = complaints.get("share_came_back")
    if share is None:
        text = "no complaint was fixed before that could have come back"
        return {"name": "came_back", "value": None, "limit": limit, "passed": True, "text": text}
    label = f"share of the {complaints['fixed_before']} complaints fixed before that came back"
    return _at_most("came_back", label, share, limit, "")


def _at_most(name: str, label: str, value: float | None, limit: float, unit: str) -> dict[str, Any]:
    return _limited(name, label, value, limit, unit, operator.le)


def _at_least(name: str, label: str, value: float | None, limit: float, unit: str) -> dict[str, Any]:
    return _limited(name, label, value, limit, unit, operator.ge)


def _limited(
    name: str, label: str, value: float | None, limit: float, unit: str, holds: Callable[[float, float], bool]
) -> dict[str, Any]:
    check: dict[str, Any] = {"name": name, "value": value, "limit": limit}
    if value is None:
        return check | {"passed": False, "text": f"{label} was not measured; the limit is {limit:.2f}{unit}"}
    text = f"{label} is {_short(value, limit, holds)}{unit}; the limit is {limit:.2f}{unit}"
    return check | {"passed": holds(value, limit), "text": text}


def _short(value: float, limit: float, holds: Callable[[float, float], bool]) -> str:
    """Two decimals, or as many as show on which side of the limit the value is."""
    for digits in range(2, 7):
        text = f"{value:.{digits}f}"
        if holds(float(text), limit) == holds(value, limit):
            return text
    return repr(value)


def _number(evaluation: dict[str, Any], block: str, key: str) -> float | None:
    """A measured number; None when it is absent or not finite."""
    value = (evaluation.get(block) or {}).get(key)
    return float(value) if value is not None and math.isfinite(value) else None
