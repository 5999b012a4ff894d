"""The table in docs/runs.md of what test_sharded.py measured.

    pytest -m slow tests/models/test_sharded.py --junitxml=measured.xml
    python tests/samples/sharded_matrix.py measured.xml

Reads one or several reports; of a case that is in several, the last one counts.
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree

UPDATES = ("sft", "dpo", "kto", "reward", "grpo", "rloo", "ppo")
LAUNCHERS = {
    "ddp": "DDP",
    "fsdp2": "FSDP2",
    "fsdp2_hsdp": "HSDP",
    "deepspeed_zero2": "ZeRO-2",
    "deepspeed_zero3": "ZeRO-3",
    "deepspeed_zero3_offload": "ZeRO-3, offload",
}


def measured(reports: list[str]) -> dict[tuple[str, str, str], float]:
    """The largest difference of each (launcher, case, what it was compared with), of tests that passed."""
    found: dict[tuple[str, str, str], float] = {}
    for report in reports:
        for test in ElementTree.parse(report).iter("testcase"):
            if test.find("failure") is not None or test.find("error") is not None:
                continue
            for kept in test.iterfind("properties/property[@name='difference']"):
                launcher, case, compared, difference = json.loads(kept.get("value", ""))
                found[launcher, case, compared] = difference
    return found


def table(found: dict[tuple[str, str, str], float]) -> str:
    """Rows: updates, with LoRA and full; columns: launchers."""
    lines = ["| | " + " | ".join(LAUNCHERS.values()) + " |", "| --- |" + " --- |" * len(LAUNCHERS)]
    for update in UPDATES:
        for size in ("lora", "full"):
            case = f"{update}-{size}"
            cells = (_cell(found, launcher, case) for launcher in LAUNCHERS)
            lines.append(f"| {update}, {'LoRA' if size == 'lora' else size} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(found: dict[tuple[str, str, str], float], launcher: str, case: str) -> str:
    """The difference from one process, else from DDP, in brackets; `r` where it was resumed, with the difference from a
    training that was not, where there is any."""
    said = []
    alone, beside = (found.get((launcher, *compared)) for compared in ((f"{case}-sgd", "one process"), (case, "ddp")))
    if alone is not None:
        said.append(_short(alone))
    elif beside is not None:
        said.append(f"({_short(beside)})")
    resumed = found.get((launcher, f"{case}-resumed", "never stopped"))
    if resumed is not None:
        said.append(f"r {_short(resumed)}" if resumed else "r")
    return " ".join(said) or "-"


def _short(difference: float) -> str:
    return f"{difference:.0e}".replace("e-0", "e-") if difference else "0"


if __name__ == "__main__":
    print(table(measured(sys.argv[1:])))
