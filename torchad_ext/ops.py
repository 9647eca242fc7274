"""The catalogue of pointwise ops: the only file that a new op touches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ._declared import Interval
from ._elementwise import HandWritten
from ._pointwise import Pointwise
from ._symbolic.latex import formula
from ._torch_state import nn_functions

__all__ = [  # noqa: RUF022, in the order of this file
    "sin", "cos", "tan", "exp", "expm1", "log", "log1p", "tanh", "sigmoid", "erf", "sinc", "square", "sqrt",
    "rsqrt", "reciprocal", "pow", "silu", "gelu", "softplus", "mish", "elu", "celu", "snake", "siren", "gaussian",
    "shifted_softplus", "gaussian_basis", "polynomial_cutoff",
]  # fmt: skip
# Definitions call functions in C++, bound here: torch.nn.functional.silu may be this catalogue's silu some day.
_nn = nn_functions()
CATALOGUE: dict[str, Pointwise] = {}
_STANDS_IN_FOR: dict[str, str] = {}

_DOC = """{summary}

    {drop_in}float16, bfloat16, float32 and float64 on CPU and CUDA run on native kernels, one for each order of
    derivative; every other dtype and device runs the PyTorch definition.

    Args:
        {arguments}{options}

    Returns:
        Shape, strides and dtype of the PyTorch definition.

    Raises:
        TypeError: no argument is a tensor, or the arguments do not fit the signature.

    Example:
        >>> x = torch.tensor({example}, dtype=torch.float64, requires_grad=True)
        >>> y = {name}({call})
        >>> (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        >>> (curvature,) = torch.autograd.grad(slope.sum(), x)
        >>> torch.testing.assert_close(y, {name}.definition({call}))
    """
_SEVERAL = "tensors of any strides, shapes that broadcast, or numbers, which have no gradient."
_OPTIONS = {
    "approximate": '``"none"`` or ``"tanh"``.',
    "inplace": "False; an op returns a new tensor.",
}


def _op(
    name: str,
    definition: Callable[..., Any],
    summary: str,
    *,
    like: str = "",
    domain: Interval | Mapping[str, Interval] = (-3.0, 3.0),
    written: HandWritten | None = None,
) -> Pointwise:
    """Declares an op.

    Args:
        name: of the op and of its kernels.
        definition: plain PyTorch, with the arguments and the defaults of the op.
        summary: what it is, with its formula and where that comes from.
        like: the function of PyTorch that it is a drop-in for.
        domain: where ``verify`` and the tests sample its tensors.
        written: its functors, where they were written by hand.
    """
    op = Pointwise(definition, name=name, module="torchad_ext", domain=domain, written=written)
    parameters = op.__signature__.parameters
    tensors = [p for p in parameters if p not in _OPTIONS]
    low, high = domain if isinstance(domain, tuple) else next(iter(domain.values()))
    op.__doc__ = _DOC.format(
        name=name,
        summary=summary,
        drop_in=f"A drop-in for ``{like}``.\n    " if like else "",
        arguments=f"{tensors[0]}: a tensor of any strides."
        if len(tensors) == 1
        else f"{', '.join(tensors)}: {_SEVERAL}",
        options="".join(f"\n        {p}: {text}" for p, text in _OPTIONS.items() if p in parameters),
        example=[round(low + (high - low) * t, 2) for t in (0.25, 0.75)],
        call=", ".join("x" for p in parameters.values() if p.default is p.empty),
    )
    CATALOGUE[name] = op
    _STANDS_IN_FOR[name] = like
    return op


def _written(name: str) -> HandWritten:
    stem = name.capitalize()
    return HandWritten(f"ops/{name}.h", (stem, f"{stem}Backward", f"{stem}DoubleBackward"))


sin = _op(
    "sin",
    torch.sin,
    r"The sine, :math:`\sin x`, of radians.",
    like="torch.sin",
    written=_written("sin"),
)
cos = _op("cos", torch.cos, r"The cosine, :math:`\cos x`, of radians.", like="torch.cos")
tan = _op(
    "tan",
    torch.tan,
    r"The tangent, :math:`\tan x`, of radians.",
    like="torch.tan",
    domain=(-1.4, 1.4),
)
exp = _op("exp", torch.exp, r"The exponential, :math:`e^x`.", like="torch.exp", written=_written("exp"))
expm1 = _op("expm1", torch.expm1, r":math:`e^x - 1`, exact near 0.", like="torch.expm1")
log = _op(
    "log",
    torch.log,
    r"The natural logarithm, :math:`\log x`.",
    like="torch.log",
    domain=(0.05, 5.0),
)
log1p = _op(
    "log1p",
    torch.log1p,
    r":math:`\log(1 + x)`, exact near 0.",
    like="torch.log1p",
    domain=(-0.9, 5.0),
)
tanh = _op("tanh", torch.tanh, r"The hyperbolic tangent, :math:`\tanh x`.", like="torch.tanh")
sigmoid = _op(
    "sigmoid",
    torch.sigmoid,
    r"The logistic function, :math:`\sigma(x) = 1 / (1 + e^{-x})`.",
    like="torch.sigmoid",
    domain=(-6.0, 6.0),
)
erf = _op(
    "erf",
    torch.erf,
    r"The error function, :math:`\frac{2}{\sqrt\pi} \int_0^x e^{-t^2} dt`.",
    like="torch.erf",
)
sinc = _op(
    "sinc",
    torch.sinc,
    r":math:`\sin(\pi x) / (\pi x)`, 1 at 0, with derivatives that are exact at and near 0.",
    like="torch.sinc",
    domain=(0.3, 3.0),  # near 0 the derivatives of torch.sinc lose digits
)
square = _op("square", torch.square, r"The square, :math:`x^2`.", like="torch.square")
sqrt = _op("sqrt", torch.sqrt, r"The square root, :math:`\sqrt x`.", like="torch.sqrt", domain=(0.05, 5.0))
rsqrt = _op("rsqrt", torch.rsqrt, r":math:`1 / \sqrt x`.", like="torch.rsqrt", domain=(0.05, 5.0))
reciprocal = _op("reciprocal", torch.reciprocal, r":math:`1 / x`.", like="torch.reciprocal", domain=(0.2, 4.0))
pow = _op(
    "pow",
    torch.pow,
    r"The power, :math:`x^p`.",
    like="torch.pow",
    domain={"input": (0.1, 3.0), "exponent": (-2.0, 3.0)},
)

silu = _op(
    "silu",
    lambda input, inplace=False: (_nn.silu_ if inplace else _nn.silu)(input),
    r"SiLU or Swish, :math:`x\, \sigma(x)` (Elfwing et al., 2018, arXiv:1702.03118).",
    like="torch.nn.functional.silu",
    domain=(-6.0, 6.0),
)
gelu = _op(
    "gelu",
    _nn.gelu,
    r"GELU, :math:`x\, \Phi(x)` with the normal distribution function, or its tanh form "
    "(Hendrycks and Gimpel, 2016, arXiv:1606.08415).",
    like="torch.nn.functional.gelu",
)
softplus = _op(
    "softplus",
    lambda input, beta=1.0, threshold=20.0: _nn.softplus(input, beta, threshold),
    r":math:`\log(1 + e^{\beta x}) / \beta`, and x where :math:`\beta x` exceeds the threshold.",
    like="torch.nn.functional.softplus",
    domain=(-6.0, 6.0),
)
mish = _op(
    "mish",
    lambda input, inplace=False: (_nn.mish_ if inplace else _nn.mish)(input),
    r"Mish, :math:`x \tanh(\log(1 + e^x))` (Misra, 2019, arXiv:1908.08681).",
    like="torch.nn.functional.mish",
    domain=(-6.0, 6.0),
)
elu = _op(
    "elu",
    lambda input, alpha=1.0, inplace=False: (_nn.elu_ if inplace else _nn.elu)(input, alpha),
    r"ELU, x above 0 and :math:`\alpha (e^x - 1)` below (Clevert et al., 2016, arXiv:1511.07289).",
    like="torch.nn.functional.elu",
)
celu = _op(
    "celu",
    lambda input, alpha=1.0, inplace=False: (torch.celu_ if inplace else torch.celu)(input, alpha),
    r"CELU, x above 0 and :math:`\alpha (e^{x/\alpha} - 1)` below (Barron, 2017, arXiv:1704.07483).",
    like="torch.nn.functional.celu",
)

snake = _op(
    "snake",
    lambda input, a=1.0: input + torch.sin(a * input) ** 2 / a,
    r"Snake, :math:`x + \sin^2(a x) / a` (Ziyin et al., 2020, arXiv:2006.08195).",
    domain={"input": (-3.0, 3.0), "a": (0.3, 3.0)},
)
siren = _op(
    "siren",
    lambda input, omega=30.0: torch.sin(omega * input),
    r"The sine of a SIREN layer, :math:`\sin(\omega x)` (Sitzmann et al., 2020, arXiv:2006.09661).",
    domain=(-1.0, 1.0),
)
gaussian = _op("gaussian", lambda input: torch.exp(-(input**2) / 2), r":math:`e^{-x^2 / 2}`.")


def _shifted_softplus(input: torch.Tensor) -> torch.Tensor:
    softplus = torch.logaddexp(input, torch.zeros_like(input))
    # The difference loses its digits near 0, but not in the derivatives.
    near = torch.log1p(torch.expm1(input.clamp(max=1.0)) / 2)
    return torch.where(input < 1, near.detach() + (softplus - softplus.detach()), softplus - math.log(2))


shifted_softplus = _op(
    "shifted_softplus",
    lambda input: _shifted_softplus(input),
    r":math:`\log(\frac12 e^x + \frac12)`, 0 at 0 (SchNet; Schütt et al., 2017, arXiv:1706.08566).",
    domain=(-6.0, 6.0),
)
gaussian_basis = _op(
    "gaussian_basis",
    lambda distance, center=0.0, width=1.0: torch.exp(-0.5 * ((distance - center) / width) ** 2),
    r"A Gaussian radial basis function, :math:`e^{-(r - \mu)^2 / (2 w^2)}`, all in one unit of length.",
    domain={"distance": (0.0, 5.0), "center": (0.0, 5.0), "width": (0.3, 2.0)},
)


def _polynomial_cutoff(distance: torch.Tensor, cutoff: float) -> torch.Tensor:
    u, v = distance / cutoff, (cutoff - distance) / cutoff
    near = 1 - u**6 * (28 - u * (48 - 21 * u))
    far = v**3 * (1 + u * (3 + u * (6 + u * (10 + u * (15 + 21 * u)))))  # keeps the digits of the triple root at 1
    return torch.where(distance < cutoff, torch.where(u < 0.5, near, far), 0.0)


polynomial_cutoff = _op(
    "polynomial_cutoff",
    lambda distance, cutoff=5.0: _polynomial_cutoff(distance, cutoff),
    r"A smooth envelope, :math:`1 - 28 u^6 + 48 u^7 - 21 u^8` with :math:`u = r / c` inside the cutoff, 0 outside: "
    "p = 6 in Gasteiger et al., 2020, arXiv:2003.03123, eq. 8.",
    domain={"distance": (0.1, 6.0), "cutoff": (4.0, 5.0)},
)


def stands_in_for(name: str) -> str:
    """The function of PyTorch that an op is a drop-in for; empty if there is none."""
    return _STANDS_IN_FOR[name]


def table() -> str:
    """The catalogue as a table in Markdown."""
    lines = ["| op | stands in for | formula |", "|---|---|---|"]
    for name, op in CATALOGUE.items():
        shortest = min(op.latex().partition(" = ")[2], formula(op.program.outputs[0]), key=len)
        like = f"`{stands_in_for(name)}`" if stands_in_for(name) else ""
        lines.append(f"| `ad.{name}{op.__signature__}` | {like} | ${shortest}$ |")
    return "\n".join(lines) + "\n"
