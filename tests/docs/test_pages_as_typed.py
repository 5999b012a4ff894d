"""The commands of README and docs/start.md, typed one after the other in one folder, as their readers would.

Models are stubbed by tiny ones, recipes are cut to a round of a few prompts, and the service is not kept running."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_loop.cli import app
from rlhf_loop.errors import UserError

ROOT = Path(__file__).parents[2]
HUB_MODEL = "HuggingFaceTB/SmolLM2-360M-Instruct"
ELSEWHERE = ("make ", "sbatch ", "accelerate launch ")  # an installation, a cluster, several GPUs


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(ELSEWHERE)]


def cut_down(recipe: Path) -> None:
    """A recipe that runs in seconds: what it says otherwise stays."""
    values = yaml.safe_load(recipe.read_text())
    values["rounds"] = 1
    values["policy"] = {"model": "tiny-random:0", "dtype": "float32"}
    values["generation"] |= {"max_new_tokens": 8, "prompts_per_round": 8}
    values["update"]["lora"] = {"r": 2, "alpha": 4}
    for trainer in [values["update"].get("trainer", {}), *values["update"].get("trainers", {}).values()]:
        if trainer:
            trainer |= {"per_device_train_batch_size": 2, "max_steps": 1}
            trainer |= {name: 1 for name in ("gradient_accumulation_steps", "num_mini_batches") if name in trainer}
    values["evaluation"] |= {"max_prompts": 4, "bootstrap": 100, "plain_text": None}
    values["feedback"]["validation"] = {"min_pairs": 2}
    values["feedback"]["questions_per_round"] = min(values["feedback"].get("questions_per_round", 64), 16)
    recipe.write_text(yaml.safe_dump(values))


def lay_out(folder: Path, tiny_policy: Path) -> None:
    """What a reader has: the repository's recipes, files of feedback, and the model of a hub."""
    for name in ("recipes", "reward_models"):
        shutil.copytree(ROOT / name, folder / name)
    for recipe in (folder / "recipes").glob("*.yaml"):
        cut_down(recipe)
    shutil.copytree(tiny_policy, folder / HUB_MODEL)
    for name in ("pairs", "votes"):
        rows = [
            {"prompt": f"Say {n // 4}.", "chosen": f"It is {n // 4}, {name} {n % 4}.", "rejected": f"No {n % 4}."}
            for n in range(60)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    thumbs = [{"prompt": f"Say {n}.", "completion": f"It is {n}.", "label": bool(n % 2)} for n in range(6)]
    (folder / "thumbs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in thumbs))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path, model_cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    lay_out(folder, tiny_policy)
    return folder


def type_in(line: str) -> None:
    words = shlex.split(line)
    assert words[0] == "rlhf-loop", line
    words = [word.replace("postgresql://USER:PASSWORD@HOST/DATABASE", "sqlite:///team.db") for word in words[1:]]
    if words[0] == "watch" and "--once" not in words:
        words.append("--once")
    if words[0] == "submit":
        words.append("--dry-run")
    code = app(words, standalone_mode=False)
    assert not code, f"`{line}` ends with exit code {code}"
    if words[0] == "init":
        for recipe in (Path(words[1]) / "recipes").glob("*.yaml"):
            cut_down(recipe)


@pytest.fixture
def stubs(reader: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands in the folder; gives the services that were started there."""
    served: list[Any] = []
    monkeypatch.chdir(reader)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr("rlhf_loop.server.run.start", lambda run, **settings: served.append(run))
    monkeypatch.setattr(
        "rlhf_loop.models.memory.release_memory", lambda: None
    )  # half of the time, of models this small
    monkeypatch.setattr("rlhf_loop.loop.write_report", lambda run, **_: run.path / "report.html")
    monkeypatch.setattr("signal.signal", lambda *_: None)  # a watcher's, which this process is not
    return served


# One after the other in this order: the pages share the folder, as their readers' projects do.
@pytest.mark.parametrize("page", ["README.md", "docs/start.md"])
def test_each_command_of_a_page_works_after_those_above_it(page: str, reader: Path, stubs: list[Any]) -> None:
    if page == "README.md":
        type_in("rlhf-loop run recipes/quickstart.yaml")  # what `make quickstart` runs
    for line in commands(ROOT / page):
        try:
            type_in(line)
        except UserError as error:
            pytest.fail(f"`{line}`: {error}")
    assert len(stubs) >= 2
    assert all((run / "recipe.yaml").exists() for run in stubs)


def test_a_changed_recipe_is_refused_with_the_very_command_to_type(
    reader: Path, stubs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("runs/quickstart").exists():
        type_in("rlhf-loop run recipes/quickstart.yaml")
    for typed, elsewhere in (
        ("update.algorithm=kto", "quickstart-kto"),
        ("seed=7", "quickstart-seed-7"),
        (f"policy.model={HUB_MODEL}", "quickstart-SmolLM2-360M-Instruct"),
        ("store=postgresql://me:secret@host/db", "quickstart-store"),
        ("name=mine --run-dir runs/quickstart", "mine"),
        ("seed=7 update.algorithm=sft", "quickstart-seed-7-sft"),
    ):
        words = ["run", "recipes/quickstart.yaml", *typed.split()]
        monkeypatch.setattr("sys.argv", ["rlhf-loop", *words])
        with pytest.raises(UserError) as refused:
            app(words, standalone_mode=False)
        command = str(refused.value).splitlines()[-1].strip()
        kept = typed.removesuffix(" --run-dir runs/quickstart")
        assert command == f"rlhf-loop run recipes/quickstart.yaml {kept} --run-dir runs/{elsewhere}"
        assert "secret" not in str(refused.value).replace(command, "")


def test_a_sweep_is_one_command_with_a_run_for_each_value_and_a_table(
    reader: Path, stubs: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "recipes/smoke.yaml", "--rounds", "0", "--run-dir", "runs/swept"]
    app([*words, "--sweep", "seed=3,4", "--sweep", "policy.model=tiny-random:0,tiny-random:1"], standalone_mode=False)
    made = {place.name: yaml.safe_load((place / "recipe.yaml").read_text()) for place in Path("runs").glob("swept*")}
    assert {name: (values["seed"], values["policy"]["model"]) for name, values in made.items()} == {
        f"swept-seed-{seed}-model-tiny-random-{model}": (seed, f"tiny-random:{model}")
        for seed in (3, 4)
        for model in (0, 1)
    }
    table = capfd.readouterr().out.partition("win-rate vs base")[2]
    assert all(name in table for name in made)
    for wrong in ("seed", "seed=", "=1", "seed=1,,2"):
        with pytest.raises(UserError, match="such as --sweep seed=0,1,2"):
            app([*words, "--sweep", wrong], standalone_mode=False)
    with pytest.raises(UserError, match="two runs would share"):
        app([*words, "--sweep", "policy.model=a/x,b/x"], standalone_mode=False)
