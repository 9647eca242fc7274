"""Docstrings as Markdown when the site is built: roles become formulas and code, an example becomes a code block."""

from __future__ import annotations

import re
from typing import Any

import griffe

_RULES = (
    (re.compile(r":math:`(.*?)`", re.DOTALL), r"$\1$"),
    (re.compile(r":(?:func|mod|class|meth):`~?(.*?)`"), r"`\1`"),
    (re.compile(r"^(\s*)Example:$", re.MULTILINE), r"\1Examples:"),
)


class Docstrings(griffe.Extension):
    """Rewrites each docstring that is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            for pattern, replacement in _RULES:
                obj.docstring.value = pattern.sub(replacement, obj.docstring.value)
