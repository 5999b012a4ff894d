"""Whether a policy can revise its answers by critiques: copies, refusals, and the rule's score before and after.

    OMP_NUM_THREADS=1 python benchmarks/revisions.py --out benchmarks/results/revisions.json

Each prompt is answered once; the simulated annotator's rule says what is wrong with the answer; the policy revises it
by that critique, without any, and by the critique of another prompt's answer. A revision that is set aside (a copy, a
refusal) counts as the answer it revises. Differences are over the same prompts, their intervals resample prompts.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import describe

from rlhf_loop.annotators.rules import brief_and_complete
from rlhf_loop.feedback.intake.prompts import read_prompts
from rlhf_loop.generation import Asked, generate
from rlhf_loop.generation.strategies import refine
from rlhf_loop.generation.strategies.given import Given, Written
from rlhf_loop.models.loading import load_policy
from rlhf_loop.models.wheel_model import WHEEL_MODEL
from rlhf_loop.recipe import Generation, Policy
from rlhf_loop.records import Completion, Prompt, Recalled
from rlhf_loop.resampling import grouped_mean

PROMPTS = Path(__file__).parent.parent / "recipes" / "data" / "quickstart_dev.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=WHEEL_MODEL)
    parser.add_argument("--prompts", type=Path, default=PROMPTS)
    parser.add_argument("--most", type=int, default=48)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    policy = Policy(model=arguments.model)
    loaded = load_policy(policy.model, policy)
    prompts = read_prompts(arguments.prompts, "train")[: arguments.most]
    settings = Generation(
        samples_per_prompt=1, max_new_tokens=64, temperature=arguments.temperature, batch_tokens=32768
    )

    def sample(asked: Sequence[Asked], samples: int) -> list[list[Completion]]:
        place: dict[str, Any] = {"policy_settings": policy, "policy_id": "base", "round": 0, "seed": 0}
        made = generate(loaded, asked, settings.model_copy(update={"samples_per_prompt": samples}), **place)
        return [made[start : start + samples] for start in range(0, len(made), samples)]

    def write(earlier: dict[str, Recalled], critiques: bool) -> Written:
        refining = settings.model_copy(update={"refine": settings.refine.model_copy(update={"share": 1.0})})
        refining.refine.critiques = critiques
        return refine.write(
            Given(prompts=prompts, settings=refining, sample=sample, fits=lambda messages: True, earlier=earlier)
        )

    first = {group[0].prompt_id: group[0] for group in sample([Asked(prompt=prompt) for prompt in prompts], 1)}
    before = {prompt.id: judged(prompt, first[prompt.id]) for prompt in prompts}
    critiques = [(before[prompt.id][1] or ("Make it better.",))[0] for prompt in prompts]
    moved = critiques[len(critiques) // 2 :] + critiques[: len(critiques) // 2]
    result: dict[str, Any] = {
        "machine": describe(),
        "model": arguments.model,
        "prompts": len(prompts),
        "score_before": grouped_mean([before[p.id][0] for p in prompts], [p.id for p in prompts]),
        "revised": {},
    }
    for name, said, used in (
        ("by its critique", critiques, True),
        ("without a critique", critiques, False),
        ("by another answer's critique", moved, True),
    ):
        earlier = {
            prompt.id: Recalled(
                prompt_id=prompt.id, completion_id=first[prompt.id].id, text=first[prompt.id].text, critique=critique
            )
            for prompt, critique in zip(prompts, said, strict=True)
        }
        written = write(earlier, used)
        kept = {completion.prompt_id: completion for completion in written.completions}
        after = [judged(p, kept[p.id])[0] if p.id in kept else before[p.id][0] for p in prompts]
        gain = [value - before[p.id][0] for p, value in zip(prompts, after, strict=True)]
        result["revised"][name] = {
            "kept": len(kept),
            "set_aside": dict(Counter(reason for _, reason in written.set_aside)),
            "gain": grouped_mean(gain, [p.id for p in prompts]),
            "sample": {
                "critique": said[0],
                "before": first[prompts[0].id].text,
                "after": written_text(written, prompts[0]),
            },
        }
        print(name, json.dumps(result["revised"][name]), flush=True)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def judged(prompt: Prompt, completion: Completion) -> tuple[float, tuple[str, ...]]:
    """The rule's value, and its advice."""
    found = brief_and_complete(prompt.asked, completion.text, completion.finish_reason == "stop")
    return found.value, found.advice


def written_text(written: Written, prompt: Prompt) -> str | None:
    """The revision of a prompt's answer, kept or set aside."""
    every = [*written.completions, *(completion for completion, _ in written.set_aside)]
    return next((completion.text for completion in every if completion.prompt_id == prompt.id), None)


if __name__ == "__main__":
    main()
