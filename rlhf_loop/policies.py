"""The policies of a run: list, promote, roll back, export with a card and lineage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.store import Store
from rlhf_loop.loop import BASE, Loop
from rlhf_loop.recipe import Recipe
from rlhf_loop.records import Artifact
from rlhf_loop.run_dir import commit_folder, read_json, write_json, write_text


def open_loop(run: Path) -> Loop:
    """The loop of an existing run, from the recipe kept in it."""
    return Loop(Recipe.load(run / "recipe.yaml", to_run=False), run_dir=run)


def listed(run: Path) -> list[dict[str, Any]]:
    """One row a policy, in order of rounds: `{id, round, parent, promoted, path, win_rate_vs_base}`."""
    loop = open_loop(run)
    with Store.open(loop.store_url) as store:
        policies, promoted = store.artifacts(kind="policy", with_feedback=False), loop.promoted_id(store)
    return [
        {
            "id": policy.id,
            "round": policy.round,
            "parent": policy.parent,
            "promoted": policy.id == promoted,
            "path": loop.weights(policy),
            "win_rate_vs_base": _evaluation(loop, policy).get("win_rate_vs_base"),
        }
        for policy in sorted(policies, key=lambda policy: policy.round)
        if loop.holds(policy.id)
    ]


def promote(run: Path, policy_id: str) -> None:
    """Makes `policy_id` the promoted policy; the next round starts from it."""
    loop = open_loop(run)
    with loop.run_dir.locked(), Store.open(loop.store_url) as store:
        _find(loop, store, policy_id)
        store.promote(policy_id)


def rollback(run: Path) -> str:
    """Promotes the policy that was promoted before the current one, and gives its id."""
    loop = open_loop(run)
    with loop.run_dir.locked(), Store.open(loop.store_url) as store:
        promotions = [policy for policy, _ in store.promotions() if loop.holds(policy)]
        if not promotions or promotions[-1] == BASE:
            raise UserError(f"{run}: the base policy is promoted; there is nothing to roll back to")
        before = _promoted_before(promotions)
        store.promote(_find(loop, store, before).id)
        return before


def export(run: Path, output: Path, policy_id: str | None = None, form: str = "merged") -> Path:
    """Writes a policy to `output` with `README.md` (the model card) and `lineage.json`.

    `form`: "merged" for plain float32 weights that transformers and vLLM load, "adapter" for the LoRA adapter as it
    was trained. Raises `UserError` when `output` exists, or there is no adapter.
    """
    if form not in ("merged", "adapter"):
        raise UserError(f"--form {form}: choose merged or adapter")
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output} is not empty; name a new folder")
    loop = open_loop(run)
    with Store.open(loop.store_url) as store:
        policy = _find(loop, store, policy_id or loop.promoted_id(store) or BASE)
        lineage = store.lineage(policy.id)
    source = loop.weights(policy)
    partial = output.with_name(output.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    if form == "adapter":
        if not (Path(source) / "adapter_config.json").exists():
            raise UserError(f"policy {policy.id} is not an adapter; use --form merged")
        shutil.copytree(source, partial, dirs_exist_ok=True)
    else:
        from rlhf_loop.models import merge_policy

        merge_policy(source, partial, loop.recipe.policy)
    write_text(partial / "README.md", _card(loop, policy, form))
    write_json(partial / "lineage.json", lineage)
    if output.exists():
        output.rmdir()
    commit_folder(partial, output)
    return output


def _promoted_before(promotions: Sequence[str]) -> str:
    """The policy that was promoted before the last of `promotions`, which are in order.

    A step back to the one before undoes a promotion, so that two rollbacks go two back and not to and fro.
    """
    standing: list[str] = []
    for policy in promotions:
        if policy in standing[-2:-1]:
            standing.pop()
        else:
            standing.append(policy)
    return standing[-2] if len(standing) > 1 else BASE


def _find(loop: Loop, store: Store, policy_id: str) -> Artifact:
    """A policy of this run; another run may use the store."""
    for policy in store.artifacts(kind="policy", ids=[policy_id]):
        if loop.holds(policy.id):
            return policy
    policies = store.artifacts(kind="policy", with_feedback=False)
    known = sorted(policy.id for policy in policies if loop.holds(policy.id))
    raise UserError(f"no policy {policy_id}; there are: {', '.join(known)}")


def _evaluation(loop: Loop, policy: Artifact) -> dict[str, Any]:
    path = loop.evaluation(policy) / "evaluation.json"
    evaluation: dict[str, Any] = read_json(path) if path.exists() else {}
    return evaluation


def _card(loop: Loop, policy: Artifact, form: str) -> str:
    evaluation = _evaluation(loop, policy)
    recipe = loop.recipe
    simulated = recipe.feedback.annotator is not None
    algorithm = policy.metrics.get("algorithm", "none")
    front = {"library_name": "transformers" if form == "merged" else "peft", "tags": ["rlhf-loop", algorithm, "trl"]}
    numbers = {
        name: evaluation[name]
        for name in ("win_rate_vs_base", "length_matched_win_rate_vs_base", "kl", "perplexity", "plain_text_perplexity")
        if evaluation.get(name)
    }
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in front.items()),
        "---",
        f"# {recipe.name}, policy `{policy.id}`",
        "",
        f"Round {policy.round} of the feedback loop `{recipe.name}`, from `{recipe.policy.model}` by "
        f"{algorithm} on {len(policy.trained_on)} pieces of "
        f"{'SIMULATED ' if simulated else ''}feedback. Parent: `{policy.parent or 'none'}`.",
        "",
        "## Evaluation",
        f"Judge: {evaluation.get('judge', {}).get('name', 'none')}. On held-out prompts:",
        "```json",
        json.dumps(numbers, indent=2),
        "```",
        "",
        "## Use",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer"
        if form == "merged"
        else "from peft import AutoPeftModelForCausalLM",
        'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")'
        if form == "merged"
        else 'model = AutoPeftModelForCausalLM.from_pretrained("THIS_FOLDER")  # base: see adapter_config.json',
        "```",
        "",
        "`lineage.json` names the feedback, reward model and rounds that made it.",
        "",
    ]
    return "\n".join(lines)
