"""rowwise: an op from a plain PyTorch function of rows, with a fused kernel for every derivative."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, overload

import torch
from torch.overrides import has_torch_function

from ._declared import COLUMN, ROW, TENSOR, Declared, Interval, is_tensor
from ._elementwise import Elementwise
from ._native import kernels
from ._native.kernels import DTYPES
from ._row_function import RowFunction, shape_of
from ._symbolic.captured import plain
from ._symbolic.program import Program
from ._symbolic.refusals import NumberExpected
from ._torch_state import is_autocast_enabled, is_being_traced, traced_before_autograd


class _Plan(NamedTuple):
    """How a call runs, whatever the elements of its tensors and its numbers are.

    Attributes:
        member: what it applies.
        shape: of the tensors with a value an element.
        places: of each tensor its place among the arguments, the shape that it is given if it has another, and whether
            it is a column.
        numbers: of each number its place, and its value where the argument is no float.
    """

    member: RowFunction
    shape: tuple[int, ...]
    places: tuple[tuple[int, tuple[int, ...] | None, bool], ...]
    numbers: tuple[tuple[int, float], ...]


_MOST_PLANS = 256  # of an op
_PLAIN = frozenset((int, bool, str, type(None), torch.dtype, torch.Size))  # options that are their own key


def _key(args: Sequence[Any], are_fixed: bool) -> tuple[Any, ...] | None:
    """What the plan of a call depends on; None where that is not told here.

    Args:
        args: of the call.
        are_fixed: does it depend on the values of numbers?
    """
    key: list[Any] = []
    for x in args:
        if isinstance(x, torch.Tensor):
            if x.is_nested:
                return None
            key.append((x.dtype, x.device, x.shape))
            continue
        of = type(x)
        if of is float:
            if are_fixed and not x:  # -0.0 equals 0.0
                return None
            key.append(x if are_fixed else of)
        elif of in _PLAIN:
            key.append((of, x))
        elif of is tuple:
            key.append((of, *map(type, x), *x))
        else:
            return None
    return tuple(key)


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

    def sample(
        self,
        uniform: Callable[[tuple[int, ...]], torch.Tensor],
        shape: tuple[int, ...],
        view: Callable[[torch.Tensor], torch.Tensor],
    ) -> tuple[Any, ...]:
        """Arguments of the usual call, from uniform numbers: views of tensors of a shape, weights as long as a row."""
        intervals, arguments = self.intervals, []
        length = view(torch.empty(shape)).shape[-1]
        for name, kind in zip(self._parameters, self._usual_arguments, strict=True):
            if not is_tensor(kind):
                arguments.append(kind)
                continue
            low, high = intervals.get(name, (-3.0, 3.0))
            numbers = uniform((length,)) if kind is COLUMN else view(uniform(shape))
            arguments.append(low + (high - low) * numbers)
        return tuple(arguments[: len(arguments) - len(self._keywords)])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            if self._captures:
                self._check_captured()
            return _in_float32(self.definition, args, kwargs)
        if kwargs or len(args) != len(self._parameters) or self._keywords:
            args = self.bound(args, kwargs)
        if is_being_traced():
            return self._define(args)
        if has_torch_function(args):
            return self._define(args) if traced_before_autograd() else self._handled(args)
        plan = self._known_plan(args)
        if plan is not None and (result := self._run(plan, args)) is not NotImplemented:
            return result
        return self.computed(args)

    def computed(self, args: Sequence[Any], sweep: Any = None) -> Any:
        """The results for an argument for each parameter; by a sweep, those of tensors that carry derivatives in it."""
        plan = self._plan(args)
        result = NotImplemented if plan is None else self._run(plan, args, sweep)
        return self._define(args) if result is NotImplemented else result

    def _arranged(self, args: Sequence[Any]) -> Sequence[Any] | None:
        """The arguments as the traced function takes them; None where it takes other tensors than are given."""
        return args

    def _known_plan(self, args: Sequence[Any]) -> _Plan | None:
        """The plan of a call, kept for the next one with arguments that are alike; None where there is none."""
        key = _key(args, bool(self._fixed))
        if key is None:
            return None
        try:
            plan = self._plans.get(key, self)
        except TypeError:  # a size is a symbol
            return None
        if plan is self:
            arranged = self._arranged(args)
            plan = None if arranged is None else self._plan(arranged)
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            self._plans[key] = plan
        return plan  # type: ignore[return-value]

    def _plan(self, args: Sequence[Any]) -> _Plan | None:
        """How a kernel computes the results; None where none does."""
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        if not _are_alike(tensors) or (shape := _shape(tensors)) is None:
            return None
        try:
            kinds, member, scalars = self.resolve(args)
        except NumberExpected:  # PyTorch reads that of a tensor without dimensions, or says what is wrong
            return None
        assert isinstance(member, RowFunction)
        if not tensors or not member.keeps(tensors[0].dtype) or not member.results_are_whole(tensors):
            return None  # an output has the shape of what it depends on
        places = []
        for i, (x, kind) in enumerate(zip(args, kinds, strict=True)):
            if is_tensor(kind):
                whole = shape_of(_NAMES[kind], shape)
                places.append((i, whole if x.shape != whole else None, kind is COLUMN))
        return _Plan(member, shape, tuple(places), tuple([(i, float(args[i])) for i in scalars]))

    def _run(self, plan: _Plan, args: Sequence[Any], sweep: Any = None) -> Any:
        """The results by a kernel, for arguments that are like those of the plan; NotImplemented where none runs."""
        member, shape, places, numbers = plan
        xs = [args[i] for i, _, _ in places]
        device = kernels.device_for(xs if sweep is None else list(map(sweep.value, xs)))
        if device is None:
            return NotImplemented
        if sweep is not None and device not in RowFunction.devices:  # its definition is made of operations with rules
            return NotImplemented
        for j, (_, whole, is_column) in enumerate(places):
            if whole is not None:
                xs[j] = xs[j].reshape(whole) if is_column else xs[j].expand(whole)
        call = shape, tuple([args[i] if type(args[i]) is float else number for i, number in numbers])
        result = member.on_device(device, xs, call) if sweep is None else sweep.rowwise(member, xs, call)
        if result is NotImplemented:
            return result
        dropped = self._dropped.get(member)
        if dropped is None:
            return result
        if not isinstance(result, tuple):
            return result.squeeze(-1)
        return tuple([y.squeeze(-1) if d else y for y, d in zip(result, dropped, strict=True)])

    @functools.cached_property
    def _plans(self) -> dict[tuple[Any, ...], _Plan | None]:
        """The plans of calls, by what they depend on."""
        return {}

    def _define(self, arguments: Sequence[Any]) -> Any:
        if self._captures:
            self._check_captured()
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

    def _member(self, program: Program, definition: Callable[..., Any]) -> RowFunction:
        dropped = tuple([kind == "dropped" for kind in program.kinds])
        kinds = tuple(["row" if kind == "dropped" else kind for kind in program.kinds])
        member = RowFunction(replace(program, kinds=kinds), self._kernel_name)
        if any(dropped):
            self._dropped[member] = dropped
        return member

    @functools.cached_property
    def _dropped(self) -> dict[Elementwise, tuple[bool, ...]]:
        """The outputs that have no last dimension."""
        return {}


HALF = {torch.float16, torch.bfloat16}
_NAMES = {TENSOR: "tensor", ROW: "row", COLUMN: "column"}


def _in_float32(definition: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Calls a definition with half types as kernels compute them: in float32, rounded once."""
    given = [*args, *kwargs.values()]
    tensors = [x for x in given if isinstance(x, torch.Tensor)]
    dtype = tensors[0].dtype if tensors else torch.float32
    is_chosen = is_autocast_enabled() or any(isinstance(x, torch.dtype) for x in given)
    if is_chosen or dtype not in HALF or any(x.dtype != dtype for x in tensors):
        return definition(*args, **kwargs)
    wide = [x.float() if isinstance(x, torch.Tensor) else x for x in args]
    result = definition(*wide, **{key: x.float() if isinstance(x, torch.Tensor) else x for key, x in kwargs.items()})
    return tuple([y.to(dtype) for y in result]) if isinstance(result, (tuple, list)) else result.to(dtype)


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
def rowwise(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
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
        return functools.partial(rowwise, **options)
    return Rowwise(plain(function), **options).traced()
