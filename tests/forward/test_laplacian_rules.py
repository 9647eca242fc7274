"""Rules of the sweep of Laplacians: each operation that has one, on PyTorch's own samples and on awkward arguments."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from inspect import signature
from math import inf
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_laplacian import by_autograd, coefficients, points
from test_torch_functions import AT, TRAINING, of_numbers
from torch import Tensor
from torch.autograd import grad, gradcheck
from torch.func import vmap
from torch.profiler import profile
from torch.testing import assert_close

import torchad_ext as ad
from torchad_ext._forward import (
    decompositions,
    elementwise_rules,
    grid_sampling,
    linalg_rules,
    losses,
    rules,
    selection_rules,
)
from torchad_ext._forward.calls import is_python, known_name
from torchad_ext._forward.correction_mode import with_corrections
from torchad_ext._forward.corrections import CORRECTIONS
from torchad_ext._forward.fallback import _warned
from torchad_ext._forward.laplacian import bilaplacian, laplacian
from torchad_ext._symbolic.torch_functions import FUNCTIONS
from torchad_ext._torch_state import schemas

pytest.importorskip("expecttest", reason="torch.testing._internal imports expecttest, which is not installed")
from pytorch_samples import samples_of
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import OpInfo, SampleInput

pytestmark = pytest.mark.usefixtures("kernels_when_long")

D = torch.float64
aten = torch.ops.aten
Function = Callable[[Tensor], Tensor]
NAMES = {
    *linalg_rules.RULES,
    *selection_rules.RULES,
    *decompositions.COMPOSITIONS,
    *losses.COMPOSITIONS,
    *grid_sampling.COMPOSITIONS,
    *"prod cumprod multi_dot bilinear channel_shuffle dsplit combinations narrow_copy split_with_sizes_copy".split(),
    *"grid_sample gradient stft istft atleast_1d atleast_2d atleast_3d cartesian_prod".split(),
    *"cross_entropy nll_loss interpolate conv1d conv2d conv_transpose1d einsum tensordot bilinear".split(),
} - {*TRAINING}
# What has a rule for some arguments alone.
SOME = {
    "cov": "weights",
    "stft": "a window that varies",
    "quantile": "a number that varies",
    "scatter_reduce": "a product",
    "index_reduce": "a product",
    "norm": "a spectrum, negative orders",
    "vector_norm": "negative orders",
    "matrix_norm": "a spectrum",
    "rrelu": "random numbers",
    "alpha_dropout": "random numbers",
    "feature_alpha_dropout": "random numbers",
}
UNUSUAL = ("subgradients_at_zero", "chunked", "chunked_none", "singular")


@pytest.fixture(autouse=True)
def _nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHAD_EXT_STRICT", raising=False)
    _warned.clear()


def short(info: OpInfo) -> str:
    return info.name.removeprefix("nn.functional.").removeprefix("linalg.").replace("fft.", "fft_")  # type: ignore[no-any-return]


def infos() -> Iterator[OpInfo]:
    for info in op_db:
        if info.supports_autograd and short(info) in NAMES and info.variant_test_name not in UNUSUAL:
            yield info


def samples(info: OpInfo) -> list[SampleInput]:
    """At most six that are small, spread over all."""
    small = [s for s in samples_of(info, D) if size(s) <= 150]
    return small[:: max(1, -(-len(small) // 6))]


def size(sample: SampleInput) -> int:
    given = torch.utils._pytree.tree_leaves((sample.input, sample.args, sample.kwargs))
    return sum(x.numel() for x in given if isinstance(x, Tensor))


def nested(f: Function, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """w·f and w·Δf by gradients of gradients."""
    y = with_corrections(f)(x)
    (slope,) = grad((w * y).sum() + 0 * x.square().sum(), x, create_graph=True)
    rows = [grad(s, x, create_graph=True, materialize_grads=True)[0][i] for i, s in enumerate(slope.unbind())]
    return y, torch.stack(rows).sum()


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("info", list(infos()), ids=lambda info: info.formatted_name)
def test_samples_of_pytorch(info: OpInfo) -> None:
    """Value, Laplacian and the gradient of the Laplacian, without a warning."""
    if D not in info.supported_dtypes("cpu"):
        pytest.skip(f"{info.name} takes no {D}")
    followed = 0
    given = samples(info)
    for sample in given:
        f = of_numbers(info.op, (sample.input, *sample.args), sample.kwargs)
        x = AT.clone().requires_grad_()
        y = f(x)
        if not y.requires_grad:
            continue
        w = torch.arange(y.numel(), dtype=D).add(0.3).cos()
        expected = nested(f, x, w)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore" if short(info) in SOME else "error", "torchad_ext.laplacian")
            value, _, curvature = ad.forward_laplacian(f, x)
        assert_close((value, (w * curvature).sum()), expected, rtol=1e-7, atol=1e-9, equal_nan=True)
        if expected[1].requires_grad and curvature.requires_grad:
            ours, theirs = (
                grad(y, x, allow_unused=True, materialize_grads=True)[0] for y in ((w * curvature).sum(), expected[1])
            )
            assert_close(ours, theirs, rtol=1e-6, atol=1e-7, equal_nan=True)
        followed += 1
    assert followed or not given


MIXING = points("cpu", 25, 3) / 2


def matrices(x: Tensor, n: int = 3) -> Tensor:
    """[points, n, n] of points [points, 3], all well-conditioned."""
    return (x @ MIXING[: n * n].mT.to(x)).sin().unflatten(-1, (n, n)) + 3 * torch.eye(n).to(x)


def definite(x: Tensor) -> Tensor:
    return matrices(x) @ matrices(x).mT


def of_parts(part: Callable[[Tensor], Any]) -> Function:
    return lambda x: torch.cat([y.flatten(1) if y.dim() > 1 else y[:, None] for y in parts_of(part(x))], 1)


def parts_of(y: Any) -> list[Tensor]:
    return [z for z in torch.utils._pytree.tree_leaves(y) if z.is_floating_point()]


def last(*shape: int) -> Tensor:
    return torch.linspace(0.2, 1.7, torch.Size(shape).numel(), dtype=D).reshape(shape)


LINALG: dict[str, Callable[[Tensor], Any]] = {
    "inv": lambda x: torch.linalg.inv(matrices(x)),
    "inv of one matrix for all": lambda x: matrices(x).inverse() @ torch.linalg.inv_ex(matrices(x))[0],
    "solve": lambda x: x * torch.linalg.solve(matrices(x), x.cos()),
    "solve for matrices": lambda x: torch.linalg.solve(matrices(x), matrices(x.cos())[..., :2]),
    "solve from the right": lambda x: torch.linalg.solve(matrices(x), matrices(x.cos())[:, :2], left=False),
    "solve with a constant matrix": lambda x: torch.linalg.solve(
        (last(3, 3) + 3 * torch.eye(3)).to(x), x.sin().unsqueeze(-1)
    ),
    "solve for a constant": lambda x: torch.linalg.solve(matrices(x), last(3, 2).to(x)),
    "solve, broadcast": lambda x: torch.linalg.solve(
        matrices(x)[:, None], matrices(x.cos())[:, None].expand(-1, 2, 3, 3)
    ),
    "solve for each vector": lambda x: torch.stack(
        [torch.linalg.solve(m, v) for m, v in zip(matrices(x), x.cos(), strict=True)]
    ),
    "solve_ex from the right with a constant matrix": lambda x: torch.linalg.solve_ex(
        (last(3, 3) + 3 * torch.eye(3)).to(x), x.sin().unsqueeze(-2), left=False
    ),
    "slogdet": lambda x: torch.linalg.slogdet(matrices(x, 4)),
    "slogdet of a negative determinant": lambda x: torch.linalg.slogdet(-matrices(x)),
    "logdet": lambda x: torch.logdet(definite(x)),
    "det": lambda x: torch.linalg.det(matrices(x, 5)),
    "det of small ones": lambda x: matrices(x).det() * matrices(x, 2).det() * matrices(x, 1).det(),
    "det of more dimensions": lambda x: tuple(
        torch.linalg.det(torch.stack([matrices(x, n), matrices(x.cos(), n)], 1)) for n in (1, 2, 3, 4)
    ),
    "det of each": lambda x: torch.stack([m.det() * m[:1, :1].det() for m in matrices(x)]),
    "cholesky": lambda x: torch.linalg.cholesky(definite(x)),
    "cholesky of more dimensions": lambda x: torch.linalg.cholesky(torch.stack([definite(x), definite(x.cos())], 1)),
    "cholesky, upper": lambda x: torch.linalg.cholesky_ex(definite(x), upper=True),
    "cholesky_solve": lambda x: torch.cholesky_solve(x.sin()[..., None], torch.linalg.cholesky(definite(x))),
    "cholesky_inverse": lambda x: torch.cholesky_inverse(torch.linalg.cholesky(definite(x), upper=True), upper=True),
    "solve_triangular": lambda x: torch.linalg.solve_triangular(matrices(x), x.sin()[..., None], upper=False),
    "solve_triangular of either half": lambda x: (
        torch.linalg.solve_triangular(matrices(x), last(3, 2).to(x), upper=False, unitriangular=True)
        * torch.linalg.solve_triangular(matrices(x), x.sin()[..., None], upper=True)
        + torch.linalg.solve_triangular(matrices(last(2, 3).to(x))[:1], matrices(x)[..., :2], upper=True)
    ),
    "solve_triangular, unit, from the right": lambda x: torch.linalg.solve_triangular(
        matrices(x), matrices(x.cos())[:, :2], upper=True, left=False, unitriangular=True
    ),
    "eigvalsh": lambda x: torch.linalg.eigvalsh(
        definite(x) @ torch.diag(last(3)).to(x) + torch.diag(last(3)).to(x) @ definite(x)
    ),
    "eigh": lambda x: (lambda e: (e[0], e[1] * e[1][:, :1]))(torch.linalg.eigh(definite(x), "U")),
    "matrix_exp": lambda x: torch.linalg.matrix_exp(matrices(x) / 2),
    "matrix_power": lambda x: (torch.linalg.matrix_power(matrices(x), 5), matrices(x).matrix_power(-2)),
    "pinv": lambda x: torch.linalg.pinv(matrices(x)[..., :2]) @ torch.linalg.pinv(matrices(x)[:, :2]),
    "multi_dot": lambda x: torch.stack([torch.linalg.multi_dot([m, m.sin(), m.cos()]) for m in matrices(x)]),
    "einsum of three": lambda x: torch.einsum("ni,nij,nj->ni", x.sin(), matrices(x), x.cos()),
    "bilinear": lambda x: F.bilinear(x.sin(), x.cos(), last(2, 3, 3).to(x), last(2).to(x)),
}


@pytest.mark.filterwarnings("error:torchad_ext.laplacian")
@pytest.mark.parametrize("name", LINALG)
class TestLinearAlgebra:
    def test_is_the_trace_of_the_hessian(self, name: str, device: str) -> None:
        f, x = of_parts(LINALG[name]), points(device)
        for g in (f, lambda x: f(x + 0.1 * x.sin()).sin()):
            C = coefficients("indefinite of each point", x)
            assert_close((laplacian(g, x), laplacian(g, x, C)), of_nested(g, x, C))
            with torch.no_grad():
                evaluated = laplacian(g, x), laplacian(g, x, C)
            assert_close(evaluated, (laplacian(g, x), laplacian(g, x, C)))

    def test_negative_coefficients(self, name: str, device: str) -> None:
        f, x = of_parts(LINALG[name]), points(device)
        assert_close(laplacian(f, x, coefficients("negative", x)), -laplacian(f, x))

    def test_gradients(self, name: str, device: str) -> None:
        f, p = of_parts(LINALG[name]), torch.ones(3, dtype=D, device=device).requires_grad_()
        x = points(device, 2, 3).requires_grad_()
        assert gradcheck(lambda x, p: laplacian(lambda x: f(x * p), x), (x, p), fast_mode=True)

    def test_transforms(self, name: str, device: str) -> None:
        f, x = of_parts(LINALG[name]), points(device)
        if name in ("det", "det of more dimensions"):  # which may be singular, in numbers that nobody knows
            warnings.filterwarnings("ignore", "torchad_ext.laplacian")
        assert_close(vmap(lambda point: laplacian(lambda y: f(y[None])[0], point))(x), laplacian(f, x))
        x = x[:1].requires_grad_()
        (expected,) = grad(laplacian(f, x).sum(), x)
        for transform in (torch.func.grad, torch.func.jacfwd):
            assert_close(transform(lambda x: laplacian(f, x).sum())(x.detach()), expected)


def of_nested(f: Function, x: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Laplacians without and with coefficients by gradients of gradients: ``torch.func`` is wrong in ``solve``."""
    x = x.detach().requires_grad_()
    traces = []
    for y in f(x).unbind(-1):
        slope = grad(y.sum(), x, create_graph=True, materialize_grads=True)[0] + 0 * x
        H = torch.stack([grad(s.sum(), x, retain_graph=True)[0] for s in slope.unbind(-1)], -1)
        traces.append((H.diagonal(dim1=-2, dim2=-1).sum(-1), (H * C).sum((-2, -1))))
    plain, weighted = zip(*traces, strict=True)
    return torch.stack(plain, -1), torch.stack(weighted, -1)


@pytest.mark.filterwarnings("error:torchad_ext.laplacian")
@pytest.mark.parametrize(
    "name", ["inv", "solve", "slogdet", "det", "cholesky", "eigvalsh", "eigh", "matrix_exp", "pinv"]
)
def test_bilaplacian(name: str, device: str) -> None:
    x = points(device, 2, 3)
    f = lambda x: of_parts(LINALG[name])(x).sum(-1)  # noqa: E731
    assert_close(bilaplacian(f, x), by_autograd(lambda x: laplacian(f, x), x))


TIES: dict[str, Function] = {
    "amax": lambda x: x.amax(-1),
    "amin of two dimensions": lambda x: x.reshape(2, 2, 2).amin((0, 2)),
    "max": lambda x: x.max()[None],
    "max of a dimension": lambda x: x.max(-1)[0],
    "median": lambda x: torch.stack([x.median(), x.nanmedian()]),
    "median of a dimension": lambda x: x.median(-1, keepdim=True)[0].flatten(),
    "aminmax": lambda x: torch.cat(torch.aminmax(x, dim=1)),
    "topk": lambda x: x.topk(2)[0].flatten(),
    "sort": lambda x: x.sort(-1, descending=True)[0].flatten(),
    "mode": lambda x: x.mode(-1)[0],
    "kthvalue": lambda x: x.kthvalue(2, -1)[0],
    "cummax": lambda x: x.cummax(-1)[0].flatten(),
    "max_pool1d": lambda x: F.max_pool1d(x[None], 2, 1)[0].flatten(),
    "adaptive_max_pool1d": lambda x: F.adaptive_max_pool1d(x[None], 2, True)[0].flatten(),
    "infinite norm": lambda x: torch.linalg.vector_norm(x, inf, dim=-1),
    "norm of columns": lambda x: torch.linalg.matrix_norm(x, 1)[None],
    "fmax": lambda x: torch.fmax(x[:, 0], x[:, 1]),
    "l1": lambda x: F.l1_loss(x, x.detach(), reduction="none").flatten(),
    "mse": lambda x: F.mse_loss(x, x.detach(), reduction="sum")[None],
    "hinge": lambda x: F.hinge_embedding_loss(x, x.detach().sign(), margin=2, reduction="none").flatten(),
    "ranking": lambda x: F.margin_ranking_loss(x, x.flip(1), x.detach().sign(), reduction="none").flatten(),
    "prelu": lambda x: F.prelu(x - 1, torch.full((1,), 0.3, dtype=D)).flatten(),
    "cumprod of zeros": lambda x: (x * (x.detach() != 1)).cumprod(-1).flatten(),
    "prod of zeros": lambda x: torch.cat([(x * (x.detach() != 1)).prod(-1), (x * (x.detach() != 1)).prod()[None]]),
    "logsumexp of nothing": lambda x: torch.logsumexp(x.masked_fill(x.detach()[:, :1] > 1, -torch.inf), -1),
    "logcumsumexp of nothing": lambda x: x.masked_fill(x.detach() > 1, -torch.inf).logcumsumexp(-1).exp().flatten(),
    "det of a singular matrix": lambda x: torch.linalg.det(x[:, :2] * x.detach()[:, 2:].abs())[None],
}


def of_each_reduction(loss: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    return torch.cat([loss(*args, reduction=r, **kwargs).flatten() for r in ("none", "mean", "sum")])


CLASSES, WEIGHTS = torch.tensor([3, 1]), torch.tensor([0.3, 1.7, 0.9, 2.1], dtype=D)
TARGETS = WEIGHTS.expand(2, 4)
ERRORS = torch.tensor([0.5, 2, -2, 3])
PLACES = torch.tensor([[1, 0], [0, -100]])  # the last one is ignored
LOSSES: dict[str, Function] = {
    "huber": lambda x: of_each_reduction(F.huber_loss, x, x.detach() - ERRORS, delta=2.0),
    "smooth l1": lambda x: of_each_reduction(F.smooth_l1_loss, x, x.detach() - ERRORS, beta=2.0),
    "smooth l1 at 0": lambda x: F.smooth_l1_loss(x, x.detach(), reduction="none").flatten(),
    "smoothed classes": lambda x: of_each_reduction(F.cross_entropy, x, CLASSES, label_smoothing=0.3),
    "smoothed classes with weights": lambda x: of_each_reduction(
        F.cross_entropy, x, CLASSES, WEIGHTS, label_smoothing=0.3, ignore_index=1
    ),
    "classes of places": lambda x: of_each_reduction(
        F.cross_entropy, x.reshape(2, 2, 2), PLACES, WEIGHTS[:2], label_smoothing=0.3
    ),
    "scores of places, of one and of one class": lambda x: torch.cat(
        [
            of_each_reduction(F.nll_loss, x.reshape(2, 2, 2), PLACES, WEIGHTS[:2]),
            F.nll_loss(x.flatten(), torch.tensor(5))[None],
            of_each_reduction(F.nll_loss, x.reshape(8, 1), torch.tensor([0] * 7 + [-100])),
        ]
    ),
    "entropies with weights": lambda x: torch.cat(
        [
            of_each_reduction(F.binary_cross_entropy, x.sigmoid(), TARGETS / 3, WEIGHTS),
            of_each_reduction(F.binary_cross_entropy_with_logits, x, TARGETS / 3, WEIGHTS, pos_weight=WEIGHTS.flip(0)),
        ]
    ),
    "divergence of logarithms": lambda x: of_each_reduction(F.kl_div, x, TARGETS, log_target=True),
    "cosines with a margin": lambda x: of_each_reduction(
        F.cosine_embedding_loss, x, x.flip(1).cos(), torch.tensor([-1, -1]), margin=0.3
    ),
    "one class": lambda x: F.cross_entropy(x.flatten(), torch.tensor(5), label_smoothing=0.3),
    "probabilities": lambda x: of_each_reduction(F.cross_entropy, x, WEIGHTS * CLASSES[:, None]),
    "smoothed probabilities with weights": lambda x: of_each_reduction(
        F.cross_entropy, x, WEIGHTS * CLASSES[:, None], WEIGHTS, label_smoothing=0.3
    ),
    "probabilities of places": lambda x: of_each_reduction(
        F.cross_entropy, x.reshape(2, 2, 2), (WEIGHTS * CLASSES[:, None]).reshape(2, 2, 2), WEIGHTS[:2]
    ),
    "one of probabilities": lambda x: F.cross_entropy(x.flatten(), torch.arange(8).to(D)),
    "poisson": lambda x: torch.cat(
        [
            of_each_reduction(F.poisson_nll_loss, x + 3, WEIGHTS + 0.1 * (i - 1), log_input=log, full=full, eps=0.1)
            for i, (log, full) in enumerate(itertools.product((False, True), repeat=2))
        ]
    ),
    "poisson at 1": lambda x: F.poisson_nll_loss(x, torch.ones(4, dtype=D), full=True),
    "triplets": lambda x: torch.cat(
        [
            of_each_reduction(F.triplet_margin_loss, x, x.sin(), x.flip(1).cos(), margin=margin, p=p, swap=swap)
            for margin, p, swap in ((2.5, 2.0, True), (1.4, 2.0, False), (2.5, 3.0, False), (2.5, 3.0, True))
        ]
    ),
    "cosines of tiny vectors": lambda x: of_each_reduction(
        F.cosine_embedding_loss, 1e-6 * x, 1e-6 * x.flip(1).cos(), torch.tensor([1, -1])
    ),
    "targets of no class": lambda x: torch.cat(
        [
            F.hinge_embedding_loss(x, torch.tensor([2, 1, -1, 0]), reduction="none").flatten(),
            F.hinge_embedding_loss(x, torch.tensor([-2, 1, -1, 0]), reduction="none").flatten(),
            F.cosine_embedding_loss(x, x.flip(1).cos(), torch.tensor([2, -2]), reduction="none"),
        ]
    ),
    "operators with their defaults": lambda x: torch.stack(
        [
            aten.nll_loss_nd(x.reshape(4, 2), torch.tensor([-100, 1, 0, 1])),
            aten.cross_entropy_loss(x.reshape(4, 2), torch.tensor([-100, 1, 0, 1])),
            aten.binary_cross_entropy(x.sigmoid(), TARGETS / 3),
            aten.binary_cross_entropy_with_logits(x, TARGETS),
            aten.kl_div(x, TARGETS),
            aten.mse_loss(x, TARGETS),
            aten.l1_loss(x, TARGETS),
            aten.smooth_l1_loss(x, TARGETS),
            aten.huber_loss(x, TARGETS),
            aten.margin_ranking_loss(x, x.flip(1).sin(), CLASSES[:, None]),
            aten.hinge_embedding_loss(x / 3, CLASSES[:, None] - 2),
            aten.cosine_embedding_loss(x, x.flip(1).cos(), torch.tensor([1, -1])),
            aten.triplet_margin_loss(x.cos(), x, x.sin()),
        ]
    ),
}


@pytest.mark.filterwarnings("error:torchad_ext.laplacian")
@pytest.mark.parametrize("name", TIES | LOSSES)
def test_kinks_ties_and_losses_are_those_of_pytorch(name: str) -> None:
    """Of numbers of which many are equal, or at a kink."""
    numbers = torch.tensor([[2.0, 2, 1, 1], [1, 1, 2, -1]], dtype=D)

    def f(x: Tensor) -> Tensor:
        return (TIES | LOSSES)[name](numbers + 0.1 * (MIXING[:8] @ (x.sin() - AT.sin())).reshape(2, 4))

    x = AT.clone().requires_grad_()
    w = torch.arange(f(x).numel(), dtype=D).add(0.3).cos()
    value, _, curvature = ad.forward_laplacian(f, x)
    assert_close((value, (w * curvature).sum()), nested(f, x, w))


@pytest.mark.parametrize("loss", [F.nll_loss, F.cross_entropy])
@pytest.mark.parametrize(("weight", "ignored"), [(2.1, 3), (2.1, 0), (0.0, 3), (0.0, 0)])
@pytest.mark.parametrize("least", [-1.0, -inf])
def test_classes_without_weight_or_probability(loss: Function, weight: float, ignored: int, least: float) -> None:
    """0 where they are ignored, and nan where PyTorch's are."""
    weights = torch.tensor([0.3, 1.7, 0.9, weight], dtype=D)
    numbers = torch.tensor([[2.0, 2, 1, least], [1, 1, 2, -1]], dtype=D)

    def f(x: Tensor) -> Tensor:
        scores = numbers + 0.1 * (MIXING[:8] @ (x.sin() - AT.sin())).reshape(2, 4)
        return torch.cat([of_each_reduction(loss, scores, CLASSES, w, ignore_index=ignored) for w in (None, weights)])

    value, _, curvature = ad.forward_laplacian(f, AT)
    expected = torch.func.hessian(f)(AT).diagonal(dim1=1, dim2=2).sum(-1)
    assert_close((value, curvature), (f(AT), expected), equal_nan=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("target", [None, CLASSES, TARGETS])
def test_logarithms_of_probabilities_keep_their_digits_far_from_zero(target: Tensor | None, smoothing: float) -> None:
    def f(x: Tensor) -> Tensor:
        x = x.reshape(2, 4)
        return F.log_softmax(x, -1) if target is None else F.cross_entropy(x, target, label_smoothing=smoothing)

    x = torch.arange(8, dtype=D).square() % 5
    for at in (2.0**30, -(2.0**30)):
        value, _, curvature = ad.forward_laplacian(f, x + at)
        assert_close(value, f(x), rtol=1e-14, atol=0)
        assert_close(curvature, ad.forward_laplacian(f, x).laplacian, rtol=1e-14, atol=0)


@pytest.mark.skipif("weight" not in signature(F.l1_loss).parameters, reason="this PyTorch has no weights there")
def test_the_weights_of_absolute_errors_count() -> None:
    """PyTorch hands them to no mode and no subclass."""
    f = lambda x: F.l1_loss(x.sin(), 0 * x, weight=x.roll(1), reduction="sum")  # noqa: E731
    x = torch.tensor([1.0, 2, -0.5, 0.3, 4], dtype=D)
    H = torch.func.hessian(f)(x)
    assert_close(ad.jacobian(f, x), torch.func.grad(f)(x))
    assert_close(ad.laplacian(f, x), H.trace())
    assert_close(ad.partials(f, x, [(0, 1)])[0], H[0, 1])
    assert_close(ad.hessian(f, x), H)
    assert_close(ad.hessian(f, x, sparsity="auto").to_dense(), H)
    assert torch.equal(ad.hessian_sparsity(f, x).to_dense() | torch.eye(5, dtype=torch.bool), (H != 0) | H.isnan())


@pytest.mark.parametrize("p", [0, 1])
def test_the_entropy_of_certainty_is_bounded_as_in_pytorch(p: int) -> None:
    f = lambda x: F.binary_cross_entropy((p - (x - AT).square()).abs(), torch.full((3,), 0.3, dtype=D))  # noqa: E731
    x = AT.clone().requires_grad_()
    with pytest.warns(UserWarning, match="no rule for binary_cross_entropy"):
        value, _, curvature = ad.forward_laplacian(f, x)
    assert_close((value, curvature), nested(f, x, torch.ones((), dtype=D)))


ADDED_TO_ALL: dict[str, Callable[[Tensor, float], Tensor]] = {
    "softmax": lambda x, c: F.softmax(x.sin() + c, -1),
    "log_softmax": lambda x, c: F.log_softmax(x.sin() + c, -1),
    "logsumexp": lambda x, c: torch.logsumexp(x.sin() + c, -1) - c,
    "attention": lambda x, c: F.scaled_dot_product_attention(
        x.sin()[:, None], x.cos()[:, None], x[:, None], torch.tensor(c, dtype=D)
    ).flatten(1),
}


@pytest.mark.parametrize("name", ADDED_TO_ALL)
@pytest.mark.parametrize("c", [-1e3, 1e3])
def test_what_is_added_to_all_changes_no_share(name: str, c: float) -> None:
    f, x = ADDED_TO_ALL[name], points("cpu")
    assert_close(laplacian(lambda x: f(x, c), x), laplacian(lambda x: f(x, 0.0), x))


@pytest.mark.parametrize("function", [F.softmax, F.log_softmax])
def test_the_dtype_of_a_softmax_is_that_of_its_exponentials(function: Function) -> None:
    x = points("cpu").float()
    actual = ad.forward_laplacian(lambda x: function(x.sin(), -1, dtype=D), x)
    assert_close(actual, ad.forward_laplacian(lambda x: function(x.sin().to(D), -1), x))
    assert actual.value.dtype is D


@pytest.mark.parametrize(
    ("mask", "is_causal", "message"),
    [(torch.zeros(3, 3, dtype=D), True, "is_causal"), (torch.zeros(3, 3, dtype=torch.int64), False, "attn_mask dtype")],
)
@pytest.mark.parametrize("of", [laplacian, lambda f, x: ad.hvp(lambda x: f(x).sum(), x, x)], ids=["laplacian", "hvp"])
def test_masks_that_pytorch_refuses(mask: Tensor, is_causal: bool, message: str, of: Callable[..., Any]) -> None:
    def f(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*[x[:, :, None]] * 3, mask, is_causal=is_causal).flatten(1)

    with pytest.raises(RuntimeError, match=message):
        of(f, points("cpu"))


def test_several_queries_may_share_a_key(device: str) -> None:
    x = points(device, 6, 3)

    def attention(x: Tensor, **options: Any) -> Tensor:
        q = torch.stack([x.sin(), x.cos(), x, x.exp()], 1)
        k = torch.stack([x.cosh(), x.tanh()], 1)
        k = k if options else k.repeat_interleave(2, 1)
        return F.scaled_dot_product_attention(q.mT, k.mT, k.mT, **options).flatten(1)

    f = lambda x: attention(x.unsqueeze(1), enable_gqa=True)  # noqa: E731
    assert_close(laplacian(f, x), laplacian(lambda x: attention(x.unsqueeze(1)), x))


def test_attention_drops_some_shares() -> None:
    x = points("cpu")

    def shares(x: Tensor) -> Tensor:
        return (x.sin()[:, :, None] * x[:, None]).softmax(-1)

    torch.manual_seed(3)
    dropped = F.dropout(torch.ones_like(shares(x)))
    torch.manual_seed(3)
    f = lambda x: F.scaled_dot_product_attention(x.sin()[..., None], x[..., None], x.cos()[..., None], None, 0.5)  # noqa: E731
    assert_close(laplacian(f, x), laplacian(lambda x: (shares(x) * dropped) @ x.cos()[..., None], x))


def test_logsumexp_of_complex_numbers() -> None:
    z = lambda x: torch.complex(x, x.sin())  # noqa: E731
    x = points("cpu")
    assert_close(laplacian(lambda x: z(x).logsumexp(-1).real, x), laplacian(lambda x: z(x).exp().sum(-1).log().real, x))


@pytest.mark.filterwarnings("error:torchad_ext.laplacian")
@pytest.mark.parametrize("as_numbers", [False, True])
def test_attention_to_nothing_is_zero(as_numbers: bool, device: str) -> None:
    """... as in PyTorch, whose softmax of nothing is nan."""
    x, key = points(device, 2, 3), points(device, 4, 3).expand(2, 1, 4, 3)

    def attention(x: Tensor, mask: Tensor) -> Tensor:
        mask = torch.zeros_like(mask, dtype=D).masked_fill(~mask, -torch.inf) if as_numbers else mask
        return F.scaled_dot_product_attention(x.sin()[:, None, None], key, key, attn_mask=mask).sum((1, 2, 3))

    allowed = torch.tensor([True, False, True, True], device=device).expand(2, 1, 1, 4)
    nothing = allowed & torch.tensor([False, True], device=device).reshape(2, 1, 1, 1)
    expected = laplacian(lambda x: attention(x, allowed), x)
    assert expected.all()
    assert_close(laplacian(lambda x: attention(x, nothing), x), expected * torch.tensor([0, 1], device=device))


def test_the_tail_of_a_soft_margin_is_kept() -> None:
    x = torch.tensor([[25.0]], dtype=D)
    f = lambda x: F.soft_margin_loss(x, torch.ones_like(x))  # noqa: E731
    expected = x.sigmoid() * (-x).sigmoid()
    assert_close(ad.hessian(f, x).reshape(1, 1), expected, rtol=1e-4, atol=0)  # as of logsigmoid in PyTorch
    assert_close(laplacian(lambda x: f(x)[None], x).reshape(1, 1), expected, rtol=1e-12, atol=0)


FIRST = torch.zeros(4, 1, dtype=torch.long)
LATER = torch.tensor([[0, 2, 2]]).expand(4, 3)


def functions_of_matrices(A: Tensor) -> tuple[Tensor, ...]:
    """Functions of positive definite A."""
    L = torch.linalg.cholesky(A)
    solution = torch.linalg.solve(A, L) + torch.linalg.solve_triangular(L, A, upper=False)
    values, vectors = torch.linalg.eigh(A)
    return L, solution, values, vectors.square(), torch.linalg.eigvalsh(A), torch.linalg.pinv(A), torch.logdet(A)


OVERLOADS: dict[str, Function] = {
    "max.dim": lambda x: aten.max.dim(x.sin(), -1)[0],
    "prod.dim_int": lambda x: aten.prod.dim_int(x.sin(), -1),
    "cumprod": lambda x: aten.cumprod.default(x.sin(), 1),
    "max_pool1d": lambda x: aten.max_pool1d_with_indices.default(x.sin(), [2], [1])[0],
    "einsum": lambda x: aten.einsum.default("ni,nj->ni", [x.sin(), x.cos()]),
    "solve for one vector": lambda x: torch.linalg.solve(matrices(x), last(3)),
    "linalg_inv_ex": lambda x: aten.linalg_inv_ex.default(matrices(x))[0].flatten(1),
    "cholesky of another name": lambda x: torch.cholesky(definite(x), True) * torch.cholesky(definite(x.cos())).mT,
    "_linalg_slogdet": lambda x: torch.linalg.slogdet(A=matrices(x)).logabsdet,
    "index_fill with an integer": lambda x: x.sin().index_fill(1, torch.tensor([0]), torch.tensor(3)),
    "scatter with a number": lambda x: x.sin().scatter(1, torch.zeros(4, 1, dtype=torch.long), 2.5),
    "embedding": lambda x: F.embedding(torch.tensor([3, 0, 1, 2]), x.sin())[[1, 2, 3, 0]],
    "scatter of a part": lambda x: x.sin().scatter(1, FIRST[:, :1], x.cos()[:, :1]),
    "scatter of and into constants": lambda x: (
        x.sin().scatter(1, FIRST, last(4, 1)) * last(4, 3).scatter(1, FIRST, x[:, :1])
    ),
    "scatter_reduce of and into constants": lambda x: (
        x.sin().scatter_reduce(1, LATER, last(4, 3), "sum") * last(4, 3).scatter_reduce(1, LATER, x.cos(), "mean")
        + x.sin().scatter_reduce(1, LATER, last(4, 3), "mean", include_self=False)
    ),
    "extrema by index": lambda x: (
        x.sin().scatter_reduce(1, LATER, last(4, 3), "amax") * last(4, 3).scatter_reduce(1, LATER, x.cos(), "amin")
        + x.sin().index_reduce(1, LATER[0], x.cos(), "amax", include_self=False)
        + x.T.contiguous().index_reduce_(0, LATER[0], x.T.cos(), "amin").T
    ),
    "extrema by index that are equal": lambda x: x.scatter_reduce(1, LATER, x[:, :1].expand(4, 3), "amax"),
    "extrema of two": lambda x: torch.max(x.sin(), last(4, 3)) * torch.min(last(4, 3), x.cos()) + x.max(x.roll(1, 1)),
    "embedding by the operator": lambda x: torch.embedding(x.sin(), torch.arange(4)),
    "a convolution without a bias": lambda x: torch.conv1d(x.sin()[:, None], last(2, 1, 2)),
    "matrix_exp of more dimensions": lambda x: torch.linalg.matrix_exp(
        torch.stack([matrices(x), matrices(x.cos())], 1) / 2
    ),
    "matrices of more dimensions": lambda x: functions_of_matrices(torch.stack([definite(x), definite(x.cos())], 1)),
    "embedding with a padding": lambda x: (
        F.embedding(torch.arange(4), x.sin(), 1),
        torch.embedding(indices=torch.arange(4), weight=x.cos(), padding_idx=0),
    ),
    "softmax by the operators": lambda x: (
        aten._softmax.default(x.sin(), 1, False) * aten._log_softmax.default(x.cos(), -1, False)
    ),
    "convolution": lambda x: (
        aten.convolution.default(x.sin()[:, None], last(2, 1, 2), last(2), [1], [0], [1], False, [0], 1),
        aten.convolution.default(x.sin()[:, None], last(1, 2, 2), None, [2], [0], [1], True, [1], 1),
    ),
    "batch_norm by the operators": lambda x: (
        aten._native_batch_norm_legit_no_training.default(x.sin(), last(3), last(3), last(3), last(3), 0.1, 1e-5)[0],
        aten._native_batch_norm_legit.no_stats(x.sin()[None], None, None, True, 0.1, 1e-5)[0][0],
    ),
    "batch_norm of each point": lambda x: F.batch_norm(x.sin()[None], None, None, training=True)[0],
    "gammainc": lambda x: (
        torch.special.gammainc(last(3).exp(), x.exp()) * torch.special.gammaincc(last(3).exp(), x.cosh())
    ),
    "affine_grid": lambda x: F.affine_grid(x.sin()[:, :2, None] * x[:, None], [4, 1, 2, 2], align_corners=False),
    "constant_pad_nd": lambda x: aten.constant_pad_nd.default(x.sin(), [1, 0], 2.5).square(),
    "max_pool1d with names": lambda x: (
        F.max_pool1d(x.sin(), kernel_size=2, dilation=2),
        F.max_pool1d(x.sin(), 2, stride=1, padding=1, return_indices=True)[0],
        torch.max_pool1d(x.sin(), 2, ceil_mode=True),
    ),
    "adaptive_max_pool1d": lambda x: (
        torch.adaptive_max_pool1d(x.sin(), 2)[0],
        F.adaptive_max_pool1d(x.sin(), output_size=2),
        F.adaptive_max_pool1d(x.sin(), 2, return_indices=True)[0],
    ),
}


@pytest.mark.filterwarnings("error:torchad_ext.laplacian", "ignore:torch.cholesky is deprecated")
@pytest.mark.parametrize("name", OVERLOADS)
def test_calls(name: str) -> None:
    x = points("cpu")
    f = lambda x: of_parts(OVERLOADS[name])(x + 0.1 * x.sin()).sin()  # noqa: E731
    C = coefficients("indefinite of each point", x)
    assert_close((laplacian(f, x), laplacian(f, x, C)), of_nested(f, x, C))


NORMS_OF_A_BATCH: dict[str, Function] = {
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "native_batch_norm": lambda x: torch.native_batch_norm(x, None, None, None, None, True, 0, 1e-5)[0],
    "without statistics": lambda x: aten._native_batch_norm_legit.no_stats(x, None, None, True, 0.1, 0.0)[0],
}


@pytest.mark.parametrize("name", NORMS_OF_A_BATCH)
def test_batch_norm_in_training_is_refused_where_it_mixes_points(name: str) -> None:
    def f(x: Tensor) -> Tensor:
        rows = x.sin().unsqueeze(-1) * last(4)
        return NORMS_OF_A_BATCH[name](rows.reshape(-1, 2)).reshape(*x.shape[:-1], 12)

    x = points("cpu")
    for mixing in (f, NORMS_OF_A_BATCH[name]):
        with pytest.raises(ValueError, match="depend on all points"):
            laplacian(mixing, x[:2])
    with pytest.raises(ValueError, match="depend on all points"):
        laplacian(f, x[None])
    expected = torch.func.hessian(f)(x[0]).diagonal(dim1=-2, dim2=-1).sum(-1)
    assert_close(laplacian(f, x[0]), expected)
    assert_close(laplacian(f, x[:1]), expected.unsqueeze(0))


def test_batch_norm_in_training_mixes_nothing_where_there_are_no_points() -> None:
    x = points("cpu")[:0]
    assert_close(laplacian(NORMS_OF_A_BATCH["batch_norm"], x), x)


def test_the_logarithm_of_a_negative_determinant_has_no_slope() -> None:
    """As in PyTorch."""
    x = points("cpu")
    value, jacobian, curvature = ad.forward_laplacian(lambda x: torch.logdet(matrices(x)[:, [1, 0, 2]]), x)
    assert value.isnan().all() and not jacobian.any() and not curvature.any()


def test_the_logarithm_of_the_determinant_of_a_singular_matrix_is_minus_infinity() -> None:
    value = ad.forward_laplacian(lambda x: torch.logdet(0 * matrices(x)), points("cpu")).value
    assert_close(value, torch.full_like(value, -torch.inf))


@pytest.mark.filterwarnings("error:torchad_ext")
@pytest.mark.parametrize("n", [4, 5, 8])
class TestSingularMatrices:
    """They have no inverse, and PyTorch's second derivative of their determinants may be nan."""

    @staticmethod
    def of(n: int) -> tuple[Function, Function]:
        """Determinants of a matrix with a last column of zeros but for x_0 x_1, at points where that is 0 too."""
        B = torch.randn(n, n, dtype=D, generator=torch.Generator().manual_seed(0))

        def matrix(x: Tensor) -> Tensor:
            rows = B.to(x) * (1 + x.sin().sum(-1)[:, None, None])
            last = F.pad((x[:, 0] * x[:, 1])[:, None, None], (n - 1, 0, n - 1, 0))
            return F.pad(rows[:, :, :-1], (0, 1)) + last

        def expected(x: Tensor) -> Tensor:
            factor = (1 + x.sin().sum(-1)) ** (n - 1)
            result: Tensor = factor * x[:, 0] * x[:, 1] * torch.linalg.det(B[:-1, :-1]).to(x)
            return result

        return lambda x: torch.linalg.det(matrix(x)), expected

    @staticmethod
    def at(device: str) -> Tensor:
        x = points(device)
        x[:2, 0] = 0
        return x

    def test_laplacian(self, n: int, device: str) -> None:
        x, (f, expected) = self.at(device), self.of(n)
        assert_close(laplacian(f, x), by_autograd(expected, x))

    def test_under_vmap_where_nobody_knows_which_they_are(self, n: int, device: str) -> None:
        x, (f, expected) = self.at(device), self.of(n)
        y = vmap(lambda point: laplacian(lambda y: f(y[None])[0], point))(x)
        assert_close(y, by_autograd(expected, x))

    def test_of_rank_one(self, n: int, device: str) -> None:
        x = points(device)
        f = lambda x: torch.linalg.det(F.pad(x[:, :, None] * x[:, None], (0, n - 3, 0, n - 3)))  # noqa: E731
        assert_close(laplacian(f, x), torch.zeros(4).to(x))


@pytest.mark.filterwarnings("error:torchad_ext.laplacian")
@pytest.mark.parametrize(
    "f",
    [
        lambda z: torch.sort(z, stable=True, dim=1)[0],
        lambda z: torch.sort(z, dim=1, descending=True, stable=True).values,
        lambda z: torch.ops.aten.sort.stable(z, stable=True, dim=1, descending=False)[0],
        lambda z: torch.topk(z, k=2, dim=1, largest=False)[0],
        lambda z: torch.kthvalue(z, k=2, dim=1, keepdim=True)[0],
        lambda z: F.adaptive_max_pool1d(z, 2),
        lambda z: F.adaptive_max_pool1d(z, output_size=2, return_indices=False),
        lambda z: F.adaptive_max_pool2d(z[:, None], (2, 1)),
        lambda z: F.adaptive_max_pool1d(z, 2, return_indices=True)[0],
        lambda z: torch.adaptive_max_pool1d(z, 2)[0],
        lambda z: F.max_pool1d(z, 2, return_indices=True)[0],
    ],
)
def test_selections_by_the_names_of_their_arguments(f: Callable[[Tensor], Tensor]) -> None:
    """Each along another dimension than the last, with others behind it."""
    W = torch.randn(3, 12, dtype=D, generator=torch.Generator().manual_seed(0))
    of = lambda x: f((x.sin() @ W).reshape(-1, 3, 4)).sin().flatten(1).sum(-1)  # noqa: E731
    x = points("cpu")
    assert_close(laplacian(of, x), by_autograd(of, x))


def test_an_elementwise_operation_of_several_results() -> None:
    x = points("cpu").abs() + 0.3
    f = lambda x: (torch.frexp(x.sin())[0] ** 2).sum(-1)  # noqa: E731
    with pytest.warns(UserWarning, match="no rule for frexp"):
        assert_close(laplacian(f, x), by_autograd(f, x))


def test_a_singular_matrix_of_many_columns(device: str) -> None:
    """A matrix of 15 columns with the rank of some."""
    x = points(device)
    of = lambda x: matrices(x, 4).pow(2)  # noqa: E731
    f = lambda x: torch.linalg.det(F.pad(of(x), (0, 11, 0, 11)) + torch.diag(torch.tensor([0.0] * 4 + [1] * 11)).to(x))  # noqa: E731
    assert_close(laplacian(f, x), by_autograd(lambda x: torch.linalg.det(of(x)), x))
    dropped = lambda x: torch.linalg.det(F.pad(of(x), (0, 11, 0, 11)))  # noqa: E731
    assert_close(laplacian(dropped, x), torch.zeros(4).to(x))


def test_one_factorisation(device: str) -> None:
    """Tangents and Laplacian of a determinant take one inverse."""
    x, f = points(device), lambda x: torch.linalg.slogdet(matrices(x, 4))[1]
    with torch.no_grad(), profile() as profiler:
        laplacian(f, x)
    names = [event.name for event in profiler.events()]
    assert names.count("aten::linalg_inv_ex") == 1 and names.count("aten::bmm") <= 2


# Functions of PyTorch that share a name and not their arguments, as they are called: each has its own meaning.
NAMESAKES: dict[str, Callable[[Tensor], Any]] = {
    "vander": lambda x: (torch.vander(x), torch.vander(x, 4), torch.vander(x, increasing=True), torch.vander(x, N=2)),
    "linalg_vander": lambda x: (torch.linalg.vander(x), torch.linalg.vander(x=x, N=5)),
    "cross": lambda x: torch.cross(torch.outer(x, x), torch.outer(x.sin(), x.cos()), dim=0),
    "linalg_cross": lambda x: torch.linalg.cross(torch.outer(x, x.exp()), torch.outer(x.sin(), x.cos())),
    "diagonal": lambda x: (torch.diagonal(x * x[:, None] * x[:, None, None]), torch.outer(x, x).diagonal(1)),
    "linalg_diagonal": lambda x: torch.linalg.diagonal(x * x[:, None] * x[:, None, None].sin(), offset=-1),
    "cholesky": lambda x: torch.cholesky(torch.outer(x, x) + 3 * torch.eye(3, dtype=D), True),
    "linalg_cholesky": lambda x: torch.linalg.cholesky(torch.outer(x, x) + 3 * torch.eye(3, dtype=D), upper=True),
    "log_softmax": lambda x: torch.log_softmax(torch.outer(x, x), 0, D),
    "special_log_softmax": lambda x: torch.special.log_softmax(torch.outer(x, x), 0, dtype=D),
    "round": lambda x: torch.round(x, decimals=1) * x,
    "special_round": lambda x: torch.special.round(x, decimals=1) * x,
}
SPACES = (torch, torch.linalg, torch.special, torch.nn.functional, Tensor, torch._C._nn)


def arguments_of(func: Any) -> list[Any]:
    """The arguments of each overload, but for those of named dimensions; the first ones have several names."""
    first = {"self": "input", "A": "input", "x": "input"}
    overloads = []
    for schema in schemas(func.__name__):
        if "name" in schema.overload_name.lower():
            continue
        if not any(a.is_out for a in schema.arguments) and any("Tensor" in str(a.type) for a in schema.arguments):
            overloads.append(
                [(first.get(a.name, a.name), str(a.type), a.default_value, a.kwarg_only) for a in schema.arguments]
            )
    return sorted(overloads, key=str)


def test_functions_of_one_name_have_one_meaning() -> None:
    """What the tables know by its name has the same arguments in all of PyTorch's modules, or is among NAMESAKES."""
    by_name: dict[str, dict[str, Any]] = {}
    for space in SPACES:
        for name in dir(space):
            func = getattr(space, name)
            if not name.startswith("_") and callable(func) and hasattr(func, "__name__") and not is_python(func):
                by_name.setdefault(known_name(func), {})[func.__name__] = func
    known = {*rules.RULES, *rules.COMPOSITIONS, *CORRECTIONS, *FUNCTIONS} - {"norm"}
    differing = set()
    for name in known & by_name.keys():
        kinds = {key: arguments_of(func) for key, func in by_name[name].items()}
        kinds = {key: kind for key, kind in kinds.items() if kind}
        if len({str(kind) for kind in kinds.values()}) > 1:
            differing |= kinds.keys()
    assert differing <= NAMESAKES.keys()


@pytest.mark.filterwarnings("error:torchad_ext.laplacian", "ignore:torch.cholesky is deprecated")
@pytest.mark.parametrize("name", NAMESAKES)
def test_namesakes(name: str) -> None:
    def f(x: Tensor) -> Tensor:
        y = NAMESAKES[name](x)
        return torch.cat([part.flatten() for part in (y if isinstance(y, tuple) else (y,))])

    x = torch.tensor([0.7, 1.3, -0.4], dtype=D, requires_grad=True)
    value, _, curvature = ad.forward_laplacian(f, x)
    w = torch.arange(value.numel(), dtype=D).add(0.3).cos()
    assert_close((value, (w * curvature).sum()), (f(x), nested(f, x, w)[1]))


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "expm1", "tan", "atan", "asinh", "log1p", "rsqrt", "sqrt"])
@pytest.mark.parametrize("dtype", [torch.float32, D], ids=str)
def test_complex_numbers_far_from_zero(name: str, dtype: torch.dtype) -> None:
    """Second derivatives along the real line are numbers wherever the value is one, and right."""
    x = torch.tensor([-900.0, -420, -95, -60, -20, 0.2, 20, 60, 95, 420, 900], dtype=dtype)
    h = 1e-3

    def z(x: Tensor) -> Tensor:
        return torch.view_as_real(getattr(torch, name)(torch.complex(x, torch.full_like(x, 0.3))))

    x = x[z(x).isfinite().all(-1)]
    _, _, found = ad.forward_laplacian(z, x[:, None])
    at = x.double()[:, None]
    expected = (z(at + h) - 2 * z(at) + z(at - h)) / h**2
    assert ((found - expected).abs() <= 1e-3 * expected.abs() + 1e-5 * (1 + z(at).abs())).all()


@pytest.fixture
def _no_members() -> None:
    elementwise_rules._member.cache_clear()


@pytest.mark.usefixtures("_no_members")
class TestExponents:
    """A simple exponent has a kernel of a few products; others, which may change from step to step, share one."""

    @pytest.mark.parametrize(
        "f",
        [
            lambda x, k: x**k,
            lambda x, k: torch.pow(x, exponent=k),
            lambda x, k: torch.float_power(x, k),
            lambda x, k: k**x,
        ],
    )
    def test_one_kernel_for_all_that_are_not_simple(self, f: Callable[[Tensor, float], Tensor]) -> None:
        x = points("cpu").abs()
        known = 0
        for k in (1.7, 2.3, 0.123, 16.5, 40.0, 3.001):
            of = lambda x, k=k: f(x, k).sum(-1)  # noqa: E731
            assert_close(laplacian(of, x), by_autograd(of, x))
            assert_close(ad.partials(of, x, [ad.Sum("xx", "yy", "zz")], names="xyz")[0], by_autograd(of, x))
            now = elementwise_rules._member.cache_info().misses
            known = known or now
            assert now == known

    def test_simple_ones_have_their_own(self) -> None:
        x = points("cpu").abs()
        elementwise_rules._member.cache_clear()  # other tests have made some of them
        for k in (-3, -0.5, 2.5, 16, -16):
            of = lambda x, k=k: (x**k).sum(-1)  # noqa: E731
            assert_close(laplacian(of, x), by_autograd(of, x))
        assert elementwise_rules._member.cache_info().misses == 5
