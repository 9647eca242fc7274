"""Private names of PyTorch: where a release lacks one, a public way serves, or a call says what is missing."""

from __future__ import annotations

import functools
import importlib.util
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from torchad_ext import _torch_state


def state_without(lost: Callable[[str], bool], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``_torch_state`` as a PyTorch without some names would load it."""
    resolve = pkgutil.resolve_name

    def resolve_some(name: str) -> Any:
        if lost(name):
            raise AttributeError(name)
        return resolve(name)

    monkeypatch.setattr(pkgutil, "resolve_name", resolve_some)
    spec = importlib.util.spec_from_file_location("_another_torch_state", str(_torch_state.__file__))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``_torch_state`` without any private name that it can do without."""
    return state_without(lambda name: True, monkeypatch)


def test_this_pytorch_has_every_name() -> None:
    assert _torch_state.missing == []


def test_names_that_are_missing_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = "torch._C._is_tracing"
    assert state_without(lambda name: name == lost, monkeypatch).missing == [lost]


def test_public_ways_agree_in_every_state(public: ModuleType) -> None:
    def answers(of: Any) -> list[bool]:
        return [bool(of.transforms_active()), bool(of.is_being_traced()), bool(of.is_autocast_enabled())]

    def check(x: torch.Tensor) -> torch.Tensor:
        seen.append(answers(public))
        assert seen[-1] == answers(_torch_state)
        return x.clone()

    seen: list[list[bool]] = []
    x = torch.ones(3)
    check(x)
    torch.func.vmap(check)(x)
    torch.jit.trace(check, (x,), check_trace=False)
    with torch.autocast("cpu"):
        check(x)
    assert seen == [[False] * 3, [True, False, False], [False, True, False], [False, False, True]]


@pytest.mark.parametrize(
    "tensors",
    [
        (torch.empty(2, 3, 4),),
        (torch.empty(4, 3, 2).permute(2, 0, 1), torch.empty(4, 2, 3).transpose(0, 1)),
        (torch.empty(2, 1, 4).expand(2, 3, 4), torch.empty(4, 3, 2).permute(2, 1, 0)),
        (torch.empty(2, 1, 4), torch.empty(2, 1, 4).permute(0, 1, 2)),
        (torch.empty(()), torch.empty(())),
    ],
    ids=["one", "permuted", "expanded", "size 1", "numbers"],
)
def test_strides_without_private_names(tensors: tuple[torch.Tensor, ...], public: ModuleType) -> None:
    expected = functools.reduce(torch.add, [*tensors, tensors[-1]]).stride()
    assert tuple(public.elementwise_strides(*tensors)) == tuple(_torch_state.elementwise_strides(*tensors)) == expected


def test_aliases_without_private_names(public: ModuleType) -> None:
    x, y = torch.ones(4), torch.ones(4)
    for a, b in ((x, x[1:]), (x, y), (x[:2], x[2:]), (x, x.clone())):
        assert public.share_memory(a, b) == _torch_state.share_memory(a, b)


@pytest.mark.parametrize("count", [1, 4])
def test_batches_without_private_names(count: int, public: ModuleType) -> None:
    def function(xs: list[torch.Tensor]) -> list[torch.Tensor]:
        x, y = xs
        assert x.shape == (3,) and y.shape == ()
        return [x.cumsum(0) * y, F.huber_loss(x, 2 * x), torch.ones(2)]

    batch = [torch.randn(count, 3), torch.randn(count)]
    rows = [function([x, y]) for x, y in zip(*batch, strict=True)]
    expected = [torch.stack(row) for row in zip(*rows, strict=True)]
    for state in (public, _torch_state):
        torch.testing.assert_close(list(state.of_batch(function, batch)), expected)
        with pytest.raises(RuntimeError, match="randomness"):
            state.of_batch(lambda xs: [torch.rand_like(xs[0])], batch)
        assert not _torch_state.transforms_active()


@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_without_private_names(create_graph: bool, public: ModuleType) -> None:
    x, unused = torch.randn(3, requires_grad=True), torch.randn(2, requires_grad=True)
    y, z = x.sin(), x.exp().sum()
    cotangents = torch.randn(3), torch.randn(())
    expected = cotangents[0] * x.cos() + cotangents[1] * x.exp()
    for state in (public, _torch_state):
        found, none = state.gradients_along([y, z], [x, unused], cotangents, create_graph)
        torch.testing.assert_close(found, expected if create_graph else expected.detach())
        assert none is None and found.requires_grad == create_graph


def test_modes_of_torch_functions_see_gradients() -> None:
    class Noting(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    seen: list[Any] = []
    x = torch.randn(3, requires_grad=True)
    y = x.sin()
    with Noting():
        _torch_state.gradients_along([y], [x], [torch.ones(3)], False)
    assert torch.autograd.grad in seen


def test_what_has_no_public_way_says_so_when_it_is_called(public: ModuleType) -> None:
    with pytest.raises(RuntimeError, match=r"_set_fwd_grad_enabled.*install"), public.forward_mode_enabled(True):
        pass


PROGRAM = """
import pkgutil, warnings
resolve = pkgutil.resolve_name
def resolve_some(name):
    if name in {names!r}:
        raise AttributeError(name)
    return resolve(name)
pkgutil.resolve_name = resolve_some
import torch
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import torchad_ext as ad
assert [str(w.message) for w in said if "torchad_ext" in str(w.message)], said
x = torch.rand(5, 3, dtype=torch.float64)
f = lambda x: (ad.sin(x) * x.exp()).sum(-1) + ad.quadratic_form(x, torch.ones(3, 3, dtype=torch.float64))
g = lambda x: (torch.sin(x) * x.exp()).sum(-1) + x.sum(-1) ** 2
H = torch.stack([torch.func.hessian(g)(row) for row in x])
torch.testing.assert_close(torch.func.vmap(torch.func.hessian(f))(x), H)
torch.testing.assert_close(ad.laplacian(f, x), H.diagonal(0, -2, -1).sum(-1))
torch.testing.assert_close(ad.hessian(lambda x: f(x).sum(), x).sum(2), H)
torch.testing.assert_close(torch.autograd.functional.hessian(lambda x: f(x), x[0]), H[0])
"""


def test_ops_and_tools_work_without_them() -> None:
    names = {
        "torch._C._are_functorch_transforms_active",
        "torch._C._is_tracing",
        "torch._C._is_any_autocast_enabled",
        "torch._C._autograd._profiler_enabled",
        "torch._C._will_engine_execute_node",
        "torch._C._dispatch_keys",
        "torch._C._storage_Use_Count",
        "torch._C._is_alias_of",
        "torch._prims_common.compute_elementwise_output_strides",
        "torch._decomp.decomposition_table",
        "torch.cpu._is_avx2_supported",
    }
    ran = subprocess.run([sys.executable, "-c", PROGRAM.format(names=names)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_missing_names_are_an_error_if_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHAD_EXT_STRICT", "1")
    program = PROGRAM.format(names={"torch._C._is_tracing"})
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "knows no torch" in ran.stderr and "torch._C._is_tracing" in ran.stderr
    assert ran.returncode
