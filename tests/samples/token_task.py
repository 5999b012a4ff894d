"""A task small enough for PPO in a test: a tiny Llama of 32 words is rewarded for the share of one of them."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf_loop.updates import PPOConfig, PPOTrainer

LETTERS = [chr(ord("a") + i) for i in range(26)]
VOCABULARY = ["<pad>", "<eos>", "<unk>", "hi", "lo", ":", *LETTERS]
LENGTH = 16


@cache
def model_folder() -> str:
    """A tiny random Llama and its tokenizer on disk."""
    folder = mkdtemp(prefix="token_task_")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **tokens).save_pretrained(folder)
    return folder


def tokenizer() -> Any:
    """Its tokenizer."""
    return PreTrainedTokenizerFast.from_pretrained(model_folder(), padding_side="left")


def prompts(count: int = 512) -> Dataset:
    """`hi` or `lo`, and one to four letters."""
    draw = random.Random(0)
    rows = [
        f"{draw.choice(['hi', 'lo'])} : {' '.join(draw.choices(LETTERS, k=draw.randint(1, 4)))}" for _ in range(count)
    ]
    return Dataset.from_list([{"prompt": row} for row in rows])


def share_of_a(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Share of the letter a in the completion, and 1 more for a prompt that begins with `hi`: only a critic that reads
    the prompt can tell the two apart."""
    wanted = VOCABULARY.index("a")
    return [
        sum(token == wanted for token in ids) / LENGTH + (1.0 if prompt.startswith("hi") else 0.0)
        for prompt, ids in zip(prompts, completion_ids, strict=True)
    ]


def lora() -> LoraConfig:
    """An adapter on every projection."""
    return LoraConfig(
        r=8, lora_alpha=16, target_modules="all-linear", exclude_modules=["lm_head"], task_type="CAUSAL_LM"
    )


def config(output: Path | str, kind: Any = PPOConfig, **settings: Any) -> Any:
    """Settings for a rollout of 16 completions, on the CPU, without files."""
    return kind(
        **{
            "output_dir": str(output),
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": [],
            "disable_tqdm": True,
            "per_device_train_batch_size": 16,
            "max_completion_length": LENGTH,
            "save_strategy": "no",
            "max_steps": 2,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            **settings,
        }
    )


def trainer(output: Path | str, kind: Any = PPOTrainer, **settings: Any) -> Any:
    """A trainer on the task; settings that are the trainer's own arguments go there."""
    own = {
        "model", "reward_funcs", "reward_processing_classes", "peft_config", "value_model", "rollout_func",
        "train_dataset", "eval_dataset", "processing_class", "optimizers",
    }  # fmt: skip
    arguments = {name: settings.pop(name) for name in list(settings) if name in own}
    arguments = {
        "model": model_folder(),
        "reward_funcs": share_of_a,
        "train_dataset": prompts(),
        "processing_class": tokenizer(),
        **arguments,
    }
    return kind(args=config(output, **settings), **arguments)


def rollout(made: Any) -> dict[str, torch.Tensor]:
    """One rollout of 16 completions, always the same for the same weights."""
    made.model.train()
    made._step = 0
    made.current_gradient_accumulation_steps = 1
    torch.manual_seed(7)
    batch: dict[str, torch.Tensor] = made._generate_and_score_completions([made.train_dataset[i] for i in range(16)])
    return batch
