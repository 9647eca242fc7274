"""The examples of the README, of the pages in docs/ and of the public docstrings run and hold."""

from __future__ import annotations

import ast
import doctest
import inspect
import io
import re
import sys
import tokenize
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import drop_in
import figures
import pytest
import torch

import torchad_ext as ad
from torchad_ext import Pointwise, ops, rows
from torchad_ext.__main__ import app
from torchad_ext._torch_state import clamp_shares_ties
from torchad_ext.ops import CATALOGUE

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))


def blocks(file: Path, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", file.read_text(encoding="utf-8"), flags=re.DOTALL)


BLOCKS = blocks(README)
METHODS = [getattr(Pointwise, name) for name in ("source", "derivative", "latex", "operands", "compile")]
DERIVATIVES = [ad.hvp, ad.vhp, ad.jacobian, ad.hessian, ad.hessian_diagonal, ad.hessian_sparsity]
PARTIALS = [ad.partials, ad.Sum, ad.taylor]
RULES = [ad.register_rule]
LAPLACIANS = [ad.laplacian, ad.forward_laplacian, ad.bilaplacian]
OPS = [*CATALOGUE.values(), ad.quadratic_form, ad.pointwise, Pointwise, *METHODS]
MODULES = [getattr(ad.nn, name) for name in "Sin Gaussian Lambda SineLayer Siren QuadraticForm".split()]
TOOLS = [*DERIVATIVES, *LAPLACIANS, *PARTIALS, *RULES]
PUBLIC = [*OPS, ad.verify, *TOOLS, *MODULES, ad.nn.replace_activations, ad.explain]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[0])
def test_readme(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block, "README.md", "exec"), {})
    assert "differs" not in capsys.readouterr().out


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run one after another, in one module."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType(page.stem.replace("-", "_"))
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where Dynamo and pickle look for it
    for block in blocks(page):
        exec(compile(block, page.name, "exec"), vars(module))


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.stem)
def test_commands_that_a_page_names_exist(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    inline = re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
    text = "\n".join(
        [*blocks(page, "console"), *(code for code in inline if re.match("torchad_ext|python -m|make ", code))]
    )
    for command in re.findall(r"\btorchad_ext ([a-z]+)\b", text):
        assert command in app.commands, f"{page.name} names torchad_ext {command}"
    for target in re.findall(r"\bmake ([a-z-]+)", text):
        assert target in targets, f"{page.name} names make {target}"


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.stem)
def test_calls_that_a_page_names_take_these_arguments(page: Path) -> None:
    for code in re.findall(r"`(ad\.[^`\n]+\))`", page.read_text(encoding="utf-8")):
        call = ast.parse(code, mode="eval").body
        if isinstance(call, ast.Call) and not any(isinstance(a, ast.Constant) and a.value is ... for a in call.args):
            signature = inspect.signature(eval(ast.unparse(call.func), {"ad": ad}))
            with_names = {str(keyword.arg): keyword.value for keyword in call.keywords}
            try:
                signature.bind(*call.args, **with_names)
            except TypeError as error:
                raise AssertionError(f"{page.name} names {code}: {error}") from error


FOLDERS = "tests|csrc|torchad_ext|benchmarks|examples|docs|notebooks"


@pytest.mark.parametrize("page", [README, ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.stem)
def test_files_that_a_page_names_exist(page: Path) -> None:
    for path in re.findall(rf"`((?:{FOLDERS})/[\w./-]+\w)`", page.read_text(encoding="utf-8")):
        assert "NAME" in path or (ROOT / path).exists(), f"{page.name} names {path}"


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    """A page of docs/ links to others of docs/ alone: the site has nothing else."""
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        is_there = (page.parent / target).exists() and (page is README or "../" not in target)
        assert "://" in target or is_there, f"{page.name} links to {target}"


def test_the_readme_is_short_and_begins_with_an_example_and_a_picture() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 150 and "assert_close" in BLOCKS[0]
    assert any("docs/images/training-step.svg" in line for line in lines[:45])


def test_the_readme_has_the_ratios_that_are_kept() -> None:
    between = README.read_text(encoding="utf-8").split(f"{figures.BEGIN}\n")[1].split(figures.END)[0]
    assert between == figures.ratios(), "make figures"


def test_the_readme_has_the_exponents_that_are_kept() -> None:
    """Each n^p of the README is that of benchmarks/second_derivative_cost.py, to one digit."""
    kept = {name: cost["exponents"] for name, cost in figures.read("second_derivative_cost")["costs"].items()}
    shown = (
        kept["network"]["gradient"],
        kept["network"]["full Hessian"],
        kept["chain of neighbours, sparse"]["sparse Hessian"],
    )
    assert re.findall(r"n\^([\d.]+)", README.read_text(encoding="utf-8")) == [f"{p:.1f}" for p in shown]


def test_the_picture_shows_the_times_that_are_kept() -> None:
    record = figures.read("rivals")
    facts = figures.facts(record["machine"])
    assert facts in figures.PICTURE.read_text(encoding="utf-8"), "make figures"
    bars = [patch.get_width() for patch in figures.draw(record).axes[0].patches]
    times = {(row["way"], row["network"]): 1e3 * row["seconds"]["median"] for row in record["rows"]}
    for i, network in enumerate(figures.NETWORKS):
        eager, compiled, jax, ours = bars[len(figures.WAYS) * i :][: len(figures.WAYS)]
        assert eager == times["PyTorch, nested autograd", network] and ours == times["ad.laplacian", network]
        assert compiled == min(t for (way, of), t in times.items() if of == network and "torch.compile" in way)
        assert jax == min(t for (way, of), t in times.items() if of == network and "jax.jit" in way)


@pytest.mark.skipif(clamp_shares_ties, reason="formulas that clamp are others from PyTorch 2.14 on")
def test_the_catalogue_is_that_of_today() -> None:
    text = (ROOT / "docs" / "catalogue.md").read_text(encoding="utf-8")
    between = text.split("<!-- python -m torchad_ext ops -->\n")[1].split("<!-- end")[0]
    assert between == f"{ops.table()}\n{rows.table()}", "put the output of python -m torchad_ext ops there"


def test_the_table_of_drop_in_has_every_row() -> None:
    text = (ROOT / "docs" / "drop-in.md").read_text(encoding="utf-8")
    between = text.split(f"{drop_in.BEGIN}\n")[1].split(drop_in.END)[0]
    lines = [line.split(" | ") for line in between.splitlines()[2:]]
    rows = [(name.removeprefix("| "), meaning) for name, meaning, *_ in lines]
    assert rows == list(drop_in.ROWS.items()), "make table"
    assert all(cpu.endswith("tests") or cuda.startswith("not run") for *_, cpu, cuda in lines)


def test_the_design_has_a_word_for_every_file() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\w+", text))
    files = [path for path in (ROOT / "torchad_ext").rglob("*.py") if path.name != "__init__.py"]
    assert not {path.stem for path in files} - named, "say in docs/design.md what these files are for"


def test_the_package_shows_no_names_of_others() -> None:
    shown = {name: getattr(ad, name) for name in dir(ad) if not name.startswith("_")}
    places = {name: getattr(x, "__module__", None) or x.__name__ for name, x in shown.items()}
    assert not {name for name, place in places.items() if not place.startswith("torchad_ext")}


@pytest.mark.parametrize("documented", PUBLIC, ids=lambda f: f.__name__)
def test_docstring(documented: Any) -> None:
    names = {"torch": torch, "Pointwise": Pointwise, **vars(ad.nn), **{name: getattr(ad, name) for name in dir(ad)}}
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
