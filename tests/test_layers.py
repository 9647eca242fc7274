"""Imports point downwards: no room of the package knows one above it, and no module of a room waits for itself."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "torchad_ext"
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
FLOORS = """
__main__
_bench _named_ops
demo
__init__
_formula
_wheel compiler nn
_fusion
ops rows plot doctor
_verification _cost _dependency_graph
_hessian
_forward
_rowwise
_row_function
_pointwise _quadratic_form
_declared
_arguments
_broadcast
_derivative _elementwise
_native
_symbolic
_autograd _linearity
_self_check
_warnings
_settings _tables _torch_state
""".split("\n")
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(module: Path, tree: ast.AST, late: bool) -> Iterator[tuple[str, ...]]:
    """The modules of the package that a module imports, as parts of their paths; those in functions too if ``late``."""
    for node in ast.iter_child_nodes(tree):
        if is_for_types(node) or (isinstance(node, ast.FunctionDef) and not late):
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = module.parent.parts[: len(module.parent.parts) - (node.level - 1)]
            start = (*folder, *(node.module.split(".") if node.module else ()))
            for name in node.names:
                yield (*start, name.name) if Path(*start, name.name) in MODULES else start or ("__init__",)
        elif isinstance(node, ast.Import | ast.ImportFrom) and "torchad_ext" in ast.unparse(node):
            yield ("__init__",)
        yield from imports(module, node, late)


def source(module: Path) -> str:
    return (PACKAGE / f"{module}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_point_downwards(module: Path) -> None:
    room = module.parts[0]
    for imported in imports(module, ast.parse(source(module)), late=True):
        assert imported[0] == room or FLOOR[imported[0]] > FLOOR[room], f"{module} imports {'.'.join(imported)}"


def test_no_module_waits_for_itself() -> None:
    graph = {str(m): {"/".join(of) for of in imports(m, ast.parse(source(m)), late=False)} for m in MODULES}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def private_names(tree: ast.AST) -> Iterator[str]:
    """The private names of PyTorch that a module takes from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("torch"):
            names = [f"{node.module}.{name.name}" for name in node.names]
        elif isinstance(node, ast.Attribute) and re.fullmatch(r"[\w.]+", ast.unparse(node)):
            names = [ast.unparse(node)]
        else:
            continue
        for name in names:
            first, *rest = name.removeprefix("torch.utils._").split(".")
            if first in ("torch", "forward_ad") and any(re.match("_[a-zA-Z]", part) for part in rest):
                yield name


@pytest.mark.parametrize("module", [m for m in MODULES if m.name != "_torch_state"], ids=str)
def test_private_names_of_torch_stand_in_one_file(module: Path) -> None:
    assert not list(private_names(ast.parse(source(module))))


@pytest.mark.parametrize(
    ("line", "private"),
    [
        ("torch._C._is_tracing()", True),
        ("from torch._decomp import decomposition_table", True),
        ("from torch.utils._python_dispatch import TorchDispatchMode", False),  # documented by PyTorch
        ("from torch.autograd.function import _SingleLevelFunction", True),
        ("forward_ad._current_level", True),
        ("torch.sin(self._x)", False),
        ("torch.nn.Linear.__init__", False),
    ],
)
def test_what_a_private_name_is(line: str, private: bool) -> None:
    assert bool(list(private_names(ast.parse(line)))) is private


@pytest.mark.parametrize("module", [m for m in MODULES if m.name not in ("_settings", "__main__")], ids=str)
def test_environment_variables_are_read_in_one_file(module: Path) -> None:
    assert "os.environ" not in source(module)
