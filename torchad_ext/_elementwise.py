"""Elementwise: a function of tensors, element by element, with all its derivatives under every transform of PyTorch.

The derivatives of an elementwise function are elementwise functions again, of its arguments and of the cotangents or
tangents. So one class is closed under ``vjp`` and ``jvp``, and one ``torch.autograd.Function`` applies any member of
it: its backward applies the vjp, its jvp applies the jvp, and every order and mix of modes follows. Plain tensors in
eager mode take the same way in C++ (``csrc/fast_path``), which asks this class for derivatives and kernels when they
are first needed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ._native import fast_path, kernels
from ._symbolic import cpp
from ._symbolic.evaluate import evaluate
from ._symbolic.expr import FLOATS, OPERATIONS, topological
from ._symbolic.jet_algebra import JetAlgebra
from ._symbolic.program import Program, ProgramDerivative
from ._torch_state import in_forward_mode, transforms_active, will_execute, with_hidden_batch

Tensors = Sequence[torch.Tensor]
Scalars = tuple[float, ...]


_LONGEST_NAME = 100  # of a kernel; files have it, beside a digest
_ORDERS = ("", "_backward", "_double_backward", "_triple_backward")


@dataclass(frozen=True)
class HandWritten:
    """Functors that stand in a header of ``csrc``: of a function, of its vjp, of the vjp of that, and so on."""

    header: str
    functors: tuple[str, ...]

    @property
    def next(self) -> HandWritten | None:
        return HandWritten(self.header, self.functors[1:]) if len(self.functors) > 1 else None


def _subset(names: Sequence[Any], chosen: tuple[bool, ...]) -> str:
    """Names the chosen ones, if they are not all."""
    return "" if all(chosen) else "".join(f"_{name}" for name, c in zip(names, chosen, strict=True) if c)


class Elementwise:
    """k functions of m tensors of one shape and of some numbers.

    Args:
        program: the functions as expressions.
        definition: the same in plain PyTorch, m tensors and then the numbers to a tensor (k = 1) or a tuple of k.
        name: what its kernel is called.
        order: how often it was differentiated in reverse mode, as a suffix of the name.
        chosen: the names of its outputs, if they are not all, as another suffix.
        written: its functor, where one was written by hand.
    """

    def __init__(
        self,
        program: Program,
        definition: Callable[..., Any],
        name: str,
        order: int = 0,
        chosen: str = "",
        written: HandWritten | None = None,
        family: set[tuple[Any, ...]] | None = None,
    ) -> None:
        self.program = program
        self.definition = definition
        self.name = (name + self._suffix(order) + chosen)[:_LONGEST_NAME]
        self._stem, self._order = name, order
        self.written = written
        self._single = len(program.outputs) == 1
        self._kernels: dict[tuple[Any, ...], kernels.PointwiseKernel | None] = {}
        self._failed: set[tuple[Any, ...]] = set() if family is None else family
        self._vjps: dict[tuple[tuple[bool, ...], tuple[bool, ...]], Derivative] = {}
        self._jvps: dict[tuple[bool, ...], Derivative] = {}
        self._laplacians: dict[tuple[tuple[int, ...], tuple[int, ...]], Derivative] = {}
        self._partials: dict[tuple[tuple[tuple[bool, ...], ...], JetAlgebra], Derivative] = {}

    _fast_function: Any = None
    _class_in_cpp = "Function"  # of csrc/fast_path
    variants: tuple[tuple[bool, ...], ...] = ((),)  # of the kernels for a dtype on the CPU
    broadcast: Any  # Broadcast, which _broadcast.py puts here: it stands on this class

    @functools.cached_property
    def _own_dtypes(self) -> list[torch.dtype]:
        """The dtypes that the function gives to results on the way."""
        found = {node.op for node in topological(self.program.outputs)}
        return [getattr(torch, name) for name in FLOATS if name in found]

    def keeps(self, dtype: torch.dtype) -> bool:
        """Have the results of tensors of a dtype that dtype too?"""
        return all(torch.promote_types(dtype, own) == dtype for own in self._own_dtypes)

    @functools.cached_property
    def _input_names(self) -> list[str]:
        return [str(x.value) for x in self.program.inputs]

    @functools.cached_property
    def is_analytic(self) -> bool:
        """Is it holomorphic in complex numbers, with the derivatives that it has in real ones?"""
        return all(
            not node.args or OPERATIONS[node.op].is_analytic or (node.op == "pow" and node.args[1].is_constant)
            for node in topological(self.program.outputs)
        )

    @functools.cached_property
    def read(self) -> tuple[tuple[int, ...], ...]:
        """The inputs that each output depends on: it has the shape that they broadcast to."""
        nodes = (set(topological([output])) for output in self.program.outputs)
        return tuple([tuple([i for i, x in enumerate(self.program.inputs) if x in of]) for of in nodes])

    @functools.cached_property
    def depends_on_all(self) -> bool:
        """Does every output depend on every input? Then each has the shape that all of them broadcast to."""
        return all(len(of) == len(self.program.inputs) for of in self.read)

    def results_are_whole(self, xs: Tensors) -> bool:
        """Has every result the shape that all tensors broadcast to? One of fewer tensors may have a smaller one."""
        if self.depends_on_all:
            return True
        shape = torch.broadcast_shapes(*(x.shape for x in xs))
        return all(torch.broadcast_shapes(*(xs[i].shape for i in of)) == shape for of in self.read)

    @staticmethod
    def _suffix(order: int) -> str:
        return _ORDERS[order] if order < len(_ORDERS) else f"_backward{order}"

    def functor(self, dtype: str = "float64") -> tuple[str, str]:
        """The name of the functor for a dtype, and the C++ that defines it."""
        if self.written:
            return self.written.functors[0], f'#include "{self.written.header}"'
        name = cpp.struct_name(self.name)
        return name, cpp.functor(self.program, name, dtype)

    def kernel(self, device: str, dtype: torch.dtype, *variant: bool) -> kernels.PointwiseKernel | None:
        """The kernel, compiled on its first use; None if there is none. It gives a list of the outputs."""
        key = device, dtype, *variant
        if key not in self._kernels:
            self._kernels[key] = None if key in self._failed else self._compile(device, dtype, *variant)
            if self._kernels[key] is None:
                self._failed.add(key)
        return self._kernels[key]

    def source(self, device: str, dtype: torch.dtype) -> cpp.Kernel:
        """The kernel to compile: its name and its C++."""
        of = kernels.dtype_name(dtype)
        name, functor = self.functor(of)
        return cpp.kernel(functor, name, self.program, device, of)

    def _compile(self, device: str, dtype: torch.dtype) -> kernels.PointwiseKernel | None:
        if not self.keeps(dtype):
            return None
        return kernels.compile_pointwise(self.name, dtype, device, self.source(device, dtype))

    def run(self, xs: Tensors, scalars: Scalars) -> Any:
        """The results without derivatives: by the kernel, or by the definition."""
        device = kernels.device_of(xs)
        kernel = device and self.kernel(device, xs[0].dtype)
        if not kernel:
            return self.definition(*xs, *scalars)
        return self._results(kernel(xs, scalars))

    def stacked(self, xs: Tensors, scalars: Scalars) -> Sequence[torch.Tensor] | None:
        """The results without derivatives, one behind the other in memory; None if the kernel cannot run."""
        if transforms_active() or in_forward_mode():
            return None
        device = kernels.device_for(xs)
        kernel = device and self.kernel(device, xs[0].dtype)
        if not kernel:
            return None
        stack = xs[0].new_empty(len(self.program.outputs), *xs[0].shape)
        results: Sequence[torch.Tensor] = stack.unbind(0)
        kernel(xs, scalars, out=results)
        return results

    def apply(self, xs: Tensors, scalars: Scalars) -> Any:
        """The results, by the route that their derivatives need."""
        device = kernels.device_for(xs)
        if device is None:
            return self._apply_without_device(xs, scalars)
        kernel = self.kernel(device, xs[0].dtype)
        if kernel is None:
            return self.definition(*xs, *scalars)
        if transforms_active():
            return _ApplyUnderTransforms.apply(self, scalars, *xs)
        if not in_forward_mode():
            outputs = self.apply_in_cpp(device, xs, scalars)
            if outputs is not NotImplemented:
                return outputs
            if not (torch.is_grad_enabled() and any(x.requires_grad for x in xs)):
                return self._results(kernel(xs, scalars))
        return _Apply.apply(self, scalars, *xs)

    def apply_batched(self, size: int, dims: Sequence[int | None], xs: Tensors, scalars: Scalars) -> Any:
        """The results of a batch, along their first dimension; ``dims`` says where the tensors have it, if at all."""
        batched = [
            x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(xs, dims, strict=True)
        ]
        return self.apply(batched, scalars)

    def _results(self, outputs: Sequence[torch.Tensor]) -> Any:
        return outputs[0] if self._single else tuple(outputs)

    def _apply_without_device(self, xs: Tensors, scalars: Scalars) -> Any:
        batches = kernels.without_batch(xs)
        if batches is None:
            return self.definition(*xs, *scalars)
        shape = max((x.shape for x in batches), key=len)
        outputs = self.apply([x.expand(shape) for x in batches], scalars)
        return with_hidden_batch(outputs) if self._single else tuple(map(with_hidden_batch, outputs))

    def apply_in_cpp(self, device: str, xs: Tensors, scalars: Scalars, *broadcast: Any) -> Any:
        """The results of ``csrc/fast_path``, NotImplemented where it does not take such tensors.

        Args:
            device: of the tensors.
            xs: the tensors.
            scalars: the numbers.
            broadcast: of tensors that broadcast, their shape and those of the results.
        """
        if self.fast_function is None:  # as long as its compiler runs, and for more tensors than it has bits for
            return NotImplemented
        outputs = self._fast_function.apply(xs, scalars, *broadcast)
        if outputs is NotImplemented:  # it may not know the kernel yet
            kernel = self._kernels[device, xs[0].dtype]
            assert kernel
            self._fast_function.set_kernel(fast_path.device_number(device), kernels.DTYPES[xs[0].dtype], kernel.address)
            outputs = self._fast_function.apply(xs, scalars, *broadcast)
        return outputs

    @functools.cached_property
    def read_by_derivatives(self) -> frozenset[int]:
        """The inputs that some derivative depends on."""
        inputs = len(self.program.inputs)
        return frozenset(i for i in self.vjp(*self._masks(-1, -1)).arguments if i < inputs)

    @property
    def fast_function(self) -> Any:
        """Applies this one to plain tensors in ``csrc/fast_path``; None while there is none."""
        operands = len(self.program.inputs) + len(self.program.outputs)
        if self._fast_function is None and operands <= 64 and (module := fast_path.module()):
            node = cpp.struct_name(self._stem + self._suffix(self._order + 1))
            scalars, outputs = len(self.program.scalars), len(self.program.outputs)
            # The first of two threads decides.
            made = getattr(module, self._class_in_cpp)(self, scalars, outputs, self.name, node)
            self.__dict__.setdefault("_fast_function", made)
        return self._fast_function

    def vjp_of_masks(self, wanted: int, given: int) -> tuple[Any, ...]:
        """The Derivative whose wanted results and given cotangents are the bits that are set, for C++ to ask for."""
        derivative = self.vjp(*self._masks(wanted, given))
        return derivative.function.fast_function, derivative.arguments, derivative.scalars, derivative.results

    def pullback(
        self,
        arguments: Tensors,
        scalars: Scalars,
        wanted: int,
        given: int,
        shape: tuple[int, ...],
        operands: tuple[tuple[int, ...], ...],
    ) -> Tensors:
        """The wanted gradients from the inputs and the given cotangents, by whatever route; for C++ to ask for.

        Args:
            arguments: the inputs, None where no derivative reads one, and the cotangents.
            scalars: the numbers.
            wanted: a bit for each input.
            given: a bit for each output.
            shape: that the inputs broadcast to.
            operands: the shapes of the inputs; empty if they have one shape.
        """
        masks = self._masks(wanted, given)
        if not operands:
            return self.vjp(*masks).apply(arguments, scalars, wanted.bit_count())
        cotangents = iter([tuple(g.shape) for g in arguments[len(operands) :]])
        results = tuple([next(cotangents) if is_given else shape for is_given in masks[1]])
        whole = self.broadcast(self, shape, operands, results)
        gradients: Tensors = whole.vjp(*masks).apply(arguments, scalars, wanted.bit_count())
        return gradients

    def _masks(self, wanted: int, given: int) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
        inputs, outputs = range(len(self.program.inputs)), range(len(self.program.outputs))
        return tuple([bool(wanted >> i & 1) for i in inputs]), tuple([bool(given >> i & 1) for i in outputs])

    def vjp(self, wanted: tuple[bool, ...], given: tuple[bool, ...]) -> Derivative:
        """The vector-Jacobian product: of (inputs, a cotangent for each given output), the gradients of the wanted."""
        key = wanted, given
        if key not in self._vjps:
            written = self.written.next if self.written and all(wanted) and all(given) else None
            chosen = _subset(self._input_names, wanted)
            if not all(given):
                chosen += "_of" + _subset(self.program.names, given)
            self._vjps[key] = self._derivative(
                self.program.vjp(wanted, given), self._stem, self._order + 1, chosen, written
            )
        return self._vjps[key]

    def jvp(self, given: tuple[bool, ...]) -> Derivative:
        """The Jacobian-vector product: of (inputs, a tangent for each given input), the tangents of the outputs."""
        if len(given) == len(self.program.outputs) == 1:
            return self.vjp((True,), (True,))  # f'(x) t and f'(x) g are one function
        if given not in self._jvps:
            chosen = _subset(self._input_names, given)
            self._jvps[given] = self._derivative(
                self.program.jvp(given), f"{self._stem}{self._suffix(self._order)}_jvp", 0, chosen
            )
        return self._jvps[given]

    def laplacian(self, carried: tuple[int, ...], signs: tuple[int, ...]) -> Derivative:
        """The values, tangents and Laplacians of the outputs, from those of the inputs: ``Program.laplacian``."""
        key = carried, signs
        if key not in self._laplacians:
            name = f"{self._stem}{self._suffix(self._order)}_laplacian"
            self._laplacians[key] = self._derivative(self.program.laplacian(carried, signs), name, 0, "")
        return self._laplacians[key]

    def partials(self, carried: tuple[tuple[bool, ...], ...], algebra: JetAlgebra) -> Derivative:
        """The jets of the outputs, from those of the inputs: ``Program.partials``."""
        key = carried, algebra
        if key not in self._partials:
            name = f"{self._stem}{self._suffix(self._order)}_jet{len(algebra)}"
            self._partials[key] = self._derivative(self.program.partials(carried, algebra), name, 0, "")
        return self._partials[key]

    def _derivative(
        self, derivative: ProgramDerivative, name: str, order: int, chosen: str, written: HandWritten | None = None
    ) -> Derivative:
        program = derivative.program
        function = Elementwise(
            program, functools.partial(evaluate, program), name, order, chosen, written, self._failed
        )
        return Derivative(function, derivative.arguments, derivative.scalars, derivative.results)


@dataclass(frozen=True)
class Derivative:
    """A derivative of an Elementwise: a function of some of its arguments, and which results it gives.

    Attributes:
        function: computes the results that are not zero.
        arguments: which of (the inputs, the given cotangents or tangents) it takes.
        scalars: which of the numbers it takes.
        results: which of the wanted results it gives; the others are zero.
    """

    function: Elementwise
    arguments: tuple[int, ...]
    scalars: tuple[int, ...]
    results: tuple[int, ...]

    def apply(self, arguments: Sequence[torch.Tensor], scalars: Scalars, count: int) -> Sequence[torch.Tensor]:
        """All ``count`` results, for all arguments; those that it does not take may be None."""
        xs = [arguments[i] for i in self.arguments]
        outputs: Any = ()
        if self.results:
            outputs = self.function.apply(xs, tuple([scalars[i] for i in self.scalars]))
            outputs = (outputs,) if len(self.results) == 1 else outputs
        if len(self.results) == count:
            return outputs  # type: ignore[no-any-return]
        known = dict(zip(self.results, outputs, strict=True))
        zero = arguments[-1].new_zeros(()).expand_as(arguments[-1])
        return [known.get(i, zero) for i in range(count)]


class _ApplyUnderTransforms(torch.autograd.Function):
    """Applies an Elementwise under transforms of ``torch.func``.

    Saves inputs alone, those that a derivative depends on: an intermediate made inside forward has no gradient to give
    to the double backward.
    """

    @staticmethod
    def forward(op: Elementwise, scalars: Scalars, *xs: torch.Tensor) -> Any:
        return op.run(xs, scalars)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        saved = to_save(ctx, *inputs)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        return pullback(ctx, ctx.saved_tensors, ctx.scalars, grads)

    @staticmethod
    def jvp(ctx: Any, _op: None, _scalars: None, *tangents: torch.Tensor | None) -> Any:
        given = tuple([t is not None for t in tangents])
        arguments = (*ctx.saved_tensors, *(t for t in tangents if t is not None))
        # One application of an Elementwise: a product around one would be silently zero in nested forward mode.
        count = len(ctx.op.program.outputs)
        results = ctx.op.jvp(given).apply(arguments, ctx.scalars, count)
        return results[0] if count == 1 else tuple(results)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], op: Elementwise, scalars: Scalars, *xs: torch.Tensor) -> Any:
        count = len(op.program.outputs)
        return op.apply_batched(info.batch_size, in_dims[2:], xs, scalars), 0 if count == 1 else (0,) * count


def to_save(ctx: Any, op: Elementwise, scalars: Any, *xs: torch.Tensor) -> list[torch.Tensor | None]:
    """Tells a Function what it applies; gives what it is to save, None for tensors that no derivative reads."""
    ctx.op, ctx.scalars = op, scalars
    ctx.set_materialize_grads(False)
    return [x if i in op.read_by_derivatives else None for i, x in enumerate(xs)]


def pullback(
    ctx: Any, xs: Sequence[torch.Tensor | None], scalars: Any, grads: Sequence[torch.Tensor | None]
) -> tuple[torch.Tensor | None, ...]:
    """The backward of a Function that applies an Elementwise, from the saved inputs and the cotangents."""
    wanted = tuple([w and is_wanted(ctx, i) for i, w in enumerate(ctx.needs_input_grad[2:])])
    given = tuple([g is not None for g in grads])
    arguments = (*xs, *(g for g in grads if g is not None))
    gradients = iter(ctx.op.vjp(wanted, given).apply(arguments, scalars, sum(wanted)))
    return (None, None, *(next(gradients) if w else None for w in wanted))


class _Apply(_ApplyUnderTransforms):
    """Applies an Elementwise where there is no transform.

    For a Function with a ``setup_context`` of its own PyTorch inspects the signature of ``forward`` in each call, which
    takes longer than a small kernel.
    """

    setup_context = staticmethod(torch.autograd.Function.setup_context)

    @staticmethod
    def forward(ctx: Any, op: Elementwise, scalars: Scalars, *xs: torch.Tensor) -> Any:  # type: ignore[override]
        output = op.run(xs, scalars)
        _ApplyUnderTransforms.setup_context(ctx, (op, scalars, *xs), output)
        return output


def is_wanted(ctx: Any, tensor: int) -> bool:
    """Will the gradient of a tensor be used? That it requires one does not say so: grad(f(x, a), x) has no use for a's.

    Args:
        ctx: of the Function whose backward asks.
        tensor: its place among the tensors that the Function was given; it requires a gradient.
    """
    if transforms_active():
        return True
    if module := fast_path.module():
        return bool(module.is_wanted(tensor))
    node = ctx.next_functions[tensor][0]
    # For a leaf whose gradient is captured the engine raises instead of answering: it is wanted.
    with contextlib.suppress(RuntimeError):
        return will_execute(node)
    return True
