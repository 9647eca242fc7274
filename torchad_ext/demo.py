"""A tour in one or two minutes: the ops verified, timed against native PyTorch, and put to work.

The work is a sine network that learns a picture from the gradient of the picture alone. Its loss holds a derivative of
the network, so each training step differentiates a gradient: the double backward of sin, once a layer.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ._quadratic_form import quadratic_form
from ._tables import with_whole_numbers
from ._verification.verify import verify
from .ops import exp, sin
from .plot import Field, Fit, plot_derivatives, plot_fit, psnr

if TYPE_CHECKING:
    from rich.table import Table

Function = Callable[..., torch.Tensor]

HESSIAN_TOLERANCE = 1e-13
"""The largest error of a Hessian, as a fraction of its largest element."""
FIRST_STEPS = 10
FIRST_TOLERANCE = 1e-5
"""The largest relative difference of two loss curves over the first steps, where only rounding can part them."""
FINAL_TOLERANCE = 0.05
"""The largest relative difference after the last step: training amplifies the rounding of the first."""
TRAINING_SECONDS = 30.0
"""What the training of both networks may take, if nobody says how many steps."""
MOST_STEPS = 300


def hessian_error(size: int = 50, device: str = "cpu") -> float:
    r"""How far the Hessian of :math:`x^T A x + \sum \sin(x) \exp(x)` is from that of the native expression.

    Both are computed by ``torch.autograd.functional.hessian`` in float64.

    Args:
        size: the length n of ``x``; the Hessians are ``[n, n]``.
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        The largest difference of two elements, as a fraction of the largest element.

    Example:
        >>> hessian_error() < HESSIAN_TOLERANCE
        True
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, dtype=torch.float64, generator=generator).to(device)
    A = torch.randn(size, size, dtype=torch.float64, generator=generator).to(device)
    hessian: Function = torch.autograd.functional.hessian
    ours = hessian(lambda x: quadratic_form(x, A) + (sin(x) * exp(x)).sum(), x)
    native = hessian(lambda x: x @ A @ x + (x.sin() * x.exp()).sum(), x)
    return float((ours - native).abs().max() / native.abs().max())


@dataclass(frozen=True)
class Times:
    """The quartiles of repeated measurements, in seconds."""

    lower: float
    median: float
    upper: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        return cls(*statistics.quantiles(seconds, method="inclusive"))

    def __str__(self) -> str:
        """In milliseconds."""
        return f"{1e3 * self.median:.3g} ({1e3 * self.lower:.3g}–{1e3 * self.upper:.3g})"


def time_alternately(
    functions: Sequence[Callable[[], Any]], device: str = "cpu", seconds: float = 2.0, least: int = 10
) -> list[Times]:
    """Times functions in turn, in one process, so that whatever else the machine does falls on all of them alike.

    Args:
        functions: what to time, without arguments; each is warmed up first.
        device: waited for before each reading of the clock if it is ``"cuda"``.
        seconds: how long to measure, all functions together.
        least: at least so many runs of each.

    Returns:
        The times of each function.

    Example:
        >>> ours, native = time_alternately([lambda: sin(x), lambda: x.sin()])  # doctest: +SKIP
    """
    for _ in range(3):
        for function in functions:
            function()
    measured: list[list[float]] = [[] for _ in functions]
    start = _now(device)
    while len(measured[0]) < least or _now(device) - start < seconds:
        for i in _in_turn(range(len(functions)), len(measured[0])):
            before = _now(device)
            functions[i]()
            measured[i].append(_now(device) - before)
    return [Times.of(each) for each in measured]


def _in_turn(items: Iterable[Any], round_number: int) -> list[Any]:
    """The items, in reverse order every other round, so that no item always follows the same one."""
    return list(items)[:: -1 if round_number % 2 else 1]


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def three_passes(function: Function, inputs: Sequence[torch.Tensor]) -> Callable[[], Any]:
    """Forward, backward and double backward of a function, ready to be timed.

    The backward is the gradient g with respect to ``inputs[0]``; the double backward that of g with respect to every
    input and to the cotangent, which is what training on a derivative computes in each layer.

    Args:
        function: the tensors ``inputs`` to one tensor.
        inputs: floating point, of any shapes the function takes.

    Returns:
        A function without arguments, which returns the gradients of the double backward; None for an input that the
        gradient does not depend on.
    """
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    cotangent = torch.randn_like(function(*inputs)).requires_grad_()
    tangent = torch.randn_like(inputs[0])

    def passes() -> tuple[torch.Tensor, ...]:
        (gradient,) = torch.autograd.grad(function(*inputs), inputs[0], cotangent, create_graph=True)
        return torch.autograd.grad(gradient, (*inputs, cotangent), tangent, allow_unused=True)

    return passes


def _native_form(x: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """xᵀAx in the quickest way of PyTorch that we know, which for short x is no matrix product."""
    return x.dot(A @ x) if x.dim() == 1 else (x * (A * x.unsqueeze(-2)).sum(-1)).sum(-1)


def workloads(device: str, quick: bool = False) -> Iterator[tuple[Function, Function, tuple[torch.Tensor, ...]]]:
    """The workloads of the demo: an op, the native function, and float32 inputs; quadratic_form with a matrix each."""
    for n in (10**5,) if quick else (10**5, 10**6):
        yield sin, torch.sin, (torch.randn(n, device=device),)
        yield exp, torch.exp, (torch.randn(n, device=device),)
    for shape in ((1000, 16), (300,)) if quick else ((10000, 16), (1000,)):
        x, A = torch.randn(shape, device=device), torch.randn(*shape, shape[-1], device=device)
        yield quadratic_form, _native_form, (x, A)


def load_picture(side: int = 96, path: str | Path | None = None) -> Field:
    """A grey picture, cropped to a square, with its gradient by central differences.

    Args:
        side: the resolution to reduce it to.
        path: a picture file; by default the portrait of Grace Hopper that matplotlib ships.

    Returns:
        The picture ``[side, side]`` with grey levels from 0 to 1 and its gradient ``[side, side, 2]``, float32.

    Raises:
        ValueError: a side below 2.
        FileNotFoundError: there is no such file, or matplotlib was installed without its sample data.

    Example:
        >>> load_picture(side=64).gradient.shape
        torch.Size([64, 64, 2])
    """
    import numpy
    from matplotlib import get_data_path
    from PIL import Image, ImageOps

    if side < 2:
        raise ValueError(f"got side {side}; a gradient needs at least 2 pixels a side")
    path = Path(path or Path(get_data_path(), "sample_data", "grace_hopper.jpg"))
    if not path.is_file():
        raise FileNotFoundError(f"no picture at {path}; give another, --picture FILE")
    with Image.open(path) as image:
        square = ImageOps.fit(image.convert("L"), (side, side), Image.Resampling.BOX, centering=(0.5, 0.0))
    picture = torch.from_numpy(numpy.asarray(square, dtype=numpy.float32) / 255)
    return Field(picture, torch.stack(torch.gradient(picture, spacing=2 / (side - 1)), dim=-1))


class SineNetwork(nn.Module):
    """A network with sine activations: x <- sin(omega (W x + b)) in each hidden layer, W x + b at the end.

    Initialised as in Sitzmann, Martel, Bergman, Lindell and Wetzstein, "Implicit Neural Representations with Periodic
    Activation Functions", NeurIPS 2020: W uniform within 1 / fan_in in the first layer and within
    sqrt(6 / fan_in) / omega after it, which keeps the distribution of activations the same in every layer.

    Args:
        sine: the activation, elementwise.
        width: the number of units in a hidden layer.
        depth: the number of hidden layers.
        omega: the frequency.

    Shape:
        ``[count, 2]`` to ``[count]``.

    Example:
        >>> SineNetwork(sin)(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(self, sine: Function, width: int = 128, depth: int = 2, omega: float = 30.0) -> None:
        super().__init__()
        self.sine, self.omega = sine, omega
        self.hidden = nn.ModuleList(nn.Linear(width if i else 2, width) for i in range(depth))
        self.last = nn.Linear(width, 1)
        for i, layer in enumerate((*self.hidden, self.last)):
            bound = math.sqrt(6 / layer.in_features) / omega if i else 1 / layer.in_features
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.hidden:
            x = self.sine(self.omega * layer(x))
        output: torch.Tensor = self.last(x)
        return output.squeeze(-1)


def train(network: nn.Module, x: torch.Tensor, gradient: torch.Tensor, steps: int) -> Iterator[float]:
    """Trains a network on a gradient alone, by Adam: yields the loss mean |d network / d x - gradient|^2 of each step.

    Args:
        network: ``[count, 2]`` to ``[count]``.
        x: where the gradient is known, ``[count, 2]``, requiring a gradient.
        gradient: ``[count, 2]``.
        steps: how many; the learning rate falls to 0 with the last.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        (slope,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
        loss = (slope - gradient).square().sum(-1).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        yield loss.item()


def fit(
    target: Field,
    sines: Mapping[str, Function],
    steps: int = 300,
    width: int = 128,
    track: Callable[[range], Iterable[int]] = iter,
) -> dict[str, Fit]:
    """Trains one sine network an activation on the gradient of a picture, from the same seed, step by step in turn.

    Args:
        target: the picture ``[side, side]``, which no network sees, and its gradient ``[side, side, 2]``.
        sines: the activations by name.
        steps: how many training steps, of all pixels each.
        width: the number of units in a hidden layer.
        track: follows the steps, ``rich.progress.track`` for example.

    Returns:
        The fit of each activation.

    Example:
        >>> fits = fit(load_picture(side=16), {"ours": sin, "native": torch.sin}, steps=3)
        >>> largest_differences(fits["ours"], fits["native"])[0] < FIRST_TOLERANCE
        True
    """
    gradient = target.gradient.flatten(0, 1)
    axis = torch.linspace(-1, 1, len(target.picture), device=gradient.device)
    x = torch.cartesian_prod(axis, axis).requires_grad_()
    networks = {}
    with torch.random.fork_rng(devices=[]):
        for name, sine in sines.items():
            torch.manual_seed(0)
            networks[name] = SineNetwork(sine, width).to(gradient.device)
    runs = {name: train(network, x, gradient, steps) for name, network in networks.items()}
    losses: dict[str, list[float]] = {name: [] for name in sines}
    seconds: dict[str, list[float]] = {name: [] for name in sines}
    for step in track(range(steps)):
        for name in _in_turn(sines, step):
            before = _now(x.device.type)
            losses[name].append(next(runs[name]))
            seconds[name].append(_now(x.device.type) - before)
    return {name: Fit(_field(network, x), losses[name], seconds[name]) for name, network in networks.items()}


def steps_within(
    seconds: float, target: Field, sines: Mapping[str, Function], width: int = 128, trial: int = 5
) -> tuple[int, float]:
    """The number of training steps of :func:`fit` that take so many seconds on this machine, all activations together.

    Trains networks of its own for a few steps, and throws them away. The median step counts: the first compiles.

    Args:
        seconds: how long the training may take.
        target, sines, width: what :func:`fit` will be given.
        trial: how many steps to measure.

    Returns:
        The number of steps, a multiple of ten from 10 to 300, and the seconds of one.

    Example:
        >>> steps, _ = steps_within(1e6, load_picture(side=16), {"native": torch.sin})
        >>> steps == MOST_STEPS
        True
    """
    fits = fit(target, sines, trial, width)
    step = sum(statistics.median(each.seconds) for each in fits.values())
    return max(FIRST_STEPS, min(MOST_STEPS, int(seconds / step) // 10 * 10)), step


def _field(network: nn.Module, x: torch.Tensor) -> Field:
    value = network(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    side = math.isqrt(len(x))
    return Field(value.detach().reshape(side, side), slope.reshape(side, side, 2))


def largest_differences(ours: Fit, native: Fit) -> tuple[float, float]:
    """The largest relative difference of the losses over the first steps, and that after the last step."""
    relative = [abs(a - b) / b for a, b in zip(ours.losses, native.losses, strict=True)]
    return max(relative[:FIRST_STEPS]), relative[-1]


def run(
    device: str = "cpu",
    steps: int | None = None,
    output: str | Path = "demo_output",
    quick: bool = False,
    picture: str | Path | None = None,
) -> None:
    """Verifies, times, trains, and saves ``sine.png`` and ``fit.png``; prints what it finds.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        steps: how many training steps; by default as many as take half a minute on this machine, from 10 to 300, or 30
            if quick.
        output: the folder for the pictures, made if it is not there.
        quick: smaller sizes, a few seconds in all.
        picture: the picture to learn; by default a portrait that matplotlib ships.

    Raises:
        AssertionError: a derivative or a loss curve is not what native PyTorch gives.
    """
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import track

    console = Console()
    say = functools.partial(console.print, soft_wrap=True)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    target = load_picture(48 if quick else 64, picture)
    target = Field(target.picture.to(device), target.gradient.to(device))

    console.rule("The derivatives are right")
    for op in (sin, exp, quadratic_form):
        verify(op, devices=(device,))
    error = hessian_error(device=device)
    say(f"Hessian of xᵀAx + Σ sin(x) exp(x), n = 50, float64: off by at most {error:.1e} of its largest element")
    if not error <= HESSIAN_TOLERANCE:
        raise AssertionError(f"the Hessian is off by {error:.1e} of its largest element, {HESSIAN_TOLERANCE} allowed")

    console.rule("Forward + backward + double backward, float32")
    say("Milliseconds: median (quartiles) of alternating runs; ratio: native / torchad_ext\n")
    table = _timing_table("op, shape of x")
    for op, native, inputs in workloads(device, quick):
        pair = [three_passes(f, inputs) for f in (op, native)]
        label = f"{op.__name__} {escape(str(list(inputs[0].shape)))}"
        table.add_row(label, *_row(*time_alternately(pair, device, seconds=0.2 if quick else 2.0, least=5)))
    console.print(with_whole_numbers(table), "", sep="\n")

    console.rule("A sine network learns a picture from its gradient")
    sines: dict[str, Function] = {"torch.sin": torch.sin, "torchad_ext.sin": sin}
    width = 64 if quick else 128
    if steps is None and quick:
        steps = 30
    elif steps is None:
        steps, step = steps_within(TRAINING_SECONDS, target, sines, width)
        say(
            f"{step:.2g} s for a step of both: {steps} steps, about {steps * step:.0f} s (--steps takes another number)"
        )
    fits = fit(target, sines, steps, width, lambda r: track(r, "Training both", console=console))
    native_fit, our_fit = fits.values()
    for name, each in fits.items():
        decibels = psnr(each.field.picture, target.picture)
        say(f"{name}: loss {each.losses[0]:.4g} to {each.losses[-1]:.4g}; picture, up to a constant: {decibels:.1f} dB")
    first, final = largest_differences(our_fit, native_fit)
    figures = f"relative difference {first:.1e} at most in the first {FIRST_STEPS} steps, {final:.1e} after {steps}"
    if not (first <= FIRST_TOLERANCE and final <= FINAL_TOLERANCE):
        raise AssertionError(f"the loss curves differ: {figures}; {FIRST_TOLERANCE} and {FINAL_TOLERANCE} are allowed")
    say(f"The loss curves agree: {figures}")
    table = _timing_table(f"{steps} steps")
    table.add_row("a training step", *_row(Times.of(our_fit.seconds), Times.of(native_fit.seconds)))
    console.print("", with_whole_numbers(table), "", sep="\n")
    say(f"In all: torchad_ext.sin {sum(our_fit.seconds):.1f} s, torch.sin {sum(native_fit.seconds):.1f} s")

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    plot_derivatives(sin, -2 * math.pi, 2 * math.pi, ax=figure.subplots())
    figure.savefig(output / "sine.png", dpi=120)
    figure = plot_fit(target, fits, Figure(figsize=(12, 5), layout="constrained"))
    figure.savefig(output / "fit.png", dpi=120)
    say(f"Saved {output / 'sine.png'} and {output / 'fit.png'}")


def _timing_table(first: str) -> Table:
    from rich import box
    from rich.table import Table

    columns = ("torchad_ext", "native PyTorch", "ratio")
    return Table(first, *columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)


def _row(ours: Times, native: Times) -> tuple[str, str, str]:
    return str(ours), str(native), f"{native.median / ours.median:.2f}"
