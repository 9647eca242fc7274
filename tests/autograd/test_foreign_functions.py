"""An autograd.Function whose second derivative PyTorch takes for zero, or for too little, is refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import torchad_ext as ad
from torchad_ext._autograd import foreign_functions

pytestmark = pytest.mark.filterwarnings("ignore:torchad_ext.laplacian")


def function(forward: Callable[..., Any], backward: Callable[..., Any], **more: Any) -> Any:
    members = {"forward": forward, "backward": backward, **more}
    return type("Given", (torch.autograd.Function,), {name: staticmethod(f) for name, f in members.items()})


def keep(ctx: Any, result: Any, *saved: Tensor, **attributes: Any) -> Any:
    ctx.save_for_backward(*saved)
    vars(ctx).update(attributes)
    return result


def without_grad(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return torch.no_grad()(f)


cube_slope = lambda x: 3 * x**2  # noqa: E731
surrogate = lambda x: 1 / (1 + (math.pi * x) ** 2)  # noqa: E731
layer = lambda ctx, x, d: keep(ctx, (x * 2).tanh(), x, d)  # noqa: E731

INCOMPLETE: dict[str, Any] = {
    "an attribute": function(lambda ctx, x: keep(ctx, x**3, d=3 * x**2), lambda ctx, g: g * ctx.d),
    "in a list": function(lambda ctx, x: keep(ctx, x**3, d=[3 * x**2]), lambda ctx, g: g * ctx.d[0]),
    "saved": function(lambda ctx, x: keep(ctx, x**3, 3 * x**2), lambda ctx, g: g * ctx.saved_tensors[0]),
    "in setup_context": function(
        lambda x: x**3, lambda ctx, g: g * ctx.d, setup_context=lambda ctx, xs, y: keep(ctx, None, d=3 * xs[0] ** 2)
    ),
    "detached in backward": function(
        lambda ctx, x: keep(ctx, x**3, x), lambda ctx, g: g * cube_slope(ctx.saved_tensors[0].detach())
    ),
    "under no_grad in backward": function(
        lambda ctx, x: keep(ctx, x**3, x), lambda ctx, g: g * without_grad(cube_slope)(ctx.saved_tensors[0])
    ),
    "of NumPy": function(
        lambda ctx, x: keep(ctx, x**3, d=3 * np.square(x.detach().numpy())),
        lambda ctx, g: g * torch.from_numpy(ctx.d),
    ),
    "a Python number": function(
        lambda ctx, x: keep(ctx, x.norm() * x, x, n=x.norm().item()),
        lambda ctx, g: g * ctx.n + ctx.saved_tensors[0] * (g * ctx.saved_tensors[0]).sum() / ctx.n,
    ),
    "one term of two": function(
        lambda ctx, x: keep(ctx, x**3 * x.exp(), x, d=3 * x**2),
        lambda ctx, g: g * (ctx.d + ctx.saved_tensors[0] ** 3) * ctx.saved_tensors[0].exp(),
    ),
    "of two outputs": function(
        lambda ctx, x: (keep(ctx, x.sin(), d=x.cos()), x.round().long())[:1], lambda ctx, g: g * ctx.d
    ),
    "a surrogate": function(lambda ctx, x: keep(ctx, (x > 0).to(x), d=surrogate(x)), lambda ctx, g: g * ctx.d),
}
COMPLETE: dict[str, Any] = {
    "an input": function(lambda ctx, x: keep(ctx, x**3, x), lambda ctx, g: g * cube_slope(ctx.saved_tensors[0])),
    "an output": function(lambda ctx, x: (y := x.exp(), keep(ctx, y, y))[1], lambda ctx, g: g * ctx.saved_tensors[0]),
    "setup_context": function(
        lambda x: x**3,
        lambda ctx, g: g * cube_slope(ctx.saved_tensors[0]),
        setup_context=lambda ctx, xs, y: keep(ctx, None, xs[0]),
    ),
    "straight-through": function(lambda ctx, x: x.round(), lambda ctx, g: g),
    "flipped": function(lambda ctx, x: x.clone(), lambda ctx, g: -g),
    "a mask": function(lambda ctx, x: keep(ctx, x.clamp(-1, 1), m=(x.abs() < 1).to(x)), lambda ctx, g: g * ctx.m),
    "relu": function(lambda ctx, x: keep(ctx, x.relu(), x), lambda ctx, g: g * (ctx.saved_tensors[0] > 0)),
    "a surrogate": function(
        lambda ctx, x: keep(ctx, (x > 0).to(x), x), lambda ctx, g: g * surrogate(*ctx.saved_tensors)
    ),
    "a triangle": function(
        lambda ctx, x: keep(ctx, (x > 0).to(x), x), lambda ctx, g: g * (1 - ctx.saved_tensors[0].abs()).clamp_min(0)
    ),
    "half of an output's": function(
        lambda ctx, x: (y := x.exp(), keep(ctx, y, y))[1], lambda ctx, g: 0.5 * g * ctx.saved_tensors[0]
    ),
    "dropout": function(
        lambda ctx, x: (m := (torch.rand_like(x) > 0.5).to(x), keep(ctx, m * x**2, x, m=m))[1],
        lambda ctx, g: 2 * g * ctx.saved_tensors[0] * ctx.m,
    ),
    "written in place": function(
        lambda ctx, x: (keep(ctx, None), ctx.mark_dirty(x), x.mul_(2))[2], lambda ctx, g: 2 * g
    ),
}
# Of f and x.
TOOLS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "hvp": lambda f, x: ad.hvp(f, x, torch.ones_like(x)),
    "vhp": lambda f, x: ad.vhp(f, x, torch.ones_like(x)),
    "hessian": ad.hessian,
    "hessian one by one": lambda f, x: ad.hessian(f, x, chunk_size=1),
    "sparse hessian": lambda f, x: ad.hessian(f, x, sparsity=torch.eye(x.numel(), dtype=torch.bool)),
    "diagonal": ad.hessian_diagonal,
    "diagonal of a batch": lambda f, x: ad.hessian_diagonal(
        lambda x: torch.stack([f(row) for row in x]), x.view(1, -1), batched=True
    ),
    "laplacian": ad.laplacian,
}


@pytest.fixture(autouse=True)
def _nothing_is_known() -> None:
    foreign_functions._checked.clear()


def sample(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)


def of(Given: Any) -> Callable[[Tensor], Tensor]:
    def f(x: Tensor) -> Tensor:
        y = Given.apply(1.5 * x.sin())
        return ((y[0] if isinstance(y, tuple) else y) * x).sum()

    return f


@pytest.mark.parametrize("name", INCOMPLETE)
@pytest.mark.parametrize("tool", TOOLS)
def test_a_backward_that_autograd_does_not_see_through(name: str, tool: str) -> None:
    with pytest.raises(
        RuntimeError, match=r"torchad_ext\.\w+: f .*backward of the autograd.Function Given .*save_for_b"
    ):
        TOOLS[tool](of(INCOMPLETE[name]), sample(5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("n", [4, 1000])
def test_every_function_at_every_size(n: int, dtype: torch.dtype) -> None:
    x = sample(n, dtype)
    for Given in INCOMPLETE.values():
        with pytest.raises(RuntimeError, match=r"autograd\.Function Given"):
            ad.hvp(of(Given), x, x)
    for Given in COMPLETE.values():
        ad.hvp(of(Given), x, x)


@pytest.mark.parametrize("name", COMPLETE)
def test_a_backward_that_is_complete(name: str) -> None:
    x, f = sample(5), of(COMPLETE[name])
    leaf = x.clone().requires_grad_()
    state = torch.get_rng_state()
    (gradient,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
    expected = torch.stack([torch.autograd.grad(g, leaf, retain_graph=True)[0] for g in gradient])
    for tool in TOOLS.values():
        torch.set_rng_state(state)
        result = tool(f, x)
        whole = expected.reshape(result.shape) if result.numel() == 25 else None
        diagonal = expected.diagonal().reshape(result.shape) if tool in _DIAGONAL else None
        wanted = whole if whole is not None else diagonal if diagonal is not None else expected.sum(1)
        assert_close(result, wanted.sum() if result.dim() == 0 and wanted is not diagonal else wanted)


_DIAGONAL = [TOOLS["diagonal"], TOOLS["diagonal of a batch"]]


def test_f_is_run_again_once_a_function() -> None:
    class Called:  # a list that f captures is as one call leaves it
        calls: ClassVar[list[Tensor]] = []

    f = of(COMPLETE["an input"])
    counted = lambda x: (Called.calls.append(x), f(x))[1]  # noqa: E731
    state = torch.get_rng_state()
    for expected in (2, 3, 4):
        ad.hvp(counted, sample(3), sample(3))
        assert len(Called.calls) == expected
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.filterwarnings("ignore:torchad_ext")
@pytest.mark.parametrize("tool", TOOLS)
def test_what_f_writes_when_it_is_run_again_is_taken_back(tool: str) -> None:
    """A buffer that each call halves, and that the gradient of a weight reads."""

    def halving(buffer: Tensor, weight: Tensor) -> Callable[[Tensor], Tensor]:
        given = of(COMPLETE["an input"])
        return lambda x: given(x * (weight * buffer.mul_(0.5)))

    x, results = sample(5), []
    for _ in range(2):  # the first time the Function is not known
        buffer, weight = torch.full((5,), 2.0, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
        result = TOOLS[tool](halving(buffer, weight.requires_grad_()), x)
        results.append((result, *torch.autograd.grad(result.sum(), weight), buffer))
    assert_close(*results)


def test_a_layer_with_a_weight() -> None:
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        h = (x @ w).tanh()
        return keep(ctx, h, x, w, 1 - h * h)

    def forward_of_output(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        h = (x @ w).tanh()
        return keep(ctx, h, x, w, h)

    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w, slope = ctx.saved_tensors
        return (g * slope) @ w.T, x.T @ (g * slope)

    def backward_of_output(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w, h = ctx.saved_tensors
        return (g * (1 - h * h)) @ w.T, x.T @ (g * (1 - h * h))

    x, w = sample(6).view(2, 3), sample(12).view(3, 4)
    bad, good = function(forward, backward), function(forward_of_output, backward_of_output)
    loss = lambda Given: lambda w: Given.apply(x, w).square().sum()  # noqa: E731
    with pytest.raises(RuntimeError, match=r"autograd\.Function Given"):
        ad.hvp(loss(bad), w, w)
    assert_close(ad.hessian(loss(good), w), torch.func.hessian(lambda w: (x @ w).tanh().square().sum())(w))


def test_a_custom_operator_that_saves_an_intermediate() -> None:
    @torch.library.custom_op("torchad_ext_tests::cube", mutates_args=())
    def cube(x: Tensor) -> Tensor:
        return x**3

    cube.register_autograd(
        lambda ctx, g: g * ctx.d, setup_context=lambda ctx, inputs, output: keep(ctx, None, d=3 * inputs[0] ** 2)
    )
    with pytest.raises(RuntimeError, match=r"autograd\.Function GeneratedBackwardFor_torchad_ext_tests_cube"):
        ad.hvp(lambda x: cube(x).sum(), sample(3), sample(3))
    with pytest.raises(RuntimeError, match=r"autograd\.Function GeneratedBackwardFor_torchad_ext_tests_cube"):
        ad.laplacian(lambda x: cube(x).sum(), sample(3))


def _operator_of_a_list(name: str, is_complete: bool) -> Any:
    """Σ x_i³ w of a list of tensors, whose backward takes w x_i² for a constant unless it is complete."""

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        xs, power, w = inputs
        ctx.power = power
        ctx.save_for_backward(w, *xs)
        ctx.slopes = None if is_complete else [power * w * x ** (power - 1) for x in xs]

    def backward(ctx: Any, g: Tensor) -> Any:
        w, *xs = ctx.saved_tensors
        slopes = ctx.slopes or [ctx.power * w * x ** (ctx.power - 1) for x in xs]
        return [g * slope for slope in slopes], None, g * sum(x**ctx.power for x in xs)

    op = torch.library.custom_op(
        f"torchad_ext_tests::{name}",
        lambda xs, power, w: sum(x**power for x in xs) * w,
        mutates_args=(),
        schema="(Tensor[] xs, int power, Tensor w) -> Tensor",
    )
    op.register_autograd(backward, setup_context=setup_context)
    return op


OF_LISTS = {is_complete: _operator_of_a_list(f"cubes_{is_complete}", is_complete) for is_complete in (True, False)}


@pytest.mark.parametrize("tool", TOOLS)
def test_an_operator_of_a_list_of_tensors(tool: str) -> None:
    """PyTorch calls its forward with the tensors of the list side by side; it is checked as any other is."""
    calls = TOOLS | {
        "hessian": lambda f, x: ad.hessian(f, x, chunk_size=1),
        "diagonal": lambda f, x: ad.hessian_diagonal(f, x, chunk_size=1),
        "sparse hessian": lambda f, x: ad.hessian(f, x, 1, sparsity=torch.eye(x.numel(), dtype=torch.bool)),
        "diagonal of a batch": lambda f, x: ad.hessian_diagonal(
            lambda x: torch.stack([f(row) for row in x]), x.view(1, -1), batched=True, chunk_size=1
        ),
    }
    good, bad = (lambda x, op=op: op([x.sin(), x.exp()], 3, x.cos()).sum() for op in (OF_LISTS[True], OF_LISTS[False]))
    x = sample(4)
    assert_close(calls[tool](good, x), calls[tool](lambda x: ((x.sin() ** 3 + x.exp() ** 3) * x.cos()).sum(), x))
    with pytest.raises(RuntimeError, match=r"autograd\.Function GeneratedBackwardFor_torchad_ext_tests_cubes_False"):
        calls[tool](bad, x)


def test_a_function_that_refuses_other_inputs() -> None:
    """Where it cannot be called near the inputs of f, nothing tells whether its backward is complete."""

    def forward(ctx: Any, x: Tensor) -> Tensor:
        if not bool((x == 1).all()):
            raise ValueError("takes ones")
        return keep(ctx, x**3, x)

    Given = function(forward, lambda ctx, g: g * cube_slope(ctx.saved_tensors[0]))
    x = torch.ones(3, dtype=torch.float64)
    assert_close(ad.hvp(lambda x: Given.apply(x).sum(), x, x), 6 * x)
