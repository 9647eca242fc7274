"""Tensors of every memory layout, by hypothesis and by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import strategies as st

NAMED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(-1, -3),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "channels_last_3d": lambda x: x[:, :, None].repeat(1, 1, 2, 1, 1).contiguous(memory_format=torch.channels_last_3d),
    "sliced": lambda x: x[..., 1::2],
    "rows sliced": lambda x: x[:, ::2],
    "offset": lambda x: x.flatten()[1:],
    "expanded": lambda x: x[:, :1].expand_as(x),
    "expanded scalar": lambda x: x.flatten()[0].expand(3, 41),
    "expanded outside": lambda x: x.expand(2, *x.shape),
    "flipped": lambda x: x.flip(-1),
    "0-dimensional": lambda x: x.flatten()[0],
    "one element": lambda x: x.flatten()[:1],
    "empty": lambda x: x[:0],
    "empty sliced": lambda x: x[:, :, :0, ::2],
    "overlapping": lambda x: x.flatten().as_strided((20, 7), (3, 1)),
    "size-1 dimensions": lambda x: x[:, :1, :, :1].permute(3, 0, 1, 2),
}


def sample(dtype: torch.dtype, device: str, scale: float = 3.0) -> torch.Tensor:
    """A tensor of shape (2, 5, 7, 11) to take the layouts of."""
    generator = torch.Generator().manual_seed(0)
    return (scale * torch.randn(2, 5, 7, 11, dtype=torch.float64, generator=generator)).to(device, dtype)


def steps(x: torch.Tensor) -> list[int]:
    """The strides of dimensions that have any step to take."""
    return [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1]


@st.composite
def strided(draw: st.DrawFn, max_dims: int = 4, max_size: int = 9) -> torch.Tensor:
    """A float64 view: sizes, order of dimensions, steps and repeated dimensions all drawn."""
    dims = draw(st.integers(0, max_dims))
    sizes = draw(st.lists(st.integers(0, max_size), min_size=dims, max_size=dims))
    steps = draw(st.lists(st.integers(0, 3), min_size=dims, max_size=dims))  # 0 repeats
    order = draw(st.permutations(range(dims)))
    memory = [size * max(step, 1) if step else 1 for size, step in zip(sizes, steps, strict=True)]
    x = torch.linspace(-4, 4, max(1, torch.Size(memory).numel()), dtype=torch.float64)
    x = x[: torch.Size(memory).numel()].reshape(memory)
    x = x[tuple(slice(None, None, max(step, 1)) for step in steps)]
    return x.expand(sizes).permute(order)
