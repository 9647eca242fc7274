"""Derivative: a partial derivative of a declared op, as the definition of another op."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Signature
from typing import Any

import torch

from ._symbolic.differentiation import pushforward
from ._symbolic.evaluate import evaluate
from ._symbolic.expr import constant, is_number, scalar, tensor
from ._symbolic.latex import symbol
from ._symbolic.program import Program
from ._symbolic.tracing import inlined
from ._torch_state import is_being_traced, traced_before_autograd


@dataclass(frozen=True, eq=False)
class Derivative:
    """∂ⁿf / ∂x...∂z of an elementwise f, element by element, in plain PyTorch: the vjp of f for a cotangent of ones.

    Attributes:
        op: f, a declared op.
        along: the arguments in which it is differentiated, one for each time.

    Example:
        >>> import torch, torchad_ext
        >>> Derivative(torchad_ext.square, ("input",))(torch.tensor([3.0]))
        tensor([6.])
    """

    op: Any
    along: tuple[str, ...]

    @property
    def __signature__(self) -> Signature:
        signature: Signature = self.op.__signature__
        return signature

    @property
    def name(self) -> str:
        """f_xx for f'', as one writes partial derivatives in differential equations."""
        letters = [symbol(name) if name in ("input", "output") else name for name in self.along]
        return f"{self.op.__name__}_" + ("" if max(map(len, letters)) == 1 else "_").join(letters)

    @property
    def latex(self) -> str:
        """The operator in front of f: d²/dx², or ∂²/∂x∂a where f has several arguments."""
        d = "d" if len(self.op.__signature__.parameters) == 1 else r"\partial"
        below = [rf"{d} {symbol(name)}{_exponent(self.along.count(name))}" for name in dict.fromkeys(self.along)]
        return rf"\frac{{{d}{_exponent(len(self.along))}}}{{{' '.join(below)}}}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = self.__signature__.bind(*args, **kwargs)
        given.apply_defaults()
        arguments = [_floating(x) for x in given.arguments.values()]
        if torch.compiler.is_compiling() or is_being_traced() or traced_before_autograd():
            values = self._values(arguments)
            if values is not None:
                return evaluate(self.usual, *values)
        function = self.op.define
        for name in self.along:
            function = functools.partial(_slope, function, list(self.__signature__.parameters).index(name))
        return function(arguments)

    @functools.cached_property
    def _kinds(self) -> tuple[Any, ...]:
        """The kinds of the arguments of a usual call."""
        kinds: tuple[Any, ...] = self.op.resolve(self.op._usual_arguments)[0]
        return kinds

    @functools.cached_property
    def usual(self) -> Program:
        """The program of a usual call, which tracers record: they take a vjp for a constant, or fail."""
        return self.program(self.op._symbols(self._kinds))

    def _values(self, arguments: Sequence[Any]) -> list[Any] | None:
        """The values for the program of a usual call; None where it is another call, or of other than real tensors."""
        names = list(self.__signature__.parameters)
        symbols = [str(x.value) for x in (*self.usual.inputs, *self.usual.scalars)]
        given = dict(zip(names, arguments, strict=True))
        if any(name not in symbols and x != kind for (name, x), kind in zip(given.items(), self._kinds, strict=True)):
            return None
        tensors = [given[name] for name in symbols[: len(self.usual.inputs)]]
        numbers = [given[name] for name in symbols[len(self.usual.inputs) :]]
        if not all(isinstance(x, torch.Tensor) and x.is_floating_point() for x in tensors):
            return None
        if any(x.dtype != tensors[0].dtype for x in tensors) or not all(map(is_number, numbers)):
            return None
        return [*torch.broadcast_tensors(*tensors), *numbers]

    def program(self, arguments: Sequence[Any]) -> Program:
        """The derivative of the program of f; the arguments are symbols for tensors and numbers, the rest as it is."""
        program: Program = self.op.trace(arguments)
        outputs = program.outputs
        symbols = {str(x.value): x for x in (*program.inputs, *program.scalars)}
        for name in self.along:
            if name not in symbols:
                raise TypeError(
                    f"{self.op.__name__} has no derivative in {name}, whose value its function asks for; declare it "
                    "with a function that computes with it by PyTorch alone"
                )
            slopes = pushforward(outputs, {symbols[name]: constant(1.0)})
            outputs = tuple(constant(0.0) if slope is None else slope for slope in slopes)
        return Program(program.inputs, program.scalars, outputs, program.names)

    def inlined(self, arguments: Sequence[Any]) -> Any:
        """The derivative within the declaration of another op."""
        names = list(self.__signature__.parameters)
        symbols = [
            tensor(name) if isinstance(x, torch.Tensor) else scalar(name) if is_number(x) else x
            for name, x in zip(names, arguments, strict=True)
        ]
        program = self.program(symbols)
        return inlined(program, {s: x for s, x in zip(symbols, arguments, strict=True) if s is not x})


def _floating(x: Any) -> Any:
    """An argument, integers as the numbers that they are: a tensor of them has no derivative."""
    is_whole = isinstance(x, torch.Tensor) and not (x.is_floating_point() or x.is_complex())
    return x.to(torch.get_default_dtype()) if is_whole else x


def _exponent(n: int) -> str:
    return f"^{{{n}}}" if n > 1 else ""


def _slope(function: Callable[[list[Any]], Any], place: int, arguments: list[Any]) -> Any:
    """The derivative of each element of a function in the element of one argument that it depends on.

    For complex numbers, where a vjp is conjugate, the holomorphic one.
    """
    tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
    x = arguments[place]
    if not isinstance(x, torch.Tensor):
        x = torch.as_tensor(x, dtype=tensors[0].dtype, device=tensors[0].device)
    x = x.expand(torch.broadcast_shapes(*(t.shape for t in tensors)))
    result: Any = torch.func.vjp(lambda x: function([*arguments[:place], x, *arguments[place + 1 :]]), x)
    y, pull = result
    if isinstance(y, torch.Tensor):
        return pull(torch.ones_like(y))[0].conj()
    cotangents = ([torch.ones_like(b) if a is b else torch.zeros_like(b) for b in y] for a in y)
    return tuple(pull(type(y)(cotangent))[0].conj() for cotangent in cotangents)
