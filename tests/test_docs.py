"""The examples of the README and of the public docstrings run and hold."""

from __future__ import annotations

import doctest
import re
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
LAPLACIANS = [ad.laplacian, ad.forward_laplacian, ad.bilaplacian]
OPS = [*CATALOGUE.values(), ad.quadratic_form, ad.pointwise, Pointwise, *METHODS]
MODULES = [getattr(ad.nn, name) for name in "Sin Gaussian Lambda SineLayer Siren QuadraticForm".split()]
PUBLIC = [*OPS, ad.verify, *DERIVATIVES, *LAPLACIANS, *MODULES, ad.nn.replace_activations, ad.explain]


def test_the_page_about_models() -> None:
    """Its blocks build on each other."""
    text = (README.parent / "docs" / "speed-up-a-model.md").read_text()
    names: dict[str, Any] = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(block, "speed-up-a-model.md", "exec"), names)
    assert "laplacian" in names


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[0])
def test_readme(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block, "README.md", "exec"), {})
    assert "differs" not in capsys.readouterr().out


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
    names = {"torch": torch, "Pointwise": Pointwise, **vars(ad.nn), **{name: getattr(ad, name) for name in dir(ad)}}
    test = doctest.DocTestParser().get_doctest(documented.__doc__, names, documented.__name__, None, None)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0
