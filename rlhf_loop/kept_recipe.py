"""The recipe that a run keeps: a run goes on with the recipe that it was begun with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlhf_loop.cluster import PLATFORMS, platform
from rlhf_loop.endpoints import settings as endpoint_settings
from rlhf_loop.errors import UserError, shortened
from rlhf_loop.files import read_json, write_json, write_text
from rlhf_loop.files.damage import damaged, reading
from rlhf_loop.files.paths import PLACES, content, paths_in, read_places, relocated
from rlhf_loop.files.store_address import SECRET_KEYS, sqlite_file, without_password
from rlhf_loop.machine import native_attention, native_dtype
from rlhf_loop.recipe import Recipe
from rlhf_loop.run_dir import RunDir
from rlhf_loop.settings import read_yaml

_MAY_CHANGE = (
    "description",
    "rounds",
    "run_dir",
    "launch",
    "accelerate_config",
    "cluster_profile",
    "stages",
    "report_to",
    "annotation",
    "watch",
)
"""Settings that may differ when a run goes on: none of them changes what a step makes."""

_NAMED = 3  # changed settings in the name of a folder


class RecipeChanged(UserError):
    """The run's folder holds a run of another recipe. `elsewhere` is a folder for a run of this one, `changes` what
    differs, in words."""

    def __init__(self, message: str, elsewhere: Path, changes: str):
        super().__init__(message)
        self.elsewhere = elsewhere
        self.changes = changes


def keep_recipe(recipe: Recipe, run: RunDir) -> Recipe:
    """Writes the recipe into the run, or raises `RecipeChanged` where the run was made with another one. Gives it as it
    is in force: what `auto` was when the run was begun."""
    if _kept(run) is None and any(run.path.glob("round_*")):
        raise UserError(f"{run.path} has rounds but no recipe.yaml; choose another folder with --run-dir")
    recipe = check_recipe(recipe, run)
    write_text(run.path / "recipe.yaml", recipe.to_yaml())
    here, known = str(run.path), read_places(run.path)
    found = {path: content(path) for path in paths_in(recipe.model_dump(mode="json"))}
    now = {
        "places": [*(place for place in known["places"] if place != here), here],
        "contents": {path: kept for path, kept in found.items() if kept is not None},
    }
    if now != known:
        write_json(run.path / PLACES, now)
    return recipe


def check_recipe(recipe: Recipe, run: RunDir) -> Recipe:
    """The recipe as it is in force in the run. Raises `RecipeChanged` where the run was made with another one."""
    kept = _kept(run)
    in_force = _in_force(recipe, {})
    if kept is not None:
        # Older runs name no attention, which was transformers' choice.
        kept = _with_defaults(kept | {"policy": {"attn_implementation": None} | kept["policy"]})
        name = kept.get("name")
        in_force = _in_force(recipe, kept["policy"])
        if name != recipe.name:
            raise RecipeChanged(
                f"{run.path} holds a run of recipe `{name}`, not `{recipe.name}`; choose another folder with --run-dir",
                run.path.with_name(recipe.name if recipe.name != run.name else f"{run.name}-2"),
                f"name: {name!r} -> {recipe.name!r}",
            )
        contents = read_places(run.path)["contents"]
        begun = any(run.path.glob("round_*"))
        changed = [
            change
            for change in _changed(kept, in_force.model_dump(mode="json"))
            if not _is_same(*change, contents)
            and (begun or change[0] != "feedback.from")  # a source that is not there ends a run before its first round
        ]
        if changed:
            listed = "\n  ".join(f"{key}: {_shown(old)} -> {_shown(new)}" for key, old, new in changed)
            raise RecipeChanged(
                f"the recipe changed since {run.path} was begun:\n  {listed}\nPut the old values back to go on, or "
                "start a run of the new recipe with --run-dir DIR. Nothing was touched",
                run.path.with_name("-".join([run.name, *(_named(key, new) for key, _, new in changed[:_NAMED])])),
                listed,
            )
    return in_force


def _in_force(recipe: Recipe, kept: Mapping[str, Any]) -> Recipe:
    """The recipe with what `auto` is: what the run was begun with, or what the machine is fast in that its stages run
    on: this one, or nodes of a cluster."""
    policy = recipe.policy
    elsewhere = None
    if recipe.launch in PLATFORMS:
        elsewhere = platform(recipe.launch).read_profile(recipe.cluster_profile).accelerated
    now = {"dtype": native_dtype(elsewhere), "attn_implementation": native_attention(elsewhere)}
    auto = {name: kept.get(name, value) for name, value in now.items() if getattr(policy, name) == "auto"}
    return recipe.model_copy(update={"policy": policy.model_copy(update=auto)})


def _kept(run: RunDir) -> dict[str, Any] | None:
    """The recipe that a run keeps; where `recipe.yaml` is gone, as the first stage was told it. None: there is none."""
    if (run.path / "recipe.yaml").exists():
        return read_kept(run.path)[0]
    told = min(run.path.glob("round_*/*.arguments.json"), default=None)
    if told is None:
        return None
    with reading(told):
        values: dict[str, Any] = relocated(read_json(told)["recipe"], run.path)
        return values


def _changed(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """(key, value before, value now) of what changes what a step makes."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            change
            for name in dict.fromkeys([*old, *new])
            if not _may_change(key, name)
            for change in _changed(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        ]
    return [] if old == new else [(key, old, new)]


def _may_change(block: str, name: str) -> bool:
    """Whether the setting `name` of a block, "" for the recipe itself, may differ when a run goes on."""
    if re.fullmatch(r"endpoints\.[^.]+", block):
        return name in endpoint_settings.MAY_CHANGE
    if block == "generation":
        return name == "vllm"
    return not block and name in _MAY_CHANGE


def _only_moved(old: Any, new: Any, contents: Mapping[str, str]) -> bool:
    """Whether two paths stand for the same: what was at the old one is now at the new one."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return all(a == b or _only_moved(a, b, contents) for a, b in zip(old, new, strict=True))
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        return all(old[name] == new[name] or _only_moved(old[name], new[name], contents) for name in old)
    if not isinstance(old, str) or not isinstance(new, str):
        return False
    return old in contents and contents[old] == content(new)


def without_secrets(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of a recipe for what others may read: no password in the URLs of its stores, and nothing of whom
    `watch` tells of rounds, for URLs and commands hold keys."""
    values = dict(recipe)
    if values.get("watch"):
        values["watch"] = {**values["watch"], "webhooks": [], "command": None}
    if values.get("store"):
        values["store"] = without_password(values["store"])
    if (values.get("feedback") or {}).get("from"):
        values["feedback"] = {**values["feedback"], "from": list(map(without_password, values["feedback"]["from"]))}
    return values


def _is_same(key: str, old: Any, new: Any, contents: Mapping[str, str]) -> bool:
    """Whether a setting that is written otherwise means the same as before."""
    if key == "store":
        return _same_store(old, new)
    if key == "feedback.from":
        old, new = ([without_password(store) for store in stores or ()] for stores in (old, new))
    return old == new or _only_moved(old, new, contents)


def _same_store(old: Any, new: Any) -> bool:
    """What a store holds changes: one that is gone and one that is there are taken for the same. A password may change,
    and a copy of a run has none."""
    if old and new and without_password(old) == without_password(new):
        return True
    before, after = sqlite_file(old or ""), sqlite_file(new or "")
    if before is None or after is None or not after.exists():
        return False
    return not before.exists() or before.samefile(after)


def _with_defaults(kept: dict[str, Any]) -> dict[str, Any]:
    """A kept recipe with the settings that came after it was written; as it is where it can no longer be read."""
    try:
        return Recipe.model_validate(kept).model_dump(mode="json")
    except ValidationError:
        return kept


def _shown(value: Any) -> str:
    """A value without the password of a URL."""
    text = re.sub(r"(://[^:/\s]*):[^@\s]*@", r"\1:***@", repr(value))
    return shortened(re.sub(rf"([?&](?:{'|'.join(SECRET_KEYS)})=)[^&\s'\"]*", r"\1***", text))


def _named(key: str, value: Any) -> str:
    """A change in the name of a folder: its value, a number with its key before it."""
    *_, name = key.split(".")
    if isinstance(value, (str, int, float)) and not isinstance(value, bool) and "://" not in str(value):
        text = str(value).rstrip("/").rsplit("/", 1)[-1]
        name = text if isinstance(value, str) else f"{name}-{text}"
    return re.sub(r"[^\w.]+", "-", name).strip("-")[:40]


def read_kept(run: Path) -> tuple[dict[str, Any], str]:
    """The recipe that a run keeps, as plain values and as text; a damaged one is a `UserError` with the remedy."""
    path = run / "recipe.yaml"
    with reading(path):
        text = path.read_text(encoding="utf-8")
        try:
            values = read_yaml(text, "it")
        except UserError as error:
            raise damaged(path, str(error).splitlines()[0]) from None
        blocks = [values[name] for name in ("policy", "update", "feedback")]
        if not all(isinstance(block, dict) for block in [*blocks, values["feedback"].get("annotator") or {}]):
            raise TypeError("it holds no recipe")
    return relocated(values, run.resolve()), text
