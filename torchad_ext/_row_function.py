"""RowFunction: a function of rows with all its derivatives, as ``_elementwise.py`` has one of elements.

Tensors are of three kinds: ``"tensor"``, a value an element ``[..., n]``; ``"row"``, one a row ``[..., 1]``; and
``"column"``, ``[n]``, the same for all rows. The gradient of an operand of a kind is a result of that kind, of which a
column is the sum over all rows, so that the class is closed under ``vjp`` and ``jvp``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ._elementwise import Derivative, Elementwise, HandWritten, Tensors, _Apply, _ApplyUnderTransforms, _subset
from ._native import kernels
from ._symbolic import cpp, row_cpp
from ._symbolic.evaluate import evaluate_rows
from ._symbolic.expr import Expr, make, tensor, topological
from ._symbolic.program import Program, ProgramDerivative
from ._torch_state import in_forward_mode, transforms_active

Shape = tuple[int, ...]
Call = tuple[Shape, tuple[float, ...]]  # the shape of the operands with a value an element, and the numbers


def shape_of(kind: str, shape: Shape) -> Shape:
    """The shape of a tensor of a kind, beside those with a value an element of a shape."""
    return {"tensor": shape, "row": (*shape[:-1], 1), "column": shape[-1:]}[kind]


class RowFunction(Elementwise):
    """k functions of the rows of m tensors and of some numbers.

    It is differentiated, named and cached as an Elementwise. Its calls take the shape of the tensors beside the
    numbers: a derivative may have none of them as its operand.
    """

    devices = ("cpu",)  # that there are kernels for

    def __init__(
        self,
        program: Program,
        name: str,
        order: int = 0,
        chosen: str = "",
        family: set[tuple[str, torch.dtype]] | None = None,
    ) -> None:
        super().__init__(program, functools.partial(evaluate_rows, program), name, order, chosen, family=family)
        self.kinds = program.kinds or ("tensor",) * len(program.outputs)

    def functor(self, dtype: str = "float64") -> tuple[str, str]:
        """The name of the functors for a dtype, and the C++ that defines them."""
        name = cpp.struct_name(self.name)
        return name, row_cpp.row_functor(self.program, name, dtype)

    def source(self, device: str, dtype: torch.dtype) -> cpp.Kernel:
        """The source of a kernel."""
        of = kernels.dtype_name(dtype)
        name, functor = self.functor(of)
        return row_cpp.row_kernel(functor, name, self.program, of)

    def _compile(self, device: str, dtype: torch.dtype) -> Any:
        if device not in self.devices or not self.keeps(dtype):
            return None
        return kernels.compile_rowwise(self.name, dtype, device, self.source(device, dtype))

    def run(self, xs: Tensors, call: Call) -> Any:  # type: ignore[override]
        """The results without derivatives: by the kernel, or by the definition."""
        return self._run_on(kernels.device_of(xs) if 0 not in call[0] else None, xs, call)

    def _run_on(self, device: str | None, xs: Tensors, call: Call) -> Any:
        shape, scalars = call
        kernel: Any = device and self.kernel(device, xs[0].dtype)
        if not kernel:
            return self.definition(shape, *xs, *scalars)
        return self._results(kernel(xs, scalars, shape))

    def apply(self, xs: Tensors, call: Call) -> Any:  # type: ignore[override]
        """The results, by the route that their derivatives need."""
        shape, scalars = call
        device = None if 0 in shape else kernels.device_for(xs)
        return self.definition(shape, *xs, *scalars) if device is None else self.on_device(device, xs, call)

    def on_device(self, device: str, xs: Tensors, call: Call) -> Any:
        """The results of tensors on a device, where no mode has to see the definition."""
        if transforms_active():
            return _ApplyUnderTransforms.apply(self, call, *xs)
        if in_forward_mode() or (torch.is_grad_enabled() and any(x.requires_grad for x in xs)):
            return _Apply.apply(self, call, *xs)
        return self._run_on(device, xs, call)

    def apply_batched(self, size: int, dims: Sequence[int | None], xs: Tensors, call: Call) -> Any:  # type: ignore[override]
        """The results of a batch, along their first dimension; ``dims`` says where the tensors have it, if at all."""
        shape, scalars = call
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
        outputs = function.apply(batched, (whole, scalars))
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
        shape, scalars = call
        xs = [arguments[i] for i in self.arguments]
        outputs: Any = ()
        if self.results:
            outputs = self.function.apply(xs, (shape, tuple([scalars[i] for i in self.scalars])))  # type: ignore[arg-type]
            outputs = (outputs,) if len(self.results) == 1 else outputs
        known = dict(zip(self.results, outputs, strict=True))
        like = next((x for x in arguments if x is not None), None)
        if like is None:  # no cotangent is defined, so that no gradient is
            return [None] * count  # type: ignore[list-item]
        zero = like.new_zeros(())
        return [known[i] if i in known else zero.expand(shape_of(self.kinds[i], shape)) for i in range(count)]
