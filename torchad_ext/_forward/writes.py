"""Writes in place to tensors of a sweep, as assignments of new contents.

``y.add_(z)`` gives y the contents of ``y.add(z)``. A view knows the tensor whose memory it shares, its base, and its
place there: a write to a view changes the contents of the base, and the other views read theirs again before they are
used. No memory is overwritten that a derivative may still need. A plain tensor that receives a tensor of the sweep
becomes one until the sweep ends.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .._symbolic.torch_names import is_of_torch
from .._torch_state import (
    is_autocast_enabled,
    nn_functions,
    owners_of_storage,
    share_memory,
    swap_implementations,
    transforms_active,
    without_torch_function,
)
from .calls import known_name
from .deferred import given_by, tensors_in
from .fallback import Unseen
from .sweep import Arguments, Keywords, Sweep
from .undone import OPERATORS

# In place they do something else than their namesakes, or change the shape.
_OTHERS = frozenset(
    "set resize resize_as squeeze unsqueeze transpose swapaxes swapdims t detach bernoulli normal rename as_strided "
    "sparse_resize requires_grad share_memory".split()
)


def written(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The tensor that an operation changed."""
    name = known_name(func)
    unseen = Unseen(f"{name}, which changes a tensor in place")
    if not is_of_torch(func) or not args or kwargs.get("out") is not None or transforms_active():
        raise unseen
    y = _receiver(sweep, args[0], unseen)
    if name == "__setitem__":
        index, source = args[1:]
        _set(sweep, y, index, source, unseen)
        return None
    write(sweep, y, _contents(func, name, (y, *args[1:]), kwargs, unseen), unseen)
    return args[0]


def _contents(func: Any, name: str, args: Any, kwargs: Any, unseen: Unseen) -> Any:
    """The new contents of the first argument, before they are cast and broadcast."""
    y = args[0]
    if name == "zero_":
        return torch.zeros_like(y)
    if name in ("copy_", "fill_"):
        source = args[1] if len(args) > 1 else next(iter(kwargs.values()))
        return source if isinstance(source, Tensor) else torch.full_like(y, source)
    name = OPERATORS.get(name, name.removesuffix("_"))
    owners = [Tensor, torch, nn_functions()]
    owners = owners if hasattr(func, "__objclass__") else owners[1:] + owners[:1]
    outside = next((of for owner in owners if callable(of := getattr(owner, name, None))), None)
    if name in _OTHERS or outside is None or getattr(func, "__name__", "") == "__set__" or kwargs.get("inplace"):
        raise unseen
    return outside(*args, **kwargs)


def _receiver(sweep: Sweep, y: Any, unseen: Unseen) -> Any:
    """The tensor to be written to, as one of the sweep."""
    if sweep.owns(y):
        return y
    if type(y) is not Tensor or y._is_view() or (y.is_leaf and y.requires_grad):
        raise unseen
    if owners_of_storage(y) > 2:  # this reference is one
        raise unseen
    wrapped = sweep.wrapped(y.clone(), _zeros(sweep, y), None)
    try:
        with without_torch_function():
            torch.utils.swap_tensors(y, wrapped)
    except RuntimeError as error:  # something else refers to it
        raise unseen from error
    sweep.received.append((y, wrapped))
    return y


def _zeros(sweep: Sweep, like: Tensor) -> tuple[Tensor, ...]:
    return (torch.zeros_like(like.detach()),) * sweep.count


def returned(sweep: Sweep, finished: bool) -> None:
    """Makes the plain tensors that became tensors of the sweep plain again, with their contents."""
    for y, plain in reversed(sweep.received):
        value = y.value
        # Not torch.utils.swap_tensors: the frames of an exception may refer to what it has to leave alone.
        y.__class__, plain.__class__ = plain.__class__, y.__class__
        y.__dict__, plain.__dict__ = plain.__dict__, y.__dict__
        swap_implementations(y, plain)
        if finished:
            y.copy_(value)
    sweep.received.clear()


def _set(sweep: Sweep, y: Any, index: Any, source: Any, unseen: Unseen) -> None:
    """``y[index] = source``"""
    if not isinstance(source, Tensor):
        source = torch.full((), source, dtype=y.dtype, device=y.device)
    while source.dim() and source.shape[0] == 1 and source.dim() > 1:
        source = source.squeeze(0)
    if all(
        x is None or x is Ellipsis or type(x) in (int, slice) for x in (index if type(index) is tuple else (index,))
    ):
        part = y[index]
        if part.dim() == 0 and source.dim() == 1 and source.numel() == 1:
            source = source.squeeze(0)
        write(sweep, part, source, unseen)
        return
    places = torch.arange(y.numel(), device=y.device).view(y.shape)[index]
    count = places.numel()
    # One of several sources for the same place is chosen once, for the value and its derivatives alike.
    chosen = torch.full((y.numel(),), count, device=y.device)
    chosen[places.flatten()] = torch.arange(count, device=y.device)
    sources = torch.cat([source.to(y.dtype).expand(places.shape).flatten(), torch.zeros_like(y.flatten()[:1])])
    write(sweep, y, torch.where((chosen < count).view(y.shape), sources[chosen].view(y.shape), y), unseen)


def write(sweep: Sweep, y: Any, new: Any, unseen: Unseen) -> None:
    """Gives y new contents, and so the tensor of which it is a view."""
    base = y.root
    plain = all(type(x) is Tensor for x in (y.value, base.value, sweep.value(new)))
    if base.shown or not plain or not torch.can_cast(new.dtype, y.value.dtype) or _overlaps(y.value):
        raise unseen
    if is_autocast_enabled() or y.value.is_conj() or y.value.is_neg():
        raise unseen
    new = new.to(y.value.dtype)
    if new.shape != y.value.shape:
        new = new.expand(y.value.shape)
    rows: Any = (new.value, new.given, new.laplacian) if sweep.owns(new) else (new, _zeros(sweep, y.value), None)
    if y is not base:
        put = functools.partial(_put, layout=base.value, place=y.place)
        laplacian = rows[2]
        if laplacian is not None or base.laplacian is not None:
            pairs = ((base.laplacian, base.value), (laplacian, y.value))
            laplacian = put(*(torch.zeros_like(like) if row is None else row for row, like in pairs))
        given = base.given, rows[1]
        tangents = sweep.deferred(lambda: map(put, *map(given_by, given)), sources=given)
        rows = put(base.value, rows[0]), tangents, laplacian
    elif rows[0].stride() != y.value.stride() or new is y:
        rows = _laid(rows[0], y.value), *rows[1:]
    base.value, base.given, base.laplacian = rows
    base.written += 1
    read_again(y)


def _laid(row: Tensor, layout: Tensor) -> Tensor:
    """A copy of a row with the strides of a tensor."""
    return torch.empty_strided(layout.shape, layout.stride(), dtype=row.dtype, device=row.device).copy_(row)


def _put(row: Tensor, part: Tensor, layout: Tensor, place: Any) -> Tensor:
    y = _laid(row, layout)
    y.as_strided(*place).copy_(part)
    return y


def _overlaps(x: Tensor) -> bool:
    """May two elements be one number in memory?"""
    last = 0
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1:
            if stride <= last:
                return True
            last += (size - 1) * stride
    return False


def follow(y: Any, x: Any) -> None:
    """Notes that y is a view of x, if it is."""
    base = x.root
    at, of = y.value, base.value
    if type(at) is Tensor and type(of) is Tensor and share_memory(at, of):
        if at.dtype != of.dtype or at.is_conj() != of.is_conj() or at.is_neg() != of.is_neg():
            base.shown = True  # as other numbers, which are not followed
        y.base, y.seen = base, base.written
        y.place = at.shape, at.stride(), at.storage_offset() - of.storage_offset()


def show_shared(sweep: Sweep, result: Any, arguments: Any) -> None:
    """Notes which tensors share memory with a result not followed as their view: none of them may be written."""
    given = [x for x in tensors_in(arguments) if sweep.owns(x)]
    for y in tensors_in(result):
        value = sweep.value(y)
        if type(value) is not Tensor or (sweep.owns(y) and y.base is not None) or any(y is x for x in given):
            continue
        for x in given:
            if type(x.value) is Tensor and share_memory(value, x.value):
                x.root.shown = True
                if sweep.owns(y):
                    y.shown = True


def read_again(x: Any) -> None:
    """Gives a view the contents that its base has by now."""
    base = x.base
    if base is None or x.seen == base.written:
        return
    shape, strides, offset = x.place

    def read(row: Tensor) -> Tensor:
        row = row if row.stride() == layout.stride() else _laid(row, layout)
        return row.as_strided(shape, strides, row.storage_offset() + offset)

    given, layout = base.given, base.value
    x.value, x.given = read(layout), x.sweep.deferred(lambda: map(read, given_by(given)), sources=[given])
    x.laplacian = None if base.laplacian is None else read(base.laplacian)
    x.seen = base.written
