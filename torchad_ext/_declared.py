"""Declared: an op from a plain PyTorch function, what ops of elements and of rows have in common."""

from __future__ import annotations

import contextlib
import copy
import decimal
import functools
import inspect
import math
import numbers
import pickle
import re
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy
import torch
from torch.overrides import handle_torch_function

from ._arguments import (
    SCALAR,
    TENSOR,
    Parameters,
    is_constant,
    is_tensor,
    key_of,
    kind_of,
    may_change,
    symbol,
    varies,
)
from ._derivative import Derivative
from ._elementwise import Elementwise, HandWritten
from ._native import ahead, kernels, keys, loader
from ._symbolic import cpp
from ._symbolic.agreement import agrees
from ._symbolic.captured import asks_for_kinds, captures, is_of_users
from ._symbolic.latex import latex
from ._symbolic.program import Program
from ._symbolic.refusals import TraceError
from ._symbolic.symbols import ValueNeeded, apart, is_symbol
from ._symbolic.tracing import trace
from ._warnings import warn_user

Interval = tuple[float, float]
_Op = TypeVar("_Op", bound="Declared")

_MANY = 32  # kernels of one op for different values of its numbers
_LONGEST = 20_000  # operations of a declaration; its double backward has some three times as many


class Declared:
    """An op that is declared by a plain PyTorch function: what ops of elements and of rows have in common.

    Attributes:
        definition: the function in plain PyTorch.
    """

    decorator = "pointwise"  # its name in messages
    _usually: Mapping[str, Any] = {}  # what the usual call gives in place of defaults

    def __init__(
        self,
        definition: Callable[..., Any],
        *,
        name: str | None = None,
        module: str | None = None,
        domain: Interval | Mapping[str, Interval] = (-3.0, 3.0),
        written: HandWritten | None = None,
    ) -> None:
        self.definition = definition
        self._parameters = Parameters(definition, self.decorator)
        self.__signature__ = self._parameters.signature
        self.__name__: str = name or str(getattr(definition, "__name__", type(definition).__name__))
        self.__qualname__: str = self.__name__
        self._kernel_name = re.sub(r"[^0-9A-Za-z_]", "", self.__name__) or self.decorator
        if name is None:
            self.__qualname__ = str(getattr(definition, "__qualname__", self.__name__))
        self.__module__ = module or getattr(definition, "__module__", None) or "torch"
        self.__doc__ = definition.__doc__
        self._parameters.check(self.__name__, self.__qualname__, self.decorator)
        self._written = written
        self._usual_kinds: tuple[Any, ...] = ()  # of the arguments for which the usual function was traced
        self._members: dict[tuple[Any, ...], tuple[Elementwise, list[int]]] = {}
        self._seen: dict[Any, tuple[Elementwise, list[int]]] = {}  # the members by values as they were given
        # Numbers whose values the definition asks for.
        self._fixed = frozenset(self._parameters.by_name) if asks_for_kinds(definition) else frozenset[str]()
        self._domain = _checked(domain, self._parameters.by_name)
        self._captures = captures(definition.op.definition if isinstance(definition, Derivative) else definition)
        self._is_of_users = is_of_users(definition)
        this = weakref.ref(self)  # no cycle: an op is freed with its last name

        def check_captured() -> bool:
            op = this()
            return op is None or op._check()

        check_captured._dynamo_marked_constant = True  # type: ignore[attr-defined]  # run while compiling, not compiled
        self._check_captured = check_captured

    @functools.cached_property
    def _usual(self) -> Elementwise:
        """The function of a call with tensors for all arguments that have no default."""
        self._usual_kinds, usual, _ = self.resolve(self._usual_arguments)
        return usual

    @property
    def _placed(self) -> str:
        """The name of the function, and where it stands."""
        code = getattr(self.definition, "__code__", None)
        return f"{self.__name__} ({code.co_filename}:{code.co_firstlineno})" if code else self.__name__

    def traced(self: _Op) -> _Op:
        """The op itself, traced for the usual call: an error of its function belongs to its declaration."""
        try:
            self._usual  # noqa: B018
        except TraceError as error:
            raise error.with_traceback(None) from None
        return self

    @property
    def program(self) -> Program:
        """The program of the usual call."""
        return self._usual.program

    @property
    def default_numbers(self) -> list[float]:
        """The numbers of the usual call, in the order of the program's scalars."""
        return [float(self._parameters.defaults[str(x.value)]) for x in self.program.scalars]

    @property
    def _usual_arguments(self) -> list[Any]:
        defaults = self._parameters.defaults
        return [self._usually.get(name, defaults.get(name, TENSOR)) for name in self._parameters.by_name]

    @property
    def intervals(self) -> dict[str, Interval]:
        """Where each argument that may be a tensor is sampled."""
        return dict(self._domain) if isinstance(self._domain, Mapping) else dict.fromkeys(self.domain, self._domain)

    @property
    def domain(self) -> dict[str, Interval]:
        """Where :func:`torchad_ext.verify` samples each tensor of the usual call."""
        names = (str(x.value) for x in self._usual.program.inputs)
        return {name: self._given_intervals.get(name, (-3.0, 3.0)) for name in names}

    @property
    def _given_intervals(self) -> Mapping[str, Interval]:
        """Where arguments are sampled, by name, as far as the declaration says it."""
        return (
            self._domain if isinstance(self._domain, Mapping) else dict.fromkeys(self._parameters.by_name, self._domain)
        )

    def __repr__(self) -> str:
        return f"<{self.__module__}.{self.__qualname__}{self.__signature__}>"

    def __reduce__(self) -> Any:
        found: Any = sys.modules.get(self.__module__)
        for name in self.__qualname__.split("."):
            found = getattr(found, name, None)
        if found is self:
            return self.__qualname__
        if "<" in self.__qualname__ and not inspect.ismethod(self.definition):
            raise pickle.PicklingError(
                f"{self.__module__}.{self.__qualname__} is declared in a function, where pickle does not find it; "
                f"declare it at module level, or of a method: self.act = torchad_ext.{self.decorator}(self.function)"
            )
        return _restored, (type(self), self.definition, self.__name__, self.__module__, self._domain)

    def __deepcopy__(self, memo: dict[int, Any]) -> Declared:
        """A copy; for a method of an object that is copied, the op of the copied object."""
        definition = copy.deepcopy(self.definition, memo)
        if definition is self.definition or self._written:
            return self
        return _restored(type(self), definition, self.__name__, self.__module__, self._domain)

    def bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The arguments in the order of the parameters."""
        try:
            return self._parameters.bound(args, kwargs)
        except TypeError as error:
            raise TypeError(f"{self.__name__}{self.__signature__}: {error}") from None

    def resolve(self, args: Sequence[Any]) -> tuple[tuple[Any, ...], Elementwise, list[int]]:
        """The kind of each argument, the function for such arguments, and where its numbers stand among them."""
        kinds = self._kinds(args)
        if self._fixed:
            kinds = tuple(
                x if kind is SCALAR and name in self._fixed else kind
                for name, x, kind in zip(self._parameters.by_name, args, kinds, strict=True)
            )
        seen = kinds, tuple(map(type, kinds)) if self._fixed else ()  # 1, 1.0 and True are equal
        found = None
        if all(map(is_constant, kinds)):
            found = self._seen.get(seen) if self._fixed else self._members.get(kinds)
        if found is None:
            try:
                found = self._member_of(kinds, args)
            except ValueNeeded as needed:
                before, self._fixed = self._fixed, self._fixed | needed.names
                try:
                    return self.resolve(args)
                except Exception:  # a call that is refused leaves nothing behind
                    self._fixed = before
                    raise
            except TraceError as error:
                raise error.with_traceback(None) from None
        if self._fixed and all(x is None or isinstance(x, int) or varies(x) or (type(x) is float and x) for x in kinds):
            self._seen[seen] = found  # not for -0.0, which equals 0.0, or what cannot be hashed
        return kinds, *found

    def _member_of(self, kinds: tuple[Any, ...], args: Sequence[Any]) -> tuple[Elementwise, list[int]]:
        """The function for such arguments, where its numbers stand among them, made if it is not there."""
        key = tuple(self._key_of(name, kind) for name, kind in zip(self._parameters.by_name, kinds, strict=True))
        if any(map(may_change, kinds)):  # an object is what the function makes of it now
            key += self._trace(kinds).outputs
        found = self._members.get(key)
        if found is None:
            with apart():
                found = self._members.setdefault(key, self._new_member(kinds, args))
            if self._fixed and len(self._members) == _MANY:
                warn_user(
                    f"{self.__module__}.{self.__name__} asks for the values of {', '.join(sorted(self._fixed))}, so a "
                    f"kernel is compiled for each; this is number {_MANY}. Compute what needs the value outside",
                )
        return found

    def _kinds(self, args: Sequence[Any]) -> tuple[Any, ...]:
        """The kind of each argument."""
        return tuple([kind_of(x) for x in args])

    def _key_of(self, name: str, kind: Any) -> Any:
        try:
            return key_of(kind)
        except TypeError:
            if kind_of(self._parameters.defaults.get(name, 0)) is SCALAR:
                raise TypeError(self._wrong(name, type(kind).__name__)) from None
            raise TypeError(
                f"{self.__module__}.{self.__name__} has a kernel for each value of {name}, and got one of type "
                f"{type(kind).__name__}, which has no hash; write a tensor, a number, a text, a tuple, a list or a dict"
            ) from None

    def _new_member(self, kinds: tuple[Any, ...], args: Sequence[Any]) -> tuple[Elementwise, list[int]]:
        if self._captures and "_usual" in self.__dict__:
            self._check_captured()
        for name, kind in zip(self._parameters.by_name, kinds, strict=True):
            is_number = kind_of(self._parameters.defaults.get(name, 0)) is SCALAR
            if is_number and not varies(kind) and name not in self._fixed:
                if isinstance(kind, (bool, numpy.bool_)):
                    raise TypeError(f"{self.__module__}.{self.__name__} takes a number for {name}, got {kind}")
                is_of_python = isinstance(kind, (numbers.Real, decimal.Decimal))  # and no number to PyTorch
                convert = "float" if is_of_python else "torch.as_tensor"
                raise TypeError(self._wrong(name, type(kind).__name__, convert))
        if not any(is_tensor(kind) for kind in kinds):
            first = next(iter(self._parameters.by_name))
            raise TypeError(self._wrong(first, "numbers alone" if len(kinds) > 1 else "a number"))
        tensors = [i for i, kind in enumerate(kinds) if is_tensor(kind)]
        scalars = [i for i, kind in enumerate(kinds) if kind is SCALAR]

        def definition(*values: Any) -> Any:
            arguments = list(kinds)
            for i, value in zip((*tensors, *scalars), values, strict=True):
                arguments[i] = value
            return self._define(arguments)

        program = self._trace(kinds)
        if self._is_of_users and not isinstance(self.definition, Derivative):
            self._check_trace(kinds, args, program)
        if len(program) > _LONGEST:
            raise TraceError(
                f"{self.__name__} has {len(program):,} operations an element, and a kernel takes {_LONGEST:,} at the "
                "most; declare parts of it"
            )
        in_order = len(tensors) == len(kinds) and not self._parameters.keywords and not self._captures
        plain = _giving_results(self.definition) if self._is_of_users else self.definition
        return self._member(program, plain if in_order else definition), scalars

    def _member(self, program: Program, definition: Callable[..., Any]) -> Elementwise:
        """The function of a program, which a definition computes of tensors and then numbers."""
        written = self._written if not program.scalars else None
        return Elementwise(program, definition, self._kernel_name, written=written)

    def _check(self) -> bool:
        """Raises if the definition computes something else than it did when it was declared."""
        expected = self._traced_as(self._usual)
        with contextlib.suppress(ValueNeeded):  # of a number that it did not ask for then
            if self._trace(self._usual_kinds) == expected:
                return True
        raise RuntimeError(
            f"what the function of {self.__module__}.{self.__qualname__} captures has changed since it was declared, "
            "and an op reads it once: its kernels have the old values. Pass what changes as an argument, as in "
            f"{self.__name__}(x, beta), or declare the op again"
        )

    def _traced_as(self, member: Elementwise) -> Program:
        """The program of which a member was made."""
        return member.program

    def _check_trace(self, kinds: Sequence[Any], args: Sequence[Any], program: Program) -> None:
        """Raises if the definition computes something else of numbers than of symbols.

        Raises:
            ValueNeeded: it may be because of a symbol for a number.
            TraceError: there is none.
        """
        known = {name: x for name, x in zip(self._parameters.by_name, args, strict=True) if kind_of(x) is SCALAR}
        scalars = frozenset(str(x.value) for x in program.scalars)
        if scalars - known.keys():  # a number that is yet to come
            return
        if agrees(self.define, self._symbols(kinds), program, self._given_intervals, known):
            return
        if scalars:
            raise ValueNeeded(scalars)
        raise TraceError(
            f"{self._placed} computes something else of numbers than of symbols in their place: it asks what its "
            "arguments are (type(x), x.device.type), or draws random numbers. Pass what it needs as an argument, as in "
            "f(x, noise)"
        )

    def _symbols(self, kinds: Sequence[Any]) -> list[Any]:
        """The arguments, with symbols in place of tensors and run-time numbers."""
        return [symbol(name, kind) for name, kind in zip(self._parameters.by_name, kinds, strict=True)]

    def _trace(self, kinds: Sequence[Any]) -> Program:
        return self.trace(self._symbols(kinds))

    def trace(self, arguments: Sequence[Any]) -> Program:
        """The program of the op; the arguments are symbols for tensors and run-time numbers, anything else as it is."""
        if isinstance(self.definition, Derivative):
            return self.definition.program(arguments)
        return trace(self.define, arguments, self._placed, self.decorator == "rowwise")

    def _define(self, arguments: Sequence[Any]) -> Any:
        """Runs the definition in place of a kernel."""
        self._check_call(arguments)
        return self.define(arguments)

    def _check_call(self, arguments: Iterable[Any]) -> None:
        """Raises if what the function captures has changed; an op that is traced, and calls this one, checks itself."""
        if self._captures and not any(map(is_symbol, arguments)):
            self._check_captured()

    def define(self, arguments: Sequence[Any]) -> Any:
        """Calls the definition with an argument for each parameter, keyword-only ones included."""
        args, kwargs = self._parameters.as_called(arguments)
        return results_of(self.definition(*args, **kwargs))

    def _handled(self, args: Sequence[Any]) -> Any:
        """The result that ``__torch_function__`` of an argument gives."""
        function: Any = self
        called, named = self._parameters.as_called(args)
        return handle_torch_function(function, args, *called, **named)

    def _wrong(self, name: str, given: str, convert: str = "torch.as_tensor") -> str:
        function = f"{self.__module__}.{self.__name__}"
        expected = "a torch.Tensor or a number" if name in self._parameters.defaults else "a torch.Tensor"
        return f"{function} takes {expected} for {name}, got {given}; write {function}({convert}(...))"

    def _order(self, order: int) -> Elementwise:
        """The function whose kernel computes a derivative of the usual call, every gradient wanted."""
        if not isinstance(order, numbers.Integral) or order < 0:
            raise ValueError(f"got order {order!r}; 0 is the value, 1 its gradient, 2 the gradient of that")
        function = self._usual
        for _ in range(order):
            inputs, outputs = len(function.program.inputs), len(function.program.outputs)
            function = function.vjp((True,) * inputs, (True,) * outputs).function
        return function

    def _kernels_of_order(self, order: int) -> list[Elementwise]:
        """The functions whose kernels compute a derivative of the usual call, every gradient wanted."""
        return [self._order(order)]

    def source(self, order: int = 0) -> str:
        """The functor, in C++, whose kernel computes the value (0), the gradient (1), the double backward (2), ...

        Its arguments are tensors and its numbers those that have a default. Each order differentiates the one before in
        all its arguments: order 1 takes ``grad_output``, order 2 also ``grad_grad_x`` for each gradient ``grad_x``.

        Example:
            >>> import torchad_ext
            >>> print(torchad_ext.square.source(order=1))
            struct SquareBackward {
              template <class T>
              TORCHAD_EXT_FUNCTION auto operator()(T input, T grad_output) const {
                return Outputs{grad_output * (number<T>(2) * input)};
              }
            };
        """
        function = self._order(order)
        if function.written is None:
            return function.functor()[1].rstrip()
        header = (keys.CSRC / function.written.header).read_text(encoding="utf-8")
        functor = function.written.functors[0]
        struct = re.search(rf"(^//.*\n)*struct {functor}( : \w+)? {{\n(.*\n)*?}};", header, re.MULTILINE)
        return struct[0] if struct else header

    def operands(self, order: int = 0) -> tuple[int, int]:
        """How many tensors the kernel of an order reads, and how many it writes.

        Example:
            >>> import torchad_ext
            >>> torchad_ext.sin.operands(order=2)
            (3, 2)
        """
        program = self._order(order).program
        return len(program.inputs), len(program.outputs)

    def latex(self, order: int = 0, mathtext: bool = False) -> str:
        r"""The formula of the value (0), the gradient (1), the double backward (2), ... in LaTeX, without dollar signs.

        A bar marks a cotangent: the kernel of order 1 computes :math:`\bar x` from :math:`\bar y`. A derivative,
        :meth:`derivative`, has the simplified formula of itself.

        Args:
            order: which kernel's.
            mathtext: for matplotlib, which knows neither environments nor ``\tfrac``.

        Example:
            >>> import torchad_ext
            >>> print(torchad_ext.square.latex())
            \mathrm{square}(x) = x^{2}
            >>> print(torchad_ext.square.derivative().latex())
            \frac{d}{d x} \mathrm{square}(x) = 2 \, x
        """
        name, operator, simplify = self._written_as if order == 0 else ("", "", False)
        return latex(self._order(order).program, name, operator, simplify, mathtext)

    @property
    def _written_as(self) -> tuple[str, str, bool]:
        """The name, the operator before it, and whether the formula is to be simplified."""
        if isinstance(self.definition, Derivative):
            return self.definition.op.__name__, f"{self.definition.latex} ", True
        return self.__name__, "", False

    def compile(
        self,
        orders: Sequence[int] = (0, 1, 2),
        dtypes: Sequence[torch.dtype] = (torch.float32,),
        devices: Sequence[str] = ("cpu",),
    ) -> None:
        """Compiles kernels ahead of their first use, several at a time.

        Args:
            orders: 0 for the value, 1 for its gradient, 2 for the gradient of that, and so on, each with every gradient
                wanted. Kernels for fewer gradients are compiled when they are needed.
            dtypes: of float16, bfloat16, float32 and float64.
            devices: of ``"cpu"`` and ``"cuda"``.

        Raises:
            ValueError: an order, a dtype or a device is none of these.
            BuildError: a kernel could not be compiled and ``TORCHAD_EXT_STRICT=1``; else there is one warning.

        Example:
            >>> import torchad_ext
            >>> torchad_ext.square.compile(orders=[0])
        """
        if not isinstance(orders, Iterable):
            raise ValueError(f"compile takes a list of orders, got {orders!r}; write [{orders!r}]")
        dtypes = _listed(dtypes, "dtypes", [getattr(torch, name) for name in cpp.DTYPES])
        devices = _listed(devices, "devices", ("cpu", "cuda"))
        functions = [f for order in orders for f in self._kernels_of_order(order) if f.program.outputs]
        for device in devices:
            variants = [(f, v) for f in functions for v in (f.variants if device == "cpu" else ((),))]
            compile_kernels([(f, dtype, *v) for f, v in variants for dtype in dtypes], device)


def results_of(returned: Any) -> Any:
    """The results of a definition as an op gives them: a tensor, or a tuple of several."""
    if not isinstance(returned, (tuple, list)):
        return returned
    return returned[0] if len(returned) == 1 else tuple(returned)


def _giving_results(definition: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *xs: results_of(definition(*xs))


def _checked(domain: Any, names: Iterable[str]) -> Any:
    """The domain of an op with arguments of these names. Raises ValueError if it is none."""
    given = domain if isinstance(domain, Mapping) else dict.fromkeys(names, domain)
    if unknown := [name for name in given if name not in names]:
        raise ValueError(f"domain has an interval for {unknown[0]!r}, and the arguments are {', '.join(names)}")
    for interval in given.values():
        is_pair = isinstance(interval, (tuple, list)) and len(interval) == 2
        if not is_pair or not all(isinstance(x, numbers.Real) and math.isfinite(x) for x in interval):
            raise ValueError(
                f"domain takes the interval from which tensors are sampled, as in (0.1, 5.0), or one for each argument "
                f"by name, as in {{{next(iter(names))!r}: (0.1, 5.0)}}; got {domain!r}"
            )
    return domain


def _listed(given: Any, what: str, known: Sequence[Any]) -> list[Any]:
    """The items of a list; raises if there is none, or if one of them is not known."""
    listed = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else None
    if listed is None or any(x not in known for x in listed):
        raise ValueError(f"compile takes a list of {what}, of {', '.join(map(str, known))}; got {given!r}")
    return listed


def compile_kernels(work: Iterable[tuple[Any, ...]], device: str = "cpu") -> None:
    """Compiles kernels, on the CPU several at a time.

    Args:
        work: Elementwise, dtype and variant of each.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        BuildError: a kernel could not be compiled and ``TORCHAD_EXT_STRICT=1``; else there is one warning.
    """
    lacking = [(f, of) for f, *of in work if (device, *of) not in f._kernels]
    if not lacking or not loader.load(device):
        return
    if device == "cpu":
        ahead.compile_kernels(
            [(kernels.title(f.name, of[0]), f.source(device, *of)) for f, of in lacking if f.keeps(of[0])]
        )
    for f, of in lacking:
        f.kernel(device, *of)


def _restored(cls: type[Declared], definition: Callable[..., Any], name: str, module: str, domain: Any) -> Declared:
    """An op that was copied; it is traced when it is first called, because what it captures may not be there yet."""
    return cls(definition, name=name, module=module, domain=domain)
