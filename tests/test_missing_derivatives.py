"""Functions that PyTorch silently takes for constants are refused, where they read what depends on x, by every tool; so
are those of NumPy."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import get_overridable_functions
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

import torchad_ext as ad
from torchad_ext._forward.missing import UNDIFFERENTIATED
from torchad_ext._symbolic.torch_names import name_of

D = torch.float64
POINTS = torch.tensor([[0.3, 0.7], [1.1, 0.4], [0.9, 1.6]], dtype=D)
# Of f, which maps points [..., d] to [...].
TOOLS: dict[str, Callable[[Callable[[Tensor], Tensor]], Any]] = {
    "laplacian": lambda f: ad.laplacian(f, POINTS),
    "forward_laplacian": lambda f: ad.forward_laplacian(f, POINTS),
    "bilaplacian": lambda f: ad.bilaplacian(f, POINTS),
    "bilaplacian of many coordinates": lambda f: ad.bilaplacian(f, POINTS.repeat(1, 3)),
    "partials": lambda f: ad.partials(f, POINTS, [(0,), (0, 1)]),
    "taylor": lambda f: ad.taylor(f, POINTS, torch.ones(2, dtype=D), 2),
    "jacobian": lambda f: ad.jacobian(f, POINTS),
    "jacobian in forward mode": lambda f: ad.jacobian(f, POINTS, strategy="forward"),
    "hvp": lambda f: ad.hvp(total(f), POINTS, POINTS),
    "vhp": lambda f: ad.vhp(total(f), POINTS, POINTS),
    "hvp of a row in vmap": lambda f: torch.func.vmap(lambda x: ad.hvp(f, x, x))(POINTS),
    "hessian": lambda f: ad.hessian(total(f), POINTS),
    "hessian in forward mode": lambda f: ad.hessian(total(f), POINTS, strategy="forward-over-reverse"),
    "hessian by its pattern": lambda f: ad.hessian(total(f), POINTS, sparsity="auto"),
    "hessian_diagonal": lambda f: ad.hessian_diagonal(total(f), POINTS),
    "hessian_diagonal of a batch": lambda f: ad.hessian_diagonal(f, POINTS, batched=True),
    "hessian_sparsity": lambda f: ad.hessian_sparsity(total(f), POINTS),
}


def total(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: f(x).sum()


def of_name(name: str) -> Callable[[Any], Tensor]:
    function = getattr(torch.special, name)
    return (lambda x: function(x, 3)) if "polynomial" in name else function


def arguments() -> Iterator[tuple[Any, ...]]:
    """What some function of PyTorch may take, with tensors that require gradients."""

    def x() -> Tensor:
        return (torch.rand(3, 3, dtype=D) / 2 + 0.25).requires_grad_()

    index, mask = torch.tensor([0, 1, 2]), torch.rand(3, 3) > 0.5
    yield from ((x(),), (x(), x()), (x(), x(), x()), (x(), x(), x(), x()), ([x(), x()],))
    yield from ((x(), 1), (x(), 1, 1), (x(), 1, x()), (x(), 1.5), (x(), 1.5, 2.5), (1, x()), (2.0, x()))
    yield from ((x(), index), (x(), x(), 1), (x(), 1, index), (x(), 1, index, x()), (x(), mask), (x(), mask, x()))


# Rightly constant: steps, counts, and tensors that take nothing but a shape, or a value, from an argument.
CONSTANT = {
    "detach", "detach_copy", "histc", "empty_like", "full_like", "ones_like", "rand_like", "randint_like", "randn_like",
    "zeros_like", "new", "new_empty", "new_full", "new_ones", "new_tensor", "new_zeros", "new_empty_strided", "tensor",
    "module_load", "__floordiv__", "__rfloordiv__", "data",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_every_function_of_pytorch_that_is_silently_a_constant_is_known() -> None:
    """Among those that PyTorch says can be overridden: all results are of floating point, and none has a gradient."""
    found = set()
    for function in {f for given in get_overridable_functions().values() for f in given}:
        if isinstance(getattr(function, "__self__", None), property):  # of Tensor, in Python
            continue
        name = name_of(function)
        if name.endswith("_") and not name.startswith("__"):
            continue
        for args in arguments():
            try:
                results = [y for y in tree_leaves(function(*args)) if isinstance(y, Tensor)]
            except Exception:  # it takes others
                continue
            if results and all(y.is_floating_point() and not y.requires_grad for y in results):
                found.add(name)
    assert found >= UNDIFFERENTIATED
    assert found <= UNDIFFERENTIATED | CONSTANT


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", sorted(UNDIFFERENTIATED))
def test_each_tool_refuses(name: str, tool: str) -> None:
    function = of_name(name)
    message = rf"torchad_ext\.{tool.split()[0]}: f calls torch\.special\.{name} .*register_rule"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "torchad_ext")  # nothing is said to be exact but slower
        with pytest.raises(RuntimeError, match=message):
            TOOLS[tool](lambda x: function(x.square().sum(-1)) * x[..., 0])


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(
    "call",
    [
        lambda x: torch.special.bessel_j0(input=x),
        lambda x: torch.special.airy_ai(x=x.sin()),
        torch.ops.aten.special_bessel_j1,
        torch.ops.aten.special_bessel_y0.default,
        lambda x: torch.special.hermite_polynomial_h(x, torch.tensor(2)),
    ],
    ids=["by name", "of a function", "an operator", "an overload", "of a tensor's degree"],
)
def test_each_way_to_call_one(call: Callable[..., Tensor], tool: str) -> None:
    with pytest.raises(RuntimeError, match=rf"torchad_ext\.{tool.split()[0]}: f calls"):
        TOOLS[tool](lambda x: call(x[..., 0] * x[..., 1]))


WEIGHT = torch.tensor(0.4, dtype=D, requires_grad=True)
# Factors that are constant in x.
FACTORS: dict[str, Callable[[Tensor], Any]] = {
    "of a constant": lambda x: torch.special.bessel_j0(torch.tensor(0.4, dtype=D)),
    "of a weight": lambda x: torch.special.bessel_j0(2 * WEIGHT),
    "of a detached x": lambda x: torch.special.bessel_j0(x.detach()),
    "under no_grad": torch.no_grad()(lambda x: torch.special.bessel_j0(x)),
    "in the degree": lambda x: torch.special.hermite_polynomial_h(torch.tensor(0.4, dtype=D), 3 * x),
    "of zeros": lambda x: torch.special.airy_ai(torch.zeros_like(x)),
    "steps": lambda x: x.sign() + x.floor() + x.round() + torch.isnan(x) + (x > 0.5),
    "places": lambda x: torch.bucketize(x, torch.tensor([0.0, 0.5], dtype=D)) + x.argmax(-1, keepdim=True),
}


@pytest.mark.filterwarnings("ignore:torchad_ext")
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("factor", FACTORS)
def test_what_is_constant_is_not_refused(factor: str, tool: str) -> None:
    if factor == "under no_grad" and "forward mode" in tool:
        pytest.skip("forward mode goes through torch.no_grad()")
    result = TOOLS[tool](lambda x: (FACTORS[factor](x) * x.sin()).sum(-1))
    if tool == "bilaplacian of many coordinates" or tool == "hessian_sparsity":
        return
    with torch.no_grad():
        frozen = FACTORS[factor](POINTS)

    def plain(x: Tensor) -> Tensor:
        return (frozen * x.sin()).sum(-1)

    if tool != "hvp of a row in vmap":
        assert_close(result, TOOLS[tool](plain))


def test_the_remedies() -> None:
    """What the error says is the same function is, and its derivatives come through."""
    x = POINTS[0]
    for name, same in (
        ("modified_bessel_i0", torch.special.i0),
        ("modified_bessel_i1", torch.special.i1),
        ("spherical_bessel_j0", lambda x: torch.sinc(x / torch.pi)),
    ):
        assert_close(of_name(name)(x), same(x))
        assert ad.jacobian(same, x).diagonal().ne(0).all()


# Products that NumPy computes, as constants or in part.
OF_NUMPY: dict[str, Callable[[Tensor], Any]] = {
    "a function": lambda x: x * torch.as_tensor(np.sin(x)),
    "a function of a function": lambda x: np.sqrt(x.square() + 1) * x,
    "an array as a factor": lambda x: x * np.array([1.0, 2.0]),
    "numpy()": lambda x: x * torch.from_numpy(x.exp().numpy()),
    "an array of it": lambda x: x * torch.from_numpy(np.asarray(x)),
}


@pytest.mark.filterwarnings("ignore:torchad_ext", "ignore:__array")
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", OF_NUMPY)
def test_each_tool_refuses_numpy(name: str, tool: str) -> None:
    f = OF_NUMPY[name]
    assert f(POINTS).shape == POINTS.shape  # which runs, where no derivative is asked for
    with pytest.raises(RuntimeError, match=r"Can't call numpy\(\)|Cannot access data pointer"):
        TOOLS[tool](lambda x: f(x).sum(-1))


@pytest.mark.filterwarnings("ignore:torchad_ext")
@pytest.mark.parametrize("tool", ["laplacian", "partials", "hessian", "hessian_diagonal of a batch"])
def test_numpy_of_a_detached_x_is_a_constant(tool: str) -> None:
    result = TOOLS[tool](lambda x: (x.sin() * torch.from_numpy(np.sin(x.detach().numpy()))).sum(-1))
    assert_close(result, TOOLS[tool](lambda x: (x.sin() * POINTS.sin()).sum(-1)))


@pytest.mark.filterwarnings("ignore:torchad_ext")
@pytest.mark.parametrize("tool", ["laplacian", "partials", "taylor", "hessian", "hessian_diagonal of a batch"])
@pytest.mark.parametrize("copied", [copy.copy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_a_copy_is_a_constant(copied: Callable[[Tensor], Tensor], tool: str) -> None:
    assert copied(2 * WEIGHT).grad_fn is None  # as PyTorch has it
    result = TOOLS[tool](lambda x: (x.sin() * copied(x)).sum(-1))
    assert_close(result, TOOLS[tool](lambda x: (x.sin() * POINTS).sum(-1)))


@pytest.mark.filterwarnings("ignore:torchad_ext")
@pytest.mark.parametrize("tool", ["laplacian", "partials", "taylor", "hessian"])
def test_a_deep_copy_is_refused(tool: str) -> None:
    with pytest.raises(RuntimeError, match="Only Tensors created explicitly by the user"):
        TOOLS[tool](lambda x: (x.sin() * copy.deepcopy(2 * x)).sum(-1))
