"""What the pages say is enough to add a thing: their own examples, put into a copy of the package as they tell."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("CONTRIBUTING.md", "docs/reward_models.md", "docs/annotators.md")

USED = """
from pathlib import Path
from rlhf_loop import Recipe, load_reward, update_policy
from rlhf_loop.feedback.intake.read_whole import read
from rlhf_loop.recipe import Policy
from rlhf_loop.records import CritiquedCompletion
from rlhf_loop.rows.critiques import Material, demonstrations_of
from rlhf_loop.rows.pairs import pairs_from_feedback

read_in = read("asked.jsonl")
assert {record.kind for record in read_in.feedback} == {"preference"}, read_in
pairs, _ = pairs_from_feedback(
    read_in.feedback, {c.id: c for c in read_in.completions}, {p.id: p for p in read_in.prompts}
)
assert [(p.chosen[0]["content"], p.rejected[0]["content"]) for p in pairs] == [("Blue.", "I would rather not say.")]

recipe = Recipe.load("recipes/smoke.yaml", overrides=["update.algorithm=chosen", "reward.model=reward_models/short"])
metrics = update_policy(
    pairs, start=recipe.policy.model, reference=recipe.policy.model, output=Path("out"), policy=recipe.policy,
    settings=recipe.update,
)
assert (metrics["algorithm"], metrics["demonstrations"]) == ("chosen", 1), metrics
assert Path("out/policy/adapter_model.safetensors").exists()

praised = Recipe.load("recipes/smoke.yaml", overrides=["update.algorithm=sft", "critiques={praised: {}}"]).critiques
rows = [
    CritiquedCompletion(
        id=id, prompt_id="p", group="p", prompt=(), completion=({"role": "assistant", "content": id},),
        completion_id=id, label=label, origin="human", annotator="ann", feedback_ids=(f"f-{id}",),
    )
    for id, label in (("good", True), ("bad", False), ("untold", None))
]
material = Material(critiques=rows, prompts=(), round=1)
(made,), none = demonstrations_of("praised", praised.methods()["praised"], material)
assert (made.completion[0]["content"], made.feedback_ids, none) == (
    "good", ("f-good",), {"called_good_by_nobody": 2}
)

reward = load_reward(Path("reward_models/short"), id="short", policy=recipe.policy)
by_text = {c.text: c for c in read_in.completions}
scores = reward.score([read_in.prompts[0]] * 2, [by_text["Blue."], by_text["I would rather not say."]])
assert [score.value for score in scores] == [-1.0, -5.0], scores
"""


PARROT = """
from rlhf_loop.generation.transformers_engine import Answer


def sample(model, tokenizer, conversations, keys, settings, progress=None):
    return [answers(tokenizer, turns[-1]["content"], settings) for turns in conversations]


def answers(tokenizer, said, settings):
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    tokens = [tuple(ids[n : n + 8]) for n in range(settings.samples_per_prompt)]
    return [Answer(text=tokenizer.decode(ids), finish_reason="length", ids=ids) for ids in tokens]
"""
"""An engine that says a part of what was asked."""

RUN = """
from pathlib import Path
from rlhf_loop import Loop, Recipe
from rlhf_loop.files import read_json
from rlhf_loop.record_files import read_records
from rlhf_loop.records import Completion, Feedback, Score
from rlhf_loop.errors import UserError

for said, answer in (
    ("{rule: brief_and_complete}", None),  # as before there was a second kind
    ("{kind: longest, tie_blow: 2}", "did you mean `tie_below`"),
    ("{kind: shortest}", "'simulated'"),
):
    try:
        recipe = Recipe.load("recipes/smoke.yaml", overrides=[f"feedback.annotator={said}"])
        assert answer is None and recipe.feedback.annotator.kind == "simulated", said
    except UserError as error:
        assert answer is not None and answer in str(error), error

recipe = Recipe.load("recipes/smoke.yaml", overrides=[
    "rounds=1", "update.algorithm=chosen", "reward.model=reward_models/words", "generation.engine=parrot",
    "generation.strategy=shortest",
    "feedback.annotator={kind: longest, tie_below: 2}", "run_dir=run",
])
Loop(recipe).run()
said = read_records(Path("run/round_000/ask/answers.parquet"), Feedback)
texts = {c.id: c.text for c in read_records(Path("run/round_000/generate/completions.parquet"), Completion)}
assert said and {one.annotator.id for one in said} == {"longest"}
for one in said:
    longer = len(texts[one.a_id]) - len(texts[one.b_id])
    assert one.winner == ("tie" if abs(longer) < 2 else "a" if longer > 0 else "b"), (one, longer)
samples = recipe.generation.samples_per_prompt
for n in (0, 1):
    made = Path(f"run/round_00{n}/generate")
    kept, longer = (read_records(made / f"{name}.parquet", Completion) for name in ("completions", "set_aside"))
    for prompt in {c.prompt_id for c in kept}:
        short, long = ([len(c.text) for c in group if c.prompt_id == prompt] for group in (kept, longer))
        assert len(short) == len(long) == samples and max(short) <= min(long), (short, long)
read = read_records(Path("run/round_001/rescore/scores.parquet"), Score)
texts = {c.id: c.text for c in read_records(Path("run/round_001/generate/completions.parquet"), Completion)}
(learned,) = Path("run/round_001/reward").rglob("words.json")
weight = read_json(learned)["weight"]
assert abs(weight) == 0.5
assert {score.completion_id for score in read} == set(texts)
assert all(score.value == weight * len(texts[score.completion_id].split()) for score in read)
assert read_json(Path("run/round_001/update/metrics.json"))["algorithm"] == "chosen"
"""


def examples() -> dict[str, str]:
    """Python of the pages by its first comment: a file, or a file and the table in it that gets the line, or above
    which it stands."""
    pages = "".join((ROOT / page).read_text() for page in PAGES)
    return dict(re.findall(r"```python\n# ((?:rlhf_loop|reward_models)/.+?)\n(.*?)```", pages, re.DOTALL))


@pytest.mark.slow
def test_one_file_and_one_line_add_each_kind_of_thing(tmp_path: Path, model_cache: Path) -> None:
    for name in ("rlhf_loop", "recipes", "reward_models"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    engine = {
        "rlhf_loop/generation/parrot.py": PARROT,
        "rlhf_loop/engines.py: ENGINES": '    "parrot": "rlhf_loop.generation.parrot:sample",\n',
    }
    for place, code in {**examples(), **engine}.items():
        name, _, table = place.partition(": ")
        file = tmp_path / name
        above = table.startswith("above ")
        if table := table.removeprefix("above "):
            (begin,) = re.findall(rf"^{table}\b.*= [\[{{]\n", file.read_text(), re.M)
            file.write_text(file.read_text().replace(begin, code + begin if above else begin + code))
        else:
            file.parent.mkdir(exist_ok=True)
            file.write_text(code)
    (tmp_path / "reward_models/short/reward_model.yaml").write_text("kind: function\nfunction: reward.py:short\n")
    (tmp_path / "reward_models/words").mkdir()
    (tmp_path / "reward_models/words/reward_model.yaml").write_text("kind: words\nscale: 0.5\n")
    row = {"asked": "Which colour is the sky?", "good": "Blue.", "bad": "I would rather not say."}
    (tmp_path / "asked.jsonl").write_text(json.dumps(row) + "\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for used in (USED, RUN):
        finished = subprocess.run(
            [sys.executable, "-c", used], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert finished.returncode == 0, finished.stderr[-3000:]


def test_each_file_and_table_that_the_page_names_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text[text.index("| to add |") : text.index("An update, here")]
    for row in table.splitlines()[2:]:
        for name in re.findall(r"`((?:rlhf_loop|tests|reward_models|recipes)/[\w/.]*)`", row):
            assert (ROOT / name.replace("KIND", "head")).exists(), f"CONTRIBUTING.md names {name}"
    for name, table_name in re.findall(r"`([A-Z]+)` (?:of|in) `(rlhf_loop/[\w/]+\.py)`", table):
        assert re.search(rf"^{name}\b", (ROOT / table_name).read_text(), re.M), f"{table_name} has no {name}"
