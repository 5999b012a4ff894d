"""A finished run to damage, what can happen to a file, and commands called in this process as the shell calls them."""

from __future__ import annotations

import random
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_loop.cli import main
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import read_json, write_json
from rlhf_loop.files.damage import hash_file
from rlhf_loop.files.step_folders import read_manifest
from rlhf_loop.records import to_dict
from rlhf_loop.run_dir import STEPS, RunDir

ROOT = Path(__file__).parents[2]

OVERRIDES = ["evaluation.bootstrap=100", "watch={min_new: 1000}"]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    error: str

    @property
    def sentence(self) -> str:
        """What it said was wrong."""
        return next((line for line in self.error.splitlines() if line.startswith("error: ")), "")


def command(capfd: pytest.CaptureFixture[str], *words: str | Path) -> Ended:
    """`rlhf-loop WORDS` in this process; whatever leaves it but `SystemExit` is the traceback a user would see."""
    before = sys.argv
    sys.argv = ["rlhf-loop", *map(str, words)]
    capfd.readouterr()
    try:
        main()
        code: object = 0
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        sys.argv = before
    out, error = capfd.readouterr()
    return Ended(int(code) if isinstance(code, int) else 1, out, error)


def run_words(run: Path, *more: str) -> list[str]:
    """The command that makes, or goes on with, the run."""
    return ["run", str(ROOT / "recipes" / "smoke.yaml"), *OVERRIDES, "--run-dir", str(run), *more]


def copied(run: Path, place: Path) -> Path:
    """A copy of a run under the same name, so that it is taken for the same one."""
    shutil.copytree(run, place / run.name)
    return place / run.name


def results(run: Path) -> dict[str, object]:
    """What two runs that ended alike have in common: hashes of all that the steps made, and the store."""
    run_dir = RunDir(run)
    made = {
        f"{number}/{step}": manifest["files"]
        for number in run_dir.rounds()
        for step in STEPS
        if (manifest := read_manifest(run_dir.step(number, step)))
    }
    with Store.open(run / "feedback.db") as store:
        stored = {
            "completions": [to_dict(c) for c in store.completions()],
            "feedback": [to_dict(f) for f in store.feedback()],
            "scores": [to_dict(s) for s in store.scores()],
            "policies": [(a.id, a.parent, a.trained_on) for a in store.artifacts(kind="policy")],
            "promoted": store.promoted_id(),
        }
    return {"made": made, "rounds": run_dir.complete_rounds(), **stored}


def follow(sentence: str, run: Path) -> bool:
    """Deletes what the sentence says to delete; False where it names nothing to delete."""
    named = re.search(r"[;,.] ?delete (.*?)(?: and type the same|: what was not told|$)", sentence)
    if named is None:
        return False
    if named[1] in ("this file", "it"):
        targets = [re.search(rf"({re.escape(str(run))}\S*?)(?: is |: )", sentence)[1]]
    else:
        targets = named[1].split(" and ")
    for target in map(Path, targets):
        assert target.is_relative_to(run)
        assert target != run
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
    return True


def _cut(held: bytes, path: Path) -> bytes:
    return held[: len(held) // 2]


def _other_kind(held: bytes, path: Path) -> bytes:
    """Sound in itself, but of something else."""
    if path.suffix == ".parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"other": [1, 2, 3]}), sink)
        return sink.getvalue().to_pybytes()
    if path.suffix == ".safetensors":
        import torch
        from safetensors.torch import save

        return save({"other": torch.zeros(2)})
    return {".yaml": b"- a list\n", ".jsonl": b"[]\n", ".jinja": b"{{ messages }}"}.get(path.suffix, b"[]")


def _bytes_inside(held: bytes, path: Path) -> bytes:
    """Other bytes near the end, where a file of weights keeps numbers."""
    noise = random.Random(0).randbytes(24)
    place = max(0, len(held) * 3 // 4 - len(noise))
    return held[:place] + noise + held[place + len(noise) :]


DAMAGES: dict[str, Callable[[bytes, Path], bytes]] = {
    "empty": lambda held, path: b"",
    "cut": _cut,
    "random": lambda held, path: random.Random(1).randbytes(max(64, len(held))),
    "inside": _bytes_inside,
    "other kind": _other_kind,
    "null": lambda held, path: b"null",
    "no text": lambda held, path: b"\xff\xfe\xfa" + held[3:],
}


def damage(path: Path, how: str) -> None:
    """Does it to a file, which keeps its place."""
    path.write_bytes(DAMAGES[how](path.read_bytes(), path))


def reading_commands(run: Path, place: Path) -> dict[str, list[str]]:
    """The commands that read a run and leave it as it is."""
    return {
        "status": ["status", str(run)],
        "report": ["report", str(run)],
        "policy list": ["policy", "list", str(run)],
        "policy export": ["policy", "export", str(run), str(place / "exported")],
        "feedback stats": ["feedback", "stats", "--store", str(run)],
        "feedback check": ["feedback", "check", "--store", str(run)],
        "serve": ["serve", str(run), "--port", "8975"],
        "watch": ["watch", str(ROOT / "recipes" / "smoke.yaml"), *OVERRIDES, "--run-dir", str(run), "--once"],
    }


def unlike(ended: Ended, sound: Ended, run: Path) -> str:
    """How a command that read a sound run ended otherwise; "" where it did not."""
    same = ended.code == sound.code and _timeless(ended.out) == _timeless(sound.out)
    return "" if same else f"{ended.code}: {ended.out[-500:]} {ended.error[-500:]}"


def _timeless(text: str) -> str:
    return re.sub(r"\d\d:\d\d:\d\d", "", text)


def files_of(run: Path) -> list[Path]:
    """Each file of a run, but for the page that is written anew and what SQLite keeps beside the store."""
    found = sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file())
    return [path for path in found if path.name not in ("report.html", "feedback.db-wal", "feedback.db-shm")]


def write_anew(file: Path, value: dict[str, Any]) -> None:
    """A JSON file of a step, as if the step had written this."""
    write_json(file, value)
    step = next(folder for folder in file.parents if (folder / "manifest.json").exists())
    manifest = read_json(step / "manifest.json")
    made = {**manifest["files"], str(file.relative_to(step)): hash_file(file)}
    write_json(step / "manifest.json", {**manifest, "files": made})
