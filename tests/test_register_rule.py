"""The table of operations, and ``register_rule``: one rule of a user serves every tool that follows operations."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from selection import every_other
from torch import Tensor
from torch.testing import assert_close

import torchad_ext as ad
from torchad_ext import _linearity
from torchad_ext._forward.fallback import _warned
from torchad_ext._forward.laplacian import _without_rules
from torchad_ext._hessian.curvature import Curvature, UnknownOperation

pytestmark = pytest.mark.usefixtures("kernels_when_long")

SECTIONS = {name: value for name, value in vars(_linearity).items() if isinstance(value, frozenset)}
D = torch.float64
M = torch.tensor([[0.0, 2.0, 0.0, 0.0], [0.0, 0.0, -1.0, 3.0], [0.5, 0.0, 0.0, 0.0]], dtype=D)
B = torch.randn(2, 3, dtype=D, generator=torch.Generator().manual_seed(2))


def operator(name: str, plain: Callable[..., Tensor]) -> Any:
    """A custom operator with the derivatives of a function in plain PyTorch, any number of times."""
    op = torch.library.custom_op(f"test_register_rule::{name}", plain, mutates_args=())

    def pullback(x: Tensor, y: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """By PyTorch's autograd on the plain function, which traces through it again for a derivative of this one."""
        gradients = torch.func.vjp(plain, x, y)[1](grad)
        return gradients[0], gradients[1]

    op.register_autograd(
        lambda ctx, grad: pullback(*ctx.saved_tensors, grad),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    )

    def batched(info: Any, in_dims: tuple[int | None, ...], *xs: Tensor) -> tuple[Tensor, int]:
        """The functions here take any dimensions before the last."""
        rows = [
            x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(xs, in_dims, strict=True)
        ]
        return op(*rows), 0

    op.register_vmap(batched)
    return op


def _gated(x: Tensor, y: Tensor) -> Tensor:
    return x.sin() * y.exp()


def _turned(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x.flip(-1), y[..., :1]], -1)


def _mixed(x: Tensor, y: Tensor) -> Tensor:
    return x @ M.mT.to(x) + 2 * y[..., :3]


def _paired(x: Tensor, y: Tensor) -> Tensor:
    return x * y.roll(1, -1)


def _counted(x: Tensor, y: Tensor) -> Tensor:
    return torch.ceil(x + y)


PLAIN: dict[str, tuple[Any, Callable[..., Tensor]]] = {
    "elementwise": ("elementwise", _gated),
    "moves": ("moves", _turned),
    "linear": ("linear", _mixed),
    "multilinear": ("multilinear", _paired),
    "constant": ("constant", _counted),
    "composition": (lambda x, y: x.sin() * y.exp(), _gated),
}
OPERATORS = {name: operator(name, plain) for name, (_, plain) in PLAIN.items()}
CALLS: dict[str, Callable[[Callable[..., Tensor]], Callable[[Tensor], Tensor]]] = {
    "the first varies": lambda op: lambda x: (op(x.sin(), torch.ones_like(x)) ** 3).sum(-1),
    "the second varies": lambda op: lambda x: (op(torch.full_like(x, 0.3), x.sin()) ** 3).sum(-1),
    "both vary": lambda op: lambda x: (op(x.sin(), x.cos()) ** 3).sum(-1),
    "with names": lambda op: lambda x: (op(y=x.exp(), x=x.sin()) ** 3).sum(-1),
}
POINTS = torch.randn(5, 4, dtype=D, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_linearity, "_registered", {})
    _without_rules.clear()
    for name, (rule, _) in PLAIN.items():
        ad.register_rule(OPERATORS[name], rule)


def hessians(f: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([torch.autograd.functional.hessian(f, x) for x in POINTS])


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", PLAIN)
class TestEachTool:
    @pytest.mark.usefixtures("registered")
    def test_laplacian(self, name: str, call: str) -> None:
        """In the sweep: nothing warns."""
        H = hessians(CALLS[call](PLAIN[name][1]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_close(ad.laplacian(CALLS[call](OPERATORS[name]), POINTS), H.diagonal(dim1=1, dim2=2).sum(-1))

    @pytest.mark.usefixtures("registered")
    def test_laplacian_with_coefficients_of_both_signs(self, name: str, call: str) -> None:
        C = torch.tensor([[1.0, 0.5, 0, 0], [0.5, -2, 0, 0], [0, 0, 0, 0.2], [0, 0, 0.2, 1]], dtype=D)
        expected = (hessians(CALLS[call](PLAIN[name][1])) * C).sum((1, 2))
        assert_close(ad.laplacian(CALLS[call](OPERATORS[name]), POINTS, C), expected)

    @pytest.mark.usefixtures("registered")
    def test_hessian_sparsity(self, name: str, call: str) -> None:
        """No entry is missed, and what the function in plain PyTorch leaves out the operator does too."""
        f, plain = CALLS[call](OPERATORS[name]), CALLS[call](PLAIN[name][1])
        pattern = ad.hessian_sparsity(f, POINTS[0]).to_dense()
        assert not (hessians(plain)[0].ne(0) & ~pattern).any()
        if name != "multilinear" or "varies" in call:
            assert torch.equal(pattern, ad.hessian_sparsity(plain, POINTS[0]).to_dense())

    @pytest.mark.usefixtures("registered")
    def test_hessian_diagonal_of_a_batch(self, name: str, call: str) -> None:
        f = CALLS[call](OPERATORS[name])
        assert_close(
            ad.hessian_diagonal(f, POINTS, batched=True), hessians(CALLS[call](PLAIN[name][1])).diagonal(0, 1, 2)
        )


def _third(f: Callable[[Tensor], Tensor]) -> Tensor:
    """All third derivatives of a function at each point, by PyTorch."""

    def gradient(x: Tensor) -> Tensor:
        return torch.autograd.functional.jacobian(f, x, create_graph=True)  # type: ignore[no-any-return]

    def second(x: Tensor) -> Tensor:
        return torch.autograd.functional.jacobian(gradient, x, create_graph=True)  # type: ignore[no-any-return]

    return torch.stack([torch.autograd.functional.jacobian(second, x) for x in POINTS])


def _fourth(f: Callable[[Tensor], Tensor]) -> Tensor:
    """The bilaplacian at each point, by PyTorch."""

    def laplacian(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.autograd.functional.hessian(f, x, create_graph=True).diagonal().sum()

    with torch.enable_grad():
        return torch.stack([laplacian(laplacian(f))(x.requires_grad_()).detach() for x in POINTS.clone().unbind()])


# Of a function of points; what the tool gives, and the same by PyTorch.
EXPECTED: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "forward_laplacian": (
        lambda f: ad.forward_laplacian(f, POINTS)[1:],
        lambda f: (torch.func.vmap(torch.func.grad(f))(POINTS), hessians(f).diagonal(0, 1, 2).sum(-1)),
    ),
    "partials": (
        lambda f: ad.partials(f, POINTS, ["", "a", "ab", "abd"], names="abcd"),
        lambda f: (f(POINTS), torch.func.vmap(torch.func.grad(f))(POINTS)[:, 0], hessians(f)[:, 0, 1],
                   _third(f)[:, 0, 1, 3]),
    ),
    "taylor": (
        lambda f: ad.taylor(f, POINTS, POINTS.cos(), 3),
        lambda f: (
            f(POINTS),
            (torch.func.vmap(torch.func.grad(f))(POINTS) * POINTS.cos()).sum(-1),
            torch.einsum("bi,bij,bj->b", POINTS.cos(), hessians(f), POINTS.cos()) / 2,
            torch.einsum("bi,bj,bk,bijk->b", *[POINTS.cos()] * 3, _third(f)) / 6,
        ),
    ),
    "bilaplacian": (lambda f: ad.bilaplacian(f, POINTS), _fourth),
    "hvp": (
        lambda f: ad.hvp(lambda x: f(x).sum(), POINTS, POINTS.cos()),
        lambda f: torch.einsum("bij,bj->bi", hessians(f), POINTS.cos()),
    ),
    "hessian": (
        lambda f: torch.stack([ad.hessian(f, x) for x in POINTS]),
        hessians,
    ),
    "hessian by its pattern": (
        lambda f: torch.stack([ad.hessian(f, x, sparsity="auto", layout=torch.sparse_coo).to_dense() for x in POINTS]),
        hessians,
    ),
    "hessian_diagonal": (
        lambda f: ad.hessian_diagonal(lambda x: f(x).sum(), POINTS),
        lambda f: hessians(f).diagonal(0, 1, 2),
    ),
    "jacobian": (
        lambda f: ad.jacobian(lambda x: f(x).sum(), POINTS),
        lambda f: torch.func.vmap(torch.func.grad(f))(POINTS),
    ),
}  # fmt: skip


@pytest.mark.usefixtures("registered")
@pytest.mark.filterwarnings("ignore:torchad_ext")
@pytest.mark.parametrize(("name", "call", "tool"), every_other(PLAIN, CALLS, EXPECTED))
def test_every_other_tool(name: str, call: str, tool: str) -> None:
    ours, by_pytorch = EXPECTED[tool]
    assert_close(ours(CALLS[call](OPERATORS[name])), by_pytorch(CALLS[call](PLAIN[name][1])), rtol=1e-9, atol=1e-9)


def _gathered(x: Tensor, y: Tensor, index: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(chosen, x.index_select(-1, index), y)


def _summed(xs: list[Tensor], shift: int) -> Tensor:
    return sum((x.roll(shift, -1) for x in xs[1:]), xs[0].clone())


INDEX, CHOSEN = torch.tensor([2, 0, 0, 3]), torch.tensor([True, False, True, True])
# Operators with other arguments than tensors of floating point: what is like them, a rule, and a call.
OTHERS: dict[str, tuple[str, Any, Callable[..., Tensor], Callable[..., Callable[[Tensor], Tensor]]]] = {
    f"{kind}, with integers and truth values": (
        "(Tensor x, Tensor y, Tensor index, Tensor chosen) -> Tensor",
        kind,
        _gathered,
        lambda op: lambda x: (op(x.sin(), x.cos(), INDEX, CHOSEN) ** 3).sum(-1),
    )
    for kind in ("moves", "linear", None)
} | {
    f"{kind}, with a list": (
        "(Tensor[] xs, int shift) -> Tensor",
        kind,
        _summed,
        lambda op: lambda x: (op([x.sin(), x, x.exp()], 1) ** 3).sum(-1),
    )
    for kind in ("linear", None)
}  # fmt: skip


def _operator_of_others(name: str, schema: str, plain: Callable[..., Tensor]) -> Any:
    op = torch.library.custom_op(f"test_register_rule::{name}", plain, mutates_args=(), schema=schema)

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        leaves, ctx.structure = torch.utils._pytree.tree_flatten(inputs)
        ctx.places = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
        ctx.rest = [None if isinstance(x, Tensor) else x for x in leaves]
        ctx.save_for_backward(*(leaves[i] for i in ctx.places))

    def backward(ctx: Any, grad: Tensor) -> Any:
        leaves = list(ctx.rest)
        for i, x in zip(ctx.places, ctx.saved_tensors, strict=True):
            leaves[i] = x
        moving = [i for i in ctx.places if leaves[i].is_floating_point()]

        def of(*xs: Tensor) -> Tensor:
            given = list(leaves)
            for i, x in zip(moving, xs, strict=True):
                given[i] = x
            return plain(*torch.utils._pytree.tree_unflatten(given, ctx.structure))

        found = dict(zip(moving, torch.func.vjp(of, *(leaves[i] for i in moving))[1](grad), strict=True))
        gradients = [found.get(i) for i in range(len(leaves))]
        return torch.utils._pytree.tree_unflatten(gradients, ctx.structure)

    op.register_autograd(backward, setup_context=setup_context)
    return op


OPERATORS_OF_OTHERS = {
    name: _operator_of_others(f"other{i}", schema, plain)
    for i, (name, (schema, _, plain, _)) in enumerate(OTHERS.items())
}


@pytest.mark.filterwarnings("ignore:torchad_ext")
@pytest.mark.parametrize("tool", [*EXPECTED, "laplacian", "hessian_diagonal of a batch"])
@pytest.mark.parametrize("name", OTHERS)
def test_arguments_that_are_no_tensors_of_floating_point(name: str, tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_linearity, "_registered", {})
    _without_rules.clear()
    _, rule, plain, call = OTHERS[name]
    op = OPERATORS_OF_OTHERS[name]
    if rule:
        ad.register_rule(op, rule)
    more = {
        "laplacian": (lambda f: ad.laplacian(f, POINTS), lambda f: hessians(f).diagonal(0, 1, 2).sum(-1)),
        "hessian_diagonal of a batch": (
            lambda f: ad.hessian_diagonal(f, POINTS, batched=True, chunk_size=1),
            lambda f: hessians(f).diagonal(0, 1, 2),
        ),
    }
    ours, by_pytorch = (EXPECTED | more)[tool]
    if tool in ("hessian", "hessian by its pattern"):
        ours = lambda f: torch.stack(  # noqa: E731  # the operator has no rule for vmap
            [ad.hessian(f, x, chunk_size=1, sparsity="auto" if "pattern" in tool else None) for x in POINTS]
        )
    if tool == "hessian_diagonal":
        ours = lambda f: ad.hessian_diagonal(lambda x: f(x).sum(), POINTS, chunk_size=1)  # noqa: E731
    assert_close(ours(call(op)), by_pytorch(call(plain)), rtol=1e-9, atol=1e-9)
    if rule and tool == "hessian by its pattern":
        x = POINTS[0]
        assert torch.equal(ad.hessian_sparsity(call(op), x).to_dense(), ad.hessian_sparsity(call(plain), x).to_dense())


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(("name", "call"), list(itertools.product(("moves", "linear", "multilinear"), list(CALLS)[:2])))
def test_curvature_of_a_linear_operator(name: str, call: str) -> None:
    f, v = CALLS[call](OPERATORS[name]), torch.linspace(-1, 2, 4, dtype=D)
    H = hessians(CALLS[call](PLAIN[name][1]))
    assert_close(Curvature(f, POINTS).along(v.expand(1, 1, 4))[0], torch.einsum("i,bij,j->b", v, H, v))


class TestWithoutARule:
    def test_the_laplacian_warns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_linearity, "_registered", {})
        _warned.clear()
        _without_rules.clear()
        with pytest.warns(UserWarning, match="has no rule for"):
            ad.laplacian(CALLS["both vary"](OPERATORS["elementwise"]), POINTS)

    def test_everything_is_coupled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_linearity, "_registered", {})
        assert ad.hessian_sparsity(CALLS["both vary"](OPERATORS["elementwise"]), POINTS[0]).to_dense().all()

    def test_curvature_does_not_know_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_linearity, "_registered", {})
        with pytest.raises(UnknownOperation):
            Curvature(CALLS["the first varies"](OPERATORS["linear"]), POINTS)


class TestErrors:
    @pytest.mark.parametrize("given", [torch.sin, lambda x: x, "sin", None])
    def test_no_operator(self, given: Any) -> None:
        with pytest.raises(TypeError, match="takes an operator"):
            ad.register_rule(given, "linear")

    def test_an_operator_of_pytorch(self) -> None:
        with pytest.raises(ValueError, match=r"aten\.sin, which is PyTorch's"):
            ad.register_rule(torch.ops.aten.sin, "elementwise")

    def test_an_unknown_rule(self) -> None:
        with pytest.raises(ValueError, match="'multilinear', 'elementwise' for the rule, got 'quadratic'"):
            ad.register_rule(OPERATORS["linear"], "quadratic")  # type: ignore[arg-type]

    def test_several_results_and_none(self) -> None:
        @torch.library.custom_op("test_register_rule::two", mutates_args=())
        def two(x: Tensor) -> tuple[Tensor, Tensor]:
            return 2 * x, 3 * x

        @torch.library.custom_op("test_register_rule::none", mutates_args=("x",))
        def none(x: Tensor) -> None:
            x.zero_()

        for op in (two, none):
            with pytest.raises(ValueError, match="with one tensor as result"):
                ad.register_rule(op, "elementwise")


class TestTheTable:
    @pytest.mark.parametrize("namespace", ["a_test_register_rule", "test_register_rule"])
    def test_an_operator_of_others_is_not_that_of_pytorch_with_its_name(self, namespace: str) -> None:
        @torch.library.custom_op(f"{namespace}::floor", mutates_args=())
        def floor(x: Tensor) -> Tensor:
            return 2 * x

        assert _linearity.name_in_table(torch.ops.aten.floor) == "floor"
        assert _linearity.name_in_table(getattr(torch.ops, namespace).floor) == ""

    def test_an_operation_has_one_section(self) -> None:
        for (one, names), (other, others) in itertools.combinations(SECTIONS.items(), 2):
            assert not names & others, (one, other)

    @pytest.mark.parametrize("name", SECTIONS)
    def test_every_name_is_one_of_pytorch(self, name: str) -> None:
        owners = (torch, Tensor, torch.linalg, torch.nn.functional, torch.ops.aten, torch.ops.prims)
        spoken = {"getitem": "__getitem__", "radd": "__radd__", "rmul": "__rmul__", "rmatmul": "__rmatmul__"}
        unknown = {n for n in SECTIONS[name] if not any(hasattr(owner, spoken.get(n, n)) for owner in owners)}
        assert not unknown
