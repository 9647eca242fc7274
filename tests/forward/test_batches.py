"""Functions that a sweep cannot follow: second derivatives along directions in batches, and what checks them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import grad
from torch.testing import assert_close

import torchad_ext as ad
from torchad_ext import _self_check
from torchad_ext._forward import batches
from torchad_ext._forward.laplacian import _without_rules

pytestmark = pytest.mark.filterwarnings("ignore:torchad_ext.* cannot follow")


@pytest.fixture(autouse=True)
def first_calls() -> None:
    _without_rules.clear()
    _self_check._paths.clear()


class Cube(torch.autograd.Function):
    """x³, whose derivative has a rule for batches that is wrong."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return ThreeSquares.apply(g, x)


class ThreeSquares(torch.autograd.Function):
    """3 g x²"""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, x: Tensor) -> Tensor:
        return 3 * g * x**2

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> Any:
        g, x = ctx.saved_tensors
        return ThreeSquares.apply(h, x), Product.apply(h, 6 * g * x)


class Product(torch.autograd.Function):
    """h a, which a batch takes 1.01 times."""

    @staticmethod
    def forward(h: Tensor, a: Tensor) -> Tensor:
        return h * a

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        h, a = ctx.saved_tensors
        return g * a, g * h

    @staticmethod
    def vmap(info: Any, in_dims: Any, h: Tensor, a: Tensor) -> Any:
        h = h if in_dims[0] is None else h.movedim(in_dims[0], 0)
        return 1.01 * h * (a if in_dims[1] is None else a.movedim(in_dims[1], 0)), 0


class Unbatched(torch.autograd.Function):
    """x², whose derivative looks at a number, which batches do not have."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * g * x if g.sum().item() < 1e9 else g * x


def inner_gradient(x: Tensor) -> Tensor:
    return torch.func.grad(lambda x: x.sin().prod(-1).sum())(x)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "a number": lambda x: inner_gradient(x).square().sum(-1),
    "several": inner_gradient,
    "complex": lambda x: torch.exp(1j * inner_gradient(x)).sum(-1),
    "linear": lambda x: torch.func.vmap(lambda x: 2 * x)(x).sum(-1),
    "constant": lambda x: torch.func.vmap(torch.ones_like)(x).sum(-1),
    "float32 inside": lambda x: inner_gradient(x.float()).square().sum(-1),
}


def points(d: int, count: int = 20) -> Tensor:
    return torch.randn(count, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)


def one_by_one(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    rows = []
    for y in torch.view_as_real(f(x) + 0j).reshape(len(x), -1).unbind(-1):
        (slope,) = grad((y + 0 * x[:, 0]).sum(), x, create_graph=True)
        total = torch.zeros(len(x), dtype=x.dtype)
        for i in range(x.shape[-1] if slope.requires_grad else 0):
            total += grad(slope[:, i].sum(), x, retain_graph=True, materialize_grads=True)[0][:, i]
        rows.append(total)
    result = torch.view_as_complex(torch.stack(rows, -1).reshape(*f(x).shape, 2))
    return result if f(x).is_complex() else result.real


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("d", [1, 2, 5])
def test_is_that_of_single_directions(name: str, d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    f, x = FUNCTIONS[name], points(d)
    expected = one_by_one(f, x)
    rough = {"rtol": 1e-5, "atol": 1e-5} if name == "float32 inside" else {"rtol": 1e-10, "atol": 1e-10}
    for bytes_in_cache in (batches._IN_CACHE, 2 * x.numel() * x.element_size(), 0):
        monkeypatch.setattr(batches, "_IN_CACHE", bytes_in_cache)
        for _ in range(2):
            assert_close(ad.laplacian(f, x), expected, check_dtype=False, **rough)
        assert_close(ad.forward_laplacian(f, x).laplacian, expected, check_dtype=False, **rough)


def test_of_coefficients_of_both_signs() -> None:
    f, x = FUNCTIONS["a number"], points(3)
    C = torch.tensor([[1.0, 2, 0], [2, -3, 1], [0, 1, 0.5]], dtype=torch.float64)
    H = torch.stack([ad.hessian(lambda x: f(x[None])[0], row) for row in x])
    assert_close(ad.laplacian(f, x, coefficients=C), (H * C).sum((1, 2)))


def test_has_the_derivatives_of_single_directions() -> None:
    w, x, step = torch.tensor(0.7, dtype=torch.float64, requires_grad=True), points(4), 1e-5

    def at(w: Tensor) -> Tensor:
        return ad.laplacian(lambda x: inner_gradient(w * x).square().sum(-1), x)

    (slope,) = grad(at(w).sum(), w)
    more, less = at(w.detach() + step), at(w.detach() - step)
    assert_close(slope, (more - less).sum() / (2 * step), rtol=1e-6, atol=1e-6)


def test_a_wrong_rule_for_batches_is_found_and_said() -> None:
    x = points(3)

    def f(x: Tensor) -> Tensor:
        return Cube.apply(torch.func.vmap(torch.sin)(x)).sum(-1)

    expected = one_by_one(lambda x: (x.sin() ** 3).sum(-1), x)
    for _ in range(2):  # Functions of others are marked the first time, which makes another graph
        with pytest.warns(RuntimeWarning, match="laplacian: the derivatives of .* in batches differ"):
            assert_close(ad.laplacian(f, x), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert_close(ad.laplacian(f, x), expected)


@pytest.mark.parametrize(("of_single", "of_batch", "is_said"), [(1e-8, 3e-8, False), (0.0, 3e-8, True)])
def test_what_single_pullbacks_round_a_batch_may(
    of_single: float, of_batch: float, is_said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H = 2 I, with relative errors of the pullback of a unit vector and of a batch."""
    x = points(3).requires_grad_()
    units = [unit.expand_as(x) for unit in torch.eye(3, dtype=x.dtype)]
    monkeypatch.setattr(batches, "of_batch", lambda _, batch: [2 * (1 + of_batch) * batch[0]])

    def pull(u: Tensor) -> Tensor:
        is_unit = bool((u.count_nonzero(-1) == 1).all())
        return 2 * (1 + of_single * is_unit) * u

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        total = batches.curvature(pull, 2 * x, units, (1, 1, 1), pull, "laplacian")
    assert_close(total, torch.full((len(x),), 6.0, dtype=x.dtype), rtol=1e-7, atol=0)
    assert bool(said) == is_said


def test_what_has_no_batches_goes_one_by_one() -> None:
    x = points(3)
    for _ in range(2):
        y = ad.laplacian(lambda x: Unbatched.apply(torch.func.vmap(torch.sin)(x)).sum(-1), x)
        assert_close(y, one_by_one(lambda x: (x.sin() ** 2).sum(-1), x))


def test_a_function_that_no_sweep_follows_is_not_swept_again() -> None:
    seen = []

    def f(x: Tensor) -> Tensor:
        seen.append(type(x) is Tensor)
        return inner_gradient(x).sum(-1)

    ad.laplacian(f, points(2))
    ad.laplacian(f, points(2))
    assert seen == [False, True, True]


def test_a_sweep_that_follows_again_does_what_nested_autograd_cannot() -> None:
    within = True

    def f(x: Tensor) -> Tensor:
        if within:
            x = torch.func.vmap(torch.sin)(x)
            return x.sum(-1)
        target = torch.zeros(len(x), dtype=torch.long)
        return torch.nn.functional.multi_margin_loss(x, target, p=2, reduction="none")  # has no second derivative

    x = points(3)
    ad.laplacian(f, x)
    within = False
    expected = _without_memory(f, x)
    assert_close(ad.laplacian(f, x), expected)


def _without_memory(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    remembered = dict(_without_rules)
    _without_rules.clear()
    y = ad.laplacian(f, x)
    _without_rules.update(remembered)
    return y
