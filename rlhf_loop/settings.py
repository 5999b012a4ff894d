"""Settings that people write in YAML: read, overridden on the command line, checked, and said what is wrong with.

A block of settings is a pydantic class; unknown keys are errors, told with the nearest valid name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from rlhf_loop.errors import UserError, shortened
from rlhf_loop.files.paths import absolute_model, absolute_path, absolute_store
from rlhf_loop.files.store_address import is_project_name
from rlhf_loop.near import did_you_mean, near, nearest

_QUOTED = re.compile("'([^']+)'")
_UNWRITABLE = re.compile("[\\0\ud800-\udfff]")


class Settings(BaseModel):
    """A block of a recipe or of a reward model: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _a_switch_is_no_number(cls, values: Any) -> Any:
        """Pydantic would take `true` for 1."""
        for name, value in values.items() if isinstance(values, Mapping) else ():
            if isinstance(value, bool) and (field := cls.model_fields.get(name)) is not None:
                kinds = _kinds(field.annotation)
                if kinds & {int, float} and not kinds & {bool, Any}:
                    raise ValueError(f"`{name}`: a number is needed, got {str(value).lower()}")
        return values

    @model_validator(mode="before")
    @classmethod
    def _texts_can_be_written(cls, values: Any) -> Any:
        """YAML can name characters that neither a path nor a file may hold."""
        for name, value in values.items() if isinstance(values, Mapping) else ():
            for text in value if isinstance(value, list) else [name, value]:
                if isinstance(text, str) and _UNWRITABLE.search(text):
                    place = _UNWRITABLE.sub("?", str(name))
                    raise ValueError(f"`{place}`: it holds a NUL character or half of a surrogate pair; take it out")
        return values


def read_file(path: Path, what: str = "recipe", example: str = "recipes/quickstart.yaml") -> dict[str, Any]:
    """The values in a file of settings; a `UserError` that says what else is there where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"no {what} at {path}{near(path, _is_yaml)}. `rlhf-loop init DIR` lays out copies of those that ship."
        ) from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name a {what}'s file{near(path / what.upper(), _is_yaml)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    values = read_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a mapping of settings, as in {example}")
    return values


def parse_settings(model: type[Any], values: Mapping[str, Any], where: str) -> Any:
    """Checks `values` against a `Settings` class; raises `UserError` with one line for each mistake."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_explain(model, dict(problem)) for problem in error.errors()]
        for text in sorted(set(_long_texts(values)), key=len, reverse=True):
            lines = [line.replace(text, shortened(text)) for line in lines]
        raise UserError("\n".join(f"{where}: {line}" for line in lines)) from None


def apply_override(values: dict[str, Any], override: str) -> None:
    """Sets what `key.sub=value` says in `values`; the value is YAML."""
    key, separator, text = override.partition("=")
    shown = shortened(override)
    if not separator or not key.strip():
        raise UserError(f"`{shown}` is not an override; write key.sub=value, such as update.trainer.beta=0.2")
    *parents, last = key_of(override)
    place: Any = values
    for parent in parents:
        if isinstance(place, list):
            place = _item(place, parent, shown)
        elif isinstance(place, dict):
            place = place.setdefault(parent, {})
        if place is None:
            raise UserError(f"`{shown}`: {shortened(parent)} is null in the recipe; set it whole")
        if not isinstance(place, (dict, list)):
            raise UserError(f"`{shown}`: {shortened(parent)} is a single value and has no parts; set it whole")
    if isinstance(place, list):
        _item(place, last, shown)
        place[int(last)] = read_yaml(text, f"`{shown}`")
    else:
        place[last] = read_yaml(text, f"`{shown}`")


def key_of(override: str) -> tuple[str, ...]:
    """The names on the way to what an override sets."""
    return tuple(override.partition("=")[0].strip().split("."))


def _item(place: list[Any], index: str, override: str) -> Any:
    if not index.isdigit() or int(index) >= len(place):
        raise UserError(f"`{override}`: {shortened(index)} is not one of the {len(place)} items, counted from 0")
    return place[int(index)]


class Bases:
    """The folder that a path starts from: the recipe's, or for keys that were overridden another: the working folder,
    where they were typed."""

    def __init__(self, folder: Path, overridden: Iterable[tuple[str, ...]], overridden_in: Path | None = None):
        self.folder = folder
        self.overridden = list(overridden)
        self.overridden_in = overridden_in or Path.cwd()

    def of(self, key: tuple[str, ...]) -> Path:
        """For the value at `key`."""
        return self.overridden_in if any(key[: len(one)] == one for one in self.overridden) else self.folder


def resolve_paths(value: Any, bases: Bases, key: tuple[str, ...] = ()) -> Any:
    """`value`, which stands at `key` of a recipe, with every path in it absolute; blocks are changed in place."""
    if isinstance(value, Settings):
        for name in type(value).model_fields:
            before = getattr(value, name)
            after = resolve_paths(before, bases, (*key, name))
            if after != before:
                setattr(value, name, after)
    elif isinstance(value, list):
        return [resolve_paths(item, bases, (*key, str(number))) for number, item in enumerate(value)]
    elif isinstance(value, dict):
        return {name: resolve_paths(item, bases, (*key, str(name))) for name, item in value.items()}
    elif isinstance(value, Path):
        return absolute_path(value, bases.of(key))
    elif isinstance(value, str) and _is_store(value, key):
        return absolute_store(value, bases.of(key))
    elif value is not None and key in (("policy", "model"), ("generation", "embed", "model")):
        return absolute_model(value, bases.of(key))
    return value


def _is_store(value: str, key: tuple[str, ...]) -> bool:
    return key == ("store",) or (key[:2] == ("feedback", "from") and not is_project_name(value))


def _kinds(annotation: Any) -> set[Any]:
    """The classes that an annotation allows for the value itself, not for what is in it."""
    if get_origin(annotation) in (Union, UnionType):
        return {kind for part in get_args(annotation) for kind in _kinds(part)}
    return {annotation}


def _long_texts(value: Any) -> Iterator[str]:
    """Names and values that a message cannot repeat whole, as they are and as Python writes them."""
    parts: Iterable[Any] = ()
    if isinstance(value, Mapping):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, (list, tuple)):
        parts = value
    for part in parts:
        yield from _long_texts(part)
    yield from (text for text in (str(value), repr(value)) if shortened(text) != text)


def _explain(model: type[BaseModel], problem: dict[str, Any]) -> str:
    location = _without_union_tags(model, [str(part) for part in problem["loc"]])
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"unknown key `{key}`{nearest(location[-1], _names_at(model, location[:-1]))}"
    message: str = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"`{key}` is missing"
    if problem["type"] == "value_error":
        return message
    meant = did_you_mean(str(problem["input"]), _QUOTED.findall(message)) if problem["type"] == "literal_error" else ""
    return f"`{key}`: {message}, got {problem['input']!r}{meant}"


def _without_union_tags(model: type[BaseModel], location: list[str]) -> list[str]:
    """Pydantic puts the kind of a union's member into the place of a mistake; users did not write it there."""
    kept: list[str] = []
    for index, part in enumerate(location):
        blocks = _blocks_at(model, kept)
        tags = {block.model_fields["kind"].default for block in blocks if "kind" in block.model_fields}
        last = index == len(location) - 1
        if not (part in tags and len(blocks) > 1 and not last):
            kept.append(part)
    return kept


def _names_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """Valid names of the block at `location`."""
    return [name for block in _blocks_at(model, location) for name in block.model_fields]


def _blocks_at(model: type[BaseModel], location: list[str]) -> list[type[BaseModel]]:
    """The settings classes that may stand at `location`; walks lists, options and unions."""
    blocks = [model]
    for part in location:
        blocks = [
            inner
            for block in blocks
            for inner in (_blocks(block.model_fields[part].annotation) if part in block.model_fields else [block])
        ]
    return blocks


def _blocks(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [block for argument in get_args(annotation) for block in _blocks(argument)]


def _is_yaml(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml")


def read_yaml(text: str, where: str) -> Any:
    """The values in `text`; a `UserError` that begins with `where` when it is not YAML.

    Numbers such as 5e-4 are numbers, as in YAML 1.2 and Python (PyYAML asks for a point and a sign: 5.0e-4), and times
    such as 12:00:00 are texts (PyYAML takes them for 43200).
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not valid YAML: {error}") from None


def write_yaml(values: Any) -> str:
    """Plain values as YAML that `read_yaml` reads back as they are."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    pass


def _shown_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Several lines stay lines. A block would read other line ends than the usual one as that."""
    style = "|" if "\n" in text and not re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _shown_text)

_INT = re.compile(r"^[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)$")
_FLOAT = re.compile(
    r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_OURS = {"tag:yaml.org,2002:int": _INT, "tag:yaml.org,2002:float": _FLOAT}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, _OURS.get(tag, known)) for tag, known in resolvers]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )
