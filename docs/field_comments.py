"""For the site's reference: what stands behind a `#` on the line of a field is that field's docstring."""

from __future__ import annotations

import io
import tokenize
from pathlib import Path
from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Gives fields of classes that have no docstring the comment of their line."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Called for each attribute that was read."""
        if (
            attr.docstring is not None
            or not (attr.parent and attr.parent.is_class)
            or not isinstance(attr.filepath, Path)
        ):
            return
        lines = attr.lines_collection[attr.filepath][attr.lineno - 1 : attr.endlineno]
        if comment := comment_of("\n".join(lines)):
            attr.docstring = griffe.Docstring(comment, lineno=attr.lineno, parent=attr)


def comment_of(source: str) -> str:
    """The words behind `#` in one statement."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source.strip()).readline))
    except (tokenize.TokenError, IndentationError):
        return ""
    said = [token.string.lstrip("# ").strip() for token in tokens if token.type == tokenize.COMMENT]
    return " ".join(text for text in said if not text.startswith(("type:", "fmt:", "noqa")))
