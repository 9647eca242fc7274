"""Laplacians through common operations and layers, one after the other, against the fastest nested way.

    python benchmarks/operations.py                                  # all, with d = 3 and 10; a quarter of an hour
    python benchmarks/operations.py --only 'pool|conv' --d 3         # some

A row is f(sin(W x)) at 256 points, summed as it is ("last") or after a tanh ("within"), evaluated or with the gradient
in W of a loss. Printed is what is slower than 1.2 times the fastest nested way, which is reverse over reverse mode, one
direction after the other or in a batch, or forward mode over it; ``--all`` prints every row. Times are those of the
processor, on one thread, so that other processes count little.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import re
import statistics
import time
import warnings
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from fallback_cases import batched, forward, nested, ours
from laplacian_cases import definite, forward_over_reverse, square
from torch import Tensor
from torch.autograd import grad

Op = Callable[[Tensor], Tensor]

WIDTH = 36
SLOWEST = 1 / 1.2


def constant(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def image(u: Tensor) -> Tensor:
    """[batch, 1, 6, 6]"""
    return u.view(-1, 1, 6, 6)


def channels(u: Tensor) -> Tensor:
    """[batch, 4, 9]"""
    return u.view(-1, 4, 9)


def tokens(u: Tensor) -> Tensor:
    """[batch, 6, 6]"""
    return u.view(-1, 6, 6)


def of_loss(loss: Callable[..., Tensor], *others: Tensor) -> Op:
    """Without a reduction, of as many copies of other operands as there are points."""

    def f(u: Tensor) -> Tensor:
        return loss(u, *(x.expand(len(u), *x.shape) for x in others), reduction="none")

    return f


def of_module(module: torch.nn.Module, view: Op = lambda u: u) -> Op:
    module = module.eval().requires_grad_(False)

    def f(u: Tensor) -> Tensor:
        y = module(view(u))
        result: Tensor = y[0] if isinstance(y, tuple) else y
        return result

    return f


def attention(u: Tensor) -> Tensor:
    at = tokens(u)
    return F.scaled_dot_product_attention(at, at, at)


def multihead(module: torch.nn.MultiheadAttention) -> Op:
    module = module.eval().requires_grad_(False)

    def f(u: Tensor) -> Tensor:
        at = tokens(u)
        result: Tensor = module(at, at, at, need_weights=False)[0]
        return result

    return f


def assigned(u: Tensor) -> Tensor:
    y = torch.zeros(len(u), WIDTH)
    y[:, ::2] = u[:, ::2].cos()
    y[:, 1::2] = u[:, ::2] * u[:, 1::2]
    return y


def stepped(u: Tensor) -> Tensor:
    y = torch.zeros(len(u), 8)
    for i in range(8):
        y[:, i] = u[:, i] * y[:, i - 1].cos()
    return y


def scaled(of: Op, factor: float, offset: float = 0.0) -> Op:
    return lambda u: of(factor * u + offset)


T, P = constant(WIDTH), constant(WIDTH).sigmoid()
SIGNS, FIRST = T.sign(), torch.tensor(3)
INDEX = torch.arange(WIDTH).flip(0) // 2
MASK = T > 0
MATRIX, TRIPLE = constant(WIDTH, WIDTH) / 6, constant(8, WIDTH, WIDTH) / 36
KERNEL, KERNEL2 = constant(4, 4, 3), constant(4, 1, 3, 3)
PLANE = constant(1, 4, 8, 8)
TABLE = constant(10, 8)

LOSSES: dict[str, Op] = {
    "mse_loss": of_loss(F.mse_loss, T),
    "l1_loss": of_loss(F.l1_loss, T),
    "smooth_l1_loss": of_loss(F.smooth_l1_loss, T),
    "huber_loss": of_loss(F.huber_loss, T),
    "binary_cross_entropy": lambda u: F.binary_cross_entropy(u.sigmoid(), P.expand(len(u), -1), reduction="none"),
    "binary_cross_entropy_with_logits": of_loss(F.binary_cross_entropy_with_logits, P),
    "kl_div": of_loss(F.kl_div, P),
    "poisson_nll_loss": of_loss(F.poisson_nll_loss, P),
    "gaussian_nll_loss": of_loss(F.gaussian_nll_loss, T, P),
    "soft_margin_loss": of_loss(F.soft_margin_loss, SIGNS),
    "multilabel_soft_margin_loss": of_loss(F.multilabel_soft_margin_loss, MASK.float()),
    "multi_margin_loss": of_loss(F.multi_margin_loss, FIRST),
    "hinge_embedding_loss": of_loss(F.hinge_embedding_loss, SIGNS),
    "cross_entropy": of_loss(F.cross_entropy, FIRST),
    "nll_loss": lambda u: F.nll_loss(u.log_softmax(-1), FIRST.expand(len(u)), reduction="none"),
    "cosine_embedding_loss": lambda u: F.cosine_embedding_loss(u, u.cos(), torch.ones(len(u)), reduction="none"),
    "triplet_margin_loss": lambda u: F.triplet_margin_loss(u, u.cos(), T.expand(len(u), -1), reduction="none"),
    "margin_ranking_loss": lambda u: F.margin_ranking_loss(u, u.cos(), SIGNS, reduction="none"),
}
ACTIVATIONS: dict[str, Op] = {
    name: getattr(F, name)
    for name in "relu leaky_relu elu selu celu gelu silu mish softplus softsign logsigmoid hardtanh hardsigmoid "
    "hardswish relu6 tanhshrink softshrink hardshrink tanh sigmoid glu".split()
} | {
    "prelu": lambda u: F.prelu(u, P[:1]),
    "threshold": lambda u: F.threshold(u, 0.1, 0.0),
    "softmax": lambda u: u.softmax(-1),
    "log_softmax": lambda u: u.log_softmax(-1),
    "softmin": lambda u: F.softmin(u, -1),
    "gumbel-like": lambda u: ((u + T) / 0.5).softmax(-1),
}
NORMALISATIONS: dict[str, Op] = {
    "layer_norm": lambda u: F.layer_norm(u, (WIDTH,), P, T),
    "rms_norm": lambda u: F.rms_norm(u, (WIDTH,), P),
    "group_norm": lambda u: F.group_norm(channels(u), 2, P[:4], T[:4]),
    "instance_norm": lambda u: F.instance_norm(channels(u)),
    "batch_norm, eval": of_module(torch.nn.BatchNorm1d(4), channels),
    "normalize": lambda u: F.normalize(u, dim=-1),
    "local_response_norm": lambda u: F.local_response_norm(channels(u), 2),
    "vector_norm": lambda u: torch.linalg.vector_norm(u, dim=-1),
    "norm, p = 3": lambda u: torch.linalg.vector_norm(u, 3, dim=-1),
    "norm, p = 1": lambda u: torch.linalg.vector_norm(u, 1, dim=-1),
}
POOLS: dict[str, Op] = {
    "avg_pool1d": lambda u: F.avg_pool1d(channels(u), 3),
    "avg_pool2d": lambda u: F.avg_pool2d(image(u), 2),
    "max_pool1d": lambda u: F.max_pool1d(channels(u), 3),
    "max_pool2d": lambda u: F.max_pool2d(image(u), 2),
    "max_unpool2d": lambda u: F.max_unpool2d(*F.max_pool2d(image(u), 2, return_indices=True), [2, 2]),
    "lp_pool2d": lambda u: F.lp_pool2d(image(u), 2, 2),
    "adaptive_avg_pool2d": lambda u: F.adaptive_avg_pool2d(image(u), 3),
    "adaptive_max_pool2d": lambda u: F.adaptive_max_pool2d(image(u), 3),
    "pad, constant": lambda u: F.pad(u, (1, 2)),
    "pad, circular": lambda u: F.pad(channels(u), (1, 2), "circular"),
    "pad, reflect": lambda u: F.pad(image(u), (1, 1, 1, 1), "reflect"),
    "pad, replicate": lambda u: F.pad(image(u), (1, 1, 1, 1), "replicate"),
    "unfold, 2-D": lambda u: F.unfold(image(u), 3),
    "pixel_shuffle": lambda u: F.pixel_shuffle(u.view(-1, 4, 3, 3), 2),
    "interpolate, nearest": lambda u: F.interpolate(image(u), scale_factor=2),
    "interpolate, bilinear": lambda u: F.interpolate(image(u), scale_factor=2, mode="bilinear"),
    "interpolate, bicubic": lambda u: F.interpolate(image(u), scale_factor=2, mode="bicubic"),
    "grid_sample, image": lambda u: F.grid_sample(
        u.view(1, -1, 6, 6), PLANE[:, :2, :4, :4].movedim(1, -1).reshape(1, 4, 4, 2).tanh(), align_corners=False
    ).view(len(u), -1),
    "grid_sample, grid": lambda u: F.grid_sample(PLANE, u.view(1, -1, 18, 2), align_corners=False)[0].movedim(0, -1),
    "grid_sample, grid, 3-D": lambda u: F.grid_sample(
        PLANE.view(1, 4, 4, 4, 4), u.view(1, -1, 12, 1, 3), align_corners=True
    )[0, ..., 0].movedim(0, -1),
    "grid_sample, bicubic": lambda u: F.grid_sample(PLANE, u.view(1, -1, 18, 2), mode="bicubic", align_corners=False)[
        0
    ].movedim(0, -1),
}
LAYERS: dict[str, Op] = {
    "linear": lambda u: F.linear(u, MATRIX, T),
    "bilinear": lambda u: F.bilinear(u, u.cos(), TRIPLE),
    "conv1d": lambda u: F.conv1d(channels(u), KERNEL),
    "conv2d": lambda u: F.conv2d(image(u), KERNEL2),
    "conv_transpose1d": lambda u: F.conv_transpose1d(channels(u), KERNEL),
    "conv_transpose2d": lambda u: F.conv_transpose2d(image(u), KERNEL2.movedim(0, 1)),
    "attention": attention,
    "MultiheadAttention": multihead(torch.nn.MultiheadAttention(6, 2, batch_first=True)),
    "TransformerEncoderLayer": of_module(torch.nn.TransformerEncoderLayer(6, 2, 12, batch_first=True), tokens),
    "LSTM": of_module(torch.nn.LSTM(6, 8, batch_first=True), tokens),
    "GRU": of_module(torch.nn.GRU(6, 8, batch_first=True), tokens),
    "RNN": of_module(torch.nn.RNN(6, 8, batch_first=True), tokens),
    "LSTMCell": of_module(torch.nn.LSTMCell(WIDTH, 8)),
    "GRUCell": of_module(torch.nn.GRUCell(WIDTH, 8)),
    "RNNCell": of_module(torch.nn.RNNCell(WIDTH, 8)),
    "embedding": lambda u: F.embedding(INDEX[:9] % 10, TABLE) @ u[:, :8, None],
    "embedding, gated": lambda u: u[:, :8] * TABLE[0],
    "residual": lambda u: u + F.linear(u, MATRIX).tanh(),
    "weighted sum": lambda u: torch.lerp(u, u.cos(), P),
}
LINALG: dict[str, Op] = {
    "matmul": lambda u: tokens(u) @ tokens(u),
    "bmm": lambda u: torch.bmm(tokens(u), tokens(u).mT),
    "baddbmm": lambda u: torch.baddbmm(tokens(u), tokens(u), tokens(u)),
    "outer": lambda u: u[:, :6, None] * u[:, None, 6:12],
    "einsum, products": lambda u: torch.einsum("bij,bjk,bk->bi", tokens(u), tokens(u), u[:, :6]),
    "einsum, linear": lambda u: torch.einsum("bi,ij->bj", u, MATRIX),
    "einsum, four": lambda u: torch.einsum("bij,bjk,bkl,bl->bi", *[tokens(u)] * 3, u[:, :6]),
    "einsum, four, constant": lambda u: torch.einsum("bij,jk,bkl,l->bi", tokens(u), TABLE[:6, :6], tokens(u), T[:6]),
    "tensordot": lambda u: torch.tensordot(tokens(u), tokens(MATRIX[0]), 2),
    "vecdot": lambda u: torch.linalg.vecdot(u, u.cos()),
    "cross": lambda u: torch.linalg.cross(u.view(-1, 12, 3), u.cos().view(-1, 12, 3)),
    "kron": lambda u: torch.kron(u.view(-1, 6, 6)[0], TABLE[:2, :2]).flatten()[:1] + u,
    "cdist": lambda u: torch.cdist(u.view(-1, 12, 3), u.cos().view(-1, 12, 3)),
    "cdist, constant": lambda u: torch.cdist(u.view(-1, 12, 3), TABLE[:5, :3]),
    "pairwise_distance": lambda u: F.pairwise_distance(u, u.cos()),
    "cosine_similarity": lambda u: F.cosine_similarity(u, u.cos(), -1),
    "inv": lambda u: torch.linalg.inv(square(u)),
    "solve": lambda u: torch.linalg.solve(square(u), u[:, :6]),
    "det": lambda u: torch.linalg.det(square(u)),
    "slogdet": lambda u: torch.linalg.slogdet(square(u))[1],
    "logdet": lambda u: torch.logdet(definite(u)),
    "cholesky": lambda u: torch.linalg.cholesky(definite(u)),
    "qr": lambda u: torch.linalg.qr(square(u))[1],
    "eigvalsh": lambda u: torch.linalg.eigvalsh(definite(u)),
    "eigh": lambda u: torch.linalg.eigh(definite(u))[1].square(),
    "svdvals": lambda u: torch.linalg.svdvals(square(u)),
    "pinv": lambda u: torch.linalg.pinv(square(u)),
    "lstsq": lambda u: torch.linalg.lstsq(square(u), u[:, :6, None])[0],
    "matrix_exp": lambda u: torch.linalg.matrix_exp(square(u) / 9),
    "matrix_power": lambda u: torch.linalg.matrix_power(square(u), 3),
    "solve_triangular": lambda u: torch.linalg.solve_triangular(square(u), u[:, :6, None], upper=True),
    "cholesky_solve": lambda u: torch.cholesky_solve(u[:, :6, None], square(u).tril()),
    "multi_dot": lambda u: torch.linalg.multi_dot([u, MATRIX, MATRIX]),
    "trace": lambda u: tokens(u).diagonal(dim1=-2, dim2=-1).sum(-1),
    "householder": lambda u: torch.linalg.householder_product(square(u), u[:, :6]),
}
ELEMENTS: dict[str, Op] = {
    **{
        name: getattr(torch, name)
        for name in "sin cos tan exp exp2 expm1 sinh cosh tanh asinh atan erf erfc sigmoid abs square sinc "
        "reciprocal neg deg2rad sgn trunc frac".split()
    },
    **{name: scaled(getattr(torch, name), 0.3) for name in "asin acos atanh erfinv log1p".split()},
    **{
        name: scaled(getattr(torch, name), 0.3, 1.5)
        for name in "log log2 log10 sqrt rsqrt acosh lgamma digamma i0".split()
    },
    **{
        f"special.{name}": scaled(getattr(torch.special, name), 0.3, 0.6)
        for name in "i0e i1 i1e ndtri ndtr log_ndtr erfcx entr bessel_j0 bessel_j1 logit expit psi".split()
    },
    "polygamma": lambda u: torch.polygamma(1, 1.5 + u),
    "zeta": lambda u: torch.special.zeta(torch.tensor(2.0), 1.5 + u),
    "xlogy": lambda u: torch.xlogy(u, 1.5 + u),
    "xlog1py": lambda u: torch.special.xlog1py(u, 1.5 + u),
    "pow": lambda u: (1.5 + u) ** u,
    "pow, 3": lambda u: u**3,
    "pow, 2.5": lambda u: (1.5 + u) ** 2.5,
    "atan2": lambda u: torch.atan2(u, u.cos()),
    "hypot": lambda u: torch.hypot(u, u.cos()),
    "logaddexp": lambda u: torch.logaddexp(u, u.cos()),
    "maximum": lambda u: torch.maximum(u, u.cos()),
    "minimum": lambda u: torch.minimum(u, T),
    "fmod": lambda u: torch.fmod(u, 0.3),
    "remainder": lambda u: torch.remainder(u, P),
    "copysign": lambda u: torch.copysign(u, T),
    "addcmul": lambda u: torch.addcmul(u, u.cos(), T),
    "addcdiv": lambda u: torch.addcdiv(u, u.cos(), 1.5 + u),
    "div": lambda u: u / (1.5 + u),
    "mul": lambda u: u * u.cos(),
    "mul, constant": lambda u: u * T,
    "add": lambda u: u + u.cos(),
    "sub": lambda u: T - u,
    "where": lambda u: torch.where(MASK, u, u.cos()),
    "where, of values": lambda u: torch.where(u > 0, u, u.cos()),
    "clamp": lambda u: u.clamp(-0.5, 0.5),
    "nan_to_num": lambda u: u.nan_to_num(),
    "masked_fill": lambda u: u.masked_fill(MASK, 0.5),
    "complex": lambda u: torch.complex(u[:, :18], u[:, 18:]).exp().real,
    "polar": lambda u: torch.polar(u[:, :18], u[:, 18:]).imag,
    "complex abs": lambda u: torch.complex(u[:, :18], u[:, 18:]).abs(),
    "dropout, eval": lambda u: F.dropout(u, training=False),
}
REDUCTIONS: dict[str, Op] = {
    "sum": lambda u: u.sum(-1),
    "mean": lambda u: channels(u).mean(-1),
    "prod": lambda u: u.prod(-1),
    "prod, few": lambda u: u.view(-1, 12, 3).prod(-1),
    "var": lambda u: u.var(-1),
    "std": lambda u: channels(u).std(-1),
    "logsumexp": lambda u: u.logsumexp(-1),
    "logsumexp, two dims": lambda u: channels(u).logsumexp((1, 2)),
    "var, two dims": lambda u: channels(u).var((1, 2)),
    "amax, two dims": lambda u: channels(u).amax((1, 2)),
    "norm, two dims": lambda u: torch.linalg.vector_norm(channels(u), dim=(1, 2)),
    "nanmean": lambda u: channels(u).nanmean((1, 2)),
    "max": lambda u: u.max(-1)[0],
    "min, few": lambda u: u.view(-1, 12, 3).min(-1)[0],
    "amax": lambda u: u.amax(-1),
    "amin, few": lambda u: u.view(-1, 12, 3).amin(-1),
    "aminmax": lambda u: torch.stack(torch.aminmax(u, dim=-1), -1),
    "median": lambda u: u.median(-1)[0],
    "mode": lambda u: u.mode(-1)[0],
    "kthvalue": lambda u: u.kthvalue(5, -1)[0],
    "quantile": lambda u: u.quantile(0.3, -1),
    "topk": lambda u: u.topk(5, -1)[0],
    "sort": lambda u: u.sort(-1)[0],
    "msort": lambda u: u.mT.msort().mT,
    "cumsum": lambda u: u.cumsum(-1),
    "cumprod": lambda u: u.cumprod(-1),
    "cummax": lambda u: u.cummax(-1)[0],
    "cummin": lambda u: u.cummin(-1)[0],
    "logcumsumexp": lambda u: u.logcumsumexp(-1),
    "diff": lambda u: u.diff(),
    "trapezoid": lambda u: torch.trapezoid(u, dx=0.1),
    "cumulative_trapezoid": lambda u: torch.cumulative_trapezoid(u, dx=0.1),
    "gradient": lambda u: torch.gradient(u, dim=-1)[0],
    "cov-like": lambda u: tokens(u) @ tokens(u).mT / 6,
    "renorm": lambda u: torch.renorm(u, 2, 0, 1.0),
    "nansum": lambda u: u.nansum(-1),
}
MOVES: dict[str, Op] = {
    "index_select": lambda u: u.index_select(-1, INDEX),
    "indexing": lambda u: u[:, INDEX],
    "slicing": lambda u: u[:, 3:30:2],
    "mask": lambda u: u[:, MASK],
    "gather": lambda u: u.gather(-1, INDEX.expand(len(u), -1)),
    "take_along_dim": lambda u: u.take_along_dim(u.argsort(-1), -1),
    "scatter": lambda u: torch.zeros_like(u).scatter(-1, INDEX.expand(len(u), -1), u),
    "scatter_add": lambda u: torch.zeros_like(u).scatter_add(-1, INDEX.expand(len(u), -1), u),
    "scatter_reduce, amax": lambda u: u.scatter_reduce(-1, INDEX.expand(len(u), -1), u.cos(), "amax"),
    "scatter_reduce, mean": lambda u: u.scatter_reduce(-1, INDEX.expand(len(u), -1), u.cos(), "mean"),
    "index_reduce, amax": lambda u: torch.zeros(len(u), 18).index_reduce(1, INDEX, u, "amax", include_self=False),
    "index_add": lambda u: torch.zeros(len(u), 18).index_add(1, INDEX, u),
    "index_copy": lambda u: u.index_copy(-1, INDEX[::2], u[:, ::2].cos()),
    "index_put": lambda u: u.index_put((torch.arange(len(u)), torch.tensor(1)), u[:, 0].cos()),
    "masked_scatter": lambda u: u.masked_scatter(MASK.expand(len(u), -1), u.cos()),
    "assignment": assigned,
    "assignment in a loop": stepped,
    "as_strided": lambda u: u.as_strided((len(u), 6, 5), (WIDTH, 6, 1)),
    "frexp": lambda u: torch.frexp(u)[0],
    "ldexp": lambda u: torch.ldexp(u, INDEX),
    "add_": lambda u: u.cos().add_(u),
    "mul_": lambda u: u.clone().mul_(u.cos()),
    "index_add_": lambda u: torch.zeros(len(u), 18).index_add_(1, INDEX, u),
    "roll": lambda u: u.roll(3, -1),
    "flip": lambda u: u.flip(-1),
    "cat": lambda u: torch.cat([u.sin(), u.cos()], -1),
    "stack": lambda u: torch.stack([u.sin(), u.cos()], -1),
    "repeat_interleave": lambda u: u.repeat_interleave(2, -1),
    "tile": lambda u: u.tile(1, 2),
    "expand": lambda u: u.unsqueeze(1).expand(-1, 4, -1),
    "permute": lambda u: tokens(u).mT.contiguous(),
    "tril": lambda u: tokens(u).tril(),
    "diag_embed": lambda u: u[:, :8].diag_embed(),
    "unfold": lambda u: u.unfold(-1, 5, 2),
    "chunk": lambda u: torch.cat(u.chunk(4, -1)[::-1], -1),
    "split, multiplied": lambda u: u.split(18, -1)[0] * u.split(18, -1)[1],
}
TRANSFORMS: dict[str, Op] = {
    "fft": lambda u: torch.fft.fft(u).abs().square(),
    "rfft": lambda u: torch.fft.rfft(u).real,
    "irfft": lambda u: torch.fft.irfft(torch.complex(u[:, :18], u[:, 18:])),
    "fft2": lambda u: torch.fft.fft2(tokens(u)).imag,
    "stft": lambda u: torch.stft(u, 12, window=P[:12], return_complex=True).abs().square(),
    "fftshift": lambda u: torch.fft.fftshift(u, -1),
}
WITHIN: dict[str, Op] = {  # transforms of torch.func
    "func.grad": torch.func.grad(lambda u: u.sin().prod(-1).sum()),
    "func.vmap": torch.func.vmap(lambda u: u.sin().cumsum(-1)),
    "func.vmap(func.grad)": torch.func.vmap(torch.func.grad(lambda u: (u.sin() * u.roll(1, -1)).sum())),
    "func.jvp": lambda u: torch.func.jvp(torch.sin, (u,), (u.cos(),))[1],
    "autograd.grad": lambda u: grad(u.sin().square().sum(), u, create_graph=True)[0],
}
OPERATIONS = (
    LOSSES
    | ACTIVATIONS
    | NORMALISATIONS
    | POOLS
    | LAYERS
    | LINALG
    | ELEMENTS
    | REDUCTIONS
    | MOVES
    | TRANSFORMS
    | WITHIN
)
NESTED = {"one by one": nested, "batched": batched, "forward": forward, "vmap(jvp)": forward_over_reverse}


def laplacian(way: Callable[..., Tensor], f: Op, x: Tensor, weight: Tensor, within: bool, record: bool) -> Tensor:
    def network(x: Tensor) -> Tensor:
        y = f(F.linear(x, weight).sin()).reshape(len(x), -1)
        return (y.tanh() if within else y).sum(-1)

    y = way(network, x, record)
    if not record:
        return y.detach()
    (slope,) = grad(y.square().mean(), weight, allow_unused=True, materialize_grads=True)
    return slope


def compared(f: Op, d: int, within: bool, record: bool, points: int, seconds: float) -> tuple[dict[str, float], str]:
    """The milliseconds of each way that works and gives the result of the first; what is to be said of others."""
    torch.manual_seed(0)
    x, weight = torch.randn(points, d).requires_grad_(), torch.randn(WIDTH, d) / d**0.5
    weight.requires_grad_(record)
    ways, said, expected = {}, [], None
    for name, way in {**NESTED, "torchad_ext": ours}.items():

        def call(way: Callable[..., Tensor] = way) -> Tensor:
            return laplacian(way, f, x, weight, within, record)

        try:
            result = call()
        except (RuntimeError, NotImplementedError) as error:
            said.append(f"{name}: {str(error).splitlines()[0][:60]}")
            continue
        expected = result if expected is None else expected
        if not torch.allclose(result, expected, 1e-2, 1e-3 * float(expected.abs().max())):
            said.append(f"{name} differs")
            if name != "torchad_ext":
                continue
        ways[name] = call
    return {name: 1e3 * s for name, s in processor_seconds(ways, seconds).items()}, "; ".join(said)


def processor_seconds(ways: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """The median of each way, run in turn for about ``seconds`` in all, and five times at least."""
    samples: dict[str, list[float]] = {name: [] for name in ways}
    start, rounds = time.process_time(), 0
    gc.collect()
    gc.disable()
    while rounds < 6 or time.process_time() - start < seconds:
        for name, call in ways.items():
            before = time.process_time()
            call()
            samples[name].append(time.process_time() - before)
        rounds += 1
    gc.enable()
    return {name: statistics.median(times[1:]) for name, times in samples.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--only", default="", help="a regular expression for names")
    parser.add_argument("--d", type=int, nargs="+", default=(3, 10))
    parser.add_argument("--points", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=0.1, help="for a row")
    parser.add_argument("--evaluation", action="store_true", help="no training steps")
    parser.add_argument("--all", action="store_true", help="print all rows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print("operation", "d", "place", "", "fastest nested", "ms", "torchad_ext", "ratio", sep="\t")
    counted = kept = 0
    for name, f in OPERATIONS.items():
        if not re.search(args.only, name):
            continue
        for d, within, record in itertools.product(args.d, (False, True), (False, True)):
            if record and args.evaluation:
                continue
            times, said = compared(f, d, within, record, args.points, args.seconds)
            mine = times.pop("torchad_ext", float("nan"))
            best = min(times, key=times.__getitem__, default="none")
            ratio = times.get(best, float("nan")) / mine
            counted, kept = counted + 1, kept + (ratio >= SLOWEST)
            if args.all or not ratio >= SLOWEST or "torchad_ext" in said:
                place, kind = "within" if within else "last", "step" if record else "evaluation"
                numbers = (f"{number:.2f}" for number in (times.get(best, float("nan")), mine, ratio))
                print(name, d, place, kind, best, *numbers, said, sep="\t", flush=True)
    print(f"{kept} of {counted} rows are within 1.2 times the fastest nested way")


if __name__ == "__main__":
    main()
