"""Derivatives of norms and distances at 0: 0 by every tool, and right where a power of a norm is smooth."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

import torchad_ext as ad

D = torch.float64
AT = torch.tensor([0.5, -1.0, 2.0], dtype=D)
Function = Callable[[Tensor], Tensor]

# |v|, v [3].
NORMS: dict[str, Function] = {
    "norm": torch.norm,
    "method": lambda v: v.norm(p=2),
    "method of a dimension": lambda v: v[None].norm(dim=-1)[0],
    "norm, kept": lambda v: torch.norm(input=v, dim=0, keepdim=True).squeeze(),
    "Frobenius": lambda v: torch.norm(v[None], "fro"),
    "linalg.norm": torch.linalg.norm,
    "linalg.norm of a matrix": lambda v: torch.linalg.norm(v.unsqueeze(0)),
    "linalg.matrix_norm": lambda v: torch.linalg.matrix_norm(v[:, None]),
    "linalg.vector_norm": lambda v: torch.linalg.vector_norm(v, dim=(0,)),
    "aten": lambda v: torch.ops.aten.linalg_vector_norm(v),
    "hypot": lambda v: torch.hypot(torch.hypot(v[0], v[1]), v[2]),
    "cdist": lambda v: torch.cdist(v[None], torch.zeros(2, 3, dtype=D))[0, 1],
    "pdist": lambda v: F.pdist(torch.stack([v, torch.zeros(3, dtype=D)])).squeeze(),
    "pairwise_distance": lambda v: F.pairwise_distance(v, torch.zeros(3, dtype=D), eps=0.0),
    "PairwiseDistance": lambda v: torch.nn.PairwiseDistance(eps=0.0)(v[None], torch.zeros(1, 3, dtype=D))[0],
    "dist": lambda v: torch.dist(v, torch.zeros(3, dtype=D)),
    "std": lambda v: torch.cat([v, -v]).std(correction=4),
    "complex": lambda v: torch.complex(v[0], v[1]).abs().hypot(v[2]),
    "our vector_norm": lambda v: ad.vector_norm(v, dim=-1),
    "our vector_norm of all": ad.vector_norm,
    "our vector_norm along a dimension, kept": lambda v: ad.vector_norm(v[:, None], dim=0, keepdim=True).squeeze(),
    "our distance": lambda v: ad.distance(v[None], y=torch.zeros(3, dtype=D))[0],
    "complex norm": lambda v: torch.linalg.vector_norm(torch.complex(v, torch.zeros_like(v))),
}
# |v|² by a norm r.
SQUARES: dict[str, Callable[[Function, Tensor], Tensor]] = {
    "** 2": lambda r, v: r(v) ** 2,
    "** 2.0": lambda r, v: r(v) ** 2.0,
    "square": lambda r, v: r(v).square(),
    "pow": lambda r, v: torch.pow(r(v), 2),
    "square by name": lambda r, v: torch.square(input=r(v)),
    "float_power": lambda r, v: torch.float_power(r(v), exponent=2),
    "times itself": lambda r, v: (y := r(v)) * y,
    "scaled": lambda r, v: (r(v) / 3) ** 2 * 9,
    "scaled by name": lambda r, v: torch.mul(r(v), other=3.0) ** 2 / 9,
    "scaled and negated by name": lambda r, v: torch.mul(other=torch.neg(input=r(v)), input=torch.tensor(3.0)) ** 2 / 9,
    "negated and scaled": lambda r, v: (2 * -r(v)).square() / 4,
    "in another type": lambda r, v: (r(v).float() ** 2).double(),
    "as a complex number": lambda r, v: (r(v).to(torch.complex128) ** 2).real,
    "in a shape": lambda r, v: (r(v)[None, None].expand(2, 1)[1] ** 2).sum(),
}


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("norm", NORMS)
def test_a_gaussian_of_a_norm_at_its_centre(norm: str, square: str) -> None:
    """exp(-|x - a|²) has the value 1, the gradient 0 and the Hessian -2 I at a, by every tool."""
    f = lambda x: (-SQUARES[square](NORMS[norm], x - AT)).exp()  # noqa: E731
    eye = torch.eye(3, dtype=D)
    value, jacobian, laplacian = ad.forward_laplacian(f, AT)
    assert_close(value, torch.ones((), dtype=D))
    assert_close(jacobian, torch.zeros(3, dtype=D))
    assert_close(laplacian, torch.full((), -6.0, dtype=D))
    for options in ({}, {"sparsity": "auto"}, {"strategy": "forward-over-reverse"}, {"chunk_size": 1}):
        assert_close(ad.hessian(f, AT, **options), -2 * eye)
    assert_close(ad.hvp(f, AT, eye[0]), -2 * eye[0])
    assert_close(ad.hessian_diagonal(f, AT), torch.full((3,), -2.0, dtype=D))
    assert_close(ad.jacobian(f, AT), torch.zeros(3, dtype=D))


@pytest.mark.parametrize("norm", [ad.vector_norm, torch.linalg.vector_norm])
def test_a_square_is_taken_in_the_dtype_of_the_norm(norm: Callable[..., Tensor]) -> None:
    x = torch.tensor([300.0, 400.0], dtype=torch.float16)  # whose squares are beyond it
    value, jacobian, laplacian = ad.forward_laplacian(lambda x: norm(x, dim=-1, dtype=torch.float32) ** 2, x)
    assert (float(value), jacobian.tolist(), float(laplacian)) == (250_000.0, [600.0, 800.0], 4.0)


@pytest.mark.parametrize("norm", NORMS)
def test_derivatives_at_zero_are_zero(norm: str) -> None:
    f, zero = lambda x: NORMS[norm](x - AT), torch.zeros(3, 3, dtype=D)
    assert_close(ad.jacobian(f, AT), zero[0])
    assert_close(ad.jacobian(f, AT, strategy="forward"), zero[0])
    for options in ({}, {"sparsity": "auto"}, {"strategy": "forward-over-reverse"}):
        assert_close(ad.hessian(f, AT, **options), zero)
    assert_close(ad.hvp(f, AT, AT), zero[0])
    assert_close(ad.hessian_diagonal(f, AT), zero[0])
    assert_close(ad.laplacian(f, AT), zero[0, 0])


@pytest.mark.filterwarnings("ignore:Anomaly")
@pytest.mark.parametrize("norm", [norm for norm in NORMS if norm != "std"])
def test_no_step_of_a_derivative_at_zero_is_nan(norm: str) -> None:
    """So none is what anomaly detection reports; it does for the derivatives that PyTorch has of ``std``."""
    f = lambda x: NORMS[norm](x - AT).sin()  # noqa: E731
    with torch.autograd.detect_anomaly():
        assert_close(ad.hessian(f, AT), torch.zeros(3, 3, dtype=D))


@pytest.mark.parametrize("norm", NORMS)
def test_elsewhere_derivatives_are_those_of_the_root_of_a_sum(norm: str) -> None:
    x = torch.tensor([0.3, 1.2, -0.4], dtype=D)
    f, root = NORMS[norm], lambda v: v.square().sum().sqrt()
    assert_close(f(x), root(x))
    assert_close(ad.hessian(f, x), torch.func.hessian(root)(x))
    assert_close(ad.laplacian(f, x), torch.func.hessian(root)(x).trace())
    third = lambda g: torch.func.jacrev(lambda x: ad.hvp(g, x, AT))(x)  # noqa: E731
    assert_close(third(f), third(root))


@pytest.mark.parametrize("times", [-1, 0, 1, 2, 3])
@pytest.mark.parametrize("order", [1.5, 2, 2.5, 3, 4, 6])
def test_the_power_of_a_norm_of_its_order(order: float, times: int) -> None:
    f = lambda x: torch.linalg.vector_norm(x, order) ** (times * order)  # noqa: E731
    expected = lambda x: (x.abs() ** order).sum() ** times  # noqa: E731
    x = torch.tensor([0.3, 1.2, -0.4], dtype=D)
    H = torch.func.hessian(expected)(x)
    assert_close(ad.hessian(f, x), H)
    value, _, laplacian = ad.forward_laplacian(f, x)
    assert_close((value, laplacian), (expected(x), H.trace()))
    if order >= 2 and times * order > 2:
        zero = torch.zeros(3, dtype=D)
        assert_close(ad.hessian(f, zero), zero.diag())
        assert_close(ad.laplacian(f, zero), zero.sum())


@pytest.mark.parametrize("unit", [1, 0.6 + 0.8j])
@pytest.mark.parametrize("order", [1, 1.5, 2, 3, 4])
def test_a_norm_of_norms(order: float, unit: complex) -> None:
    f = lambda x: torch.linalg.vector_norm(unit * x.outer(x.sin()), order, dim=-1).norm()  # noqa: E731
    expected = lambda x: (x.outer(x.sin()).abs() ** order).sum(-1).pow(2 / order).sum().sqrt()  # noqa: E731
    x = torch.tensor([0.3, 1.2, -0.4], dtype=D)
    H = torch.func.hessian(expected)(x)
    assert_close(ad.hessian(f, x), H)
    assert_close(ad.laplacian(f, x), H.trace())


OTHERS: dict[str, Function] = {
    "normalize": lambda v: F.normalize(v, dim=0).sum(),
    "cosine_similarity": lambda v: F.cosine_similarity(v, torch.ones_like(v), dim=0),
    "renorm": lambda v: torch.renorm(v[None], 2, 0, 1.0).sum(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_divides_by_a_norm_is_linear_at_zero(name: str) -> None:
    f, x = OTHERS[name], torch.zeros(3, dtype=D)
    assert_close(ad.jacobian(f, x), torch.func.grad(f)(x))
    assert_close(ad.hessian(f, x), torch.zeros(3, 3, dtype=D))
    assert_close(ad.laplacian(f, x), torch.zeros((), dtype=D))


def test_batches_of_distances() -> None:
    """Radial functions of distances, some of which are 0, under vmap and in training."""
    centres = torch.stack([AT, -AT])
    f = lambda x: (-(torch.cdist(x, centres) ** 2)).exp().sum(-1)  # noqa: E731
    exact = lambda x: (-(x.unsqueeze(-2) - centres).square().sum(-1)).exp().sum(-1)  # noqa: E731
    x = torch.stack([AT, torch.zeros(3, dtype=D)])
    expected = torch.stack([torch.func.hessian(lambda p: exact(p[None])[0])(p) for p in x])
    assert_close(ad.laplacian(f, x), expected.diagonal(0, 1, 2).sum(-1))
    assert_close(torch.func.vmap(lambda p: ad.hessian(lambda p: f(p[None])[0], p))(x), expected)
    assert_close(ad.hessian_diagonal(f, x, batched=True), expected.diagonal(0, 1, 2))


def test_a_root_that_was_written_to_is_one_no_longer() -> None:
    def f(x: Tensor) -> Tensor:
        y = x.norm(dim=-1, keepdim=True)
        y += 1
        return (y**2).sum()

    x = torch.tensor([3.0, 4.0], dtype=D)
    assert_close(ad.hessian(f, x), torch.func.hessian(lambda x: (x.square().sum().sqrt() + 1) ** 2)(x))


def without_gradient(function: Function) -> Function:
    def f(x: Tensor) -> Tensor:
        with torch.no_grad():
            y = function(x)
        return (y**2 * x).sum()

    return f


def scaled_without_gradient(x: Tensor) -> Tensor:
    y = x.norm(dim=-1, keepdim=True)
    with torch.no_grad():
        y = 2 * y
    return (y**2 * x).sum()


def detached(x: Tensor) -> Tensor:
    return (x.norm(dim=-1, keepdim=True).detach_() ** 2 * x).sum()


def written(x: Tensor) -> Tensor:
    y = x.abs() * 1
    y -= x.sin()
    y *= 2
    return y.square().sum()


def with_its_square_written(x: Tensor) -> Tensor:
    y = x.norm(dim=-1, keepdim=True)
    square, other = y**2, y**2
    square += 1
    return (square * other * y**2 * x).sum()


def differentiated_in(x: Tensor) -> Tensor:
    """The force of a potential in a distance."""
    y = x.norm(dim=-1, keepdim=True)
    (force,) = torch.autograd.grad((y**2 + (-y).exp()).sum(), y, create_graph=True)
    return force.pow(3).sum()


def differentiated_in_by_a_jacobian(x: Tensor) -> Tensor:
    y = x.abs()
    return torch.autograd.functional.jacobian(lambda y: torch.hypot(y, 2 * y) ** 2, y, create_graph=True).pow(3).sum()


NO_LONGER: dict[str, Function] = {
    "a power": lambda x: (x.norm() ** 3) ** 2,
    "a power that varies": lambda x: (x.abs() ** (2 + x)).square().sum(),
    "a sum": lambda x: (x.norm() + 1) ** 2 + (x.norm() - x).square().sum(),
    "a negative norm of order 3": lambda x: (-torch.linalg.vector_norm(x, 3)) ** 3 * x.sum(),
    "an integer": lambda x: ((3 * x.norm(dim=-1, keepdim=True)).to(torch.int64) ** 2 * x.sin()).sum(),
    "of the type of an integer": lambda x: (x.norm().type_as(torch.tensor(0)) ** 2 * x.sin()).sum(),
    "the bits of a size": lambda x: (x.abs().view(torch.int16)[::4] ** 2 * x.sin()).sum(),
    "a size without gradient": without_gradient(torch.abs),
    "a deviation without gradient": without_gradient(lambda x: x.std(-1, keepdim=True)),
    "hypot without gradient": without_gradient(lambda x: torch.hypot(x, x.cos())),
    **{
        f.__name__: f
        for f in (
            scaled_without_gradient,
            detached,
            written,
            with_its_square_written,
            differentiated_in,
            differentiated_in_by_a_jacobian,
        )
    },
}


@pytest.mark.parametrize("name", NO_LONGER)
def test_what_is_a_root_no_longer_is_not_taken_for_one(name: str) -> None:
    f = NO_LONGER[name]
    x = torch.tensor([0.3, 1.2, -0.4], dtype=D)
    H = torch.autograd.functional.hessian(f, x)
    assert_close(ad.hessian(f, x), H)
    assert_close(ad.hessian_diagonal(f, x), H.diagonal())
    assert_close(ad.hvp(f, x, AT), H @ AT)
    assert_close(ad.laplacian(f, x), H.trace())
    assert_close(ad.partials(f, x, [(0, 2)])[0], H[0, 2])


@pytest.mark.parametrize("read", ["of a size", "of a product", "of a product, with what varies"])
def test_a_power_of_a_root_of_what_was_written_to_since(read: str) -> None:
    def f(x: Tensor) -> Tensor:
        z, c = x * 1, torch.ones_like(x).mul_(1)
        y = z.abs() * c
        (z if read == "of a size" else c).mul_(x if read.endswith("varies") else 3)
        return (y * y * x).sum()

    x = torch.tensor([0.3, 1.2, -0.4], dtype=D)
    assert_close(ad.forward_laplacian(f, x).value, f(x))
    assert_close(ad.laplacian(f, x), 6 * x.sum())


@pytest.mark.parametrize("norm", [lambda x: x.norm(dim=-1), torch.abs, lambda x: x.std(-1)])
def test_a_hook_on_a_root_acts(norm: Function) -> None:
    """A power of it passes through it then, as in PyTorch."""

    def hooked(hook: Callable[[Tensor], Tensor | None]) -> Function:
        def f(x: Tensor) -> Tensor:
            y = norm(x)
            y.register_hook(hook)
            return (y**2 * x.sin().sum(-1)).sum()

        return f

    x = torch.tensor([[0.3, 1.2, -0.4]], dtype=D, requires_grad=True)
    tripled = hooked(lambda grad: 3 * grad)
    assert_close(ad.jacobian(tripled, x), torch.autograd.grad(tripled(x), x)[0])
    seen: list[Tensor] = []
    H = torch.autograd.functional.hessian(hooked(lambda grad: None), x)
    assert_close(ad.hessian(hooked(seen.append), x), H)
    assert seen and seen[0].shape == norm(x).shape
    assert_close(ad.hvp(hooked(seen.append), x, torch.ones_like(x)), H.sum((2, 3)))


def test_a_power_of_doubles() -> None:
    x = torch.tensor([3.0, 4.0])
    dtypes = []

    def f(x: Tensor) -> Tensor:
        powers = torch.float_power(x.norm(), 2), x.norm() ** 2
        dtypes.append([power.dtype for power in powers])
        return (powers[0] - powers[1] / 2).float()

    assert_close(ad.hessian(f, x), torch.eye(2))
    assert_close(ad.laplacian(f, x), torch.tensor(2.0))
    assert all(found == [torch.float64, torch.float32] for found in dtypes)


def test_a_power_of_a_constant_is_written_where_it_was_asked_for() -> None:
    def f(x: Tensor) -> Tensor:
        y, square = AT.norm(), torch.empty((), dtype=D)
        torch.mul(y, y, out=square)
        return square * x.square().sum()

    assert_close(ad.hessian(f, AT), 2 * AT.square().sum() * torch.eye(3, dtype=D))


def test_the_gradient_of_a_root_that_is_retained() -> None:
    def f(x: Tensor) -> Tensor:
        y = x.norm(dim=-1)
        y.retain_grad()
        norms.append(y)
        return (y**2).sum()

    norms: list[Tensor] = []
    x = torch.tensor([[0.3, 1.2, -0.4]], dtype=D)
    assert_close(ad.hvp(f, x, torch.ones_like(x)), 2 * torch.ones_like(x))
    assert norms[-1].grad is not None
