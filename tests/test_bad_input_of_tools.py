"""The tools on functions and points that nobody ought to give: the true derivative, or an error that says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from bad_arguments import Argument, arguments, outcome, shapes
from hypothesis import given
from hypothesis import strategies as st
from test_bad_input import FEW, MANY

import torchad_ext as ad
from torchad_ext import _self_check

pytestmark = pytest.mark.usefixtures("kernels_when_long")


def _fails(x: torch.Tensor) -> torch.Tensor:
    raise LookupError("of the function itself")


def _in_place(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y.mul_(x)
    return (y * x).sum()


SCALAR: dict[str, Callable[..., Any]] = {
    "cube": lambda x: (x**3).sum(),
    "sine": lambda x: ad.sin(x).sum(),
    "branch": lambda x: x.sin().sum() if x.numel() > 3 else (x * x).sum(),
    "detached": lambda x: x.detach().sum(),
    "partly detached": lambda x: (x.detach() * x * x).sum(),
    "in place": _in_place,
    "linear": lambda x: x.sum(),
    "one element": lambda x: x.flatten()[:1].exp().sum(),
    "norm": lambda x: ad.softmax(x, -1).square().sum(),
}
BAD: dict[str, Any] = {
    "a vector": lambda x: x.sin(),
    "a number": lambda x: 2.0,
    "None": lambda x: None,
    "a tuple": lambda x: (x.sum(), x.sum()),
    "an integer": lambda x: x.sum().long(),
    "complex": lambda x: (x * 1j).sum(),
    "a string": lambda x: "y",
    "an array": lambda x: x.detach().numpy().sum(),
    "fails": _fails,
    "two arguments": lambda x, y: x.sum(),
    "no function": 3,
    "no function at all": None,
}
WEIRD = st.sampled_from(
    [None, 0, -1, 1, 2, 3, 10**30, 0.5, "x", "xx", "auto", "", True, float("nan"), [], ["xx"], {}, torch.ones(2)]
)


def copied(x: Any) -> Any:
    """The same numbers in a plain tensor, in memory of its own."""
    is_dense = isinstance(x, torch.Tensor) and x.layout is torch.strided and not x.is_nested
    return x.detach().as_subclass(torch.Tensor).clone(memory_format=torch.contiguous_format) if is_dense else x


def hessian(f: Any, x: torch.Tensor) -> torch.Tensor:
    if not x.numel():  # PyTorch's own raises
        return x.new_zeros(2 * x.shape, dtype=torch.float64)
    return torch.autograd.functional.hessian(f, x.detach().double())


def pairs(f: Any, x: torch.Tensor) -> torch.Tensor:
    return hessian(f, x).reshape(x.numel(), x.numel())


def trace(f: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.func.hessian(f)(x).reshape(x.numel(), x.numel()).trace()


TOOLS: dict[str, tuple[Callable[..., Any], Callable[..., torch.Tensor], tuple[str, ...]]] = {
    "hvp": (
        lambda f, x, v: ad.hvp(f, x, v),
        lambda f, x, v: (pairs(f, x) @ v.double().flatten()).reshape(x.shape),
        (),
    ),
    "vhp": (
        lambda f, x, v: ad.vhp(f, x, v),
        lambda f, x, v: (pairs(f, x) @ v.double().flatten()).reshape(x.shape),
        (),
    ),
    "hessian": (
        lambda f, x, v, **options: ad.hessian(f, x, **options),
        lambda f, x, v: hessian(f, x),
        ("chunk_size", "strategy", "sparsity"),
    ),
    "jacobian": (
        lambda f, x, v, **options: ad.jacobian(f, x, **options),
        lambda f, x, v: torch.autograd.functional.jacobian(f, x.detach().double()),
        ("chunk_size",),
    ),
    "hessian_diagonal": (
        lambda f, x, v, **options: ad.hessian_diagonal(f, x, **options),
        lambda f, x, v: pairs(f, x).diagonal().reshape(x.shape),
        ("chunk_size",),
    ),
    "laplacian": (
        lambda f, x, v, **options: ad.laplacian(f, x, **options),
        lambda f, x, v: pairs(f, x).trace(),
        ("chunk_size", "coefficients"),
    ),
    "forward_laplacian": (
        lambda f, x, v: ad.forward_laplacian(f, x).laplacian,
        lambda f, x, v: pairs(f, x).trace(),
        (),
    ),
    "partials": (
        lambda f, x, v, **options: ad.partials(f, x, **{"orders": [(0, 0)], **options})[0],
        lambda f, x, v: pairs(f, x)[0, 0],
        ("orders", "names", "chunk_size"),
    ),
    "taylor": (
        lambda f, x, v, **options: ad.taylor(f, x, v, **{"order": 2, **options})[-1],
        lambda f, x, v: (w := v.double().expand_as(x).flatten()) @ pairs(f, x) @ w / 2,
        ("order",),
    ),
    "hessian_sparsity": (
        lambda f, x, v: ad.hessian_sparsity(f, x).to_dense() | ~(pairs(f, copied(x)).abs() > 0),
        lambda f, x, v: torch.ones(x.numel(), x.numel(), dtype=torch.bool),
        (),
    ),
    "bilaplacian": (
        lambda f, x, v: ad.bilaplacian(f, x),
        lambda f, x, v: trace(lambda x: trace(f, x), x.double()),
        (),
    ),
}


@dataclass(frozen=True)
class Use:
    """A tool, a function, a point, a direction and options."""

    tool: str
    function: str
    x: Argument
    v: Argument
    options: tuple[tuple[str, Any], ...]


@st.composite
def uses(draw: st.DrawFn) -> Use:
    tool = draw(st.sampled_from(list(TOOLS)))
    function = draw(st.sampled_from([*SCALAR, *SCALAR, *SCALAR, *BAD]))
    shape, dtype = draw(shapes), draw(st.sampled_from([torch.float64, torch.float64, torch.float32]))
    x = draw(arguments(shape, dtype))
    v = x if draw(st.integers(0, 3)) else draw(arguments(shape, dtype))
    options = ()
    if TOOLS[tool][2] and draw(st.integers(0, 4)) == 0:
        options = ((draw(st.sampled_from(TOOLS[tool][2])), draw(WEIRD)),)
    return Use(tool, function, x, v, options)


def check(use: Use) -> None:
    f = {**SCALAR, **BAD}[use.function]
    tool, reference, _ = TOOLS[use.tool]
    made = outcome(lambda: (use.x.make(), use.v.make()))
    if made.error:
        return  # PyTorch has no such tensor
    x, v = made.values
    _self_check._paths.clear()  # a first call is checked
    if use.tool == "hessian_sparsity" and isinstance(x, torch.Tensor) and x.is_meta:
        return  # its result has no elements to compare
    ours = outcome(lambda: tool(f, x, v, **dict(use.options)))
    if ours.error is not None:
        itself = outcome(lambda: f(x))
        is_own = itself.error is not None and type(ours.error) is type(itself.error)
        said = isinstance(ours.error, (TypeError, ValueError, RuntimeError)) and "torchad_ext." in str(ours.error)
        is_missing = isinstance(ours.error, NotImplementedError) and x.element_size() == 1
        assert is_own or said or is_missing, f"{ours}; the function: {itself}"  # PyTorch hardly computes in float8
        return
    takes_vectors = use.tool in ("jacobian", "laplacian", "forward_laplacian", "bilaplacian", "partials", "taylor")
    is_scalar = use.function in SCALAR or (use.function == "a vector" and x.dim() == 0)
    assert is_scalar or takes_vectors, ours
    if use.options or use.function not in SCALAR or x.is_meta or x.element_size() == 1:
        return  # of all options that are taken, the value is tested elsewhere
    if use.tool == "taylor" and isinstance(v, torch.Tensor) and not v.square().isfinite().all():
        return  # a product of squares that overflow
    if outcome(lambda: [copied(y) for y in (x, v)]).error:
        return  # PyTorch copies no negated tensor of float8
    # PyTorch's own tools refuse some expanded points and those of inference mode.
    theirs = outcome(lambda: reference(f, *map(copied, (x, v))))
    assert theirs.error is None, f"{ours} in place of {theirs}"
    eps = torch.finfo(x.dtype).eps ** 0.5
    power = {"hvp": 1, "vhp": 1, "taylor": 2}.get(use.tool, 0)  # of v in the result, whose terms may cancel
    largest = float(v.detach().double().nan_to_num(posinf=0.0, neginf=0.0).abs().max()) if power and v.numel() else 0.0
    for a, b in zip(ours.values, theirs.values, strict=True):
        wide = a.detach().double()
        b = b.to(a.dtype)  # beyond its largest number it is infinite
        wide = torch.where(b.isfinite(), wide, b.double())  # at infinity products with a zero differ
        if use.tool == "partials" and not x.isfinite().all():  # a nan of one coordinate may reach the others
            wide = torch.where(wide.isnan(), b.double(), wide)
        torch.testing.assert_close(wide, b.double(), rtol=eps, atol=eps * max(1.0, largest) ** power, equal_nan=True)


class TestTools:
    @FEW
    @given(uses())
    def test_derivative(self, use: Use) -> None:
        check(use)

    @pytest.mark.long
    @MANY
    @given(uses())
    def test_derivative_of_many(self, use: Use) -> None:
        check(use)

    @pytest.mark.parametrize("tool", TOOLS)
    def test_the_result_of_a_function_in_its_place_is_refused(self, tool: str) -> None:
        x = torch.ones(3, 2)
        with pytest.raises(TypeError, match=rf"torchad_ext.{tool} takes a function or a module for f, got Tensor"):
            TOOLS[tool][0](x.sum(-1), x, x)

    @pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr", "to_mkldnn"])
    @pytest.mark.parametrize("tool", TOOLS)
    def test_a_sparse_point_is_refused(self, tool: str, layout: str) -> None:
        x = getattr(torch.eye(2), layout)()
        with pytest.raises(TypeError, match=rf"torchad_ext.{tool} takes dense tensors for x[;,] got one of torch._?"):
            TOOLS[tool][0](lambda x: x.sum(), x, x)

    @pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (0, 0), (3, 0)])
    @pytest.mark.parametrize("function", ["cube", "sine", "partly detached", "in place", "one element", "norm"])
    @pytest.mark.parametrize("tool", ["hvp", "vhp", "hessian", "hessian_diagonal", "hessian_sparsity"])
    def test_a_point_without_elements(self, tool: str, function: str, shape: tuple[int, ...]) -> None:
        x = torch.zeros(shape, dtype=torch.float64)
        result = TOOLS[tool][0](SCALAR[function], x, x)
        assert not result.numel()

    @pytest.mark.parametrize("function", ["cube", "partly detached", "norm"])
    @pytest.mark.parametrize("tool", [name for name in TOOLS if name != "hessian_sparsity"])
    def test_a_point_without_data(self, tool: str, function: str) -> None:
        of, f = TOOLS[tool][0], SCALAR[function]
        x = torch.linspace(-1, 1, 5 if tool == "bilaplacian" else 40, dtype=torch.float64)
        for _ in range(2):
            expected, result = of(f, x, x), of(f, x.to("meta"), x.to("meta"))
            assert result.is_meta
            assert (result.shape, result.dtype) == (expected.shape, expected.dtype)

    @pytest.mark.parametrize("function", ["cube", "partly detached", "in place", "norm"])
    @pytest.mark.parametrize("tool", TOOLS)
    def test_a_point_that_was_made_in_inference_mode(self, tool: str, function: str) -> None:
        x = torch.linspace(-1, 1, 5, dtype=torch.float64)
        with torch.inference_mode():
            point = x.clone()
        for _ in range(2):  # the first call is checked against nested autograd
            of = TOOLS[tool][0]
            torch.testing.assert_close(of(SCALAR[function], point, point), of(SCALAR[function], x, x))

    @pytest.mark.parametrize("function", ["cube", "partly detached", "norm"])
    @pytest.mark.parametrize("tool", TOOLS)
    def test_a_point_that_repeats_a_number(self, tool: str, function: str) -> None:
        """A first call, which is checked, writes to no tensor that has one number in several places."""
        _self_check._paths.clear()
        x = torch.tensor([[0.5], [2.0]], dtype=torch.float64).expand(2, 5)[1]
        of = TOOLS[tool][0]
        torch.testing.assert_close(of(SCALAR[function], x, x), of(SCALAR[function], x.clone(), x.clone()))

    @pytest.mark.parametrize("chunk_size", [True, False, 0, -1, 2.0, "2"])
    @pytest.mark.parametrize("tool", [name for name in TOOLS if "chunk_size" in TOOLS[name][2]])
    def test_a_chunk_size_that_is_no_whole_number(self, tool: str, chunk_size: Any) -> None:
        x = torch.ones(3, 2)
        with pytest.raises(ValueError, match=rf"torchad_ext.{tool}.* chunk_size"):
            TOOLS[tool][0](SCALAR["cube"], x, x, chunk_size=chunk_size)

    @pytest.mark.parametrize("tool", [name for name in TOOLS if "chunk_size" in TOOLS[name][2]])
    def test_a_chunk_size_that_is_a_whole_number_of_another_type_or_size(self, tool: str) -> None:
        x, f = torch.ones(3, 2), lambda x: (x**3).sum(-1) if "partials" in tool or "laplacian" in tool else (x**3).sum()
        of = TOOLS[tool][0]
        for chunk_size in (np.int64(2), 10**30):
            torch.testing.assert_close(of(f, x, x, chunk_size=chunk_size), of(f, x, x))
