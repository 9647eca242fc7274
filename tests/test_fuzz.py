"""Random programs: a few of them, those that failed once, and that a wrong derivative does not pass."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import fuzz
import pytest
import torch

import torchad_ext as ad
from torchad_ext._symbolic import operations
from torchad_ext._symbolic.expr import OPERATIONS
from torchad_ext._symbolic.torch_functions import FUNCTIONS


@pytest.mark.parametrize(("what", "seed"), [("declared", 0), ("declared", 2), ("tools", 1), ("tools", 2), ("tools", 3)])
def test_random_programs_are_native(what: str, seed: int) -> None:
    for _, case in fuzz.cases(what, seed):
        failure = fuzz.failure_of(case)
        assert failure is None, f"{failure}\n\n{case.text}"


@pytest.mark.parametrize("path", sorted(fuzz.SEEDS.glob("*.json")), ids=lambda path: path.stem)
def test_programs_that_failed_once_are_native(path: Path) -> None:
    case = fuzz.from_json(path.read_text(encoding="utf-8"))
    failure = fuzz.failure_of(case)
    assert failure is None, f"{failure}\n\n{case.text}"


def test_every_function_is_drawn() -> None:
    assert set(fuzz.composer("declared").spelled) == set(FUNCTIONS)


def test_every_operation_of_tensors_is_drawn() -> None:
    composer = fuzz.composer("tools")
    xs = [composer.space["C"](*shape, shift=0.4).requires_grad_() for shape in ((12,), (3, 3), (2, 6), (4, 3))]
    runs = lambda text, x: composer.statement(text, "t0", ["x"] * 3, {**composer.space, "x": x})  # noqa: E731
    options = [random.Random(seed) for seed in range(8)]
    tried = lambda text: (runs(fuzz.chosen(text, draw), x) for draw in options for x in xs)  # noqa: E731
    assert [text for text in composer.any if not any(tried(text))] == []


def declared(*lines: str, **options: Any) -> tuple[fuzz.Program, fuzz.Declared]:
    statements = tuple(fuzz.Statement(line.split(" ")[0], line) for line in lines)
    program = fuzz.Program("x, y, z, a=0.7, b=-1.3", statements, (statements[-1].name,))
    points = {name: [0.3, -0.9, 1.1] for name in "xyz"}
    given = {"dtype": "float64", "points": points, "numbers": {"a": 0.5, "b": -1.0}, "orders": 2, **options}
    return program, fuzz.Declared(program.source, **given)


WRONG: dict[str, tuple[Any, int]] = {
    # A rule that is wrong, and the order at which it shows.
    "sign": (lambda g, y, x: (g * operations.sin(x),), 1),
    "factor": (lambda g, y, x: (-1.0001 * (g * operations.sin(x)),), 1),
    "branch": (lambda g, y, x: (operations.where(x > 1, g, -(g * operations.sin(x))),), 1),
    "curvature": (lambda g, y, x: (-(g * operations.detach(operations.sin(x))),), 2),
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("wrong", "dtype"),
    [("sign", "bfloat16"), ("factor", "float32"), ("branch", "float16"), ("curvature", "float64")],
)
def test_a_wrong_rule_is_found_and_shrunk(wrong: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ("t0 = torch.tanh(y)", "m1 = x > t0", "t2 = torch.where(m1, x, y)", "t3 = torch.cos(x) * t2", "t4 = t3 + z")
    program, case = declared(*lines, dtype=dtype)
    assert fuzz.failure_of(case) is None
    rule, order = WRONG[wrong]
    monkeypatch.setitem(OPERATIONS, "cos", dataclasses.replace(OPERATIONS["cos"], derivative=rule))
    failure = fuzz.failure_of(case)
    assert failure is not None
    assert failure.of == order
    smallest, failure = fuzz.minimal(case, program, failure)
    assert smallest.source.count("\n") == 2
    assert "torch.cos" in smallest.source
    assert fuzz.from_json(fuzz.to_json(smallest, failure)) == smallest


def test_rounding_errors_are_no_failure() -> None:
    """A difference of nearly equal numbers, where nothing is left but rounding errors."""
    points = {"x": [0.1], "y": [0.1 + 1e-9], "z": [1.0]}
    case = declared("t0 = torch.exp(x) - torch.exp(y)", dtype="float32", points=points)[1]
    assert fuzz.failure_of(case) is None


@pytest.mark.parametrize("tool", ["hvp", "hessian", "hessian_diagonal", "laplacian"])
def test_a_wrong_tool_is_found(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def f(x):\n    return (x.sin() * x.flip(-1)).sum(-1)"
    case = fuzz.Tools(source, (6,), "scalar")
    assert fuzz.failure_of(case) is None
    right = getattr(ad, tool)
    monkeypatch.setattr(ad, tool, lambda *args, **options: right(*args, **options) * (1 + 1e-6))
    failure = fuzz.failure_of(case)
    assert failure is not None
    assert failure.of.startswith(f"ad.{tool}(")


def test_a_process_that_dies_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fuzzer = fuzz.Fuzzer(["declared"], 0, 1, seconds=60)
    monkeypatch.setattr(fuzz.sys, "executable", "false")
    fuzzer.run()
    assert "the process ended with 1" in capsys.readouterr().out
    assert fuzzer.found == {"declared-crash": 1}


def test_programs_are_printed_as_code() -> None:
    _, case = declared("t0 = torch.sin(x)")
    space = fuzz.namespace(case.text)
    assert torch.equal(space["x"], torch.tensor(case.points["x"], dtype=torch.float64))
