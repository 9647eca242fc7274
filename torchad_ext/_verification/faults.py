"""Faults of an op in words: what it gave, what was expected, and at which element of which tensors."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.autograd.gradcheck import GradcheckError

Index = tuple[int, ...]


def wrong_structure(results: Sequence[torch.Tensor], native: Sequence[torch.Tensor]) -> str:
    """The fault in the number of results or their shapes."""
    if len(results) != len(native):
        return f"has {len(results)} tensors, expected {len(native)}"
    return _difference("shape", [list(x.shape) for x in results], [list(x.shape) for x in native])


def wrong_layout(results: Sequence[torch.Tensor], native: Sequence[torch.Tensor]) -> str:
    """The fault in the dtypes, devices or strides of the results."""
    return (
        _difference("dtype", [x.dtype for x in results], [x.dtype for x in native])
        or _difference("device", [x.device for x in results], [x.device for x in native])
        or _difference("strides", [list(x.stride()) for x in results], [list(x.stride()) for x in native])
    )


def _difference(what: str, got: list[Any], expected: list[Any]) -> str:
    for i, (mine, native) in enumerate(zip(got, expected, strict=True)):
        if mine != native:
            of = f"output {i} " if len(expected) > 1 else ""
            return f"differs from that of the definition: {of}has {what} {mine}, expected {native}"
    return ""


def found_by_gradcheck(failure: GradcheckError) -> str:
    """The fault that gradcheck found though the Jacobian is right."""
    if failure.__cause__:
        reason = f"{type(failure.__cause__).__name__}: {first_line(failure.__cause__)}"
        return f"fails for batched gradients (is_grads_batched=True), as torch.func takes them: {reason}"
    return f"fails: {first_line(failure)}"


def index_of(position: int, shape: torch.Size) -> Index:
    """The index of the element at a position in the order of memory."""
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(position), shape)) if shape else ()


def named_element(name: str, x: torch.Tensor, position: int) -> tuple[str, str]:
    """The name and the value of an element of x."""
    index = index_of(position, x.shape)
    return name + (str(list(index)) if index else ""), _number(x[index])


def place_of(known: dict[str, torch.Tensor], index: Index, shape: torch.Size) -> str:
    """Where an element of a result is: its index, and those inputs that broadcast to the shape of the result."""
    fitting = {n: x.expand(shape)[index] for n, x in known.items() if _broadcasts(x.shape, shape)}
    values = ", ".join(f"{name} = {_number(x)}" for name, x in fitting.items())
    place = f"at element {list(index)}" if index else "at"
    if not values and sum(x.numel() for x in known.values()) <= 8:
        values = ", ".join(f"{name} = {x.tolist()}" for name, x in known.items())
    return f"{place}, {values}" if index and values else f"{place} {values}" if values else place if index else "in all"


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    return len(shape) <= len(to) and all(n in (1, m) for n, m in zip(reversed(shape), reversed(to), strict=False))


def _number(x: torch.Tensor) -> str:
    return repr(x.item()) if x.dtype == torch.float64 or not x.is_floating_point() else f"{x.item():.9g}"


def got_and_expected(got: torch.Tensor, expected: torch.Tensor) -> tuple[float, str]:
    """The relative error, and a phrase that says what was got and what was expected."""
    text = f"got {_number(got)}, expected {_number(expected.to(got.dtype))}"
    error, size = abs(got.item() - expected.item()), abs(expected.item())
    relative = error / size if size else float("inf")
    return relative, text + (f", relative error {relative:.2g}" if relative < float("inf") else "")


def first_line(failure: BaseException) -> str:
    """The first line of what an exception says."""
    return next(iter(str(failure).strip().splitlines()), "").rstrip(", ")


def raised(failure: BaseException) -> str:
    """The exception, and the line that raised it, outside of PyTorch and of this package."""
    own = (str(Path(__file__).parent), str(Path(torch.__file__).parent))
    frames = [f for f in traceback.extract_tb(failure.__traceback__) if not f.filename.startswith(own)]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if len(frames) else ""
    return f"raised {type(failure).__name__}: {first_line(failure)}{where}"
