"""Shortest paths on a small random graph: a task for reinforcement learning whose optimum is known.

After the random-walk toy of Chen et al. 2021 (Decision Transformer, arXiv 2106.01345, figure 2). A prompt is a start
node, a completion is a path of nodes that should end at the goal. The policy first learns to imitate random walks;
reinforcement learning must then find the shortest ones among them.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NODES = 21
GOAL = 0
MAX_STEPS = 10
"""Of a random walk; a completion has room for as many and an end token."""
EDGE_PROBABILITY = 0.1

PAD, END = 0, 1
FIRST_NODE = 2
VOCABULARY = ["<pad>", "<end>", *(f"n{node}" for node in range(NODES))]

Graph = list[list[int]]
"""The nodes that each node has an edge to."""


def make_graph(seed: int) -> Graph:
    """A directed graph in which the goal can be reached from every node within `MAX_STEPS` steps."""
    chance = random.Random(seed)
    while True:
        graph = [
            [to for to in range(NODES) if to != node and chance.random() < EDGE_PROBABILITY] for node in range(NODES)
        ]
        distances = shortest(graph)
        if len(distances) == NODES and max(distances.values()) <= MAX_STEPS:
            return graph


def shortest(graph: Graph) -> dict[int, int]:
    """Steps of the shortest path to the goal, for every node that has one."""
    distances, waiting = {GOAL: 0}, deque([GOAL])
    while waiting:
        here = waiting.popleft()
        for node in range(NODES):
            if here in graph[node] and node not in distances:
                distances[node] = distances[here] + 1
                waiting.append(node)
    return distances


def reward(graph: Graph, start: int, completion: Sequence[int]) -> float:
    """Steps of the shortest path over steps of this one, 1 at best; 0 unless it is a path that ends at the goal.

    `completion`: token ids, which must be nodes that edges lead to, the goal, and an end token.
    """
    if not completion or completion[-1] != END:
        return 0.0
    path = [start, *(token - FIRST_NODE for token in completion[:-1])]
    if path[-1] != GOAL or any(to not in graph[node] for node, to in pairwise(path)):
        return 0.0
    return shortest(graph)[start] / (len(path) - 1)


def reward_function(graph: Graph) -> Callable[..., list[float]]:
    """`reward` as TRL calls it."""

    def walk_reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        starts = [int(prompt.removeprefix("n")) for prompt in prompts]
        return [reward(graph, start, ids) for start, ids in zip(starts, completion_ids, strict=True)]

    return walk_reward


def prompts(number: int, seed: int) -> Dataset:
    """Start nodes, each about equally often; never the goal."""
    chance = random.Random(seed)
    rows: list[int] = []
    while len(rows) < number:
        rows += chance.sample(range(1, NODES), NODES - 1)
    return Dataset.from_list([{"prompt": f"n{start}"} for start in rows[:number]])


def walks(graph: Graph, seed: int) -> Iterator[list[int]]:
    """Random walks as token ids, from a random node until the goal or `MAX_STEPS`, with an end token at the goal."""
    chance = random.Random(seed)
    while True:
        path = [chance.randrange(1, NODES)]
        while path[-1] != GOAL and len(path) <= MAX_STEPS:
            path.append(chance.choice(graph[path[-1]]))
        yield [FIRST_NODE + node for node in path] + ([END] if path[-1] == GOAL else [])


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a node."""
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="<pad>", padding_side="left"
    )


def imitating_policy(graph: Graph, folder: Path, seed: int, steps: int = 300) -> Path:
    """A small Llama that was taught random walks, saved with its tokenizer in `folder`: about 4 s on one thread."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=32,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    examples = walks(graph, seed)
    for _ in range(steps):
        batch = [torch.tensor(next(examples)) for _ in range(64)]
        ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=PAD)  # (64, L)
        loss = model(input_ids=ids, labels=ids.masked_fill(ids == PAD, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def mean_reward(graph: Graph, model: Any, seed: int, samples: int = 50) -> float:
    """Mean reward of `samples` paths from every start node, as the policy samples them at temperature 1."""
    torch.manual_seed(seed)
    starts = [node for node in range(1, NODES) for _ in range(samples)]
    ids = torch.tensor([[FIRST_NODE + start] for start in starts])
    with torch.no_grad():
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            max_new_tokens=MAX_STEPS + 1,
            eos_token_id=END,
            pad_token_id=PAD,
        )
    rewards = []
    for start, row in zip(starts, written[:, 1:].tolist(), strict=True):
        rewards.append(reward(graph, start, row[: row.index(END) + 1] if END in row else row))
    return sum(rewards) / len(rewards)
