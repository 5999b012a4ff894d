"""Tiny random models of several families, for tests: what differs is how a turn ends, and how a template writes it.

gemma    a turn ends with <end_of_turn>, which is not the tokenizer's eos; no system role; two eos ids; sliding windows
phi3     a turn ends with <|end|>, and the template ends a conversation with eos; one eos id in the generation config
llama2   no pad token; the answer begins with a space; generation config with do_sample false and a temperature
llama3   tied embeddings; three eos ids
r1       the generation prompt opens <think>; the template cuts reasoning out of answers
qwen3    the template puts an empty thought before answers without one
mistral  the turn's header is part of the user's; sliding windows
gpt2     absolute positions, fused projections; a chat template whose end of turn no config knows of
nogen    a template that ignores add_generation_prompt
lfm2     convolution and attention layers mixed
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEXT = (
    "A short answer says what matters and stops. What is tea? Leaves in hot water. Why is snow white? It scatters all "
    "light. Think first, then say it. user assistant model system"
)
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
HEADER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TEMPLATES = {
    "gemma": "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim + "
    "'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    "phi3": "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    "llama2": "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' ' + eos_token }}"
    "{% else %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}",
    "llama3": "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "r1": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|Assistant|>' + m['content'].split('</think>')[-1] + eos_token }}{% else %}{{ '<|User|>' + m['content'] }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}",
    "qwen3": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% if loop.last and '</think>' not in m['content'] %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] if loop.last else m['content'].split('</think>')[-1] | trim }}{% else %}{{ m['content'] }}"
    "{% endif %}{{ '<|im_end|>\n' }}{% endfor %}" + HEADER,
    "mistral": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
    "{% else %}{{ '[INST]' + m['content'] + '[/INST]' }}{% endif %}{% endfor %}",
    "gpt2": CHATML + HEADER,
    "nogen": CHATML,
    "lfm2": CHATML + HEADER,
}
IM = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS: dict[str, tuple[list[str], str | None, str, str | None]] = {
    "gemma": (["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], "<bos>", "<eos>", "<pad>"),
    "phi3": (["<unk>", "<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>"], None, "<|endoftext|>", "<unk>"),
    "llama2": (["<unk>", "<s>", "</s>"], "<s>", "</s>", None),
    "llama3": (
        [
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|eot_id|>",
            "<|eom_id|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
        ],
        "<|begin_of_text|>",
        "<|eot_id|>",
        None,
    ),
    "r1": (["<bos>", "<eos>", "<|User|>", "<|Assistant|>", "<think>", "</think>"], "<bos>", "<eos>", "<eos>"),
    "qwen3": (IM, None, "<|im_end|>", "<|endoftext|>"),
    "mistral": (["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], "<s>", "</s>", None),
    "gpt2": (IM, "<|endoftext|>", "<|endoftext|>", None),
    "nogen": (IM, None, "<|im_end|>", "<|endoftext|>"),
    "lfm2": (IM, None, "<|im_end|>", "<|endoftext|>"),
}
"""Special tokens in the order of their ids, bos, eos and pad."""

ENDS = {
    "gemma": ["<eos>", "<end_of_turn>"],
    "phi3": ["<|endoftext|>", "<|end|>"],
    "llama2": ["</s>"],
    "llama3": ["<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"],
    "r1": ["<eos>"],
    "qwen3": ["<|im_end|>"],
    "mistral": ["</s>"],
    "gpt2": ["<|endoftext|>", "<|im_end|>"],
}
"""Families that are trained, and the tokens that end their turns."""


def make(name: str, folder: Path) -> Path:
    """Writes the model and tokenizer of a family, and gives the folder; made once."""
    import torch
    import transformers

    if folder.exists():
        return folder
    tokenizer = _tokenizer(name)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(_config(name, len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    generation: dict[str, Any] | None = {
        "gemma": {"eos_token_id": [1, 4], "pad_token_id": 0, "do_sample": True, "top_k": 64},
        "llama2": {"eos_token_id": 2, "do_sample": False, "temperature": 0.9, "top_p": 0.6},
        "llama3": {"eos_token_id": [1, 3, 2], "do_sample": True, "temperature": 0.6},
    }.get(name)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def _tokenizer(name: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special, bos, eos, pad = TOKENS[name]
    base = Tokenizer(models.BPE())
    base.pre_tokenizer, base.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    base.train_from_iterator([TEXT], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=base, bos_token=bos, eos_token=eos, pad_token=pad)
    made.chat_template = TEMPLATES[name]
    return made


def _config(name: str, vocabulary: int) -> Any:
    import transformers

    special, bos, eos, pad = TOKENS[name]
    ids = {
        f"{key}_token_id": special.index(token) for key, token in (("bos", bos), ("eos", eos), ("pad", pad)) if token
    }
    small: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.1, "vocab_size": vocabulary,
        **ids,
    }  # fmt: skip
    if name == "gemma":
        return transformers.Gemma2Config(head_dim=8, sliding_window=16, **small)
    if name == "llama3":
        return transformers.LlamaConfig(tie_word_embeddings=True, **{**small, "eos_token_id": [1, 3, 2]})
    if name in ("r1", "qwen3"):
        return transformers.Qwen2Config(**small)
    if name == "mistral":
        return transformers.MistralConfig(sliding_window=16, **small)
    if name == "gpt2":
        return transformers.GPT2Config(
            vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=512, initializer_range=0.1, **ids
        )
    if name == "lfm2":
        layers = ["conv", "full_attention", "conv"]
        return transformers.Lfm2Config(layer_types=layers, **{**small, "num_hidden_layers": len(layers)})
    return transformers.LlamaConfig(**small)
