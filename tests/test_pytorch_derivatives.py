"""Functions whose derivatives PyTorch has wrong or not at all: this library's tools against differences of values."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_derivatives
import torch
import torch.nn.functional as F
from own_functions import Sine
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._pytree import tree_structure
from torch.utils.checkpoint import checkpoint

import torchad_ext as ad
from torchad_ext._forward.correction_mode import with_corrections
from torchad_ext._forward.corrections import CORRECTIONS

pytest.importorskip("expecttest", reason="torch.testing._internal imports expecttest, which is not installed")

D = torch.float64
PAGE = pytorch_derivatives.PAGE.read_text(encoding="utf-8")


def rows_of_the_page() -> dict[str, list[str]]:
    table = PAGE.split(pytorch_derivatives.BEGIN)[1].split(pytorch_derivatives.END)[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    return {name.strip("`"): cells for name, *cells in rows}


ROWS = rows_of_the_page()
RIGHT = [name for name, cells in ROWS.items() if cells[-1] == "right"]


def test_the_page_has_what_is_replaced() -> None:
    """Each replacement stands for a row, or is held by test_zero.py, test_singular.py, test_factorizations.py or
    test_corrections.py."""
    of_page = {name.rpartition(".")[2].partition(" ")[0] for name in ROWS}
    at_zero = {
        "vector_norm",
        "norm",
        "linalg_norm",
        "matrix_norm",
        "pairwise_distance",
        "dist",
        "cosine_similarity",
        "renorm",
        "hypot",
    }
    of_factors = {"prod", "cumprod"}
    of_some_digits = {"celu", "float_power", "lgamma", "gammaln", "digamma", "psi", "mvlgamma", "multigammaln"}
    in_forward_mode = {"slogdet", "logdet", "solve", "solve_ex", "tensorsolve", "householder_product", "orgqr"}
    as_another = {"native_batch_norm_legit"}  # which is native_batch_norm
    elsewhere = at_zero | of_factors | of_some_digits | in_forward_mode | as_another
    assert {name.strip("_") for name in CORRECTIONS} - elsewhere <= of_page


@pytest.mark.long
@pytest.mark.parametrize("name", RIGHT)
def test_what_the_page_calls_right_is(name: str) -> None:
    (row,) = (row for title, row in pytorch_derivatives.measured([name], most=1).items() if title == name)
    assert set(row.tools.values()) <= {"right"}


def tangent(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda t: torch.func.jvp(f, (t,), (torch.ones_like(t),))[1]


# Loud ones, and scatter_reduce, of which the tools see that forward mode is wrong.
NOT_MIXED = {"torch.ops.aten._safe_softmax.default", "linalg.eig", "linalg.eigh", "scatter_reduce (prod)"}


@pytest.mark.long
def test_modes_may_be_mixed() -> None:
    """Second derivatives along a line in every order of the modes, of all of PyTorch's functions."""
    wrong = {}
    for case in pytorch_derivatives.cases(most=2):
        v, s = pytorch_derivatives.numbers(case.u.numel(), 5), with_corrections(case.s)
        first = lambda h: pytorch_derivatives.derivative(s, case.u + h * v, [v]).item()  # noqa: B023, E731
        try:
            expected, error = pytorch_derivatives.difference(first)
        except (RuntimeError, ValueError):  # it has no derivative
            continue
        if not error < 1e-4 * max(1e-3, abs(expected)):  # a kink
            continue
        for outer, inner in itertools.product((tangent, torch.func.grad), repeat=2):
            of = outer(inner(lambda t: s(case.u + t * v)))  # noqa: B023
            try:
                found = of(torch.zeros((), dtype=D)).item()
            except (RuntimeError, NotImplementedError):  # PyTorch says that there is none
                continue
            verdict = pytorch_derivatives.verdict(found, expected, error)
            if verdict != "right" and case.name not in NOT_MIXED:
                wrong[case.name, outer.__name__, inner.__name__] = verdict
    assert not wrong


def test_a_wrong_derivative_is_seen() -> None:
    """A function whose double backward lacks a factor, as PyTorch's may."""

    class WrongSine(Sine):
        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return g * (x.cos() + 0.5 * (x - x.detach()))

    leaves = [torch.linspace(-1, 1, 2, dtype=D)]
    case = pytorch_derivatives.Case("sine", WrongSine.apply, leaves, tree_structure(((0,), {})), [0])
    found, _ = pytorch_derivatives.by_pytorch(case)
    assert found["reverse", 1] == "right" and found["reverse", 2].startswith("wrong")


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double()


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(4, 2, batch_first=True), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.sin().unflatten(-1, (2, 4))
        y: Tensor = self.norm(x + self.attention(x, x, x, need_weights=False)[0]).flatten(1)
        return y


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "LayerNorm": lambda: nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2)),
    "BatchNorm1d": lambda: nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)),
    "BatchNorm1d without statistics": lambda: nn.Sequential(
        nn.Linear(8, 4), nn.BatchNorm1d(4, affine=False, track_running_stats=False), nn.Tanh()
    ),
    "BatchNorm2d": lambda: nn.Sequential(nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Tanh()),
    "InstanceNorm1d": lambda: nn.Sequential(nn.Unflatten(1, (2, 4)), nn.InstanceNorm1d(2, affine=True), nn.Tanh()),
    "weight_norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)), nn.Tanh()),
    "GroupNorm": lambda: nn.Sequential(nn.Linear(8, 4), nn.GroupNorm(2, 4), nn.Tanh()),
    "attention": Heads,
}


@pytest.mark.parametrize(
    ("name", "tool"),
    [(name, "hvp") for name in NETWORKS]
    + [("LayerNorm", tool) for tool in ("vhp", "hessian", "hessian_diagonal", "jacobian")],
)
def test_training_through_the_tools(name: str, tool: str) -> None:
    """The gradient of a loss of second derivatives in the weights, against differences of that loss."""
    network = seeded(NETWORKS[name])
    x, v = torch.randn(2, 3, 8, dtype=D, generator=torch.Generator().manual_seed(1))
    f = lambda x: network(x).sin().sum()  # noqa: E731
    of: dict[str, Callable[[], Tensor]] = {
        "hvp": lambda: ad.hvp(f, x, v),
        "vhp": lambda: ad.vhp(f, x, v),
        "hessian": lambda: ad.hessian(f, x),
        "hessian_diagonal": lambda: ad.hessian_diagonal(f, x),
        "jacobian": lambda: ad.jacobian(lambda x: ad.jacobian(f, x), x),
    }
    loss = lambda: of[tool]().sin().sum()  # noqa: E731
    parameters = list(network.parameters())
    if not parameters:
        pytest.skip("there is nothing to train")
    directions = [torch.randn(p.shape, dtype=D, generator=torch.Generator().manual_seed(2)) for p in parameters]
    gradients = torch.autograd.grad(loss(), parameters, materialize_grads=True)
    along = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))

    def moved(h: float) -> float:
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p += h * d
        y = float(loss().detach())
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p -= h * d
        return y

    expected, error = pytorch_derivatives.difference(moved, step=2e-3)
    assert error < 1e-6 * max(1.0, abs(expected))
    assert abs(along - expected) < 1e-6 * max(1.0, abs(expected))


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d"])
def test_running_statistics_are_updated_as_in_pytorch(name: str) -> None:
    ours, theirs = seeded(NETWORKS[name]), seeded(NETWORKS[name])
    x = torch.randn(3, 8, dtype=D)
    ad.hvp(lambda x: ours(x).sum(), x, x)
    theirs(x)
    assert_close(ours.state_dict(), theirs.state_dict())


def test_values_are_those_of_pytorch() -> None:
    """... where a replacement is run, in each dtype."""
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)) * 300
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for f in (
            lambda x: F.layer_norm(x, (4,)),
            lambda x: F.group_norm(x, 2),
            lambda x: F.batch_norm(x, None, None, training=True),
            lambda x: x.norm(dim=-1),
            lambda x: torch.cdist(x.float(), x.float()),
            lambda x: torch.hypot(x, x.flip(0)),
        ):
            seen: list[Tensor] = []
            ad.jacobian(lambda x, f=f, seen=seen: seen.append(f(x)) or x, x.to(dtype))  # type: ignore[misc]
            native = f(x.to(dtype))
            assert_close(seen[0], native, rtol=4 * torch.finfo(native.dtype).eps, atol=4 * torch.finfo(dtype).eps)


def test_checkpointed_layers_are_composed_again() -> None:
    network = seeded(NETWORKS["LayerNorm"])
    x, v = torch.randn(2, 3, 8, dtype=D)
    gradients = []
    for f in (lambda x: checkpoint(network, x, use_reentrant=False).sin().sum(), lambda x: network(x).sin().sum()):
        loss = ad.hvp(f, x, v).square().sum()
        gradients.append(torch.autograd.grad(loss, list(network.parameters()), materialize_grads=True))
    assert_close(*gradients)


def test_a_subclass_keeps_its_own_functions() -> None:
    class Named(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is F.layer_norm:
                return args[0] ** 3
            return super().__torch_function__(func, types, args, kwargs or {})

    x = torch.tensor([1.0, 2.0], dtype=D)
    H = ad.hessian(lambda x: F.layer_norm(x.as_subclass(Named), (2,)).as_subclass(Tensor).sum(), x)
    assert_close(H, (6 * x).diag())
