"""Arguments that nobody ought to give, by hypothesis, and what two functions make of them."""

from __future__ import annotations

import decimal
import fractions
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from hypothesis import strategies as st

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
DTYPES = (
    *FLOATS, torch.float64, torch.float32, torch.int64, torch.int32, torch.uint8, torch.uint16, torch.bool,
    torch.complex64, torch.complex128, torch.float8_e4m3fn,
)  # fmt: skip
SPECIAL = (0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-310, 1e-40, 6e-8, 1e30, -1e30, 1e300, 1.0, -1.0)


class Subclass(torch.Tensor):
    """A subclass without a ``__torch_function__`` of its own."""


class Counted(torch.Tensor):
    """A subclass that takes calls and lets them pass."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {})


def _strided(x: torch.Tensor, steps: Sequence[int]) -> torch.Tensor:
    """The elements of x in a larger memory, with an offset."""
    wide = x.new_zeros([3 + size * step for size, step in zip(x.shape, steps, strict=True)])
    view = wide[tuple(slice(2, 2 + size * step, step) for size, step in zip(x.shape, steps, strict=True))]
    return view.copy_(x)


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda x: x,
    "steps": lambda x: _strided(x, [2] * x.dim()),
    "first steps": lambda x: _strided(x, [3, *[1] * (x.dim() - 1)][: x.dim()]),
    "reversed memory": lambda x: x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim()))),
    "repeated": lambda x: x[:1].expand_as(x) if x.dim() else x,
    "repeated rows": lambda x: x[..., :1].expand_as(x) if x.dim() else x,
    "one number": lambda x: x.flatten()[:1].reshape(()).expand_as(x) if x.numel() else x,
    "overlapping": lambda x: torch.cat([x.flatten()] * 2).as_strided(x.shape, [1] * x.dim()) if x.numel() else x,
    "huge strides": lambda x: x.as_strided(
        x.shape, [stride if size > 1 else 2**50 for size, stride in zip(x.shape, x.stride(), strict=True)]
    ),
}
KINDS: dict[str, Callable[[torch.Tensor], Any]] = {
    "plain": lambda x: x,
    "conjugated": lambda x: x.conj(),
    "negated": torch._neg_view,
    "imaginary part of a conjugate": lambda x: torch.complex(x, x).conj().imag,
    "subclass": lambda x: x.as_subclass(Subclass),
    "counted": lambda x: x.as_subclass(Counted),
    "parameter": lambda x: torch.nn.Parameter(x, requires_grad=x.is_floating_point()),
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "compressed": lambda x: x.to_sparse_csr(),
    "nested": lambda x: torch.nested.nested_tensor([x, x]),
    "jagged": lambda x: torch.nested.nested_tensor([x, x], layout=torch.jagged),
    "quantised": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "mkldnn": lambda x: x.to_mkldnn(),
    "inference": lambda x: _inference(x),
    "numpy": lambda x: x.numpy(),
    "list": lambda x: x.tolist(),
    "tuple": lambda x: (x,),
}
OTHERS: dict[str, Any] = {
    "None": None,
    "True": True,
    "2": 2,
    "-1": -1,
    "0.5": 0.5,
    "0.0": 0.0,
    "nan": float("nan"),
    "inf": float("inf"),
    "1j": 1j,
    "10**400": 10**400,
    "2**70": 2**70,
    "'x'": "x",
    "'tanh'": "tanh",
    "b''": b"",
    "[]": [],
    "[1.0]": [1.0],
    "{}": {},
    "numpy.float64": numpy.float64(0.5),
    "numpy.float32": numpy.float32(0.5),
    "numpy.int64": numpy.int64(2),
    "numpy.bool": numpy.bool_(True),
    "Fraction": fractions.Fraction(1, 3),
    "Decimal": decimal.Decimal("0.1"),
    "dtype": torch.float64,
    "Size": torch.Size([2]),
    "Ellipsis": ...,
    "type": torch.Tensor,
    "function": torch.sin,
}


@torch.inference_mode()
def _inference(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@dataclass(frozen=True)
class Argument:
    """A description of an argument, of which :meth:`make` makes a new one each time."""

    other: str | None = None
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float64
    layout: str = "contiguous"
    kind: str = "plain"
    special: tuple[float, ...] = ()
    seed: int = 0
    requires_grad: bool = False

    def make(self, wide: bool = False) -> Any:
        """The argument, in float64 if it is to be ``wide``; raises where PyTorch has no such tensor."""
        if self.other is not None:
            return OTHERS[self.other]
        generator = torch.Generator().manual_seed(self.seed)
        x = 2 * torch.randn(self.shape, dtype=torch.float64, generator=generator)
        for i, value in enumerate(self.special[: x.numel()]):
            x.view(-1)[(7 * i + self.seed) % x.numel()] = value
        if not self.dtype.is_floating_point and not self.dtype.is_complex:
            x = x.nan_to_num(0, 3, -3).clamp(0, 3)
        x = x.to(self.dtype)
        x = LAYOUTS[self.layout](x.double() if wide and x.is_floating_point() else x)
        x = KINDS[self.kind](x)
        if self.requires_grad and isinstance(x, torch.Tensor):
            x = x.detach().requires_grad_()
        return x


shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple) | st.sampled_from([(3, 33), (2, 1, 17), (40,), (1, 70)])


@st.composite
def arguments(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> Argument:
    """Arguments beside others of a shape and a dtype: tensors that may fit, and much that does not."""
    if draw(st.integers(0, 9)) == 0:
        return Argument(other=draw(st.sampled_from(list(OTHERS))))
    fits = draw(st.integers(0, 7))
    if fits < 3:  # broadcasts
        shape = tuple(draw(st.sampled_from([1, size])) for size in shape)[draw(st.integers(0, len(shape))) :]
    elif fits == 3:
        shape = draw(shapes)
    return Argument(
        shape=shape,
        dtype=draw(st.sampled_from(DTYPES)) if draw(st.integers(0, 5)) == 0 else dtype,
        layout=draw(st.sampled_from(list(LAYOUTS))),
        kind=draw(st.sampled_from(list(KINDS))) if draw(st.integers(0, 2)) == 0 else "plain",
        special=tuple(draw(st.lists(st.sampled_from(SPECIAL), max_size=3))),
        seed=draw(st.integers(0, 3)),
        requires_grad=draw(st.booleans()),
    )


@dataclass
class Outcome:
    """A result as a list of tensors and other values, or an exception."""

    values: list[Any] = field(default_factory=list)
    error: Exception | None = None

    def __str__(self) -> str:
        return f"{type(self.error).__name__}: {self.error}" if self.error else f"{self.values}"


def outcome(function: Callable[[], Any]) -> Outcome:
    """What a call gives. Warnings do not count: some are given once a process."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = function()
    except Exception as error:  # whatever it is, it is compared
        return Outcome(error=error)
    return Outcome(list(result) if isinstance(result, (tuple, list)) else [result])
