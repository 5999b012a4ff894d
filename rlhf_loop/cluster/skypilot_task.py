"""The SkyPilot task of a run: what its nodes have, and the shipped `run.sh` that they run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rlhf_loop.cluster import SubmittedRun, words_there
from rlhf_loop.cluster.scripts import with_head
from rlhf_loop.cluster.skypilot_profile import SkyPilotProfile
from rlhf_loop.errors import UserError

PROJECT = "~/rlhf-loop"
"""What the folder is called on nodes in which the command is typed; of a run on the node's disk too."""
COPIES = "RLHF_LOOP_COPIES"
"""The variable that tells a node where the whole rounds of the run are copied to."""


def task(profile: SkyPilotProfile, name: str, run: SubmittedRun) -> dict[str, Any]:
    """A run's task, as SkyPilot's YAML has it. Raises `UserError` for what nodes would not get, and for a run that
    they would."""
    here = Path.cwd()
    sent = {file: here / file for file in profile.files}
    words = words_there(run, ".")
    _check_sent(profile, run, sent)
    folder = run.folder.relative_to(here).as_posix()
    there = f"{profile.shared or '.'}/{folder}"
    words = [there if word == f"./{folder}" else word for word in words]
    told = {"RLHF_LOOP_RUN": there}
    if run.accelerate_config is not None:
        told["RLHF_LOOP_ACCELERATE_CONFIG"] = f"./{run.accelerate_config.relative_to(here).as_posix()}"
    if profile.copies:
        told[COPIES] = f"{profile.copies.rstrip('/')}/{run.folder.name}"
    parts: dict[str, Any] = {
        "name": name,
        "num_nodes": profile.nodes,
        "resources": resources(profile),
        "volumes": {profile.volume.mount: profile.volume.name} if profile.volume else {},
        "file_mounts": {f"{PROJECT}/{file}": str(path) for file, path in sent.items()},
        "envs": {**profile.env, **told},
        "secrets": dict.fromkeys(profile.secrets),  # their values come with the command
        "setup": "\n".join(["set -e", *profile.setup]) + "\n" if profile.setup else "",
        "run": with_head(
            "skypilot/run.sh", ["set -e", f"cd {PROJECT}", *profile.activate, f"set -- {shlex.join(words)}"]
        ),
    }
    return {key: value for key, value in parts.items() if value}


def resources(profile: SkyPilotProfile) -> dict[str, Any]:
    """What each node has. A plain cluster goes when its run ends or waits for people; it only stops where the run lies
    on its disk. The nodes of a managed job go anyway."""
    values = {
        "accelerators": profile.accelerators,
        "infra": profile.infra,
        "cpus": profile.cpus,
        "memory": profile.memory,
        "disk_size": profile.disk,
        "image_id": profile.image,
        "use_spot": profile.spot or None,
        "autostop": None
        if profile.managed
        else {"idle_minutes": profile.idle_minutes, "down": profile.shared is not None},
        **profile.resources,
    }
    return {key: value for key, value in values.items() if value is not None}


def _check_sent(profile: SkyPilotProfile, run: SubmittedRun, sent: dict[str, Path]) -> None:
    for file, path in sent.items():
        if not path.exists():
            raise UserError(
                f"files: there is no {file} in {Path.cwd()}: make it there (the shipped profile's `dist`: "
                "`pip wheel --no-deps --wheel-dir dist .` in a checkout), or take it out of `files` in the profile"
            )
        if run.folder.is_relative_to(path):
            raise UserError(f"files: {file} would send the run's folder, {run.folder}, along: name what is beside it")
    for needed, what in ((Path(run.words[0]), "the recipe"), (run.accelerate_config, "accelerate_config")):
        if needed is not None and not any(needed.is_relative_to(path) for path in sent.values()):
            raise UserError(
                f"{what}, {needed}, is in nothing that nodes get ({', '.join(sent)}): name it in `files` of the profile"
            )
