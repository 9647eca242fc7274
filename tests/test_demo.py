"""The demo: what it says is measured, and it would say so if it were wrong."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib import image
from torch.profiler import profile

import torchad_ext as ad
from torchad_ext import demo

STEPS = 20


def test_the_quick_demo_agrees_and_saves_its_pictures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torchad_ext", "demo", "--quick", "--device", "cpu", "--output", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for line in ("sin against its definition", "Hessian of", "The loss curves agree", "ratio"):
        assert line in result.stdout
    for name in ("sine.png", "fit.png"):
        picture = image.imread(tmp_path / name)
        assert picture.shape[0] > 200 and picture.std() > 0.05, f"{name} is blank"


def test_the_hessian_is_right(device: str) -> None:
    assert demo.hessian_error(device=device) <= demo.HESSIAN_TOLERANCE


def test_runs_alternate_in_an_order_that_alternates() -> None:
    calls: list[str] = []
    times = demo.time_alternately([lambda: calls.append("a"), lambda: calls.append("b")], seconds=0, least=4)
    assert "".join(calls) == "ababab" + "abba" * 2  # three rounds to warm up, four measured
    assert all(0 <= t.lower <= t.median <= t.upper for t in times)


@pytest.mark.parametrize("native", [False, True])
def test_three_passes_give_the_gradients_of_the_double_backward(native: bool) -> None:
    x = torch.randn(7, dtype=torch.float64)
    torch.manual_seed(0)
    for_x, for_cotangent = demo.three_passes(torch.sin if native else ad.sin, (x,))()
    torch.manual_seed(0)
    cotangent, tangent = torch.randn_like(x), torch.randn_like(x)
    torch.testing.assert_close(for_x, -tangent * cotangent * x.sin())
    torch.testing.assert_close(for_cotangent, tangent * x.cos())


def test_a_picture_has_the_gradient_of_its_picture() -> None:
    target = demo.load_picture(side=32)
    assert target.picture.shape == (32, 32) and target.picture.dtype == torch.float32
    assert 0 <= target.picture.min() < 0.3 and 0.7 < target.picture.max() <= 1
    between = (target.picture[2:] - target.picture[:-2]) / (4 / 31)  # pixels are 2 / 31 apart
    torch.testing.assert_close(target.gradient[1:-1, :, 0], between)


def test_a_picture_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.png; give another, --picture FILE"):
        demo.load_picture(path=tmp_path / "nothing.png")
    with pytest.raises(ValueError, match="got side 1; a gradient needs at least 2"):
        demo.load_picture(side=1)


def test_training_goes_through_the_double_backward_kernel() -> None:
    target = demo.load_picture(side=16)
    with profile() as profiled:
        demo.fit(target, {"torchad_ext.sin": ad.sin}, steps=3, width=8)
    calls = {event.key: event.count for event in profiled.key_averages()}
    assert calls["torchad_ext::sin_double_backward"] == 3 * 2  # steps, layers
    assert "aten::sin" not in calls and "aten::cos" not in calls


def _difference(sine: Callable[[torch.Tensor], torch.Tensor], device: str) -> tuple[float, float]:
    target = demo.load_picture(side=32)
    target = demo.Field(target.picture.to(device), target.gradient.to(device))
    fits = demo.fit(target, {"native": torch.sin, "ours": sine}, STEPS, width=64)
    native = fits["native"].losses
    assert len(native) == STEPS and native[-1] < 0.5 * native[0]
    return demo.largest_differences(fits["ours"], fits["native"])


@pytest.mark.parametrize(
    ("seconds", "first", "expected"),
    [
        (0.25, 0.25, 60),  # of each of two networks, so that a step takes half a second
        (0.25, 50.0, 60),  # the first step compiles
        (0.16, 0.16, 90),  # 93, rounded down
        (1e-6, 1e-6, demo.MOST_STEPS),
        (1e6, 1e6, demo.FIRST_STEPS),
    ],
)
def test_the_number_of_steps_is_what_fits_into_the_time(
    seconds: float, first: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.accumulate(itertools.chain([first], itertools.cycle([0, seconds])))
    readings = itertools.chain([0.0], clock)  # before and after each step
    monkeypatch.setattr(demo, "_now", lambda device: next(readings))
    sines = {"torch.sin": torch.sin, "torchad_ext.sin": ad.sin}
    assert demo.steps_within(30, demo.load_picture(side=8), sines, width=4) == (expected, pytest.approx(2 * seconds))


def test_both_networks_take_the_steps_that_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = demo.load_picture(side=16)
    monkeypatch.setattr(demo, "load_picture", lambda side, path: small)
    monkeypatch.setattr(demo, "workloads", lambda device, quick: iter(()))
    monkeypatch.setattr(demo, "steps_within", lambda *_: (20, 0.5))
    demo.run("cpu", output=tmp_path)
    said = capsys.readouterr().out
    assert "0.5 s for a step of both: 20 steps, about 10 s" in said and "after 20" in said


def test_both_ways_of_a_workload_compute_the_same(device: str) -> None:
    for op, native, inputs in demo.workloads(device, quick=True):
        torch.testing.assert_close(op(*inputs), native(*inputs), rtol=1e-4, atol=1e-4)


def test_the_loss_curves_agree(device: str) -> None:
    first, final = _difference(ad.sin, device)
    assert first <= demo.FIRST_TOLERANCE and final <= demo.FINAL_TOLERANCE


class ScaledSine(torch.autograd.Function):
    """The n-th derivative of sin, with a factor in the derivative of one order: sin(x + n pi / 2)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float, order: int, n: int = 0) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.rest = factor, order, n + 1
        return torch.sin(x + n * torch.pi / 2)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        factor, order, n = ctx.rest
        slope = ScaledSine.apply(*ctx.saved_tensors, factor, order, n)
        return grad * slope * (factor if n == order else 1), None, None, None


@pytest.mark.parametrize("order", [1, 2])
def test_the_check_notices_a_derivative_that_is_off_by_one_percent(order: int) -> None:
    first, _ = _difference(lambda x: ScaledSine.apply(x, 1.0, order), "cpu")
    assert first <= demo.FIRST_TOLERANCE
    first, _ = _difference(lambda x: ScaledSine.apply(x, 1.01, order), "cpu")
    assert first > 10 * demo.FIRST_TOLERANCE
