from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from samples.faults import write_anew
from samples.reports import EVIL, PROMPTS, answers_of, make_run, recipe_of

from rlhf_loop.errors import UserError
from rlhf_loop.files import write_text
from rlhf_loop.report import status, write_report
from rlhf_loop.report.charts import Series, over_rounds
from rlhf_loop.report.status import render, what_next
from rlhf_loop.run_dir import RunDir


class _Page(HTMLParser):
    """The page's visible text, its tags, and whether every tag is closed."""

    VOID = frozenset(["meta", "br", "img", "link", "input", "hr"])

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.feed(text)
        self.close()
        self.text = re.sub(r"\s+", " ", " ".join(self.parts))

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("li", "p", "tr", "td", "th", "dt", "dd") and self.open[-1] != tag:
            return
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "pre"} & set(self.open):
            self.parts.append(data)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[_Page, str]:
    """The report of three rounds: parsed, and as text."""
    run = make_run(tmp_path_factory.mktemp("whole"))
    return _page(run), (run.path / "report.html").read_text(encoding="utf-8")


def _page(run: RunDir) -> _Page:
    path = write_report(run)
    assert path == run.path / "report.html"
    return _Page(path.read_text(encoding="utf-8"))


def test_what_people_said_in_a_simulated_run_is_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mixed", rounds=1)
    file = run.step(1, "snapshot") / "validation.json"
    checked = json.loads(file.read_text())
    for given, words in (
        ({"simulated:rule": {"given": 94}, "you": {"given": 5}, "ann": {"given": 1}}, "6 pieces of it from people"),
        ({"simulated:rule": {"given": 100}}, "noise and biases, not from people"),
    ):
        write_anew(file, {**checked, "per_annotator": given})
        assert words in _Page(write_report(run).read_text(encoding="utf-8")).text


def test_the_report_tells_the_whole_run(whole: tuple[_Page, str]):
    page, _ = whole
    assert page.open == []
    assert "tomato-soup" in page.text
    assert "simulated annotator" in page.text
    assert "100% of held-out answers of the policy of round 2 are preferred" in page.text
    assert "Later rounds did not pass the gate" in page.text
    assert "2 of 3 rounds decided" in page.text
    assert "is 1.43x; the limit is 1.20x" in page.text
    for title in (
        "Win-rate",
        "Proxy against gold",
        "Judge's score",
        "Reward model's score",
        "KL to the base policy",
        "Length",
        "Diversity",
        "Perplexity, over the base's",
        "Held-out accuracy",
        "Calibration",
        "Time",
    ):
        assert title in page.text
    assert sum(tag == "svg" for tag, _ in page.tags) == 11
    assert "have a critique too vague to act on 1 call a tie 2" in page.text
    assert "share a prompt" not in page.text  # a check that found nothing
    assert "Trained on 60 simulated pairs and 30 reward pairs" in page.text
    assert "peak memory 3.0 GiB" in page.text
    assert "trl 1.16.0" in page.text
    assert "update2-key" in page.text


def test_the_same_prompts_stand_side_by_side_with_the_base_first(whole: tuple[_Page, str]):
    page, _ = whole
    assert "6 of the 12 held-out prompts" in page.text
    start = page.text.index("soup number 2?")
    shown = page.text[start : page.text.index("soup number 4?")]
    places = [shown.index(f"Answer of round {n} to q2") for n in range(4)]
    assert places == sorted(places)
    assert "round 3 · rejected" in shown
    assert "base −0.48" in shown  # the judge's score of the base's answer, which has 48 words


def test_what_models_and_people_wrote_is_escaped(whole: tuple[_Page, str]):
    page, text = whole
    assert "script" not in {tag for tag, _ in page.tags}
    assert EVIL.replace("\x1b", "\ufffd").replace("\x00", "\ufffd") in page.text
    assert "<script" not in text
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", text)


def test_the_report_needs_no_network_and_no_scripts(whole: tuple[_Page, str]):
    page, text = whole
    assert {"link", "script", "iframe", "img"}.isdisjoint({tag for tag, _ in page.tags})
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    references = [v for _, attributes in page.tags for k, v in attributes.items() if k in ("href", "xlink:href", "src")]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert references
    assert all(str(reference).removeprefix("#") in ids for reference in references)
    assert len(ids) == len(set(ids))


def test_charts_take_their_colours_from_the_page(whole: tuple[_Page, str]):
    _, text = whole
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    used = set(re.findall(r"#[0-9a-f]{6}\b", "".join(drawings)))
    assert used <= {"#000000"}, used
    defined = set(re.findall(r"(--[a-z-]+):", text))
    assert set(re.findall(r"var\((--[a-z-]+)\)", text)) <= defined


def test_a_chart_of_one_round_counts_no_parts_of_a_round():
    chart = over_rounds("Win-rate", [Series(label="base", colour="blue", points=[(1, 0.5, 0.3, 0.6)])], limits=(0, 1))
    assert chart is not None
    said = re.findall(r"<text[^>]*>([^<]*)</text>", chart.svg)
    assert said[: said.index("round")] == ["1"]


def test_no_point_lies_below_its_chart():
    points = [(1, 0.0, 0.0, 0.0), (2, 0.5, 0.0, 1.0)]
    chart = over_rounds("Accuracy", [Series(label="head", colour="violet", points=points)], limits=(0.4, 1.02))
    assert chart is not None
    axis = re.search(r'xtick_1">.*?<use [^>]*\by="([\d.]+)"', chart.svg, re.DOTALL)
    assert axis is not None
    drawn = [float(y) for y in re.findall(r'<use [^>]*\by="([\d.]+)"', chart.svg)]
    assert len(drawn) > 3
    assert max(drawn) == float(axis[1])


def test_the_same_run_gives_the_same_report(tmp_path: Path):
    run = make_run(tmp_path, rounds=1)
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_a_run_that_was_only_begun_has_a_report(tmp_path: Path):
    run = RunDir(tmp_path / "begun")
    write_text(run.path / "recipe.yaml", recipe_of().to_yaml())
    assert "No policy has been evaluated yet" in _page(run).text


def test_a_run_with_round_zero_alone_shows_the_base(tmp_path: Path):
    page = _page(make_run(tmp_path, rounds=0))
    assert "No policy has been evaluated yet" in page.text
    assert "Answer of round 0 to q2" in page.text


def test_a_run_whose_every_gate_failed_says_that_the_base_stays(tmp_path: Path):
    page = _page(make_run(tmp_path, rounds=1, perplexity=1.5))
    assert "kept the base policy" in page.text
    assert "rejected policy of round 1" in page.text


def test_a_step_that_was_interrupted_leaves_the_rest_readable(tmp_path: Path):
    run = make_run(tmp_path, rounds=2)
    (run.round(2) / "manifest.json").unlink()
    for step in ("gate", "evaluate"):
        run.step(2, step).rename(run.round(2) / f"{step}.partial")
    page = _page(run)
    assert "2 (begun)" in page.text
    assert "policy of round 1 are preferred" in page.text


def test_peoples_feedback_is_never_called_simulated(tmp_path: Path):
    run = make_run(tmp_path, simulated=False)
    for n in range(4):
        write_anew(run.step(n, "ask") / "summary.json", {"questions": 40, "answered": 0, "annotator": "people"})
    text = _page(run).text.replace("60 simulated", "")
    assert "simulated" not in text
    assert "people's feedback" in text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"no recipe\.yaml"):
        write_report(RunDir(tmp_path))
    with pytest.raises(UserError, match=r"no recipe\.yaml"):
        status(RunDir(tmp_path))


def test_status_gives_rates_decisions_timings_and_the_next_command(tmp_path: Path):
    run = make_run(tmp_path)
    values = status(run)
    assert json.loads(json.dumps(values)) == values
    assert [row["decision"] for row in values["rounds"]] == [None, "promoted", "promoted", "kept"]
    assert values["rounds"][0]["win_rate_vs_base"] is None
    assert set(values["rounds"][1]["win_rate_vs_base"]) == {"mean", "low", "high", "n"}
    assert values["rounds"][1]["timings"]["update"] == 16.0
    assert values["waiting_for_labels"] is None
    assert values["next"] == f"rlhf-loop report {run.path}"


def test_status_of_an_unfinished_run_says_how_to_go_on(tmp_path: Path):
    run = make_run(tmp_path, rounds=1)
    values = status(run)
    assert values["next"] == f"rlhf-loop run {run.path / 'recipe.yaml'} --run-dir {run.path}"
    assert [row["complete"] for row in values["rounds"]] == [True, True]


def test_status_counts_the_questions_that_wait_for_people(tmp_path: Path):
    from rlhf_loop.feedback.store.store import Store
    from rlhf_loop.records import Question

    run = make_run(tmp_path, rounds=1, simulated=False)
    assert status(run)["waiting_for_labels"] is None  # no store yet
    url = f"sqlite:///{run.path / 'feedback.db'}"
    first, second = answers_of(0, 5), answers_of(1, 5)
    with Store.open(url) as store:
        store.add_prompts(PROMPTS)
        store.add_completions([*first, *second])
        store.add_questions(
            Question(id=f"ask{i}", prompt_id=PROMPTS[i].id, a_id=first[i].id, b_id=second[i].id, round=0)
            for i in range(3)
        )
    values = status(run)
    assert values["waiting_for_labels"] == 3
    assert values["next"] == f"rlhf-loop feedback export questions.jsonl --format questions --store {run.path}"


def test_the_status_table_holds_every_round(tmp_path: Path):
    from rich.console import Console

    console = Console(width=120)
    with console.capture() as captured:
        console.print(render(status(make_run(tmp_path, rounds=2))))
    lines = captured.get().splitlines()
    assert any(line.strip().startswith("2") and "promoted" in line and "n=12" in line for line in lines)
    assert not any("next:" in line for line in lines)


def test_status_gives_the_next_command_in_one_line(tmp_path: Path):
    values = status(make_run(tmp_path / ("long" * 20), rounds=2))
    assert what_next(values) == f"next: {values['next']}"
    assert what_next({**values, "waiting_for_labels": 3}).splitlines()[0] == "waiting for labels: 3 queued"


def test_importing_the_report_imports_neither_torch_nor_matplotlib():
    code = "import rlhf_loop.report, sys; assert not {'torch', 'matplotlib', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
