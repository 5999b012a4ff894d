"""After step 8: the texts that no earlier round embedded, as vectors, and how far apart and how new the answers are.

prompts.parquet  completions.parquet  embed/ of earlier rounds
    ->  prompts.npy  prompts.parquet  answers.npy  answers.parquet  centre.npy  embed.json

`centre.npy` (2, D): the means of the prompts' and of the answers' hidden states in the first round that has them, which
all later vectors are taken from too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf_loop.files import fingerprint, read_json, write_json
from rlhf_loop.files.damage import reading
from rlhf_loop.models.distributed import is_main, sharded_map
from rlhf_loop.models.identity import computed_by
from rlhf_loop.progress import Progress
from rlhf_loop.recipe import Recipe, parse
from rlhf_loop.record_files import read_records
from rlhf_loop.records import Completion, Prompt
from rlhf_loop.resampling import grouped_mean
from rlhf_loop.retrieval.embedding import embed, unit
from rlhf_loop.retrieval.index import Index, Key, write
from rlhf_loop.rewards.trunk import load_trunk
from rlhf_loop.stages.arguments import StageArguments

FEWEST = 8
"""Texts that a mean is taken of; vectors of fewer are not moved."""


def run(arguments: StageArguments, folder: Path, progress: Progress) -> None:
    """Each distinct text is computed once."""
    recipe = parse(arguments.recipe)
    settings = recipe.generation.embeds
    assert settings is not None  # the loop starts the stage only then
    earlier = embedded(arguments, recipe)
    prompts: list[Prompt] = read_records(Path(arguments.inputs["prompts"]), Prompt)
    fresh: list[Completion] = read_records(Path(arguments.inputs["completions"]), Completion)
    older = [
        completion
        for name, path in sorted(arguments.inputs.items())
        if name.startswith("completions_")
        for completion in read_records(Path(path), Completion)
    ]
    known = Index.open(earlier, "prompts"), Index.open(earlier, "answers")
    asked = _new([(Key(prompt_id=p.id), p.asked) for p in prompts], known[0])
    said = _new([(Key(prompt_id=c.prompt_id, completion_id=c.id), c.text) for c in [*older, *fresh]], known[1])
    states = _Embedder(recipe, progress)([text for _, text in asked], [text for _, text in said])
    centres = _centres(earlier, states)
    for name, rows, vectors, centre in zip(("prompts", "answers"), (asked, said), states, centres, strict=True):
        if is_main():
            write(folder, name, [key for key, _ in rows], unit(vectors, centre), settings.dtype)
    if is_main():
        np.save(folder / "centre.npy", torch.stack(centres).numpy())
        measured = _measured(fresh, [key for key, _ in said], unit(states[1], centres[1]), known[1], recipe.seed)
        new = {"prompts": len(asked), "answers": len(said)}
        write_json(folder / "embed.json", {"made_of": _made_of(recipe), "new": new, "variety": measured})


def embedded(arguments: StageArguments, recipe: Recipe) -> list[Path]:
    """The folders of earlier rounds whose vectors were made as this recipe makes them, in order."""
    folders = [Path(path) for name, path in sorted(arguments.inputs.items()) if name.startswith("embedded_")]
    made_of = _made_of(recipe)
    return [folder for folder in folders if read_json(folder / "embed.json")["made_of"] == made_of]


class _Embedder:
    """The frozen model, loaded where there is something to embed."""

    def __init__(self, recipe: Recipe, progress: Progress):
        self.recipe = recipe
        self.progress = progress

    def __call__(self, *several: Sequence[str]) -> list[torch.Tensor]:
        """(N, D) float32 of each list of texts; D is 0 where all are empty."""
        distinct = list(dict.fromkeys(text for texts in several for text in texts))
        if not distinct:
            return [torch.zeros(0, 0) for _ in several]
        settings = self.recipe.generation.embeds
        assert settings is not None
        trunk, tokenizer, layers = load_trunk(settings.model or "policy", self.recipe.policy, [settings.layer])

        def share_of_texts(share: Sequence[str]) -> list[torch.Tensor]:
            return list(embed(trunk, tokenizer, layers[0], share, lambda done, total: self.progress(done, total, "")))

        found = dict(zip(distinct, sharded_map(share_of_texts, distinct), strict=True))
        width = next(iter(found.values())).shape[0]
        return [torch.stack([found[text] for text in texts]) if texts else torch.zeros(0, width) for texts in several]


def _made_of(recipe: Recipe) -> str:
    settings = recipe.generation.embeds
    assert settings is not None
    return fingerprint(computed_by(settings.model or recipe.policy.model, recipe.policy), settings.layer)


def _new(rows: Sequence[tuple[Key, str]], known: Index) -> list[tuple[Key, str]]:
    """Those that an index does not hold, each once."""
    there = known.holds([key for key, _ in rows])
    return list({row[0]: row for row, is_there in zip(rows, there, strict=True) if not is_there}.values())


def _centres(earlier: Sequence[Path], states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What vectors of prompts and of answers are taken from; (D,) each."""
    if earlier:
        with reading(earlier[0] / "centre.npy"):
            return list(torch.from_numpy(np.load(earlier[0] / "centre.npy")))
    return [state.mean(0) if len(state) >= FEWEST else torch.zeros(state.shape[1]) for state in states]


def _measured(
    fresh: Sequence[Completion], keys: Sequence[Key], vectors: torch.Tensor, known: Index, seed: int
) -> dict[str, Any]:
    """`{spread, novelty}` of a round's candidates, each `{mean, low, high, n}` or None; intervals resample prompts.

    `spread`: 1 - cosine of two answers to one prompt, over all pairs. `novelty`: 1 - cosine to the nearest answer of an
    earlier round, to any prompt.
    """
    place = {key.completion_id: number for number, key in enumerate(keys)}
    mine = [completion for completion in fresh if completion.id in place]
    groups: dict[str, list[int]] = defaultdict(list)
    for completion in mine:
        groups[completion.prompt_id].append(place[completion.id])
    apart = [
        (1 - float(vectors[a] @ vectors[b]), prompt)
        for prompt, rows in groups.items()
        for a, b in combinations(rows, 2)
    ]
    return {
        "spread": grouped_mean([value for value, _ in apart], [prompt for _, prompt in apart], seed=seed),
        "novelty": _novelty(mine, vectors[[place[completion.id] for completion in mine]], known, seed),
    }


def _novelty(mine: Sequence[Completion], vectors: torch.Tensor, known: Index, seed: int) -> dict[str, Any] | None:
    if not len(known) or not mine:
        return None
    nearest = torch.cat([known.search(part, 1)[0][:, 0] for part in vectors.split(256)])
    values = (1 - nearest[nearest > -torch.inf]).tolist()
    return grouped_mean(values, [c.prompt_id for c in mine] if values else [], seed=seed)
