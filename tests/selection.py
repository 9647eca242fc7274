"""Which tests run: of a long parametrisation ``make test`` runs some values and ``make test-long`` the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
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


def every_other(*lists: Iterable[Any]) -> list[Any]:
    """All combinations as parameters, every other one marked ``long``: each value meets half of those of another list.

    Example:
        >>> [parameter.values for parameter in every_other("ab", (1, 2)) if not parameter.marks]
        [('a', 1), ('b', 2)]
    """
    combinations = [zip(*numbered, strict=True) for numbered in product(*map(enumerate, lists))]
    return [pytest.param(*values, marks=pytest.mark.long if sum(i) % 2 else ()) for i, values in combinations]
