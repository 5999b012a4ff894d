"""A policy that is exported: its card says where it came from, and its own snippet loads it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from samples.faults import write_anew

from rlhf_loop import Loop, Recipe, policies
from rlhf_loop.errors import UserError
from rlhf_loop.models.card import base_and_licence
from rlhf_loop.models.files import resolve_model
from rlhf_loop.models.wheel_model import WHEEL_MODEL

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("export") / "smoke"
    recipe = Recipe.load(SMOKE, ["policy.dtype=bfloat16", "update.trainer.max_steps=1", "gate.margin=0.49"])
    Loop(recipe, run_dir=folder).run(rounds=1)
    return folder


def trained(run: Path) -> str:
    return str(policies.listed(run)[1]["id"])


def run_snippet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the card's own code makes, run where the folder lies."""
    monkeypatch.chdir(folder.parent)
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    made: dict[str, Any] = {}
    exec("\n".join(code), made)
    return made


def of_base(run: Path, base: str, copy: Path) -> Path:
    """The same run as if its recipe had named this base."""
    shutil.copytree(run, copy)
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text())
    recipe["policy"]["model"] = base
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for config in copy.rglob("adapter_config.json"):
        write_anew(config, json.loads(config.read_text().replace("tiny-random:0", base)))
    return copy


def test_the_card_of_an_adapter_holds_what_the_hub_shows(run: Path, tmp_path: Path) -> None:
    copy = of_base(run, WHEEL_MODEL, tmp_path / "run")
    policies.export(copy, tmp_path / "adapter", trained(run), "adapter")
    card = ModelCard.load(tmp_path / "adapter" / "README.md")
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (card.data.license, card.data.pipeline_tag) == ("apache-2.0", "text-generation")
    assert (card.data.library_name, card.data.base_model_relation) == ("peft", "adapter")
    measured = json.loads((run / "round_001" / "evaluate" / "evaluation.json").read_text())["win_rate_vs_base"]
    result = card.data.eval_results[0]
    assert result.metric_value == pytest.approx(measured["mean"], abs=1e-4)
    assert result.metric_type == "win_rate"
    assert f"n={measured['n']}" in result.metric_name
    assert result.dataset_split == "test"


def test_the_snippet_of_an_adapters_card_loads_it(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a base that is made here, as a wheel's is, and of one in a folder."""
    made_of_seed = tmp_path / "seed"
    policies.export(run, made_of_seed, trained(run), "adapter")
    folder = tmp_path / "base"
    shutil.copytree(resolve_model("tiny-random:0"), folder)
    made_of_folder = tmp_path / "folder"
    policies.export(of_base(run, str(folder), tmp_path / "run"), made_of_folder, trained(run), "adapter")
    logits = []
    for exported in (made_of_seed, made_of_folder):
        made = run_snippet(exported, monkeypatch)
        ids = made["tokenizer"]("a question", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits.append(made["model"].float()(ids).logits)
    assert torch.equal(*logits)
    assert str(tmp_path) not in (made_of_folder / "README.md").read_text()


def test_merged_weights_have_the_policys_dtype_unless_another_is_asked_for(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies.export(run, tmp_path / "own", trained(run))
    assert run_snippet(tmp_path / "own", monkeypatch)["model"].dtype == torch.bfloat16
    policies.export(run, tmp_path / "asked", trained(run), dtype="float32")
    assert run_snippet(tmp_path / "asked", monkeypatch)["model"].dtype == torch.float32
    with pytest.raises(UserError, match="choose float32, bfloat16, float16"):
        policies.export(run, tmp_path / "no", trained(run), dtype="int8")
    with pytest.raises(UserError, match="is for merged weights"):
        policies.export(run, tmp_path / "no", trained(run), "adapter", dtype="float32")


def test_an_export_that_is_refused_leaves_nothing(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="policy base is not an adapter; use --form merged"):
        policies.export(run, tmp_path / "out" / "base", "base", "adapter")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file is a file and no folder, so there can be no .*base\. Name another"):
        policies.export(run, tmp_path / "file" / "base", "base")


def test_no_file_of_an_export_names_a_folder_of_this_machine(run: Path, tmp_path: Path) -> None:
    for form in ("merged", "adapter"):
        policies.export(run, tmp_path / form, trained(run), form)
        for file in (tmp_path / form).rglob("*"):
            if file.suffix in (".json", ".md", ".jinja"):
                assert str(run.parent) not in file.read_text(), file
    lineage = json.loads((tmp_path / "merged" / "lineage.json").read_text())
    assert lineage["record"]["path"] == "round_001/update/policy"
    assert lineage["made_by"]["feedback"]


def test_the_licence_of_a_base_is_read_from_its_own_card(tmp_path: Path) -> None:
    assert base_and_licence("tiny-random:0") == (None, None)
    assert base_and_licence("owner/nothing-cached") == ("owner/nothing-cached", None)
    assert base_and_licence(str(tmp_path)) == (None, None)
    (tmp_path / "README.md").write_text("---\nlicense: mit\nbase_model: owner/name\n---\n# A model\n")
    assert base_and_licence(str(tmp_path)) == ("owner/name", "mit")
    (tmp_path / "README.md").write_text("# No front matter\n")
    assert base_and_licence(str(tmp_path)) == (None, None)
