"""Functions that PyTorch takes for constants although they are none: it has no derivative of them, and does not say so.

Their results require no gradient, so that every derivative through them is silently zero. The tools refuse them where
they read something that depends on x; elsewhere they are constants indeed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

from .._autograd.graph import graph_nodes
from .._torch_state import in_forward_mode, is_exporting, traced_before_autograd, unwrapped

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

# Functions of torch.special, in the first argument; the degrees of polynomials are whole numbers.
UNDIFFERENTIATED = frozenset(
    """
    airy_ai bessel_j0 bessel_j1 bessel_y0 bessel_y1 modified_bessel_i0 modified_bessel_i1 modified_bessel_k0
    modified_bessel_k1 scaled_modified_bessel_k0 scaled_modified_bessel_k1 spherical_bessel_j0 chebyshev_polynomial_t
    chebyshev_polynomial_u chebyshev_polynomial_v chebyshev_polynomial_w shifted_chebyshev_polynomial_t
    shifted_chebyshev_polynomial_u shifted_chebyshev_polynomial_v shifted_chebyshev_polynomial_w hermite_polynomial_h
    hermite_polynomial_he laguerre_polynomial_l legendre_polynomial_p
""".split()
)
_SWEEPS = frozenset("laplacian forward_laplacian bilaplacian partials taylor".split())
_DIFFERENTIABLE = {
    "modified_bessel_i0": "torch.special.i0(x)",
    "modified_bessel_i1": "torch.special.i1(x)",
    "spherical_bessel_j0": "torch.sinc(x / math.pi)",
}


class MissingDerivative(RuntimeError):
    """A function without a derivative reads what depends on x."""

    def __init__(self, function: str) -> None:
        super().__init__()
        self._function = function
        self.say("")

    def say(self, name: str) -> None:
        """Names the tool in the message."""
        also = _DIFFERENTIABLE.get(self._function)
        self.args = (
            f"torchad_ext{name and '.'}{name}: f calls torch.special.{self._function} of what depends on x, which "
            "PyTorch silently takes for a constant, having no derivative of it; "
            + (f"{also} is the same and has one, or " if also else "")
            + "write it in differentiable operations, or make it an operator by torch.library.custom_op, with a "
            "derivative by its register_autograd and a rule by torchad_ext.register_rule",
        )


def check_function(name: str, f: Any, argument: str = "f") -> None:
    """Raises TypeError where the argument of a tool that is to be differentiated is no function."""
    if not callable(f):
        raise TypeError(
            f"torchad_ext.{name} takes a function or a module for {argument}, got {type(f).__name__}; give {argument} "
            f"itself and not its result {argument}(x)"
        )


def tool(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """A tool of a function f, whose name errors about f say."""

    @functools.wraps(function)
    def run(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if torch.compiler.is_compiling() or traced_before_autograd():
            _check_recorder(function.__name__)
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        f = args[0] if args else kwargs.get("f", function)
        check_function(function.__name__, f)
        try:
            return function(*args, **kwargs)
        except MissingDerivative as error:
            error.say(function.__name__)
            raise

    return run


def _check_recorder(name: str) -> None:
    """Raises for a tool that ``torch.export`` or ``make_fx(pre_dispatch=True)`` cannot record: derivatives by
    ``torch.func`` are constants for them."""
    recorder, verb, made = "torch.export", "export", "exported"
    if not torch.compiler.is_compiling():
        recorder, verb, made = "make_fx(pre_dispatch=True)", "trace", "traced"
    elif not is_exporting():
        return
    if torch.compiler.is_dynamo_compiling() or name not in _SWEEPS:
        remedy = "export with strict=False" if name in _SWEEPS else f"{verb} f, and call {name} on what was {made}"
        raise RuntimeError(f"torchad_ext.{name}: {recorder} would silently record a constant here; {remedy}")


def check(function: str, x: Any, inputs: Any) -> None:
    """Raises if x, which a function without a derivative reads, depends on a tensor of the inputs of f."""
    if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex()) and _depends(x, inputs):
        raise MissingDerivative(function)


def _depends(x: Tensor, inputs: Any) -> bool:
    # Forward mode goes through torch.no_grad().
    if in_forward_mode() and forward_ad.unpack_dual(x).tangent is not None:
        return True
    if not torch.is_grad_enabled():
        return False
    if any(level.requires_grad for level in unwrapped(x)[:-1]):
        return True
    given = [unwrapped(y)[-1] for y in tree_leaves(inputs) if isinstance(y, Tensor)]
    x = unwrapped(x)[-1]
    if not x.requires_grad:
        return False
    if x.grad_fn is None:
        return any(x is y for y in given)
    leaves, inner = {id(y) for y in given}, {y.grad_fn for y in given} - {None}
    return any(node in inner or id(getattr(node, "variable", None)) in leaves for node in graph_nodes([x]))
