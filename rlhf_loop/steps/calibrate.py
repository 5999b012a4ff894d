"""Round 0: a judge behind a server answers pairs with known answers, before it may decide anything.

calibration file  ->  calibration.json
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path

from rlhf_loop.endpoints.asks import Unanswered
from rlhf_loop.endpoints.client import Endpoints
from rlhf_loop.endpoints.judging import compare
from rlhf_loop.errors import UserError
from rlhf_loop.feedback.asking.calibration import read_cards
from rlhf_loop.feedback.quality.significance import share
from rlhf_loop.files import write_json
from rlhf_loop.files.damage import hash_file
from rlhf_loop.progress import Progress, counting, silent
from rlhf_loop.recipe import EndpointJudge, Recipe


def calibrate(recipe: Recipe, folder: Path, run: Path, progress: Progress = silent) -> None:
    """Writes how often the recipe's judge gives the known answer. `run`: the folder that keeps what endpoints answer.

    A pair that is known to be even, good or bad, wants a tie. One that the judge does not answer, or answers another
    way when the answers change places, is not right. Raises `UserError` for a file without pairs.
    """
    judge = recipe.evaluation.judge
    assert isinstance(judge, EndpointJudge)
    known = read_cards(judge.calibration)
    if not known.cards:
        told = "".join(f"; {count} rows: {reason}" for reason, count in known.left_out.items())
        raise UserError(f"evaluation.judge.calibration: {judge.calibration} holds no pairs with known answers{told}")
    with Endpoints(recipe.endpoints, run, counting(progress, "judging")) as endpoints:
        verdicts = compare(
            endpoints[judge.endpoint], judge.rubric, [(card.prompt, card.a, card.b) for card in known.cards]
        )
    wanted = ["tie" if card.question.known == "both_bad" else card.question.known for card in known.cards]
    given = [None if isinstance(verdict, Unanswered) else verdict.winner for verdict in verdicts]
    right = sum(mine == known for mine, known in zip(given, wanted, strict=True))
    write_json(
        folder / "calibration.json",
        {
            "agreement": asdict(share(right, len(wanted))),
            "min_agreement": judge.min_agreement,
            "pairs": len(wanted),
            "right": right,
            "orders_disagreed": sum(not isinstance(one, Unanswered) and not one.agreed for one in verdicts),
            "unanswered": dict(Counter(one.reason for one in verdicts if isinstance(one, Unanswered))),
            "left_out": known.left_out,
        },
    )


def calibration_hash(judge: EndpointJudge) -> str:
    """Of the file with known answers."""
    if not judge.calibration.is_file():
        raise UserError(f"evaluation.judge.calibration: no file at {judge.calibration}")
    return hash_file(judge.calibration)
