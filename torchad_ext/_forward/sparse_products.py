"""Products with a sparse matrix that is a constant, of which PyTorch has no batches and no forward mode.

An adjacency matrix of a graph, or an admittance matrix, times what depends on x: y = S x is linear in x, its vjp is the
product with Sᵀ, and a batch of x is one with more columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._torch_state import is_batched, unwrapped
from .corrections import added

_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)


@dataclass(frozen=True, eq=False)
class _Matrix:
    """A sparse matrix, or a batch of them, that transforms do not see, or its transpose."""

    values: Tensor
    is_transposed: bool = False

    @property
    def transpose(self) -> _Matrix:
        return _Matrix(self.values, not self.is_transposed)


class _SparseProduct(torch.autograd.Function):
    """S x ``[..., m, columns]`` of a sparse matrix S ``[..., m, n]`` and x ``[..., n, columns]``."""

    @staticmethod
    def forward(S: _Matrix, x: Tensor) -> Tensor:
        matrix = S.values.transpose(-2, -1) if S.is_transposed else S.values
        return torch.mm(matrix, x) if x.dim() == 2 else torch.bmm(matrix, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[_Matrix, Tensor], output: Tensor) -> None:
        ctx.matrix, _ = inputs

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, Tensor]:
        return None, _SparseProduct.apply(ctx.matrix.transpose, grad_output)

    @staticmethod
    def jvp(ctx: Any, _: None, tangent: Tensor) -> Tensor:
        product: Tensor = _SparseProduct.apply(ctx.matrix, tangent)
        return product

    @staticmethod
    def vmap(info: Any, in_dims: tuple[None, int], S: _Matrix, x: Tensor) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[1], -1)
        return _SparseProduct.apply(S, x.flatten(-2)).unflatten(-1, x.shape[-2:]), x.dim() - 1


def _is_constant(x: Tensor) -> bool:
    """Is it a sparse matrix of real numbers without a derivative? PyTorch has none with a tangent."""
    if x.layout not in _SPARSE or x.is_complex() or is_batched(x):
        return False
    return not any(level.requires_grad for level in unwrapped(x))


def _is_dense(x: Tensor) -> bool:
    return x.layout is torch.strided


def _product(a: Any, b: Any, *others: Any) -> Any:
    """a @ b of a sparse constant and a dense matrix or vector, in either order."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.layout is b.layout or others:
        return NotImplemented
    if _is_constant(a) and _is_dense(b):
        return _times(_Matrix(unwrapped(a)[-1]), b)
    if _is_dense(a) and _is_constant(b):
        product = _times(_Matrix(unwrapped(b)[-1], is_transposed=True), a if a.dim() == 1 else a.mT)
        return product if product is NotImplemented or a.dim() == 1 else product.mT
    return NotImplemented


def _times(S: _Matrix, x: Tensor) -> Any:
    if x.dim() == 1 and S.values.dim() == 2:
        return _SparseProduct.apply(S, x.unsqueeze(-1)).squeeze(-1)
    if x.dim() != S.values.dim():
        return NotImplemented
    return _SparseProduct.apply(S, x)


def _sum_and_product(x: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    product = _product(a, b)
    return product if product is NotImplemented else added(x, product, beta, alpha)


# By their names; NotImplemented where no factor is a sparse constant.
PRODUCTS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys("mm bmm mv matmul __matmul__ _sparse_mm".split(), _product),
    "__rmatmul__": lambda b, a: _product(a, b),
    **dict.fromkeys("addmm addmv baddbmm _sparse_addmm".split(), _sum_and_product),
}
