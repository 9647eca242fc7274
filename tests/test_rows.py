"""The catalogue of row ops against PyTorch's functions, textbook formulas and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from selection import few
from torch.func import hessian
from torch.testing import assert_close

import torchad_ext as ad
from torchad_ext import Rowwise
from torchad_ext.rows import ROW_CATALOGUE

NATIVE: dict[str, Callable[..., torch.Tensor]] = {
    "softmax": torch.softmax,
    "log_softmax": torch.log_softmax,
    "logsumexp": torch.logsumexp,
    "vector_norm": lambda x, dim, **options: torch.linalg.vector_norm(x, 2, dim, **options),
    "normalize": lambda x, dim: F.normalize(x, dim=dim),
}
CALLS: dict[str, Callable[..., torch.Tensor]] = {
    "vector_norm": lambda x, dim, **options: ad.vector_norm(x, 2, dim, **options),
    "normalize": lambda x, dim: ad.normalize(x, dim=dim),
}


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("dim", [-1, 2, 1, 0, -3])
def test_along_any_dimension(name: str, dim: int, device: str) -> None:
    op, x = CALLS.get(name, getattr(ad, name)), normal(2, 3, 4).to(device)
    assert_close(op(x, dim), NATIVE[name](x, dim))


@pytest.mark.parametrize("name", ["logsumexp", "vector_norm"])
@pytest.mark.parametrize("dim", [-1, 0])
def test_keepdim(name: str, dim: int) -> None:
    op, x = CALLS.get(name, getattr(ad, name)), normal(2, 3)
    assert_close(op(x, dim, keepdim=True), NATIVE[name](x, dim, keepdim=True))


CALLED: dict[str, Callable[..., torch.Tensor]] = {
    **{
        f"{name} {dim} {options}": lambda x, op=ROW_CATALOGUE[name], dim=dim, options=options: op(
            *[x, x.cos()][: 1 + (op in (ad.cosine_similarity, ad.distance))], dim=dim, **options
        )
        for name in ROW_CATALOGUE
        if "dim" in ROW_CATALOGUE[name].__signature__.parameters
        for dim in (-1, 2, 1, 0)
        for options in ({}, {"keepdim": True})
        if not options or "keepdim" in ROW_CATALOGUE[name].__signature__.parameters
    },
    **{
        f"{op.__name__} {count}": lambda x, op=op, count=count: op(x, x.shape[-count:])
        for op in (ad.layer_norm, ad.rms_norm)
        for count in (1, 2, 3)
    },
    "a number a row": ad.rowwise(lambda x: (x * x).sum(-1)),
}


@pytest.mark.parametrize(
    ("op", "shape", "is_moved"),
    [
        (ad.softmax, (1024, 1023), False),
        (ad.softmax, (1024, 1024), True),
        (ad.log_softmax, (64, 64), False),
        (ad.logsumexp, (128, 127), False),
        (ad.logsumexp, (128, 128), True),
        (ad.normalize, (4, 4), True),
    ],
)
def test_another_dimension_is_moved_where_that_pays(
    op: Rowwise, shape: tuple[int, int], is_moved: bool, row_kernels: list[str]
) -> None:
    x = torch.randn(shape)
    assert_close(op(x, dim=0), op.definition(x, dim=0))
    assert bool(row_kernels) is is_moved


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 1, 20), (1, 1, 4), (2, 3, 1), (0, 3, 4), (2, 3, 0)])
@pytest.mark.parametrize("call", CALLED.values(), ids=CALLED)
def test_a_result_is_no_view(call: Callable[..., torch.Tensor], shape: tuple[int, ...]) -> None:
    x, factor = normal(*shape), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    for _ in range(2):  # through Python and through C++
        with torch.no_grad():
            y = call(x)
        assert not y._is_view()
        expected = y * 2
        assert_close(y.mul_(factor), expected)  # of a view that was made under no_grad PyTorch refuses it
        y = call(x.clone().requires_grad_())
        assert not y._is_view()
        assert not y.detach_().requires_grad


def test_options_of_pytorch() -> None:
    x, y = normal(2, 3, 4), normal(4)
    assert_close(ad.vector_norm(x), torch.linalg.vector_norm(x))
    for order in (1, 2, 3, float("inf")):
        assert_close(ad.vector_norm(x, order, -1), torch.linalg.vector_norm(x, order, -1))
        assert_close(ad.normalize(x, order), F.normalize(x, order))
    assert_close(ad.cosine_similarity(x, y, dim=-1), F.cosine_similarity(x, y, dim=-1))
    assert_close(ad.cosine_similarity(x, x + 1), F.cosine_similarity(x, x + 1))
    assert_close(ad.softmax(x.float(), -1, dtype=torch.float64), torch.softmax(x.float(), -1, dtype=torch.float64))
    assert_close(ad.distance(x, y), torch.linalg.vector_norm(x - y, dim=-1))


@pytest.mark.parametrize("shape", [(4,), (3, 4)])
def test_normalisations(shape: tuple[int, ...]) -> None:
    x, weight, bias = normal(2, 3, 4), normal(*shape), normal(*shape).sin()
    assert_close(ad.layer_norm(x, shape), F.layer_norm(x, shape))
    assert_close(ad.layer_norm(x, shape, weight, bias, 1e-3), F.layer_norm(x, shape, weight, bias, 1e-3))
    assert_close(ad.layer_norm(x, shape, bias=bias), F.layer_norm(x, shape, bias=bias))
    assert_close(ad.rms_norm(x, shape, weight), F.rms_norm(x, shape, weight))
    assert_close(ad.rms_norm(x.float(), shape), F.rms_norm(x.float(), shape))


@pytest.mark.parametrize("eps", [(2, 1), (1, 4), (2, 3, 4), (2, 1, 1)])
@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_a_number_that_is_a_tensor_does_not_lengthen_rows(dim: int, eps: tuple[int, ...]) -> None:
    x, y, eps = normal(1, 1, 4), normal(2, 1, 4), normal(*eps).square() + 1  # type: ignore[assignment]
    for op, args in ((ad.cosine_similarity, (x, y)), (ad.normalize, (x, 2.0))):
        assert_close(op(*args, dim, eps), op.definition(*args, dim, eps))


@pytest.mark.parametrize("keepdim", [None, 1, "yes", []])
@pytest.mark.parametrize("dim", [-1, 0])
def test_keepdim_is_true_or_false(dim: int, keepdim: Any) -> None:
    for norm in (ad.vector_norm, torch.linalg.vector_norm):
        with pytest.raises(TypeError, match="keepdim"):
            norm(normal(3, 4), 2, dim, keepdim)


@pytest.mark.parametrize(
    ("call", "dtype"),
    [
        (ad.layer_norm, torch.float64),
        (ad.rms_norm, torch.float64),
        (ad.rms_norm, torch.complex64),
        (torch.compile(lambda x, shape: ad.layer_norm(x, shape), backend="eager"), torch.float64),
        (torch.compile(lambda x, shape: ad.rms_norm(x, shape), backend="eager"), torch.float64),
    ],
)
def test_a_wrong_normalized_shape(call: Callable[..., torch.Tensor], dtype: torch.dtype) -> None:
    with pytest.raises(RuntimeError, match=r"expected input with shape \[\*, 5\]"):
        call(normal(2, 4).to(dtype), (5,))


@pytest.mark.parametrize(
    ("op", "native", "x", "options"),
    [
        (ad.layer_norm, F.layer_norm, normal(2, 4).cfloat(), {"normalized_shape": (4,)}),
        (ad.layer_norm, F.layer_norm, torch.ones(2, 4, dtype=torch.int64), {"normalized_shape": (4,)}),
        (ad.rms_norm, F.rms_norm, torch.ones(2, 4, dtype=torch.int64), {"normalized_shape": (4,)}),
        (ad.vector_norm, torch.linalg.vector_norm, normal(2, 4), {"dim": 0, "dtype": torch.float16}),
        (ad.vector_norm, torch.linalg.vector_norm, normal(2, 4), {"dim": -1, "dtype": torch.cdouble}),
        (ad.vector_norm, torch.linalg.vector_norm, normal(2, 4), {"dim": -1, "dtype": torch.int64}),
        *(
            (ad.cosine_similarity, F.cosine_similarity, normal(2, 4), {"x2": normal(2, 4), "dim": dim})
            for dim in (None, (), [0], (0, 1))
        ),
    ],
)
def test_what_pytorch_refuses_is_refused(op: Any, native: Any, x: torch.Tensor, options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, RuntimeError)) as expected:
        native(x, **options)
    with pytest.raises(expected.type):
        op(x, **options)


@pytest.mark.parametrize(
    ("name", "dtype"),
    few(
        [*product(ROW_CATALOGUE, [torch.float64]), ("vector_norm", torch.float32), ("layer_norm", torch.float32)],
        lambda name, dtype: name == ("softmax" if dtype == torch.float64 else "vector_norm"),
    ),
)
def test_verified(name: str, dtype: torch.dtype, device: str) -> None:
    assert ad.verify(ROW_CATALOGUE[name], dtypes=dtype, devices=device, quiet=True).passed


@pytest.mark.usefixtures("kernels_when_long")
@pytest.mark.parametrize("name", few(["softmax", "log_softmax", "logsumexp"], lambda name: name == "log_softmax"))
def test_orders_up_to_3_are_pytorchs(name: str) -> None:
    x = normal(2, 5)

    def third(f: Any) -> torch.Tensor:
        return torch.func.jacrev(hessian(lambda x: f(x, -1).pow(3).sum()))(x)

    assert_close(third(getattr(ad, name)), third(NATIVE[name]))


def test_third_derivative_of_layer_norm() -> None:
    """PyTorch's own is wrong in the fourth digit."""
    x, v, w = normal(3, 5), normal(3, 5).sin(), normal(3, 5).cos()

    def second(x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(ad.layer_norm(x, (5,)).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad((g * v).sum(), x, create_graph=True)[0]

    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(ad.layer_norm(leaf, (5,)).pow(3).sum(), leaf, create_graph=True)
    (h,) = torch.autograd.grad((g * v).sum(), leaf, create_graph=True)
    (third,) = torch.autograd.grad((h * w).sum(), leaf)
    step = 1e-4
    differences = (
        8 * (second(x + step * w) - second(x - step * w)) - second(x + 2 * step * w) + second(x - 2 * step * w)
    ) / (12 * step)
    assert_close(third, differences.detach(), rtol=1e-7, atol=1e-8)


AT_ZERO: dict[str, tuple[Callable[..., torch.Tensor], float]] = {
    "vector_norm": (lambda x: ad.vector_norm(x, dim=-1), 0.0),
    "distance": (lambda x: ad.distance(x, torch.zeros_like(x)), 0.0),
    "normalize": (lambda x: ad.normalize(x, dim=-1, eps=0.5), 2.0),
}


@pytest.mark.usefixtures("kernels_when_long")
@pytest.mark.parametrize(
    ("name", "length"), few(product(AT_ZERO, [3, 20]), lambda name, n: n == (20 if name == "distance" else 3))
)
def test_derivatives_at_zero(name: str, length: int) -> None:
    f, slope = AT_ZERO[name]
    x = torch.zeros(2, length, dtype=torch.float64)
    x[1] = torch.linspace(1, 2, length)
    x.requires_grad_()
    y = f(x).sum()
    for order in range(1, 5):
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        assert g.isfinite().all()
        assert_close(g[0], torch.full_like(g[0], slope if order == 1 else 0.0))
        y = (g * torch.linspace(1, 2, length, dtype=torch.float64)).sum()
        if not y.requires_grad:
            break


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
@pytest.mark.parametrize("length", [3, 24])
def test_rows_of_nan_and_infinities_are_natives(name: str, length: int, device: str) -> None:
    inf, nan = float("inf"), float("nan")
    x = torch.zeros(6, length, device=device)
    x[0], x[1, 0], x[2, 1], x[3, 2], x[4] = -inf, -inf, inf, nan, 1e38
    assert_close(getattr(ad, name)(x, -1), NATIVE[name](x, -1), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype: torch.dtype, device: str) -> None:
    x = normal(3, 40).to(device, dtype)
    assert_close(ad.softmax(x, -1), torch.softmax(x.float(), -1).to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_compiles() -> None:
    x = normal(3, 4)
    f = torch.compile(lambda x: ad.softmax(x, 0) + ad.layer_norm(x, (4,)), backend="eager", fullgraph=True)
    assert_close(f(x), torch.softmax(x, 0) + F.layer_norm(x, (4,)))


@pytest.mark.parametrize("name", ROW_CATALOGUE)
def test_documented(name: str) -> None:
    op = ROW_CATALOGUE[name]
    assert op.__doc__ and "Args:" in op.__doc__
    assert getattr(ad, name) is op


ALONG_DIM: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]] = {
    **{name: (CALLS.get(name, getattr(ad, name)), native) for name, native in NATIVE.items()},
    "cosine_similarity": (
        lambda x, dim: ad.cosine_similarity(x, x.cos(), dim),
        lambda x, dim: F.cosine_similarity(x, x.cos(), dim),
    ),
    "distance": (
        lambda x, dim: ad.distance(x, x.cos(), dim),
        lambda x, dim: torch.linalg.vector_norm(x - x.cos(), 2, dim),
    ),
}


def outcome(f: Callable[..., Any], *args: Any) -> Any:
    """What a call gives, or that it raises."""
    try:
        return f(*args)
    except (RuntimeError, IndexError, TypeError):
        return "raises"


@pytest.mark.parametrize("name", ALONG_DIM)
@pytest.mark.parametrize("shape", [(), (3, 0), (0, 3), (0,), (2, 1, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.int64, torch.bool])
def test_any_shape_and_dtype_is_as_native(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = (3 * normal(*shape)).to(dtype) if dtype is not torch.bool else normal(*shape) > 0
    op, native = ALONG_DIM[name]
    for dim in range(-3, 3):
        mine, expected = outcome(op, x, dim), outcome(native, x, dim)
        if isinstance(expected, str):
            assert mine == expected
        else:
            assert_close(mine, expected)


@pytest.mark.parametrize("name", ALONG_DIM)
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_results_are_contiguous(name: str, dim: int) -> None:
    assert ALONG_DIM[name][0](normal(2, 3, 4), dim).is_contiguous()


@pytest.mark.usefixtures("kernels_when_long")
@pytest.mark.parametrize(
    ("of", "beside"),
    few(
        [((2, 3, 4), (1, 3, 4)), ((2, 3, 4), (2, 3, 1)), ((3, 4), (4,)), ((1, 4), (3, 1))],
        lambda of, beside: len(beside) == len(of) == 3,
    ),
)
@pytest.mark.parametrize("name", ["cosine_similarity", "distance"])
def test_points_broadcast_before_they_are_reduced(name: str, of: tuple[int, ...], beside: tuple[int, ...]) -> None:
    op = getattr(ad, name)
    x, y = normal(*of).requires_grad_(), normal(*beside).sin().requires_grad_()
    whole = torch.broadcast_tensors(x, y)
    for dim in range(-2, 2):
        for mine, expected in zip(*(first_and_second(op, pair, (x, y), dim) for pair in ((x, y), whole)), strict=True):
            assert_close(mine, expected)
        if name == "cosine_similarity":
            assert_close(op(x, y, dim), F.cosine_similarity(x, y, dim))


def first_and_second(op: Any, xs: Any, leaves: Any, dim: int) -> tuple[torch.Tensor, ...]:
    """The value, the gradient of its square, and the gradient of that."""
    y = op(*xs, dim)
    slopes = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
    return (y, *slopes, *torch.autograd.grad(sum(g.square().sum() for g in slopes), leaves))


@pytest.mark.parametrize("name", ["vector_norm", "normalize", "layer_norm", "rms_norm"])
@pytest.mark.parametrize("scale", [6e-5, 1.0, 1e3])
@pytest.mark.parametrize("way", ["kernel", "definition", "compiled"])
def test_float16_is_computed_in_float32(name: str, scale: float, way: str) -> None:
    """Squares of float16 overflow from 256 on and vanish below 2e-4."""
    op = {
        "layer_norm": lambda f, x: f(x, x.shape[-1:], eps=1e-12),
        "rms_norm": lambda f, x: f(x, x.shape[-1:], eps=1e-12),
    }.get(name, lambda f, x: f(x, dim=-1))
    f = ROW_CATALOGUE[name]
    x = (scale * normal(3, 8)).half()

    def call(x: torch.Tensor) -> torch.Tensor:
        return op(f, x)

    if way == "definition":
        mine = torch.func.functionalize(call)(x)  # there are no kernels under it
    else:
        mine = (torch.compile(call, backend="eager", fullgraph=True) if way == "compiled" else call)(x)
    assert mine.dtype == torch.float16
    assert_close(mine.double(), op(f.definition, x.double()), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_beside_float32_weights(name: str, dtype: torch.dtype) -> None:
    x, weight = normal(3, 8).to(dtype), normal(8).float()
    f: Callable[..., torch.Tensor] = getattr(ad, name)
    for result in (f(x, (8,), weight), torch.compile(f, backend="eager", fullgraph=True)(x, (8,), weight)):
        assert result.dtype == dtype
    assert_close(f(x, (8,), weight), f(x.float(), (8,), weight).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_usual_eps_of_rms_norm_is_pytorchs(dtype: torch.dtype) -> None:
    x = torch.full((1, 4), 1e-4, dtype=dtype)
    assert_close(ad.rms_norm(x, (4,)), F.rms_norm(x, (4,)))


@pytest.mark.parametrize("argument", ["weight", "bias"])
@pytest.mark.parametrize("shape", [(1,), (), (3, 4), (5,)])
def test_a_weight_of_another_shape_raises(argument: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match=f"expected {argument} with shape"):
        ad.layer_norm(normal(3, 4), (4,), **{argument: torch.ones(shape, dtype=torch.float64)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("wanted", [torch.float32, torch.float64])
def test_the_dtype_that_is_asked_for(dtype: torch.dtype, wanted: torch.dtype) -> None:
    assert ad.softmax(normal(3, 4).to(dtype), -1, dtype=wanted).dtype == wanted
    assert ad.vector_norm(normal(3, 4).to(dtype), dim=-1, dtype=wanted).dtype == wanted


SCALED = ["vector_norm", "normalize", "cosine_similarity", "distance", "layer_norm", "rms_norm"]


@pytest.mark.parametrize(
    ("name", "length"), few(product(SCALED, [3, 24]), lambda name, n: n == (3, 24)[SCALED.index(name) % 2])
)
@pytest.mark.parametrize("scale", few([1e-15, 1e-12, 1e12, 1e15], lambda scale: scale < 1e-13 or scale > 1e13))
def test_second_derivatives_at_any_scale(name: str, scale: float, length: int) -> None:
    """What norms compute on the way stays in the range of float32 as long as the squares of x do."""
    if name in ("cosine_similarity", "layer_norm", "rms_norm") and not 1e-13 < scale < 1e13:
        pytest.skip("the cube of a norm is beyond float32")
    options: dict[str, Any] = {} if name in ("vector_norm", "distance") else {"eps": 0.0}
    options |= {} if name in ("layer_norm", "rms_norm") else {"dim": -1}
    op = ROW_CATALOGUE[name]

    def second(x: torch.Tensor) -> torch.Tensor:
        x = x.requires_grad_()
        y = op(x, x.flip(-1) * 0.3, **options) if name in ("cosine_similarity", "distance") else op(x, **options)
        for _ in range(2):
            cotangent = torch.linspace(-1, 2, y.numel(), dtype=x.dtype).reshape(y.shape)
            (y,) = torch.autograd.grad(y, x, cotangent, create_graph=True)
        return y.detach()

    x = (scale * normal(4, length)).float()
    exact = second(x.double())
    assert_close(second(x).double() / exact.abs().max(), exact / exact.abs().max(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e12, 1e25])
def test_slopes_of_a_direction_at_any_scale(p: float, scale: float) -> None:
    if p == 2 and not 1e-18 < scale < 1e18:
        pytest.skip("its squares are beyond float32")
    slopes = []
    for dtype, unit in ((torch.float32, scale), (torch.float64, 1.0)):
        x = (torch.tensor([1.0, 3.0, -1.0], dtype=dtype) * unit).requires_grad_()
        slopes.append(torch.autograd.grad(ad.normalize(x, p, -1, eps=0.0)[0], x)[0].double() * unit)
    torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_logsumexp_beside_an_infinity(dtype: torch.dtype) -> None:
    x = torch.tensor([math.inf, 90.0, 1.0, -math.inf], dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(ad.logsumexp(x, -1), x)
    assert slope[1:].tolist() == [0, 0, 0]


def test_calls_that_are_nearly_alike_keep_their_own_options() -> None:
    x, weight = normal(5, 20), normal(20)
    for _ in range(2):  # the second time, each has been seen before
        for eps in (1e-5, 0.5, 2.0):
            assert_close(ad.layer_norm(x, (20,), weight, None, eps), F.layer_norm(x, (20,), weight, None, eps))
        for order in (1, 2, math.inf, 3):
            assert_close(ad.vector_norm(x, order, -1), torch.linalg.vector_norm(x, order, -1))
        for dim in (-1, 0, 1):
            for keepdim in (True, False):
                assert_close(ad.vector_norm(x, 2, dim, keepdim), torch.linalg.vector_norm(x, 2, dim, keepdim))
        for of in (x, x.float(), x[0], x.T, x.expand(2, 5, 20)):
            assert_close(ad.softmax(of, -1), torch.softmax(of, -1))
            assert_close(ad.rms_norm(of), F.rms_norm(of, of.shape[-1:]))
        with pytest.raises(RuntimeError, match="normalized_shape"):
            ad.layer_norm(x, (19,))


@pytest.mark.parametrize("length", [17, 64, 100, 256, 5000])
def test_a_row_has_the_same_bits_in_any_company(length: int) -> None:
    x, weight = normal(37, length).float().requires_grad_(), normal(length).float()
    cotangent = normal(37, length).float()
    for op in (lambda x: ad.layer_norm(x, None, weight, weight), ad.softmax, lambda x: ad.normalize(x, dim=-1)):
        y = op(x)
        (slope,) = torch.autograd.grad(y, x, cotangent)
        for rows in (slice(0, 1), slice(3, 8), slice(20, 37)):
            alone = x[rows].detach().requires_grad_()
            z = op(alone)
            (of_alone,) = torch.autograd.grad(z, alone, cotangent[rows])
            assert torch.equal(z, y[rows])
            assert torch.equal(of_alone, slope[rows])
