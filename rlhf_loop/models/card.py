"""The card of an exported policy, in the hub's own format: base model, licence, pipeline and results as metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from rlhf_loop.models.files import is_made
from rlhf_loop.models.wheel_model import KNOWN_MODELS
from rlhf_loop.recipe import Recipe
from rlhf_loop.records import Artifact

MERGED = """
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```
"""

ADAPTER = """
```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{folder}", dtype="auto")  # on {base}
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```
"""

ADAPTER_OF_A_MADE_MODEL = """
```python
from peft import PeftModel
from rlhf_loop.models.files import resolve_model  # pip install rlhf-loop
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained(resolve_model("{base}"), dtype="auto")
model = PeftModel.from_pretrained(base, "{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```
"""


ON_A_QUANTISED_BASE = """
It was trained on this base in 4 bits, which is another one: load it with
`quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)`.
"""


def model_card(recipe: Recipe, policy: Artifact, evaluation: Mapping[str, Any], form: str, folder: str) -> str:
    """The README.md of `folder`; `form`: "merged" or "adapter", `evaluation`: what the run's evaluation.json holds."""
    base = recipe.policy.model
    base_id, licence = base_and_licence(base)
    algorithm = policy.metrics.get("algorithm", "none")
    data = ModelCardData(
        model_name=f"{recipe.name}, policy {policy.id}",
        base_model=base_id,
        license=licence,
        library_name="transformers" if form == "merged" else "peft",
        pipeline_tag="text-generation",
        tags=["rlhf-loop", "trl", algorithm],
        eval_results=list(_results(recipe, evaluation)) or None,
        base_model_relation="adapter" if form == "adapter" else "finetune",
    )
    by = _by(recipe)
    named = base_id or (Path(base).name if Path(base).is_absolute() else base)
    use = MERGED if form == "merged" else ADAPTER_OF_A_MADE_MODEL if is_made(base) else ADAPTER
    if form == "adapter" and recipe.policy.quantization is not None:
        use += ON_A_QUANTISED_BASE
    numbers = {
        name: evaluation[name]
        for name in ("win_rate_vs_base", "length_matched_win_rate_vs_base", "kl", "perplexity", "plain_text_perplexity")
        if evaluation.get(name)
    }
    terms = (
        "" if licence else f"\nThe licence of `{named}` could not be read here; its terms hold for this policy too.\n"
    )
    return f"""---
{data.to_yaml()}
---
# {recipe.name}, policy `{policy.id}`

Round {policy.round} of the feedback loop `{recipe.name}`, from `{named}` by {algorithm} on
{len(policy.trained_on)} pieces of {by}. Parent: `{policy.parent or "none"}`.
{terms}
## Evaluation

Judge: {evaluation.get("judge", {}).get("name", "none")}. On held-out prompts:

```json
{json.dumps(numbers, indent=2)}
```

## Use
{use.format(folder=folder, base=base if is_made(base) else named)}
`lineage.json` names the feedback, reward model and rounds that made it.
"""


def _by(recipe: Recipe) -> str:
    """Whose feedback it is."""
    annotator = recipe.feedback.annotator
    if annotator is None:
        return "feedback"
    return "SIMULATED feedback" if annotator.kind == "simulated" else f"feedback, given by {annotator.called.upper()}"


def base_and_licence(base: str) -> tuple[str | None, str | None]:
    """The hub's id of a base model and its licence; None for what is not known here."""
    if base in KNOWN_MODELS:
        return KNOWN_MODELS[base].hub_id, KNOWN_MODELS[base].licence
    if is_made(base):
        return None, None
    folder = Path(base)
    hub_id = None if folder.is_dir() else base
    try:
        told = ModelCard.load(folder / "README.md" if folder.is_dir() else base).data
    except Exception:  # no card, none of this form, or a hub that is out of reach, each in ways of their own
        return hub_id, None
    origin = told.base_model if isinstance(told.base_model, str) else None
    return hub_id or origin, told.license if isinstance(told.license, str) else None


def _results(recipe: Recipe, evaluation: Mapping[str, Any]) -> Iterator[EvalResult]:
    judge = evaluation.get("judge", {}).get("name", "none")
    measures = {
        "win_rate_vs_base": ("win_rate", "win-rate against the base"),
        "length_matched_win_rate_vs_base": ("win_rate", "win-rate against the base, length-matched"),
    }
    for name, (kind, shown) in measures.items():
        rate = evaluation.get(name)
        if rate is None:
            continue
        interval = "" if rate["low"] is None else f", {rate['low']:.3f} to {rate['high']:.3f}"
        yield EvalResult(
            task_type="text-generation",
            task_name="answers to held-out prompts",
            dataset_type="held-out-prompts",
            dataset_name=f"held-out prompts of {recipe.name}",
            dataset_split=recipe.evaluation.split,
            metric_type=kind,
            metric_name=f"{shown} (judge: {judge}; n={rate['n']}{interval})",
            metric_value=round(rate["mean"], 4),
        )
