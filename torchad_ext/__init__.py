"""Fast, exact first and second derivatives for PyTorch, as drop-in ops."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING
from typing import Any as _Any

from ._build import BuildError as BuildError
from ._symbolic.refusals import TraceError as TraceError
from .ops import *  # noqa: F403, the catalogue names what it holds
from .pointwise import Pointwise as Pointwise
from .pointwise import pointwise as pointwise
from .quadratic_form import quadratic_form as quadratic_form
from .verify import Verification as Verification
from .verify import VerificationError as VerificationError
from .verify import verify as verify

if TYPE_CHECKING:
    from .decompression import SparsityError as SparsityError
    from .derivatives import hessian as hessian
    from .derivatives import hessian_diagonal as hessian_diagonal
    from .derivatives import hvp as hvp
    from .derivatives import jacobian as jacobian
    from .derivatives import vhp as vhp
    from .laplacians import ForwardLaplacian as ForwardLaplacian
    from .laplacians import bilaplacian as bilaplacian
    from .laplacians import forward_laplacian as forward_laplacian
    from .laplacians import laplacian as laplacian
    from .pattern import hessian_sparsity as hessian_sparsity

__version__ = "0.1.0"

# Imported when first asked for: their tables of PyTorch's operations take as long as all the rest.
_LATER = {
    **dict.fromkeys(("hessian", "hessian_diagonal", "hvp", "jacobian", "vhp"), "derivatives"),
    **dict.fromkeys(("ForwardLaplacian", "bilaplacian", "forward_laplacian", "laplacian"), "laplacians"),
    "SparsityError": "decompression",
    "hessian_sparsity": "pattern",
}


def __getattr__(name: str) -> _Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(_import_module(f"{__name__}.{_LATER[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
