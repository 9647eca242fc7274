"""Holds an op against its definition: value, gradient, double backward and Hessian, by dtype and device.

The reference is never the op itself but native autograd of the definition in float64, finite differences, and
``torch.autograd.functional.hessian``. ``gradgradcheck`` is the check that counts: an op that saves an intermediate made
inside its forward passes ``gradcheck`` and has a wrong Hessian.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from . import expr
from .codegen import lower
from .pointwise import Pointwise
from .trace import evaluate_nodes

Tensors = tuple[torch.Tensor, ...]


class VerificationError(AssertionError):
    """An op does not agree with its definition. ``verification`` holds every check that was made."""

    def __init__(self, message: str, verification: Verification) -> None:
        super().__init__(message)
        self.verification = verification


@dataclass(frozen=True)
class Check:
    """One comparison. ``error`` is in units in the last place of the dtype, None where the check is a yes or no."""

    op: str
    device: str
    dtype: str
    case: str
    derivative: str
    passed: bool
    error: float | None
    bound: float | None
    detail: str = ""


@dataclass
class Verification:
    """The checks made on one op, in order. Prints as a table."""

    op: str
    checks: list[Check] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]

    def table(self) -> Any:
        """A ``rich`` table: a row a device and dtype, a column a derivative, the largest error of all layouts."""
        from rich import box
        from rich.table import Table

        derivatives = list(dict.fromkeys(check.derivative for check in self.checks))
        title = f"{self.op} against its definition, error in ulp"
        table = Table("", *derivatives, title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for column in table.columns:
            column.no_wrap = column.header != "double backward"
        for device, dtype in dict.fromkeys((check.device, check.dtype) for check in self.checks):
            row = [c for c in self.checks if (c.device, c.dtype) == (device, dtype)]
            cells = ([c for c in row if c.derivative == derivative] for derivative in derivatives)
            table.add_row(f"{device} {dtype}", *map(_cell, cells))
        return table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=100, color_system=None)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()


def _cell(checks: list[Check]) -> str:
    if not checks:
        return ""
    errors = [check.error for check in checks if check.error is not None]
    text = f"{max(errors):.2g}" if errors else "ok"
    return text if all(check.passed for check in checks) else f"[bold red]{text if errors else ''} differs[/]"


def verify(
    op: Callable[..., torch.Tensor],
    definition: Callable[..., torch.Tensor] | None = None,
    *,
    inputs: Sequence[torch.Tensor] | None = None,
    dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32),
    devices: Sequence[str] = ("cpu",),
    ulps: float = 4.0,
    quiet: bool = False,
) -> Verification:
    """Holds ``op`` against ``definition``, prints a table, and raises if they differ.

    For every device and dtype the value, the gradient and the double backward are compared with native autograd of the
    definition in float64 at the same inputs; the shape, dtype and strides of the value with the definition's own. In
    float64, ``gradcheck`` and ``gradgradcheck`` compare with finite differences in reverse, batched and forward mode (a
    foreign op without a jvp is spared the last), and the Hessian is compared with
    ``torch.autograd.functional.hessian`` of the definition.

    Args:
        op: an op of this library, or any function of tensors to a tensor.
        definition: the same in plain PyTorch; by default ``op.definition``.
        inputs: float64 tensors to differentiate at; by default a sample that fits an op of this library, and for an
            elementwise op transposed, expanded, 0-dimensional and empty ones as well.
        dtypes: the dtypes to check, floating point.
        devices: the devices to check.
        ulps: the largest error allowed, in units in the last place of the largest element; for a pointwise op in less
            than float64, of what was rounded to make each element (its running error bound, Higham, Accuracy and
            Stability of Numerical Algorithms, 2002, section 3.3).
        quiet: print nothing.

    Returns:
        Every check made, with its error.

    Raises:
        VerificationError: they differ; the message names op, dtype, device, derivative and error.
        TypeError: no definition is given and ``op`` has none, or no inputs and ``op`` is not of this library.

    Example:
        >>> import torchad_ext
        >>> torchad_ext.verify(torchad_ext.sin, quiet=True).passed
        True
    """
    name = getattr(op, "__name__", type(op).__name__)
    definition = definition or getattr(op, "definition", None)
    if definition is None:
        raise TypeError(f"torchad_ext.verify: {name} has no definition; give one, verify({name}, definition)")
    cases = dict(_samples(op, name)) if inputs is None else {"": tuple(inputs)}
    op_bounds = _RunningErrors(op) if isinstance(op, Pointwise) else None
    verification = Verification(name)
    for device in devices:
        for dtype in dtypes:
            for case, sample in cases.items():
                here = tuple(x.to(device, dtype) if not case else _like(x, device, dtype) for x in sample)
                check = functools.partial(_record, verification, name, device, dtype, case)
                _compare(op, definition, here, op_bounds, ulps, check)
                if dtype == torch.float64 and case in ("", "contiguous"):
                    _differences(op, definition, here, op_bounds, ulps, check)
    if not quiet:
        from rich.console import Console

        Console().print(verification.table())
    if not verification.passed:
        first = verification.failures[0]
        where = f" of {first.case} inputs" if first.case else ""
        more = len(verification.failures) - 1
        error = "" if first.error is None else f" by {first.error:.3g} ulp, at most {first.bound:.3g} allowed"
        raise VerificationError(
            f"torchad_ext.verify: {first.op}, {first.dtype}, {first.device}: the {first.derivative}{where} differs "
            f"from that of the definition{error}. {first.detail}" + (f" ({more} more checks failed)" if more else ""),
            verification,
        )
    return verification


def _samples(op: Callable[..., Any], name: str) -> Iterator[tuple[str, Tensors]]:
    """Inputs by layout, float64 on the CPU, the same on every run."""
    from .quadratic_form import quadratic_form

    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    if op is quadratic_form:
        yield "contiguous", (normal(3, 4), normal(3, 4, 4))
        yield "one A", (normal(3, 4), normal(4, 4))
        yield "one x", (normal(4), normal(4, 4))
        yield "transposed A", (normal(3, 4), normal(3, 4, 4).mT)
        yield "n = 1", (normal(2, 1), normal(2, 1, 1))
    elif isinstance(op, Pointwise):

        def sample(shape: tuple[int, ...], view: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> Tensors:
            uniform = (torch.rand(shape, dtype=torch.float64, generator=generator) for _ in op.domain)
            return tuple(
                view(low + (high - low) * u) for u, (low, high) in zip(uniform, op.domain.values(), strict=True)
            )

        yield "contiguous", sample((5, 7))
        yield "transposed", sample((5, 67), torch.t)
        yield "sliced", sample((6, 40), lambda x: x[::2, 1::3])
        yield "expanded", sample((1, 9), lambda x: x.expand(4, 9))
        yield "0-dimensional", sample(())
        yield "empty", sample((3, 0))
        if len(op.domain) > 1:
            first, *others = sample((4, 6))
            yield "broadcast", (first, *(other[i % 4, : 1 + 5 * (i % 2)] for i, other in enumerate(others)))
    else:
        raise TypeError(f"torchad_ext.verify: no sample inputs are known for {name}; give some, inputs=(x, ...)")


def _like(x: torch.Tensor, device: str, dtype: torch.dtype) -> torch.Tensor:
    """x elsewhere, with its sizes and strides."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    memory = torch.empty(extent, device=device, dtype=dtype)
    result = memory.as_strided(x.shape, x.stride())
    if x.numel():
        memory.copy_(x.as_strided((extent,), (1,)))
    return result


def _record(
    verification: Verification,
    op: str,
    device: str,
    dtype: torch.dtype,
    case: str,
    derivative: str,
    passed: bool,
    error: float | None = None,
    bound: float | None = None,
    detail: str = "",
) -> None:
    name = str(dtype).removeprefix("torch.")
    verification.checks.append(Check(op, device, name, case, derivative, passed, error, bound, detail))


class _RunningErrors:
    """How large the numbers are that a pointwise op rounds on its way to each element of its derivatives."""

    def __init__(self, op: Pointwise) -> None:
        self._op = op

    def of(self, order: int, inputs: Tensors, cotangents: list[torch.Tensor]) -> list[torch.Tensor | None]:
        """For each output: the sum of abs(d output / d node) abs(node) over all nodes that are computed."""
        shape = torch.broadcast_shapes(*(x.shape for x in inputs))
        program = self._op._usual.program
        arguments = [x.expand(shape) for x in inputs]
        given = [c.expand(shape) for c in cotangents]
        scalars = [self._op._defaults[str(x.value)] for x in program.scalars]
        count = 1
        present: tuple[int, ...] = (0,)
        for _ in range(order):
            count = len(program.inputs)
            derivative = program.vjp([True] * count, [True] * len(program.outputs))
            seeds, given = given[: len(program.outputs)], given[len(program.outputs) :]
            everything = [*arguments, *seeds]
            program, present = derivative.program, derivative.results
            arguments = [everything[i] for i in derivative.arguments]
            scalars = [scalars[i] for i in derivative.scalars]
        sizes = iter(self._sizes(program, arguments, scalars))
        return [next(sizes) if i in present else None for i in range(count)]

    @staticmethod
    def _sizes(program: expr.Program, arguments: list[torch.Tensor], scalars: list[float]) -> Iterator[torch.Tensor]:
        program = dataclasses.replace(program, outputs=lower(program))
        leaves = [x.detach().double().requires_grad_() for x in arguments]
        with torch.enable_grad():
            known = evaluate_nodes(program, *leaves, *scalars)
        rounded = [
            known[n] for n in expr.topological(program.outputs) if n.args and not n.is_mask and known[n].requires_grad
        ]
        for output in (known[y] for y in program.outputs):
            total = output.detach().abs()
            if output.requires_grad:
                slopes = torch.autograd.grad(output.sum(), rounded, allow_unused=True, retain_graph=True)
                terms = [
                    (slope * node).detach().abs()
                    for slope, node in zip(slopes, rounded, strict=True)
                    if slope is not None
                ]
                total = total + sum(terms)
            yield total.nan_to_num(0.0)


def _distance(
    result: torch.Tensor, reference: torch.Tensor, dtype: torch.dtype, sizes: torch.Tensor | None = None
) -> float:
    """The largest difference in units in the last place of ``dtype``; nan and infinity must stand where they should.

    The units are those of ``sizes`` or of the element itself, whichever is larger; by default of the largest element.
    """
    if reference.numel() == 0:
        return 0.0
    result, reference = result.detach().double().cpu(), reference.detach().double().cpu()
    special = ~reference.isfinite()
    if not torch.equal(result[special].nan_to_num(0.5), reference[special].nan_to_num(0.5)):
        return float("inf")
    limits = torch.finfo(dtype)
    size = reference.abs()
    if sizes is None or dtype == torch.float64:  # a float64 reference has rounding errors of its own
        size = size[~special].max().expand_as(size) if (~special).any() else size
    if sizes is not None:
        # float16 and bfloat16 are computed in float32.
        size = torch.maximum(size, sizes.cpu() * (min(limits.eps, torch.finfo(torch.float32).eps) / limits.eps))
    distance = (result - reference).abs() / (limits.eps * size.clamp_min(limits.tiny))
    distance = distance[~special].nan_to_num(float("inf"))
    return float(distance.max()) if distance.numel() else 0.0


def _orders(
    f: Callable[..., torch.Tensor], inputs: Tensors, cotangents: list[torch.Tensor]
) -> Iterator[tuple[str, Tensors]]:
    """The value, the gradient and the double backward of f, with given cotangents for the two backward passes."""
    leaves = tuple(x.detach().requires_grad_() for x in inputs)
    value = f(*leaves)
    yield "value", (value,)
    grad_output = cotangents[0].expand_as(value).detach().requires_grad_()
    gradient = torch.autograd.grad(value, leaves, grad_output, create_graph=True)
    yield "gradient", gradient
    grad_grads = [c.expand_as(g) for c, g in zip(cotangents[1:], gradient, strict=True)]
    second = torch.autograd.grad(
        gradient, (*leaves, grad_output), grad_grads, allow_unused=True, materialize_grads=True
    )
    yield "double backward", second


def _compare(
    op: Callable[..., torch.Tensor],
    definition: Callable[..., torch.Tensor],
    inputs: Tensors,
    running_errors: _RunningErrors | None,
    bound: float,
    check: Callable[..., None],
) -> None:
    dtype = inputs[0].dtype
    native = definition(*inputs)
    generator = torch.Generator().manual_seed(1)
    cotangents = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(native.device, dtype)
        for shape in (native.shape, *(x.shape for x in inputs))
    ]
    references = _orders(definition, tuple(x.double() for x in inputs), [c.double() for c in cotangents])
    results = _orders(op, inputs, cotangents)
    componentwise = running_errors is not None and len({x.shape for x in inputs}) == 1
    for order, (derivative, reference) in enumerate(references):
        try:
            name, result = next(results)
        except (RuntimeError, TypeError, ValueError) as failure:
            check(derivative, False, detail=f"It raised {type(failure).__name__}: {failure}")
            return
        assert name == derivative
        sizes: Sequence[torch.Tensor | None] = [None] * len(result)
        if componentwise and running_errors is not None:
            sizes = running_errors.of(order, inputs, cotangents)
        distances = (_distance(r, e, dtype, size) for r, e, size in zip(result, reference, sizes, strict=True))
        error = max(distances, default=0.0)
        check(derivative, error <= bound, error, bound)
        if derivative == "value":
            got, expected = _layout(result[0]), _layout(native)
            check("value", got == expected, detail=f"Got {got}, expected {expected}." if got != expected else "")


def _differences(
    op: Callable[..., torch.Tensor],
    definition: Callable[..., torch.Tensor],
    inputs: Tensors,
    running_errors: _RunningErrors | None,
    bound: float,
    check: Callable[..., None],
) -> None:
    """Finite differences and the Hessian, in float64."""
    leaves = tuple(x.detach().clone().requires_grad_() for x in inputs)
    forward = _has_forward_mode(op, leaves)
    first: dict[str, Any] = {"check_forward_ad": forward, "check_batched_forward_grad": forward}
    second: dict[str, Any] = {"check_fwd_over_rev": forward, "check_rev_over_rev": True}
    for compare, modes in ((gradcheck, first), (gradgradcheck, second)):
        try:
            check(compare.__name__, compare(op, leaves, check_batched_grad=True, **modes))
        except (RuntimeError, TypeError, ValueError) as failure:
            check(compare.__name__, False, detail=str(failure).strip())
    weight = torch.linspace(0.5, 1.5, max(definition(*inputs).numel(), 1), dtype=torch.float64, device=inputs[0].device)

    def hessian(f: Callable[..., torch.Tensor]) -> torch.Tensor:
        blocks = torch.autograd.functional.hessian(lambda *xs: (f(*xs).flatten() * weight).sum(), inputs)
        return torch.cat([block.flatten() for row in blocks for block in row])

    try:
        reference = hessian(definition)
        sizes = None
        if running_errors is not None:
            cotangents = [weight.reshape(inputs[0].shape), *map(torch.ones_like, inputs)]
            rounded = [size for size in running_errors.of(2, inputs, cotangents) if size is not None]
            sizes = torch.stack(rounded).max().expand_as(reference) if rounded else None
        error = _distance(hessian(op), reference, torch.float64, sizes)
        check("Hessian", error <= bound, error, bound)
    except RuntimeError as failure:
        check("Hessian", False, detail=str(failure))


def _layout(x: torch.Tensor) -> str:
    return f"shape {list(x.shape)}, {x.dtype}, strides {list(x.stride())}"


def _has_forward_mode(op: Callable[..., torch.Tensor], inputs: Tensors) -> bool:
    try:
        with forward_ad.dual_level():
            op(*(forward_ad.make_dual(x.detach(), torch.zeros_like(x)) for x in inputs))
    except NotImplementedError:
        return False
    return True
