"""Stages 3 and 9: the reward model scores completions.

reward/  completions.parquet  prompts.parquet  ->  scores.parquet  features.parquet
                                                   critiqued_scores.parquet, of answers in critiques.parquet that were
                                                   complained of, where they are compared with the completions
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rlhf_loop.files import write_json
from rlhf_loop.models.distributed import gather, is_main, sharded_map
from rlhf_loop.progress import Progress
from rlhf_loop.record_files import read_records, write_records
from rlhf_loop.records import Completion, CritiquedCompletion, Prompt, Score
from rlhf_loop.rewards.kept_features import KeptFeatures
from rlhf_loop.rewards.texts import of_completions
from rlhf_loop.rows.critiques.fresh import answers
from rlhf_loop.stages.arguments import StageArguments
from rlhf_loop.stages.reward import kept_before, load


def run(arguments: StageArguments, folder: Path, progress: Progress) -> None:
    """Scores every completion that the reward has something to say of, sorted by length first, so that ranks get equal
    work; answers that were complained of beside them."""
    prompts: list[Prompt] = read_records(Path(arguments.inputs["prompts"]), Prompt)
    completions: list[Completion] = read_records(Path(arguments.inputs["completions"]), Completion)
    features = KeptFeatures([*kept_before(arguments), Path(arguments.inputs["reward"])])
    reward = load(Path(arguments.inputs["reward"]), arguments.recipe, features, progress)
    given = arguments.inputs.get("critiques")
    critiqued = answers(read_records(Path(given), CritiquedCompletion)) if given else []
    known = {prompt.id for prompt in prompts}  # not those that only stand within a conversation
    critiqued = [answer for answer in critiqued if answer.prompt_id in known]
    scored = list({c.id: c for c in [*critiqued, *completions]}.values())
    by_length = sorted(scored, key=lambda c: (len(c.text), c.id))
    progress(0, len(scored), "")

    def score(share: Sequence[Completion]) -> list[Score]:
        return reward.score(prompts, share)

    scores = {s.completion_id: replace(s, round=arguments.round) for s in sharded_map(score, by_length)}
    progress(len(scored), len(scored), "")
    features.write(folder, of_completions(prompts, scored))
    reasons = sum(map(Counter, gather([dict(reward.unanswered)])), Counter())
    if is_main():
        if reasons:
            write_json(folder / "unanswered.json", {"reasons": dict(reasons)})
        write_records(folder / "scores.parquet", [scores[c.id] for c in completions if c.id in scores])
        if given:
            rows = [scores[c.id] for c in critiqued if c.id in scores]
            write_records(folder / "critiqued_scores.parquet", rows)
