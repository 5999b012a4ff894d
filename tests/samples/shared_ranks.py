"""What each of several processes does in test_shares.py: models that are only read, whole in one, shared in more.

    torchrun --nproc_per_node 2 tests/samples/shared_ranks.py FOLDER OUT CASE...

A case is `stage FILE` with a stage's arguments, which makes it anew in OUT, or `small FILE`, on devices that have no
room for a whole policy; `reward NAME ROWS` and `policy NAME ROWS`
with the model FOLDER/NAME; or `broken`. Numbers are left in OUT/CASE.json. OUT/held.json: of each rank, of each model
that was shared out in it, how many numbers it has and how many of them the rank holds.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]


def run(case: str, folder: Path, out: Path) -> None:
    """On every rank; the main one writes."""
    kind, *words = case.split()
    if kind in ("stage", "small"):
        stage(Path(words[0]), out, room=kind == "stage")
        return
    if kind == "broken":
        broken()
    numbers = {"reward": rewards, "policy": likelihoods}[kind](folder / words[0], int(words[1]))
    from rlhf_loop.models.distributed import is_main

    if is_main():
        (out / f"{case}.json").write_text(json.dumps(numbers))


def stage(arguments_file: Path, out: Path, room: bool) -> None:
    import rlhf_loop.models.memory
    from rlhf_loop.models.distributed import barrier, is_main
    from rlhf_loop.stages import run_stage
    from rlhf_loop.stages.arguments import StageArguments

    arguments = StageArguments.read(arguments_file)
    if is_main():
        replace(arguments, output=str(out / "round_001" / Path(arguments.output).name)).write(out / arguments_file.name)
    barrier()
    device_memory = rlhf_loop.models.memory.device_memory
    if not room:
        rlhf_loop.models.memory.device_memory = lambda: 100_000
    run_stage(out / arguments_file.name)
    rlhf_loop.models.memory.device_memory = device_memory


def rewards(folder: Path, rows: int) -> list[Any]:
    """Of so many answers, each rank scoring its share; and again of all on every rank, as a training asks."""
    from rlhf_loop.generation import write_greedily
    from rlhf_loop.models.distributed import rank, sharded_map
    from rlhf_loop.recipe import Policy
    from rlhf_loop.rewards import load_reward
    from rlhf_loop.rewards.texts import texts_of_pairs
    from samples.rewards import make_pairs

    policy = Policy(model="tiny-random:0", dtype="bfloat16" if "bf16" in folder.name else "float32")
    reward = load_reward(folder, id="x", policy=policy, writer=write_greedily)
    texts = texts_of_pairs(make_pairs(prompts=4, seed=3))[0][:rows]
    shared = sharded_map(lambda share: reward.checked_values(share, {}), texts)
    asked = [text.messages() for text in texts], [text.completion for text in texts]
    mine = [part[rank() :] for part in asked]  # another number on each rank
    assert len(reward(*mine)) == len(mine[0])
    return shared


def likelihoods(folder: Path, rows: int) -> list[Any]:
    """Of so many answers, under the policy and its base."""
    from rlhf_loop.evaluation.language_model import likelihoods, log_probs
    from rlhf_loop.models.loading import adapter_folder, load_policy
    from rlhf_loop.models.turns import Tokens
    from rlhf_loop.recipe import Policy

    policy = Policy(model=str(folder), dtype="bfloat16" if "bf16" in folder.name else "float32")
    model, _ = load_policy(folder, policy, only_read=True)
    texts = [Tokens(prompt=tuple(range(1, 5 + n)), answer=tuple(range(7, 9 + 3 * n))) for n in range(rows)]
    reference = None if adapter_folder(folder) else load_policy(folder, policy, only_read=True)[0]
    found = likelihoods(model, texts, reference, batch_tokens=16)  # one answer a batch
    return [[one.log_prob, one.reference_log_prob, one.kl] for one in found] + log_probs(model, texts)


def broken() -> None:
    """One rank fails while the others are about to read."""
    from rlhf_loop.errors import UserError
    from rlhf_loop.models.distributed import rank, sharded_map
    from rlhf_loop.models.loading import load_policy
    from rlhf_loop.recipe import Policy

    model, _ = load_policy("tiny-random:0", Policy(model="tiny-random:0", dtype="float32"), only_read=True)

    def read(share: list[Any]) -> list[Any]:
        import torch

        if rank() == 1:
            raise UserError("so it is")
        return [model(input_ids=torch.tensor([[1, 2]])) for _ in share]

    sharded_map(read, [0, 1])


def count(held: list[list[int]]) -> None:
    """Writes down what `share_out` leaves this rank of each model."""
    from rlhf_loop.models import shares

    share_out = shares.share_out

    def counted(model: Any) -> Any:
        tensors = list(share_out(model).parameters())
        held.append([sum(tensor.numel() for tensor in tensors), sum(tensor.to_local().numel() for tensor in tensors)])
        return model

    shares.share_out = counted


def main() -> None:
    folder, out = map(Path, sys.argv[1:3])
    sys.path.insert(0, str(HERE))
    from rlhf_loop.models.distributed import gather, is_main, start

    held: list[list[int]] = []
    count(held)
    start()
    for case in sys.argv[3:]:
        run(case, folder, out)
    shares = gather([held])
    if is_main():
        (out / "held.json").write_text(json.dumps(shares))


if __name__ == "__main__":
    main()
