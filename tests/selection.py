"""Which tests run: of a long parametrisation ``make test`` runs some values and ``make test-long`` the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch.cuda.is_available() is False")


def few(values: Iterable[Any], chosen: Callable[..., bool]) -> list[Any]:
    """The values as parameters, those not chosen with the marker ``long``; a tuple stands for several arguments.

    Example:
        >>> [parameter.values for parameter in few(range(3), lambda n: n < 2) if parameter.marks]
        [(2,)]
    """
    given = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*value, marks=() if chosen(*value) else pytest.mark.long) for value in given]
