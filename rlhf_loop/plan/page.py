"""A plan as plain values, and as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlhf_loop.plan.advice import Advice
from rlhf_loop.plan.case import Memory
from rlhf_loop.plan.hardware import GIB
from rlhf_loop.plan.operations import SHARES, Time
from rlhf_loop.plan.planning import USABLE, Plan

if TYPE_CHECKING:
    from rich.table import Table

KIND = (
    "An estimate: memory is counted from the shapes of the models and of the largest batch, time from multiplications. "
    "Nothing was loaded or run."
)


def values(found: Sequence[Plan], best: Plan, advice: Advice | None) -> dict[str, Any]:
    """Everything, for JSON. Bytes and seconds are plain numbers; a time that is not known is None."""
    case = best.case
    hardware = case.hardware
    return {
        "recipe": case.recipe.name,
        "estimate": KIND,
        "fits": best.fits,
        "hardware": {
            "kind": hardware.kind,
            "name": hardware.name,
            "memory": hardware.memory,
            "devices": hardware.devices,
            "machines": hardware.machines,
            "operations_per_second": hardware.peak,
            "bytes_per_second": hardware.bandwidth,
            "speed_is_measured": hardware.measured,
        },
        "assumptions": {
            "dtype": case.dtype,
            "usable_share_of_memory": USABLE,
            "shares_of_peak": SHARES[hardware.kind],
            "prompt_tokens": case.implied.prompt,
            "answer_tokens": case.implied.answer,
            "notes": list(case.implied.notes),
        },
        "model": {
            "name": case.policy.name,
            "family": case.policy.family,
            "parameters": case.policy.parameters,
            "layers": case.policy.layers,
        },
        "sharing": {
            plan.case.sharing.name: {
                "config": f"recipes/accelerate/{plan.case.sharing.config}",
                "fits": plan.fits,
                "stages": [_memory(stage) for stage in plan.stages],
            }
            for plan in found
        },
        "recommended": best.case.sharing.name,
        "times": [
            {"stage": t.stage, "texts": t.texts, "operations": t.operations, "seconds": t.seconds} for t in best.times
        ],
        "changes": None if advice is None else _changes(advice),
    }


def render(found: Sequence[Plan], best: Plan, advice: Advice | None) -> list[Any]:
    """What the command prints: texts and tables of rich."""
    case, hardware = best.case, best.case.hardware
    machines = f"{hardware.machines} machines of " if hardware.machines > 1 else ""
    each = f"{hardware.devices} x " if hardware.kind == "gpu" else ""
    shown: list[Any] = [
        f"{case.recipe.name}: {case.policy.name}, {_count(case.policy.parameters)} parameters, {case.dtype}",
        f"{machines}{each}{hardware.name}, {hardware.memory / GIB:.0f} GiB{' each' if each else ''}",
        *(f"  {note}" for note in case.implied.notes),
        "",
        _memory_table(best),
        "",
        _time_table(best.times),
        _speed(best),
    ]
    if len(found) > 1:
        shown += ["", _sharing_table(found)]
    shown += ["", *_verdict(best, advice), "", KIND]
    return shown


def _memory_table(plan: Plan) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("stage", "GiB", "", "of which, when most is taken"):
        table.add_column(name, justify="right" if name == "GiB" else "left", no_wrap=name == "stage", overflow="fold")
    for stage in plan.stages:
        largest = sorted(stage.parts.items(), key=lambda part: -part[1])
        told = ", ".join(f"{name} {_gib(size)}" for name, size in largest if size >= 0.01 * stage.total)
        moment = f" ({stage.moment})" if stage.moment else ""
        fits = "" if stage.total <= plan.room else "too large"
        table.add_row(stage.stage, _gib(stage.total), fits, f"{told}{moment}")
    return table


def _time_table(times: Sequence[Time]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("stage of the last round", "texts, at most", "10^12 operations", "time, about"):
        table.add_column(name, justify="left" if name.startswith("stage") else "right", no_wrap=True)
    for one in times:
        table.add_row(one.stage, f"{one.texts:,}", f"{one.operations / 1e12:,.1f}", _duration(one.seconds))
    known = [one.seconds for one in times if one.seconds is not None]
    if len(known) == len(times):
        total = sum(one.operations for one in times) / 1e12
        table.add_row("together", "", f"{total:,.1f}", _duration(sum(known)))
    return table


def _speed(plan: Plan) -> str:
    hardware = plan.case.hardware
    if hardware.peak is None or hardware.bandwidth is None:
        return "time is not told: the speed of this machine was not measured"
    shares = SHARES[hardware.kind]
    source = "measured here for a second" if hardware.measured else "by its data sheet"
    return (
        f"time assumes {shares['products']:.0%} of {hardware.peak / 1e12:,.2f} x 10^12 operations a second and "
        f"{shares['bandwidth']:.0%} of {hardware.bandwidth / 1e9:,.0f} GB/s, {source}"
    )


def _sharing_table(found: Sequence[Plan]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("sharing out", "largest stage", "GiB", "main memory, GiB", "fits", "config"):
        table.add_column(name, justify="right" if "GiB" in name else "left", no_wrap=True)
    for plan in found:
        largest = max(plan.stages, key=lambda stage: stage.total)
        host = max(stage.host for stage in plan.stages)
        table.add_row(
            plan.case.sharing.name,
            largest.stage,
            _gib(largest.total),
            _gib(host) if host else "-",
            "yes" if plan.fits else "no",
            f"recipes/accelerate/{plan.case.sharing.config}",
        )
    return table


def _verdict(plan: Plan, advice: Advice | None) -> list[str]:
    config = f"recipes/accelerate/{plan.case.sharing.config}"
    if advice is None:
        if plan.case.hardware.total == 1:
            return ["It fits."]
        return [f"It fits with {plan.case.sharing.name}: launch=child accelerate_config={config}"]
    names = ", ".join(stage.stage for stage in plan.too_large)
    said = [f"It does not fit: {names} would take more than {USABLE:.0%} of the memory."]
    if not advice.changes:
        return [*said, "Nothing that was tried makes it smaller: take a smaller model, or a device with more memory."]
    said.append("What makes it fit:" if advice.fits else "What helps most, and is not enough:")
    for change in advice.changes:
        words = " ".join(f"'{one}'" if " " in one else one for one in change.settings)
        said.append(f"  {words or f'--gpus {change.devices}'}")
    after = advice.plan
    if after.case.hardware.total > 1:
        said.append(f"  launch=child accelerate_config=recipes/accelerate/{after.case.sharing.config}")
    said.append(f"Then the largest stage takes {_gib(after.largest)} GiB.")
    if not advice.fits:
        said.append("Take a smaller model, or devices with more memory.")
    return said


def _memory(stage: Memory) -> dict[str, Any]:
    return {
        "stage": stage.stage,
        "moment": stage.moment,
        "bytes": stage.total,
        "parts": dict(stage.parts),
        "sure": stage.sure,
        "main_memory_of_a_machine": stage.host,
    }


def _changes(advice: Advice) -> dict[str, Any]:
    return {
        "fits": advice.fits,
        "sharing": advice.plan.case.sharing.name,
        "largest_stage": advice.plan.largest,
        "settings": [setting for change in advice.changes for setting in change.settings],
        "devices": next((change.devices for change in advice.changes if change.devices), None),
    }


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}" if size < 100 * GIB else f"{size / GIB:.0f}"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f}B" if number >= 1e9 else f"{number / 1e6:.0f}M"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
