"""A reward that is a Python function in the folder of the catalogue."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import inspect
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhf_loop import recipe
from rlhf_loop.columns import OF_COMPLETIONS, OF_PROMPTS, OF_TRAINERS, columns_of
from rlhf_loop.errors import UserError
from rlhf_loop.feedback.files.rows import sound
from rlhf_loop.records import Prompt
from rlhf_loop.rewards.base import Reward
from rlhf_loop.rewards.spec import FunctionSpec
from rlhf_loop.rewards.texts import Text


def load(folder: Path, spec: FunctionSpec, *, id: str) -> Reward:
    """The function that `spec` names; runs its file, which is the user's own code."""
    return FunctionReward(_function(folder, spec), spec, id=id, name=folder.name, where=_where(folder, spec))


def copy(spec: FunctionSpec, source: Path, output: Path) -> None:
    """Puts the function's file into `output`; there is nothing to train. One of a module stays where it is."""
    file = spec.file
    if file is None:
        return
    if not (source / file).is_file():
        raise UserError(f"{source} has no {file}, which its reward_model.yaml names as `function: {spec.function}`")
    shutil.copyfile(source / file, output / file)


def check_columns(folder: Path, spec: FunctionSpec, prompts: Callable[[], Mapping[str, Sequence[Prompt]]]) -> None:
    """Raises `UserError` where the function asks for what it will not be given: before anything is computed.

    `prompts`: those that it is to score, by split; asked only where the function wants a column of their files. The
    file of a function that is plainly defined there is read and not run.
    """
    parameters, where = _parameters(folder, spec), _where(folder, spec)
    always = [*OF_PROMPTS, *OF_COMPLETIONS, "prompts", "completions", *spec.arguments]
    try:
        refuse_unknown(parameters, always, where)
    except UserError:
        for split, given in prompts().items():
            further = [name for name in columns_of(given) if name not in OF_PROMPTS]
            refuse_unknown(parameters, [*always, *further], where, f"the {split} prompts")


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
        parameters = _signature(self.function, self.where)
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


def refuse_unknown(parameters: Mapping[str, inspect.Parameter], known: Iterable[str], where: str, of: str = "") -> None:
    """Raises `UserError` for what a function must be given and nobody gives, with the nearest name there is.

    `of`: whose columns are known, for the message."""
    known = list(known)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    by_place = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
    if by_place:
        raise UserError(f"{where} takes {by_place[0]} by its place alone, and is called with keywords; remove the `/`")
    needed = [name for name, p in parameters.items() if p.kind in named and p.default is p.empty]
    for name in needed:
        if name in known:
            continue
        if name in OF_TRAINERS:
            raise UserError(
                f"{where} asks for {name}, which is known only while a policy trains, and the function also scores "
                "answers at other times; give it a default, or do without"
            )
        raise UserError(
            f"{where} asks for {name}, which is not known here{recipe._did_you_mean(name, known)}; it may ask for "
            f"{', '.join(known)}{of and f', which is what {of} have'}; what else it needs goes into their file as a "
            "column, or under `arguments` in reward_model.yaml"
        )


def _plain(values: Any) -> list[Any]:
    """Arrays and tensors as lists of Python numbers; everything else as it is, to be refused by the caller."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, (list, tuple)):
        return values  # type: ignore[no-any-return]
    return [value.item() if hasattr(value, "item") else value for value in values]


def _where(folder: Path, spec: FunctionSpec) -> str:
    """The function's name for messages."""
    return spec.function if spec.file is None else f"{folder / spec.function}"


def _parameters(folder: Path, spec: FunctionSpec) -> Mapping[str, inspect.Parameter]:
    """The function's parameters by name."""
    name = spec.function.partition(":")[2]
    if spec.file is not None and (folder / spec.file).is_file():
        try:
            defined = ast.parse((folder / spec.file).read_bytes()).body
        except (SyntaxError, ValueError) as error:
            raise UserError(f"{folder / spec.file} cannot be loaded: {type(error).__name__}: {error}") from None
        last = [node for node in defined if getattr(node, "name", None) == name][-1:]
        for node in last:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.decorator_list:
                return _parameters_of(node.args)
    return _signature(_function(folder, spec), _where(folder, spec))


def _signature(function: Callable[..., Any], where: str) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (ValueError, TypeError):  # of a compiled module
        raise UserError(
            f"{where} does not say what it takes; call it from a function of your own in reward.py"
        ) from None


def _parameters_of(arguments: ast.arguments) -> dict[str, inspect.Parameter]:
    """As `inspect.signature` gives them; of a default it says only that there is one."""
    kinds = inspect.Parameter
    by_place = len(arguments.posonlyargs)
    positional = [*arguments.posonlyargs, *arguments.args]
    required = len(positional) - len(arguments.defaults)
    found = {
        one.arg: kinds(
            one.arg,
            kinds.POSITIONAL_ONLY if number < by_place else kinds.POSITIONAL_OR_KEYWORD,
            default=kinds.empty if number < required else None,
        )
        for number, one in enumerate(positional)
    }
    for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found[one.arg] = kinds(one.arg, kinds.KEYWORD_ONLY, default=kinds.empty if default is None else None)
    if arguments.kwarg is not None:
        found[arguments.kwarg.arg] = kinds(arguments.kwarg.arg, kinds.VAR_KEYWORD)
    return found


def _function(folder: Path, spec: FunctionSpec) -> Callable[..., Any]:
    """Imports the function; what its file or module raises on the way becomes a `UserError`."""
    place, _, name = spec.function.partition(":")
    try:
        module = import_module(place) if spec.file is None else _module(folder / place)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        named = place if spec.file is None else folder / place
        raise UserError(f"{named} cannot be loaded: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        public = sorted(n for n, v in vars(module).items() if inspect.isfunction(v) and not n.startswith("_"))
        named = place if spec.file is None else folder / place
        raise UserError(f"{named} has no function {name}; it has: {', '.join(public) or 'none'}")
    return function  # type: ignore[no-any-return]


def _module(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"there is no {path}, which the reward model's `function` names")
    module_spec = importlib.util.spec_from_file_location(f"rlhf_loop_reward_{path.parent.name}_{path.stem}", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # where dataclasses and pickle look for it
    module_spec.loader.exec_module(module)
    return module
