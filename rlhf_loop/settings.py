"""YAML of recipes and reward models, read as people write it."""

from __future__ import annotations

import re
from typing import Any

import yaml

from rlhf_loop.errors import UserError


def read_yaml(text: str, where: str) -> Any:
    """The values in `text`; a `UserError` that begins with `where` when it is not YAML.

    Numbers such as 5e-4 are numbers, as in YAML 1.2 and Python (PyYAML asks for a point and a sign: 5.0e-4).
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


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )
