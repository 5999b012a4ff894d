"""Steps 1 to 5 of a round: feedback becomes a reward model, scores, rows to train on, and a candidate policy."""

from __future__ import annotations

from pathlib import Path

from rlhf_loop.algorithms import ALGORITHMS
from rlhf_loop.files import read_json
from rlhf_loop.progress import Progress
from rlhf_loop.records import Artifact
from rlhf_loop.rows.next_messages import none_in_words
from rlhf_loop.runs import BASE
from rlhf_loop.steps.assemble import assemble
from rlhf_loop.steps.contents import has_critic, spec_hashes
from rlhf_loop.steps.earlier import kept_features, reward_of_same_pairs, steps_before
from rlhf_loop.steps.keep import keep_model, keep_reward_model, keep_scores
from rlhf_loop.steps.making import Making, interval, promoted_at
from rlhf_loop.steps.snapshot import snapshot

CONTROL = (
    "CONTROL EXPERIMENT: critiques are shuffled between answers (critiques.control), so nothing can be learned from "
    "what they say"
)


def freeze(at: Making, n: int) -> Path:
    """The feedback so far, frozen and checked: the folder of the snapshot, which all other steps stand on."""

    def make(partial: Path, _: Progress) -> None:
        promoted = at.run.promoted_before(at.store, n)
        snapshot(at.store, at.recipe, n, partial, promoted, at.forgetting.sources)

    folder = at.make.step(n, "snapshot", [], at.critiques(), make)
    report = read_json(folder / "validation.json")
    pairs, refused = report["pairs"]["train"], len(report["quarantined"])
    at.figures |= {"pairs": pairs, "quarantined": refused}
    if n:
        text = f"{pairs} pairs to learn from; {refused} records quarantined, {report['set_aside']} ties or skips"
        at.progress.note("", text)
    if n == 1 and "next_messages" in report and (none := none_in_words(report["next_messages"])) is not None:
        at.progress.note("", none)
    return folder


def train_reward(at: Making, n: int, frozen: Path) -> Path:
    """The folder of the round's reward model: an earlier round's, where there is nothing new to learn from."""
    specs = spec_hashes(at.recipe)
    names = ["pairs", "critiques"] if has_critic(at.recipe) else ["pairs"]
    learned_from = {name: frozen / f"{name}.parquet" for name in names}
    earlier = reward_of_same_pairs(at.files, n, frozen, specs, [path.name for path in learned_from.values()])
    if earlier is not None:
        at.progress.note("reward", f"no new {' or '.join(names)}: the reward model of round {earlier} stays")
        return at.files.step(earlier, "reward")
    kept = kept_features(at.files, n, ("rescore", "reward", "score", "generate"))
    folder = at.make.stage(
        n,
        "reward",
        "reward",
        follows=["reward", *at.asked],
        inputs={**learned_from, "prompts": frozen / "prompts.parquet", **kept},
        read=[frozen, *kept.values()],
        values={"role": "reward", "specs": specs},
    )
    made = keep_reward_model(at.store, folder, n, "reward_model", list(learned_from.values()))
    for name, values in made.metrics.items():
        if values.get("accuracy"):
            at.progress.note("", f"{name}: held-out accuracy {interval(values['accuracy'])}")
    return folder


def score(at: Making, n: int, step: str, frozen: Path, reward: Path, completions: Path) -> Path:
    """The folder of the scores of a folder of candidates; `step`: `score`, of those that wait, or `rescore`, of fresh
    ones."""
    kept = kept_features(at.files, n, ("rescore", "reward", "generate"), rounds=1) if step == "score" else {}
    if step == "rescore" and (completions / "features.parquet").exists():
        kept[f"features_{n:03d}_generate"] = completions
    critiqued = at.complained_of(frozen) if step == "score" else {}
    folder = at.make.stage(
        n,
        step,
        "score",
        follows=["reward", *critiqued, *at.asked],
        inputs={
            "reward": reward,
            "prompts": frozen / "prompts.parquet",
            "completions": completions / "completions.parquet",
            **critiqued,
            **kept,
        },
        read=[frozen, reward, completions, *kept.values()],
        values={},
    )
    if (folder / "unanswered.json").exists():
        reasons = read_json(folder / "unanswered.json")["reasons"]
        told = "; ".join(f"{count}: {reason}" for reason, count in reasons.items())
        at.progress.note("", f"answers without a score: {told}")
    mean = at.figures[f"mean_{step}"] = keep_scores(at.store, folder)
    if step == "rescore" and mean is not None:
        at.progress.note("", f"mean reward of the fresh candidates {mean:+.3f}")
    return folder


def assemble_rows(at: Making, n: int, frozen: Path, waiting: Path | None, scores: Path | None) -> Path:
    """The folder of the rows that the update consumes; `waiting`, `scores`: of the candidates, where there are any."""
    algorithm = at.algorithm(n)
    critiqued = at.complained_of(frozen)
    folder = at.make.step(
        n,
        "assemble",
        [path for path in (frozen, waiting, scores) if path is not None],
        {**at.make.blocks("pairing"), "algorithm": algorithm, **at.critiques()},
        lambda partial, _: assemble(
            at.recipe,
            n,
            algorithm,
            frozen=frozen,
            folder=partial,
            completions=waiting / "completions.parquet" if waiting else None,
            scores=scores / "scores.parquet" if scores else None,
            critiqued_scores=scores / "critiqued_scores.parquet" if scores and critiqued else None,
        ),
    )
    summary = read_json(folder / "summary.json")
    origins = ", ".join(
        f"{count} {origin.removesuffix('s') if count == 1 else origin}"
        for origin, count in summary["by_origin"].items()
    )
    at.progress.note("", f"{summary['rows']} rows to train {algorithm} on ({origins})")
    if summary.get("control") is not None:
        at.progress.note("", CONTROL)
    return folder


def update(at: Making, n: int, frozen: Path, training: Path, reward: Path | None) -> Artifact:
    """The candidate policy; `reward` is the folder of the round's reward model."""
    algorithm, update, promoted = ALGORITHMS[at.algorithm(n)], at.recipe.update, promoted_at(frozen)
    origin = at.run.made_in(0) if n and at.recipe.warm_start is not None else BASE
    start = promoted if n and update.start_from == "promoted" else origin
    reference = promoted if n and update.reference == "previous" else origin
    follows, inputs, read = ["update"], {"training_data": training / "training_data.parquet"}, [training]
    if n == 0:
        follows.append("warm_start")
    if (training / "critiques.parquet").exists():
        follows.append("critiques")
        inputs["critiques"] = training / "critiques.parquet"
    if algorithm.online:
        assert reward is not None
        follows.append("generation")
        inputs["reward"] = reward
        read.append(reward)
    folder = at.make.stage(
        n,
        "update",
        "update",
        follows=follows,
        inputs=inputs,
        read=read,
        values={
            "start": at.run.weights(at.run.policy(at.store, start)),
            "reference": at.run.weights(at.run.policy(at.store, reference)),
            "step_offset": steps_before(at.files, n),
        },
    )
    for name, counts in read_json(folder / "metrics.json").get("critiques", {}).items():
        left_out = "".join(f", {count} left out ({reason})" for reason, count in counts["left_out"].items())
        found = f"off, {counts['off']}" if "off" in counts else f"{counts['examples']} answers{left_out}"
        at.progress.note("", f"critiques.{name}: {found}")
    # Where only the reward model speaks, the policy was trained on what that was trained on.
    only_reward = algorithm.consumes in ("prompts", "best_of_n")
    rows = [frozen / "pairs.parquet" if only_reward else training / "training_data.parquet"]
    rows += [inputs["critiques"]] if "critiques" in inputs else []
    return keep_model(at.store, folder, n, at.run.made_in(n), "policy", parent=start, rows=rows)
