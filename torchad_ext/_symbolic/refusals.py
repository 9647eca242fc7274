"""Refusals: what a declared function may not use, in words that name the line and what to write instead."""

from __future__ import annotations

import functools
import linecache
import sys
from pathlib import Path

import numpy
import torch

_LIBRARIES = (
    str(Path(torch.__file__).parent),
    str(Path(numpy.__file__).parent),
    functools.__file__,
    "<frozen",
    "<__array_function__",
)
_OWN = (
    str(Path(__file__).parent),
    *(
        str(Path(__file__).parents[1] / f"{name}.py")
        for name in "_arguments _declared _derivative _pointwise _elementwise _rowwise _row_function ops rows".split()
    ),
)


class TraceError(TypeError):
    """A function is not elementwise, or uses something that is not known to be. The message names the line."""


class NumberExpected(TraceError):
    """A function of PyTorch takes a Python number where an argument is a tensor."""


class Problem(TypeError):
    """The fault of a call, in words that follow the name of the function."""


def refusal(name: str, problem: str) -> TraceError:
    """The error for a function, with the line of the user's source that called it."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith(_LIBRARIES + _OWN):
        frame = frame.f_back
    file, line = frame.f_code.co_filename, frame.f_lineno
    text = linecache.getline(file, line).strip()
    spoken = _SPOKEN.get(name) or (name.strip("_") if name.startswith("__") else name)
    return TraceError(f"{file}:{line}: {text}\n  {spoken} {problem}")


_SPOKEN = {
    "__getitem__": "x[...]",
    "__setitem__": "x[...] = y",
    "__bool__": "a condition",
    "__float__": "float(x) or a function of math",
    "__array__": "a function of numpy",
    "_threshold": "threshold",
    "Tensor.where": "where",
}

CONTROL = "needs the value of an element, but the function is traced once for all; write torch.where(condition, a, b)"
NUMBER = "asks for the value of a symbol; use the functions of torch for a tensor"
LENGTH = (
    "asks for the value of x.shape[-1], which a kernel takes in each call; compute with it by +, -, *, / and **, or "
    "pass what depends on it as an argument"
)
OUTSIDE = "compute it outside and pass the result as an argument"
OUTSIDE_TENSOR = (
    "meets a tensor from outside the function; pass it as an argument, or, where a function that torch.jit.script made "
    "gives it, call that function in Python"
)
OF_ANOTHER = "reads a tensor of the function in which the op is declared; pass it as an argument"
OF_A_NUMBER = f"is given a Python number; {OUTSIDE}"
CONSTANT = "is given a constant; compute it with the math module"
NO_MASK = "is given what is no truth value; compare it, as in x != 0"
UNKNOWN = f"is not elementwise, or not known to be; {OUTSIDE}"
NEW_NAME = "give the result a new name, as in y = x + 1"
IN_PLACE = f"changes a tensor in place that is an argument or has a second name; {NEW_NAME}"
HAS_BACKWARD = (
    "an autograd.Function, whose backward an elementwise op does not see; apply it outside, or write a value v with "
    "the slope of s as s + (v - s).detach()"
)
REDUCTION = (
    "combines elements; reduce the result outside, as in op(x).sum(), or declare a function of rows by "
    "torchad_ext.rowwise"
)
COMBINES = f"combines elements; {OUTSIDE}"
PRODUCT = "combines elements; take the product outside, as in op(x @ w)"
INDEX = "picks elements; pass the part as an argument, as in op(x[..., 0])"
RANDOM = "draws random numbers; draw them outside and pass them as an argument"
SHAPE = "looks at a whole tensor, but a pointwise function sees one element; pass what it needs as an argument"
KEEPS = "a declared function keeps the dtype and the device of its tensors"
TYPE = f"changes or asks for dtype or device, but {KEEPS}; convert the arguments"
CREATES = "makes a tensor; write a Python number, or torch.full_like(x, c)"
IN_ROW = "keeps rows apart, and a row is the last dimension"
DROPPED = "combines one value a row without its dimension with a tensor that has it; reduce with keepdim=True"
ROW_SHAPE = "asks for another size than that of a row, x.shape[-1]; rows are computed apart"
ROW_INDEX = (
    "picks elements or dimensions; an argument [..., 1] meets each element of its row as it is, and so does the result "
    "of a reduction with keepdim=True"
)
IN_ROWS = {
    **dict.fromkeys(
        "index_select gather take narrow select split chunk unbind view reshape flatten transpose permute T mT expand "
        "expand_as cat stack roll flip".split(),
        "moves or picks elements; do it outside, as in op(x.mT)",
    ),
    **dict.fromkeys(
        "ndim dim numel nelement __len__ is_contiguous stride layout requires_grad grad".split(),
        "looks at a whole tensor, but a row op sees one row, of x.shape[-1] elements; pass what it needs",
    ),
    **dict.fromkeys(
        "sum mean amax amin logsumexp softmax log_softmax".split(), f"is not along the last dimension; {IN_ROW}"
    ),
    **dict.fromkeys(
        ("norm", "linalg_norm"), "has many meanings; write torch.linalg.vector_norm(x, dim=-1, keepdim=True)"
    ),
    "batch_norm": "is no part of a row op; write it with mean and rsqrt",
    **{
        name: f"is no part of a row op; write torchad_ext.{name}(..., dim=-1)"
        for name in ("normalize", "cosine_similarity")
    },
    **{
        name: f"is no part of a row op; write torchad_ext.{name}(x, None, weight), over the last dimension"
        for name in ("layer_norm", "rms_norm")
    },
    "pairwise_distance": "is no part of a row op; write torchad_ext.distance(x, y)",
}
REFUSED = {
    name: reason
    for names, reason in {
        "__bool__ __iter__ __contains__ is_nonzero equal allclose any all": CONTROL,
        "__float__ __int__ __index__ __complex__ item tolist numpy __array__": NUMBER,
        "sum mean amax amin std var norm linalg_norm softmax log_softmax logsumexp normalize layer_norm rms_norm "
        "cosine_similarity pairwise_distance": REDUCTION,
        "prod argmax argmin cumsum cumprod batch_norm median sort topk": COMBINES,
        "dot matmul mm bmm __matmul__ __rmatmul__ einsum linear": PRODUCT,
        "__getitem__ index_select gather take narrow select split chunk unbind view reshape flatten transpose permute "
        "T mT unsqueeze squeeze expand expand_as cat stack roll flip": INDEX,
        "rand randn randint rand_like randn_like bernoulli dropout normal rrelu feature_dropout alpha_dropout": RANDOM,
        "shape size ndim dim numel nelement __len__ is_contiguous stride layout requires_grad grad": SHAPE,
        "dtype type float double half bfloat16 int long bool is_floating_point is_complex device cpu cuda "
        "is_cuda to type_as": TYPE,
        "zeros ones full empty empty_like arange linspace from_numpy eye": CREATES,
        "prelu": "has weights along dimension 1, arguments broadcast from the last; write torch.where(x > 0, x, w * x)",
        "__setitem__": "changes a tensor in place; write torch.where(condition, a, b)",
        "view_as custom_function_call": f"is called by {HAS_BACKWARD}",
    }.items()
    for name in names.split()
}
