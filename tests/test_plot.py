"""Pictures: the numbers drawn are the derivatives, and every axis has a name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import torchad_ext as ad
from torchad_ext.demo import Field, Fit
from torchad_ext.plot import derivatives, plot_derivatives, plot_fit, psnr


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
        ((torch.sum, 0, 1), r"gives shape \[\] for x of shape \[400\]; it must be elementwise"),
    ],
)
def test_errors_say_what_was_given_and_what_is_expected(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_derivatives(*arguments)


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
