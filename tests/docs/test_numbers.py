"""Numbers that the pages give are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlhf_loop.evaluation import language_model, winrate
from rlhf_loop.feedback.files.row import MAX_ROW
from rlhf_loop.feedback.importers import FORMATS
from rlhf_loop.feedback.intake import batches, open_rows
from rlhf_loop.feedback.store import database
from rlhf_loop.files import locks
from rlhf_loop.recipe import Recipe
from rlhf_loop.server import access, limits
from rlhf_loop.server.chat import answering
from rlhf_loop.server.feedback import api
from rlhf_loop.server.pages import annotation
from rlhf_loop.watch import events, outbox, watcher

ROOT = Path(__file__).parents[2]
WORDS = {5: "Five", 17: "seventeen", 60: "a minute", 100: "hundred", 3600: "an hour", 10_000: "ten thousand"}
MIB = 2**20

SAID = [
    ("docs/service.md", f"that ends after {access.SESSION_SECONDS // 3600} hours"),
    ("docs/service.md", f"Limits: {limits.RATES['app'][0]:.0f} requests a second for an app"),
    ("docs/service.md", f"for an app, {limits.RATES['annotator'][0]:.0f} for an annotator"),
    ("docs/service.md", f"Failed logins and unknown tokens: {limits.RATES['unknown'][1]} at once"),
    ("docs/service.md", f"bodies of {limits.BODY_BYTES // MIB} MiB, {limits.BULK_BYTES // MIB} MiB for bulk"),
    ("docs/service.md", f"{answering.MOST_WAITING} answers being written"),
    ("docs/service.md", f"a body that stops for {WORDS[limits.BODY_SECONDS]}: 408"),
    ("docs/service.md", f"up to {api.MOST_ITEMS}, stores those"),
    ("docs/watch.md", f"at most {watcher.RETRY_LONGEST / 3600:.0f} hours; the same holds"),
    ("docs/watch.md", f"within {events.TIMEOUT:.0f} seconds ({events.COMMAND_TIMEOUT:.0f} for the command)"),
    ("docs/watch.md", f"at most {WORDS[outbox.LONGEST]}, {outbox.ATTEMPTS} times"),
    ("docs/runs.md", f"lock was not renewed for {locks.LEASE:.0f} seconds"),
    ("docs/feedback_formats.md", f"the memory of {WORDS[batches.BATCH_ROWS]} rows and of SQLite's cache"),
    ("docs/feedback_formats.md", f"SQLite's cache ({database.CACHE_KIB // 1024} MiB)"),
    ("docs/feedback_formats.md", f"A row longer than {MAX_ROW // MIB} MiB is rejected"),
    ("docs/feedback_formats.md", f"from the first {WORDS[open_rows.SAMPLE]} rows"),
    ("docs/evaluation.md", f"a batch holds at most {language_model.BATCH_LOGITS // MIB} Mi of them"),
    ("docs/evaluation.md", f"{language_model.CHUNK_LOGITS // MIB} Mi at a time"),
    ("docs/evaluation.md", f"`null` for fewer than {winrate.MIN_LENGTH_MATCHED}"),
    ("docs/start.md", f"{WORDS[annotation.CARDS_AT_START]} cards wait"),
    ("README.md", f"in [{WORDS[len(FORMATS)]} formats]"),
]  # fmt: skip


@pytest.mark.parametrize(("page", "said"), SAID)
def test_a_page_says_what_the_code_has(page: str, said: str) -> None:
    assert said in re.sub(r"\s+", " ", (ROOT / page).read_text())


def test_each_figure_names_command_commit_machine_and_day() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    lines = [line for line in page.splitlines() if line.count(" | ") == 3]
    rows = [line.removesuffix(" |").split(" | ") for line in lines if not line.startswith(("| ---", "| what"))]
    assert len(rows) > 10
    for _, figure, command, measured in rows:
        assert figure
        commit, machine, day = measured.split(", ")
        assert re.fullmatch(r"[0-9a-f]{7,40}", commit)
        assert f"\n| {machine} |" in page
        assert re.fullmatch(r"\d{1,2} [A-Z][a-z]{2} 20\d\d", day)
        for name in re.findall(r"(?:benchmarks|recipes)/[\w./]+", command):
            assert (ROOT / name).exists(), f"{name} is gone"
        if script := re.search(r"python (benchmarks/\w+\.py)", command):
            text = (ROOT / script[1]).read_text()
            for module in re.findall(r"^from (\w+) import", text, re.MULTILINE):  # what two benchmarks share
                beside = ROOT / "benchmarks" / f"{module}.py"
                text += beside.read_text() if beside.exists() else ""
            assert all(f'"{option}"' in text for option in re.findall(r" (--\w+)", command)), command


def test_the_quickstart_is_as_the_readme_says() -> None:
    recipe = Recipe.load(ROOT / "recipes" / "quickstart.yaml")
    assert recipe.rounds == 3
    assert "runs three rounds" in (ROOT / "README.md").read_text()
