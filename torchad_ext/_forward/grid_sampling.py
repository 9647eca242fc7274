"""``grid_sample`` at places that vary, composed of operations that have rules; arguments as in PyTorch.

The neighbours of each place are gathered as numbers, or as elements of an image that varies, and the distances to them
vary. Derivatives at the places of pixels, and outside of the image, are those that PyTorch has.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .._pointwise import pointwise

_BILINEAR, _NEAREST, _BICUBIC = 0, 1, 2
_ZEROS, _BORDER, _REFLECTION = 0, 1, 2


@pointwise
def _between_corners(g: Any, size: Any) -> Any:
    return (g + 1) / 2 * (size - 1)


@pointwise
def _between_edges(g: Any, size: Any) -> Any:
    return ((g + 1) * size - 1) / 2


@pointwise
def _linear(a: Any, b: Any, t: Any) -> Any:
    return (1 - t) * a + t * b


@pointwise
def _bilinear(a: Any, b: Any, c: Any, d: Any, s: Any, t: Any) -> Any:
    return (1 - t) * ((1 - s) * a + s * b) + t * ((1 - s) * c + s * d)


@pointwise
def _cubic(a: Any, b: Any, c: Any, d: Any, t: Any) -> Any:
    """Convolution with the cubic kernel of R. Keys (1981), a = -3/4."""
    s = 1 - t
    outer = -0.75 * s * t * (s * a + t * d)
    return outer + (1 + t * t * (1.25 * t - 2.25)) * b + (1 + s * s * (1.25 * s - 2.25)) * c


def _reflected(p: Any, size: int, align_corners: bool) -> Any:
    low, span = (0, size - 1) if align_corners else (-0.5, size)
    if not span:
        return torch.zeros_like(p)
    distance = (p - low).abs()
    flips = (distance.detach() / span).floor()
    rest = distance - flips * span
    return torch.where(flips % 2 == 0, rest, span - rest) + low


def _padded(p: Any, size: int, padding: int, align_corners: bool) -> Any:
    """Places, moved into the image unless zeros surround it."""
    if padding == _ZEROS:
        return p
    p = _reflected(p, size, align_corners) if padding == _REFLECTION else p
    return torch.where((p > 0) & (p < size - 1), p, p.detach().clamp(0, size - 1))


def _at(x: Any, places: Sequence[Any], padding: int, align_corners: bool) -> Any:
    """The pixels of x ``[N, C, ..., height, width]`` at whole places ``[N, *out]`` along its dimensions from the last:
    ``[N, C, *out]``."""
    index: Any = 0
    inside: Any = True
    stride = 1
    for place, size in zip(places, reversed(x.shape[2:]), strict=True):
        place = _padded(place, size, padding, align_corners)
        inside = inside & (place >= 0) & (place < size)
        index = index + stride * place.clamp(0, size - 1).long().clamp(0, size - 1)
        stride *= size
    shape = x.shape[0], x.shape[1], *places[0].shape[1:]
    picked = x.flatten(2).gather(-1, index.flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1)).reshape(shape)
    return picked if padding else torch.where(inside.unsqueeze(1), picked, 0.0)


def _grid_sampler(x: Any, grid: Any, mode: int, padding: int, align_corners: bool) -> Any:
    if mode == _NEAREST:
        return torch.grid_sampler(x, grid.detach(), mode, padding, align_corners)
    n = x.dim() - 2
    if mode not in (_BILINEAR, _BICUBIC) or (mode == _BICUBIC and n != 2):
        return NotImplemented
    if grid.dim() != x.dim() or grid.shape[-1] != n or grid.shape[0] != x.shape[0] or 0 in x.shape[2:]:
        return NotImplemented
    sizes = list(reversed(x.shape[2:]))
    place = _between_corners if align_corners else _between_edges
    places = [place(g, float(size)) for g, size in zip(grid.unbind(-1), sizes, strict=True)]
    if mode == _BILINEAR:
        places = [_padded(p, size, padding, align_corners) for p, size in zip(places, sizes, strict=True)]
    first = [p.detach().floor() for p in places]
    t = [(p - whole).unsqueeze(1) for p, whole in zip(places, first, strict=True)]
    around = (0, 1) if mode == _BILINEAR else (-1, 0, 1, 2)

    def at(*steps: int) -> Any:
        # Places between pixels were moved into the image already.
        moved = [whole + step for whole, step in zip(first, steps, strict=True)]
        return _at(x, moved, padding and (_BORDER if mode == _BILINEAR else padding), align_corners)

    pixels = [at(*reversed(steps)) for steps in itertools.product(around, repeat=n)]  # the last dimension runs first
    if mode == _BILINEAR:
        pixels = _reduced(pixels, _bilinear, 4, *t[:2])
        return pixels[0] if n == 2 else _linear(*pixels, t[2])
    return _reduced(_reduced(pixels, _cubic, 4, t[0]), _cubic, 4, t[1])[0]


def _reduced(pixels: Sequence[Any], of: Callable[..., Any], count: int, *t: Any) -> list[Any]:
    return [of(*pixels[i : i + count], *t) for i in range(0, len(pixels), count)]


COMPOSITIONS: dict[str, Callable[..., Any]] = dict.fromkeys(
    ("grid_sampler", "grid_sampler_2d", "grid_sampler_3d"), _grid_sampler
)
