"""Pictures of functions, of their derivatives, and of what a network learned from a derivative.

matplotlib is imported when a picture is drawn. Colours are those of Okabe and Ito, distinct to colour-blind readers;
line styles differ as well.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ._cost import Cost as Cost
from ._cost import measure_cost as measure_cost
from ._dependency_graph import Edge as Edge
from ._dependency_graph import Node as Node
from ._dependency_graph import dependency_graph as dependency_graph
from ._dependency_graph import layout
from ._forward.missing import check_function
from ._hessian.decompression import coloring_of
from ._hessian.pattern import hessian_sparsity
from ._symbolic.latex import symbol

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
STYLES = ("-", "--", "-.", ":")
_NODES = 4  # the zorder of the nodes of a graph, above lines and labels
_PLACE = 0.45  # of the label of an edge, from its operand on


def derivatives(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, orders: int) -> list[torch.Tensor]:
    """The value of an elementwise function and its derivatives, each the gradient of the one before.

    Args:
        function: one tensor to a tensor of the same shape, element by element.
        x: where, any shape, floating point.
        orders: how many derivatives.

    Returns:
        ``orders + 1`` tensors of the shape of ``x``, detached: f, f', f'', ...

    Raises:
        TypeError: ``function`` is none, or its result is no tensor of real numbers.
        ValueError: the result of ``function`` has another shape than ``x`` or depends on other elements of ``x``, or
            ``orders`` is negative.

    Example:
        >>> value, slope = derivatives(torch.square, torch.tensor([3.0]), 1)
        >>> value.item(), slope.item()
        (9.0, 6.0)
    """
    check_function("plot.derivatives", function, "function")
    if not isinstance(orders, numbers.Integral) or orders < 0:
        raise ValueError(f"got {orders} orders of derivatives; 0 or more can be drawn")
    x = x.detach().requires_grad_()
    order = function(x)
    if not isinstance(order, torch.Tensor) or order.is_complex():
        given = order.dtype if isinstance(order, torch.Tensor) else type(order).__name__
        raise TypeError(f"the function returns {given}; it must return one tensor of real numbers, of the shape of x")
    if order.shape != x.shape:
        raise ValueError(
            f"the function gives shape {list(order.shape)} for x of shape {list(x.shape)}; "
            "it must be elementwise, so that each result depends on one x"
        )
    if _depends_on_others(function, x, order):
        raise ValueError(
            "a value of the function changes with the other x; it must be elementwise, so that each depends on one x"
        )
    results = [order.detach()]
    for _ in range(orders):
        if order.requires_grad:
            (order,) = torch.autograd.grad(order.sum(), x, create_graph=True, materialize_grads=True)
        else:  # a constant
            order = torch.zeros_like(x, requires_grad=False)
        results.append(order.detach())
    return results


def _depends_on_others(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> bool:
    """Does a value of y = function(x) change, by more than rounding, with the other elements of x?"""
    if not x.numel():
        return False
    i = x.numel() // 3  # of an interval around 0 no place where a product vanishes
    alone = function(x.detach().flatten()[i].expand(x.shape))
    after, before = (values.detach().flatten().double() for values in (alone, y))
    size = before.abs().nanmedian().nan_to_num(posinf=0.0).item()
    return not torch.isclose(after[i], before[i], rtol=1e-2, atol=1e-2 * size, equal_nan=True).item()


def plot_derivatives(
    function: Callable[..., torch.Tensor],
    low: float,
    high: float,
    orders: int = 2,
    points: int = 400,
    ax: Axes | None = None,
    *,
    argument: str | None = None,
    dtype: torch.dtype | None = None,
    **others: Any,
) -> Axes:
    """Draws an elementwise function, or a network of one variable, with its derivatives, each by one backward call.

    Args:
        function: elementwise, a tensor ``[points]`` to a tensor of the same shape; or a module, ``[points, 1]`` to
            ``[points, 1]`` or ``[points]``, each row by itself; differentiable ``orders`` times.
        low, high: the interval, in the units of the argument.
        orders: how many derivatives to draw beside the function.
        points: how many points to evaluate, evenly spaced.
        ax: where to draw; by default a new figure.
        argument: the name of the argument in which to draw a function of several; by default the first.
        dtype: of the points; by default that of the parameters of a module, else float64.
        **others: the other arguments of the function by name.

    Returns:
        The axes, with ``orders + 1`` lines.

    Raises:
        TypeError: no function, or one that returns no tensor of real numbers.
        ValueError: an empty or infinite interval, fewer than 2 points, negative orders, a function that is not
            elementwise, or one that has no such argument.

    Example:
        >>> import torchad_ext as ad
        >>> ax = plot_derivatives(ad.gaussian_basis, 0, 4, argument="distance", center=2.0)
    """
    check_function("plot_derivatives", function, "function")
    low, high = float(low), float(high)
    if not 0 < high - low < math.inf:
        expected = "its length must be finite" if low < high else "low must be less than high"
        raise ValueError(f"got the interval from {low:g} to {high:g}; {expected}")
    if not isinstance(points, numbers.Integral) or points < 2:
        raise ValueError(f"got {points} points; a line needs at least 2")
    parameter = next(iter(function.parameters()), None) if isinstance(function, torch.nn.Module) else None
    device = "cpu" if parameter is None else parameter.device
    dtype = dtype or (torch.float64 if parameter is None else parameter.dtype)
    x = torch.linspace(low, high, points, dtype=dtype, device=device)
    at = x.double().cpu().numpy()
    name = _name(function)
    label = argument or "x"
    lines = derivatives(_of_one_argument(function, argument, others), x, orders)
    if ax is None:
        ax = _new_axes()
    ax.axhline(0, color="0.6", linewidth=0.8)
    for order, line in enumerate(lines):
        marks = "′" * order if order < 4 else f"$^{{({order})}}$"
        colour, style = COLOURS[order % len(COLOURS)], STYLES[order % len(STYLES)]
        ax.plot(at, line.double().cpu().numpy(), style, color=colour, linewidth=2, label=f"{name}{marks}({label})")
    ax.set(xlabel=label, ylabel="value", xlim=(low, high), title=f"{name} and its derivatives, by differentiation")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return ax


def _name(function: Callable[..., Any]) -> str:
    name: str = getattr(function, "__name__", "network" if isinstance(function, torch.nn.Module) else "f")
    return name.replace("<lambda>", "f")


def _new_axes(width: float = 7, height: float = 4) -> Axes:
    from matplotlib import pyplot

    axes: Axes = pyplot.subplots(figsize=(width, height), layout="constrained")[1]
    return axes


def _of_one_argument(
    function: Callable[..., torch.Tensor], argument: str | None, others: Mapping[str, Any]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function of a tensor ``[points]`` that is drawn."""
    if isinstance(function, torch.nn.Module):
        return lambda x: _column(function(x.unsqueeze(1), **others), x)
    if argument is None and not others:
        return function
    names = list(inspect.signature(function).parameters)
    argument = names[0] if argument is None else argument
    if unknown := {argument, *others} - set(names):
        raise ValueError(f"{_name(function)} has no argument {min(unknown)!r}; it has {', '.join(names)}")
    constants = {name: value for name, value in others.items() if name != argument}

    def of_one(x: torch.Tensor) -> torch.Tensor:
        # A Python number for an argument without a default is a tensor for a declared op.
        defaults = {p.name for p in inspect.signature(function).parameters.values() if p.default is not p.empty}
        given = {
            name: torch.as_tensor(value, dtype=x.dtype, device=x.device).expand_as(x)
            if name not in defaults and not isinstance(value, torch.Tensor)
            else value
            for name, value in constants.items()
        }
        return function(**{argument: x}, **given)

    return of_one


def _column(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y.squeeze(1) if y.shape == (len(x), 1) else y


def plot_cost(
    f: Callable[[torch.Tensor], torch.Tensor] | Cost,
    sizes: Sequence[int] = (64, 128, 256, 512),
    ax: Axes | None = None,
    **options: Any,
) -> Axes:
    """Draws the seconds of value, gradient, Hessian-vector product, diagonal and Hessian against the number n.

    Each has the law that fits its largest sizes, seconds = factor nᵖ, as a line, and its exponent p in the legend.

    Args:
        f: a tensor ``[n]`` to a tensor without dimensions, for every n of ``sizes``; or what :func:`measure_cost` gave.
        sizes: the n.
        ax: where to draw; by default a new figure.
        **options: more arguments for :func:`measure_cost`.

    Returns:
        The axes, logarithmic.

    Raises:
        ValueError: a quantity was measured at fewer than 2 sizes.

    Example:
        >>> ax = plot_cost(lambda x: x.sin().sum(), [8, 16, 32], rounds=1)
    """
    cost = f if isinstance(f, Cost) else measure_cost(f, sizes, **options)
    if ax is None:
        ax = _new_axes()
    for i, (quantity, seconds) in enumerate(cost.seconds.items()):
        colour, marker = COLOURS[i % len(COLOURS)], "osD^vP"[i % 6]
        law = cost.law(quantity)
        label = f"{quantity}, $n^{{{law.exponent:.1f}}}$"
        ax.loglog(cost.sizes, 1e3 * np.array(seconds), marker, color=colour, label=label)
        ax.loglog(law.sizes, 1e3 * law(np.array(law.sizes)), STYLES[i % len(STYLES)], color=colour, linewidth=1)
    ax.set(xlabel="number of variables n", ylabel="time / ms", title="what derivatives cost")
    ax.xaxis.set_minor_formatter("")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return ax


def plot_sparsity(
    f: Callable[[torch.Tensor], torch.Tensor] | torch.Tensor,
    x: torch.Tensor | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws where a Hessian may be other than zero; columns of one colour are computed together.

    Args:
        f: a function of ``x`` to a tensor without dimensions, or a matrix ``[n, n]``, dense or sparse.
        x: a floating-point tensor of n elements; none with a matrix.
        ax: where to draw; by default a new figure.

    Returns:
        The axes; their title says how many entries there are and how many Hessian-vector products they take.

    Raises:
        ValueError: ``x`` is missing, or given with a matrix; the matrix is not square.

    Example:
        >>> ax = plot_sparsity(lambda x: (x[1:] * x[:-1]).sum(), torch.zeros(8))
        >>> ax.get_title()
        '14 of 64 entries, 3 products'
    """
    if isinstance(f, torch.Tensor) is (x is not None):
        raise ValueError("plot_sparsity takes a function and x, or a matrix alone")
    if isinstance(f, torch.Tensor):
        if f.ndim != 2 or len(f) != f.shape[1]:
            raise ValueError(f"plot_sparsity takes a square matrix; got shape {list(f.shape)}")
        pattern = (f.to_dense() if f.layout is not torch.strided else f) != 0
    else:
        assert x is not None
        pattern = hessian_sparsity(f, x).to_dense()
    found = coloring_of(pattern.cpu(), torch.zeros(len(pattern)))  # it adds the diagonal, which may be zero
    colours = found.colors.numpy()
    shown = pattern.cpu().numpy()
    if ax is None:
        ax = _new_axes(4.4, 4.4)
    from matplotlib.colors import ListedColormap
    from matplotlib.ticker import MaxNLocator

    ax.imshow(
        np.ma.masked_where(~shown, np.broadcast_to(colours % len(COLOURS), shown.shape)),
        cmap=ListedColormap(COLOURS), vmin=-0.5, vmax=len(COLOURS) - 0.5, interpolation="nearest",
    )  # fmt: skip
    ax.set(
        xlabel="column, coloured by product",
        ylabel="row",
        title=f"{shown.sum()} of {shown.size} entries, {found.count} product{'s' * (found.count != 1)}",
    )
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    return ax


def draw_graph(f: Callable[..., Any], *inputs: Any, ax: Axes | None = None, adjoints: bool = False) -> Axes:
    """Draws the dependency graph of a traced function, with the local derivative of each operation on its edges.

    Args:
        f: a declared op, or a plain elementwise function that :func:`torchad_ext.pointwise` takes, with one result.
        inputs: numbers, one for each argument without a default: values stand in the nodes and on the edges then.
        ax: where to draw; by default a new figure.
        adjoints: shows the derivative of the result in each node as well; it takes inputs.

    Returns:
        The axes, without ticks.

    Raises:
        TypeError: f is not elementwise, or an input is no number.
        ValueError: f has several results, the number of inputs is wrong, or adjoints are wanted without inputs.

    Example:
        >>> ax = draw_graph(lambda x: torch.log(x**2) * torch.sin(x) + 1 / x, 2.0)
    """
    if adjoints and not inputs:
        raise ValueError("adjoints are numbers; give inputs, as in draw_graph(f, 2.0, adjoints=True)")
    nodes = dependency_graph(f, *inputs)
    places, paths, across, most = layout(nodes)
    figure_is_new = ax is None
    if ax is None:
        ax = _new_axes((2.4 if inputs else 1.8) * (across + 0.6), max(2.2, (1.25 if inputs else 0.9) * most))
    from matplotlib import rcParams

    ink, paper = rcParams["text.color"], rcParams["axes.facecolor"]
    for i, node in enumerate(nodes):
        name = symbol(node.name) if node.edges else node.formula
        lines = [f"${name} = {node.formula}$" if node.edges else f"${name}$"]
        if node.value is not None:
            lines.append(f"$= {_short(node.value)}$")
        if adjoints:
            lines.append(rf"$\partial f / \partial {name} = {_short(node.adjoint)}$")
        colour = COLOURS[0] if not node.edges else COLOURS[2] if node is nodes[-1] else ink
        box = {"boxstyle": "round,pad=0.4", "facecolor": paper, "edgecolor": colour, "linewidth": 1.5}
        drawn = ax.annotate("\n".join(lines), places[i], ha="center", va="center", color=ink, bbox=box, zorder=_NODES)
        for edge, path in zip(node.edges, paths[i], strict=True):
            _draw_edge(ax, edge, path, drawn.get_bbox_patch(), paper)
    ax.set(xlim=(-0.4, across + 0.4), ylim=(-most / 2, most / 2), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if figure_is_new:
        _widen_for_labels(ax)
    return ax


def _widen_for_labels(ax: Axes) -> None:
    """Makes a new figure so wide that the labels of edges stand between the nodes, one unit apart."""
    from matplotlib.figure import Figure

    figure = ax.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    of_nodes, of_edges = [0.0], [0.0]
    for label in ax.texts:
        if (box := label.get_bbox_patch()) is not None:
            of = of_nodes if label.get_zorder() == _NODES else of_edges
            of.append(box.get_window_extent().width)
    unit = figure.bbox.width / ax.viewLim.width
    wanted = (max(of_nodes) + max(of_edges)) / (2 * _PLACE)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width * max(1.0, wanted / unit), height)


def _draw_edge(ax: Axes, edge: Edge, path: Sequence[tuple[float, float]], target: Any, paper: Any) -> None:
    lines = [f"${edge.formula}$".replace(r"\frac", r"\dfrac")]
    if edge.value is not None and edge.formula != _short(edge.value):
        lines.append(f"$= {_short(edge.value)}$")
    (x0, y0), (x1, y1) = path[-2:]
    x, y = zip(*path[:-1], strict=True)
    ax.plot(x, y, color=COLOURS[4], linewidth=1.5, zorder=1)
    arrow = {"arrowstyle": "-|>", "color": COLOURS[4], "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0, "patchB": target}
    ax.annotate("", (x1, y1), (x0, y0), arrowprops=arrow, zorder=1)
    ax.annotate(
        "\n".join(lines), (x0 + _PLACE * (x1 - x0), y0 + _PLACE * (y1 - y0)), ha="center", va="center",
        color=COLOURS[1], fontsize="small", zorder=3,
        bbox={"boxstyle": "round,pad=0.1", "facecolor": paper, "edgecolor": "none"},
    )  # fmt: skip


def _short(value: float | None) -> str:
    assert value is not None
    return f"{value:.4g}".replace("e", r"\cdot 10^{").replace("+", "") + ("}" if "e" in f"{value:.4g}" else "")


@dataclass(frozen=True)
class Field:
    """A picture over [-1, 1] x [-1, 1] and its gradient.

    Attributes:
        picture: grey levels, ``[side, side]``.
        gradient: the derivatives along rows and columns, ``[side, side, 2]``, in grey levels per half width.
    """

    picture: torch.Tensor
    gradient: torch.Tensor


@dataclass(frozen=True)
class Fit:
    """A picture that a network learned from a gradient.

    Attributes:
        field: the picture that it learned.
        losses: the loss of every training step.
        seconds: the seconds of every training step.
    """

    field: Field
    losses: list[float]
    seconds: list[float]


def plot_fit(target: Field, fits: Mapping[str, Fit], figure: Figure | None = None) -> Figure:
    """Draws a picture, networks that were given its gradient alone, and how their losses fell.

    Pictures above, the magnitudes of their gradients below: the target, then each fit. A gradient leaves a constant
    open, so each fitted picture is shown with the mean of the target. The loss curves share one panel.

    Args:
        target: the picture ``[side, side]`` and its gradient ``[side, side, 2]``.
        fits: the fits by name, as ``torchad_ext.demo.fit`` gives them.
        figure: an empty figure to draw in; by default a new one.

    Returns:
        The figure.

    Raises:
        ValueError: there is no fit.

    Example:
        >>> from torchad_ext import demo
        >>> target = demo.load_picture(side=16)
        >>> figure = plot_fit(target, demo.fit(target, {"torch.sin": torch.sin}, steps=2))
    """
    if not fits:
        raise ValueError("got no fit to draw; give at least one, {name: fit}")
    if figure is None:
        from matplotlib import pyplot

        figure = pyplot.figure(figsize=(4.4 + 2.4 * (1 + len(fits)), 5), layout="constrained")
    images, curves = figure.subfigures(1, 2, squeeze=False, width_ratios=(2.2 * (1 + len(fits)), 3.6))[0]
    axes = images.subplots(2, 1 + len(fits), squeeze=False)
    columns = {"target": target, **{name: fit.field for name, fit in fits.items()}}
    for column, (name, field) in enumerate(columns.items()):
        shifted = field.picture - field.picture.mean() + target.picture.mean()
        above = axes[0, column].imshow(shifted.cpu().numpy(), cmap="gray", vmin=0, vmax=1)
        magnitude = field.gradient.norm(dim=-1).cpu().numpy()
        below = axes[1, column].imshow(magnitude, cmap="magma", vmin=0, vmax=target.gradient.norm(dim=-1).max().item())
        quality = "" if field is target else f"\n{psnr(field.picture, target.picture):.1f} dB PSNR"
        axes[0, column].set_title(name + quality)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    images.colorbar(above, ax=axes[0], label="grey level", shrink=0.8)
    images.colorbar(below, ax=axes[1], label="|gradient| per half width", shrink=0.8)

    ax = curves.subplots()
    for i, (name, fit) in enumerate(fits.items()):
        # The first is broad, the others dashed over it: curves that coincide are all seen.
        width, style, colour = (2, STYLES[i % len(STYLES)], COLOURS[i - 1]) if i else (5, "-", COLOURS[-1])
        ax.semilogy(fit.losses, style, color=colour, linewidth=width, label=name)
    ax.set(xlabel="training step", ylabel="mean |gradient error|², (grey levels per half width)²", title="loss")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return figure


def psnr(picture: torch.Tensor, target: torch.Tensor) -> float:
    """How near a picture is to another, up to a constant: the peak signal-to-noise ratio in decibels.

    10 log10(1 / mean squared difference) for grey levels from 0 to 1 and both pictures shifted to mean 0.

    Example:
        >>> round(psnr(torch.tensor([0.1, -0.1]), torch.tensor([1.0, 1.0])), 3)
        20.0
    """
    error = (picture - picture.mean()) - (target - target.mean())
    return -10 * error.square().mean().log10().item()
