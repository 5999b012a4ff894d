"""The Python function that a reward model names: found, and refused where it asks for what nobody gives.

Without torch, unless the function's own file or module imports it.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.near import did_you_mean
from rlhf_loop.records import Prompt
from rlhf_loop.reward_columns import OF_COMPLETIONS, OF_PROMPTS, OF_TRAINERS, columns_of
from rlhf_loop.reward_spec import FunctionSpec


def check_columns(folder: Path, spec: FunctionSpec, prompts: Callable[[], Mapping[str, Sequence[Prompt]]]) -> None:
    """Raises `UserError` where the function asks for what it will not be given: before anything is computed.

    `prompts`: those that it is to score, by split; asked only where the function wants a column of their files. The
    file of a function that is plainly defined there is read and not run.
    """
    parameters, where = parameters_of(folder, spec), named_in(folder, spec)
    always = [*OF_PROMPTS, *OF_COMPLETIONS, "prompts", "completions", *spec.arguments]
    try:
        refuse_unknown(parameters, always, where)
    except UserError:
        for split, given in prompts().items():
            further = [name for name in columns_of(given) if name not in OF_PROMPTS]
            refuse_unknown(parameters, [*always, *further], where, f"the {split} prompts")


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
            f"{where} asks for {name}, which is not known here{did_you_mean(name, known)}; it may ask for "
            f"{', '.join(known)}{of and f', which is what {of} have'}; what else it needs goes into their file as a "
            "column, or under `arguments` in reward_model.yaml"
        )


def named_in(folder: Path, spec: FunctionSpec) -> str:
    """The function's name for messages."""
    return spec.function if spec.file is None else f"{folder / spec.function}"


def parameters_of(folder: Path, spec: FunctionSpec) -> Mapping[str, inspect.Parameter]:
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
                return _of_definition(node.args)
    return signature(find_function(folder, spec), named_in(folder, spec))


def signature(function: Callable[..., Any], where: str) -> Mapping[str, inspect.Parameter]:
    """Its parameters by name; a `UserError` where it does not say."""
    try:
        return inspect.signature(function).parameters
    except (ValueError, TypeError):  # of a compiled module
        raise UserError(
            f"{where} does not say what it takes; call it from a function of your own in reward.py"
        ) from None


def _of_definition(arguments: ast.arguments) -> dict[str, inspect.Parameter]:
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


def find_function(folder: Path, spec: FunctionSpec) -> Callable[..., Any]:
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
