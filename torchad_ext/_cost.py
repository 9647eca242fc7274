"""The cost of derivatives: seconds for the value, the gradient, a product, the diagonal, the Hessian, against n."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._forward.missing import check_function
from ._hessian.dense import hessian
from ._hessian.diagonal import hessian_diagonal
from ._hessian.products import hvp

_CALLS, _ENOUGH = 20, 0.005  # at most so many calls in a row, or so many seconds

Function = Callable[[Tensor], Tensor]
Quantity = Callable[[Function, Tensor], Any]


def _gradient(f: Function, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(f(x), x)[0]


QUANTITIES: dict[str, Quantity] = {
    "value": lambda f, x: f(x),
    "gradient": _gradient,
    "Hessian-vector product": lambda f, x: hvp(f, x, torch.ones_like(x)),
    "diagonal of the Hessian": hessian_diagonal,
    "full Hessian": hessian,
}


@dataclass(frozen=True)
class Law:
    """seconds = factor nᵖ, as far as times at several n follow it.

    Attributes:
        factor: the seconds of n = 1.
        exponent: p.
        sizes: the n from which it was fitted.
    """

    factor: float
    exponent: float
    sizes: tuple[int, ...]

    def __call__(self, n: Any) -> Any:
        return self.factor * n**self.exponent


@dataclass(frozen=True)
class Cost:
    """Seconds of several quantities at several sizes.

    Attributes:
        sizes: n, ascending.
        seconds: the seconds of each quantity at each size; nan where it was not measured.
    """

    sizes: tuple[int, ...]
    seconds: Mapping[str, tuple[float, ...]]

    def law(self, quantity: str, points: int = 4) -> Law:
        """The straight line through the logarithms of the times at the largest sizes, where calls cost least.

        Raises:
            ValueError: the quantity was measured at fewer than 2 sizes.
        """
        known = [(n, s) for n, s in zip(self.sizes, self.seconds[quantity], strict=True) if math.isfinite(s)][-points:]
        if len(known) < 2:
            raise ValueError(f"{quantity} was measured at {len(known)} sizes; a law takes 2 or more")
        n, seconds = np.log(np.array(known)).T
        exponent, intercept = np.polyfit(n, seconds, 1)
        return Law(math.exp(intercept), float(exponent), tuple(n for n, _ in known))

    @property
    def exponents(self) -> dict[str, float]:
        """The exponent of each quantity."""
        return {quantity: self.law(quantity).exponent for quantity in self.seconds}


def measure_cost(
    f: Function,
    sizes: Sequence[int],
    *,
    quantities: Mapping[str, Quantity] = QUANTITIES,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float64,
    rounds: int = 7,
    limit: float = 0.5,
) -> Cost:
    """Times the derivatives of a function against the number of its variables.

    On the CPU the seconds are those of the processor, all threads together: the work, whatever else the machine does.
    The rounds go through all sizes and quantities in turn, and the fastest call of each counts.

    Args:
        f: a tensor ``[n]`` to a tensor without dimensions, for every n of ``sizes``.
        sizes: the n.
        quantities: what to time by name, each a function of f and x; by default the value, the gradient, a
            Hessian-vector product, the diagonal of the Hessian and the Hessian.
        device, dtype: of x, which is drawn from a normal distribution.
        rounds: how often each is timed.
        limit: seconds; a quantity that would take longer at a size, growing with n², is left out from there on.

    Returns:
        The seconds, which know the laws that fit them.

    Raises:
        TypeError: f is no function.
        ValueError: no sizes, or rounds below 1.

    Example:
        >>> cost = measure_cost(lambda x: x.sin().sum(), [8, 16, 32], rounds=1)
        >>> sorted(cost.seconds)[:2]
        ['Hessian-vector product', 'diagonal of the Hessian']
    """
    check_function("plot.measure_cost", f)
    sizes = tuple(sorted(sizes))
    if not sizes or rounds < 1:
        raise ValueError(f"got {len(sizes)} sizes and {rounds} rounds; give at least one of each")
    generator = torch.Generator().manual_seed(0)
    points = [torch.randn(n, generator=generator, dtype=dtype).to(device) for n in sizes]
    least: dict[str, list[float]] = {name: [math.nan] * len(sizes) for name in quantities}
    for name, quantity in quantities.items():  # what is compiled or too slow shows itself here
        for i, x in enumerate(points):
            if i and least[name][i - 1] * (sizes[i] / sizes[i - 1]) ** 2 > limit:  # as a Hessian has n² entries
                break
            quantity(f, x)
            least[name][i] = _seconds(quantity, f, x)
    for _ in range(rounds - 1):
        for i, x in enumerate(points):
            for name, quantity in quantities.items():
                if math.isfinite(least[name][i]):
                    least[name][i] = min(least[name][i], _seconds(quantity, f, x))
    return Cost(sizes, {name: tuple(each) for name, each in least.items()})


def _seconds(quantity: Quantity, f: Function, x: Tensor) -> float:
    """The fastest of some calls, more of them where they are short."""
    least, start = math.inf, _now(x)
    for _ in range(_CALLS):
        before = _now(x)
        quantity(f, x)
        after = _now(x)
        least = min(least, after - before)
        if after - start > _ENOUGH:
            break
    return least


def _now(x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
        return time.perf_counter()
    return time.process_time()
