"""Kernels of both catalogues, which a prebuilt wheel brings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ._declared import Declared
from ._elementwise import Elementwise
from ._native.kernels import DTYPES
from ._row_function import RowFunction
from ._symbolic import cpp
from ._symbolic.cpp import Kernel
from ._symbolic.expr import Expr
from .ops import CATALOGUE, exp, sin
from .rows import ROW_CATALOGUE

HIGHEST_ORDER, HIGHEST_ROW_ORDER = 3, 2  # of derivatives; a kernel of rows takes some six times as long to compile
DTYPES_ON_CPU = (torch.float32, torch.float64)
# Arguments of other usual calls; each has kernels of its own.
_OTHER_CALLS: dict[str, dict[str, Any]] = {
    "pow": {"exponent": 2.0},
    "gelu": {"approximate": "tanh"},
    "logsumexp": {"keepdim": True},
    "vector_norm": {"keepdim": True},
    "distance": {"keepdim": True},
    "layer_norm": {"weight": None, "bias": None},
    "rms_norm": {"weight": None},
}


def prebuilt_kernels(device: str) -> list[Kernel]:
    """The kernels for a device: on the CPU of both catalogues in float32 and float64, on CUDA of ``sin``, ``exp`` and
    ``quadratic_form`` in every dtype.

    Each exports a symbol that stands for its C++: another version of an op asks for another, and does not find it.
    """
    if device == "cuda":
        functions = [op._order(order) for op in (sin, exp) for order in (0, 1, 2)]
        kernels = [function.source(device, dtype) for function in functions for dtype in DTYPES]
        return kernels + [cpp.quadratic_form(dtype) for dtype in cpp.DTYPES]
    members = [member for op in CATALOGUE.values() for member in _family(op, HIGHEST_ORDER)]
    members += [member for op in ROW_CATALOGUE.values() for member in _family(op, HIGHEST_ROW_ORDER)]
    found = (m.source(device, dtype, *variant) for m in members for variant in m.variants for dtype in DTYPES_ON_CPU)
    return list({kernel.symbol: kernel for kernel in found}.values())


def _family(op: Declared, highest: int) -> Iterator[Elementwise]:
    """The functions that usual calls of an op, and their derivatives, apply."""
    for options in ({}, _OTHER_CALLS.get(op.__name__, {})):
        usual = dict(zip(op.__signature__.parameters, op._usual_arguments, strict=True))
        members: list[tuple[Elementwise, tuple[Expr, ...]]] = [(op.resolve(list({**usual, **options}.values()))[1], ())]
        for order in range(highest + 1):
            derivatives = []
            for member, known in members:
                yield member
                if isinstance(member, RowFunction):
                    recording = member.recorded(known)
                    yield recording.function
                    known = recording.kept + recording.passed
                if order < highest:
                    derivatives += [(d, known) for d in _derivatives(member, order + 1 < HIGHEST_ORDER)]
            members = derivatives


def _derivatives(function: Elementwise, rest: bool) -> Iterator[Elementwise]:
    """The derivatives in all inputs (a loss of a gradient), in the first (derivatives of the op in its argument), and
    in the rest."""
    inputs, given = len(function.program.inputs), (True,) * len(function.program.outputs)
    first = (True, *(False,) * (inputs - 1))
    wanted = {(True,) * inputs, first, *([tuple(not w for w in first)] if rest and inputs > 1 else [])}
    for mask in sorted(wanted, reverse=True):
        derivative = function.vjp(mask, given).function
        if derivative.program.outputs:
            yield derivative
