"""Arguments that PyTorch tests the derivatives of its own operations with."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.testing._internal.opinfo.core import OpInfo, SampleInput


def samples_of(info: OpInfo, dtype: torch.dtype, device: str = "cpu") -> Iterator[SampleInput]:
    """The samples of ``info.sample_inputs``, which searches the whole stack for a unittest.TestCase first."""
    torch.manual_seed(1234)
    for sample in info.sample_inputs_func(info, device, dtype, requires_grad=True):
        yield sample
        torch.manual_seed(1234)
