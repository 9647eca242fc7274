"""The table of operations, and ``register_rule``: one rule of a user serves every tool that follows operations."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import torchad_ext as ad
from torchad_ext import _linearity
from torchad_ext._forward.fallback import _warned
from torchad_ext._forward.laplacian import _without_rules
from torchad_ext._hessian.curvature import Curvature, UnknownOperation

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

    def test_several_results(self) -> None:
        @torch.library.custom_op("test_register_rule::two", mutates_args=())
        def two(x: Tensor) -> tuple[Tensor, Tensor]:
            return 2 * x, 3 * x

        with pytest.raises(ValueError, match="with one tensor as result"):
            ad.register_rule(two, "elementwise")


class TestTheTable:
    def test_an_operation_has_one_section(self) -> None:
        for (one, names), (other, others) in itertools.combinations(SECTIONS.items(), 2):
            assert not names & others, (one, other)

    @pytest.mark.parametrize("name", SECTIONS)
    def test_every_name_is_one_of_pytorch(self, name: str) -> None:
        owners = (torch, Tensor, torch.linalg, torch.nn.functional, torch.ops.aten, torch.ops.prims)
        spoken = {"getitem": "__getitem__", "radd": "__radd__", "rmul": "__rmul__", "rmatmul": "__rmatmul__"}
        unknown = {n for n in SECTIONS[name] if not any(hasattr(owner, spoken.get(n, n)) for owner in owners)}
        assert not unknown
