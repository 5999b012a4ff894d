"""The engines that write candidates: one line each says where its `sample` is.

`sample(model, tokenizer, conversations, keys, settings, progress)` gives a list of `Answer`s for each conversation,
which is a list of `{"role", "content"}` (see `rlhf_loop/generation/transformers_engine.py`); for `endpoint`, `model`
is who asks the server and there is no tokenizer. To add one: a file in
`rlhf_loop/generation/` and a line here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

ENGINES = {
    "transformers": "rlhf_loop.generation.transformers_engine:sample",
    "endpoint": "rlhf_loop.generation.endpoint_engine:sample",
}
"""The name in a recipe -> MODULE:FUNCTION."""

if TYPE_CHECKING:
    EngineName = str
else:
    EngineName = Literal[tuple(ENGINES)]
