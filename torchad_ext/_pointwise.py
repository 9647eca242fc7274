"""pointwise: an op from a plain PyTorch function of elements, with a fused kernel for every derivative."""

from __future__ import annotations

import functools
import html
import inspect
import numbers
from collections.abc import Callable, Mapping
from typing import Any, overload

import torch
from torch.compiler import is_compiling
from torch.overrides import has_torch_function

from ._arguments import COMPARED, SCALAR, TENSOR, key_of
from ._broadcast import Broadcast
from ._declared import Declared, Interval, results_of
from ._derivative import Derivative
from ._elementwise import Elementwise
from ._native import fast_path, kernels
from ._native.kernels import DTYPES
from ._symbolic.captured import plain
from ._symbolic.latex import equations
from ._symbolic.refusals import NumberExpected
from ._symbolic.symbols import apart, is_symbol
from ._torch_state import is_being_traced, traced_before_autograd

_MOST_PARAMETERS = 64  # that C++ takes
_LONG_FORMULA = 400  # characters of LaTeX that are not shown unless they are asked for


class Pointwise(Declared):
    """An elementwise op with all its derivatives. :func:`pointwise` makes one of a function.

    Calling it computes the function by a native kernel where there is one for the tensors' device and dtype, by the
    function itself where there is not, and by the function while ``torch.compile`` or ``torch.export`` trace.

    Attributes:
        definition: the function in plain PyTorch.

    Example:
        >>> double = Pointwise(lambda x: x + x, name="double")
        >>> double(torch.ones(2))
        tensor([2., 2.])
    """

    _front: Any = None  # in C++

    @functools.cached_property
    def _in_front(self) -> set[tuple[Any, ...]]:
        """The kinds of the calls that C++ takes."""
        return set()

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if is_compiling() and not any(map(is_symbol, (*args, *kwargs.values()))):
            if self._captures:
                self._check_captured()
            args, kwargs = self._parameters.named(args, kwargs)
            return results_of(self.definition(*args, **kwargs))
        if self._front:
            result = self._front.call(args, kwargs)
            if result is not NotImplemented:
                return result
        if is_being_traced():
            return self._define(self.bound(args, kwargs))
        if kwargs or len(args) != len(self._parameters.by_name) or self._parameters.keywords:
            args = self.bound(args, kwargs)
        if has_torch_function(args):
            return self._define(args) if traced_before_autograd() else self._handled(args)
        try:
            kinds, member, scalars = self.resolve(args)
        except NumberExpected:  # PyTorch reads that of a tensor without dimensions, or says what is wrong
            return self._define(args)
        xs = [x for x, kind in zip(args, kinds, strict=True) if kind is TENSOR]
        first = xs[0]
        if first.dtype not in DTYPES:
            return self._define(args)
        for x in xs[1:]:
            if x.dtype is not first.dtype or x.device != first.device:
                return self._define(args)  # a tensor without dimensions promotes as such
            if x.is_nested or first.is_nested:
                return self._define(args)  # such a tensor has no shape
        whole = None
        if any(x.shape != first.shape for x in xs[1:]):
            if kernels.device_for(xs) is None or not member.results_are_whole(xs):
                return self._define(args)  # an output has the shape of what it depends on
            whole = Broadcast.of(member, xs, tuple(torch.broadcast_tensors(*xs)[0].shape))
        numbers = tuple([float(args[i]) for i in scalars])
        result = (whole or member).apply(xs, numbers)
        if member.fast_function:
            self._put_in_front(kinds, member)
        return result

    def _put_in_front(self, kinds: tuple[Any, ...], member: Elementwise) -> None:
        """Lets C++ take calls with arguments of these kinds from now on."""
        options = [(i, kind) for i, kind in enumerate(kinds) if kind is not TENSOR and kind is not SCALAR]
        if len(kinds) > _MOST_PARAMETERS or not all(x is None or type(x) in COMPARED for _, x in options):
            return
        key = key_of(kinds)
        if key in self._in_front:
            return
        bits = [sum(1 << i for i, kind in enumerate(kinds) if kind is of) for of in (TENSOR, SCALAR)]
        front = self.__dict__.setdefault("_front", fast_path.front(tuple(self._parameters.by_name.values())))
        front.add(member.fast_function, *bits, tuple(sum(1 << i for i in of) for of in member.read), tuple(options))
        self._in_front.add(key)

    def derivative(self, argument: str | None = None, order: int = 1) -> Pointwise:
        r"""A partial derivative as a declared op: f'' itself, where ``latex(order=2)`` is a double backward.

        It takes the arguments of this op, has kernels and derivatives of every order like any other, and its formula is
        simplified for a reader. Its definition in plain PyTorch is the vjp of this op's definition for a cotangent of
        ones; ``torch.compile`` and tracers, which fail at a vjp, are given its formula in plain PyTorch.

        Args:
            argument: the argument in which to differentiate, a tensor or a number; by default the first.
            order: how often, 1 or more. For a mixed derivative call it again: ``f.derivative("x").derivative("a")``.

        Raises:
            ValueError: the op has no such argument, or ``order`` is less than 1.
            TypeError: the function of the op asks for the value of the argument, so that there is no derivative in it.

        Example:
            >>> import torch, torchad_ext
            >>> slope = torchad_ext.siren.derivative("input")
            >>> print(slope.latex())
            \frac{\partial}{\partial x} \mathrm{siren}(x, \omega) = \omega \, \cos\left(\omega \, x\right)
            >>> slope(torch.tensor([0.0, 1.0]), omega=2.0)
            tensor([ 2.0000, -0.8323])
        """
        name = next(iter(self._parameters.by_name)) if argument is None else argument
        if name not in self._parameters.by_name:
            raise ValueError(f"{self.__name__} has no argument {name!r}; it has {', '.join(self._parameters.by_name)}")
        if not isinstance(order, numbers.Integral) or order < 1:
            raise ValueError(f"got order {order!r} of a derivative; 1 is the first")
        known = self.definition if isinstance(self.definition, Derivative) else Derivative(self, ())
        definition = Derivative(known.op, (*known.along, *(name,) * order))
        derivative = Pointwise(definition, name=definition.name, module=self.__module__, domain=self._domain)
        with apart():
            derivative._usual, definition.usual  # noqa: B018, an error belongs to this call, and a tracer needs the program
        return derivative

    def _derivatives(self) -> list[Pointwise]:
        """The first and second derivatives in the tensors of the usual call."""
        names = list(self.domain)
        firsts = [self.derivative(name) for name in names]
        return firsts + [f.derivative(name) for i, f in enumerate(firsts) for name in names[i:]]

    def _equations(self) -> list[tuple[str, str]]:
        """Both sides of the formulas of the op, its first and its second derivatives, those that are not too long."""
        found = [pair for op in (self, *self._derivatives()) for pair in equations(op._usual.program, *op._written_as)]
        return [(left, right if len(right) < _LONG_FORMULA else r"\ldots") for left, right in found]

    def _repr_latex_(self) -> str:
        lines = r" \\[4pt] ".join(f"{left} &= {right}" for left, right in self._equations())
        return rf"$\displaystyle \begin{{aligned}}{lines}\end{{aligned}}$"

    def _repr_html_(self) -> str:
        arguments = (p.replace(annotation=p.empty) for p in self._parameters.by_name.values())
        title = html.escape(f"{self.__module__}.{self.__qualname__}{inspect.Signature(list(arguments))}")
        rows = [
            rf"<tr><td>$\displaystyle {html.escape(left)}$</td>"
            rf"<td style='text-align: left'>$\displaystyle {html.escape(right)}$</td></tr>"
            for left, right in self._equations()
        ]
        return f"<table><caption><code>{title}</code></caption>{''.join(rows)}</table>"


@overload
def pointwise(function: Callable[..., Any], /) -> Pointwise: ...
@overload
def pointwise(*, domain: Interval | Mapping[str, Interval] = ...) -> Callable[[Callable[..., Any]], Pointwise]: ...
def pointwise(
    function: Callable[..., Any] | None = None, /, *, domain: Interval | Mapping[str, Interval] = (-3.0, 3.0)
) -> Any:
    r"""Makes an op of a plain PyTorch function of elements: one fused kernel for every order of derivative.

    The function is traced once, when it is declared: what it captures from outside (a global number, an attribute of
    ``self``) is read then. Where PyTorch has to run the function itself, a change of that raises. A deep copy of a
    module that declares an op of its own method has an op of its own. Calling the op runs C++ or CUDA kernels that are
    made from it, for the value and, on demand, for each derivative, and compiled on their
    first use. It works under autograd, ``torch.func``, ``vmap`` and forward mode; ``torch.compile`` and
    ``torch.export`` trace the function itself.

    Args:
        function: tensors and Python numbers to a tensor or a tuple of tensors, computed element by element with
            PyTorch's functions, methods and operators; a module, or a function of PyTorch, will do. An argument
            without a default, or with a number as one, takes a tensor, which has a gradient, or a number, which has
            none and costs nothing to change. An argument with another default (a string, a bool, None, a list) is fixed
            when the kernel is made, and so is a number whose value the function asks for, as ``math.sqrt(a)`` and
            ``if a > 0`` do: each value has a kernel of its own then.
        domain: the interval from which :func:`verify` samples the tensors, or one for each argument by name.

    Returns:
        The op, called as the function is. Tensors broadcast; the result has the dtype and the strides that the function
        would give it.

    Raises:
        TypeError: at declaration, if the function is not elementwise (it reduces, indexes, branches on a value, writes
            to its arguments, draws random numbers, ...), calls a custom ``autograd.Function``, whose backward would be
            lost, or has more than 20,000 operations; the message names the line and what to do instead.
        RuntimeError: at a call that runs the function itself, if it computes something else than when it was declared.

    Example:
        >>> import torch, torchad_ext
        >>> @torchad_ext.pointwise
        ... def snake(x, a=1.0):
        ...     return x + torch.sin(a * x) ** 2 / a
        >>> x = torch.tensor([0.0, 1.0], requires_grad=True)
        >>> y = snake(x, a=2.0)
        >>> torch.autograd.grad(y.sum(), x)[0]
        tensor([1.0000, 0.2432])
    """
    if function is None:
        return functools.partial(pointwise, domain=domain)
    return Pointwise(plain(function), domain=domain).traced()
