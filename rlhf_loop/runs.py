"""A run: its folder, the recipe that it keeps, the store that it uses, and the policies that it made."""

from __future__ import annotations

import re
import time
from pathlib import Path

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import read_json
from rlhf_loop.files.damage import remedy
from rlhf_loop.files.step_folders import read_manifest
from rlhf_loop.files.store_address import in_project
from rlhf_loop.kept_recipe import read_kept
from rlhf_loop.recipe import Recipe
from rlhf_loop.records import Artifact, stable_id
from rlhf_loop.run_dir import RunDir

BASE = "base"
"""Artifact id of the policy that the recipe starts from."""


class Run:
    """A recipe and the folder of the run that it makes."""

    def __init__(self, recipe: Recipe, run_dir: str | Path | None = None):
        self.recipe = recipe
        self.run_dir = RunDir(Path(run_dir or recipe.run_dir or Path("runs") / recipe.name).resolve())

    @property
    def store_url(self) -> str:
        """Where the feedback is kept: the recipe's `store`, or a database inside the run."""
        return in_project(self.recipe.store or self.run_dir.store_url, self.recipe.project)

    def weights(self, policy: Artifact) -> str:
        """Where a policy's weights are: the recipe's model, or the folder of the round that made it."""
        if policy.id == BASE:
            return self.recipe.policy.model
        return str(self.run_dir.step(policy.round, "update") / "policy")

    def evaluation(self, policy: Artifact) -> Path:
        """The folder of a policy's evaluation."""
        warm = policy.round == 0 and policy.id != BASE
        return self.run_dir.step(policy.round, "evaluate_warm_start" if warm else "evaluate")

    def policy_id(self, n: int) -> str | None:
        """Of what round `n`'s update made, by content (its weights); None where it made nothing yet."""
        folder = self.run_dir.step(n, "update")
        manifest = read_manifest(folder)
        if manifest is None:
            return None
        weights = [made for name, made in sorted(manifest["files"].items()) if _is_weights(name)]
        made_of: tuple[object, ...] = (n, weights)
        arguments = folder.with_name("update.arguments.json")
        earlier = read_json(arguments).get("run") if arguments.exists() else None
        if earlier is not None:  # made by a version that named policies after the run's folder
            made_of = (earlier, self.recipe.seed, n)
        return f"policy-{n:03d}-{stable_id('policy', *made_of)[:8]}"

    def made_in(self, n: int) -> str:
        """The id of the policy that round `n` made, whose update is complete."""
        made = self.policy_id(n)
        assert made is not None
        return made

    def policy(self, store: Store, policy_id: str) -> Artifact:
        """A policy by its id, without what it was trained on."""
        for artifact in store.artifacts(kind="policy", ids=[policy_id], with_feedback=False):
            return artifact
        raise UserError(f"policy {policy_id} is not in the store; was {self.run_dir.path} moved to another store?")

    def holds(self, policy_id: str) -> bool:
        """False for a policy that another run made which uses the same store."""
        made = re.fullmatch(r"policy-(\d{3,})-[0-9a-f]{8}", policy_id)
        return made is None or self.policy_id(int(made[1])) == policy_id

    def begin(self, store: Store) -> None:
        """Promotes the base where nothing is promoted yet."""
        if (promotions := self.promotions(store)) and self.run_dir.promotions() is None:
            self.run_dir.keep_promotions(promotions)
        elif not promotions:
            self.promote(store, BASE)

    def promote(self, store: Store, policy_id: str) -> None:
        """Makes a policy this run's promoted one.

        That stands in the run's folder: another run of the same recipe and seed makes policies of the same ids, and in
        the store, which both may use, nobody could tell whose promotion it is. The store keeps the history of all.
        """
        promotions = self.promotions(store)
        store.promote(policy_id)
        if not promotions or promotions[-1][0] != policy_id or self.run_dir.promotions() is None:
            self.run_dir.keep_promotions([*promotions, (policy_id, time.time())])

    def promotions(self, store: Store) -> list[tuple[str, float]]:
        """The policies of this run that were promoted, in order, each with when; of a run that an earlier version made
        as far as the store can tell."""
        kept = self.run_dir.promotions()
        return kept if kept is not None else [one for one in store.promotions() if self.holds(one[0])]

    def promoted_id(self, store: Store) -> str | None:
        """The policy of this run that was promoted last; None before any was."""
        return next((policy for policy, _ in reversed(self.promotions(store))), None)

    def promoted_before(self, store: Store, n: int) -> str:
        """The policy that round `n` starts from: not one of this round or a later one, where it is made again."""
        promoted = BASE
        for policy, _ in self.promotions(store):
            if (made := re.match(r"policy-(\d{3,})-", policy)) and int(made[1]) >= n:
                break
            promoted = policy
        return promoted


def open_run(folder: Path) -> Run:
    """An existing run, with the recipe kept in it."""
    read_kept(folder)
    try:
        recipe = Recipe.load(folder / "recipe.yaml", to_run=False)
    except UserError as error:
        raise UserError(f"{error}. If the file was damaged, {remedy(folder / 'recipe.yaml')}") from None
    return Run(recipe, folder)


def _is_weights(name: str) -> bool:
    return name.startswith("policy/") and name.endswith(".safetensors")
