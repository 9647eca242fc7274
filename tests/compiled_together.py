"""Kernels of many calls, compiled in one run of each compiler: it reads the headers once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from random_modules import Interpreted, interpret

from torchad_ext._declared import compile_kernels
from torchad_ext._elementwise import Elementwise
from torchad_ext._row_function import RowFunction


@contextmanager
def compiled_together() -> Iterator[None]:
    """Runs programs in the place of the kernels that the calls within ask for, and compiles these at the end."""
    asked: dict[tuple[Any, ...], None] = {}

    def rehearsed(self: Elementwise, device: str, dtype: torch.dtype, *variant: bool) -> Interpreted | None:
        if not self.keeps(dtype):
            return None
        if device == "cpu":
            asked[(self, dtype, *variant)] = None
        return Interpreted(self, dtype)

    with pytest.MonkeyPatch.context() as patch:
        interpret(patch.setattr)
        for function in (Elementwise, RowFunction):
            patch.setattr(function, "kernel", rehearsed)
        yield
    compile_kernels(asked)
