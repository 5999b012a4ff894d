"""Steps 6 and 7 of a round: how good the candidate policy is, by a judge that was measured itself, and the gate."""

from __future__ import annotations

from pathlib import Path

from rlhf_loop.files import read_json, write_json
from rlhf_loop.files.step_folders import read_manifest
from rlhf_loop.progress import Progress
from rlhf_loop.recipe import EndpointJudge
from rlhf_loop.records import Artifact
from rlhf_loop.rows.checks import in_words
from rlhf_loop.runs import BASE
from rlhf_loop.steps.calibrate import calibrate, calibration_hash
from rlhf_loop.steps.contents import plain_text_hash, spec_hashes
from rlhf_loop.steps.earlier import kept_features
from rlhf_loop.steps.gate import decide, judge_agreement
from rlhf_loop.steps.keep import keep_completions, keep_reward_model
from rlhf_loop.steps.making import Making, interval, promoted_at


def train_judge(at: Making, frozen: Path) -> None:
    """In round 0: a judge of its own feedback, which drives no update."""
    folder = at.make.stage(
        0,
        "judge",
        "reward",
        follows=["reward"],
        inputs={"pairs": frozen / "judge_pairs.parquet", "prompts": frozen / "judge_prompts.parquet"},
        read=[frozen],
        values={"role": "judge", "specs": spec_hashes(at.recipe)},
    )
    keep_reward_model(at.store, folder, 0, "judge")


def calibrate_judge(at: Making, judge: EndpointJudge) -> None:
    """A judge behind a server shows what it is worth, where a trained one would be trained."""
    folder = at.make.step(
        0,
        "judge",
        [],
        {
            "judge": at.make.blocks("evaluation")["evaluation"]["judge"],
            "endpoint": at.make.blocks("endpoints")["endpoints"][judge.endpoint],
            "calibration": calibration_hash(judge),
        },
        lambda partial, report: calibrate(at.recipe, partial, at.files.path, report),
    )
    at.progress.note("", judge_agreement(read_json(folder / "calibration.json"))["text"])


def evaluate(
    at: Making, n: int, frozen: Path, candidate: Artifact, reward: Path | None, step: str = "evaluate"
) -> Path:
    """The folder of what was measured of a policy on held-out prompts; `reward`: that of the round's reward model."""
    inputs = {"prompts": frozen / "held_out.parquet"}
    read = [frozen]
    if at.recipe.evaluation.judge.kind != "rule":
        inputs["judge"] = at.files.step(0, "judge")
        read.append(inputs["judge"])
    if candidate.id != BASE:
        previous = BASE if n == 0 else promoted_at(frozen)
        inputs["base"] = at.files.step(0, "evaluate")
        inputs["previous"] = at.run.evaluation(at.run.policy(at.store, previous))
        read += [inputs["base"], inputs["previous"], at.files.step(n, "update")]
    if reward is not None:
        kept = kept_features(at.files, n, ("evaluate",))
        inputs |= {"reward": reward, **kept}
        read += [reward, *kept.values()]
    folder = at.make.stage(
        n,
        step,
        "evaluate",
        follows=["evaluation", "generation", *at.asked_in_evaluation()],
        inputs=inputs,
        read=read,
        values={
            "policy": at.run.weights(candidate),
            "policy_id": candidate.id if at.recipe.policy.endpoint is None else at.written_by(candidate.id),
            "plain_text": plain_text_hash(at.recipe),
        },
    )
    keep_completions(at.store, folder / "answers.parquet")
    if step == "evaluate":
        at.figures["evaluated"] = candidate.id
    return folder


def ask_again(at: Making, n: int, frozen: Path, candidate: Artifact, reward: Path | None) -> Path | None:
    """What people complained of, asked again of the candidate, where the recipe does."""
    if at.recipe.critiques is None or at.recipe.critiques.checks is None:
        return None
    inputs = {"checks": frozen / "checks.parquet", "prompts": frozen / "prompts.parquet"}
    read = [frozen, at.files.step(n, "update")]
    before = at.files.step(at.run.policy(at.store, promoted_at(frozen)).round, "checks")
    if read_manifest(before) is not None:  # not of the base, nor of a policy of rounds without checks
        inputs["before"] = before
        read.append(before)
    if reward is not None:
        kept = kept_features(at.files, n, ("checks",))
        inputs |= {"reward": reward, **kept}
        read += [reward, *kept.values()]
    folder = at.make.stage(
        n,
        "checks",
        "checks",
        follows=["critiques", "generation", *at.asked_of(at.recipe.critiques.checks.judge)],
        inputs=inputs,
        read=read,
        values={"policy": at.run.weights(candidate), "policy_id": candidate.id},
    )
    at.progress.note("", in_words(read_json(folder / "checks.json")))
    return folder


def gate(at: Making, n: int, frozen: Path, candidate: Artifact, evaluation: Path, checks: Path | None) -> str:
    """The id of the policy in force after the round, which is promoted here."""
    numbers = read_json(evaluation / "evaluation.json")
    complaints = read_json(checks / "checks.json") if checks is not None else None

    def make(partial: Path, _: Progress) -> None:
        write_json(partial / "decision.json", decide(numbers, at.recipe.gate, complaints))

    read = [evaluation, *([checks] if checks is not None else [])]
    folder = at.make.step(n, "gate", read, at.make.blocks("gate"), make)
    decision = read_json(folder / "decision.json")
    at.progress.note("", f"win-rate vs base {interval(numbers['win_rate_vs_base'])}")
    at.progress.note("", decision["reason"])
    kept = promoted_at(frozen)
    policy = candidate.id if decision["promoted"] else kept
    if policy != kept and at.promoted() == kept:  # not when a person promoted another one in the meantime
        at.run.promote(at.store, policy)
    return policy
