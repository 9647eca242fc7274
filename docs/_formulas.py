"""Formulas as MathML when the site is built, so that a page needs no script and no network to show them."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def _mathml(match: re.Match[str]) -> str:
    kind, formula = match.groups()
    formula = html.unescape(formula).replace(r"\displaystyle", "").replace(r"\tfrac", r"\frac")
    return convert(formula, display="block" if kind == "div" else "inline")


def on_page_content(text: str, **_: Any) -> str:
    """Called by mkdocs with the HTML of each page."""
    return _FORMULA.sub(_mathml, text)
