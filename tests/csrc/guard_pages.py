"""Runs the CPU kernels on operands that end, or begin, at a page which nobody may touch; says what is running."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Sequence

import torch

import torchad_ext as ad

PAGE = mmap.PAGESIZE
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
libc = ctypes.CDLL(None, use_errno=True)
_kept: list[mmap.mmap] = []


def guarded(x: torch.Tensor, at_end: bool) -> torch.Tensor:
    """A contiguous copy of x, right before a page without access, or right after one."""
    size = x.numel() * x.element_size()
    pages = max(1, -(-size // PAGE))
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    _kept.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages + 1):
        if libc.mprotect(ctypes.c_void_p(start + page * PAGE), PAGE, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = PAGE + (pages * PAGE - size if at_end else 0)
    view = torch.frombuffer(memory, dtype=x.dtype, count=x.numel(), offset=offset).view(x.shape)
    return view.copy_(x)


def differentiate(f: Callable[..., torch.Tensor], leaves: Sequence[torch.Tensor]) -> None:
    leaves = [x.requires_grad_() for x in leaves]
    y = f(*leaves)
    cotangent = guarded(torch.ones_like(y), at_end=True)
    firsts = torch.autograd.grad(y, leaves, cotangent, create_graph=True)
    wanted = [g for g in firsts if g.requires_grad]
    torch.autograd.grad(wanted, leaves, [guarded(torch.ones_like(g), at_end=True) for g in wanted], allow_unused=True)


def run(name: str, f: Callable[..., torch.Tensor], shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> None:
    for at_end in (True, False):
        print(name, shapes, dtype, "before" if at_end else "after", "the page", flush=True)
        leaves = [guarded(torch.rand(shape, dtype=torch.float64).to(dtype), at_end) for shape in shapes]
        f(*leaves)
        differentiate(f, leaves)


def main(dtype: torch.dtype) -> None:
    for n in (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 513, 1025):
        run("sin", ad.sin, [(n,)], dtype)
        run("gelu", ad.gelu, [(n,)], dtype)
        run("pow", ad.pow, [(3, n), (n,)], dtype)
        run("pow of columns", lambda x, y: ad.pow(x.t(), y), [(3, n), (3,)], dtype)
        run("every other", lambda x: ad.exp(x[..., ::2]), [(2, n)], dtype)
    for n in (1, 2, 3, 4, 7, 9, 12, 15, 16, 17, 18, 31, 33, 65, 130):
        for rows in (1, 3, 9, 17, 65):
            run("layer_norm", lambda x, w, b: ad.layer_norm(x, None, w, b), [(rows, n), (n,), (n,)], dtype)
            run("softmax", ad.softmax, [(rows, n)], dtype)
        run("rows apart", lambda x: ad.softmax(x[:, :-1]), [(5, n + 1)], dtype)
    for n in (1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 31, 33, 65, 130):
        for count in (1, 2, 3, 9):
            run("quadratic_form, shared", ad.quadratic_form, [(count, n), (n, n)], dtype)
            run("quadratic_form", ad.quadratic_form, [(count, n), (count, n, n)], dtype)
        run("quadratic_form of a transpose", lambda x, A: ad.quadratic_form(x, A.mT), [(n,), (n, n)], dtype)
    run("quadratic_form, many", ad.quadratic_form, [(700, 20), (20, 20)], dtype)


if __name__ == "__main__":
    main(getattr(torch, sys.argv[1]))
