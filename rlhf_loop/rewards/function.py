"""A reward that is a Python function in the folder of the catalogue."""

from __future__ import annotations

import asyncio
import inspect
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.records import sound
from rlhf_loop.reward_columns import OF_TRAINERS
from rlhf_loop.reward_function import find_function, named_in, refuse_unknown, signature
from rlhf_loop.reward_spec import FunctionSpec
from rlhf_loop.rewards.base import Reward
from rlhf_loop.rewards.texts import Text


def load(folder: Path, spec: FunctionSpec, *, id: str) -> Reward:
    """The function that `spec` names; runs its file, which is the user's own code."""
    return FunctionReward(find_function(folder, spec), spec, id=id, name=folder.name, where=named_in(folder, spec))


def copy(spec: FunctionSpec, source: Path, output: Path) -> None:
    """Puts the function's file into `output`; there is nothing to train. One of a module stays where it is."""
    file = spec.file
    if file is None:
        return
    if not (source / file).is_file():
        raise UserError(f"{source} has no {file}, which its reward_model.yaml names as `function: {spec.function}`")
    shutil.copyfile(source / file, output / file)


class FunctionReward(Reward):
    """Calls a function written for TRL's trainers with prompts, completions and columns as lists."""

    def __init__(self, function: Callable[..., Any], spec: FunctionSpec, *, id: str, name: str, where: str):
        super().__init__(id, name)
        self.function = function
        self.spec = spec
        self.where = where

    def values(self, texts: Sequence[Text], columns: Mapping[str, Sequence[Any]]) -> list[float | None]:
        """What the function returns; anything it raises becomes a `UserError` naming it and the text."""
        try:
            return _plain(self._call(texts, columns))
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            # The function is the user's own code and may raise anything.
            culprit = self._culprit(texts, columns)
            raise UserError(sound(f"{self.where} raised {type(error).__name__}: {error}{culprit}")) from error

    def _call(self, texts: Sequence[Text], columns: Mapping[str, Sequence[Any]]) -> Any:
        plain = self.spec.format == "plain"
        arguments: dict[str, Any] = {
            **{name: values for name, values in columns.items() if name not in OF_TRAINERS},
            "finished": [text.finished for text in texts],
            "prompts": [text.prompt[-1][1] if plain and text.prompt else text.messages() for text in texts],
            "completions": [
                text.completion if plain else [{"role": "assistant", "content": text.completion}] for text in texts
            ],
            **self.spec.arguments,
        }
        parameters = signature(self.function, self.where)
        refuse_unknown(parameters, arguments, self.where)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            arguments = {name: value for name, value in arguments.items() if name in parameters}
        result = self.function(**arguments)
        return asyncio.run(result) if inspect.iscoroutine(result) else result

    def _culprit(self, texts: Sequence[Text], columns: Mapping[str, Sequence[Any]]) -> str:
        """The first text that the function fails on alone, to name it; it may fail on none alone."""
        for number, text in enumerate(texts):
            try:
                _plain(self._call([text], {name: values[number : number + 1] for name, values in columns.items()}))
            except (Exception, SystemExit):
                return f", for {text.shown()}"
        return f", for {len(texts)} completions together, though for none of them alone"


def _plain(values: Any) -> list[Any]:
    """Arrays and tensors as lists of Python numbers; everything else as it is, to be refused by the caller."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, (list, tuple)):
        return values  # type: ignore[no-any-return]
    return [value.item() if hasattr(value, "item") else value for value in values]
