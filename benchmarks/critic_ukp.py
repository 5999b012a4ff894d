"""Does writing a critique make a better reward model? On people's real preferences and reasons (UKPConvArg1).

    python benchmarks/critic_ukp.py --data DIR [--seeds 0 1 2] [--out FILE] [--work DIR]

DIR holds `ukp_pairs_train.jsonl.gz`, `ukp_pairs_valid.jsonl.gz` and `ukp_votes_reasons.jsonl.gz`: pairs of arguments
for one side of a debate, and the reasons that five workers a pair gave. `critic_arms.py` says which three reward models
are compared, and how.

A reason is a critique of the argument that it names, where it names one of the two; those of the training pairs alone
are learned from. Each seed holds out a third of the debates, whole, so the three seeds hold each out once; sides of
debates are resampled. The longer argument wins 3 of 4 pairs. No setting was chosen on these figures: those of
Bradley-Terry are `reward_ukp.py`'s, with fewer epochs; those of the critic are the same and the paper's.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from critic_arms import Drawn, compare, specs
from reward_ukp import read_pairs, topic

from rlhf_loop.records import CritiquedCompletion, PreferencePair, stable_id

ARGUMENTS, PAIRS, REASONS = 12, 20, 2  # of each side of a debate; and reasons of each argument
HELD_OUT = 20  # arguments of each side of a held-out debate, with all their pairs
SPECS = specs(
    "Is this argument convincing? Say why in a sentence.", 32, num_train_epochs=2, per_device_train_batch_size=1
)


def main() -> None:
    compare(__doc__, SPECS, draw)


def draw(data: Path, seed: int) -> Drawn:
    """Training pairs and their reasons from two thirds of the debates, held-out pairs from the others."""
    pairs = [pair for name in ("train", "valid") for pair in read_pairs(data / f"ukp_pairs_{name}.jsonl.gz")]
    debates = sorted({topic(pair) for pair in pairs}, key=lambda name: stable_id("critic", name))
    out = set(debates[seed % 3 :: 3])
    train = sample([pair for pair in pairs if topic(pair) not in out], seed, ARGUMENTS, PAIRS)
    held_out = sample([pair for pair in pairs if topic(pair) in out], seed, HELD_OUT, None)
    return Drawn(
        train=train,
        critiques=reasons(data, train, seed),
        held_out={"arguments": held_out},
        about={"held_out_debates": sorted(out), "held_out_pairs": len(held_out)},
    )


def sample(pairs: Sequence[PreferencePair], seed: int, arguments: int, most: int | None) -> list[PreferencePair]:
    """So many arguments of each side of a debate, drawn at random, and at most so many of the pairs between them."""
    random_numbers = random.Random(seed)
    of_side: dict[str, list[PreferencePair]] = defaultdict(list)
    for pair in pairs:
        of_side[pair.group].append(pair)
    drawn = []
    for side in of_side.values():
        compared = sorted({id for pair in side for id in (pair.chosen_id, pair.rejected_id)})
        chosen = set(random_numbers.sample(compared, min(arguments, len(compared))))
        between = [pair for pair in side if {pair.chosen_id, pair.rejected_id} <= chosen]
        drawn += between if most is None else random_numbers.sample(between, min(most, len(between)))
    return drawn


def reasons(data: Path, pairs: Sequence[PreferencePair], seed: int) -> list[CritiquedCompletion]:
    """What workers said of the arguments of `pairs`, where a reason names one of the two alone; at most `REASONS` of an
    argument."""
    of_pair = {pair.id: pair for pair in pairs}
    said: dict[str, dict[str, CritiquedCompletion]] = defaultdict(dict)
    with gzip.open(data / "ukp_votes_reasons.jsonl.gz", "rt", encoding="utf-8") as file:
        votes = [json.loads(line) for line in file]
    for row in votes:
        if (pair := of_pair.get(row["id"])) is None or row["gold"] not in ("a1", "a2"):
            continue
        for worker, _, _, text in row["annotations"]:
            named = {name.lower() for name in re.findall(r"\b[Aa][12]\b", text)}
            if len(named) != 1:
                continue
            better = named == {row["gold"]}  # the pair's chosen side is the better one
            side, id = (pair.chosen, pair.chosen_id) if better else (pair.rejected, pair.rejected_id)
            critique = re.sub(r"\b[Aa][12]\b", "this argument", text.strip())
            critique = critique[:1].upper() + critique[1:]
            said[id][critique] = CritiquedCompletion(
                id=stable_id(row["id"], worker, text), prompt_id=pair.prompt_id, group=pair.group, prompt=pair.prompt,
                completion=side, completion_id=id, critique=critique, origin="human", annotator=str(worker),
            )  # fmt: skip
    return [
        row
        for of_argument in said.values()
        for row in sorted(of_argument.values(), key=lambda row: stable_id(seed, row.id))[:REASONS]
    ]


if __name__ == "__main__":
    main()
