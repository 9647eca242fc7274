"""laplacian of functions that write in place: the same as of nested autograd, whatever shares the memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import grad
from torch.testing import assert_close

import torchad_ext as ad
from torchad_ext._forward.fallback import _warned
from torchad_ext._forward.laplacian import _without_rules, forward_laplacian, laplacian

Function = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def _nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHAD_EXT_STRICT", raising=False)
    _warned.clear()
    _without_rules.clear()


def points() -> Tensor:
    return torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def total(f: Function) -> Function:
    """A number for each point."""
    return lambda x: f(x).reshape(len(x), -1).sum(-1)


def by_autograd(f: Function, x: Tensor) -> Tensor:
    x = x if x.requires_grad else x.detach().requires_grad_()
    (slope,) = grad(f(x).sum(), x, create_graph=True)
    return torch.stack([grad(slope[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(3)]).sum(0)


def own(x: Tensor) -> Tensor:
    """A tensor of its own memory, which no derivative needs: PyTorch allows writes to it."""
    return x.sin() * 1


def added(x: Tensor) -> Tensor:
    y = own(x)
    same = y
    y += x.cos()
    return same * x


def of_every_operator(x: Tensor) -> Tensor:
    y = own(x) + 3
    y -= x
    y = y * 1
    y *= x.exp()
    y = y * 1
    y /= 2 + x
    y = y * 1
    y **= 2
    return y


def of_a_column(x: Tensor) -> Tensor:
    y = own(x)
    y[:, 0].mul_(2)
    y[:, 1:] = y[:, 1:].exp()
    y[:, -1] += x.prod(-1)
    return y * x


def of_the_flat_view(x: Tensor) -> Tensor:
    y = own(x)
    flat = y.view(-1)
    flat[3] = 7.0
    flat[4:6].add_(x[1, :2])
    return y * y + flat.view(y.shape)


def of_views_of_views(x: Tensor) -> Tensor:
    y = own(x)
    column, turned = y[:, 0], y.t()
    y.mul_(x)
    turned[0].add_(x[:, 1])
    turned[1:][0] -= column
    return y + column.unsqueeze(-1) * turned.t()


def of_the_base_after_a_view(x: Tensor) -> Tensor:
    y = own(x)
    part = y.unflatten(1, (3, 1))[:, 1]
    y.zero_()
    y += x.exp()
    return part.square() * y


def of_a_new_tensor(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 0] = x[:, 0].sin() * x[:, 1]
    y[:, 1:] = x[:, :2].cos()
    return y * y


def of_an_empty_matrix(x: Tensor) -> Tensor:
    M = x.new_empty(4, 3, 3)
    for i in range(3):
        for j in range(3):
            M[:, i, j] = (x[:, i] * x[:, j]).sin()
    return torch.stack([m.diagonal().prod() + m.sum() for m in M])


def of_steps(x: Tensor) -> Tensor:
    h, steps = torch.zeros_like(x), torch.zeros(3, 4, 3).to(x)
    for i in range(3):
        h = torch.tanh(h + x[:, i : i + 1])
        steps[i] = h
    return steps.square().sum((0, 2))


def by_masks(x: Tensor) -> Tensor:
    y = own(x)
    y[y > 0.5] = 0.0
    y[x < 0] *= 2
    y[:, 1][x[:, 1] > 0] = 1.0
    y.masked_fill_(x > 1, 2.0)
    return y * y * x


def by_numbers(x: Tensor) -> Tensor:
    y = torch.zeros(4, 5).to(x)
    y[:, [0, 2, 4]] = x.exp()
    y[torch.tensor([0, 1]), torch.tensor([1, 3])] = x[:2, 0]
    return y * y


def by_functions_of_indices(x: Tensor) -> Tensor:
    y = torch.zeros(4, 3).to(x)
    y.scatter_(1, torch.tensor([[0, 2, 1]] * 4), x.sin())
    y.scatter_add_(1, torch.tensor([[0, 0, 1]] * 4), x.cos())
    y.scatter_(1, torch.tensor([[0]] * 4), 3.0)
    y.index_fill_(1, torch.tensor([1]), 4.0)
    y.index_add_(1, torch.tensor([1, 0, 1]), x.exp())
    y.index_copy_(1, torch.tensor([2]), x[:, :1] * x[:, 1:2])
    y.index_put_((torch.arange(4), torch.tensor([0, 1, 2, 0])), x[:, 0], accumulate=True)
    return y.square()


def by_copies(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y.copy_(x.exp())
    y.clamp_(0.2, 2.5)
    z = torch.zeros(4, 3).to(x)
    z.copy_(x[:, :1].sin())
    z.diagonal().fill_(2.0)
    z[1].fill_(x[1, 0])
    return y * z


def of_activations(x: Tensor) -> Tensor:
    y = x * 2
    z = y + 1
    F.relu(y, inplace=True)
    y = y + x
    F.leaky_relu(y, 0.1, True)
    y = nn.SiLU(inplace=True)(y + x)
    y = nn.ELU(inplace=True)(y + x)
    return z * z * F.dropout(y + x, 0.5, False, inplace=True)


def of_ternary_functions(x: Tensor) -> Tensor:
    y = own(x)
    y.addcmul_(x, x.cos(), value=2.0)
    y.lerp_(x, 0.3)
    y.sub_(x, alpha=2).neg_().exp_()
    return y


def before_it_is_asked_for(x: Tensor) -> Tensor:
    """Tangents of a linear layer are computed when somebody asks for them."""
    y = own(x)
    layer = F.linear(y, torch.ones(3, 3).to(x))
    y.mul_(x)
    return layer * y


def of_complex_numbers(x: Tensor) -> Tensor:
    z = torch.complex(x.sin(), x) * 1
    z.mul_(1j * x)
    z[:, 0].add_(x[:, 1])
    return z.abs().square() + z.real


WRITES = (
    added, of_every_operator, of_a_column, of_the_flat_view, of_views_of_views, of_the_base_after_a_view,
    of_a_new_tensor, of_an_empty_matrix, of_steps, by_masks, by_numbers, by_functions_of_indices, by_copies,
    of_activations, of_ternary_functions, before_it_is_asked_for, of_complex_numbers,
)  # fmt: skip


def assert_exact(f: Function, x: Tensor) -> None:
    """Value, Laplacian and its gradient, for training and for evaluation."""
    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours, theirs = laplacian(f, leaf), by_autograd(f, other)
    assert_close(ours, theirs)
    for a, b in zip(grad(ours.square().sum(), leaf), grad(theirs.square().sum(), other), strict=True):
        assert_close(a, b)
    with torch.no_grad():
        result = forward_laplacian(f, x)
    assert_close(result.value, f(x.clone()).detach())
    assert_close(result.laplacian, theirs.detach())


@pytest.mark.filterwarnings("error:torchad_ext.laplacian")
@pytest.mark.parametrize("f", WRITES, ids=lambda f: f.__name__)
def test_writes_are_followed(f: Function) -> None:
    assert_exact(total(f), points())


def beside_a_detached_tensor(x: Tensor) -> Tensor:
    y = own(x)
    constant = y.detach()
    y.mul_(2)
    return y * constant


def beside_a_plain_view(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    column = y[:, 0]
    y[:, 0] = x[:, 0].sin()
    return y.square() + column.unsqueeze(-1) * x


def through_a_plain_view(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y.view(-1)[2] = x[0, 2] ** 2
    return y * x


def under_no_grad(x: Tensor) -> Tensor:
    y = own(x)
    with torch.no_grad():
        y.mul_(2)
    return y * x


def of_a_shape(x: Tensor) -> Tensor:
    y = own(x)
    y.unsqueeze_(0)
    return y[0] * x


def of_random_numbers(x: Tensor) -> Tensor:
    y = own(x)
    y.bernoulli_(0.0)
    return y + x**3


LIBRARY = torch.library.Library("test_writes", "FRAGMENT")
LIBRARY.define("rows(Tensor(a) x) -> Tensor(a)")
LIBRARY.impl("rows", lambda x: x[:2], "CompositeImplicitAutograd")
ad.register_rule(torch.ops.test_writes.rows, "linear")


@torch.library.custom_op("test_writes::double", mutates_args={"x"})
def double(x: Tensor) -> None:
    x.mul_(2)


def by_an_operator(x: Tensor) -> Tensor:
    y = torch.zeros(3).to(x)
    torch.ops.test_writes.double(y + x.detach()[0])
    z = x.detach() * 1
    torch.ops.test_writes.double(z)
    return z * x.square()


def then_a_transform(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 0] = x[:, 0].sin()
    squares: Tensor = torch.func.vmap(torch.square)(y)
    return squares * x


def through_strides(x: Tensor) -> Tensor:
    y = own(x)
    y.as_strided((len(x),), (3,), 1).mul_(3)
    return y.square()


def beside_strides(x: Tensor) -> Tensor:
    y = own(x)
    column = y.as_strided((len(x),), (3,), 1)
    y[:, 1].mul_(x[:, 0])
    return y.square() + column.unsqueeze(-1) ** 3


def through_a_view_with_a_rule_of_ones_own(x: Tensor) -> Tensor:
    y = own(x)
    torch.ops.test_writes.rows(y).mul_(2)
    return y * x


FALL_BACK = (
    beside_a_detached_tensor, beside_a_plain_view, through_a_plain_view, under_no_grad, of_a_shape, of_random_numbers,
    then_a_transform, through_strides, beside_strides, through_a_view_with_a_rule_of_ones_own,
)  # fmt: skip


@pytest.mark.parametrize("f", FALL_BACK, ids=lambda f: f.__name__)
def test_what_cannot_be_followed_falls_back(f: Function) -> None:
    with pytest.warns(UserWarning, match="torchad_ext.laplacian cannot follow"):
        assert_exact(total(f), points())


OF_ONE_NUMBER: dict[str, Function] = {
    "prod": lambda y: y.prod().reshape(1),
    "prod of a dimension": lambda y: y.prod(0, keepdim=True),
    "cumprod": lambda y: y.cumprod(0),
    "logcumsumexp": lambda y: y.logcumsumexp(0),
    "det": lambda y: torch.linalg.det(y.reshape(1, 1, 1)),
    "matrix_power": lambda y: torch.linalg.matrix_power(y.reshape(1, 1), 1)[0],
    "diff": lambda y: torch.diff(y, n=0),
}


@pytest.mark.filterwarnings("ignore:torchad_ext.*cannot follow")
@pytest.mark.parametrize("name", OF_ONE_NUMBER)
def test_results_are_in_memory_of_their_own(name: str) -> None:
    """A product of one number, say, is no view of it."""
    f, zero = OF_ONE_NUMBER[name], torch.zeros(1, dtype=torch.float64)

    def beside_x(x: Tensor) -> Tensor:
        y = x * 1
        f(y).add_(1)
        return (y**3).sum()

    def of_a_constant(x: Tensor) -> Tensor:
        constant = zero.clone()
        f(constant).add_(x)
        return ((x + constant) ** 3).sum()

    for g in (beside_x, of_a_constant):
        for at in (0.0, 2.0):
            x = torch.full((1,), at, dtype=torch.float64)
            for result in (
                ad.laplacian(g, x), ad.hessian(g, x)[0, 0], ad.hessian_diagonal(g, x), ad.partials(g, x, [(0, 0)])[0],
            ):  # fmt: skip
                assert_close(result.squeeze(), 6 * x[0])


def test_custom_operators_write_once() -> None:
    assert_exact(total(by_an_operator), points())


REFUSED: dict[str, tuple[Function, str]] = {
    "the points": (lambda x: x.add_(1), "a leaf Variable that requires grad"),
    "a part of the points": (lambda x: x[:, 0].mul_(2), "a leaf Variable that requires grad"),
    "a parameter": (lambda x: nn.Parameter(torch.zeros(4, 3).to(x)).copy_(x), "a leaf Variable that requires grad"),
    "an expanded tensor": (lambda x: x.sin()[:, :1].expand(4, 3).add_(1), "more than one element"),
    "out": (lambda x: torch.add(x.sin(), x, out=torch.zeros(4, 3).to(x)), "out=... arguments"),
    "a larger shape": (lambda x: own(x)[:, :1].add_(x), "match|broadcast"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_pytorch_refuses_is_refused(what: str) -> None:
    f, message = REFUSED[what]
    x = points()
    warnings.simplefilter("ignore")
    with pytest.raises(RuntimeError, match=message):
        laplacian(f, x)
    assert torch.equal(x, points())


@pytest.mark.filterwarnings("error:torchad_ext.laplacian")
def test_of_two_numbers_for_one_place_one_is_written_with_its_derivatives() -> None:
    """PyTorch's gradient goes to both."""

    def f(x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, [1, 1]] = (x**2)[:, :1].expand(4, 2)
        return (y * x).sum(-1)

    x = points()
    assert_close(laplacian(f, x), 2 * x[:, 1])


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(4, 3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.last[:] = x.sin()
        return (self.last * x).sum(-1)


@pytest.mark.filterwarnings("error:torchad_ext.laplacian")
def test_tensors_from_outside_are_plain_afterwards() -> None:
    module, x = Buffered(), points()
    with torch.no_grad():
        y = laplacian(module, x)
    assert type(module.last) is Tensor and not module.last.requires_grad
    assert_close(module.last, x.sin())
    assert_close(y, by_autograd(Buffered(), x).detach())


def test_tensors_from_outside_are_as_before_where_f_is_run_again() -> None:
    total_of, x = torch.zeros(4, 3, dtype=torch.float64), points()

    def f(x: Tensor) -> Tensor:
        seen = total_of.clone()
        total_of[:] = x.sin()
        with torch.no_grad():
            scale = x.cos()
        return (seen + scale * x**2).sum(-1)

    with pytest.warns(UserWarning, match="no_grad"):
        y = laplacian(f, x)
    assert_close(y, (2 * x.cos()).sum(-1))
    assert type(total_of) is Tensor


@pytest.mark.parametrize(
    "asked",
    [
        lambda x: x.requires_grad_(),
        lambda x: (2 * x).requires_grad_(requires_grad=True),
        lambda x: Tensor.requires_grad_(x, True),
    ],
    ids=["of the points", "by name", "of the class"],
)
def test_asking_for_a_gradient_is_no_write(asked: Function) -> None:
    def f(x: Tensor) -> Tensor:
        return (asked(x).sin() * x).sum(-1)

    expected = by_autograd(f, points())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(laplacian(f, points()), expected)


@pytest.mark.filterwarnings("ignore:torchad_ext.laplacian cannot follow")
@pytest.mark.parametrize("asked", [lambda y: y.requires_grad_(False), lambda y: y.requires_grad_(requires_grad=False)])
def test_asking_for_no_gradient_is_the_error_that_pytorch_has(asked: Function) -> None:
    with pytest.raises(RuntimeError, match="can only change requires_grad flags of leaf variables"):
        laplacian(lambda x: asked(2 * x).sum(-1), points())
