"""The policies of a run: list, promote, roll back, export with a card and lineage."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.provenance.lineage import lineage
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import commit_folder, explain_os_error, failed_write, read_json, write_json, write_text
from rlhf_loop.files.damage import check_step
from rlhf_loop.machine import Dtype
from rlhf_loop.models.card import model_card
from rlhf_loop.records import Artifact
from rlhf_loop.runs import BASE, Run, open_run

DTYPES: tuple[str, ...] = get_args(Dtype)
"""Precisions that weights can be exported in."""


def listed(run: Path) -> list[dict[str, Any]]:
    """One row a policy, in order of rounds: `{id, round, parent, promoted, path, win_rate_vs_base}`."""
    opened = open_run(run)
    with Store.open(opened.store_url) as store:
        policies, promoted = store.artifacts(kind="policy", with_feedback=False), opened.promoted_id(store)
    return [
        {
            "id": policy.id,
            "round": policy.round,
            "parent": policy.parent,
            "promoted": policy.id == promoted,
            "path": opened.weights(policy),
            "win_rate_vs_base": _evaluation(opened, policy).get("win_rate_vs_base"),
        }
        for policy in sorted(policies, key=lambda policy: policy.round)
        if opened.holds(policy.id)
    ]


def promote(run: Path, policy_id: str) -> None:
    """Makes `policy_id` the promoted policy; the next round starts from it."""
    opened = open_run(run)
    with opened.run_dir.locked(), Store.open(opened.store_url) as store:
        _find(opened, store, policy_id)
        opened.promote(store, policy_id)


def rollback(run: Path) -> str:
    """Promotes the policy that was promoted before the current one, and gives its id."""
    opened = open_run(run)
    with opened.run_dir.locked(), Store.open(opened.store_url) as store:
        promotions = [policy for policy, _ in opened.promotions(store)]
        if not promotions or promotions[-1] == BASE:
            raise UserError(f"{run}: the base policy is promoted; there is nothing to roll back to")
        before = _promoted_before(promotions)
        opened.promote(store, _find(opened, store, before).id)
        return before


def export(
    run: Path, output: Path, policy_id: str | None = None, form: str = "merged", dtype: str | None = None
) -> Path:
    """Writes a policy to `output` with `README.md` (the model card) and `lineage.json`.

    `form`: "merged" for plain weights that transformers and vLLM load, "adapter" for the LoRA adapter as it was
    trained. `dtype`: of merged weights, by default that of the recipe's policy. Raises `UserError` when `output`
    exists, or there is no adapter.
    """
    if form not in ("merged", "adapter"):
        raise UserError(f"--form {form}: choose merged or adapter")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: choose {', '.join(DTYPES)}")
    if dtype is not None and form == "adapter":
        raise UserError("--dtype is for merged weights; an adapter stays as it was trained")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is there already, and no empty folder; name a new one")
    opened = open_run(run)
    with Store.open(opened.store_url) as store:
        policy = _find(opened, store, policy_id or opened.promoted_id(store) or BASE)
        came_from = lineage(store, policy.id)
    source = opened.weights(policy)
    if form == "adapter" and not (Path(source) / "adapter_config.json").exists():
        raise UserError(f"policy {policy.id} is not an adapter; use --form merged")
    check_step(Path(source))
    partial = output.with_name(output.name + ".partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
    except OSError as error:
        raise explain_os_error(error, output) from None
    try:
        if form == "adapter":
            shutil.copytree(source, partial, dirs_exist_ok=True)
        else:
            from rlhf_loop.models.loading import merge_policy

            merge_policy(source, partial, opened.recipe.policy, dtype)
        write_text(
            partial / "README.md", model_card(opened.recipe, policy, _evaluation(opened, policy), form, output.name)
        )
        write_json(partial / "lineage.json", _without_places(came_from, opened.run_dir.path))
        if output.exists():
            output.rmdir()
        commit_folder(partial, output)
    except UserError:
        raise
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if (failed := failed_write(error, output.parent)) is None:
            raise
        raise explain_os_error(failed, output) from error
    return output


def _without_places(value: Any, run: Path) -> Any:
    """`value` without this machine's folders: what lies in the run relative to it, of other paths the last part."""
    if isinstance(value, dict):
        return {name: _without_places(part, run) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_places(part, run) for part in value]
    if isinstance(value, str) and value.startswith("/"):
        path = Path(value)
        return str(path.relative_to(run)) if path.is_relative_to(run) else path.name
    return value


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


def _find(run: Run, store: Store, policy_id: str) -> Artifact:
    """A policy of this run; another run may use the store."""
    for policy in store.artifacts(kind="policy", ids=[policy_id]):
        if run.holds(policy.id):
            return policy
    policies = store.artifacts(kind="policy", with_feedback=False)
    known = sorted(policy.id for policy in policies if run.holds(policy.id))
    raise UserError(f"no policy {policy_id}; there are: {', '.join(known)}")


def _evaluation(run: Run, policy: Artifact) -> dict[str, Any]:
    path = run.evaluation(policy) / "evaluation.json"
    evaluation: dict[str, Any] = read_json(path) if path.exists() else {}
    return evaluation
