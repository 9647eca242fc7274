"""Fast, exact first and second derivatives for PyTorch, as drop-in ops."""

from ._build import BuildError as BuildError
from .ops import exp as exp
from .ops import sin as sin
from .quadratic_form import quadratic_form as quadratic_form
from .verify import Verification as Verification
from .verify import VerificationError as VerificationError
from .verify import verify as verify

__version__ = "0.1.0"
