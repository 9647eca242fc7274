"""Pictures of functions, of their derivatives, and of what a network learned from a derivative.

matplotlib is imported when a picture is drawn. Colours are those of Okabe and Ito, distinct to colour-blind readers;
line styles differ as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
STYLES = ("-", "--", "-.", ":")


def derivatives(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, orders: int) -> list[torch.Tensor]:
    """The value of an elementwise function and its derivatives, each the gradient of the one before.

    Args:
        function: one tensor to a tensor of the same shape, element by element.
        x: where, any shape, floating point.
        orders: how many derivatives.

    Returns:
        ``orders + 1`` tensors of the shape of ``x``, detached: f, f', f'', ...

    Raises:
        ValueError: the result of ``function`` has another shape than ``x``, or ``orders`` is negative.

    Example:
        >>> value, slope = derivatives(torch.square, torch.tensor([3.0]), 1)
        >>> value.item(), slope.item()
        (9.0, 6.0)
    """
    if orders < 0:
        raise ValueError(f"got {orders} orders of derivatives; 0 or more can be drawn")
    x = x.detach().requires_grad_()
    order = function(x)
    if order.shape != x.shape:
        raise ValueError(
            f"the function gives shape {list(order.shape)} for x of shape {list(x.shape)}; "
            "it must be elementwise, so that each result depends on one x"
        )
    results = [order.detach()]
    for _ in range(orders):
        if order.requires_grad:
            (order,) = torch.autograd.grad(order.sum(), x, create_graph=True, materialize_grads=True)
        else:  # a constant
            order = torch.zeros_like(x, requires_grad=False)
        results.append(order.detach())
    return results


def plot_derivatives(
    function: Callable[[torch.Tensor], torch.Tensor],
    low: float,
    high: float,
    orders: int = 2,
    points: int = 400,
    ax: Axes | None = None,
) -> Axes:
    """Draws an elementwise function with its derivatives, every one obtained by differentiation.

    Args:
        function: one float64 tensor ``[points]`` to a tensor of the same shape, element by element; differentiable
            ``orders`` times.
        low, high: the interval, in the units of the argument.
        orders: how many derivatives to draw beside the function.
        points: how many points to evaluate, evenly spaced.
        ax: where to draw; by default a new figure.

    Returns:
        The axes, with ``orders + 1`` lines.

    Raises:
        ValueError: an empty interval, fewer than 2 points, negative orders, or a function that is not elementwise.

    Example:
        >>> import torchad_ext as ad
        >>> ax = plot_derivatives(ad.sin, -6, 6)
    """
    if not low < high:
        raise ValueError(f"got the interval from {low} to {high}; low must be less than high")
    if points < 2:
        raise ValueError(f"got {points} points; a line needs at least 2")
    x = torch.linspace(low, high, points, dtype=torch.float64)
    lines = derivatives(function, x, orders)
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots(figsize=(7, 4), layout="constrained")[1]
    name = getattr(function, "__name__", "f").replace("<lambda>", "f")
    ax.axhline(0, color="0.8", linewidth=0.8)
    for order, line in enumerate(lines):
        marks = "′" * order if order < 4 else f"$^{{({order})}}$"
        colour, style = COLOURS[order % len(COLOURS)], STYLES[order % len(STYLES)]
        ax.plot(x.numpy(), line.numpy(), style, color=colour, linewidth=2, label=f"{name}{marks}(x)")
    ax.set(xlabel="x", ylabel="value", xlim=(low, high), title=f"{name} and its derivatives, by differentiation")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return ax


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
