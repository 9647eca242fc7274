"""Fast, exact first and second derivatives for PyTorch, as drop-in ops."""

import typing as _typing
from importlib import import_module as _import_module

from . import _torch_state as _torch_state
from . import nn as nn
from ._linearity import register_rule as register_rule
from ._native.toolchain import BuildError as BuildError
from ._pointwise import Pointwise as Pointwise
from ._pointwise import pointwise as pointwise
from ._quadratic_form import quadratic_form as quadratic_form
from ._rowwise import Rowwise as Rowwise
from ._rowwise import rowwise as rowwise
from ._symbolic.refusals import TraceError as TraceError
from ._verification.verify import Verification as Verification
from ._verification.verify import VerificationError as VerificationError
from ._verification.verify import verify as verify
from ._warnings import warn_or_raise as _warn_or_raise
from .ops import *  # noqa: F403, the catalogue names what it holds
from .rows import *  # noqa: F403, so does this one

if _typing.TYPE_CHECKING:
    from ._forward.laplacian import ForwardLaplacian as ForwardLaplacian
    from ._forward.laplacian import bilaplacian as bilaplacian
    from ._forward.laplacian import forward_laplacian as forward_laplacian
    from ._forward.laplacian import laplacian as laplacian
    from ._forward.partials import Sum as Sum
    from ._forward.partials import partials as partials
    from ._forward.partials import taylor as taylor
    from ._hessian.decompression import SparsityError as SparsityError
    from ._hessian.dense import hessian as hessian
    from ._hessian.dense import jacobian as jacobian
    from ._hessian.diagonal import hessian_diagonal as hessian_diagonal
    from ._hessian.pattern import hessian_sparsity as hessian_sparsity
    from ._hessian.products import hvp as hvp
    from ._hessian.products import vhp as vhp
    from .compiler import explain as explain
    from .plot import draw_graph as draw_graph
    from .plot import plot_cost as plot_cost
    from .plot import plot_derivatives as plot_derivatives
    from .plot import plot_sparsity as plot_sparsity

if _torch_state.missing:
    _warn_or_raise(
        RuntimeError(f"torchad_ext knows no torch {_torch_state.version}: it lacks {_torch_state.missing}"),
        "; slower public ways serve",
    )

__version__ = "0.1.0"

# Imported when first asked for: their tables of PyTorch's operations take as long as all the rest.
_LATER = {
    **dict.fromkeys(("hvp", "vhp"), "_hessian.products"),
    **dict.fromkeys(("hessian", "jacobian"), "_hessian.dense"),
    "hessian_diagonal": "_hessian.diagonal",
    **dict.fromkeys(("ForwardLaplacian", "bilaplacian", "forward_laplacian", "laplacian"), "_forward.laplacian"),
    **dict.fromkeys(("draw_graph", "plot_cost", "plot_derivatives", "plot_sparsity"), "plot"),
    **dict.fromkeys(("Sum", "partials", "taylor"), "_forward.partials"),
    "SparsityError": "_hessian.decompression",
    "explain": "compiler",
    "hessian_sparsity": "_hessian.pattern",
}


def __getattr__(name: str) -> _typing.Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(_import_module(f"{__name__}.{_LATER[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
