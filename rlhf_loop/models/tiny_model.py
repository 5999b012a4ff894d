"""`tiny-random:SEED`: a random Llama for tests, and for trying a recipe."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rlhf_loop.errors import UserError
from rlhf_loop.models.made import made_once, save

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tiny_model(reference: str) -> Path:
    """A random Llama of some 200,000 weights with a chat template: for tests, and for trying a recipe."""
    seed = reference.removeprefix("tiny-random:")
    if not seed.isdigit():
        raise UserError(f"`{reference}` is not understood; write tiny-random:SEED with a whole number, tiny-random:0")
    return made_once(f"tiny-random-{int(seed)}", lambda folder: _make_tiny(int(seed), folder))


def _make_tiny(seed: int, folder: Path) -> None:
    """Writes the model and tokenizer of `tiny-random:SEED`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([_TINY_TEXT], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=2048,
    )
    tokenizer.chat_template = CHATML
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.1,  # wide enough that its answers differ from prompt to prompt
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(hashlib.sha256(f"tiny-random {seed}".encode()).hexdigest()[:8], 16))
        model = LlamaForCausalLM(config)
    save(model, tokenizer, folder)


_TINY_TEXT = """
A short answer says what matters first and then stops. The reader asked a question; the answer gives the reason, an
example where one helps, and nothing else. Write three things that are good about walking to work: it costs nothing,
it keeps you well, and you see more of the town than you would from a train. What is the difference between weather
and climate? Weather is what happens today, climate is what you can expect over many years. How do I make tea? Boil
the water, pour it over the leaves, wait for four minutes, take the leaves out. Explain why the sky is blue, and why
people and other animals sleep. Give me a list of five words that mean the same as happy. I think that this is not
the best idea, because there are other ways which would take less time and which the people who use it understand.
""".strip()
