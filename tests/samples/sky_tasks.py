"""Tasks and volumes of SkyPilot, read by SkyPilot itself: `python sky_tasks.py FILE.yaml ...` in an environment that
has it. Nothing is started: neither its API server nor anything on a cloud."""

import sys

from sky import Task
from sky.utils import common_utils, schemas
from sky.utils.yaml_utils import read_yaml


def check(path: str) -> None:
    """Raises for what SkyPilot refuses, and for what it drops."""
    said = read_yaml(path)
    if "type" in said:
        common_utils.validate_schema(said, schemas.get_volume_schema(), f"{path}: ")
        return
    task = Task.from_yaml(path)
    task.expand_and_validate_file_mounts()
    kept, resources = task.to_yaml_config(), task.get_resource_config()
    assert task.num_nodes == said["num_nodes"]
    for key in ("name", "volumes", "envs", "setup", "run"):
        assert (kept.get(key) or None) == said.get(key), f"{key} became {kept.get(key)!r}"
    dropped = said.get("resources", {}).keys() - resources.keys()
    assert dropped <= ({"accelerators"} if "ordered" in resources else set()), f"dropped: {dropped}"


for name in sys.argv[1:]:
    check(name)
