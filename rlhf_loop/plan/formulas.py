"""Bytes, each by one formula of shapes. None knows of a recipe, and none holds a number fitted to a measurement.

The letters of Korthikanti et al. 2022 (arXiv 2205.05198): s tokens of a row, b rows, h the hidden width, a heads,
L layers, V the vocabulary; beside them f, the width of the MLP, d, that of a head, k key heads, and e, bytes of a
number.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_loop.plan.shape import Adapter, Shape

FLOAT32 = 4
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

NF4 = 1 / 2 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in 4 bits (Dettmers et al. 2023, arXiv 2305.14314, section 3): with a scale of 8 bits for each 64
weights, and one of float32 for each 256 of those."""

CPU_CHUNK = 1 << 24
CPU_KEPT = 1 << 27
"""Logits that our head for CPUs computes at a time, and up to how many of a call it keeps (`updates/cpu_head.py`)."""

TILE = (4096, 32768)
"""Tokens and words of the vocabulary that TRL's head computes at a time."""

GROUPED_KEYS = 1024
"""Up to how many keys `grouped` attention keeps its weights for the gradient (`models/attention.py`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """What goes through a model at a time."""

    rows: int
    length: int  # tokens of a row, with padding
    scored: int  # tokens whose log-probability is computed, in all rows

    @property
    def tokens(self) -> int:
        """With padding."""
        return self.rows * self.length


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    """How a model computes."""

    element: int  # bytes of a number of the activations
    score: int  # bytes of an attention weight that is kept; 0: sdpa and flash compute them again
    cpu_head: bool  # log-probabilities by our head for CPUs; else by TRL's
    adapter_copies: bool = False  # an adapter's input is rounded apart from that of its neighbours


def moments(trained: int, optimizer: str, element: int) -> int:
    """What the optimizer keeps of `trained` weights: Adam (Kingma & Ba 2015, arXiv 1412.6980) two numbers each, of the
    weights' own size; 8-bit ones (Dettmers et al. 2022, arXiv 2110.02861) two bytes; SGD nothing, with momentum one
    number (which the name does not say and is counted); Adafactor rows and columns, about nothing."""
    if "8bit" in optimizer:
        return 2 * trained
    if optimizer.startswith("sgd"):
        return element * trained
    if optimizer.startswith("adafactor"):
        return 0
    return 2 * element * trained


def kv_cache(shape: Shape, tokens: int, element: int) -> int:
    """Keys and values of so many tokens: 2 L k d e each."""
    return 2 * shape.layers * shape.key_heads * shape.head_size * element * tokens


def kept_in_a_layer(shape: Shape, texts: Texts, numbers: Numbers, adapter: Adapter | None) -> int:
    """What one layer keeps of a batch for the backward pass, with the attention and the MLP of Llama (GLU) or GPT-2.

    As Korthikanti et al. 2022, equation 1 (s b h (34 + 5 a s / h) for GPT in 16 bits with dropout), for layers without
    dropout, fewer key heads, and weights that are frozen beside an adapter. Bytes of a token:

        norms       of each its output, e h; where it is RMS, also its input in float32, 4 h, and, where its own
                    weight is trained, the normalised one, e h; where it is torch's layer norm, its input, e h.
                    Of queries and keys, where they are normalised, the same without the output
        attention   queries and what comes out, 2 e a d; keys and values, 2 e k d; its weights, e a s, where kept
        MLP         the product with the gate and its activation, the other product, and both multiplied: 4 e f;
                    without a gate 2 e f
        adapters    the inner product of each, r e; where their inputs are rounded apart, one for each in the place of
                    one for all that read the same
    """
    e, h, f, d = numbers.element, shape.hidden, shape.inner, shape.head_size
    of_rms = FLOAT32 + (e if adapter is None else 0)
    token = shape.norms * h * (e + (of_rms if shape.norm_is_rms else e))
    if shape.head_norms:
        token += of_rms * d * (shape.heads + shape.key_heads)
    token += 2 * e * d * (shape.heads + shape.key_heads)
    token += shape.mlp_keeps * e * f
    token += numbers.score * shape.heads * texts.length
    if adapter is not None:
        layers = max(shape.layers - adapter.lowest, 1)
        token += e * adapter.rank * adapter.matrices // layers
        if numbers.adapter_copies:
            token += e * max(0, adapter.inputs // layers - shape.norms * h - shape.heads * d - f)
    return token * texts.tokens


def activations(shape: Shape, texts: Texts, numbers: Numbers, adapter: Adapter | None, checkpointing: bool) -> int:
    """What all layers keep: those that gradients go through, from the lowest adapter on; with gradient checkpointing
    the input of each layer, e h a token, and one layer whole while it is computed again (ibid., section 5: 2 s b h L in
    16 bits), of all layers, since a checkpoint begins below the lowest."""
    layers = shape.layers - (adapter.lowest if adapter is not None and not checkpointing else 0)
    one = kept_in_a_layer(shape, texts, numbers, adapter)
    if checkpointing:
        return layers * numbers.element * shape.hidden * texts.tokens + one
    return layers * one


def working(shape: Shape, texts: Texts, numbers: Numbers) -> int:
    """What a layer's backward pass has beside what was kept: gradients of the MLP's three products and of its input,
    or, where they are more, of the attention's weights before and after the softmax, of queries, keys and values."""
    e, d = numbers.element, shape.head_size
    of_mlp = e * (3 * shape.inner + shape.hidden)
    of_attention = e * ((shape.heads + 2 * shape.key_heads) * d + shape.hidden)
    of_attention += 2 * numbers.score * shape.heads * texts.length
    return texts.tokens * max(of_mlp, of_attention)


def forward(shape: Shape, texts: Texts, numbers: Numbers) -> int:
    """What a layer has at a time without gradients: its input and that of the MLP, and the MLP's products, or the
    attention's weights with queries, keys and values."""
    e, d = numbers.element, shape.head_size
    of_mlp = e * 3 * shape.inner
    of_attention = e * (shape.heads + 2 * shape.key_heads) * d + 2 * numbers.score * shape.heads * texts.length
    return texts.tokens * (2 * e * shape.hidden + max(of_mlp, of_attention))


def keeps_exponentials(shape: Shape, texts: Texts, numbers: Numbers) -> bool:
    """Whether the backward pass finds the exponentials of its logits: with our head for CPUs, while they are few."""
    return numbers.cpu_head and texts.scored * shape.vocabulary <= CPU_KEPT


def logits_kept(shape: Shape, texts: Texts, numbers: Numbers) -> int:
    """Until the backward pass: exponentials in float32 where they are kept, and the hidden states that are scored."""
    hidden = numbers.element * shape.hidden * texts.scored
    kept = FLOAT32 * shape.vocabulary * texts.scored if keeps_exponentials(shape, texts, numbers) else 0
    return hidden + kept


def gradient_of_head(shape: Shape, numbers: Numbers) -> int:
    """Of the output layer, where it is trained: put together in float32, and in 16 bits rounded after that."""
    rounded = numbers.element if numbers.element < FLOAT32 else 0
    return (FLOAT32 + rounded) * shape.vocabulary * shape.hidden


def logits_working(shape: Shape, texts: Texts, numbers: Numbers, keeps: bool = True) -> int:
    """What the output layer has at a time beside that, in the pass that takes more. `keeps`: False without gradients.

    Forward, of a part of the tokens: logits in float32 and their exponentials, if they are not kept; of TRL's head a
    tile. Backward the same but for the exponentials that are there, and the gradient in float32 of what is read. In 16
    bits products come rounded before they are float32.
    """
    rounded = numbers.element if numbers.element < FLOAT32 else 0
    gradient = FLOAT32 * shape.hidden * texts.scored
    if not numbers.cpu_head:
        return numbers.element * min(texts.scored, TILE[0]) * min(shape.vocabulary, TILE[1]) + gradient
    part = min(texts.scored, max(1, CPU_CHUNK // shape.vocabulary)) * shape.vocabulary
    kept = keeps and keeps_exponentials(shape, texts, numbers)
    forward_pass = part * (rounded + FLOAT32 * (1 if kept else 2))
    return max(forward_pass, part * (rounded + FLOAT32 * (0 if kept else 1)) + gradient)
