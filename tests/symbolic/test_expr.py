"""Expressions: one node for equal ones, simplifications that change no value, the size and the order of derivatives."""

from __future__ import annotations

import copy
import gc
import itertools
import math
import operator
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import torch

from torchad_ext._symbolic import expr
from torchad_ext._symbolic.cpp import functor
from torchad_ext._symbolic.evaluate import evaluate
from torchad_ext._symbolic.expr import OPERATIONS, Expr, constant, length, make, row, scalar, tensor, topological
from torchad_ext._symbolic.operations import abs_, cos, exp, floor, sin, tanh, where
from torchad_ext._symbolic.program import Program
from torchad_ext._symbolic.tracing import trace

x, y, z, a = tensor("x"), tensor("y"), tensor("z"), scalar("a")
COMMUTATIVE = sorted(op.name for op in OPERATIONS.values() if op.commutative)
TINY, HUGE = sys.float_info.min, sys.float_info.max
# Zeros, infinities, nan, denormals, numbers that overflow and underflow, ties of rounding.
FLOATS = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.1,
    -3.0,
    5e-324,
    -5e-324,
    TINY / 3,
    HUGE,
    -HUGE,
    1e-200,
    math.inf,
    -math.inf,
    math.nan,
)
# Half way between two numbers of bfloat16, of float16 and of float32, above an even one and above an odd one.
TIES = tuple(1 + odd * 2.0**-bits for bits in (8, 11, 24) for odd in (1, 3))


def program(*outputs: Expr) -> Program:
    """A program in those of x, y, z that occur."""
    occurring = set(topological(outputs))
    names = tuple(f"output{i}" for i in range(len(outputs)))
    return Program(tuple(s for s in (x, y, z) if s in occurring), (a,) if a in occurring else (), outputs, names)


def raw(op: str, *operands: Expr | float) -> Expr:
    """The operation as it is written, neither folded nor simplified nor put in order."""
    return expr._node(op, tuple(x if isinstance(x, Expr) else constant(x) for x in operands))


def bits(value: torch.Tensor, signed_zeros: bool = True) -> torch.Tensor:
    """Equal for equal numbers, and for any two nans."""
    value = torch.where(value.isnan(), math.nan, value)
    return (value if signed_zeros else value + 0.0).view(torch.int64)


def same_values(one: Expr, other: Expr, signed_zeros: bool = True) -> bool:
    """Are they equal, bit for bit, for all awkward x, y and z?"""
    columns = zip(*itertools.product(FLOATS, repeat=3), strict=True)
    points = [torch.tensor(column, dtype=torch.float64) for column in columns]
    values = [evaluate(Program((x, y, z), (), (each,), ("output",)), *points) for each in (one, other)]
    return torch.equal(*(bits(v, signed_zeros) for v in values))


class TestNodes:
    def test_equal_expressions_are_one_object(self) -> None:
        assert tensor("x") is x and scalar("a") is a and constant(2) is constant(2.0)
        assert sin(x * y + z) is sin(z + y * x)
        assert tensor("b") is not scalar("b")

    def test_zeros_of_both_signs_are_two_constants_and_nan_is_one(self) -> None:
        assert constant(0.0) is not constant(-0.0)
        assert constant(math.nan) is constant(math.nan)
        assert math.copysign(1, constant(-0.0).number) == -1
        assert torch.signbit(evaluate(Program((x,), (), (raw("mul", 1.0, -0.0),), ("y",)), torch.ones(2))).all()

    def test_operands_that_commute_have_one_order(self) -> None:
        for op in COMMUTATIVE:
            p, q = (x < 1, y < 2) if op in ("and", "or") else (x, y)
            assert make(op, p, q) is make(op, q, p)
        for op in ("sub", "div", "pow", "atan2", "lt", "fmod"):
            assert make(op, x, y) is not make(op, y, x)

    def test_sums_and_products_are_not_regrouped(self) -> None:
        for op in ("add", "mul"):
            left, right = make(op, make(op, x, y), z), make(op, x, make(op, y, z))
            assert left is not right and not same_values(left, right)

    def test_what_is_not_used_is_freed(self) -> None:
        gc.collect()
        before = len(expr._nodes)
        deep = x
        for i in range(1000):
            deep = sin(deep + i)
        assert len(expr._nodes) > before + 1000
        del deep
        gc.collect()
        assert len(expr._nodes) <= before + 1

    def test_pickle_and_copy_give_the_same_node(self) -> None:
        node = where(x > 0, exp(-(x**2)) * a, constant(-0.0))
        assert pickle.loads(pickle.dumps(node)) is node
        assert copy.copy(node) is node and copy.deepcopy(node) is node
        assert pickle.loads(pickle.dumps(program(node))) == program(node)

    def test_eight_threads_get_one_node(self) -> None:
        start, found = threading.Barrier(8), []

        def build() -> None:
            start.wait()
            node = tensor("thread")
            for i in range(300):
                node = sin(node * i) + node
            found.append(node)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)  # as many races as there can be
        try:
            threads = [threading.Thread(target=build) for _ in range(8)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
        finally:
            sys.setswitchinterval(interval)
        assert len(found) == 8 and len(set(map(id, found))) == 1

    def test_the_text_of_a_small_graph_that_is_a_huge_tree_is_short(self) -> None:
        node = x
        for _ in range(100):
            node = sin(node * node)
        assert len(repr(node)) < 10_000
        assert repr(x * 2 + a) in ("a + 2 * x", "2 * x + a")

    def test_the_text_means_the_same_in_python(self) -> None:
        names = {"x": 1.7, "a": -0.6, "sin": math.sin}
        for node, value in {
            x - (a - x): 1.7 - (-0.6 - 1.7),
            (x - a) - x: 0.6,
            x / (a / x): 1.7 / (-0.6 / 1.7),
            x / (a * x): 1 / -0.6,
            (x + a) * (x - a): 1.7**2 - 0.6**2,
            -(x + a): -1.1,
            (-x) ** 2.0: 1.7**2,
            -(x**2.0): -(1.7**2),
            (x**2.0) ** a: (1.7**2) ** -0.6,
            x ** (a**2.0): 1.7 ** (0.6**2),
            x ** (-2.0): 1.7**-2,
            x * -3.0 - sin(x + a) * -x: 1.7 * -3.0 + math.sin(1.1) * 1.7,
        }.items():
            assert eval(repr(node), names) == pytest.approx(value, rel=1e-14), repr(node)

    def test_varies(self) -> None:
        assert [n.varies for n in (x, a, constant(1), a * 2, x + a, where(x > 0, a, 1))] == [
            True,
            *[False] * 3,
            *[True] * 2,
        ]


def halves(c: Expr) -> tuple[Expr, Expr]:
    return raw("where", c, x, 0.0), raw("where", c, 0.0, y)


# What is written, and what it becomes; at least one for each operation that has one.
SIMPLER: dict[str, list[tuple[Expr, Expr]]] = {
    "neg": [(raw("neg", raw("neg", x)), x)],
    "add": [(raw("add", x, raw("neg", y)), x - y), (raw("add", raw("neg", x), y), y - x)],
    "sub": [(raw("sub", x, 0.0), x), (raw("sub", x, raw("neg", y)), x + y)],
    "mul": [
        (raw("mul", 1.0, x), x),
        (raw("mul", x, 1.0), x),
        (raw("mul", -1.0, x), -x),
        (raw("mul", raw("neg", x), y), -(x * y)),
        (raw("mul", x, raw("neg", y)), -(x * y)),
    ],
    "div": [
        (raw("div", x, 2.0), x * 0.5),
        (raw("div", x, -0.25), x * -4.0),
        (raw("div", x, 1.0), x),
        (raw("div", x, -1.0), -x),
        (raw("div", x, 2.0**-90), x * 2.0**90),
        (raw("div", x, 2.0**90), x * 2.0**-90),
        (raw("div", raw("neg", x), y), -(x / y)),
        (raw("div", x, raw("neg", y)), -(x / y)),
    ],
    "pow": [(raw("pow", x, 1.0), x), (raw("pow", x, 0.0), constant(1)), (raw("pow", x, -0.0), constant(1))],
    "abs": [(raw("abs", raw("neg", x)), abs_(x))],
    "rounded": [
        (raw("rounded", x), x),
        (raw("rounded", raw("rounded", x + y)), raw("rounded", x + y)),
        (raw("rounded", 0.5), constant(0.5)),
    ],
    "maximum": [(raw("maximum", x, x), x)],
    "minimum": [(raw("minimum", x, x), x)],
    "not": [(raw("where", raw("not", raw("not", x < y)), x, z), where(x < y, x, z))],
    "where": [
        (raw("where", x < y, z, z), z),
        (raw("where", raw("not", x < y), x, z), where(x < y, z, x)),
    ],
}


LEFT = [
    raw("sub", x, x),
    raw("div", x, x),
    raw("mul", 0.0, x),
    raw("add", x, 0.0),
    raw("sub", x, -0.0),
    raw("sub", 0.0, x),
    raw("sub", -x, y),
    raw("div", x, 3.0),
    raw("div", x, 0.0),
    raw("div", x, math.inf),
    raw("div", x, math.nan),
    raw("div", x, 2.0**-1060),  # its reciprocal overflows
    raw("mul", x**2, x),
    raw("pow", 1.0, x),
    raw("pow", 0.0, x),
    raw("add", where(x < y, x, 0), where(x <= y, 0, y)),
    raw("add", where(x < y, x, 0), where(x < y, y, 0)),
    raw("add", where(x < y, x, constant(-0.0)), where(x < y, 0, y)),
]


class TestSimplification:
    def test_every_rule_is_below(self) -> None:
        assert set(SIMPLER) == {op.name for op in OPERATIONS.values() if op.simplify and not op.reduction}

    @pytest.mark.parametrize("symbol", [row("r"), scalar("s"), constant(2)], ids=repr)
    def test_a_reduction_of_equal_numbers_reads_no_row(self, symbol: Expr) -> None:
        assert make("row_sum", symbol) is length() * symbol
        assert make("row_amax", symbol) is make("row_amin", symbol) is symbol
        assert make("row_sum", x).op == "row_sum"

    @pytest.mark.parametrize(
        "written", [each for pairs in SIMPLER.values() for each in pairs], ids=lambda p: repr(p[0])
    )
    def test_the_simpler_expression_has_the_same_bits(self, written: tuple[Expr, Expr]) -> None:
        long, short = written
        rebuilt = long
        if long.op == "where" and long.args[0].op == "not":
            rebuilt = where(make("not", *[make(p.op, *p.args) for p in long.args[0].args]), *long.args[1:])
        assert make(rebuilt.op, *rebuilt.args) is short
        assert len(program(short)) <= len(program(long))
        assert same_values(long, short)

    @pytest.mark.parametrize("op", [op for op in COMMUTATIVE if not OPERATIONS[op].is_mask])
    def test_the_order_of_operands_changes_no_bits(self, op: str) -> None:
        # Of zeros of both signs, PyTorch's own maximum depends on the length of the tensor.
        assert same_values(raw(op, x, y), raw(op, y, x), signed_zeros=op not in ("maximum", "minimum"))

    def test_the_halves_of_a_where_may_turn_the_sign_of_zero_and_nothing_else(self) -> None:
        for first, second in (halves(x < z), halves(x < z)[::-1]):
            assert first + second is where(x < z, x, y)
            assert same_values(raw("add", first, second), first + second, signed_zeros=False)
            assert not same_values(raw("add", first, second), first + second)

    @pytest.mark.parametrize("written", LEFT, ids=repr)
    def test_what_could_change_a_value_is_left(self, written: Expr) -> None:
        one, other = written.args
        assert make(written.op, one, other) in (written, raw(written.op, other, one))

    def test_tempting_simplifications_would_change_values(self) -> None:
        for long, short in (
            (x - x, constant(0)),
            (x / x, constant(1)),
            (0 * x, constant(0)),
            (x + 0, x),
            (-x - y, -(x + y)),
            (constant(0) - x, -x),
            (x / 3, x * (1 / 3)),
        ):
            assert not same_values(long, short)

    @pytest.mark.parametrize("op", [op.name for op in OPERATIONS.values() if op.fold])
    def test_constants_fold_to_the_value_of_the_operation(self, op: str) -> None:
        count = {"add": 2, "sub": 2, "mul": 2, "div": 2, "pow": 2}.get(op, 1)
        values = [(*FLOATS, 0.3, 2.0, *(TIES if count == 1 else ()))] * count
        folded = 0
        for operands in itertools.product(*values):
            node = make(op, *operands)
            if node.is_constant:
                folded += 1
                points = [torch.tensor([value], dtype=torch.float64) for value in operands]
                symbols = (x, y)[:count]
                expected = evaluate(Program(symbols, (), (raw(op, *symbols),), ("output",)), *points).item()
                # The libraries of Python and of PyTorch may differ in the last place.
                assert node.number == pytest.approx(expected, rel=2.3e-16, abs=5e-324, nan_ok=True)
                assert math.copysign(1, node.number) == math.copysign(1, expected) or math.isnan(expected)
        assert folded >= 4

    @pytest.mark.parametrize(
        ("op", "operands"), [("div", (1.0, 0.0)), ("pow", (0.0, -1.0)), ("log", (0.0,)), ("exp", (1000.0,))]
    )
    def test_what_python_refuses_is_left_to_the_kernel(self, op: str, operands: tuple[float, ...]) -> None:
        assert make(op, *operands) is raw(op, *operands)


def chain(length: int, step: Callable[[Expr], Expr]) -> Program:
    node: Expr = x
    for _ in range(length):
        node = step(node)
    return program(node)


def derivative(function: Program, order: int) -> Program:
    """The gradient in all inputs of the gradient in all inputs of ..."""
    for _ in range(order):
        function = function.vjp([True] * len(function.inputs), [True] * len(function.outputs)).program
    return function


class TestCost:
    @pytest.mark.parametrize(
        "step",
        [
            lambda u: u**2,
            lambda u: u * u + u,
            lambda u: sin(u),
            lambda u: tanh(u * 0.5) + u,
            lambda u: where(u > 0, u * u, exp(u)),
        ],
        ids=["square", "polynomial", "sine", "tanh", "where"],
    )
    @pytest.mark.parametrize("length", [50, 400])
    def test_a_gradient_costs_a_small_multiple_of_the_function(self, step: Callable[[Expr], Expr], length: int) -> None:
        function = chain(length, step)
        assert length <= len(function) <= 4 * length
        assert len(derivative(function, 1)) <= 5 * len(function)
        assert len(function.jvp([True]).program) <= 5 * len(function)
        assert len(derivative(function, 2)) <= 5 * len(derivative(function, 1))

    def test_the_third_derivative_of_a_composed_function(self) -> None:
        function = program(exp(-a * x**2) * sin(y * x + cos(x)) + tanh(a * x))
        second, third = (len(derivative(function, order)) for order in (2, 3))
        assert len(function) < second < third < 4 * second

    def test_only_what_is_wanted_is_computed(self) -> None:
        function = program(sin(x) * exp(y))
        in_x = function.vjp([True, False], [True])
        assert in_x.program.names == ("grad_x",) and in_x.results == (0,)
        assert not any(node.op == "sin" for node in topological(in_x.program.outputs))
        assert program(floor(x)).vjp([True], [True]).program.outputs == ()
        assert program(x * y).vjp([True, True], [False]).program.outputs == ()

    def test_arguments_that_drop_out(self) -> None:
        first = program(x * 2 + y).vjp([True, True], [True])
        assert [str(s.value) for s in first.program.inputs] == ["grad_output0"]
        assert first.arguments == (2,) and first.results == (0, 1)

    def test_names_of_cotangents_avoid_those_of_inputs(self) -> None:
        taken = tensor("grad_output")
        first = Program((x, taken), (), (x * taken,), ("output",)).vjp([True, True], [True]).program
        assert [s.value for s in first.inputs] == ["x", "grad_output", "grad_output2"]

    def test_a_cotangent_passes_through_an_output_that_is_an_input(self) -> None:
        function = Program((x,), (), (x, x * x), ("a", "b"))
        first = function.vjp([True], [True, True]).program
        points = [torch.tensor([value]) for value in (3.0, 10.0, 100.0)]
        assert evaluate(first, *points).item() == 10 + 2 * 3 * 100


ORDERS = """
import sys
from torchad_ext._symbolic.cpp import functor
from torchad_ext._symbolic.expr import scalar, tensor
from torchad_ext._symbolic.operations import cos, erf, exp, hypot, sin, tanh, where
from torchad_ext._symbolic.program import Program
names = sys.argv[2].split()
for name in names:  # nodes of another history
    exp(tensor(name) * 3) + sin(tensor(name))
x, y, a = tensor("x"), tensor("y"), scalar("a")
u = hypot(x, y) * a + tanh(y * x) * exp(-(a * x**2))
f = Program((x, y), (a,), (where(u > x, sin(u) * cos(u * y), erf(u) + y**a),), ("output",))
def derived(order):
    g = f
    for _ in range(order):
        g = g.vjp([True] * len(g.inputs), [True] * len(g.outputs)).program
    return functor(g, "F")
texts = {order: derived(order) for order in map(int, sys.argv[1])}
print(*(texts[order] for order in range(4)), sep="")
"""


def test_the_source_of_kernels_is_the_same_in_every_process() -> None:
    texts = set()
    for seed, order, history in (("0", "0123", "y x a"), ("1", "3201", "x b y"), ("4242", "2310", "")):
        command = [sys.executable, "-c", ORDERS, order, history]
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
        texts.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    (text,) = texts
    assert text.count("struct F {") == 4


def test_operators_are_operations() -> None:
    for op, symbol in {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "pow": "**"}.items():
        function = getattr(operator, op)
        name = {"truediv": "div"}.get(op, op)
        assert function(x, y) is make(name, x, y), symbol
        assert function(x, 3) is make(name, x, 3.0), symbol
        if op != "pow":
            assert function(3, x) is make(name, 3.0, x), symbol
    assert (x < y).is_mask and (x <= y).op == "le" and (x > y).op == "gt" and (x >= y).op == "ge"


def test_traced_and_written_expressions_are_the_same() -> None:
    traced = trace(lambda args: torch.sin(args[0]) * args[1] ** 2 - args[0] / 4, [x, y], "f")
    assert traced.outputs == (sin(x) * y**2 - x * 0.25,)
    assert functor(traced, "F") == functor(Program((x, y), (), traced.outputs, ("output",)), "F")
