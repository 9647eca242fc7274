"""Functions whose derivatives PyTorch has wrong at some arguments: this library's tools against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch
import torch.nn.functional as F
from mpmath import mp, mpf
from pytorch_derivatives import difference
from torch import Tensor, nn
from torch.autograd import grad
from torch.testing import assert_close

import torchad_ext as ad

pytestmark = pytest.mark.usefixtures("kernels_when_long")

D = torch.float64
Function = Callable[[Tensor], Tensor]
Number = Callable[[Any], Any]


def derivatives(f: Function, x: Tensor) -> list[Tensor]:
    """The first three of a function of elements, the second and the third by each tool."""
    s, ones = lambda x: f(x).sum(), torch.ones_like(x)
    x = x.clone().requires_grad_()
    seconds = [
        ad.hvp(s, x, ones),
        ad.hessian_diagonal(s, x),
        ad.hessian(s, x, strategy="forward-over-reverse").diagonal(),
        ad.jacobian(lambda x: ad.jacobian(s, x), x).diagonal(),
    ]
    firsts = [ad.jacobian(s, x), ad.jacobian(s, x, strategy="forward")]
    thirds = [grad(y.sum(), x, materialize_grads=True)[0] for y in (ad.hvp(s, x, ones), ad.hessian_diagonal(s, x))]
    return [torch.stack(ways).detach() for ways in (firsts, seconds, thirds)]


def exact(f: Number, x: Tensor) -> list[Tensor]:
    """The first three derivatives by differences in 120 digits."""
    with mp.workdps(120):
        h = mpf(10) ** -25
        rows = [[f(mpf(t) + k * h) for k in range(-2, 3)] for t in x.tolist()]
        slopes = [
            [
                float((d - b) / (2 * h)),
                float((d - 2 * c + b) / h**2),
                float((e - 2 * d + 2 * b - a) / (2 * h**3)),
            ]
            for a, b, c, d, e in rows
        ]
    return list(torch.tensor(slopes, dtype=D).T)


def log_one_plus_exp(x: Any) -> Any:
    return mp.log1p(mp.exp(x)) if x < 0 else x + mp.log1p(mp.exp(-x))


def log_of_normal(x: Any) -> Any:
    return mp.log(mp.erfc(-x / mp.sqrt(2)) / 2) if x < 5 else mp.log1p(-mp.erfc(x / mp.sqrt(2)) / 2)


def gelu_by_tanh(x: Any) -> Any:
    return x / (1 + mp.exp(-2 * mp.sqrt(2 / mp.pi) * (x + mpf("0.044715") * x**3)))


ZERO = lambda x: torch.zeros_like(x)  # noqa: E731
TABLE: dict[str, tuple[Function, Number]] = {
    "sinc": (torch.sinc, lambda x: mp.sin(mp.pi * x) / (mp.pi * x) if x else mpf(1)),
    "special.sinc": (torch.special.sinc, lambda x: mp.sin(mp.pi * x) / (mp.pi * x) if x else mpf(1)),
    "log_ndtr": (torch.special.log_ndtr, log_of_normal),
    "erfcx": (lambda x: torch.special.erfcx(x.abs()), lambda x: mp.exp(x * x) * mp.erfc(abs(x))),
    "mish": (F.mish, lambda x: x * mp.tanh(log_one_plus_exp(x))),
    "mish in place": (lambda x: F.mish(1 * x, inplace=True), lambda x: x * mp.tanh(log_one_plus_exp(x))),
    "logaddexp": (lambda x: torch.logaddexp(x, ZERO(x)), log_one_plus_exp),
    "logaddexp of 0": (lambda x: torch.logaddexp(ZERO(x[:1]), x), log_one_plus_exp),
    "logaddexp2": (lambda x: torch.logaddexp2(ZERO(x), x), lambda x: log_one_plus_exp(x * mp.log(2)) / mp.log(2)),
    "gelu": (nn.GELU(approximate="tanh"), gelu_by_tanh),
    "silu": (F.silu, lambda x: x / (1 + mp.exp(-x))),
    "softplus": (lambda x: F.softplus(x, 0.7, 40), lambda x: log_one_plus_exp(mpf(0.7) * x) / mpf(0.7)),
    "logsigmoid": (F.logsigmoid, lambda x: -log_one_plus_exp(-x)),
    "tanh": (torch.tanh, mp.tanh),
    "exact gelu": (F.gelu, lambda x: x * mp.erfc(-x / mp.sqrt(2)) / 2),
    "ldexp": (lambda x: torch.ldexp(x.tanh(), torch.tensor(-3)), lambda x: mp.tanh(x) / 8),
    "ldexp in place": (lambda x: (2 * x.tanh()).ldexp_(torch.tensor(-4)), lambda x: mp.tanh(x) / 8),
}
FAR = [-3e6, -1e4, -900.3, -400.7, -95.2, -45.1, -31.0, -16.4, 15.6, 30.8, 41.2, 89.5, 380.3, 801.1, 1e4, 3e6]
NEAR = [-7.3, -3.9, -1.2, -0.3, -1e-3, -1e-4, -1e-8, 0.0, 1e-12, 1e-5, 1e-4, 0.01, 0.2, 1.7, 2.6, 5.3, 8.8]


@pytest.mark.parametrize("dtype", [torch.float32, D], ids=str)
@pytest.mark.parametrize("name", TABLE)
def test_three_orders_in_the_middle_and_far_from_it(name: str, dtype: torch.dtype) -> None:
    f, number = TABLE[name]
    x = torch.tensor(sorted(FAR + [t for t in NEAR if t or name != "erfcx"]), dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    for order, (found, expected) in enumerate(zip(derivatives(f, x), exact(number, x), strict=True), 1):
        off = (found.double() - expected).abs() / (1 + expected.abs())
        wrong = ~(off <= tolerance)
        assert not wrong.any(), (order, x[wrong.any(0)].tolist(), found[:, wrong.any(0)], expected[wrong.any(0)])


@pytest.mark.parametrize("f", [torch.lgamma, torch.special.gammaln, lambda x: torch.mvlgamma(x, 1)])
def test_digits_of_the_trigamma_function(f: Function) -> None:
    x = torch.tensor([0.03, 0.7, 1.2, 2.3, 17.0], dtype=D)
    for found, k in zip(derivatives(f, x), (0, 1, 2), strict=True):
        expected = torch.tensor([float(mpmath.polygamma(k, t)) for t in x.tolist()], dtype=D)
        assert_close(found, expected.expand_as(found), rtol=1e-13, atol=1e-14)
    found = derivatives(torch.digamma, x)[0]
    assert_close(found, torch.special.zeta(torch.tensor(2.0, dtype=D), x).expand_as(found), rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, D], ids=str)
def test_a_power_of_two_may_overflow_where_the_product_does_not(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    n = round(math.log2(limits.max)) - 1
    x = torch.tensor([[limits.smallest_normal], [1.5], [limits.max]], dtype=dtype)
    exponents = torch.tensor([[2 * n], [-n], [-2 * n]])
    assert_close(ad.forward_laplacian(lambda x: torch.ldexp(x, exponents), x).value, torch.ldexp(x, exponents))


def written(write: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor, Tensor], Tensor]:
    def of(base: Tensor, exponent: Tensor) -> Tensor:
        y = base.clone()
        write(y, exponent)
        return y

    return of


POWERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "**": lambda b, p: b**p,
    "rpow": lambda b, p: p.__rpow__(b),
    "pow": torch.pow,
    "pow with names": lambda b, p: torch.pow(input=b, exponent=p),
    "method": lambda b, p: b.pow(p),
    "float_power": torch.float_power,
    "method float_power": lambda b, p: b.float_power(p),
    "aten": lambda b, p: torch.ops.aten.pow.Tensor_Tensor(b, p),
    "in place": written(lambda y, p: y.pow_(p)),
    "**=": written(lambda y, p: y.__ipow__(p)),
    "float_power in place": written(lambda y, p: y.float_power_(p)),
    "beside another exponent": lambda b, p: (F.pad(b, (0, 1), value=2) ** F.pad(p.expand(3), (0, 1), value=0.5))[:3],
    "complex": lambda b, p: (b.to(torch.complex128) ** p).real,
    "complex exponent": lambda b, p: (b ** torch.complex(p, 0 * p)).real,
    "a network's": lambda b, p: nn.Softplus()(b.expm1().log()) ** nn.Identity()(1 * p),
}
EXPONENTS = [0.0, 1.0, 2.0, -1.0, 0.5]


def along_line(f: Function, z: Tensor, v: Tensor) -> list[float]:
    """The first three derivatives of f along v, the second by each tool, which agree."""
    z = z.clone().requires_grad_()
    seconds = [
        ad.hvp(f, z, v) @ v,
        ad.vhp(f, z, v) @ v,
        v @ ad.hessian(f, z) @ v,
        v @ ad.hessian(f, z, strategy="forward-over-reverse") @ v,
        ad.jacobian(lambda z: ad.jacobian(f, z), z, strategy="forward") @ v @ v,
        ad.laplacian(f, z, torch.outer(v, v)),
    ]
    thirds = [grad(y, z, retain_graph=True)[0] @ v for y in seconds[:4]]
    for ways in (seconds, thirds):
        assert_close(torch.stack(ways), ways[0].expand(len(ways)), rtol=1e-10, atol=1e-10)
    return [float(ad.jacobian(f, z) @ v), float(seconds[0]), float(thirds[0])]


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("name", POWERS)
def test_a_power_whose_exponent_varies(name: str, exponent: float) -> None:
    """PyTorch's slope in the base is masked where the exponent is 0."""
    bases, v = [0.5, 2.0, 3.0], [0.3, -0.7, 1.1, 0.9]
    f = lambda z: POWERS[name](z[:3], z[3]).sum()  # noqa: E731

    def line(t: Any) -> Any:
        return sum((mpf(b) + t * mpf(u)) ** (mpf(exponent) + t * mpf(v[3])) for b, u in zip(bases, v[:3], strict=True))

    (expected,) = torch.stack(exact(line, torch.zeros(1)), 1)
    z = torch.tensor([*bases, exponent], dtype=D)
    assert_close(torch.tensor(along_line(f, z, torch.tensor(v, dtype=D))), expected.float(), rtol=1e-6, atol=1e-6)
    H = ad.hessian(f, z)
    assert_close(H, H.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, D], ids=str)
def test_powers_of_what_has_no_logarithm(dtype: torch.dtype) -> None:
    """Bases of 0, of less, of all sizes and nan with exponents that vary: values and first derivatives are PyTorch's,
    the second ones too but for those in both."""
    bases = torch.tensor([0.0, -0.0, -2.0, 1e-40, 1e-30, 1e30, math.inf, -math.inf, math.nan, 1.0, 7.0], dtype=dtype)
    exponents = torch.tensor([0.0, 1.0, 2.0, -1.0, -2.0, 0.5, 3.0, math.inf, math.nan], dtype=dtype)
    b, p = (x.flatten().clone().requires_grad_() for x in torch.meshgrid(bases, exponents, indexing="ij"))
    seen: list[Tensor] = []
    slopes = ad.jacobian(lambda x: seen.append(x[0] ** x[1]) or seen[0].sum(), (b, p))  # type: ignore[func-returns-value]
    assert_close(seen[0].detach(), (b**p).detach(), rtol=0, atol=0, equal_nan=True)
    theirs = grad((b**p).sum(), (b, p), create_graph=True)
    assert_close(slopes, tuple(y.detach() for y in theirs), rtol=1e-6, atol=0, equal_nan=True)
    in_base, in_exponent = lambda x: (x**p).sum(), lambda x: (b**x).sum()
    for of, x, slope in ((in_base, b, theirs[0]), (in_exponent, p, theirs[1])):
        (second,) = grad(slope.sum(), x, retain_graph=True)
        known = ~second.isnan()
        assert_close(ad.hvp(of, x, torch.ones_like(x)).detach()[known], second[known], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "name", [name for name in POWERS if name not in ("complex", "complex exponent", "a network's")]
)
def test_powers_of_0_whose_exponents_vary(name: str) -> None:
    """0^p is 0 for all p above 0; beside others, and with a base that varies as well."""
    bases, p = torch.tensor([0.0, 0.0, 2.0], dtype=D), torch.tensor([0.7, 2.0, 0.4], dtype=D)
    log = math.log(2)
    expected = torch.tensor([0, 0, 2**0.4 * log**2], dtype=D), torch.tensor([0, 0, 2**0.4 * log**3], dtype=D)
    firsts, seconds, thirds = derivatives(lambda p: POWERS[name](bases, p), p)
    for found, wanted in ((seconds, expected[0]), (thirds, expected[1])):
        assert_close(found, wanted.expand_as(found))
    assert_close(firsts, (bases**p * torch.tensor([0, 0, log])).expand_as(firsts))
    f = lambda z: POWERS[name](z[:3], z[3:]).sum()  # noqa: E731
    H = ad.hessian(f, torch.tensor([0.0, 0.0, 0.0, 2.0, 3.2, 4.0], dtype=D))
    assert_close(H, torch.diag(torch.tensor([2.0, 0.0, 0.0, 0.0, 0.0, 0.0], dtype=D)))


def test_training_an_exponent_through_second_derivatives() -> None:
    """A parameter that starts at 0, against differences of the loss."""
    x = torch.tensor([0.4, 1.3, 2.2], dtype=D)
    p = torch.zeros((), dtype=D, requires_grad=True)
    loss: dict[str, Callable[[Tensor], Tensor]] = {
        "hvp": lambda p: ad.hvp(lambda x: (x**p).sum(), x, x).sin().sum(),
        "hessian_diagonal": lambda p: ad.hessian_diagonal(lambda x: (x**p).sum(), x).sin().sum(),
        "pytree": lambda p: ad.hessian(lambda z: (z["x"] ** z["p"]).sum(), {"x": x, "p": p})["p"]["x"].sin().sum(),
        "batch": lambda p: torch.func.vmap(lambda x: ad.hvp(lambda x: x**p, x, x))(x).sin().sum(),
        "laplacian": lambda p: ad.laplacian(lambda x: (x**p).sum(), x).sin(),
    }
    for name, of in loss.items():
        (found,) = grad(of(p), p)
        expected, error = difference(lambda h, of=of: float(of(torch.tensor(h, dtype=D, requires_grad=True))))  # type: ignore[misc]
        assert abs(found.item() - expected) < 1e-7 + 10 * error, name


def test_a_radius_that_is_negative() -> None:
    x = torch.tensor([[-1.0, 0.4], [0.0, 0.7], [-3.0, 0.0], [2.0, -1.0]], dtype=D)
    for part, factor in (("real", torch.cos), ("imag", torch.sin)):
        f = lambda x, part=part: getattr(torch.polar(x[:, 0], x[:, 1]), part).sum()  # noqa: E731
        g = lambda x, factor=factor: (x[:, 0] * factor(x[:, 1])).sum()  # noqa: E731
        for of in (
            ad.jacobian,
            ad.hessian,
            lambda f, x: ad.hvp(f, x, x),
            lambda f, x: ad.jacobian(f, x, strategy="forward"),
        ):
            assert_close(of(f, x), of(g, x))


def test_a_variance_below_its_bound() -> None:
    """The slope is that of the function's own value."""
    f = lambda x: F.gaussian_nll_loss(x[:1], x[1:2], x[2:] ** 2, reduction="sum", eps=1e-2)  # noqa: E731
    for third, slope in ((0.05, 0.0), (0.3, None)):
        x = torch.tensor([0.3, -0.1, third], dtype=D)
        J = ad.jacobian(f, x)
        for i, direction in enumerate(torch.eye(3, dtype=D)):
            expected, error = difference(lambda h, x=x, u=direction: float(f(x + h * u)), 1e-3)  # type: ignore[misc]
            assert abs(J[i] - expected) < 1e-8 + 10 * error
        assert slope is None or J[2] == slope
        H = ad.hessian(f, x)
        assert_close(ad.jacobian(lambda x: ad.jacobian(f, x, strategy="forward"), x), H)
        assert_close(ad.laplacian(f, x), H.trace())
    with pytest.raises(ValueError, match="negative"):
        ad.jacobian(lambda x: F.gaussian_nll_loss(x, x, x - 2), torch.ones(2))
    assert ad.jacobian(lambda x: F.gaussian_nll_loss(x, 0 * x, 0.5, True, 1e-6, "sum"), torch.ones(1)) == 2


A = 0.7  # float32 has another number
AT = torch.tensor([-2.3, -0.9, -0.31, 0.2, 0.55, 1.7], dtype=D)
OTHER = torch.tensor([0.3, 0.1, -0.2, 0.4, 1.9, 0.6], dtype=D)
PAIRS = OTHER.reshape(2, 3)
WITH_NUMBERS: dict[str, Function] = {
    "celu": lambda x: F.celu(x, A),
    "CELU": nn.CELU(A),
    "celu in place": lambda x: F.celu(1 * x, A, inplace=True),
    "torch.celu": lambda x: torch.celu(x, alpha=A),
    "celu_": lambda x: torch.celu_(1 * x, A),
    "elu": lambda x: F.elu(x, A),
    "selu": F.selu,
    "leaky_relu": lambda x: F.leaky_relu(x, A),
    "rrelu": lambda x: F.rrelu(x, A, A),
    "hardtanh": lambda x: F.hardtanh(x, -A, A),
    "threshold": lambda x: F.threshold(x, A, 0.3),
    "softplus": lambda x: F.softplus(x, A),
    "softplus beyond its threshold": lambda x: F.softplus(x, A, 0.6),
    "softshrink": lambda x: F.softshrink(x, A),
    "hardshrink": lambda x: F.hardshrink(x, A),
    "huber": lambda x: F.huber_loss(x, OTHER, reduction="none", delta=A),
    "smooth_l1": lambda x: F.smooth_l1_loss(x, OTHER, reduction="none", beta=A),
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "logit": lambda x: torch.logit(x.sigmoid(), 0.07),
    "pow": lambda x: x.abs() ** A,
    "rpow": lambda x: A**x,
    "float_power": lambda x: torch.float_power(x.abs(), A),
    "xlogy": lambda x: torch.xlogy(A, x.abs()) + torch.special.xlog1py(x, A),
    "zeta": lambda x: torch.special.zeta(2.7, x.abs()),
    "lerp": lambda x: torch.lerp(x.sin(), x * x, A),
    "add": lambda x: torch.add(x.sin(), x.cos(), alpha=A),
    "addcmul": lambda x: torch.addcmul(x, x, OTHER, value=A) + torch.addcdiv(x, x.sin(), OTHER, value=A),
    "quotients": lambda x: x / A + A / x + x.remainder(A),
    "clamp": lambda x: x.clamp(-A, A),
    "vector_norm": lambda x: torch.linalg.vector_norm(x, 2.7)[None],
    "cdist": lambda x: torch.cdist(x[:3, None], x[3:, None].sin(), 2.7),
    "dist": lambda x: torch.dist(x, OTHER, 2.7)[None],
    "renorm": lambda x: torch.renorm(x.reshape(2, 3), 2.7, 0, A),
    "normalize": lambda x: F.normalize(x.reshape(2, 3), 2.7, eps=A),
    "lp_pool1d": lambda x: F.lp_pool1d(x.abs().reshape(1, 1, 6), 2.7, 2),
    "pairwise_distance": lambda x: F.pairwise_distance(x.reshape(2, 3), PAIRS, 2.7, A),
    "triplet": lambda x: F.triplet_margin_loss(x.reshape(2, 3), PAIRS, PAIRS * 0.3, 5 + A, 2.7, A, reduction="none"),
    "multi_margin": lambda x: F.multi_margin_loss(x.reshape(2, 3), torch.tensor([0, 2]), 2, A, reduction="none"),
    "hinge": lambda x: F.hinge_embedding_loss(x, torch.tensor([1.0, -1] * 3, dtype=D), A, reduction="none"),
    "poisson": lambda x: F.poisson_nll_loss(x.abs(), OTHER, log_input=False, eps=A, reduction="none"),
    "cross_entropy": lambda x: F.cross_entropy(x.reshape(2, 3), torch.tensor([0, 2]), label_smoothing=A)[None],
    "layer_norm": lambda x: F.layer_norm(x, (6,), eps=A),
    "rms_norm": lambda x: F.rms_norm(x, (6,), eps=A),
    "group_norm": lambda x: F.group_norm(x.reshape(1, 6), 2, eps=A),
    "batch_norm": lambda x: F.batch_norm(x.reshape(3, 2), OTHER[:2], OTHER[3:5], eps=A),
    "local_response_norm": lambda x: F.local_response_norm(x.reshape(1, 6, 1), 3, A, A),
    "cosine_similarity": lambda x: F.cosine_similarity(x.reshape(2, 3), PAIRS, eps=A),
    "quantile": lambda x: torch.quantile(x, A)[None],
    "addmm": lambda x: torch.addmm(x.reshape(2, 3), x.reshape(2, 3), PAIRS.T @ PAIRS, beta=A, alpha=A),
    "attention": lambda x: F.scaled_dot_product_attention(x.view(2, 3), PAIRS, x.sin().view(2, 3), scale=A),
    "variance": lambda x: torch.stack([x.var(correction=A), x.std(correction=A)]),
    "trapezoid": lambda x: torch.cat([torch.trapezoid(x, dx=A)[None], torch.cumulative_trapezoid(x, dx=A)]),
    "gradient": lambda x: torch.gradient(x, spacing=A)[0],
    "interpolate": lambda x: F.interpolate(x.reshape(1, 1, 2, 3), scale_factor=1.7, mode="bicubic"),
}


@pytest.mark.parametrize("name", WITH_NUMBERS)
def test_numbers_among_the_arguments_are_not_rounded_to_float32(name: str) -> None:
    def s(x: Tensor) -> Tensor:
        y = WITH_NUMBERS[name](x).flatten()
        return (y * torch.arange(len(y), dtype=D).add(0.3).cos()).sum()

    v = torch.tensor([0.3, -0.8, 0.5, 0.9, -0.4, 0.7], dtype=D)
    lower: list[Function] = [s, lambda x: ad.jacobian(s, x) @ v, lambda x: ad.hvp(s, x, v) @ v]
    x = AT.clone().requires_grad_()
    for order, f in enumerate(lower, 1):
        expected, error = difference(lambda h, f=f: float(f(x + h * v)), 4e-3)  # type: ignore[misc]
        y = f(x)
        found = float(grad(y, x, allow_unused=True, materialize_grads=True)[0] @ v) if y.requires_grad else 0.0
        found = float(ad.jacobian(s, x) @ v) if order == 1 else found
        assert abs(found - expected) <= 1e-11 * max(1.0, abs(expected)) + 100 * error, (order, found, expected)


@pytest.mark.parametrize("first", [0.0, 50.0, -torch.inf], ids=["near", "far", "nothing"])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_logcumsumexp_of_more_dimensions_and_of_nothing(dim: int, first: float) -> None:
    is_first = torch.tensor([True] + 5 * [False])

    def s(x: Tensor, of: Function) -> Tensor:
        return of(torch.where(is_first, x * 0 + first, x).reshape(1, 2, 3)).sin().sum()

    actual = ad.hvp(lambda x: s(x, lambda x: x.logcumsumexp(dim).exp()), AT, OTHER)
    assert_close(actual, ad.hvp(lambda x: s(x, lambda x: x.exp().cumsum(dim)), AT, OTHER))


def test_results_that_are_given_are_written_to() -> None:
    """``out=``, of which PyTorch has no derivative, and writes in place."""
    x, out = torch.tensor([0.3, 0.8], dtype=D), torch.empty(2, dtype=D)
    for of in (torch.hypot, torch.pow, torch.logaddexp):
        J = ad.jacobian(lambda x, of=of: of(x.detach(), x.detach(), out=out) * x, x)
        assert_close(J, of(x, x).diag())
    for name in ("hypot_", "pow_", "float_power_", "xlogy_"):
        H = ad.hessian(lambda x, name=name: getattr(x * 1, name)(x.flip(0)).sum(), x)  # type: ignore[misc]
        assert_close(H, ad.hessian(lambda x, name=name: getattr(torch, name[:-1])(x, x.flip(0)).sum(), x))  # type: ignore[misc]


def test_what_does_not_vary_is_that_of_pytorch() -> None:
    x, c = torch.tensor([0.3, 0.8], dtype=D), torch.tensor([2.5, 3.5], dtype=D)
    for of in (
        lambda c: torch.mvlgamma(c, 2),
        torch.lgamma,
        torch.sinc,
        F.mish,
        lambda c: torch.logaddexp(c, c),
        lambda c: torch.polar(c, c).real,
        lambda c: torch.pow(c, c),
        lambda c: torch.pow(2, c),
        lambda c: torch.float_power(c, 2),
        torch.vander,
        lambda c: torch.sinc(c.int()) + torch.vander(c.int()).sum(),
    ):
        assert_close(ad.jacobian(lambda x, of=of: of(c).sum() * x, x), of(c).sum() * torch.eye(2, dtype=D))  # type: ignore[misc]
