"""PyTorch's functions within f: each in every spelling, through complex numbers, and beside other libraries' functions
of the same names. laplacian is held against the plainest reverse mode."""

from __future__ import annotations

import functools
import itertools
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from selection import few
from torch import Tensor
from torch.autograd import grad
from torch.overrides import handle_torch_function, has_torch_function_unary
from torch.testing import assert_close
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

import torchad_ext as ad
from torchad_ext._autograd.graph import graph_nodes
from torchad_ext._forward import calls, rules
from torchad_ext._symbolic import torch_functions
from torchad_ext._symbolic.torch_functions import FUNCTIONS
from torchad_ext._symbolic.torch_names import is_of_torch

pytest.importorskip("expecttest", reason="torch.testing._internal imports expecttest, which is not installed")
from pytorch_samples import samples_of
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import OpInfo, SampleInput

D = torch.float64
AT = torch.tensor([0.3, -0.7, 1.1], dtype=D)
TRAINING = ("batch_norm", "native_batch_norm", "_native_batch_norm_legit")  # has no Laplacian at each point


@pytest.fixture(autouse=True)
def _no_warning_counts() -> Iterator[None]:
    """What has no rule says so, which tests/forward/test_laplacian.py holds."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torchad_ext.laplacian")
        yield


def flat(y: Any) -> Tensor:
    """The floating-point results of a function, complex ones as pairs."""
    parts = [z for z in tree_leaves(y) if isinstance(z, Tensor) and (z.is_floating_point() or z.is_complex())]
    return torch.cat([(torch.view_as_real(z.resolve_conj()) if z.is_complex() else z).reshape(-1) for z in parts])


def of_numbers(call: Callable[..., Any], args: Any, kwargs: Any) -> Callable[[Tensor], Tensor]:
    """A call as a function of three real numbers: whatever requires a gradient moves with their sines."""
    leaves, structure = tree_flatten((args, kwargs))

    def moved(leaf: Any, x: Tensor, seed: int) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if not leaf.requires_grad:
            return leaf.clone()
        generator = torch.Generator().manual_seed(seed)
        size = leaf.numel() * (2 if leaf.is_complex() else 1)
        y = 0.1 * torch.randn(size, 3, dtype=D, generator=generator) @ (x.sin() - AT.sin())
        y = torch.view_as_complex(y.reshape(*leaf.shape, 2)) if leaf.is_complex() else y.reshape(leaf.shape)
        return leaf.detach() + y.to(leaf.dtype)

    def f(x: Tensor) -> Tensor:
        args, kwargs = tree_unflatten([moved(leaf, x, i) for i, leaf in enumerate(leaves)], structure)
        return flat(call(*args, **kwargs))

    return f


def weights(y: Tensor) -> Tensor:
    return torch.arange(y.numel(), dtype=D).add(0.3).cos()


def curvature(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The value, and the Laplacian contracted with the weights by a gradient of a gradient."""
    x = x.detach().requires_grad_()
    y = f(x)
    (slope,) = grad((weights(y) * y).sum() + 0 * x.square().sum(), x, create_graph=True)
    return y.detach(), sum(grad(s, x, retain_graph=True)[0][i] for i, s in enumerate(slope.unbind()))  # type: ignore[return-value]


def assert_followed(
    f: Callable[[Tensor], Tensor], x: Tensor = AT, expected: tuple[Tensor, Tensor] | None = None
) -> None:
    """Value and Laplacian are as expected, of f itself if nothing is given."""
    value, laplacian = expected or curvature(f, x)
    ours = ad.forward_laplacian(f, x.detach())
    assert_close(ours.value, value, check_dtype=True)
    assert_close((weights(value) * ours.laplacian).sum(), laplacian, rtol=1e-7, atol=1e-9)


CASTS = ("to", "half", "chalf", "bfloat16", "float")
SLOW = ("triangular_solve", *(f"conv{transposed}{n}d" for transposed in ("", "_transpose") for n in (1, 2, 3)))
OPERATORS = (type(torch.ops.aten.sin), type(torch.ops.aten.sin.default))
KNOWN = {*rules.COMPOSITIONS, *rules.RULES, *FUNCTIONS} - {
    *TRAINING,
    *CASTS,
    *SLOW,
    "cholesky_inverse",
}  # PyTorch has slopes of the last where it is not read
UNUSUAL = ("subgradients_at_zero", "chunked", "chunked_none")  # tests/test_pytorch_derivatives.py
REDUCTIONS = (
    "max min amax amin aminmax median nanmedian mode kthvalue topk sort msort cummax cummin std_mean var_mean nansum "
    "nanmean logsumexp cumprod quantile count_nonzero argmax"
).split()


def infos() -> Iterator[OpInfo]:
    for info in op_db:
        names = {info.name.removeprefix("nn.functional.").removeprefix("linalg.")}
        if info.supports_autograd and info.variant_test_name not in UNUSUAL and names & (KNOWN | set(REDUCTIONS)):
            yield info


def spellings(info: OpInfo, sample: SampleInput) -> Iterator[tuple[Callable[..., Any], Any, Any]]:
    """A call with its arguments by position, all by keyword, as a method, and of the operators of that name."""
    function, args, kwargs = info.get_op(), (sample.input, *sample.args), sample.kwargs
    yield function, args, kwargs
    for places, others in calls._signatures(function):
        free = {*places[len(args) :], *others}
        if len(places) >= len(args) and kwargs.keys() <= free:
            yield function, (), {**dict(zip(places, args, strict=False)), **kwargs}
    method = info.get_method()
    if method is not None and isinstance(sample.input, Tensor):
        yield method, args, kwargs
    packet = getattr(torch.ops.aten, (info.aten_name or info.name).rpartition(".")[2], None)
    for overload in [getattr(packet, name) for name in packet.overloads()] if packet else ():
        known = {a.name: a for a in overload._schema.arguments if not a.is_out}
        places = [name for name, a in known.items() if not a.kwarg_only]
        named = {
            **dict(zip(places, args, strict=False)),
            **{"self" if k == "input" else k: x for k, x in kwargs.items()},
        }
        fits = len(named) == len(args) + len(kwargs) and named.keys() <= known.keys()
        if not fits or any(  # PyTorch would convert it to a number
            isinstance(x, kind) and str(known[name].type) not in (spoken, f"Optional[{spoken}]")
            for name, x in named.items()
            for kind, spoken in ((Tensor, "Tensor"), (bool, "bool"))
        ):
            continue
        filled = [named.pop(name, known[name].default_value) for name in places]
        for operator in (packet, overload):
            yield operator, args, kwargs
            yield operator, tuple(filled), named


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("dtype", few([D, torch.complex128], lambda dtype: dtype == D), ids=["real", "complex"])
@pytest.mark.parametrize("info", list(infos()), ids=lambda info: info.formatted_name)
def test_every_spelling(info: OpInfo, dtype: torch.dtype) -> None:
    if dtype not in info.supported_dtypes("cpu"):
        pytest.skip(f"{info.name} does not take {dtype}")
    followed = 0
    small = (s for s in samples_of(info, dtype) if 0 < size_of(s) <= 40)
    samples = list(itertools.islice(small, None if info.name in REDUCTIONS else 1))
    for sample in samples[:1] + (samples[-1:] if info.name in REDUCTIONS else []):
        expected = None  # one function in all spellings, in which it has one value to the bit
        for call, args, kwargs in spellings(info, sample):
            f = of_numbers(call, args, kwargs)
            try:
                y = f(AT.clone().requires_grad_())
            except TypeError:  # PyTorch has no such spelling
                continue
            except (RuntimeError, ValueError):  # nor its operators, some of which are of numbers
                if type(call) not in OPERATORS:
                    raise
                continue
            if expected is None or not torch.equal(y, expected[0]):
                repeats = torch.equal(y, f(AT.clone().requires_grad_()))
                if not (repeats and y.requires_grad and y.numel() and second_derivative_exists(y)):
                    continue
                expected = curvature(f, AT)
            assert_followed(f, expected=expected)
            followed += 1
    if samples and not followed:
        pytest.skip(f"{info.name} has no second derivative in PyTorch")


def size_of(sample: SampleInput) -> int:
    return sum(x.numel() for x in tree_leaves((sample.input, sample.args, sample.kwargs)) if isinstance(x, Tensor))


def second_derivative_exists(y: Tensor) -> bool:
    """... in PyTorch?"""
    seeds = torch.ones_like(y, requires_grad=True)
    leaf = next(node.variable for node in graph_nodes([y]) if hasattr(node, "variable"))
    try:
        (slope,) = grad(y, leaf, seeds, create_graph=True)
        grad(slope.sum(), leaf, allow_unused=True)
    except RuntimeError:
        return False
    return bool(slope.isfinite().all())


# Spellings that PyTorch's own samples do not have.
CALLS: dict[str, Callable[[Tensor], Any]] = {
    "to, with a memory format": lambda x: x.to(device="cpu", dtype=D, memory_format=torch.preserve_format),
    "maximum of a dimension": lambda x: x.max(-1, keepdim=True)[0],
    "maximum, all named": lambda x: torch.max(input=x, dim=-1, keepdim=True).values,
    "minimum by axis": lambda x: x.min(axis=-1).values,
    "sum by axis": lambda x: torch.sum(x, axis=-1, keepdims=True),
    "softmax of input": lambda x: torch.softmax(input=x, dim=-1),
    "softmax to dtype": lambda x: F.softmax(input=x, dim=-1, dtype=D),
    "logsumexp of input": lambda x: torch.logsumexp(input=x, dim=-1, keepdim=True),
    "norm with p": lambda x: x.norm(p=3, dim=-1) + torch.norm(input=x, p="fro", dim=-1),
    "norm of x": lambda x: torch.linalg.vector_norm(x=x, ord=4, dim=-1),
    "product": lambda x: torch.mul(other=x.cos(), input=x) + torch.matmul(input=x, other=x),
    "quantile of a number": lambda x: torch.quantile(x.prod(), 0.3, dim=0, keepdim=True),
    "where": lambda x: torch.where(condition=x > 0, input=x, other=x.exp()),
    "method where": lambda x: x.where(condition=x > 0, other=x.exp()) + x.where(x < 0, other=x.square()),
    "methods": lambda x: x.pow(exponent=3) + x.clamp(min=-0.5) + x.add(other=x, alpha=2) + x.mul(other=x),
    "pad": lambda x: F.pad(input=x, pad=(1, 1), value=2.0),
    "addmm": lambda x: torch.addmm(input=x[None], mat1=x[None], mat2=torch.outer(x, x), beta=2, alpha=3),
    "linear": lambda x: F.linear(input=x, weight=torch.eye(3, dtype=D), bias=x),
    "variance": lambda x: torch.var(input=x, dim=-1, correction=0) * torch.std(x, unbiased=False),
    "dropout": lambda x: F.dropout(input=x, p=0.5, training=False),
    "layer_norm": lambda x: torch.layer_norm(input=x, normalized_shape=(3,), weight=x, bias=x, eps=1e-3),
    "convolution": lambda x: F.conv1d(input=x[None, None], weight=x[None, None], bias=x[:1], padding=1),
    "transposed": lambda x: F.conv_transpose1d(
        x[None, None], weight=x[None, None], bias=x[:1], stride=2, output_padding=1, padding=2
    ),
    "attention": lambda x: F.scaled_dot_product_attention(query=x[:, None], key=x[:, None], value=x[:, None]),
    "cat": lambda x: torch.cat(tensors=[x, x.exp()], dim=0).square(),
    "split": lambda x: torch.cat([part.square() for part in torch.split(tensor=x, split_size_or_sections=2, dim=0)]),
    "einsum": lambda x: torch.einsum("i,j->ij", x, x),
    "clamp": lambda x: torch.clamp(input=x, max=0.5),
    "script": lambda x: scripted(x),
    "script within": lambda x: scripted(x.sin()) * x,
}


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x.sin() * x


@pytest.mark.parametrize("name", CALLS)
def test_calls(name: str) -> None:
    assert_followed(lambda x: CALLS[name](x.sin()).flatten())


def complex_of(x: Tensor) -> Tensor:
    return torch.complex(x.sin(), (2 * x).cos())


# From complex numbers to anything.
COMPLEX: dict[str, Callable[[Tensor], Any]] = {
    **{f"norm of order {p}": lambda z, p=p: torch.linalg.vector_norm(z, p) for p in (1, 1.5, 2, 3, 4)},
    "norm": lambda z: z.norm() + torch.norm(z, dim=0) + torch.linalg.norm(z, dim=-1, keepdim=True),
    "norm of a matrix": lambda z: torch.linalg.norm(torch.outer(z, z), "fro") + torch.linalg.matrix_norm(z[None]),
    "variance": lambda z: z.var() + z.std(dim=0, correction=0) + torch.var(z, 0, unbiased=False, keepdim=True),
    "variance and mean": lambda z: torch.view_as_real(torch.var_mean(z[:2] * z[1], 0)[1]),
    "normalize": lambda z: torch.view_as_real(F.normalize(z, dim=0)),
    "distance": lambda z: torch.dist(z, z.conj()),
    "products": lambda z: z * z.conj() + 2j * z - z / (3 + 1j) + z * AT,
    "sums": lambda z: torch.add(z, z, alpha=1j) + torch.sub(1j, z) + (z - 1j).sum() + AT,
    "powers": lambda z: z**2 + z**1.5 + z**1j + (1j) ** z + z.square() + AT**z,
    "polynomial": lambda z: torch.addcmul(z, z, z, value=2j) + torch.lerp(z, z.conj(), 0.3),
    "functions": lambda z: z.exp() * z.sin() + z.tanh().log() + z.sqrt().rsqrt() + z.abs() + z.angle(),
    "chosen": lambda z: torch.where(AT > 0, z, 1j) + z.masked_fill(AT > 0, 2j),
    "matrices": lambda z: torch.outer(z, z).mH @ z + torch.vdot(z, z) + torch.linalg.vecdot(z, z) + z @ z,
    "addmm": lambda z: torch.addmm(z[None], z[None], torch.outer(z, z), beta=1j),
    "quadratic_form": lambda z: ad.quadratic_form(z, torch.outer(z, z)),
    "fft": lambda z: torch.fft.fft(z).abs() + torch.fft.irfft(z, n=3) + torch.fft.ifft(z).real,
    "parts": lambda z: z.real * z.imag + torch.view_as_real(z).sum(-1) + torch.polar(z.abs(), z.angle()),
    "prod and cumsum": lambda z: z.prod() * z.cumsum(0) + z.mean() + z.cumprod(0),
    "logsumexp": lambda z: torch.logsumexp(z, 0),
    "cat": lambda z: torch.cat([z, AT.to(z), z.conj()]) * torch.stack([z, z, z]).flatten(),
    "bilinear": lambda z: torch.einsum("i,j,ij->i", z, z.conj(), torch.outer(z, AT.to(z))),
}


@pytest.mark.parametrize("name", COMPLEX)
def test_through_complex_numbers(name: str) -> None:
    assert_followed(lambda x: flat(COMPLEX[name](complex_of(x))))


# Other libraries' functions, each of which is x³ and has the name of something else.
def overridable(name: str) -> Callable[[Tensor], Tensor]:
    """... in Python, which asks for ``__torch_function__``."""

    def function(x: Tensor) -> Tensor:
        if has_torch_function_unary(x):
            return handle_torch_function(function, (x,), x)  # type: ignore[no-any-return]
        return x**3

    function.__name__ = name
    return function


def wrapped(name: str) -> Callable[[Tensor], Tensor]:
    """... that says it is the one it wraps."""
    of_torch = getattr(torch, name, None) or getattr(F, name)

    @functools.wraps(of_torch)
    def function(x: Tensor) -> Tensor:
        if has_torch_function_unary(x):
            return handle_torch_function(function, (x,), x)  # type: ignore[no-any-return]
        return x**3

    return function


def operator(name: str) -> Callable[[Tensor], Tensor]:
    """... as an operator of the dispatcher, elementwise."""
    LIBRARY.define(f"{name}(Tensor x) -> Tensor", tags=[torch.Tag.pointwise])
    LIBRARY.impl(name, lambda x: x**3, "CompositeImplicitAutograd")
    return getattr(torch.ops.test_torch_functions, name)  # type: ignore[no-any-return]


def custom(name: str) -> Callable[[Tensor], Tensor]:
    @torch.library.custom_op(f"test_torch_functions_custom::{name}", mutates_args=())
    def function(x: Tensor) -> Tensor:
        return x**3

    function.register_autograd(
        lambda ctx, g: 3 * ctx.saved_tensors[0] ** 2 * g,
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    )
    return function  # type: ignore[return-value]


def script(name: str) -> Callable[[Tensor], Tensor]:
    function = torch.jit.CompilationUnit(f"def {name}(x: Tensor) -> Tensor:\n    return x * x * x\n")
    return getattr(function, name)  # type: ignore[no-any-return]


LIBRARY = torch.library.Library("test_torch_functions", "DEF")
NAMES = "sin softplus matmul neg layer_norm norm detach shape abs softmax".split()
KINDS = (overridable, wrapped, operator, custom, script)


@functools.cache
def foreign(kind: Callable[[str], Callable[[Tensor], Tensor]], name: str) -> Callable[[Tensor], Tensor]:
    return kind(name)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", NAMES)
class TestNamesakes:
    """A function of another library is not taken for PyTorch's of its name."""

    @pytest.fixture
    def f(self, kind: Any, name: str) -> Callable[[Tensor], Tensor]:
        if kind is wrapped and not isinstance(getattr(torch, name, None) or getattr(F, name, None), Callable):  # type: ignore[arg-type]
            pytest.skip(f"torch has no function {name}")
        return foreign(kind, name)

    def test_laplacian(self, f: Callable[[Tensor], Tensor]) -> None:
        assert_close(ad.laplacian(lambda x: f(x.sin() + x), AT), laplacian_of_cube(AT))

    def test_hessian(self, f: Callable[[Tensor], Tensor]) -> None:
        x = AT[:2]
        cube = lambda x: (x * x.flip(0)).pow(3).sum()  # noqa: E731
        expected = torch.func.hessian(cube)(x)
        for sparsity in (None, "auto"):
            assert_close(ad.hessian(lambda x: f(x * x.flip(0)).sum(), x, sparsity=sparsity), expected)

    def test_diagonal_of_a_batch(self, f: Callable[[Tensor], Tensor]) -> None:
        x = torch.stack([AT, AT.flip(0)])
        diagonal = ad.hessian_diagonal(lambda x: f(x.sin()).sum(-1), x, batched=True)
        assert_close(diagonal, torch.func.hessian(lambda x: (x.sin() ** 3).sum())(x).reshape(6, 6).diag().view(2, 3))


def test_a_namesake_in_place() -> None:
    LIBRARY.define("neg_(Tensor(a!) x) -> Tensor(a!)")
    LIBRARY.impl("neg_", lambda x: x.pow_(3), "CompositeExplicitAutograd")
    pattern = ad.hessian_sparsity(lambda x: torch.ops.test_torch_functions.neg_(x.clone()).sum(), AT)
    assert pattern.to_dense().diagonal().all()


def laplacian_of_cube(x: Tensor) -> Tensor:
    """Δ of (sin x_i + x_i)³, element by element."""
    y, slope, curvature = x.sin() + x, x.cos() + 1, -x.sin()
    return 6 * y * slope**2 + 3 * y**2 * curvature


def test_what_is_of_torch() -> None:
    own = [torch.sin, Tensor.sin, F.layer_norm, F.gelu, F.max_pool1d, torch.linalg.norm, torch.special.i0, Tensor.norm]
    own += [Tensor.__add__, Tensor.__rsub__, Tensor.mT.__get__, Tensor.__getitem__, torch.ops.aten.sin, torch.einsum]
    own += [torch.ops.aten.sin.default, torch.fft.fft, torch.functional.norm]
    assert all(map(is_of_torch, own))
    others = [foreign(kind, "softmax") for kind in (overridable, wrapped, operator)]
    assert not any(map(is_of_torch, [*others, types.SimpleNamespace(__name__="sin"), len, ad.sin]))


NAN = float("nan")
# Arguments, and the slopes that PyTorch 2.14 gives them.
SHARED_TIES: dict[str, tuple[Any, list[tuple[tuple[float, ...], tuple[float, ...]]]]] = {
    "lower": (
        lambda x, a: torch.clamp(x, min=a),
        [((0, 1), (0, 1)), ((1, 1), (0.5, 0.5)), ((2, 1), (1, 0)), ((NAN, 1), (1, 1)), ((1, NAN), (1, 1))],
    ),
    "upper": (
        lambda x, b: x.clamp_max(b),
        [((0, 1), (1, 0)), ((1, 1), (0.5, 0.5)), ((2, 1), (0, 1)), ((NAN, 1), (1, 1)), ((1, NAN), (1, 1))],
    ),
    "both": (
        lambda x, a, b: torch.clamp(x, a, b),
        [
            ((0, 1, 2), (0, 1, 0)), ((1, 1, 2), (0.5, 0.5, 0)), ((2, 1, 2), (0.5, 0, 0.5)), ((3, 1, 2), (0, 0, 1)),
            ((1.5, 1, 2), (1, 0, 0)), ((NAN, 1, 2), (1, 0, 0)), ((0, NAN, 1), (1, 0, 0)), ((0, 1, NAN), (0, 0, 0)),
            ((0, 1, 1), (0, 1, 0)), ((1, 1, 1), (1, 0, 0)), ((2, 1, 1), (0, 0, 1)),  # equal bounds share nothing
            ((0, 2, 1), (0, 0, 1)), ((1, 2, 1), (0, 0, 1)), ((3, 2, 1), (0, 0, 1)),  # in the wrong order
        ],
    ),
}  # fmt: skip


class TestClampOfPyTorch214:
    @pytest.fixture(autouse=True)
    def _new_rules(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch_functions, "clamp_shares_ties", True)

    @pytest.mark.parametrize("bounds", SHARED_TIES)
    def test_ties_with_tensors_are_shared(self, bounds: str) -> None:
        function, rows = SHARED_TIES[bounds]
        columns = zip(*(given for given, _ in rows), strict=True)
        xs = [torch.tensor(column, dtype=torch.float64, requires_grad=True) for column in columns]
        y = ad.pointwise(function)(*xs)
        assert_close(y, function(*xs), equal_nan=True)
        slopes = torch.stack(torch.autograd.grad(y.sum(), xs), 1)
        assert slopes.tolist() == [list(expected) for _, expected in rows]

    @pytest.mark.parametrize(
        ("function", "slopes"),
        [
            (lambda x: torch.clamp(x, 1.0, 3.0), (0, 0, 1, 0, 0, 0)),
            (lambda x: torch.clamp(x, min=1.0), (0, 0, 1, 1, 1, 0)),
            (lambda x: x.clamp_max(3.0), (1, 1, 1, 0, 0, 0)),
            (lambda x: torch.clamp(x, 3.0, 1.0), (0, 0, 0, 0, 0, 0)),
        ],
        ids=["both", "min", "max", "wrong order"],
    )
    def test_there_is_no_slope_at_a_number(self, function: Any, slopes: tuple[float, ...]) -> None:
        x = torch.tensor([0, 1, 2, 3, 4, NAN], dtype=torch.float64, requires_grad=True)
        y = ad.pointwise(function)(x)
        assert_close(y, function(x), equal_nan=True)
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert slope.tolist() == list(slopes)
