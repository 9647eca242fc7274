"""The examples of the README and of the public docstrings run and hold."""

from __future__ import annotations

import ast
import doctest
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import drop_in
import pytest
import torch

import torchad_ext as ad
from torchad_ext import Pointwise
from torchad_ext.ops import CATALOGUE, table

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
METHODS = [getattr(Pointwise, name) for name in ("source", "latex", "operands", "compile")]
DERIVATIVES = [ad.hvp, ad.vhp, ad.jacobian, ad.hessian, ad.hessian_diagonal, ad.hessian_sparsity]
PARTIALS = [ad.partials, ad.Sum, ad.taylor]
RULES = [ad.register_rule]
LAPLACIANS = [ad.laplacian, ad.forward_laplacian, ad.bilaplacian]
OPS = [*CATALOGUE.values(), ad.quadratic_form, ad.pointwise, Pointwise, *METHODS]
PUBLIC = [*OPS, ad.verify, *DERIVATIVES, *LAPLACIANS, *PARTIALS, *RULES]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[0])
def test_readme(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block, "README.md", "exec"), {})
    assert "differs" not in capsys.readouterr().out


def test_page_on_partials() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (README.parent / "docs/partials.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/partials.md", "exec"), names)


def test_the_readme_has_a_first_example() -> None:
    assert "assert_close" in BLOCKS[0]


def test_the_readme_has_the_catalogue_of_today() -> None:
    between = README.read_text().split("<!-- python -m torchad_ext ops -->\n")[1].split("<!-- end")[0]
    assert between == table(), "put the output of python -m torchad_ext ops there"


def test_the_readme_says_of_every_row_that_it_was_run() -> None:
    between = README.read_text().split(f"{drop_in.BEGIN}\n")[1].split(drop_in.END)[0]
    lines = [line.split(" | ") for line in between.splitlines()[2:]]
    rows = [(name.removeprefix("| "), meaning) for name, meaning, *_ in lines]
    assert rows == list(drop_in.ROWS.items()), "make table"
    assert all(cpu.endswith("tests") or cuda.startswith("not run") for *_, cpu, cuda in lines)


@pytest.mark.parametrize("documented", PUBLIC, ids=lambda f: f.__name__)
def test_docstring(documented: Any) -> None:
    names = {"torch": torch, "Pointwise": Pointwise, **{name: getattr(ad, name) for name in dir(ad)}}
    test = doctest.DocTestParser().get_doctest(documented.__doc__, names, documented.__name__, None, None)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


MODULES = sorted((Path(__file__).parents[1] / "torchad_ext").rglob("*.py"))
POINTS_ELSEWHERE = re.compile("(Of|That|Those|What|The same)\\b")  # at a line above, or at a noun that is missing


def openings(source: str) -> Iterator[tuple[int, str]]:
    """The lines on which docstrings and comments of some code begin, and their texts."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text
    last = -1  # a comment on the next line goes on
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            if line != last + 1 or token.line[: token.start[1]].strip():
                yield line, token.string.removeprefix("#").strip()
            last = line


@pytest.mark.parametrize("module", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_docstring_or_comment_makes_sense_alone(module: Path) -> None:
    unclear = [(line, text) for line, text in openings(module.read_text("utf-8")) if POINTS_ELSEWHERE.match(text)]
    assert not unclear, "begin with a noun or a verb that a reader can search for"


@pytest.mark.parametrize(
    ("source", "unclear"),
    [
        ('def f():\n    """Of two tensors the larger."""\n', True),
        ('class C:\n    """The same for rows."""\n', True),
        ('"""What is compiled."""\n', True),
        ("x = 1  # That of the library\n", True),
        ("# Those that were freed\n", True),
        ("# Tangents, of some\n# Of these the last are not needed\n", False),  # the second line goes on
        ('def f():\n    """The samest of all."""\n', False),
        ('def f():\n    """Thatch."""\n', False),
    ],
)
def test_an_unclear_opening_is_found(source: str, unclear: bool) -> None:
    assert any(POINTS_ELSEWHERE.match(text) for _, text in openings(source)) is unclear
