"""The table of operations: what its records say beside derivatives, which ``test_trace.py`` holds."""

from __future__ import annotations

import inspect

import pytest
import torch

from torchad_ext._symbolic import operations
from torchad_ext._symbolic.cpp import functor
from torchad_ext._symbolic.evaluate import evaluate
from torchad_ext._symbolic.expr import OPERATIONS, Operation, tensor
from torchad_ext._symbolic.program import Program

POINTS = [torch.tensor([z], dtype=torch.complex128) for z in (0.3 + 0.4j, 0.6 - 0.2j, 0.2 + 0.1j)]
NUMBERS = [torch.tensor(x, dtype=torch.float64) for x in ([0.3, 2.0, 5.0, 1.0, 0.2], [0.7, 4.0, 1.5, 1.0, 0.1])]
# Holomorphic, but not said to be: they have branches, or are steps of functions of real numbers.
REAL = set("exp2 logaddexp tanhshrink log1pexp acosh exp_minus_square normal_density".split())
DIFFERENTIABLE = [
    name for name, op in OPERATIONS.items() if op.derivative and not (op.is_mask or op.is_family or op.reduction)
]


def is_holomorphic(name: str) -> bool:
    """Are the slopes of the table those of differences in every direction, at complex numbers?"""
    try:
        return _agrees_with_differences(OPERATIONS[name])
    except (RuntimeError, AssertionError):  # PyTorch has no such function of complex numbers
        return False


def _agrees_with_differences(operation: Operation) -> bool:
    count = len(inspect.signature(operation.derivative).parameters) - 2
    xs, zs = [tensor(letter) for letter in "abc"[:count]], POINTS[:count]
    program = Program(tuple(xs), (), (operation(*xs),), ("y",))
    derivative = program.vjp([True] * count, [True])
    arguments = [*zs, torch.ones(1, dtype=torch.complex128)]
    slopes = evaluate(derivative.program, *(arguments[i] for i in derivative.arguments))
    if len(derivative.results) < count:
        return False
    for i, slope in zip(derivative.results, slopes if isinstance(slopes, tuple) else (slopes,), strict=True):
        for step in (1e-5, 1e-5j):
            behind, ahead = (evaluate(program, *zs[:i], zs[i] + t, *zs[i + 1 :]) for t in (-step, step))
            if not torch.allclose((ahead - behind) / (2 * step), slope, rtol=1e-6):
                return False
    return True


@pytest.mark.filterwarnings("ignore:Casting complex values to real")
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_what_is_said_to_be_analytic_is(name: str) -> None:
    assert OPERATIONS[name].is_analytic == (is_holomorphic(name) and name not in REAL)


OF_TWO = (
    "add sub mul div pow logaddexp logaddexp2 atan2 copysign hypot maximum minimum fmod remainder "
    "eq ne lt le gt ge and or".split()
)


@pytest.mark.parametrize("name", OF_TWO)
def test_operands_are_put_in_order_where_their_order_does_not_matter(name: str) -> None:
    operation, symbols = OPERATIONS[name], (tensor("a"), tensor("b"))
    a, b = (operations.lt(x, 0.5) for x in symbols) if name in ("and", "or") else symbols
    values = []
    for made in (operation(a, b), operation(b, a)):
        y = operations.where(made, 1, 0) if made.is_mask else made
        values.append(evaluate(Program(symbols, (), (y,), ("y",)), *NUMBERS))
    assert (operation(a, b) is operation(b, a)) == torch.equal(*values)


@pytest.mark.parametrize("name", ["sum", "amax", "amin"])
def test_reductions_are_along_the_last_dimension(name: str) -> None:
    x = torch.arange(24.0).sin().reshape(2, 3, 4)
    assert torch.equal(OPERATIONS[f"row_{name}"].reference(x), getattr(torch, name)(x, -1, keepdim=True))


@pytest.mark.parametrize("name", ["spherical_bessel", "erfcx", "polygamma"])
def test_the_member_of_a_family_is_a_parameter_of_its_template(name: str) -> None:
    x = tensor("x")
    assert f"{name}<2>(x)" in functor(Program((x,), (), (OPERATIONS[name](2, x),), ("y",)), "F", "float64")
