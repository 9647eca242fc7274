"""Every op of the catalogue, against its PyTorch definition: what a new line in ``ops.py`` is held to."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from compiled_together import compiled_together
from drop_in import row
from layouts import NAMED, sample
from selection import few
from torch.func import hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.testing import assert_close

import torchad_ext as ad
from torchad_ext import Pointwise
from torchad_ext.ops import CATALOGUE

ops = pytest.mark.parametrize("op", CATALOGUE.values(), ids=CATALOGUE.keys())
MATCHING = {  # the function of PyTorch that an op stands in for
    **{name: getattr(F, name) for name in ("silu", "gelu", "softplus", "mish", "elu", "celu")},
    **{name: getattr(torch, name) for name in CATALOGUE if hasattr(torch, name) and name not in ("celu",)},
}
WITH_TENSORS = {  # ops whose numbers may be tensors too
    name: op for name, op in CATALOGUE.items() if set(op.domain) < set(op.intervals)
}


def inputs(op: Pointwise, *shape: int, names: list[str] | None = None) -> tuple[torch.Tensor, ...]:
    """float64 tensors in the domain of the op."""
    generator = torch.Generator().manual_seed(0)
    intervals = [op.intervals[name] for name in names or op.domain]
    return tuple(
        low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=generator) for low, high in intervals
    )


def orders(f: Callable[..., torch.Tensor], xs: tuple[torch.Tensor, ...], highest: int) -> Iterator[torch.Tensor]:
    """f, and its derivatives by repeated reverse mode, each the sum over all arguments of those before."""
    xs = tuple(x.detach().requires_grad_() for x in xs)
    result = f(*xs)
    yield result.detach()
    for _ in range(highest):
        if result.requires_grad:
            result = torch.stack(torch.autograd.grad(result.sum(), xs, create_graph=True, materialize_grads=True)).sum(
                0
            )
        else:  # a constant
            result = torch.zeros_like(result)
        yield result.detach()


def pulled_back(op: Pointwise, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The gradients for a cotangent, which is the last argument."""
    *xs, g = given
    return vjp(op, *xs)[1](g)


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    with compiled_together():
        for op in CATALOGUE.values():
            xs = inputs(op, 2)
            list(orders(op, xs, 3))
            hessian(lambda *u, op=op: op(*u).sum())(*xs)
            gradients = functools.partial(pulled_back, op)
            jvp(gradients, (*xs, xs[0]), (*xs, xs[0]))
            jvp(lambda g, xs=xs, gradients=gradients: gradients(*xs, g), xs[:1], xs[:1])
            for dtype in (torch.float64, torch.float32):
                *leaves, g = (x.to(dtype, copy=True).requires_grad_() for x in (*xs, xs[0]))
                first = torch.autograd.grad(op(*leaves), leaves, g, create_graph=True)
                torch.autograd.grad(first, (*leaves, g), [torch.ones_like(g) for _ in first], allow_unused=True)


@ops
@row("dtypes")
def test_value_gradient_double_backward_and_hessian(op: Pointwise, device: str) -> None:
    assert ad.verify(op, devices=[device], quiet=True).passed


@pytest.mark.parametrize("name", ["silu", "snake", "gelu", "softplus"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@row("dtypes")
def test_half_precision(name: str, dtype: torch.dtype, device: str) -> None:
    assert ad.verify(CATALOGUE[name], dtypes=[dtype], devices=[device], quiet=True).passed


@ops
@pytest.mark.parametrize("highest", few([3, 4], lambda order: order == 3))
@row("reverse mode")
def test_orders_up_to_four(op: Pointwise, highest: int, device: str) -> None:
    xs = tuple(x.to(device) for x in inputs(op, 64))
    both = zip(orders(op, xs, highest), orders(op.definition, xs, highest), strict=True)
    for order, (ours, native) in enumerate(both):
        scale = native.abs().max().clamp_min(1e-3)
        assert ((ours - native).abs() / scale).max() < 1e-11, order


@ops
@pytest.mark.parametrize("nested", [hessian, lambda f: jacfwd(jacfwd(f)), lambda f: jacrev(jacrev(f))], ids="hfr")
@row("torch.func")
def test_second_derivatives_under_torch_func(op: Pointwise, nested: Callable[..., object], device: str) -> None:
    xs = tuple(x.to(device) for x in inputs(op, 3))
    for f in (lambda g: nested(lambda *u: g(*u).sum())(*xs), lambda g: vmap(nested(lambda *u: g(*u).sum()))(*xs)):
        assert_close(f(op), f(op.definition), rtol=1e-10, atol=1e-12)


@ops
@pytest.mark.parametrize("layout", [name for name in NAMED if name != "size-1 dimensions"])  # such strides mean nothing
@row("layouts")
def test_strides_are_those_of_the_definition(op: Pointwise, layout: str, device: str) -> None:
    xs = tuple(NAMED[layout](sample(torch.float64, device)).abs() + 0.1 for _ in op.domain)
    result, native = op(*xs), op.definition(*xs)
    assert (result.shape, result.stride(), result.dtype) == (native.shape, native.stride(), native.dtype)
    assert_close(result, native, rtol=1e-13, atol=1e-13, equal_nan=True)


@pytest.mark.parametrize("name", WITH_TENSORS)
def test_numbers_may_be_tensors_and_then_have_gradients(name: str, device: str) -> None:
    op = WITH_TENSORS[name]
    xs = tuple(x.to(device) for x in inputs(op, 16, names=list(op.intervals)))
    for ours, native in zip(orders(op, xs, 2), orders(op.definition, xs, 2), strict=True):
        assert_close(ours, native, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", MATCHING)
def test_signature_and_defaults_are_those_of_pytorch(name: str) -> None:
    op, native = CATALOGUE[name], MATCHING[name]
    (x, *rest) = inputs(op, 5)
    assert_close(op(x, *rest), native(x, *rest))
    try:
        expected = inspect.signature(native)
    except ValueError:  # a builtin
        return
    assert [(p.name, p.default) for p in op.__signature__.parameters.values()] == [
        (p.name, p.default) for p in expected.parameters.values()
    ]


@pytest.mark.parametrize(
    ("call", "native"),
    [
        (lambda x: ad.gelu(x, approximate="tanh"), lambda x: F.gelu(x, approximate="tanh")),
        (lambda x: ad.softplus(x, 2.5, 3.0), lambda x: F.softplus(x, 2.5, 3.0)),
        (lambda x: ad.softplus(x, threshold=1), lambda x: F.softplus(x, threshold=1)),
        (lambda x: ad.elu(x, 0.7), lambda x: F.elu(x, 0.7)),
        (lambda x: ad.celu(x, alpha=2), lambda x: F.celu(x, alpha=2)),
        (lambda x: ad.pow(x.abs(), 3), lambda x: torch.pow(x.abs(), 3)),
        (lambda x: ad.pow(2, x), lambda x: torch.pow(2, x)),
        (lambda x: ad.pow(x.abs(), x), lambda x: torch.pow(x.abs(), x)),
    ],
    ids=range(8),
)
def test_options_are_those_of_pytorch(
    call: Callable[[torch.Tensor], torch.Tensor], native: Callable[[torch.Tensor], torch.Tensor], device: str
) -> None:
    x = torch.linspace(-3, 3, 61, dtype=torch.float64, device=device) + 0.01
    for ours, expected in zip(orders(call, (x,), 3), orders(native, (x,), 3), strict=True):
        assert_close(ours, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, 3.0])
def test_powers_of_zero_have_the_derivatives_of_polynomials(exponent: float, device: str) -> None:
    zero = torch.zeros(3, dtype=torch.float64, device=device)
    for power in (lambda x: ad.pow(x, exponent), lambda x: ad.pow(x, torch.full_like(x, exponent))):
        found = [each[0].item() for each in orders(power, (zero,), 4)]
        assert found == [math.factorial(order) if order == exponent else 0 for order in range(5)]


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("x", [1e-20, 1e-40, 1e-308, -1e-20, math.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_powers_near_zero_have_no_derivatives_beyond_their_degree(
    exponent: float, x: float, dtype: torch.dtype, device: str
) -> None:
    """The next power overflows, and its factor is 0."""
    at = torch.tensor([x], dtype=dtype, device=device)
    found = list(orders(lambda x: ad.pow(x, exponent), (at,), 4))
    assert_close(found, list(orders(lambda x: torch.pow(x, exponent), (at,), 4)), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_power_zero_of_a_number_whose_reciprocal_overflows(dtype: torch.dtype, device: str) -> None:
    x = torch.tensor([0.0, torch.finfo(dtype).tiny / 8, 2.0], dtype=dtype, device=device, requires_grad=True)
    assert torch.autograd.grad(ad.pow(x, torch.zeros_like(x)).sum(), x)[0].tolist() == [0.0, 0.0, 0.0]


def test_the_hessian_of_a_power_whose_exponent_is_zero(device: str) -> None:
    at = torch.tensor([2.0, 0.0], dtype=torch.float64, device=device)
    log2 = math.log(2)
    exact = torch.tensor([[0.0, 0.5], [0.5, log2**2]], dtype=torch.float64, device=device)  # PyTorch gives 0 for 1/2
    assert_close(hessian(lambda v: ad.pow(v[0], v[1]))(at), exact)
    assert_close(ad.hessian(lambda v: ad.pow(v[0], v[1]), at), exact)


def test_the_cutoff_envelope_is_smooth_where_it_ends(device: str) -> None:
    x = torch.tensor([5.0 - 1e-9, 5.0, 7.0], dtype=torch.float64, device=device)
    for order in orders(ad.polynomial_cutoff, (x,), 2):
        assert order.abs().max() < 1e-6


def test_the_catalogue_is_exported_as_declared() -> None:
    assert list(CATALOGUE) == ad.ops.__all__


def test_in_place_is_refused() -> None:
    with pytest.raises(TypeError, match=rf"{__file__}:\d+: ad.silu.*\n.* in place"):  # the line of the call
        ad.silu(torch.zeros(3), inplace=True)


@pytest.mark.parametrize("name", MATCHING)
def test_an_op_may_take_the_place_of_the_function_it_stands_in_for(
    name: str, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    op, native = CATALOGUE[name], MATCHING[name]
    xs = tuple(x.to(device) for x in inputs(op, 5))
    expected = list(orders(native, xs, 2))
    owner = torch if getattr(torch, name, None) is native else F
    monkeypatch.setattr(owner, name, op)
    for taken in (op, op.definition, Pointwise(op.definition, name=name)):  # the last one traces
        for ours, theirs in zip(orders(taken, xs, 2), expected, strict=True):
            assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
