"""Fast, exact first and second derivatives for PyTorch, as drop-in ops."""

from ._build import BuildError as BuildError
from .derivatives import hessian as hessian
from .derivatives import hessian_diagonal as hessian_diagonal
from .derivatives import hvp as hvp
from .derivatives import jacobian as jacobian
from .derivatives import vhp as vhp
from .laplacian import ForwardLaplacian as ForwardLaplacian
from .laplacian import bilaplacian as bilaplacian
from .laplacian import forward_laplacian as forward_laplacian
from .laplacian import laplacian as laplacian
from .ops import *  # noqa: F403, the catalogue names what it holds
from .pointwise import Pointwise as Pointwise
from .pointwise import pointwise as pointwise
from .quadratic_form import quadratic_form as quadratic_form
from .sparsity import SparsityError as SparsityError
from .sparsity import hessian_sparsity as hessian_sparsity
from .trace import TraceError as TraceError
from .verify import Verification as Verification
from .verify import VerificationError as VerificationError
from .verify import verify as verify

__version__ = "0.1.0"
