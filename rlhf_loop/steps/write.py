"""Steps 8 and 10 of a round: the policy in force writes candidates, and the best questions about them go to people."""

from __future__ import annotations

from pathlib import Path

from rlhf_loop.files import read_json
from rlhf_loop.runs import BASE
from rlhf_loop.steps.ask import ask
from rlhf_loop.steps.earlier import steps_of_rounds
from rlhf_loop.steps.keep import keep_completions, keep_questions
from rlhf_loop.steps.making import Making, endpoints_block
from rlhf_loop.steps.recall import recall
from rlhf_loop.steps.variety import variety
from rlhf_loop.strategies import STRATEGIES


def generate(at: Making, n: int, frozen: Path, policy: str, reward: Path | None) -> Path:
    """The folder of the candidates that `policy`, an id, writes."""
    writer = at.run.policy(at.store, policy)
    inputs, read = {"prompts": frozen / "prompts.parquet", **at.complained_of(frozen)}, [frozen]
    if policy != BASE:
        read.append(at.files.step(writer.round, "update"))
    past = _past(at, n, frozen, reward)
    folder = at.make.stage(
        n,
        "generate",
        "generate",
        follows=[
            "generation",
            *(["critiques", "pairing"] if at.complained_of(frozen) else []),
            *endpoints_block(at.recipe.generation),
        ],
        inputs=inputs | past,
        read=[*read, *past.values()],
        values={"policy": at.run.weights(writer), "policy_id": at.written_by(policy)},
    )
    candidates = keep_completions(at.store, folder / "completions.parquet")
    at.figures |= {"candidates": len(candidates), "generated_by": at.written_by(policy)}
    before = at.files.step(n - 1, "generate") / "completions.parquet" if n else None
    at.figures["variety"] = variety(candidates, before, at.recipe.seed)
    return folder


def embed(at: Making, n: int, frozen: Path, candidates: Path) -> None:
    """Vectors of the texts that no earlier round embedded, where `generation` asks for them."""
    if at.recipe.generation.embeds is None:
        return
    earlier = steps_of_rounds(at.files, n, "embed", "embedded")
    older = {
        name: path
        for name, path in steps_of_rounds(at.files, n, "generate", "completions").items()
        if name.replace("completions", "embedded") not in earlier
    }
    folder = at.make.stage(
        n,
        "embed",
        "embed",
        follows=["generation"],
        inputs={
            "prompts": frozen / "prompts.parquet",
            "completions": candidates / "completions.parquet",
            **{name: path / "completions.parquet" for name, path in older.items()},
            **earlier,
        },
        read=[frozen, candidates, *older.values(), *earlier.values()],
        values={},
    )
    at.figures["variety"] |= read_json(folder / "embed.json")["variety"]


def ask_questions(at: Making, n: int, frozen: Path, candidates: Path, scores: Path | None) -> None:
    """Questions about the candidates, for people or answered by the recipe's annotator."""
    folder = at.make.step(
        n,
        "ask",
        [frozen, candidates, *([scores] if scores else [])],
        at.make.blocks("feedback", *endpoints_block(at.recipe.feedback.annotator)),
        lambda partial, report: ask(
            at.recipe,
            n,
            prompts=frozen / "prompts.parquet",
            completions=candidates / "completions.parquet",
            scores=scores / "scores.parquet" if scores else None,
            folder=partial,
            run=at.files.path,
            progress=report,
        ),
    )
    annotator = at.recipe.feedback.annotator
    overlap = at.recipe.annotation.overlap if annotator is None else None
    at.progress.note("", keep_questions(at.store, folder, overlap, annotator.called if annotator else ""))


def _past(at: Making, n: int, frozen: Path, reward: Path | None) -> dict[str, Path]:
    """What the strategy of generation reads of the run's past: stage inputs. Round 0 has none."""
    strategy, past = STRATEGIES[at.recipe.generation.strategy], {}
    if n and strategy.scores and reward is not None:
        past["reward"] = reward
    if n and (strategy.revises or strategy.exemplars):
        past["recalled"] = at.make.step(
            n,
            "recall",
            [frozen],
            {**at.make.blocks("generation", "pairing"), **at.critiques()},
            lambda partial, _: recall(at.store, at.recipe, n, frozen, partial),
        )
    if n and strategy.exemplars:
        past |= steps_of_rounds(at.files, n, "embed", "embedded")
    return past
