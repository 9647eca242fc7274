"""Holds an op against its definition: value, gradient, double backward and Hessian, by dtype and device.

The reference is never the op itself but native autograd of the definition in float64, finite differences, and
``torch.autograd.functional.hessian``. ``gradgradcheck`` is the check that counts: an op that saves an intermediate made
inside its forward passes ``gradcheck`` and has a wrong Hessian.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .._declared import Declared
from .._pointwise import Pointwise
from .._rowwise import Rowwise
from .._tables import with_whole_numbers
from .._warnings import warn_user
from .comparison import Comparison, like
from .faults import first_line
from .rounding_errors import is_differentiated

Tensors = tuple[torch.Tensor, ...]

_LARGEST = 2000  # elements in all; finite differences and the Hessian cost their square


class VerificationError(AssertionError):
    """An op does not agree with its definition. ``verification`` holds every check that was made."""

    def __init__(self, message: str, verification: Verification) -> None:
        super().__init__(message)
        self.verification = verification


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        case: the layout of the inputs; empty where they were given.
        error: the largest error in units in the last place of the dtype; None where the check is a yes or no.
        bound: the largest error allowed.
        detail: what is wrong, as the end of a sentence that begins with ``derivative``; empty if ``passed``.
        relative_error: at the element with the largest error.
    """

    op: str
    device: str
    dtype: str
    case: str
    derivative: str
    passed: bool
    error: float | None = None
    bound: float | None = None
    detail: str = ""
    relative_error: float | None = None


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
        from rich.markup import escape
        from rich.table import Table

        derivatives = list(dict.fromkeys(check.derivative for check in self.checks))
        title = f"{escape(self.op)} against its definition, error in ulp"
        title += "" if self.passed else ", relative error where it differs"
        table = Table("", *derivatives, title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for device, dtype in dict.fromkeys((check.device, check.dtype) for check in self.checks):
            row = [c for c in self.checks if (c.device, c.dtype) == (device, dtype)]
            cells = ([c for c in row if c.derivative == derivative] for derivative in derivatives)
            table.add_row(f"{device} {dtype}", *map(_cell, cells))
        return with_whole_numbers(table)

    def report(self) -> str:
        """The failures, a line for each derivative, dtype and device, at the element with the largest error."""
        worst: dict[tuple[Any, ...], list[Check]] = {}
        for check in self.failures:
            kind = check.detail if check.error is None else check.derivative
            worst.setdefault((check.dtype, check.device, kind), []).append(check)
        lines = []
        for (dtype, device, _), checks in worst.items():
            names = ", ".join(dict.fromkeys(check.derivative for check in checks))
            cases = ", ".join(dict.fromkeys(check.case for check in checks if check.case))
            largest = max(checks, key=lambda check: check.error or 0.0)
            of = f" of {cases} inputs" if cases else ""
            lines.append(f"{dtype}, {device}: the {names}{of} {largest.detail}")
        return "\n  ".join(lines[:1] + [f"Wrong as well ({len(lines) - 1}):"] * (len(lines) > 1) + lines[1:])

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=100, color_system=None)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()


def _cell(checks: list[Check]) -> str:
    failures = [check for check in checks if not check.passed]
    if failures:
        largest = max((check.relative_error or 0.0 for check in failures), default=0.0)
        return f"[bold red]differs\n{largest:.0e}[/]" if largest else "[bold red]differs[/]"
    errors = [check.error for check in checks if check.error is not None]
    return f"{max(errors):.2g}" if errors else "ok" if checks else ""


def verify(
    op: Callable[..., Any],
    definition: Callable[..., Any] | None = None,
    *,
    inputs: torch.Tensor | Sequence[Any] | None = None,
    dtypes: torch.dtype | Sequence[torch.dtype] = (torch.float64, torch.float32),
    devices: str | Sequence[str] = ("cpu",),
    ulps: float = 4.0,
    quiet: bool = False,
) -> Verification:
    """Holds ``op`` against ``definition``, prints a table, and raises if they differ.

    For every device and dtype the value, the gradient and the double backward are compared with native autograd of the
    definition in float64 at the same inputs; the shape, dtype and strides of the value with the definition's own. In
    float64, ``gradcheck`` and ``gradgradcheck`` compare with finite differences in reverse, batched and forward mode (a
    foreign op without a jvp is spared the last), and the Hessian is compared with
    ``torch.autograd.functional.hessian`` of the definition. Where all of this agrees, a function of others is called
    again: with cotangents and inputs that are not contiguous, with cotangents that are expanded, with one input alone
    that requires a gradient, and in a batch of ``torch.func.vmap`` if it takes one; in float64 its third order is
    compared with finite differences along a line, if it has one. Derivatives may be constant or zero; of results that
    are integers or masks the value alone is compared.

    Args:
        op: an op of this library, or any function of tensors to a tensor or a tuple of tensors: the ``apply`` of a
            ``torch.autograd.Function``, a module, a ``functools.partial``, ...
        definition: the same in plain PyTorch; by default ``op.definition``.
        inputs: the arguments to call both with: one tensor or a sequence. Those of floating point are differentiated,
            and converted to every dtype; integers, masks and plain numbers are passed on. At most 2,000 elements are
            differentiated. By default a sample that fits an op of this library, and for an elementwise op transposed,
            expanded, 0-dimensional and empty ones as well.
        dtypes: the dtypes to check, floating point.
        devices: the devices to check.
        ulps: the largest error allowed, in units in the last place of the largest element; for a pointwise op in less
            than float64, of what was rounded to make each element (its running error bound, Higham, Accuracy and
            Stability of Numerical Algorithms, 2002, section 3.3).
        quiet: print nothing.

    Returns:
        Every check made, with its error.

    Raises:
        VerificationError: they differ; the message names op, dtype, device and derivative, the inputs where the error
            is largest, what was got and what was expected there, and every other check that failed.
        TypeError, ValueError: an argument is none of the above, or ``definition`` cannot be computed or differentiated.

    Warns:
        RuntimeWarning: finite differences could not be used, because they disagree with native autograd of the
            definition itself: at a kink or a jump, outside of the domain, or for a ``detach``.

    Example:
        >>> import torch, torchad_ext
        >>> torchad_ext.verify(torchad_ext.sin, quiet=True).passed
        True
        >>> class Cube(torch.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         ctx.save_for_backward(x)
        ...         return x**3
        ...     @staticmethod
        ...     def backward(ctx, grad_output):
        ...         return 3 * ctx.saved_tensors[0] ** 2 * grad_output
        >>> x = torch.linspace(-2, 2, 7)
        >>> torchad_ext.verify(Cube.apply, lambda x: x * x * x, inputs=x, quiet=True).passed
        True
    """
    name = _name(op)
    definition = _definition(op, definition, name)
    dtypes, devices = _dtypes(dtypes), _devices(devices)
    if not isinstance(ulps, (int, float)) or not ulps >= 0:
        raise ValueError(f"torchad_ext.verify: ulps is the largest error allowed, 0 or more; got {ulps!r}")
    cases = {"": _inputs(inputs)} if inputs is not None else dict(_samples(op, name))
    verification = Verification(name)
    left_out: list[str] = []
    for device in devices:
        for dtype in dtypes:
            for case, sample in cases.items():
                check = functools.partial(_record, verification, device, dtype, case)
                arguments = [like(x, device, dtype) for x in sample]
                comparison = Comparison(op, definition, name, arguments, ulps, check)
                differentiable = comparison.orders()
                if differentiable and dtype == torch.float64 and case in ("", "contiguous"):
                    left_out += comparison.finite_differences()
                    comparison.hessians()
                if inputs is not None and differentiable and verification.passed and not isinstance(op, Declared):
                    comparison.in_other_layouts()
                    comparison.in_one_input()
                    comparison.in_a_batch()
                    if dtype == torch.float64:
                        comparison.third_order()
    if not quiet:
        from rich.console import Console

        Console().print(verification.table())
    if left_out:
        warn_user(
            f"torchad_ext.verify: {name}: {' and '.join(dict.fromkeys(left_out))} left out, because native autograd of "
            "the definition differs from finite differences as well. Is there a kink, a jump, a detach, a point "
            "outside of the domain? Sample elsewhere, by domain= where the op is declared or by inputs= here",
            RuntimeWarning,
        )
    if not verification.passed:
        raise VerificationError(
            f"torchad_ext.verify: {name}, {verification.report()}{_hint(op, verification)}", verification
        )
    return verification


def _name(f: Any) -> str:
    """The name that its author gave f; a lambda is called by its place."""
    if isinstance(f, functools.partial):
        return _name(f.func)
    name, owner = getattr(f, "__name__", getattr(f, "_qualname", type(f).__name__)), getattr(f, "__self__", None)
    if isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
        return owner.__name__
    if inspect.ismethod(f):
        return f"{owner.__name__ if isinstance(owner, type) else type(owner).__name__}.{name}"
    code = getattr(getattr(f, "definition", f), "__code__", None)
    if name == "<lambda>" and code:
        return f"lambda ({Path(code.co_filename).name}:{code.co_firstlineno})"
    return str(name)


def _definition(op: Any, definition: Any, name: str) -> Callable[..., Any]:
    for what, f in (("op", op), ("definition", definition)):
        if isinstance(f, type):
            remedy = f"{f.__name__}.apply" if issubclass(f, torch.autograd.Function) else f"{f.__name__}(...)"
            raise TypeError(f"torchad_ext.verify: {what} is the class {f.__name__}; give a function, {remedy}")
        if not callable(f) and not (f is None and what == "definition"):
            raise TypeError(
                f"torchad_ext.verify: {what} must be a function of tensors, got {type(f).__name__}; "
                "write verify(op, definition, inputs=(x, ...))"
            )
    definition = definition or getattr(op, "definition", None)
    if definition is None:
        raise TypeError(
            f"torchad_ext.verify: {name} has no definition to be held against; "
            "give the same function in plain PyTorch, verify(op, definition, inputs=(x, ...))"
        )
    return definition  # type: ignore[no-any-return]


def _dtypes(dtypes: Any) -> Sequence[torch.dtype]:
    given = dtypes if isinstance(dtypes, (tuple, list)) else (dtypes,)
    for dtype in given:
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"torchad_ext.verify: dtypes are of floating point, torch.float32 say; got {dtype!r}")
    if not given:
        raise ValueError("torchad_ext.verify: dtypes is empty, so there is nothing to check; leave it out")
    return given


def _devices(devices: Any) -> Sequence[str]:
    given = devices if isinstance(devices, (tuple, list)) else (devices,)
    for device in given:
        try:
            torch.empty(1, device=device).cpu()
        except (RuntimeError, AssertionError, TypeError) as failure:
            raise ValueError(f"torchad_ext.verify: device {device!r} cannot be used: {first_line(failure)}") from None
    if not given:
        raise ValueError("torchad_ext.verify: devices is empty, so there is nothing to check; leave it out")
    return tuple(map(str, given))


def _inputs(inputs: Any) -> Sequence[Any]:
    given = (inputs,) if isinstance(inputs, torch.Tensor) else inputs
    if not isinstance(given, (tuple, list)):
        raise TypeError(
            f"torchad_ext.verify: inputs must be a tensor or a tuple of tensors, got {type(inputs).__name__}; "
            "write inputs=(x, ...)"
        )
    for i, x in enumerate(given):
        if isinstance(x, torch.Tensor) and (x.is_complex() or x.layout != torch.strided or x.is_nested or x.is_meta):
            kind = "complex" if x.is_complex() else "nested" if x.is_nested else "meta" if x.is_meta else str(x.layout)
            raise TypeError(f"torchad_ext.verify: inputs[{i}] is {kind}; give real, strided tensors with data")
    size = sum(x.numel() for x in filter(is_differentiated, given))
    if not any(map(is_differentiated, given)):
        kinds = ", ".join(str(x.dtype) if isinstance(x, torch.Tensor) else type(x).__name__ for x in given) or "nothing"
        raise TypeError(
            f"torchad_ext.verify: inputs has no tensor of floating point to differentiate, got {kinds}; "
            "write inputs=(torch.randn(7), ...)"
        )
    if size > _LARGEST:
        raise ValueError(
            f"torchad_ext.verify: inputs have {size:,} elements, at most {_LARGEST:,} are differentiated "
            "(finite differences and the Hessian cost their square); give smaller ones"
        )
    return given


def _samples(op: Callable[..., Any], name: str) -> Iterator[tuple[str, Tensors]]:
    """Inputs by layout, float64 on the CPU, the same on every run."""
    from .._quadratic_form import quadratic_form

    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    if op is quadratic_form:
        yield "contiguous", (normal(3, 4), normal(3, 4, 4))
        yield "one A", (normal(3, 4), normal(4, 4))
        yield "one x", (normal(4), normal(4, 4))
        yield "transposed A", (normal(3, 4), normal(3, 4, 4).mT)
        yield "n = 1", (normal(2, 1), normal(2, 1, 1))
    elif isinstance(op, Rowwise):
        for case, shape, view in (
            ("contiguous", (5, 7), lambda x: x),
            ("transposed", (5, 67), torch.t),
            ("sliced", (6, 40), lambda x: x[::2, 1::3]),
            ("expanded", (1, 9), lambda x: x.expand(4, 9)),
            ("n = 1", (4, 1), lambda x: x),
            ("n = 3", (5, 3), lambda x: x),
            ("long rows", (2, 37), lambda x: x),
            ("of no rows", (0, 3), lambda x: x),
        ):
            yield (
                case,
                op.sample(lambda shape: torch.rand(shape, dtype=torch.float64, generator=generator), shape, view),
            )
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


def _hint(op: Any, verification: Verification) -> str:
    """The usual reason for a wrong second derivative where the first is right."""
    wrong = {check.derivative for check in verification.failures}
    if isinstance(op, Declared) or wrong & {"value", "gradient"} or "double backward" not in wrong:
        return ""
    return (
        "\nThe first derivative is right, the second is not. The usual reason: backward uses a tensor that forward "
        "computed, leaves autograd, or is once_differentiable. Save inputs alone, ctx.save_for_backward(x), and "
        "compute the rest in backward."
    )


def _record(
    verification: Verification,
    device: str,
    dtype: torch.dtype,
    case: str,
    derivative: str,
    detail: str = "",
    **numbers: Any,
) -> None:
    name = str(dtype).removeprefix("torch.")
    check = Check(verification.op, device, name, case, derivative, passed=not detail, detail=detail, **numbers)
    verification.checks.append(check)
