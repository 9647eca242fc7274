# ruff: noqa: E501, a template is a line
"""Operations whose Hessians have structure, as templates: for the suite, the fuzzer and ``docs/patterns.md``.

``python tests/hessian/structured.py`` prints the table. In a template u stands for a value, which is flattened to 24 elements,
and ``{1/2/3}`` for one of several options. What is made of u is cubed and summed.
"""

from __future__ import annotations

import functools
import math
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

import torchad_ext as ad

N = 24

# Structure is kept: the pattern has few other entries than the Hessian.
KEPT = {
    "index_add": "torch.zeros(8, dtype=u.dtype).index_add(0, {J/J.flip(0)}, u, alpha={1/-2.5})",
    "scatter_add": "torch.zeros(8, dtype=u.dtype).scatter_add(0, J, u.sin())",
    "scatter": "torch.zeros(30, dtype=u.dtype).scatter(0, {J/torch.arange(24).flip(0)}, u)",
    "scatter of a number": "u.scatter(0, J[:3], 2.0)",
    "scatter_reduce": 'torch.ones(8, dtype=u.dtype).scatter_reduce(0, J, u, "{sum/mean/amax/amin}", include_self={True/False})',
    "scatter_reduce, prod": 'torch.ones(8, dtype=u.dtype).scatter_reduce(0, J, u, "prod")',
    "index_reduce": 'torch.ones(8, dtype=u.dtype).index_reduce(0, J, u, "{mean/amax/prod}")',
    "index_put": "torch.zeros(24, dtype=u.dtype).index_put((J,), u, accumulate={True/False})",
    "index_copy": "u.index_copy(0, J[:2], u[5:7].sin())",
    "index_fill": "u.index_fill(0, J[:3], 2.0)",
    "index_select": "u.index_select(0, J) * u",
    "put": "torch.zeros(24, dtype=u.dtype).put(J, u, accumulate={True/False})",
    "take": "u.take(J) * u",
    "take_along_dim": "u.view(8, 3).take_along_dim(torch.tensor([[0], [2]] * 4), 1)",
    "gather": "u.gather(0, J) * u",
    "masked_fill": "u.masked_fill(u > {0/0.3}, 2.0)",
    "masked_select": "u.masked_select(u > {0/-0.3})",
    "masked_scatter": "u.masked_scatter(u > 0, u.flip(0))",
    "as_strided_copy": "torch.as_strided_copy(u[3:], (4,), (2,), {0/5})",
    "where": "torch.where(u > 0, u, {u.flip(0)/torch.tensor(5)/2.0})",
    "conv1d": "F.conv1d(u.view({1, 1, 24/2, 1, 12}), C(4, 1, 3), stride={1/2}, padding={0/2}, dilation={1/2})",
    "conv1d, groups": 'F.conv1d(u.view(2, 4, 3), C(4, 2, {1/2/3}), C(4), padding="{same/valid}", groups=2)',
    "conv2d": "F.conv2d(u.view(1, 1, 4, 6), C(2, 1, {2/3}, 2), stride=({1/2}, 1), padding={0/1})",
    "conv2d, weights": "F.conv2d(u.view(1, 1, 4, 6), u[:4].view(1, 1, 2, 2), padding={0/1})",
    "conv3d": "F.conv3d(u.view(1, 1, 2, 3, 4), C(1, 1, 2, 2, {1/2}))",
    "conv_transpose1d": "F.conv_transpose1d(u.view(1, 2, 12), C(2, {1/2}, 3), stride={1/2/3}, padding={0/1}, dilation={1/2})",
    "conv_transpose2d": "F.conv_transpose2d(u.view(1, 4, 2, 3), C(4, 2, 2, 3), stride={1/2}, groups={1/2})",
    "conv_transpose3d": "F.conv_transpose3d(u.view(1, 1, 2, 3, 4), C(1, 1, 2, 2, 2), stride={1/2})",
    "avg_pool1d": "F.avg_pool1d(u.view(1, 1, 24), {1/2/3}, stride={1/2}, ceil_mode={True/False})",
    "avg_pool2d": "F.avg_pool2d(u.view(1, 1, 4, 6), 2, stride={1/2}, padding={0/1}, count_include_pad={True/False})",
    "avg_pool3d": "F.avg_pool3d(u.view(1, 1, 2, 3, 4), 2, stride=1)",
    "lp_pool1d": "F.lp_pool1d(1 + u.view(1, 1, 24) ** 2, 2, {2/3})",
    "max_pool1d": "F.max_pool1d(u.view(1, 1, 24), {2/3}, stride={1/2})",
    "max_pool2d": "F.max_pool2d(u.view(1, 1, 4, 6), 2, stride={1/2}, padding={0/1})",
    "max_pool3d": "F.max_pool3d(u.view(1, 1, 2, 3, 4), 2, stride=1)",
    "max_unpool1d": "F.max_unpool1d(*F.max_pool1d(u.view(1, 1, 24), 2, return_indices=True), 2)",
    "adaptive_avg_pool1d": "F.adaptive_avg_pool1d(u.view(1, 1, 24), {5/7/24})",
    "adaptive_avg_pool2d": "F.adaptive_avg_pool2d(u.view(1, 1, 4, 6), ({2/3}, {4/5}))",
    "adaptive_avg_pool3d": "F.adaptive_avg_pool3d(u.view(1, 1, 2, 3, 4), (1, 2, 3))",
    "adaptive_max_pool1d": "F.adaptive_max_pool1d(u.view(1, 1, 24), {5/7})",
    "adaptive_max_pool2d": "F.adaptive_max_pool2d(u.view(1, 1, 4, 6), (2, 4))",
    "interpolate, nearest": 'F.interpolate(u.view(1, 1, 4, 6), size=({3/7}, 5), mode="{nearest/nearest-exact}")',
    "interpolate, linear": 'F.interpolate(u.view(1, 1, 24), scale_factor={2/3}, mode="linear", align_corners={True/False})',
    "interpolate, bilinear": 'F.interpolate(u.view(1, 1, 4, 6), size=({3/7}, 9), mode="bilinear", align_corners={True/False})',
    "interpolate, antialias": 'F.interpolate(u.view(1, 1, 2, 12), size=(2, {4/6}), mode="bilinear", antialias=True)',
    "interpolate, trilinear": 'F.interpolate(u.view(1, 1, 2, 3, 4), size=({3/4}, 4, 5), mode="trilinear")',
    "interpolate, area": 'F.interpolate(u.view(1, 1, 4, 6), size=(2, {3/4}), mode="area")',
    "grid_sample": 'F.grid_sample(u.view(1, 1, 4, 6), C(1, 3, 3, 2), mode="{bilinear/nearest}", align_corners={True/False})',
    "grid_sample, grid": "F.grid_sample(C(1, 1, 4, 4), 0.4 * u.view(1, 3, 4, 2), align_corners=False)",
    "grid_sample, grid, 3-D": "F.grid_sample(C(1, 2, 3, 3, 3), 0.4 * u.view(1, 2, 2, 2, 3), align_corners={True/False})",
    "pixel_shuffle": "F.pixel_shuffle(u.view(1, 4, 2, 3), 2) * u.view(1, 1, 4, 6)",
    "pad": "F.pad(u, ({1/2}, 1), value=2.0)[1:25] * u",
    "pad, modes": 'F.pad(u.view(1, 4, 6), ({1/2}, 1), mode="{reflect/replicate/circular}")[..., 1:]',
    "fold": "F.fold(u.view(1, 4, 6), (3, 4), 2)",
    "unfold": "F.unfold(u.view(1, 1, 4, 6), {2/3}, stride={1/2})",
    "Tensor.unfold": "u.unfold(0, {2/3}, 1).sin().sum(1)",
    "layer_norm": "F.layer_norm(u.view(4, 6), (6,), C(6), C(6))",
    "rms_norm": "F.rms_norm(u.view(4, 6), (6,))",
    "batch_norm": "F.batch_norm(u.view({6, 4/2, 4, 3}), None, None, training=True)",
    "batch_norm, evaluated": "F.batch_norm(u.view(6, 4), C(4), C(4) ** 2 + 1)",
    "group_norm": "F.group_norm(u.view(2, 4, 3), {2/4})",
    "instance_norm": "F.instance_norm(u.view(2, 4, 3))",
    "local_response_norm": "F.local_response_norm(u.view(1, 8, 3), 2)",
    "normalize": "F.normalize(u.view(4, 6), dim=1)",
    "cross_entropy": 'F.cross_entropy(u.view(4, 6), torch.tensor([1, 2, 3, 0]), reduction="{none/sum/mean}", label_smoothing={0.0/0.1})',
    "nll_loss": "F.nll_loss(u.view(2, 3, 4).log_softmax(1), torch.tensor([[1, 2, 0, 0]] * 2), C(3) ** 2 + 1)",
    "kl_div": 'F.kl_div(u.view(4, 6).log_softmax(1), C(4, 6).softmax(1), reduction="{sum/batchmean}")',
    "binary_cross_entropy": "F.binary_cross_entropy(u.sigmoid(), C(24) ** 2)",
    "binary_cross_entropy_with_logits": "F.binary_cross_entropy_with_logits(u, C(24) ** 2, pos_weight={None/C(24) ** 2 + 1})",
    "huber_loss": 'F.huber_loss(u[1:], u[:-1] * 2, reduction="{none/mean/sum}", delta={0.3/5.0})',
    "smooth_l1_loss": 'F.smooth_l1_loss(u[1:], u[:-1] * 2, reduction="{none/mean}", beta=5.0)',
    "mse_loss": 'F.mse_loss(u[1:], u[:-1], reduction="{none/mean}")',
    "l1_loss": 'F.l1_loss(u[1:] ** 2, u[:-1], reduction="{none/mean}")',
    "poisson_nll_loss": "F.poisson_nll_loss(u, C(24) ** 2)",
    "triplet_margin_loss": "F.triplet_margin_loss(u.view(4, 6), C(4, 6), C(4, 6, shift=1.0), margin=9.0)",
    "sparse.mm": "torch.sparse.mm(S, u.view(24, 1))",
    "sparse @ vector": "{S/S.to_sparse_csr()} @ u",
    "dense @ sparse": "u.view(1, 24) @ S",
    "banded matrix": "(C(24, 24).tril({1/2}).triu(-1) @ u).tanh()",
    "one_hot": "F.one_hot(J).double().T @ u",
    "sort": "u.sort(descending={True/False})[0] * C(24)",
    "sort, rows": "u.view(4, 6).sort(1)[0].diff(dim=1)",
    "topk": "u.topk({3/5}, largest={True/False})[0]",
    "kthvalue": "u.view(4, 6).kthvalue({1/3}, 1)[0]",
    "median": "u.median()",
    "median, rows": "u.view(4, 6).median({0/1})[0]",
    "mode": "u.mode()[0]",
    "quantile, rows": "u.view(4, 6).quantile(0.3, dim=1)",
    "quantile": "u.quantile({0.3/0.5})",
    "max": "u.{max/min/amax/amin}()",
    "max, rows": "u.view(4, 6).max({0/1})[0]",
    "aminmax": "torch.stack(u.view(4, 6).aminmax(dim={0/1}))",
    "cummax": "u.cummax(0)[0]",
    "cumsum, rows": "u.view(8, 3).cumsum(1)",
    "cumprod, rows": "u.view(8, 3).cumprod(1)",
    "logcumsumexp, rows": "u.view(8, 3).logcumsumexp(1)",
    "logsumexp, rows": "u.view(8, 3).logsumexp(1)",
    "norm of sums and extrema": 'u.view(4, 6).norm({1/float("inf")}, dim=1)',
    "softmax, rows": "u.view(8, 3).softmax({0/1})",
    "norm, rows": "u.view(8, 3).norm({2/3}, dim=1)",
    "var, rows": "u.view(8, 3).var(1)",
    "var_mean, rows": "torch.stack(torch.var_mean(u.view(8, 3), dim=1)).prod(0)",
    "diff": "torch.diff(u, {1/2})",
    "gradient": "torch.gradient(u)[0]",
    "roll": "u.roll({1/-2}) * u",
    "flip": "u.flip(0) * u",
    "rot90": "u.view(4, 6).rot90() * 2",
    "tril": "u[:16].view(4, 4).{tril/triu}({0/1})",
    "repeat": "u.{repeat/tile}(2)",
    "repeat_interleave": "u.repeat_interleave({2/J % 3})",
    "embedding": "F.embedding(J % 4, u.view(4, 6))",
    "bmm": "torch.bmm(u.view(6, 2, 2), {C(6, 2, 3)/u.view(6, 2, 2)})",
    "baddbmm": "torch.baddbmm(u.view(6, 2, 2), C(6, 2, 2), u.view(6, 2, 2).sin())",
    "einsum, batch": 'torch.einsum("bij,bj->bi", C(8, 3, 3), u.view(8, 3))',
    "einsum, outer": 'torch.einsum("bi,bj->bij", u.view(8, 3), u.view(8, 3))',
    "block_diag": "torch.block_diag(u[:4].view(2, 2), u[4:8].view(2, 2)) @ C(4, 4)",
    "cross": "torch.linalg.cross(u.view(8, 3), {C(8, 3)/u.view(8, 3).flip(1)})",
    "bilinear": "F.bilinear(u.view(8, 3), C(8, 2), C(2, 3, 2))",
    "addcmul": "torch.addcmul(u[:8], u[8:16], u[16:])",
    "addcmul, in place": "(u * 1).{addcmul_/addcdiv_/lerp_}(u.roll(1), 3 + u.roll(2))",
    "addr": "torch.addr(u[:16].view(4, 4), u[16:20], u[20:])",
    "addr, in place": "(u[:16].view(4, 4) * 1).addr_(u[16:20], u[20:])",
    "lerp": "torch.lerp(u[1:], u[:-1], {0.3/C(23)})",
    "maximum": "torch.{maximum/minimum/fmax/fmin}(u, u.roll(1))",
    "relu": "u.roll(1).{relu/abs}() + u",
    "a mask": "u * (u > 0)",
    "what is cut off": "torch.where(torch.eye(24, dtype=torch.bool), torch.outer(u, u).sin(), 0.0)",
    "logsigmoid": "F.logsigmoid(u)",
    "glu": "F.glu(u.view(4, 6))",
    "prelu": "F.prelu(u, C(1))",
    "inverses of a batch": "torch.linalg.inv(u.view(6, 2, 2) + 4 * torch.eye(2, dtype=u.dtype))",
    "determinants of a batch": "torch.linalg.{det/slogdet}(u.view(6, 2, 2) + 4 * torch.eye(2, dtype=u.dtype)){/[1]}",
    "solutions of a batch": "torch.linalg.solve(u.view(6, 2, 2) + 4 * torch.eye(2, dtype=u.dtype), C(6, 2{/, 1}))",
    "solutions, one matrix": "torch.linalg.solve({C(4, 4) + 3 * torch.eye(4, dtype=u.dtype), u.view(4, 6)/C(4, 2, 2) + 3 * torch.eye(2, dtype=u.dtype), u[:8].view(4, 2)})",
    "solutions, triangular": "torch.linalg.solve_triangular(C(2, 2) + 2 * torch.eye(2, dtype=u.dtype), u.view(6, 2, 2), upper=True, left={True/False})",
    "solutions, factorized": "torch.cholesky_solve(u.view(4, 6), (C(4, 4) + 3 * torch.eye(4, dtype=u.dtype)).tril())",
    "cholesky of a batch": "torch.linalg.cholesky(u.view(6, 2, 2) @ u.view(6, 2, 2).mT + torch.eye(2, dtype=u.dtype))",
    "attention": "F.scaled_dot_product_attention(*[u.view(4, 2, 3)] * 3)",
    "distances": "(u.view(8, 1, 3) - C(5, 3)).norm(dim=2)",
    "cosine_similarity": "F.cosine_similarity(u.view(8, 3), C(8, 3))",
    "fft, rows": "torch.fft.rfft(u.view(8, 3)).abs().square()",
    "gradient of a convolution": "torch.autograd.grad(F.conv1d(u.view(1, 1, 24), C(1, 1, 3)).pow(3).sum(), u, create_graph=True)[0]",
    "complex index_add": "torch.zeros(4, dtype=torch.complex128).index_add(0, J[:12] % 4, torch.complex(u[:12], u[12:])).abs().square()",
}

# The pattern is full, or nearly.
LARGE = {
    "cumsum": "u.cumsum(0)",
    "softmax": "u.softmax(0)",
    "inverse": "torch.linalg.inv(u[:16].view(4, 4) + 4 * torch.eye(4, dtype=u.dtype))",
    "dense matrix": "C(24, 24) @ u",
}


def C(*shape: int, shift: float = 0.0) -> Tensor:
    """A constant tensor without equal elements."""
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 2.3 + shift).view(shape)


def _ring() -> Tensor:
    each = torch.arange(N)
    ends = torch.stack([each.repeat(2), torch.cat([each, (each + 1) % N])])
    return torch.sparse_coo_tensor(ends, C(2 * N), (N, N), check_invariants=False)


SPACE: dict[str, Any] = {"torch": torch, "F": F, "C": C, "S": _ring().coalesce(), "J": torch.arange(N) * 5 % 7}


def chosen(template: str, draw: random.Random) -> str:
    """A template with its options chosen."""
    return re.sub(r"\{([^{}]*/[^{}]*)\}", lambda match: draw.choice(match[1].split("/")), template)


def function_of(text: str, in_part: bool = False) -> Callable[[Tensor], Tensor]:
    """The sum of the cubes of what an operation makes of u, in which the elements of a result couple; or of some of it."""
    code = compile(text, text, "eval")

    def f(x: Tensor) -> Tensor:
        y: Tensor = eval(code, {**SPACE, "u": x})
        return y.flatten()[y.numel() // 3 :: 2].sum() if in_part else y.pow(3).sum()

    return f


def point(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return C(N, shift=0.4) + 0.1 * torch.randn(N, generator=generator, dtype=torch.float64)


def entries(text: str, x: Tensor, in_part: bool = False) -> tuple[Tensor, Tensor]:
    """The pattern that is found, and the entries of the Hessian that are not rounding errors, of plain autograd."""
    f = function_of(text, in_part)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
    rows = [torch.autograd.grad(g, leaf, retain_graph=True, materialize_grads=True)[0] for g in gradient + 0 * leaf]
    H = torch.stack(rows)
    return ad.hessian_sparsity(f, x).to_dense(), H.abs() > 1e-12 * H.abs().max().clamp(1)


@functools.cache
def found(name: str, seed: int) -> tuple[str, Tensor, Tensor]:
    """A row with its options chosen, the pattern that is found for it, and the entries of its Hessian."""
    text = chosen({**KEPT, **LARGE}[name], random.Random(seed))
    return text, *entries(text, point(seed))


def table() -> str:
    """``docs/patterns.md``."""
    lines = [
        "# Sparsity patterns, operation by operation",
        "",
        f"How many of {N * N} entries `hessian_sparsity` finds, and how many the Hessian has at a point, where the 24 elements of",
        "u go through an operation, and the cubes of its results are summed. J is an index, C a constant, S a sparse matrix.",
        "An operation that is not known couples all that it reads. `python tests/hessian/structured.py` prints this page, and",
        "the suite holds it.",
    ]
    for title, rows in (("Structure is kept", KEPT), ("The pattern is large", LARGE)):
        lines += ["", f"## {title}", "", "| | code | pattern | Hessian |", "| --- | --- | --- | --- |"]
        for name in rows:
            text, pattern, exact = found(name, 0)
            lines.append(f"| {name} | `{text}` | {int(pattern.sum())} | {int(exact.sum())} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
