"""One training with PPO, by TRL 1.12's trainer or by ours, on a task that both can do; `updates.py` runs it.

    python benchmarks/updates_upstream.py --task tiny --folder FOLDER --make
    python benchmarks/updates_upstream.py --task tiny --folder FOLDER --side ours --seed 0 --out result.json

`--side upstream` is run by the Python of an environment that has trl 1.12, without rlhf-loop. Equal are: model and
weights of the start, critic (a copy of the policy's trunk and a head of zeros), prompts, reward, completions a rollout,
epochs, minibatches (each one optimizer step), learning rate of both networks, float32, one thread, and every setting
that both know. TRL 1.12 ignores `max_grad_norm`, so gradients are clipped on neither side; its minibatches step only
when nothing is accumulated, so nothing is.

The model has learned to write words at random, so that it ends its answers as a language model does and never writes
the padding token, which TRL 1.12 would take for an end. Its reward is the share of the completion's length limit that
are wanted words. Tokens are those sampled up to and with the end token.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

PAD, END, UNKNOWN, ANSWER, FIRST_WORD = range(5)
SPECIAL = ["<pad>", "<end>", "<unknown>", ":"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model, how much it samples, and how it is trained. `width` to `heads`: of a Llama with tied embeddings."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    inner: int
    wanted_each: int  # every so manieth word is wanted
    prompt_words: tuple[int, int]
    completion_tokens: int
    mean_words: int  # before the end, of what the start writes
    rollout: int  # completions
    rollouts: int
    learning_rate: float
    kl_coef: float  # so small that the optimum is close to a reward of 1
    teaching_steps: int
    epochs: int = 4
    minibatches: int = 2
    accelerator: bool = False  # bfloat16 on an accelerator; otherwise float32 on the CPU


TASKS = {
    "tiny": Task(
        vocabulary=32, width=64, layers=2, heads=4, inner=128, wanted_each=28, prompt_words=(1, 4),
        completion_tokens=16, mean_words=12, rollout=64, rollouts=60, learning_rate=1e-3, kl_coef=0.01,
        teaching_steps=200,
    ),
    "middle": Task(
        vocabulary=49152, width=320, layers=4, heads=5, inner=896, wanted_each=4, prompt_words=(16, 32),
        completion_tokens=32, mean_words=16, rollout=64, rollouts=4, learning_rate=1e-3, kl_coef=0.002,
        teaching_steps=40,
    ),
    "0.5B": Task(
        vocabulary=151936, width=896, layers=24, heads=14, inner=4864, wanted_each=4, prompt_words=(64, 128),
        completion_tokens=128, mean_words=128, rollout=64, rollouts=4, learning_rate=1e-6, kl_coef=0.05,
        teaching_steps=0, accelerator=True,
    ),
    "1.5B": Task(
        vocabulary=151936, width=1536, layers=28, heads=12, inner=8960, wanted_each=4, prompt_words=(64, 128),
        completion_tokens=128, mean_words=128, rollout=32, rollouts=4, learning_rate=1e-6, kl_coef=0.05,
        teaching_steps=0, accelerator=True,
    ),
}  # fmt: skip
"""`tiny` is the smallest that PPO can be tried on. `middle` has 21M parameters and a vocabulary as large as SmolLM2's,
whose logits cost the most, as they do in models of this size. The others are for a GPU."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="of the model")
    parser.add_argument("--make", action="store_true", help="make the model")
    parser.add_argument("--side", choices=["upstream", "ours"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", type=Path, help="a cProfile of the training")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    task = TASKS[arguments.task]
    torch.set_num_threads(1)
    if arguments.make:
        make_model(task, arguments.folder)
        return
    meter = Meter(task)
    trainer_of = upstream_trainer if arguments.side == "upstream" else our_trainer
    trainer = trainer_of(task, arguments.folder, meter, arguments.seed)
    started = time.perf_counter()
    if arguments.profile:
        import cProfile

        with cProfile.Profile() as profile:
            trainer.train()
        profile.dump_stats(arguments.profile)
    else:
        trainer.train()
    seconds = time.perf_counter() - started
    tokens = sum(meter.tokens)
    assert len(meter.rewards) == task.rollouts, f"{len(meter.rewards)} rollouts of {task.rollouts}"
    arguments.out.write_text(
        json.dumps(
            {
                "seconds": seconds,
                "tokens": tokens,
                "tokens_per_second": tokens / seconds,
                "accelerator_gib": torch.cuda.max_memory_allocated() / 2**30 if task.accelerator else None,
                "mean_reward": sum(meter.rewards) / task.rollouts,
                "rewards": [round(reward, 4) for reward in meter.rewards],
                "completion_tokens": [count / task.rollout for count in meter.tokens],
            }
        )
    )


class Meter:
    """The reward, and for each rollout the mean reward and the number of tokens sampled."""

    def __init__(self, task: Task):
        self.task = task
        self.rewards: list[float] = []
        self.tokens: list[int] = []

    def of_completions(self, completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        """As our trainer and TRL 1.16 ask for it."""
        rewards = [sum(map(self.wanted, ids)) / self.task.completion_tokens for ids in completion_ids]
        self.rewards.append(sum(rewards) / len(rewards))
        self.tokens.append(sum(map(len, completion_ids)))
        return rewards

    def wanted(self, token: int) -> bool:
        return token >= FIRST_WORD and (token - FIRST_WORD) % self.task.wanted_each == 0


class RewardModule(torch.nn.Module):
    """The reward as TRL 1.12 asks for it: a trunk whose last hidden states a head turns into rewards (B, L, 1)."""

    base_model_prefix = "trunk"

    def __init__(self, meter: Meter):
        super().__init__()
        self.meter = meter
        self.trunk = _Ids()

    def score(self, ids: torch.Tensor) -> torch.Tensor:
        completions = []
        for row in ids.tolist():  # padding, prompt up to ANSWER, completion, padding
            completion = row[row.index(ANSWER) + 1 :]
            while completion and completion[-1] == PAD:
                completion.pop()
            completions.append(completion)
        rewards = torch.tensor(self.meter.of_completions(completions))
        return rewards[:, None, None].expand(*ids.shape, 1)


class _Ids(torch.nn.Module):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(hidden_states=[input_ids.masked_fill(~attention_mask.bool(), PAD)])


def upstream_trainer(task: Task, folder: Path, meter: Meter, seed: int) -> Any:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    critic = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    torch.nn.init.zeros_(critic.score.weight)
    rows = [{"input_ids": tokenizer(row["prompt"])["input_ids"]} for row in prompts(task, seed)]
    return PPOTrainer(
        args=PPOConfig(
            output_dir=str(folder / "upstream"),
            total_episodes=task.rollouts * task.rollout,
            per_device_train_batch_size=task.rollout,
            gradient_accumulation_steps=1,
            local_rollout_forward_batch_size=task.rollout,
            num_mini_batches=task.minibatches,
            num_ppo_epochs=task.epochs,
            response_length=task.completion_tokens,
            stop_token="eos",
            temperature=1.0,
            num_sample_generations=0,
            logging_steps=1,
            **common(task, seed),
        ),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(folder),
        ref_model=None,
        reward_model=RewardModule(meter),
        value_model=critic,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:1]),
    )


def our_trainer(task: Task, folder: Path, meter: Meter, seed: int, critic: str = "separate", lora: Any = None) -> Any:
    from rlhf_loop.updates import PPOConfig, PPOTrainer

    steps = task.epochs * task.minibatches
    return PPOTrainer(
        model=str(folder),
        reward_funcs=meter.of_completions,
        args=PPOConfig(
            output_dir=str(folder / "ours"),
            critic=critic,
            max_steps=task.rollouts * steps,
            model_init_kwargs={"dtype": "auto"},
            per_device_train_batch_size=task.rollout // task.minibatches,
            gradient_accumulation_steps=1,
            num_mini_batches=task.minibatches,
            num_ppo_epochs=task.epochs,
            max_completion_length=task.completion_tokens,
            temperature=1.0,
            max_grad_norm=1e9,
            logging_steps=steps,
            **common(task, seed),
        ),
        processing_class=AutoTokenizer.from_pretrained(folder, padding_side="left"),
        train_dataset=Dataset.from_list(prompts(task, seed)),
        peft_config=lora,
    )


def common(task: Task, seed: int) -> dict[str, Any]:
    """Settings that both sides know by the same name."""
    return {
        "seed": seed,
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "constant",
        "kl_coef": task.kl_coef,
        "vf_coef": 0.1,
        "gamma": 1.0,
        "lam": 0.95,
        "cliprange": 0.2,
        "cliprange_value": 0.2,
        "whiten_rewards": False,
        "bf16": task.accelerator,
        "use_cpu": not task.accelerator,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def prompts(task: Task, seed: int) -> list[dict[str, str]]:
    """A prompt for each completion: random words and the token that asks for an answer."""
    chance = random.Random(seed)
    words = _words(task, chance)
    return [
        {"prompt": " ".join([*(next(words) for _ in range(chance.randint(*task.prompt_words))), SPECIAL[ANSWER]])}
        for _ in range(task.rollouts * task.rollout)
    ]


def make_model(task: Task, folder: Path) -> None:
    """The start of both sides, with its tokenizer, in `folder`.

    Random weights, taught for a few steps to write random words and an end.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=task.vocabulary,
            hidden_size=task.width,
            intermediate_size=task.inner,
            num_hidden_layers=task.layers,
            num_attention_heads=task.heads,
            num_key_value_heads=task.heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            eos_token_id=END,
            bos_token_id=None,
        )
    )
    vocabulary = {word: number for number, word in enumerate(_vocabulary(task))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[UNKNOWN]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": SPECIAL[PAD], "eos_token": SPECIAL[END], "unk_token": SPECIAL[UNKNOWN]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **special)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    chance = random.Random(0)
    drawn = _words(task, chance)
    for _ in range(task.teaching_steps):
        texts = []
        for _ in range(16):
            asked = [next(drawn) for _ in range(chance.randint(*task.prompt_words))]
            answer = [next(drawn) for _ in range(int(chance.expovariate(1 / task.mean_words)))]
            texts.append(" ".join([*asked, SPECIAL[ANSWER], *answer[: task.completion_tokens], SPECIAL[END]]))
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.to(torch.bfloat16 if task.accelerator else torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _vocabulary(task: Task) -> list[str]:
    return [*SPECIAL, *(f"w{number}" for number in range(task.vocabulary - len(SPECIAL)))]


def _words(task: Task, chance: random.Random) -> Iterator[str]:
    """Words as often as in languages: the one of rank r with a probability proportional to 1 / (r + 10)."""
    names = _vocabulary(task)[FIRST_WORD:]
    weights = [1 / (rank + 10) for rank in range(len(names))]
    while True:
        yield from chance.choices(names, weights, k=1000)


if __name__ == "__main__":
    main()
