"""Every operation of an expression as C++: what PyTorch computes, on every level of CPU; and all compile for CUDA."""

from __future__ import annotations

import ctypes
import functools
import inspect
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from selection import few

import torchad_ext as ad
from torchad_ext import Pointwise
from torchad_ext._native import compile, kernels, nvrtc, toolchain
from torchad_ext._symbolic import cpp, expr
from torchad_ext._symbolic.evaluate import evaluate
from torchad_ext._symbolic.expr import OPERATIONS, Expr
from torchad_ext._symbolic.operations import add, exp, finite, log, ne, neg, not_, sin, where
from torchad_ext._symbolic.program import Program

AWKWARD = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, 2.5, -3.7, 7.25, 1e-310, -1e-310, 1e200, math.inf, -math.inf, math.nan]


def operation(op: str, x: Expr, y: Expr, z: Expr) -> Expr:
    """One operation, applied to as many symbols as it takes; a truth value as 1 or 0."""
    mask = x < y
    if op == "not":
        return where(not_(mask), 1, 0)
    if op in ("and", "or"):
        return where(expr.make(op, mask, y < z), 1, 0)
    if OPERATIONS[op].is_mask:
        return where(expr.make(op, x, y), 1, 0)
    if op == "where":
        return where(mask, y, z)
    if OPERATIONS[op].is_family:
        return expr.make(op, 1, x)
    derivative = OPERATIONS[op].derivative
    assert derivative is not None
    arity = len(inspect.signature(derivative).parameters) - 2
    return expr.make(op, *(x, y, z)[:arity])


x, y, z, n = expr.tensor("x"), expr.tensor("y"), expr.tensor("z"), expr.scalar("n")
TRIED = sorted(op.name for op in OPERATIONS.values() if (op.derivative or op.is_mask) and not op.reduction)
EACH = {op: operation(op, x, y, z) for op in TRIED if op != "float64"}
EACH |= {f"{op.name} of order {k}": op(k, x) for op in OPERATIONS.values() if op.is_family for k in (0, 3)}
EACH["exclusive or"] = where(ne(x < y, y < z), x, z)
POWERS = {f"x^{p}": x**p for p in (-3, -2, -1, -0.5, 0.5, 2, 3, 4, 5, 6, 7, 8, 9, 1.5)}
NUMBERS = {
    "n x": n * x,
    "x^n": x**n,
    "n^2 / x": n**2 / x,
    "n < x": where(n < x, n, x),
    "-0": where(x < y, -0.0, x),
}
NUMBERS |= {"log n": log(n) * x, "n < 2": where(n < 2, x, y), "1 / 0": x * (expr.constant(1) / 0)}
NUMBERS |= {"infinity": where(x < math.inf, x, -math.inf), "nan": where(x < y, math.nan, x)}
NUMBERS["largest"] = where(x < y, finite(math.inf), where(y < x, finite(-math.inf), x))
# Of a number alone: what the constructor computes, and what it cannot.
OF_NUMBERS = {
    f"{op} of numbers": x * operation(op, n, expr.constant(0.5), n + 1)
    for op in TRIED
    if op not in ("float64", "where")
}
EVERYTHING = {**OF_NUMBERS, **EACH, **POWERS, **NUMBERS}


def nested() -> Iterator[Expr]:
    """Every pair of operators, each in both places of the other. No two share an operation, which would get a name."""
    numbers = (expr.constant(1 + i / 64) for i in itertools.count())
    arithmetic, comparisons, logic = ("mul", "div", "add", "sub"), ("eq", "ge", "gt", "le", "lt", "ne"), ("and", "or")

    def leaf(of: str, symbol: Expr) -> Expr:
        return expr.make(of, symbol, next(numbers))

    for outer, inner in itertools.product((*arithmetic, *comparisons), arithmetic):
        yield expr.make(outer, leaf(inner, x), z)
        yield expr.make(outer, z, leaf(inner, y))
        yield expr.make(outer, leaf(inner, n), x)
        yield expr.make(outer, neg(leaf(inner, x)), neg(z))
    for outer, inner in itertools.product(logic, logic):
        for of in itertools.product((x, y, n), (y, n, z), (z, x)):
            p, q, r = (leaf("lt", symbol) for symbol in of)
            yield expr.make(outer, p, expr.make(inner, q, r))
            p, q, r = (leaf("ge", symbol) for symbol in of)
            yield expr.make(outer, not_(expr.make(inner, p, q)), r)
    for outer, inner in itertools.product(logic, comparisons):
        yield expr.make(outer, leaf(inner, x), leaf("lt", z))
        yield expr.make(outer, leaf(inner, n), not_(leaf(inner, y)))


NESTED = {repr(e): where(e, 1, 0) if e.is_mask else e for e in nested()}


# A kernel of CUDA takes fewer results.
COMBINED = {"sum": functools.reduce(add, [*OF_NUMBERS.values(), *NESTED.values()])}
SINGLE = {name: e for name, e in EVERYTHING.items() if name not in OF_NUMBERS}


def program(expressions: dict[str, Expr]) -> Program:
    return Program((x, y, z), (n,), tuple(expressions.values()), tuple(f"output{i}" for i in range(len(expressions))))


def kernel(expressions: dict[str, Expr], device: str, dtype: str) -> cpp.Kernel:
    functor = cpp.functor(program(expressions), "Everything", dtype)
    return cpp.kernel(functor, "Everything", program(expressions), device, dtype)


def awkward(dtype: torch.dtype) -> list[torch.Tensor]:
    values = torch.tensor(AWKWARD, dtype=dtype)
    return [v.contiguous() for v in torch.cartesian_prod(values, values, values[:8]).unbind(1)]


@pytest.mark.skipif(toolchain.find_cxx() is None, reason="no C++ compiler")
class TestCpu:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    @pytest.mark.parametrize(
        "level", few(["x86-64", "x86-64-v3", "x86-64-v4"], lambda level: level == toolchain.cpu_level())
    )
    @pytest.mark.parametrize("expressions", [EVERYTHING, NESTED], ids=["operations", "pairs of operators"])
    def test_every_operation_is_that_of_pytorch(
        self, expressions: dict[str, Expr], level: str, dtype: torch.dtype, tmp_path: Path
    ) -> None:
        if sorted(toolchain.CPU_LEVELS.values()).index(level) > sorted(toolchain.CPU_LEVELS.values()).index(
            toolchain.cpu_level()
        ):
            pytest.skip(f"this CPU has no {level}")
        run = kernels._load("pointwise", "cpu")
        assert run is not None
        source = kernel(expressions, "cpu", str(dtype).removeprefix("torch."))
        compile.compile_library("cpu", toolchain.cpu_toolchain(level), tmp_path / "kernel.so", [source])
        library = ctypes.CDLL(str(tmp_path / "kernel.so"))
        inputs = awkward(dtype)
        results = run(ctypes.addressof(ctypes.c_char.in_dll(library, source.symbol)), inputs, [1.75])
        for name, result, expected in zip(
            expressions, results, evaluate(program(expressions), *inputs, 1.75), strict=True
        ):
            limits = torch.finfo(dtype)
            same = (result == expected) | (result.isnan() & expected.isnan())
            close = (result - expected).abs() <= 8 * limits.eps * expected.abs() + limits.tiny
            # A quotient too large for PyTorch's own remainder.
            exempt = ((inputs[0] / inputs[1]).abs() > 1e6) & torch.tensor(name in ("fmod", "remainder"))
            exempt |= (inputs[0] > 1) & torch.tensor(name == "log_ndtr")  # where PyTorch's own loses digits
            beyond = (inputs[0] < 0) | (inputs[0] > 1e30)  # where its polygamma has poor digits, is 0 or nan
            exempt |= beyond & torch.tensor(name.startswith("polygamma"))
            wrong = ~(same | close | exempt)
            where = [v[wrong][:3].tolist() for v in inputs]
            assert not wrong.any(), f"{name} of {where}: {result[wrong][:3]}, PyTorch {expected[wrong][:3]}"

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    def test_long_functors_are_compiled_in_parts(
        self, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cpp, "_PART", 7)
        assert "part1()" in kernel(EVERYTHING, "cpu", "float32").text
        level = toolchain.cpu_level()
        self.test_every_operation_is_that_of_pytorch(EVERYTHING, level, dtype, tmp_path)

    def test_signs_of_zero_are_kept(self) -> None:
        op = ad.pointwise(lambda x: torch.where(x > 0, x, -0.0))
        assert op(torch.tensor([-1.0, 2.0])).signbit().tolist() == [True, False]


@pytest.mark.long
@pytest.mark.skipif(not nvrtc.is_there(), reason="no NVRTC: the CUDA sources are not compiled")
@pytest.mark.parametrize(
    ("expressions", "dtype"),
    [(SINGLE, "float32"), (SINGLE, "bfloat16"), (SINGLE, "float64"), (COMBINED, "float32")],
    ids=["float32", "bfloat16", "float64", "combined"],
)
def test_every_operation_compiles_for_cuda(expressions: dict[str, Expr], dtype: str, tmp_path: Path) -> None:
    compile.compile_image([kernel(expressions, "cuda", dtype).text], "90", tmp_path / "image.cubin")
    assert (tmp_path / "image.cubin").exists()


@pytest.mark.long
@pytest.mark.skipif(not nvrtc.is_there(), reason="no NVRTC: the CUDA sources are not compiled")
def test_long_functors_compile_for_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp, "_PART", 3)
    assert "part1()" in kernel(POWERS, "cuda", "float32").text
    compile.compile_image([kernel(POWERS, "cuda", "float32").text], "90", tmp_path / "image.cubin")
    assert (tmp_path / "image.cubin").exists()


def test_the_source_grows_as_the_function_does() -> None:
    def series(terms: int) -> Pointwise:
        return ad.pointwise(lambda x: sum((torch.sin(k * x) / k for k in range(1, terms + 1)), torch.zeros_like(x)))

    short, long = (len(series(terms).source(order=2)) for terms in (100, 1000))
    assert long < 12 * short
    with pytest.raises(TypeError, match=r"has 23,998 operations an element, and a kernel takes 20,000"):
        series(6000)


def test_subexpressions_are_named_once_and_single_uses_are_written_in_place() -> None:
    shared = sin(x * y)
    source = cpp.functor(Program((x, y), (), (shared * shared + exp(x),), ("output",)), "Shared")
    assert source.count("sin(") == 1 and source.count("const T ") == 1
    assert "return Outputs{exp(x) + t1 * t1};" in source


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (x - (y - z), "x - (y - z)"),
        ((x - y) - z, "x - y - z"),
        (x * (y + z), "x * (y + z)"),
        (x / (y * z), "x / (y * z)"),
        (x / (y / z), "x / (y / z)"),
        (-(x * y), "-(x * y)"),
        (where(x < y, x, y) * z, "where(x < y, x, y) * z"),
    ],
    ids=str,
)
def test_operators_keep_their_order(expression: Expr, text: str) -> None:
    source = cpp.functor(Program((x, y, z), (), (expression,), ("output",)), "Order")
    written = source.split("Outputs{")[1].split("}")[0]
    assert written == text or written == " * ".join(reversed(text.split(" * ")))


def test_a_number_is_computed_once_in_double() -> None:
    source = cpp.functor(Program((x,), (n,), (x * (1 / (n * n)),), ("output",)), "Number")
    constructor, body = source.split("template <class T>")
    assert "double n, s" in constructor and "/" in constructor and "/" not in body


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -2.5, 1e300, 5e-324, 0.1, 1e6, math.inf, -math.inf, math.nan])
def test_constants_arrive_exactly(value: float) -> None:
    op = ad.pointwise(lambda x: torch.where(x > 0, torch.full_like(x, value), x))
    result = op(torch.ones(3, dtype=torch.float64))[0]
    expected = torch.tensor(value, dtype=torch.float64)
    assert (result == expected and result.signbit() == expected.signbit()) or (result.isnan() and expected.isnan())
