"""What became of complaints, in the report: counts over the rounds, examples, and nothing that a text smuggles in."""

from __future__ import annotations

from pathlib import Path

from samples.reports import make_run, make_step

from rlhf_loop.records import CheckResult
from rlhf_loop.report import write_report
from rlhf_loop.report.complaints import examples, outcomes_of
from rlhf_loop.report.data import read_rounds
from rlhf_loop.rows.checks import summary
from rlhf_loop.run_dir import RunDir

LONG = "The sky is blue because of the way in which light is scattered by the air, which I will now explain at length."
HOSTILE = "</p><script>alert(1)</script> It is too long & <b>bold"


def result(i: int, outcome: str, before: bool | None = None, asks: str = "too_long") -> CheckResult:
    return CheckResult(
        id=f"check-{i}",
        prompt_id=f"p{i}",
        group=f"p{i}",
        completion_id=f"c{i}",
        text=LONG,
        asks=asks,
        limit=20 if asks == "too_long" else None,
        critiques=(HOSTILE if i == 0 else f"Complaint {i}",),
        origin="human",
        feedback_ids=(f"f{i}",),
        answer_id=f"a{i}",
        answer="<img src=x onerror=alert(1)> Scattered light." if i == 0 else "Scattered light.",
        outcome=outcome,
        before=before,
    )


def with_complaints(folder: Path) -> RunDir:
    """A run of three rounds, in which 3, 12 and 11 of 15 complaints are fixed, and in the last one 2 come back."""
    run = make_run(folder)
    for n, fixed in ((1, 3), (2, 12), (3, 11)):
        results = [
            result(i, "fixed" if i < fixed else "still_there", before=i < 3 if n == 2 else None) for i in range(15)
        ]
        if n == 3:
            results = [result(i, "came_back" if i < 2 else one.outcome, i < 12) for i, one in enumerate(results)]
            results[2:13] = [result(i, "fixed", i < 12, "judge" if i % 2 else "too_long") for i in range(2, 13)]
        make_step(run, n, "checks", {"results.parquet": results, "checks.json": summary(results, seed=0)})
    return run


def test_the_report_counts_complaints_over_rounds_and_shows_examples_as_text(tmp_path: Path) -> None:
    run = with_complaints(tmp_path)
    html = write_report(run).read_text()
    section = html.split("What became of complaints")[1].split("</section>")[0]
    assert "<td>15</td><td>3</td><td>20%" in section
    assert "<td>15</td><td>12</td><td>80%" in section
    assert "<td>15</td><td>11</td><td>73%" in section
    assert "<td>2</td><td>2</td><td>12</td><td>0</td></tr>" in section  # still there, came back, fixed before, not told
    assert "judge 5 of 5, too long 6 of 10. 15 by people. Came back" in section
    assert section.count("came back</span>") == 2
    assert "wanted: 20 words or fewer" in section
    assert "<script>" not in section
    assert "<img" not in section
    assert "&lt;script&gt;alert(1)&lt;/script&gt; It is too long &amp; &lt;b&gt;bold" in section


def test_what_became_of_a_piece_of_feedback_is_told_by_round(tmp_path: Path) -> None:
    rounds = read_rounds(with_complaints(tmp_path))
    assert outcomes_of(rounds, ["f0", "nobody's"]) == {
        "f0": [
            {
                "asks": "20 words or fewer",
                "rounds": [
                    {"round": 1, "outcome": "fixed"},
                    {"round": 2, "outcome": "fixed"},
                    {"round": 3, "outcome": "came back"},
                ],
            }
        ]
    }


def test_a_run_without_complaints_has_no_such_section(tmp_path: Path) -> None:
    assert "What became of complaints" not in write_report(make_run(tmp_path)).read_text()
    assert examples([]) == []
