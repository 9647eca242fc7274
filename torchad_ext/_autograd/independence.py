"""Do the values of points depend on other points?"""

from __future__ import annotations

import torch
from torch import Tensor


def slope_in_other_points(values: Tensor, x: Tensor) -> float:
    """The largest derivative of values ``[*batch]`` for other points than their own in x ``[*batch, *d]``.

    Any two points differ in a bit of their numbers, so that they are told apart by a sum over the points with a bit, or
    over those without it. Where values depend on their own points only, zeros are pulled back to zeros in all others,
    however much the derivatives are rounded.
    """
    count = values.numel()
    numbers = torch.arange(count, device=x.device).view(values.shape)
    largest = 0.0
    for bit in range((count - 1).bit_length() if x.numel() and values.requires_grad else 0):
        for chosen in (numbers >> bit & 1 == 1, numbers >> bit & 1 == 0):
            (slope,) = torch.autograd.grad(values[chosen].sum(), x, retain_graph=True, materialize_grads=True)
            largest = max(largest, float(slope.detach()[~chosen].nan_to_num(0.0).abs().amax()))
    return largest
