"""PPO finds the shortest paths on a graph whose shortest paths are known."""

from __future__ import annotations

from pathlib import Path

import pytest
from samples import random_walks
from transformers import AutoModelForCausalLM

from rlhf_loop.updates import PPOConfig, PPOTrainer

GRAPH = random_walks.make_graph(1)
ROLLOUTS, COMPLETIONS, EPOCHS, MINIBATCHES = 20, 256, 4, 2


@pytest.fixture(scope="module")
def imitating(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_walks.imitating_policy(GRAPH, tmp_path_factory.mktemp("imitating"), seed=0)


def test_the_reward_of_a_path_is_1_only_for_a_shortest_one() -> None:
    graph = [[], [0], [1, 3], [2, 1], *([0] for _ in range(random_walks.NODES - 4))]

    def reward(start: int, *nodes: int, end: bool = True) -> float:
        ids = [random_walks.FIRST_NODE + node for node in nodes] + ([random_walks.END] if end else [])
        return random_walks.reward(graph, start, ids)

    assert reward(2, 1, 0) == 1
    assert reward(2, 3, 1, 0) == pytest.approx(2 / 3)
    assert reward(2, 0) == 0  # no such edge
    assert reward(2, 1) == 0  # not at the goal
    assert reward(2, 1, 0, end=False) == 0
    assert reward(2) == 0
    assert random_walks.reward(graph, 2, []) == 0


def test_random_walks_are_far_from_the_optimum(imitating: Path) -> None:
    start = AutoModelForCausalLM.from_pretrained(imitating)
    assert 0.3 < random_walks.mean_reward(GRAPH, start, seed=0) < 0.5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_finds_shortest_paths(imitating: Path, tmp_path: Path, seed: int) -> None:
    trainer = PPOTrainer(
        model=str(imitating),
        reward_funcs=random_walks.reward_function(GRAPH),
        args=PPOConfig(
            output_dir=str(tmp_path),
            seed=seed,
            max_steps=ROLLOUTS * EPOCHS * MINIBATCHES,
            num_ppo_epochs=EPOCHS,
            num_mini_batches=MINIBATCHES,
            per_device_train_batch_size=COMPLETIONS // MINIBATCHES,
            max_completion_length=random_walks.MAX_STEPS + 1,
            learning_rate=5e-4,
            lr_scheduler_type="linear",
            kl_coef=0.01,
            vf_coef=0.5,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=random_walks.prompts(ROLLOUTS * COMPLETIONS, seed),
        processing_class=random_walks.tokenizer(),
    )
    trainer.train()
    assert random_walks.mean_reward(GRAPH, trainer.model.eval(), seed=0) > 0.9
