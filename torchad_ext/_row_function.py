"""RowFunction: a function of rows with all its derivatives, as ``_elementwise.py`` has one of elements.

Tensors are of three kinds: ``"tensor"``, a value an element ``[..., n]``; ``"row"``, one a row ``[..., 1]``; and
``"column"``, ``[n]``, the same for all rows. The gradient of an operand of a kind is a result of that kind, of which a
column is the sum over all rows, so that the class is closed under ``vjp`` and ``jvp``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch

from ._elementwise import (
    Derivative,
    Elementwise,
    HandWritten,
    Tensors,
    _Apply,
    _ApplyUnderTransforms,
    _subset,
    pullback,
    to_save,
)
from ._native import fast_path, kernels
from ._symbolic import cpp, row_cpp
from ._symbolic.evaluate import evaluate_rows
from ._symbolic.expr import Expr, make, tensor, topological
from ._symbolic.program import Program, ProgramDerivative
from ._torch_state import in_forward_mode, transforms_active

Shape = tuple[int, ...]
HALF = {torch.float16, torch.bfloat16}  # computed in float32
SHORT = 15  # longest_short_row of csrc/rowwise.h; such rows are read in less time than their values would be


# Expressions of kept values by number, as C++ calls them.
_expressions: WeakValueDictionary[int, Expr] = WeakValueDictionary()


class Call(NamedTuple):
    """The arguments of a function of rows beside its tensors.

    Attributes:
        shape: of the operands with a value an element: a derivative may have none of them.
        numbers: for its scalars.
        known: values that an earlier call has computed, by their expressions: of the row ``[..., 1]``, or results.
    """

    shape: Shape
    numbers: tuple[float, ...]
    known: Mapping[Expr, torch.Tensor] = MappingProxyType({})


@dataclass(frozen=True)
class Recording:
    """A function of rows that takes values instead of computing them, and keeps those that its derivative takes.

    Attributes:
        function: gives the outputs, then values of the row that it keeps.
        operands: the places of its operands among the inputs and the known values.
        kept: the expressions that it keeps.
        places: where each is among the results.
        passed: the known ones that the derivative takes too.
    """

    function: RowFunction
    operands: tuple[int, ...]
    kept: tuple[Expr, ...]
    places: tuple[int, ...]
    passed: tuple[Expr, ...]


def shape_of(kind: str, shape: Shape) -> Shape:
    """The shape of a tensor of a kind, beside those with a value an element of a shape."""
    return {"tensor": shape, "row": (*shape[:-1], 1), "column": shape[-1:]}[kind]


class RowFunction(Elementwise):
    """k functions of the rows of m tensors and of some numbers.

    It is differentiated, named and cached as an Elementwise. A call whose gradient is wanted keeps the sums over rows
    that the gradient needs again, and a result that is a softmax. They are no more than what the gradient's kernel
    would compute: every derivative is one of the program in the inputs.
    """

    _class_in_cpp = "RowFunction"
    variants: tuple[tuple[bool, ...], ...] = ((True,), (False,))  # kernels of short rows and of longer ones

    def __init__(
        self,
        program: Program,
        name: str,
        order: int = 0,
        chosen: str = "",
        family: set[tuple[Any, ...]] | None = None,
    ) -> None:
        super().__init__(program, functools.partial(evaluate_rows, program), name, order, chosen, family=family)
        self.kinds = program.kinds or ("tensor",) * len(program.outputs)
        self._recordings: dict[tuple[Expr, ...], Recording] = {}

    def functor(self, dtype: str = "float64") -> tuple[str, str]:
        """The name of the functors for a dtype, and the C++ that defines them."""
        name = cpp.struct_name(self.name)
        return name, row_cpp.row_functor(self.program, name, dtype)

    def source(self, device: str, dtype: torch.dtype, is_short: bool = False) -> cpp.Kernel:
        """The source of the kernel of short rows, or of longer ones; on CUDA of all."""
        of = kernels.dtype_name(dtype)
        name, functor = self.functor(of)
        return row_cpp.row_kernel(functor, name, self.program, device, of, is_short)

    def _compile(self, device: str, dtype: torch.dtype, is_short: bool = False) -> Any:
        if not self.keeps(dtype):
            return None
        return kernels.compile_rowwise(self.name, dtype, device, self.source(device, dtype, is_short))

    def run(self, xs: Tensors, call: Call) -> Any:  # type: ignore[override]
        """The results without derivatives: by the kernel, or by the definition."""
        return self._run_on(kernels.device_of(xs) if 0 not in call.shape else None, xs, call)

    def _run_on(self, device: str | None, xs: Tensors, call: Call) -> Any:
        if call.known and device:
            return self.run_recorded(device, xs, call)[0]
        kernel: Any = device and self.kernel(device, xs[0].dtype, *self._variant(device, call))
        if not kernel:
            return self.definition(call.shape, *xs, *call.numbers)
        return self._results(kernel(xs, call.numbers, call.shape))

    @staticmethod
    def _variant(device: str, call: Call) -> tuple[bool, ...]:
        """Which kernel computes a call; there is one on CUDA."""
        return (call.shape[-1] <= SHORT,) if device == "cpu" else ()

    def run_recorded(self, device: str, xs: Tensors, call: Call) -> tuple[Any, dict[Expr, torch.Tensor]]:
        """The results, and the values of the row that their gradients take."""
        recording = self.recorded(tuple(call.known))
        operands = (*xs, *call.known.values())
        given = [operands[i] for i in recording.operands]
        function = recording.function
        kernel: Any = function.kernel(device, xs[0].dtype, *self._variant(device, call))
        if kernel:
            outputs: Any = kernel(given, call.numbers, call.shape)
        else:
            outputs = function.definition(call.shape, *given, *call.numbers)
            outputs = [outputs] if function._single else outputs
        kept = {node: outputs[place] for node, place in zip(recording.kept, recording.places, strict=True)}
        kept |= {node: call.known[node] for node in recording.passed}
        return self._results(outputs[: len(self.program.outputs)]), kept

    def recorded(self, known: tuple[Expr, ...]) -> Recording:
        """How a call is computed whose gradients take values from it, where some are known already."""
        if known not in self._recordings:
            all_gradients = self.vjp(*self._masks(-1, -1)).function.program
            shared = self.program.shared(all_gradients, known)
            passed = tuple(node for node in shared if node in known)
            results = self.program.outputs
            kept = tuple(node for node in shared if node not in known)
            # A result [..., 1] may lose its last dimension, and then a write to it would not be noticed.
            of_elements = [kind == "tensor" and not y.is_row for y, kind in zip(results, self.kinds, strict=True)]
            places = {y: i for i, (y, is_whole) in enumerate(zip(results, of_elements, strict=True)) if is_whole}
            of_rows = [node for node in kept if node not in places]
            places |= {node: i for i, node in enumerate(of_rows, len(results))}
            program, operands = self.program.recording(known, of_rows)
            is_same = not of_rows and operands == tuple(range(len(self.program.inputs)))
            function = self
            if not is_same:
                function = RowFunction(program, f"{self.name}_recorded", family=self._failed)
                function.variants = ((False,),)  # no values of short rows are kept
            self._recordings[known] = Recording(function, operands, kept, tuple(map(places.__getitem__, kept)), passed)
            _expressions.update({id(node): node for node in kept})
        return self._recordings[known]

    def apply_in_cpp(self, device: str, xs: Tensors, call: Call) -> Any:  # type: ignore[override]
        """The results of ``csrc/fast_path``, NotImplemented where it does not take such tensors."""
        fast = self.fast_function if device == "cpu" else None
        if fast is None:  # on CUDA, and as long as its compiler runs
            return NotImplemented
        arguments = xs, call.numbers, call.shape, tuple(map(id, call.known)), tuple(call.known.values())
        outputs = fast.apply(*arguments)
        if outputs is NotImplemented:  # it may not know the kernel yet
            needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in xs)
            is_recorded = call.known or (needs_gradient and self._keeps(xs, call))
            function = self.recorded(tuple(call.known)).function if is_recorded else self
            is_short = call.shape[-1] <= SHORT
            kernel = function.kernel(device, xs[0].dtype, is_short)
            if kernel and (of := function.fast_function):
                fast_path.take_rows()
                of.set_kernel(kernels.DTYPES[xs[0].dtype], is_short, kernel.address)
                outputs = fast.apply(*arguments)
        return outputs

    def vjp_of_masks(self, wanted: int, given: int) -> tuple[Any, ...]:
        """The derivative whose wanted results and given cotangents are the bits that are set, for C++ to ask for."""
        derivative = self.vjp(*self._masks(wanted, given))
        assert isinstance(derivative, RowDerivative)
        kinds = tuple([row_cpp.NUMBER_OF_KIND[kind] for kind in derivative.kinds])
        function = derivative.function.fast_function
        return function, derivative.arguments, derivative.scalars, derivative.results, kinds

    def recorded_with(self, known: Sequence[int]) -> tuple[Any, ...]:
        """The Recording for known expressions by their numbers, for C++ to ask for."""
        expressions = tuple([_expressions[number] for number in known])
        recording = self.recorded(expressions)
        passed = tuple([expressions.index(node) for node in recording.passed])
        kept = tuple(map(id, recording.kept))
        return recording.function.fast_function, recording.operands, kept, recording.places, passed

    def pullback_of_rows(
        self,
        arguments: Tensors,
        numbers: tuple[float, ...],
        wanted: int,
        given: int,
        shape: Shape,
        known: Sequence[int],
        values: Tensors,
    ) -> Tensors:
        """The wanted gradients from the inputs and the given cotangents, by whatever route; for C++ to ask for."""
        call = Call(shape, numbers, {_expressions[number]: x for number, x in zip(known, values, strict=True)})
        gradients: Tensors = self.vjp(*self._masks(wanted, given)).apply(arguments, call, wanted.bit_count())  # type: ignore[arg-type]
        return gradients

    def apply(self, xs: Tensors, call: Call) -> Any:  # type: ignore[override]
        """The results, by the route that their derivatives need."""
        device = None if 0 in call.shape else kernels.device_for(xs)
        return self.definition(call.shape, *xs, *call.numbers) if device is None else self.on_device(device, xs, call)

    def on_device(self, device: str, xs: Tensors, call: Call) -> Any:
        """The results of tensors on a device, where no mode has to see the definition."""
        if transforms_active():
            return _ApplyUnderTransforms.apply(self, call._replace(known={}), *xs)
        if in_forward_mode():
            return _Apply.apply(self, call._replace(known={}), *xs)
        if call.known and kernels.device_of([*xs, *call.known.values()]) != device:
            call = call._replace(known={})  # hooks of saved tensors gave values of another kind
        outputs = self.apply_in_cpp(device, xs, call)
        if outputs is not NotImplemented:
            return outputs
        if torch.is_grad_enabled() and any(x.requires_grad for x in xs):
            return (_ApplyRecording if self._keeps(xs, call) else _Apply).apply(self, call, *xs)
        return self._run_on(device, xs, call)

    def _keeps(self, xs: Tensors, call: Call) -> bool:
        """Does a call keep values of the row? They have the dtype of the tensors, so it is to be the computed one."""
        return call.shape[-1] > SHORT and xs[0].dtype not in HALF

    def apply_batched(self, size: int, dims: Sequence[int | None], xs: Tensors, call: Call) -> Any:  # type: ignore[override]
        """The results of a batch, along their first dimension; ``dims`` says where the tensors have it, if at all."""
        shape = call.shape
        whole = size, *shape
        kinds = [x.op for x in self.program.inputs]
        # Columns of the members of a batch differ, and so do sums over the rows of each.
        has_columns = "column" in self.kinds or any(
            kind == "column" and dim is not None for kind, dim in zip(kinds, dims, strict=True)
        )
        function = self.without_columns if has_columns else self
        batched = []
        for x, kind, dim in zip(xs, kinds, dims, strict=True):
            if kind == "column" and not has_columns:
                batched.append(x)
                continue
            first = x.unsqueeze(0) if dim is None else x.movedim(dim, 0)
            if kind == "column":
                first = first.reshape(-1, *[1] * (len(shape) - 1), shape[-1])
            batched.append(first.expand(shape_of("row" if kind == "row" else "tensor", whole)))
        outputs = function.apply(batched, Call(whole, call.numbers))
        if "column" not in self.kinds or len(shape) == 1:
            return outputs
        between = tuple(range(1, len(shape)))
        summed = [
            y.sum(between) if kind == "column" else y
            for y, kind in zip((outputs,) if self._single else outputs, self.kinds, strict=True)
        ]
        return self._results(summed)

    @functools.cached_property
    def without_columns(self) -> RowFunction:
        """The function without sums over all rows: of tensors with a value an element in place of columns."""
        known: dict[Expr, Expr] = {}
        for node in topological((*self.program.outputs, *self.program.inputs)):
            known[node] = make(node.op, *(known[arg] for arg in node.args)) if node.args else node
            if node.op == "column":
                known[node] = tensor(str(node.value))
        program = replace(
            self.program,
            inputs=tuple(known[x] for x in self.program.inputs),
            outputs=tuple(known[y] for y in self.program.outputs),
            kinds=tuple("row" if kind == "row" else "tensor" for kind in self.kinds),
        )
        return RowFunction(program, f"{self.name}_elements", family=self._failed)

    def jvp(self, given: tuple[bool, ...]) -> Derivative:
        """The Jacobian-vector product: of (inputs, a tangent for each given input), the tangents of the outputs."""
        if given not in self._jvps:
            chosen = _subset(self.program.inputs, given)
            name = f"{self._stem}{self._suffix(self._order)}_jvp"
            self._jvps[given] = self._derivative(self.program.jvp(given), name, 0, chosen)
        return self._jvps[given]

    def _derivative(
        self, derivative: ProgramDerivative, name: str, order: int, chosen: str, written: HandWritten | None = None
    ) -> RowDerivative:
        function = RowFunction(derivative.program, name, order, chosen, self._failed)
        return RowDerivative(function, derivative.arguments, derivative.scalars, derivative.results, derivative.kinds)


@dataclass(frozen=True)
class RowDerivative(Derivative):
    """A derivative of a RowFunction.

    Attributes:
        kinds: of each wanted result, those that are zero included.
    """

    kinds: tuple[str, ...]

    def apply(self, arguments: Sequence[torch.Tensor], call: Call, count: int) -> Sequence[torch.Tensor]:  # type: ignore[override]
        """All ``count`` results, for all arguments; those that it does not take may be None."""
        xs = [arguments[i] for i in self.arguments]
        outputs: Any = ()
        if self.results:
            numbers = tuple([call.numbers[i] for i in self.scalars])
            outputs = self.function.apply(xs, call._replace(numbers=numbers))  # type: ignore[arg-type]
            outputs = (outputs,) if len(self.results) == 1 else outputs
        known = dict(zip(self.results, outputs, strict=True))
        like = next((x for x in arguments if x is not None), None)
        if like is None:  # no cotangent is defined, so that no gradient is
            return [None] * count  # type: ignore[list-item]
        zero = like.new_zeros(())
        return [known[i] if i in known else zero.expand(shape_of(self.kinds[i], call.shape)) for i in range(count)]


class _ApplyRecording(_Apply):
    """Applies a RowFunction where there is no transform, and keeps the values of the row that its gradients take."""

    @staticmethod
    def forward(ctx: Any, op: RowFunction, call: Call, *xs: torch.Tensor) -> Any:  # type: ignore[override]
        device = xs[0].device.type
        output, kept = op.run_recorded(device, xs, call)
        ctx.save_for_backward(*to_save(ctx, op, call._replace(known={}), *xs), *kept.values())
        ctx.kept = tuple(kept)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        saved = ctx.saved_tensors
        count = len(saved) - len(ctx.kept)
        known = {node: x.detach() for node, x in zip(ctx.kept, saved[count:], strict=True)}
        call = ctx.scalars._replace(known=known)
        return pullback(ctx, saved[:count], call, grads)
