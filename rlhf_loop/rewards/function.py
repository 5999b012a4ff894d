"""A reward that is a Python function in the folder of the catalogue."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.rewards.base import Reward
from rlhf_loop.rewards.spec import FunctionSpec
from rlhf_loop.rewards.texts import Text


def load(folder: Path, spec: FunctionSpec, *, id: str) -> Reward:
    """The function that `spec` names; runs its file, which is the user's own code."""
    file, _, name = spec.function.partition(":")
    return FunctionReward(
        _function(folder / file, name), spec, id=id, name=folder.name, where=f"{folder / file}:{name}"
    )


def copy(spec: FunctionSpec, source: Path, output: Path) -> None:
    """Puts the function's file into `output`; there is nothing to train."""
    file = spec.function.partition(":")[0]
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

    def values(self, texts: Sequence[Text], columns: Mapping[str, Sequence[Any]]) -> list[float]:
        """What the function returns; anything it raises becomes a `UserError` naming it and the text."""
        try:
            values = self._call(texts, columns)
        except UserError:
            raise
        except Exception as error:
            # The function is the user's own code and may raise anything.
            culprit = self._culprit(texts, columns)
            raise UserError(f"{self.where} raised {type(error).__name__}: {error}{culprit}") from error
        return _plain(values)

    def _call(self, texts: Sequence[Text], columns: Mapping[str, Sequence[Any]]) -> Any:
        plain = self.spec.format == "plain"
        arguments: dict[str, Any] = {
            **columns,
            "finished": [text.finished for text in texts],
            "prompts": [text.prompt[-1][1] if plain and text.prompt else text.messages() for text in texts],
            "completions": [
                text.completion if plain else [{"role": "assistant", "content": text.completion}] for text in texts
            ],
            **self.spec.arguments,
        }
        parameters = inspect.signature(self.function).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            arguments = {name: value for name, value in arguments.items() if name in parameters}
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        needed = [name for name, p in parameters.items() if p.kind in named and p.default is p.empty]
        missing = [name for name in needed if name not in arguments]
        if missing:
            raise UserError(
                f"{self.where} asks for {', '.join(missing)}, which is not known here; it may ask for prompts, "
                f"completions, {', '.join(columns)} and what `arguments` in reward_model.yaml gives"
            )
        result = self.function(**arguments)
        return asyncio.run(result) if inspect.iscoroutine(result) else result

    def _culprit(self, texts: Sequence[Text], columns: Mapping[str, Sequence[Any]]) -> str:
        """The first text that the function fails on alone, to name it; it may fail on none alone."""
        for number, text in enumerate(texts):
            try:
                self._call([text], {name: values[number : number + 1] for name, values in columns.items()})
            except Exception:
                return f", for {text.shown()}"
        return f", for {len(texts)} completions together, though for none of them alone"


def _plain(values: Any) -> list[Any]:
    """Arrays and tensors as lists of Python numbers; everything else as it is, to be refused by the caller."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, (list, tuple)):
        return values  # type: ignore[no-any-return]
    return [value.item() if hasattr(value, "item") else value for value in values]


def _function(path: Path, name: str) -> Callable[..., Any]:
    if not path.is_file():
        raise UserError(f"there is no {path}, which the reward model's `function` names")
    module_spec = importlib.util.spec_from_file_location(f"rlhf_loop_reward_{path.parent.name}_{path.stem}", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        public = sorted(n for n, v in vars(module).items() if inspect.isfunction(v) and not n.startswith("_"))
        raise UserError(f"{path} has no function {name}; it has: {', '.join(public) or 'none'}")
    return function  # type: ignore[no-any-return]
