"""Pictures: the numbers drawn are the derivatives, and every axis has a name."""

from __future__ import annotations

import inspect
import io
import itertools
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import torchad_ext as ad
from torchad_ext import _cost
from torchad_ext.demo import Field, Fit
from torchad_ext.plot import (
    Cost,
    dependency_graph,
    derivatives,
    draw_graph,
    measure_cost,
    plot_cost,
    plot_derivatives,
    plot_fit,
    plot_sparsity,
    psnr,
)


@pytest.mark.parametrize("function", [ad.sin, torch.sin])
def test_the_lines_are_the_function_and_its_derivatives(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    ax = plot_derivatives(function, -3, 3, orders=3, points=50, ax=Figure().subplots())
    x = np.linspace(-3, 3, 50)
    lines = [line for line in ax.get_lines() if not line.get_label().startswith("_")]
    assert [line.get_label() for line in lines] == ["sin(x)", "sin′(x)", "sin′′(x)", "sin′′′(x)"]
    for line, expected in zip(lines, (np.sin(x), np.cos(x), -np.sin(x), -np.cos(x)), strict=True):
        np.testing.assert_allclose(line.get_xdata(), x)
        np.testing.assert_allclose(line.get_ydata(), expected, atol=1e-14)
    assert ax.get_xlabel() and ax.get_ylabel() and ax.get_title() and ax.get_legend()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 4


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x**3, (8.0, 12.0, 12.0, 6.0, 0.0, 0.0)),
        (lambda x: 2 * x, (4.0, 2.0, 0.0, 0.0, 0.0, 0.0)),
        (torch.ones_like, (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_derivatives_end_in_zeros(
    function: Callable[[torch.Tensor], torch.Tensor], expected: tuple[float, ...]
) -> None:
    results = derivatives(function, torch.tensor([2.0, 2.0]), 5)
    assert [result.tolist() for result in results] == [[value, value] for value in expected]
    assert not any(result.requires_grad for result in results)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ad.sin, 1, 1), "interval from 1 to 1; low must be less than high"),
        ((ad.sin, 0, 1, 2, 1), "got 1 points; a line needs at least 2"),
        ((ad.sin, 0, 1, -1), "got -1 orders of derivatives; 0 or more"),
        ((ad.sin, 0, 1, 1.5), "got 1.5 orders of derivatives; 0 or more"),
        ((ad.sin, 0, 1, 1, 9.5), "got 9.5 points; a line needs at least 2"),
        ((torch.ones(3), 0, 1), "takes a function or a module for function, got Tensor; give function itself and not"),
        ((ad.sin, 0, math.inf), "interval from 0 to inf; its length must be finite"),
        ((ad.sin, -1e308, 1e308), "interval from -1e[+]308 to 1e[+]308; its length must be finite"),
        ((torch.sum, 0, 1), r"gives shape \[\] for x of shape \[400\]; it must be elementwise"),
        ((lambda x: x * x.sum(), -1, 1), "changes with the other x; it must be elementwise"),
        ((ad.softmax, 0, 1), "changes with the other x; it must be elementwise"),
        ((lambda x: (x, x), 0, 1), "returns tuple; it must return one tensor of real numbers"),
        ((lambda x: 3.0, 0, 1), "returns float; it must return one tensor of real numbers"),
        ((lambda x: torch.complex(x, x), 0, 1), "returns torch.complex128; it must return one tensor of real numbers"),
    ],
)
def test_errors_say_what_was_given_and_what_is_expected(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        plot_derivatives(*arguments)


@pytest.mark.parametrize("function", [ad.log, ad.reciprocal, torch.floor, lambda x: x / 0, lambda x: x > 0])
def test_functions_with_poles_gaps_and_steps_are_drawn(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = torch.linspace(-3, 3, 7, dtype=torch.float64)
        ax = plot_derivatives(function, -3, 3, points=7, ax=Figure().subplots())
    np.testing.assert_array_equal(_curves(ax)[0].get_ydata(), function(x).numpy())


def _curves(ax: Axes) -> list[Line2D]:
    return [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]


def test_a_function_of_several_arguments_is_drawn_in_one_of_them() -> None:
    ax = plot_derivatives(
        ad.gaussian_basis, 0, 4, points=9, ax=Figure().subplots(), argument="distance", center=2.0, width=0.5
    )
    d = np.linspace(0, 4, 9)
    value, slope, curvature = (line.get_ydata() for line in _curves(ax))
    np.testing.assert_allclose(value, np.exp(-2 * (d - 2) ** 2), atol=1e-15)
    np.testing.assert_allclose(slope, -4 * (d - 2) * value, atol=1e-15)
    np.testing.assert_allclose(curvature, (16 * (d - 2) ** 2 - 4) * value, atol=1e-14)
    assert ax.get_xlabel() == "distance"
    product = ad.pointwise(lambda x, y: x**2 * y)  # a number where a tensor is wanted
    ax = plot_derivatives(product, 0, 1, points=3, ax=Figure().subplots(), argument="y", x=3.0)
    np.testing.assert_allclose(_curves(ax)[1].get_ydata(), 9)
    with pytest.raises(ValueError, match="no argument 'z'; it has x, y"):
        plot_derivatives(product, 0, 1, argument="z")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_drawn(dtype: torch.dtype) -> None:
    ax = plot_derivatives(ad.square, 0, 1, points=3, ax=Figure().subplots(), dtype=dtype)
    assert [line.get_ydata().tolist() for line in _curves(ax)] == [[0, 0.25, 1], [0, 1, 2], [2, 2, 2]]


def test_a_float32_network_is_drawn() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    ax = plot_derivatives(network, -1, 1, points=5, ax=Figure().subplots())
    x = torch.linspace(-1, 1, 5)
    second = torch.stack([torch.func.hessian(lambda x: network(x)[0])(p)[0, 0] for p in x[:, None]])
    np.testing.assert_allclose(_curves(ax)[2].get_ydata(), second.detach(), rtol=1e-4, atol=1e-6)
    assert _curves(ax)[0].get_label() == "network(x)"
    with pytest.raises(ValueError, match="must be elementwise"):
        plot_derivatives(torch.nn.Linear(1, 2), 0, 1)


def test_costs_are_seconds_and_laws() -> None:
    cost = Cost((10, 100, 1000), {"linear": (1.0, 10.0, 100.0), "square": (1.0, 100.0, float("nan"))})
    assert cost.exponents == pytest.approx({"linear": 1, "square": 2})
    assert cost.law("linear")(50) == pytest.approx(5)
    ax = plot_cost(cost, ax=Figure().subplots())
    points = [line for line in _curves(ax) if line.get_marker() != "None"]
    assert [line.get_label() for line in points] == ["linear, $n^{1.0}$", "square, $n^{2.0}$"]
    np.testing.assert_allclose(points[0].get_ydata(), [1e3, 1e4, 1e5])
    assert ax.get_xscale() == ax.get_yscale() == "log"
    with pytest.raises(ValueError, match="measured at 1 sizes"):
        Cost((1,), {"value": (1.0,)}).law("value")


def test_what_costs_too_much_is_left_out_at_larger_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []

    def square(f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> None:
        calls.append(len(x))
        clock[0] += len(x) ** 2

    monkeypatch.setattr(_cost, "_now", lambda x: clock[0])
    cost = measure_cost(torch.sum, (4, 1, 2), quantities={"square": square}, rounds=2, limit=5)
    assert cost.sizes == (1, 2, 4) and set(calls) == {1, 2}
    assert cost.seconds["square"][:2] == (1, 4) and np.isnan(cost.seconds["square"][2])
    assert cost.exponents == pytest.approx({"square": 2})
    monkeypatch.undo()
    standard = measure_cost(lambda x: x.sin().sum(), (2, 3), rounds=1)
    assert list(standard.seconds) == [
        "value", "gradient", "Hessian-vector product", "diagonal of the Hessian", "full Hessian",
    ]  # fmt: skip
    with pytest.raises(TypeError, match="takes a function or a module for f, got Tensor"):
        measure_cost(torch.ones(3), (2, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 0 sizes"):
        measure_cost(torch.sum, ())


def test_the_pattern_of_a_hessian_is_drawn_by_colours() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return (x[1:] * x[:-1]).sum() + x[0].exp()

    x = torch.linspace(0, 1, 7, dtype=torch.float64)
    ax = plot_sparsity(f, x, ax=Figure().subplots())
    drawn = ax.get_images()[0].get_array()
    hessian = torch.func.hessian(f)(x).numpy()
    np.testing.assert_array_equal(hessian != 0, ~drawn.mask)
    assert ax.get_title() == "13 of 49 entries, 3 products"
    assert all(tick == round(tick) for axis in (ax.xaxis, ax.yaxis) for tick in axis.get_majorticklocs())
    assert plot_sparsity(torch.sum, x, ax=Figure().subplots()).get_title() == "0 of 49 entries, 1 product"
    for row in drawn:  # columns of one product share no row
        colours = row.compressed().tolist()
        assert len(set(colours)) == len(colours)
    of_matrix = plot_sparsity(torch.from_numpy(hessian).to_sparse(), ax=Figure().subplots())
    np.testing.assert_array_equal(of_matrix.get_images()[0].get_array().mask, drawn.mask)
    with pytest.raises(ValueError, match=r"square matrix; got shape \[2, 3\]"):
        plot_sparsity(torch.ones(2, 3))
    with pytest.raises(ValueError, match="a function and x, or a matrix alone"):
        plot_sparsity(f)


def textbook(x: torch.Tensor) -> torch.Tensor:
    return torch.log(x**2) * torch.sin(x) + 1 / x


def test_the_graph_has_values_local_derivatives_and_adjoints() -> None:
    nodes = dependency_graph(textbook, 2.0)
    assert {node.formula for node in nodes} == {
        "x", "x^{2}", r"\frac{1}{x}", r"\sin x", r"\log v_{3}", r"v_{2} \, v_{4}", "v_{1} + v_{5}",
    }  # fmt: skip
    x = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(textbook(x), x)[0].item()
    assert nodes[0].name == "x" and nodes[0].adjoint == pytest.approx(expected)
    assert nodes[-1].name == "f" and nodes[-1].value == pytest.approx(textbook(x).item())
    logarithm = next(node for node in nodes if node.formula.startswith(r"\log"))
    assert [(nodes[e.source].formula, e.formula, e.value) for e in logarithm.edges] == [
        ("x^{2}", r"\frac{1}{v_{3}}", 0.25)
    ]


@pytest.mark.parametrize(
    ("f", "inputs"),
    [
        (lambda x, a: torch.exp(-a * x**2) * torch.cos(2 * x) + x * x, (0.7, 1.3)),
        (lambda x: x.abs().clamp(max=2.0) + torch.where(x > 0, x * x, x), (1.5,)),
        (lambda x: torch.tanh(x) / torch.sqrt(x), (1.5,)),
        (lambda x: x, (0.7,)),
        (lambda x: 0 * x + 3, (0.7,)),
        (lambda v_1, v_2: torch.sin(v_1 * v_2).exp() * v_2, (0.7, 1.3)),
        (ad.snake, (0.3,)),
        (ad.softplus.derivative(), (0.3,)),
    ],
)
def test_adjoints_are_the_gradient(f: Callable[..., torch.Tensor], inputs: tuple[float, ...]) -> None:
    xs = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in inputs]
    expected = torch.autograd.grad(f(*xs), xs)
    adjoints = {node.name: node.adjoint for node in dependency_graph(f, *inputs)}
    names = list(inspect.signature(f).parameters)
    assert [adjoints[name] for name in names[: len(xs)]] == pytest.approx([x.item() for x in expected])


def test_a_result_without_an_operation_has_a_node_of_its_own() -> None:
    of_itself, constant = (dependency_graph(f, 2.0) for f in (lambda x: x, lambda x: torch.full_like(x, 3.0)))
    assert [(node.name, node.formula, node.value, node.adjoint) for node in of_itself + constant] == [
        ("x", "x", 2, 1), ("f", "x", 2, 1), ("x", "x", 2, 0), ("f", "3", 3, 1),
    ]  # fmt: skip
    draw_graph(lambda x: x, 2.0, ax=Figure().subplots(), adjoints=True)


def test_the_graph_is_drawn() -> None:
    for inputs, adjoints in (((), False), ((2.0,), False), ((2.0,), True)):
        figure = Figure()
        ax = draw_graph(textbook, *inputs, ax=figure.subplots(), adjoints=adjoints)
        text = "\n".join(label.get_text() for label in ax.texts)
        assert r"\cos x" in text and r"\log v_{3}" in text
        assert ("= -0.4161" in text) is bool(inputs) and (r"\partial f / \partial x = 0.0824" in text) is adjoints
        figure.savefig(io.BytesIO(), format="png")  # every formula is rendered
    with pytest.raises(ValueError, match="adjoints are numbers; give inputs"):
        draw_graph(textbook, adjoints=True)
    with pytest.raises(ValueError, match="takes 1 numbers, for x; got 2"):
        draw_graph(textbook, 1.0, 2.0)
    with pytest.raises(ValueError, match="has 2 results"):
        draw_graph(lambda x: (x, x))
    for given, named in ((torch.ones(2), r"a tensor of shape \[2\]"), ("2.0 m", "'2.0 m'"), (1j, "1j")):
        with pytest.raises(TypeError, match=f"drawn at numbers; got {named}"):
            draw_graph(textbook, given)
    with pytest.raises(TypeError, match="combines elements"):
        draw_graph(lambda x: x.sum())


@pytest.mark.parametrize("inputs", [(), (2.0, 3.0)], ids=["formulas", "numbers"])
def test_a_new_figure_is_as_wide_as_its_labels(inputs: tuple[float, ...]) -> None:
    figure = draw_graph(ad.pow, *inputs, adjoints=bool(inputs)).figure
    figure.draw_without_rendering()
    boxes = [box.get_window_extent() for text in figure.axes[0].texts if (box := text.get_bbox_patch())]
    assert len(boxes) == 5 and sum(a.overlaps(b) for a, b in itertools.combinations(boxes, 2)) == 0
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    plt.close(figure)


def test_a_fit_is_drawn_with_its_target_and_its_losses() -> None:
    generator = torch.Generator().manual_seed(0)
    target = Field(torch.rand(8, 8, generator=generator), torch.rand(8, 8, 2, generator=generator))
    fits = {
        "exact": Fit(Field(target.picture + 3, target.gradient), [2.0, 1.0], [0.1, 0.1]),
        "flat": Fit(Field(torch.zeros(8, 8), torch.zeros(8, 8, 2)), [3.0, 2.0], [0.1, 0.1]),
    }
    figure = plot_fit(target, fits, Figure())
    images = [ax.get_images()[0].get_array() for ax in figure.axes if len(ax.get_images()) == 1]
    above, below = images[:3], images[3:]
    np.testing.assert_allclose(above[1], above[0], atol=1e-6)  # a constant is of no account
    np.testing.assert_allclose(above[2], target.picture.mean().item(), atol=1e-6)
    np.testing.assert_allclose(below[0], target.gradient.square().sum(-1).sqrt(), rtol=1e-6)
    curves = next(ax for ax in figure.axes if ax.get_title() == "loss")
    assert [list(line.get_ydata()) for line in curves.get_lines()] == [[2.0, 1.0], [3.0, 2.0]]
    assert curves.get_xlabel() == "training step" and "(grey levels per half width)²" in curves.get_ylabel()
    with pytest.raises(ValueError, match="got no fit to draw"):
        plot_fit(target, {})


def test_psnr() -> None:
    target = torch.tensor([0.5, 0.5, 0.5, 0.5])
    noise = torch.tensor([0.01, -0.01, 0.01, -0.01])
    assert psnr(target + noise + 7, target) == pytest.approx(40, abs=1e-3)
    assert psnr(target, target) == float("inf")


def test_a_figure_needs_no_display_and_an_import_no_matplotlib(tmp_path: Path) -> None:
    program = """
import sys, torchad_ext, torchad_ext.plot
assert "matplotlib" not in sys.modules
torchad_ext.plot.plot_derivatives(torchad_ext.exp, -1, 1).figure.savefig("exp.png")
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "exp.png").stat().st_size > 5000
