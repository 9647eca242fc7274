"""The fast paths of the derivative tools against one row after the other by the plainest reverse mode."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from own_functions import StraightThrough
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

import torchad_ext as ad
from torchad_ext import _self_check
from torchad_ext._hessian import pullback, thresholds

pytest.importorskip("expecttest", reason="torch.testing._internal imports expecttest, which is not installed")
from pytorch_samples import samples_of
from torch.testing._internal.common_methods_invocations import op_db

Function = Callable[[Any], Any]
EXACT = {"rtol": 1e-8, "atol": 1e-10}


def sample(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def jacobian(f: Function, x: Tensor, create_graph: bool = False) -> Tensor:
    """A loop of ``torch.autograd.grad``."""
    leaf = x.clone().requires_grad_()
    y = f(leaf)
    rows = [
        torch.autograd.grad(
            value, leaf, create_graph=create_graph, retain_graph=True, allow_unused=True, materialize_grads=True
        )[0]
        for value in y.flatten()
        if value.requires_grad
    ]
    return torch.stack(rows).view(*y.shape, *x.shape) if rows else x.new_zeros(*y.shape, *x.shape)


def hessian(f: Function, x: Tensor) -> Tensor:
    """A loop of ``torch.autograd.grad`` over a gradient."""

    def gradient(x: Tensor) -> Tensor:
        y = f(x)
        if not y.requires_grad:
            return torch.zeros_like(x)
        return torch.autograd.grad(y, x, create_graph=True, allow_unused=True, materialize_grads=True)[0]

    return jacobian(gradient, x)


@pytest.fixture(autouse=True)
def _faults_are_errors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHAD_EXT_STRICT", "1")
    _self_check._paths.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)
        yield


# Complex intermediates of n numbers, n even.
COMPLEX: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": lambda x: (1j * x).exp().real,
    "imag": lambda x: (1j * x).sin().imag,
    "conj": lambda x: ((x + 1j * x.flip(0)).conj() * (2 + 1j * x)).imag,
    "abs": lambda x: (x + 1j * x.flip(0)).abs(),
    "angle": lambda x: (x + 2j + 1j * x.flip(0).square()).angle(),
    "fft": lambda x: torch.fft.fft(x).abs().square(),
    "rfft": lambda x: torch.fft.irfft(torch.fft.rfft(x) ** 2, n=len(x)),
    "view_as_real": lambda x: torch.view_as_real((1j * x).exp() * x).sum(1),
    "view_as_complex": lambda x: torch.view_as_complex(x.view(-1, 2)).pow(3).real.repeat_interleave(2),
    "polar": lambda x: torch.polar(x.square() + 1, x).imag,
    "matrix": lambda x: ((torch.eye(len(x)) * (2 + 1j))[:8].to(torch.complex128) @ (x + 1j * x.sin()).conj()).abs(),
    "solve": lambda x: (
        torch.linalg.solve(torch.eye(2) * (3 + 1j) + torch.outer(x[:2], 1j * x[:2]), x[:2] + 0j).abs() * x.sum()
    ),
    "negative view": lambda x: (x * (1 + 1j)).conj().imag.square() * x,
    "product": lambda x: (x * (1 + 2j)).cumprod(0)[:4].real * x[:4],
    "vdot": lambda x: torch.vdot(x + 1j * x.flip(0), x.sin() + 1j * x).real * x,
    "eigenvalues": lambda x: (
        torch.linalg.eigvalsh(torch.outer(x[:3] + 1j, x[:3] - 1j) + torch.diag(x[:3] + 0j)) * x.sum()
    ),
}


@pytest.mark.parametrize("n", [10, 256])
@pytest.mark.parametrize("name", COMPLEX)
def test_complex_numbers_midway(name: str, n: int) -> None:
    x, f = sample(n) / 2, COMPLEX[name]
    energy = lambda x: (f(x).sin() * torch.linspace(0.5, 1, len(f(x)), dtype=x.dtype)).sum()  # noqa: E731
    expected = hessian(energy, x)
    assert_close(ad.hessian(energy, x), expected, **EXACT)
    assert_close(ad.hessian_diagonal(energy, x), expected.diagonal(), **EXACT)
    assert_close(ad.hvp(energy, x, x), expected @ x, **EXACT)
    assert_close(ad.jacobian(f, x), jacobian(f, x), **EXACT)


def norm_without_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        s = x.norm()
    return x / s


class Once(StraightThrough):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return 3 * grad_output


mixing, norm = sample(9, 3), nn.GroupNorm(3, 3, dtype=torch.float64)
# Of three numbers.
AWKWARD: dict[str, Function] = {
    "a norm under no_grad": norm_without_grad,
    "straight through": lambda x: x + (x.round() - x).detach(),
    "detached": lambda x: x * x.exp().detach(),
    "a Function without jvp": StraightThrough.apply,
    "solve": lambda x: torch.linalg.solve(torch.outer(x, x) + torch.eye(3, dtype=x.dtype), x),
    "inverse": lambda x: torch.linalg.inv(torch.outer(x, x.sin()) + 3 * torch.eye(3, dtype=x.dtype))[0],
    "layer norm": lambda x: F.layer_norm(x.exp(), (3,)),
    "group norm": lambda x: F.group_norm((mixing @ x).sin().view(1, 3, 3), 3).view(3, 3)[0],
    "instance norm": lambda x: F.instance_norm((mixing @ x).sin().view(1, 3, 3)).view(3, 3)[1],
    "batch norm": lambda x: F.batch_norm((mixing @ x).sin().view(3, 3), None, None, training=True)[0],
    "a module of group norm": lambda x: norm((mixing @ x).sin().view(1, 3, 3)).view(3, 3)[2],
    "under no_grad": torch.no_grad()(lambda x: x.sin()),
    "constant": lambda x: x.new_ones(3),
    "trace": lambda x: torch.outer(x, x.sin()).trace() * x,
    "checkpoint": lambda x: torch.utils.checkpoint.checkpoint(torch.sin, x, use_reentrant=False),
    "a hook": lambda x: hooked(x.sin()) * x,
}


def hooked(y: Tensor) -> Tensor:
    if y.requires_grad:
        y.register_hook(lambda g: 2 * g)
    return y


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("height", [3, 40])
def test_awkward_functions(name: str, height: int) -> None:
    W, x = sample(height, 3), sample(3) + 0.3
    f = lambda x: W @ AWKWARD[name](x)  # noqa: E731
    assert_close(ad.jacobian(f, x), jacobian(f, x), **EXACT)
    energy = lambda x: f(x).sin().sum()  # noqa: E731
    expected = hessian(energy, x)
    assert_close(ad.hessian(energy, x), expected, **EXACT)
    assert_close(ad.hessian_diagonal(energy, x), expected.diagonal(), **EXACT)
    assert_close(ad.hvp(energy, x, x), expected @ x, **EXACT)
    assert_close(ad.vhp(energy, x, x), x @ expected, **EXACT)
    # Of six numbers, which are batched.
    pair = lambda x: energy(x[:3] * x[3:]) + energy(x[:3])  # noqa: E731
    assert_close(ad.hessian(pair, sample(6)), hessian(pair, sample(6)), **EXACT)


def test_a_tall_jacobian_of_what_is_differentiable_once() -> None:
    W = sample(40, 3)
    assert_close(ad.jacobian(lambda x: W @ Once.apply(x), sample(3)), 3 * W)


class TestCompiledFunctions:
    @pytest.mark.parametrize(
        "call",
        [lambda f, x: ad.hvp(f, x, x), ad.hessian, ad.hessian_diagonal],
        ids=["hvp", "hessian", "hessian_diagonal"],
    )
    def test_a_second_derivative(self, call: Callable[..., Any]) -> None:
        network = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double()
        compiled = torch.compile(network, backend="aot_eager")
        compiled(sample(4))
        assert_close(call(lambda x: compiled(x).sum(), sample(4)), call(lambda x: network(x).sum(), sample(4)))

    def test_after_dynamo_gave_a_function_up(self) -> None:
        def f(x: Tensor) -> Tensor:
            return (torch.sigmoid(3 * x) * torch.sin(x) + x).sum()

        compiled = torch.compile(f, backend=lambda graph, _: graph)
        torch.func.hessian(compiled)(sample(4))  # from now on Dynamo skips it
        assert_close(ad.hessian(compiled, sample(4)), torch.func.hessian(f)(sample(4)))

    def test_a_jacobian(self) -> None:
        f = torch.compile(torch.sin, backend="aot_eager")
        assert_close(ad.jacobian(f, sample(5)), sample(5).cos().diag())


NAMES = (
    "cov trace index_fill linalg.svd linalg.cholesky nn.functional.group_norm nn.functional.batch_norm "
    "nn.functional.conv2d nn.functional.max_pool2d fft.hfft view_as_complex angle cumprod norm sort masked_fill "
    "index_put scatter_add take var_mean logsumexp pow std dist nn.functional.grid_sample"
).split()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("units", [True, False], ids=["unit rows", "batches"])
def test_operations_of_pytorch(name: str, dtype: torch.dtype, units: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sample that PyTorch tests its own derivatives with, in batches of any size."""
    monkeypatch.setattr(pullback, "FEW_ROWS", 0)
    monkeypatch.setattr(thresholds, "_UNIT_ROWS", 1)
    monkeypatch.setattr(thresholds, "_UNIT_NODES", 10**9 if units else 0)
    (info, *_) = [info for info in op_db if info.name == name]
    if dtype not in info.dtypes:
        pytest.skip(f"{name} takes no {dtype}")
    for given in itertools.islice(samples_of(info, dtype), 3):
        leaves, spec = tree_flatten((given.input, given.args, given.kwargs))
        places = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.requires_grad and x.numel()]
        xs = [torch.view_as_real(x) if x.is_complex() else x for x in (leaves[i].detach().clone() for i in places)]
        if not 0 < sum(x.numel() for x in xs) <= 150:
            continue

        def values(xs: list[Tensor], leaves: Any = leaves, places: Any = places, spec: Any = spec) -> list[Tensor]:
            filled = list(leaves)
            for i, x in zip(places, xs, strict=True):
                filled[i] = torch.view_as_complex(x.contiguous()) if leaves[i].is_complex() else x * 1
            x, args, kwargs = tree_unflatten(filled, spec)
            outputs = [y for y in tree_leaves(info.op(x, *args, **kwargs)) if isinstance(y, Tensor) and y.requires_grad]
            return [torch.view_as_real(y.resolve_conj()) if y.is_complex() else y for y in outputs]

        assert_close(
            ad.jacobian(values, xs), ad.jacobian(values, xs, chunk_size=1), rtol=1e-6, atol=1e-8, equal_nan=True
        )
