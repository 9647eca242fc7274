"""rowwise: an op from a plain PyTorch function of rows, with a fused kernel for every derivative."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any, overload

import torch
from torch.compiler import is_compiling
from torch.overrides import has_torch_function

from ._arguments import COLUMN, COMPARED, ROW, SCALAR, TENSOR, is_tensor, key_of
from ._declared import Declared, Interval, results_of
from ._elementwise import Elementwise
from ._native import fast_path, kernels
from ._native.kernels import DTYPES
from ._row_function import HALF, Call, RowFunction, shape_of
from ._symbolic.captured import plain
from ._symbolic.expr import Expr
from ._symbolic.program import Program
from ._symbolic.refusals import NumberExpected, TraceError
from ._symbolic.symbols import is_symbol
from ._torch_state import is_autocast_enabled, is_being_traced, traced_before_autograd, without_view


class Rowwise(Declared):
    """An op on rows, the last dimension, with all its derivatives. :func:`rowwise` makes one of a function.

    Calling it computes the function by a native kernel where there is one for the tensors' device and dtype, by the
    function itself where there is not, and by the function while ``torch.compile`` or ``torch.export`` trace.

    Attributes:
        definition: the function in plain PyTorch.

    Example:
        >>> share = Rowwise(lambda x: x / x.sum(-1, keepdim=True), name="share")
        >>> share(torch.tensor([[1.0, 3.0]]))
        tensor([[0.2500, 0.7500]])
    """

    decorator = "rowwise"
    _front: Any = None  # in C++

    def sample(
        self,
        uniform: Callable[[tuple[int, ...]], torch.Tensor],
        shape: tuple[int, ...],
        view: Callable[[torch.Tensor], torch.Tensor],
    ) -> tuple[Any, ...]:
        """Arguments of the usual call, from uniform numbers: views of tensors of a shape, weights as long as a row."""
        intervals, arguments = self.intervals, []
        length = view(torch.empty(shape)).shape[-1]
        for name, kind in zip(self._parameters.by_name, self._usual_arguments, strict=True):
            if not is_tensor(kind):
                arguments.append(kind)
                continue
            low, high = intervals.get(name, (-3.0, 3.0))
            numbers = uniform((length,)) if kind is COLUMN else view(uniform(shape))
            arguments.append(low + (high - low) * numbers)
        return tuple(arguments[: len(arguments) - len(self._parameters.keywords)])

    def _repr_latex_(self) -> str | None:
        """The formula, where it is short enough to be read."""
        formula = self.latex()
        return rf"$\displaystyle {formula}$" if len(formula) < _LONG_FORMULA else None

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            self._check_call((*args, *kwargs.values()))
            return results_of(_in_float32(self.definition, *self._parameters.named(args, kwargs)))
        if self._front:
            result = self._front.call(args, kwargs)
            if result is not NotImplemented:
                return result
        if kwargs or len(args) != len(self._parameters.by_name) or self._parameters.keywords:
            args = self.bound(args, kwargs)
        if is_being_traced():
            return self._define(args)
        if has_torch_function(args):
            return self._define(args) if traced_before_autograd() else self._handled(args)
        return self.computed(args)

    def computed(self, args: Sequence[Any], sweep: Any = None, called: Sequence[Any] | None = None) -> Any:
        """The results for an argument for each parameter.

        Args:
            args: the arguments, whose rows are the last dimension.
            sweep: of tensors that carry derivatives in it.
            called: those that the op was called with, if it made others of them.
        """
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        if not _are_alike(tensors) or (shape := _shape(tensors)) is None:
            return self._define(args)
        if self._untraced and self._kinds(args) in self._untraced:
            return self._define(args)
        try:
            kinds, member, scalars = self.resolve(args)
        except NumberExpected:  # PyTorch reads that of a tensor without dimensions, or says what is wrong
            return self._define(args)
        except TraceError:
            kinds = self._kinds(args)
            if ROW not in kinds and COLUMN not in kinds:
                raise
            self._untraced.add(kinds)  # what has one value a row may be reduced in PyTorch
            return self._define(args)
        assert isinstance(member, RowFunction)
        device = kernels.device_for(tensors if sweep is None else list(map(sweep.value, tensors)))
        if device is None or not member.keeps(tensors[0].dtype):
            return self._define(args)
        if not member.results_are_whole(tensors):
            return self._define(args)  # an output has the shape of what it depends on
        xs = []
        for x, kind in zip(args, kinds, strict=True):
            if is_tensor(kind):
                whole = shape_of(_NAMES[kind], shape)
                if x.shape != whole:
                    x = x.reshape(whole) if kind is COLUMN else x.expand(whole)
                xs.append(x)
        numbers = tuple([float(args[i]) for i in scalars])
        call = Call(shape, numbers)
        result = member.on_device(device, xs, call) if sweep is None else sweep.rowwise(member, xs, call)
        if result is NotImplemented:
            return self._define(args)
        dropped = self._dropped.get(member)
        if device == "cpu" and member._fast_function and sweep is None:
            self._put_in_front(args if called is None else called, args, kinds, member, scalars, dropped)
        if dropped is None:
            return result
        if not isinstance(result, tuple):
            return reshaped(result, shape[:-1], sweep)
        return tuple([reshaped(y, shape[:-1], sweep) if d else y for y, d in zip(result, dropped, strict=True)])

    @functools.cached_property
    def _untraced(self) -> set[tuple[Any, ...]]:
        """The kinds of arguments that broadcast for which the definition runs."""
        return set()

    @functools.cached_property
    def _in_front(self) -> set[tuple[Any, ...]]:
        """The calls that C++ takes."""
        return set()

    def _put_in_front(
        self,
        called: Sequence[Any],
        args: Sequence[Any],
        kinds: tuple[Any, ...],
        member: RowFunction,
        scalars: Sequence[int],
        dropped: tuple[bool, ...] | None,
    ) -> None:
        """Lets C++ take such calls from now on, if it understands them: tensors are as given, of the shapes of their
        kinds, and of what is neither a tensor nor a number it compares values."""
        arguments, options, dims = [], [], 0
        for x, y, kind in zip(called, args, kinds, strict=True):
            option = None
            if is_tensor(kind):
                argument = _ARGUMENTS[kind]
                if x is not y:
                    return
            elif kind is SCALAR and x is y:
                argument = _NUMBER
            elif isinstance(x, (tuple, list)) and len(x) == 1 and y is None:
                argument = _LENGTH
            elif x is y and (x is None or type(x) in COMPARED):
                argument, option = _OPTION, x
            elif x is None:  # what stands for it depends on the dtype
                argument = _OPTION
            elif type(x) is int and y == -1:  # the last of so many dimensions
                argument, option, dims = _OPTION, x, max(a.dim() for a in args if isinstance(a, torch.Tensor))
            else:
                return
            arguments.append(argument)
            options.append(option)
        if _LENGTH in arguments and kinds.count(TENSOR) > 1:  # beside longer tensors a weight has to be one row
            if any(x.dim() != 1 for x in args if isinstance(x, torch.Tensor)):
                return
            dims = 1
        dtype = next(x.dtype for x, kind in zip(args, kinds, strict=True) if is_tensor(kind))
        numbers = tuple([(i, 0.0) if arguments[i] == _NUMBER else (-1, float(args[i])) for i in scalars])
        key = dtype, dims, *arguments, *map(key_of, options), *numbers
        if TENSOR not in kinds or key in self._in_front or len(kinds) > _MOST_PARAMETERS:
            return
        front = self.__dict__.setdefault("_front", fast_path.front(tuple(self._parameters.by_name.values())))
        bits = sum(1 << k for k, is_dropped in enumerate(dropped or ()) if is_dropped)
        front.add_rows(
            member._fast_function, kernels.DTYPES[dtype], tuple(arguments), tuple(options), numbers, bits, dims
        )
        self._in_front.add(key)

    def _define(self, arguments: Sequence[Any]) -> Any:
        self._check_call(arguments)
        return _in_float32(lambda *args: self.define(args), arguments, {})

    def _kinds(self, args: Sequence[Any]) -> tuple[Any, ...]:
        kinds = super()._kinds(args)
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        if len(tensors) < 2 and (not tensors or (tensors[0].dim() and tensors[0].shape[-1] > 1)):
            return kinds
        dims = max(x.dim() for x in tensors)
        if max(x.shape[-1] if x.dim() else 1 for x in tensors) == 1:
            return kinds
        return tuple([kind_in_rows(x, dims) if kind is TENSOR else kind for x, kind in zip(args, kinds, strict=True)])

    def _kernels_of_order(self, order: int) -> list[Elementwise]:
        known: tuple[Expr, ...] = ()
        for lower in range(order + 1):
            function = self._order(lower)
            assert isinstance(function, RowFunction)
            recording = function.recorded(known)
            known = recording.kept + recording.passed
        return list(dict.fromkeys((function, recording.function)))

    def _member(self, program: Program, definition: Callable[..., Any]) -> RowFunction:
        dropped = tuple([kind == "dropped" for kind in program.kinds])
        kinds = tuple(["row" if kind == "dropped" else kind for kind in program.kinds])
        member = RowFunction(replace(program, kinds=kinds), self._kernel_name)
        if any(dropped):
            self._dropped[member] = dropped
        return member

    def _traced_as(self, member: Elementwise) -> Program:
        dropped = self._dropped.get(member, ())
        kinds = ["dropped" if d else kind for d, kind in zip_longest(dropped, member.program.kinds)]
        return replace(member.program, kinds=tuple(kinds))

    @functools.cached_property
    def _dropped(self) -> dict[Elementwise, tuple[bool, ...]]:
        """The outputs that have no last dimension."""
        return {}


_LONG_FORMULA = 300  # characters of LaTeX
_NAMES = {TENSOR: "tensor", ROW: "row", COLUMN: "column"}
_MOST_PARAMETERS = 64  # most_parameters of csrc/fast_path/function.cpp
_ARGUMENTS = {TENSOR: 0, ROW: 1, COLUMN: 2}  # Argument of csrc/fast_path/rows.h
_NUMBER, _OPTION, _LENGTH = 3, 4, 5


def reshaped(y: Any, shape: Sequence[int], sweep: Any = None) -> Any:
    """A result that was just made, in another shape: no view, so that it may be written in place like any other."""
    return without_view(y, shape) if sweep is None else y.reshape(shape)


def _in_float32(definition: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Calls a definition with half types as kernels compute them: in float32, rounded once. A result of another dtype
    keeps it, as that of a complex number does."""
    given = [*args, *kwargs.values()]
    tensors = [x for x in given if isinstance(x, torch.Tensor)]
    if any(map(is_symbol, tensors)):  # whose dtype is not asked for
        return definition(*args, **kwargs)
    dtype = tensors[0].dtype if tensors else torch.float32
    is_chosen = is_autocast_enabled() or any(isinstance(x, torch.dtype) for x in given)
    are_alike = all(x.dtype == dtype and x.layout is torch.strided for x in tensors)
    if is_chosen or dtype not in HALF or not are_alike:
        return definition(*args, **kwargs)
    wide = [x.float() if isinstance(x, torch.Tensor) else x for x in args]
    result = definition(*wide, **{key: x.float() if isinstance(x, torch.Tensor) else x for key, x in kwargs.items()})
    results = result if isinstance(result, (tuple, list)) else (result,)
    rounded = tuple([y.to(dtype) if y.dtype is torch.float32 else y for y in results])
    return rounded if results is result else rounded[0]


def kind_in_rows(x: Any, dims: int) -> Any:
    """The kind of a tensor beside others of so many dimensions, in rows of more than one element."""
    if not isinstance(x, torch.Tensor):
        return TENSOR
    if x.dim() == 0 or x.shape[-1] == 1:
        return ROW
    return COLUMN if x.dim() == 1 and dims > 1 else TENSOR


def _are_alike(tensors: Sequence[torch.Tensor]) -> bool:
    """Have they one dtype, for which there are kernels, one device, and a shape?"""
    if not tensors:
        return True
    first = tensors[0]
    if first.dtype not in DTYPES or first.is_nested:
        return False
    return all(x.dtype is first.dtype and x.device == first.device and not x.is_nested for x in tensors[1:])


def _shape(tensors: Sequence[torch.Tensor]) -> tuple[int, ...] | None:
    """The shape that tensors broadcast to; None where they do not, or there are no elements or no rows."""
    if not tensors:
        return ()
    shape = max(tensors, key=torch.Tensor.dim).shape
    if any(x.shape != shape and x.shape != shape[len(shape) - x.dim() :] for x in tensors):
        try:
            shape = torch.broadcast_shapes(*(x.shape for x in tensors))
        except RuntimeError:
            return None
    return tuple(shape) if len(shape) and 0 not in shape else None


@overload
def rowwise(function: Callable[..., Any], /) -> Rowwise: ...
@overload
def rowwise(*, domain: Interval | Mapping[str, Interval] = ...) -> Callable[[Callable[..., Any]], Rowwise]: ...
def rowwise(
    function: Callable[..., Any] | None = None, /, *, domain: Interval | Mapping[str, Interval] = (-3.0, 3.0)
) -> Any:
    r"""Makes an op of a plain PyTorch function of rows: one fused kernel for every order of derivative.

    A row is the last dimension. As :func:`pointwise`, for functions that also reduce over it: norms, softmax,
    normalisation. Such functions are closed under differentiation: the cotangent of a sum over a row goes to each
    element, that of a row's value used by each element is a sum. The function is traced once, when it is declared.

    Args:
        function: tensors ``[..., n]`` and Python numbers to a tensor or a tuple of tensors, ``[..., n]``, ``[..., 1]``
            or ``[...]``, by PyTorch's elementwise functions and by ``sum``, ``mean``, ``amax``, ``amin``,
            ``logsumexp``, ``softmax``, ``log_softmax``, ``var``, ``std``, ``torch.linalg.vector_norm`` (of order 2,
            with no slope at 0) and ``torch.linalg.vecdot`` with ``dim=-1``; ``x.shape[-1]`` is the number n.
            Arguments with defaults are as in :func:`pointwise`.
        domain: the interval from which :func:`verify` samples the tensors, or one for each argument by name.

    Returns:
        The op, called as the function is. Tensors broadcast. Those of shape ``[n]`` beside larger ones (weights) and
        ``[..., 1]`` (a value a row) have their gradients summed in the kernel. Results are contiguous.

    Raises:
        TypeError: at declaration, if the function combines rows, reduces along another dimension, or is refused as
            :func:`pointwise` refuses it; the message names the line and what to do instead.
        RuntimeError: at a call that runs the function itself, if it computes something else than when it was declared.

    Example:
        >>> import torch, torchad_ext
        >>> @torchad_ext.rowwise
        ... def rms_norm(x, weight, eps=1e-6):
        ...     return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight
        >>> x = torch.tensor([[3.0, 4.0]], requires_grad=True)
        >>> rms_norm(x, torch.ones(2))
        tensor([[0.8485, 1.1314]], grad_fn=<_ApplyBackward>)
    """
    if function is None:
        return functools.partial(rowwise, domain=domain)
    return Rowwise(plain(function), domain=domain).traced()
