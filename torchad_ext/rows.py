"""The catalogue of row ops: norms, softmax and normalisation, with PyTorch's names and arguments."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ._arguments import COLUMN
from ._declared import Interval
from ._row_function import HALF
from ._rowwise import Rowwise, reshaped
from ._symbolic.symbols import is_symbol

__all__ = [  # noqa: RUF022, in the order of this file
    "softmax", "log_softmax", "logsumexp", "layer_norm", "rms_norm", "vector_norm", "normalize", "cosine_similarity",
    "distance",
]  # fmt: skip
ROW_CATALOGUE: dict[str, Rowwise] = {}
_SUMMARIES: dict[str, str] = {}
_STANDS_IN_FOR: dict[str, str] = {}
_BAR = r"\vert "

_DOC = """{summary}

    {drop_in}float16, bfloat16, float32 and float64 on CPU and CUDA run on native kernels, one for each order of
    derivative; every other dtype and device runs the PyTorch definition.

    Args:
{arguments}

    Returns:
        {returns}

    Raises:
        TypeError: no argument is a tensor, or the arguments do not fit the signature.

    Example:
        >>> x = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64, requires_grad=True)
        >>> y = {name}({call})
        >>> (slope,) = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
        >>> (curvature,) = torch.autograd.grad(slope.pow(2).sum(), x)
        >>> torch.testing.assert_close(y, {name}.definition({call}))
    """


_CALLS = {"vector_norm": ["dim=-1"]}  # what an example is given beside tensors


_USUALLY: dict[str, Mapping[str, Any]] = {
    "layer_norm": {"weight": COLUMN, "bias": COLUMN},
    "rms_norm": {"weight": COLUMN, "eps": 1e-7},
    **{name: {"dim": -1} for name in ("vector_norm", "normalize", "cosine_similarity")},
}  # what the kernels of a call without options are compiled for


class _AlongDim(Rowwise):
    """A row op with an argument ``dim``: another than the last dimension is moved there, where that pays."""

    under_root: Callable[..., Callable[[], torch.Tensor] | None] | None = None  # of a norm: the square of it, if smooth
    drops_dim = False  # without keepdim=True
    takes_list = True  # for dim, of one dimension
    moves_from = 0  # elements from which on it pays

    @functools.cached_property
    def _is_usual(self) -> Callable[[Sequence[Any]], bool]:
        """Are these arguments along the last dimension, with no other option that needs the definition?"""
        names = list(self._parameters.by_name)
        dim = names.index("dim")
        order = next((names.index(name) for name in ("ord", "p") if name in names), None)
        dtype = names.index("dtype") if "dtype" in names else None
        keepdim = names.index("keepdim") if "keepdim" in names else None

        def is_usual(args: Sequence[Any]) -> bool:
            is_along_last = type(args[dim]) is int and args[dim] == -1
            keeps_dtype = dtype is None or args[dtype] is None
            is_kept_or_not = keepdim is None or type(args[keepdim]) is bool
            return (
                is_along_last and keeps_dtype and is_kept_or_not and (order is None or args[order] in (1, 2, math.inf))
            )

        return is_usual

    @functools.cached_property
    def _operands(self) -> set[str]:
        """The arguments that have rows: those without a default."""
        return self._parameters.by_name.keys() - self._parameters.defaults.keys()

    def computed(self, args: Sequence[Any], sweep: Any = None, called: Sequence[Any] | None = None) -> Any:
        if self._is_usual(args):
            return super().computed(args, sweep)
        given = dict(zip(self._parameters.by_name, args, strict=True))
        tensors = {name: x for name, x in given.items() if isinstance(x, torch.Tensor)}
        # The dimension is one of the operands. A number that is a tensor may have more.
        dim, dims = given["dim"], max((x.dim() for name, x in tensors.items() if name in self._operands), default=0)
        if self.takes_list and isinstance(dim, (tuple, list)) and len(dim) == 1:
            dim = dim[0]
        is_known = isinstance(dim, int) and not isinstance(dim, bool) and -dims <= dim < dims
        is_kept_or_not = isinstance(given.get("keepdim", False), bool)
        order = given.get("ord", given.get("p", 2))
        if not (is_known and is_kept_or_not) or given.get("dtype") is not None or order not in (1, 2, math.inf):
            return self._define(args)
        if any(x.dim() > dims for x in tensors.values()):
            return self._define(args)
        if dim in (-1, dims - 1):
            return super().computed(list((given | {"dim": -1}).values()), sweep, args)
        if sweep is None and math.prod(args[0].shape) < self.moves_from:
            return self._define(args)
        operands = {name: x for name, x in tensors.items() if name in self._operands}
        whole = torch.broadcast_tensors(*operands.values()) if len(operands) > 1 else operands.values()
        tensors |= dict(zip(operands, whole, strict=True))
        given |= {name: x[(None,) * (dims - x.dim())].movedim(dim, -1) for name, x in tensors.items()}
        result = super().computed(list((given | {"dim": -1}).values()), sweep, args)
        if self.drops_dim and not given.get("keepdim"):
            return result
        return result.movedim(-1, dim).clone(memory_format=torch.contiguous_format)


class _Norm(_AlongDim):
    """A norm along a dimension, or of all elements."""

    def computed(self, args: Sequence[Any], sweep: Any = None, called: Sequence[Any] | None = None) -> Any:
        x, order, dim, keepdim, *others = args
        if dim is not None or not isinstance(x, torch.Tensor):
            return super().computed(args, sweep, called)
        norm = super().computed([x.flatten(), order, -1, False, *others], sweep, args)
        return norm[(None,) * x.dim()] if keepdim else norm


class _OverDims(Rowwise):
    """A normalisation over the last dimensions, which are made one."""

    def computed(self, args: Sequence[Any], sweep: Any = None, called: Sequence[Any] | None = None) -> Any:
        given = dict(zip(self._parameters.by_name, args, strict=True))
        x, shape = given["input"], given["normalized_shape"]
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            return super().computed(args, sweep)
        if any(isinstance(y, torch.Tensor) and y.is_nested for y in args):
            return super().computed(args, sweep)
        if given["eps"] is None and self._parameters.defaults["eps"] is None:
            given["eps"] = _epsilon(x.dtype)
        tensors = {name: y for name in ("input", "weight", "bias") if isinstance(y := given.get(name), torch.Tensor)}
        if any(y.dtype != x.dtype for y in tensors.values()):  # a model in half precision with weights in float32
            dtype = functools.reduce(torch.promote_types, (y.dtype for y in tensors.values()))
            given |= {name: y.to(dtype) for name, y in tensors.items()}
            return self.computed(list(given.values()), sweep).to(x.dtype)
        if shape is None:
            return super().computed(list(given.values()), sweep, args)
        _check_shape(self.__name__, tensors, shape)
        given["normalized_shape"] = None
        if len(shape) == 1:
            return super().computed(list(given.values()), sweep, args)
        given |= {name: y.flatten(-len(shape)) for name, y in tensors.items()}
        return reshaped(super().computed(list(given.values()), sweep, args), x.shape, sweep)


def _dims(name: str, shape: Sequence[int] | None, given: Mapping[str, Any]) -> tuple[int, ...]:
    """The dimensions of a shape of the last ones, which that of each tensor has to agree with."""
    if shape is None:
        return (-1,)
    tensors = {argument: x for argument, x in given.items() if isinstance(x, torch.Tensor)}
    if not any(map(is_symbol, tensors.values())):
        _check_shape(name, tensors, shape)
    return tuple(range(-len(shape), 0))


def _check_shape(name: str, tensors: Mapping[str, torch.Tensor], shape: Sequence[int]) -> None:
    if not isinstance(shape, (tuple, list)):
        raise TypeError(
            f"torchad_ext.{name} takes the last sizes of its input for normalized_shape, as in x.shape[-1:]; "
            f"got {type(shape).__name__}"
        )
    for argument, x in tensors.items():
        given = x.shape[-len(shape) :] if argument == "input" else x.shape
        if not len(shape) or tuple(given) != tuple(shape):
            expected = f"[{'*, ' * (argument == 'input')}{', '.join(map(str, shape))}]"
            raise RuntimeError(
                f"torchad_ext.{name}: given normalized_shape={list(shape)}, expected {argument} with shape {expected}, "
                f"but got size {list(x.shape)}"
            )


_ARGUMENTS = {
    "input": "[..., n], of any strides.",
    "x": "[..., n], of any strides.",
    "y": "broadcasts with x.",
    "x1": "[..., n], of any strides.",
    "x2": "broadcasts with x1.",
    "dim": "the dimension whose elements make a row; another than the last is moved there, or where that takes longer "
    "the definition runs.",
    "keepdim": "keep that dimension, of size 1.",
    "dtype": "anything but None runs the definition.",
    "normalized_shape": "of the last dimensions, which make a row; None for the last one.",
    "weight": "multiplies the result, of shape normalized_shape, or None.",
    "bias": "is added to it, of shape normalized_shape, or None.",
    "eps": "a small number in the denominator.",
    "ord": "the order of the norm; all but 1, 2 and infinity run the definition.",
    "p": "the order of the norm; all but 1, 2 and infinity run the definition.",
}


def _op(
    name: str,
    definition: Callable[..., Any],
    summary: str,
    *,
    like: str = "",
    domain: Interval | Mapping[str, Interval] = (-3.0, 3.0),
    cls: type[Rowwise] = _AlongDim,
    drops_dim: bool = False,
    takes_list: bool = True,
    moves_from: int = 0,
    under_root: Callable[..., Callable[[], torch.Tensor] | None] | None = None,
) -> Rowwise:
    """Declares an op.

    Args:
        name: of the op and of its kernels.
        definition: plain PyTorch, with the arguments and the defaults of the op.
        summary: what it is, with its formula and where that comes from.
        like: the function of PyTorch that it is a drop-in for.
        domain: where ``verify`` and the tests sample its tensors.
        cls: how its arguments say what a row is.
        drops_dim: has its result one element a row, without that dimension where ``keepdim`` does not keep it?
        takes_list: may its ``dim`` be a list of one dimension?
        moves_from: the elements from which on value, gradient and double backward along another dimension take less
            time in all than PyTorch's own.
        under_root: of a norm, for its arguments the function that computes its square, which the tools take in place of
            the square of the norm; None where the square is not smooth.
    """
    op = cls(definition, name=name, module="torchad_ext", domain=domain)
    op._usually = dict(_USUALLY.get(name, {}))
    of = op.__signature__
    op.__signature__ = of.replace(
        parameters=[p.replace(annotation=p.empty) for p in of.parameters.values()], return_annotation=of.empty
    )
    if isinstance(op, _AlongDim):
        op.drops_dim, op.takes_list, op.moves_from = drops_dim, takes_list, moves_from
        op.under_root = under_root
    parameters = op.__signature__.parameters
    tensors = [p.name for p in parameters.values() if p.default is p.empty]
    op.__doc__ = _DOC.format(
        name=name,
        summary=summary,
        drop_in=f"A drop-in for ``{like}``.\n    " if like else "",
        arguments="\n".join(f"        {p}: {_ARGUMENTS[p]}" for p in parameters),
        returns="[...], one number a row." if drops_dim else "[..., n].",
        call=", ".join(
            [*("x" if i == 0 else "x.detach().sin()" for i, _ in enumerate(tensors)), *_CALLS.get(name, [])]
        ),
    )
    ROW_CATALOGUE[name], _SUMMARIES[name], _STANDS_IN_FOR[name] = op, summary, like
    return op


def stands_in_for(name: str) -> str:
    """The function of PyTorch that an op is a drop-in for; empty if there is none."""
    return _STANDS_IN_FOR[name]


def _formula(found: re.Match[str]) -> str:
    """A formula for a cell of a table, in which a bar would end the cell."""
    return f"${found[1].replace('|', _BAR).strip()}$"


def table() -> str:
    """The catalogue of row ops as a table in Markdown."""
    lines = ["| op of rows | stands in for | what it computes |", "|---|---|---|"]
    for name, op in ROW_CATALOGUE.items():
        tensors = [p.name for p in op.__signature__.parameters.values() if p.default is p.empty]
        summary = re.sub(r":math:`(.*?)`", _formula, _SUMMARIES[name]).replace("``", "`")
        like = f"`{stands_in_for(name)}`" if stands_in_for(name) else ""
        lines.append(f"| `ad.{name}({', '.join(tensors)}, ...)` | {like} | {summary} |")
    return "\n".join(lines) + "\n"


def _softmax(input: torch.Tensor, dim: int = -1, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.softmax(input, dim, dtype=dtype)


def _log_softmax(input: torch.Tensor, dim: int = -1, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.log_softmax(input, dim, dtype=dtype)


def _logsumexp(input: torch.Tensor, dim: int = -1, keepdim: bool = False) -> torch.Tensor:
    return torch.logsumexp(input, dim, keepdim)


def _layer_norm(
    input: torch.Tensor,
    normalized_shape: Sequence[int] | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    if not input.is_floating_point():
        raise NotImplementedError(f"torchad_ext.layer_norm takes real floating-point numbers; got {input.dtype}")
    dims = _dims("layer_norm", normalized_shape, {"input": input, "weight": weight, "bias": bias})
    centred = input - input.mean(dims, keepdim=True)
    result = centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)
    result = result if weight is None else result * weight
    return (result if bias is None else result + bias).to(input)  # beside a weight of another dtype


def _epsilon(dtype: torch.dtype) -> float:
    """The precision of the numbers that a dtype is computed in, as in PyTorch."""
    return torch.finfo(torch.float32 if dtype in HALF else dtype).eps


def _rms_norm(
    input: torch.Tensor,
    normalized_shape: Sequence[int] | None = None,
    weight: torch.Tensor | None = None,
    eps: float | None = None,
) -> torch.Tensor:
    if not (input.is_floating_point() or input.is_complex()):
        raise NotImplementedError(f"torchad_ext.rms_norm takes floating-point numbers; got {input.dtype}")
    dims = _dims("rms_norm", normalized_shape, {"input": input, "weight": weight})
    small = _epsilon(input.dtype) if eps is None else eps
    result = input * torch.rsqrt(input.square().mean(dims, keepdim=True) + small)
    return (result if weight is None else result * weight).to(input)


def _euclidean(x: torch.Tensor, dim: Any) -> torch.Tensor:
    """The norm with ``keepdim=True``, which is 0 with all its derivatives where x is 0."""
    square = x.square().sum(dim, keepdim=True)
    is_zero = square == 0
    return torch.where(is_zero, 0.0, torch.sqrt(torch.where(is_zero, 1.0, square)))


def _vector_norm(
    x: torch.Tensor, ord: float = 2, dim: int | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    wide = x if dtype is None else x.to(dtype)
    is_euclidean = ord == 2 and isinstance(keepdim, bool) and x.is_floating_point()
    keeps_numbers = dtype is None or (dtype.is_floating_point and torch.promote_types(x.dtype, dtype) == dtype)
    if not ((dim is None or isinstance(dim, (int, tuple, list))) and is_euclidean and keeps_numbers):
        of_order: torch.Tensor = torch.linalg.vector_norm(x, ord, dim, keepdim, dtype=dtype)
        return of_order
    norm = _euclidean(wide, dim)
    return norm if keepdim else norm.sum(dim)


def _square_of_norm(
    x: torch.Tensor, ord: float = 2, dim: int | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Callable[[], torch.Tensor] | None:
    if ord != 2 or not x.is_floating_point():
        return None
    return lambda: (x if dtype is None else x.to(dtype)).square().sum(dim, keepdim)


def _square_of_distance(
    x: torch.Tensor, y: torch.Tensor, dim: int = -1, keepdim: bool = False
) -> Callable[[], torch.Tensor] | None:
    if not (x.is_floating_point() and y.is_floating_point()):
        return None
    return lambda: (x - y).square().sum(dim, keepdim)


def _normalize(input: torch.Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> torch.Tensor:
    if not input.is_floating_point():
        return F.normalize(input, p, dim, eps)
    if p == 2:
        return input * _euclidean(input, dim).clamp_min(eps).reciprocal()
    # The square of a reciprocal, in its slope, leaves the range of float32 at 1e19, which norms without squares reach.
    norm: torch.Tensor = torch.linalg.vector_norm(input, p, dim, keepdim=True)
    return input / norm.clamp_min(eps)


def _cosine_similarity(x1: torch.Tensor, x2: torch.Tensor, dim: int = 1, eps: float = 1e-8) -> torch.Tensor:
    if not (x1.is_floating_point() and x2.is_floating_point() and isinstance(dim, int)):
        return F.cosine_similarity(x1, x2, dim, eps)
    x1, x2 = torch.broadcast_tensors(x1, x2)
    # Each by its own norm: the product of two norms leaves the range of float32 at 1e19, its derivatives far earlier.
    directions = [x * _euclidean(x, dim).clamp_min(eps).reciprocal() for x in (x1, x2)]
    return (directions[0] * directions[1]).sum(dim)


def _distance(x: torch.Tensor, y: torch.Tensor, dim: int = -1, keepdim: bool = False) -> torch.Tensor:
    if not (x.is_floating_point() and y.is_floating_point()):
        return torch.linalg.vector_norm(x - y, 2, dim, keepdim)  # type: ignore[no-any-return]
    norm = _euclidean(x - y, dim)
    return norm if keepdim else norm.sum(dim)


softmax = _op(
    "softmax",
    _softmax,
    r"The softmax, :math:`e^{x_i} / \sum_j e^{x_j}`, computed of x less its largest element.",
    like="torch.softmax",
    takes_list=False,
    moves_from=2**20,
)
log_softmax = _op(
    "log_softmax",
    _log_softmax,
    r"The logarithm of the softmax, :math:`x_i - \log\sum_j e^{x_j}`.",
    like="torch.log_softmax",
    takes_list=False,
    moves_from=2**20,
)
logsumexp = _op(
    "logsumexp",
    _logsumexp,
    r"The logarithm of a sum of exponentials, :math:`\log\sum_j e^{x_j}`.",
    like="torch.logsumexp",
    drops_dim=True,
    moves_from=2**14,
)
layer_norm = _op(
    "layer_norm",
    _layer_norm,
    r"Layer normalisation, :math:`(x - \mu) / \sqrt{\sigma^2 + \varepsilon}` with mean and variance of the row, "
    "times a weight, plus a bias (Ba et al., 2016, arXiv:1607.06450).",
    like="torch.nn.functional.layer_norm",
    cls=_OverDims,
)
rms_norm = _op(
    "rms_norm",
    _rms_norm,
    r"Root mean square normalisation, :math:`x / \sqrt{\frac1n \sum_j x_j^2 + \varepsilon}`, times a weight "
    "(Zhang and Sennrich, 2019, arXiv:1910.07467).",
    like="torch.nn.functional.rms_norm",
    cls=_OverDims,
)
vector_norm = _op(
    "vector_norm",
    _vector_norm,
    r"The Euclidean norm, :math:`|x| = \sqrt{\sum_j x_j^2}`. At 0 it and all its derivatives are 0: the first is "
    "the smallest subgradient, as in PyTorch, whose second is nan.",
    like="torch.linalg.vector_norm",
    cls=_Norm,
    drops_dim=True,
    under_root=_square_of_norm,
)
normalize = _op(
    "normalize",
    _normalize,
    r"The direction, :math:`x / \max(|x|, \varepsilon)`. Where the norm is below :math:`\varepsilon`, at 0 too, it is "
    r"the linear function :math:`x / \varepsilon`, with that function's derivatives.",
    like="torch.nn.functional.normalize",
)
cosine_similarity = _op(
    "cosine_similarity",
    _cosine_similarity,
    r"The cosine of an angle, :math:`x \cdot y / (\max(|x|, \varepsilon) \max(|y|, \varepsilon))`, at 0 with the "
    "derivatives of ``normalize``.",
    like="torch.nn.functional.cosine_similarity",
    drops_dim=True,
    takes_list=False,
)
distance = _op(
    "distance",
    _distance,
    r"The distance of two points, :math:`|x - y|`. Where they coincide it and all its derivatives are 0.",
    drops_dim=True,
    under_root=_square_of_distance,
)
