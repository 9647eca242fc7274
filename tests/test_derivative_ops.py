"""op.derivative(...): a declared op whose value is the derivative, and whose formula a reader would have written."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from matplotlib.mathtext import MathTextParser
from selection import few
from torch.fx.experimental.proxy_tensor import make_fx

import torchad_ext as ad
from torchad_ext._symbolic.evaluate import evaluate
from torchad_ext._symbolic.program import Program
from torchad_ext._symbolic.readable import readable
from torchad_ext.ops import CATALOGUE


@ad.pointwise
def packet(x: torch.Tensor, a: float = 0.5) -> torch.Tensor:
    return torch.exp(-a * x**2) * torch.cos(2 * x)


@ad.pointwise
def pair(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.sin(x * y), x**3 / y


curvature = packet.derivative("x", 2)  # where pickle finds it
OF_ONE = [name for name, op in CATALOGUE.items() if len(op.domain) == 1]


def nth(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, order: int) -> torch.Tensor:
    """The reference: native autograd of the definition, an order at a time."""
    x = x.detach().requires_grad_()
    y = function(x)
    for _ in range(order):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True, materialize_grads=True)
    return y.detach()


@pytest.mark.usefixtures("kernels_when_long")
@pytest.mark.parametrize(
    ("name", "order"), few(product(OF_ONE, [1, 2, 3]), lambda name, n: n == 1 + OF_ONE.index(name) % 3)
)
def test_it_is_the_derivative_of_the_definition(name: str, order: int) -> None:
    op = CATALOGUE[name]
    x = torch.linspace(*next(iter(op.domain.values())), 41, dtype=torch.float64) + 0.013
    expected = nth(op.definition, x, order)
    torch.testing.assert_close(
        op.derivative(order=order)(x), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max())
    )


@pytest.mark.usefixtures("kernels_when_long")
@pytest.mark.parametrize(
    "op", few([ad.sin.derivative(), ad.silu.derivative(order=2), curvature], lambda op: op is curvature), ids=repr
)
def test_it_verifies_like_any_op(op: ad.Pointwise) -> None:
    assert ad.verify(op, quiet=True).passed  # value, gradient, double backward, gradcheck, gradgradcheck, Hessian


def test_it_is_one_kernel_of_the_arguments_of_the_op() -> None:
    from torch.profiler import profile

    x = torch.randn(3, 1, dtype=torch.float64)
    a = torch.rand(4, dtype=torch.float64)
    curvature(x)
    with profile() as profiled:
        ours = curvature(x, a=0.7)
    assert [event.key for event in profiled.key_averages() if "::" in event.key and "torchad" in event.key] == [
        "torchad_ext::packet_xx"
    ]
    torch.testing.assert_close(ours, nth(lambda x: packet.definition(x, 0.7), x, 2))
    everywhere = x.expand(3, 4)
    torch.testing.assert_close(curvature(x, a), nth(lambda x: packet.definition(x, a), everywhere, 2))


def test_mixed_derivatives_in_tensors_and_in_numbers() -> None:
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)
    ours = packet.derivative("x").derivative("a")
    assert ours.__name__ == "packet_xa"
    expected = -(x**2) * torch.exp(-0.5 * x**2)  # of packet in a, but for the cosine
    torch.testing.assert_close(packet.derivative("a")(x), expected * torch.cos(2 * x))
    step = 1e-6
    slopes = [packet.derivative("x")(x, a=0.5 + h) for h in (step, -step)]
    torch.testing.assert_close(ours(x), (slopes[0] - slopes[1]) / (2 * step), rtol=1e-8, atol=1e-8)


def test_every_output_has_its_derivative() -> None:
    x, y = torch.rand(2, 5, dtype=torch.float64) + 1
    for ours, expected in zip(
        pair.derivative("x").derivative("y")(x, y),
        (torch.cos(x * y) - x * y * torch.sin(x * y), -3 * x**2 / y**2),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected)


def test_a_derivative_that_vanishes_is_zero() -> None:
    double = ad.pointwise(lambda x: 2 * x)
    x = torch.randn(3, requires_grad=True)
    y = double.derivative(order=2)(x)
    assert y.tolist() == [0, 0, 0]
    assert double.derivative()(x).tolist() == [2, 2, 2]


def test_it_may_be_used_in_another_declaration() -> None:
    @ad.pointwise
    def residual(x: torch.Tensor, k: float = 2.0) -> torch.Tensor:
        return curvature(x, k) + k * packet(x, 1.0)

    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    expected = nth(lambda x: packet.definition(x, 3.0), x, 2) + 3 * packet.definition(x, 1.0)
    torch.testing.assert_close(residual(x, k=3.0), expected)
    assert ad.verify(residual, quiet=True).passed


Call = Callable[[torch.Tensor], torch.Tensor]


class Applied(torch.nn.Module):
    def __init__(self, f: Call) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(x)


TRACERS: dict[str, Callable[[Call, torch.Tensor], Call]] = {
    "jit": torch.jit.trace,
    "make_fx": lambda f, x: make_fx(f, pre_dispatch=True)(x),
    "export": lambda f, x: torch.export.export(Applied(f), (x,)).module(),
    "strict export": lambda f, x: torch.export.export(Applied(f), (x,), strict=True).module(),
    "compile": lambda f, _: torch.compile(f, backend="aot_eager", fullgraph=True),
}


@pytest.mark.parametrize("tracer", TRACERS)
def test_tracers_record_plain_operations_of_it(tracer: str) -> None:
    cosine, mixed = ad.sin.derivative(), packet.derivative("x").derivative("a")

    def f(x: torch.Tensor) -> torch.Tensor:
        return cosine(x[:, :1]) * curvature(x, 3.0) + mixed(x, a=0.7)

    x = torch.linspace(-2, 2, 12, dtype=torch.float64).view(3, 4)
    torch.testing.assert_close(TRACERS[tracer](f, x)(x.exp()), f(x.exp()))


def test_compile_and_vmap_and_copies() -> None:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    expected = nth(packet.definition, x, 2)
    compiled = torch.compile(lambda x: curvature(x), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    torch.testing.assert_close(torch.func.vmap(curvature)(x), expected)
    for copied in (pickle.loads(pickle.dumps(curvature)), copy.deepcopy(curvature)):
        torch.testing.assert_close(copied(x), expected)
        assert copied.latex() == curvature.latex()
    complex_ = torch.complex(x, x)
    torch.testing.assert_close(ad.sin.derivative()(complex_), torch.cos(complex_))
    torch.testing.assert_close(ad.sin.derivative()(torch.arange(3)), torch.cos(torch.arange(3)))


@pytest.mark.parametrize(
    ("op", "argument", "order", "formula"),
    [
        (ad.sin, "input", 2, r"\frac{d^{2}}{d x^{2}} \mathrm{sin}(x) = -\sin x"),
        (ad.tanh, None, 1, r"\frac{d}{d x} \mathrm{tanh}(x) = 1 - \tanh^{2}\left(x\right)"),
        (ad.sqrt, None, 2, r"\frac{d^{2}}{d x^{2}} \mathrm{sqrt}(x) = -\frac{1}{4 \, x \, \sqrt{x}}"),
        (ad.erf, None, 2, r"\frac{d^{2}}{d x^{2}} \mathrm{erf}(x) = -\frac{4 \, x \, e^{-x^{2}}}{\sqrt{\pi}}"),
        (ad.siren, None, 2, r"\frac{\partial^{2}}{\partial x^{2}} \mathrm{siren}(x, \omega) = "
                            r"-\omega^{2} \, \sin\left(\omega \, x\right)"),
        (ad.gaussian, None, 2, r"\frac{d^{2}}{d x^{2}} \mathrm{gaussian}(x) = "
                               r"\left(x^{2} - 1\right) \, e^{-\tfrac{1}{2} \, x^{2}}"),
        (packet, "a", 1, r"\frac{\partial}{\partial a} \mathrm{packet}(x, a) = "
                         r"-x^{2} \, e^{-a \, x^{2}} \, \cos\left(2 \, x\right)"),
    ],
)  # fmt: skip
def test_its_formula_is_simplified(op: ad.Pointwise, argument: str | None, order: int, formula: str) -> None:
    assert op.derivative(argument, order).latex() == formula


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_simplified_formula_is_the_derivative(name: str) -> None:
    op = CATALOGUE[name]
    samples = [
        torch.linspace(*interval, 23, dtype=torch.float64) + 0.017 * i + 0.011
        for i, interval in enumerate(op.domain.values())
    ]
    for derivative in op._derivatives():
        program = derivative._usual.program
        numbers = [op._parameters.defaults[str(x.value)] for x in program.scalars]
        simple = tuple(readable(y, lambda y: len(repr(y))) for y in program.outputs)
        simplified = Program(program.inputs, program.scalars, simple, program.names)
        if len(derivative.latex()) > 600:  # pow guards its singular points
            continue
        expected = evaluate(program, *samples, *numbers)
        scale = float(expected.abs().nan_to_num().max())
        torch.testing.assert_close(
            evaluate(simplified, *samples, *numbers), expected, rtol=1e-8, atol=1e-9 * scale, equal_nan=True
        )


@pytest.mark.parametrize("name", CATALOGUE)
def test_matplotlib_renders_the_formulas(name: str) -> None:
    op = CATALOGUE[name]
    parser = MathTextParser("agg")
    for each in (op, *op._derivatives()):
        parser.parse(f"${each.latex(mathtext=True)}$")
    parser.parse(f"${op.latex(1, mathtext=True)}$")


def test_notebooks_show_the_op_with_its_derivatives() -> None:
    shown = packet._repr_latex_()
    assert shown.startswith("$") and shown.endswith("$") and shown.count("&=") == 3
    table = packet._repr_html_()
    assert table.count("<tr>") == 3 and r"\frac{\partial^{2}}{\partial x^{2}}" in table and "packet(x, a=0.5)" in table
    assert "&amp;=" not in pair._repr_html_() and pair._repr_html_().count("<tr>") == 2 * 6
    assert len(ad.pow._repr_html_()) < 6000  # what is too long is left out


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ad.sin.derivative("x"), ValueError, r"sin has no argument 'x'; it has input"),
        (lambda: ad.sin.derivative(order=0), ValueError, "got order 0 of a derivative; 1 is the first"),
        (lambda: ad.sin.derivative(order=1.5), ValueError, "got order 1.5 of a derivative; 1 is the first"),
        (lambda: ad.sin.derivative(order="2"), ValueError, "got order '2' of a derivative; 1 is the first"),
        (
            lambda: ad.pointwise(_asks).derivative("a"),
            TypeError,
            "no derivative in a, whose value its function asks for",
        ),
        (lambda: ad.gelu.derivative("approximate"), TypeError, "no derivative in approximate"),
    ],
)
def test_errors(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def _asks(x: torch.Tensor, a: float = 2.0) -> torch.Tensor:
    return x * math.sqrt(a)
