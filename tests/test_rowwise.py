"""``rowwise``: what it takes, and that an op is its definition at every order, in every transform and layout."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from layouts import NAMED, sample
from selection import every_other, few
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jacrev, jvp, vmap
from torch.testing import assert_close

import torchad_ext as ad

Tensors = tuple[torch.Tensor, ...]


@ad.rowwise
def norm(x, weight, bias, eps=1e-5):  # type: ignore[no-untyped-def]
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * weight + bias


@ad.rowwise
def attention(scores, scale, mask):  # type: ignore[no-untyped-def]
    """Operands of every kind, results of every kind."""
    weights = torch.softmax(scores * scale + mask, -1)
    return weights, scores.amax(-1, keepdim=True) * scale.sum(-1, keepdim=True), (weights * scores).sum(-1)


def of(*shapes: tuple[int, ...], device: str = "cpu") -> Tensors:
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes]
    return tuple(x.to(device).requires_grad_() for x in numbers)


def repeated(f: Callable[..., Any], xs: Tensors, highest: int) -> list[Tensors]:
    """f and its derivatives, each by reverse mode of the one before, for fixed cotangents."""
    results = f(*xs)
    found = [results if isinstance(results, tuple) else (results,)]
    for _ in range(highest):
        results = [y for y in found[-1] if y.requires_grad]
        cotangents = [torch.linspace(-1, 2, y.numel(), dtype=y.dtype, device=y.device).view(y.shape) for y in results]
        found.append(
            torch.autograd.grad(results, xs, cotangents, create_graph=True, materialize_grads=True, allow_unused=True)
        )
    return found


OPERANDS = {
    "layer norm": (norm, ((4, 9), (9,), (9,))),
    "a batch": (norm, ((2, 3, 9), (9,), (9,))),
    "a row": (norm, ((5,), (5,), (5,))),
    "values of rows": (norm, ((2, 3, 5), (2, 3, 1), (3, 1))),
    "attention": (attention, ((2, 3, 5), (2, 3, 1), (5,))),
    "a mask of a batch": (attention, ((2, 3, 5), (), (3, 5))),
    "n = 1": (attention, ((3, 1), (3, 1), (1,))),
    "layer norm of wide rows": (norm, ((4, 40), (40,), (40,))),
    "attention of wide rows": (attention, ((2, 3, 40), (2, 3, 1), (40,))),
}


OTHERS = ("a row", "a mask of a batch", "layer norm of wide rows")  # with kernels of their own, which differ little


@pytest.mark.parametrize(
    ("case", "highest"), few(product(OPERANDS, [2, 4]), lambda case, order: order == 2 and case not in OTHERS)
)
def test_orders_0_to_4(case: str, highest: int, device: str) -> None:
    op, shapes = OPERANDS[case]
    xs = of(*shapes, device=device)
    both = zip(repeated(op, xs, highest), repeated(op.definition, xs, highest), strict=True)
    for order, (mine, reference) in enumerate(both):
        # For n = 1 the third and fourth are 0: sums of terms as large as some 10^order, which cancel.
        scale = max(float(y.detach().abs().max()) for y in reference) or 10.0**order
        for y, expected in zip(mine, reference, strict=True):
            assert y.shape == expected.shape
            assert_close(y, expected, rtol=1e-11, atol=1e-13 * scale, msg=lambda text, k=order: f"order {k}: {text}")


@pytest.mark.usefixtures("kernels_when_long")
@pytest.mark.parametrize(
    "case", few(["layer norm", "attention", "layer norm of wide rows"], lambda case: case == "layer norm")
)
def test_every_mode_against_finite_differences(case: str, device: str) -> None:
    op, shapes = OPERANDS[case]
    xs = of(*shapes, device=device)
    assert gradcheck(op, xs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(op, xs, check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.usefixtures("kernels_when_long")
@pytest.mark.parametrize("outer", [jacfwd, jacrev])
@pytest.mark.parametrize("inner", [jacfwd, jacrev])
@pytest.mark.parametrize("argument", [0, 1])
def test_transforms_nest(outer: Any, inner: Any, argument: int) -> None:
    xs = tuple(x.detach() for x in of((3, 4), (4,), (4,)))

    def of_one(f: Any) -> torch.Tensor:
        return outer(inner(lambda x: f(*xs[:argument], x, *xs[argument + 1 :]).pow(2).sum(0)))(xs[argument])

    assert_close(of_one(norm), of_one(norm.definition))


@pytest.mark.usefixtures("kernels_when_long")
def test_forward_over_forward_over_reverse() -> None:
    (x,) = (x.detach() for x in of((2, 4)))
    weight, bias = torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)

    def third(f: Any) -> torch.Tensor:
        return jacfwd(hessian(lambda x: f(x, weight, bias).pow(3).sum()))(x)

    assert_close(third(norm), third(norm.definition))


@pytest.mark.parametrize("dims", [(0, None, None), (0, None, 0), (None, 0, None), (1, None, None), (2, 1, 0)])
def test_vmap(dims: tuple[int | None, ...], device: str) -> None:
    sizes = ((3, 4), (4,), (4,))
    xs = []
    for x, dim in zip(of(*sizes, device=device), dims, strict=True):
        xs.append(x if dim is None else torch.stack([x, x.sin(), x.cos()], min(dim, x.dim())))
    dims = tuple(None if dim is None else min(dim, x.dim() - 1) for dim, x in zip(dims, xs, strict=True))
    assert_close(vmap(norm, dims)(*xs), vmap(norm.definition, dims)(*xs))
    slope = [jvp(vmap(f, dims), tuple(xs), tuple(x.sin() for x in xs))[1] for f in (norm, norm.definition)]
    assert_close(*slope)


def test_gradients_of_each_sample() -> None:
    x, weight, bias = (x.detach() for x in of((5, 3, 4), (4,), (4,)))

    def of_weights(f: Any) -> Any:
        loss = torch.func.grad(lambda w, b, x: f(x, w, b).pow(2).sum(), argnums=(0, 1))
        return vmap(loss, (None, None, 0))(weight, bias, x)

    assert_close(of_weights(norm), of_weights(norm.definition))


@pytest.mark.parametrize("length", [1, 2, 3, 8, 9, 15, 16, 17, 31, 64, 100, 5000])
@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize(
    ("dtype", "highest"),
    few(product([torch.float32, torch.float64], [1, 2]), lambda dtype, order: (dtype == torch.float64) == (order == 2)),
)
def test_lengths(length: int, rows: int, dtype: torch.dtype, highest: int, device: str) -> None:
    # Small exponents: the error of e^x is that of x times x.
    xs = [
        (0.3 * x.detach()).to(dtype).requires_grad_() for x in of((rows, length), (rows, 1), (length,), device=device)
    ]
    wide = [x.detach().double().requires_grad_() for x in xs]
    for mine, reference in zip(
        repeated(attention, tuple(xs), highest), repeated(attention.definition, tuple(wide), highest), strict=True
    ):
        scale = max(float(y.detach().abs().max()) for y in reference)
        for y, expected in zip(mine, reference, strict=True):
            assert_close(y.double(), expected, rtol=0, atol=20 * torch.finfo(dtype).eps * scale)


@pytest.mark.parametrize("layout", NAMED)
def test_layouts(layout: str, device: str) -> None:
    x = NAMED[layout](sample(torch.float64, device)).requires_grad_()
    length = x.shape[-1] if x.dim() else 1
    of_columns = {"dtype": torch.float64, "device": device, "requires_grad": True}
    weight, bias = (torch.linspace(a, 2, length, **of_columns) for a in (-1, 0.5))
    results = [
        (y := f(x, weight, bias), *torch.autograd.grad(y.pow(2).sum(), (x, weight, bias)))
        for f in (norm, norm.definition)
    ]
    for mine, reference in zip(*results, strict=True):
        assert mine.shape == reference.shape
        assert_close(
            mine, reference, rtol=1e-10, atol=1e-10 * float(reference.detach().abs().max()) if x.numel() else 0
        )


def test_a_gradient_that_is_one_number(device: str) -> None:
    x, weight, bias = of((4, 20), (20,), (20,), device=device)
    (mine,), (reference,) = (torch.autograd.grad(f(x, weight, bias).sum(), weight) for f in (norm, norm.definition))
    assert_close(mine, reference)


@pytest.mark.parametrize(("dtype", "length"), every_other([torch.float16, torch.bfloat16], [33, 3]))
def test_half_types_are_computed_in_float32(dtype: torch.dtype, length: int, device: str) -> None:
    xs = [x.detach().to(dtype).requires_grad_() for x in of((5, length), (length,), (length,), device=device)]
    wide = [x.detach().float().requires_grad_() for x in xs]
    mine, exact = norm(*xs), norm.definition(*wide)
    assert mine.dtype == dtype
    assert_close(mine, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)
    cotangent = torch.randn(5, length).to(device, dtype)
    for g, expected in zip(
        torch.autograd.grad(mine, xs, cotangent), torch.autograd.grad(exact, wide, cotangent.float()), strict=True
    ):
        assert_close(g, expected.to(dtype), rtol=4 * torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.parametrize("length", [7, 40])
def test_a_nan_stays_in_its_row(length: int, device: str) -> None:
    x, weight, bias = of((5, length), (length,), (length,), device=device)
    with torch.no_grad():
        x[1, 2], x[3, 0] = float("nan"), float("inf")
    mine, reference = norm(x, weight, bias), norm.definition(x, weight, bias)
    assert_close(mine, reference, equal_nan=True)
    assert mine.isfinite().all(-1).tolist() == [True, False, True, False, True]


def test_a_long_sum_is_as_accurate_as_pytorchs(device: str) -> None:
    total = ad.rowwise(lambda x: x.sum(-1))
    x = torch.rand(2, 1_000_003, device=device)
    exact = x.double().sum(-1)
    error, native = ((y.double() - exact).abs().max() for y in (total(x), x.sum(-1)))
    assert error <= max(native, torch.finfo(torch.float32).eps * exact.max())


@pytest.mark.parametrize("shape", [(810_001, 3), (38_001, 64), (38_001, 63), (3, 810_001)], ids=str)
def test_results_beyond_the_caches_are_those_of_a_few_rows(shape: tuple[int, int], device: str) -> None:
    x, weight, bias = (torch.randn(size, device=device) for size in (shape, shape[-1:], shape[-1:]))
    y, few = norm(x, weight, bias), max(1, shape[0] // 10)
    for rows in (slice(few), slice(-few, None)):
        assert_close(y[rows], norm(x[rows], weight, bias), rtol=1e-6, atol=1e-6)


def test_sums_over_rows_do_not_depend_on_the_number_of_threads() -> None:
    x, weight, bias = (x.detach().float() for x in of((5000, 40), (40,), (40,)))
    weight.requires_grad_()
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(torch.autograd.grad(norm(x, weight, bias).pow(2).sum(), weight)[0])
    torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_no_rows_and_no_elements(device: str) -> None:
    (weight,) = of((4,), device=device)
    x = torch.zeros(0, 4, dtype=torch.float64, device=device, requires_grad=True)
    assert norm(x, weight, weight).shape == (0, 4)
    assert torch.equal(torch.autograd.grad(norm(x, weight, weight).sum(), weight)[0], torch.zeros_like(weight))
    total = ad.rowwise(lambda x: x.sum(-1))
    assert torch.equal(total(torch.zeros(3, 0, device=device)), torch.zeros(3, device=device))


SPELLINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "methods": lambda x: x - x.mean(-1, keepdim=True),
    "functions": lambda x: x - torch.mean(x, dim=-1, keepdim=True),
    "a tuple": lambda x: x - x.sum((-1,), True),
    "NumPy's names": lambda x: x / x.exp().sum(axis=-1, keepdims=True),  # type: ignore[call-overload]
    "without keepdim": lambda x: x.sum(-1),
    "unsqueeze": lambda x: x / x.sum(-1).exp().unsqueeze(-1),
    "None": lambda x: x / x.square().sum(-1)[..., None],
    "squeeze": lambda x: x.amax(-1, keepdim=True).squeeze(-1),
    "amin": lambda x: x - x.amin(-1, True),
    "logsumexp": lambda x: x.logsumexp(-1),
    "softmax": lambda x: torch.nn.functional.softmax(x, dim=-1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "var": lambda x: x.var(-1, unbiased=False),
    "std": lambda x: x.std(-1, keepdim=True) * x,
    "vector_norm": lambda x: x / torch.linalg.vector_norm(x, dim=-1, keepdim=True),
    "vecdot": lambda x: torch.linalg.vecdot(x, x.sin()),
    "largest of the absolute values": lambda x: torch.linalg.vector_norm(x, float("inf"), -1),
    "the length": lambda x: x.sum(-1) * x.shape[-1] ** -0.5,
    "size": lambda x: x * x.size(-1),
    "counting": lambda x: x * (x > 0).sum(-1, keepdim=True),
    "a row op in a row op": lambda x: ad.softmax(x) * x.sum(-1, keepdim=True),
    "an elementwise op in a row op": lambda x: ad.silu(x).mean(-1),
    "a sum of a sum": lambda x: x.sum(-1, keepdim=True).sum(-1, keepdim=True) * x,
    "broadcast_tensors": lambda x: torch.broadcast_tensors(x, x.sum(-1, keepdim=True))[1].cos().sum(-1),
    "constants": lambda x: torch.ones_like(x).sum(-1, keepdim=True) * x,
}


def has_the_derivatives_of_its_function(spelling: str) -> None:
    f = SPELLINGS[spelling]
    op = ad.rowwise(f)
    (x,) = of((3, 5))
    for mine, reference in zip(repeated(op, (x,), 2), repeated(f, (x,), 2), strict=True):
        assert_close(mine, reference)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(spelling: str, interpreted: None) -> None:
    has_the_derivatives_of_its_function(spelling)


@pytest.mark.parametrize("spelling", few(SPELLINGS, lambda name: list(SPELLINGS).index(name) % 6 == 0))
def test_spellings_by_kernels(spelling: str) -> None:
    has_the_derivatives_of_its_function(spelling)


@pytest.mark.parametrize("correction", [-1, 0, 4.5, 5, 6])
def test_a_variance_of_fewer_elements_than_its_correction_is_infinite(correction: float) -> None:
    def deviation(x: torch.Tensor) -> torch.Tensor:
        return x.std(-1, correction=correction)

    (x,) = of((3, 5))
    torch.testing.assert_close(ad.rowwise(deviation)(x), deviation(x))


@pytest.mark.parametrize("length", [3, 7, 40])
def test_equal_elements_have_no_deviation_and_no_slope(length: int, interpreted: None) -> None:
    """Their sum over their number may be a neighbour of theirs."""
    x = torch.tensor([0.1, 0.3, 0.7, 1.1, 2.3], dtype=torch.float64)[:, None].repeat(1, length).requires_grad_()
    y = ad.rowwise(lambda x: x.std(-1))(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert not y.any() and not slope.any()


LENGTH = "asks for the value of x.shape[-1], which a kernel takes in each call; compute with it by +, -, *, / and **"


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda x: x.sum(0), "dimension 0; a row is the last: dim=-1"),
        (lambda x: x.sum(), "along all dimensions"),
        (lambda x: x - x.sum(-1), "keepdim=True"),
        (lambda x: x.sum(-1).sum(-1), "one value a row"),
        (lambda x: x.cumsum(-1), "cumsum"),
        (lambda x: x[..., 0], "picks elements"),
        (lambda x, y: x * y.squeeze(-1), "an argument [..., 1] meets each element of its row as it is"),
        (lambda x, y: x * y[..., 0], "an argument [..., 1] meets each element of its row as it is"),
        (lambda x: x.T, "T moves or picks elements; do it outside, as in op(x.mT)"),
        (lambda x: x / x.numel(), "a row op sees one row, of x.shape[-1] elements"),
        (lambda x: x.double(), "a declared function keeps the dtype"),
        (lambda x: x - x.max(-1, keepdim=True).values, "max of one tensor is not known; write torch.amax(x, -1, keep"),
        (lambda x: x.sort(-1).values, "sort combines elements; compute it outside and pass the result as an argument"),
        (lambda x: x / x.shape[0], "another size than that of a row"),
        (lambda x: x.sum(-1, dtype=torch.float64), "keeps the dtype"),
        (lambda x: x @ x, "combines elements; take the product outside"),
        (lambda x: torch.nn.functional.layer_norm(x, (5,)), "write torchad_ext.layer_norm(x, None, weight)"),
        (lambda x: torch.nn.functional.rms_norm(x, (5,)), "write torchad_ext.rms_norm(x, None, weight)"),
        (lambda x: torch.nn.functional.normalize(x, dim=-1), "write torchad_ext.normalize(..., dim=-1)"),
        (lambda x, y: torch.nn.functional.pairwise_distance(x, y), "write torchad_ext.distance(x, y)"),
        (lambda x: x / torch.linalg.norm(x, dim=-1, keepdim=True), "write torch.linalg.vector_norm(x, dim=-1, keepdim"),
        (lambda x: x * (x.shape[-1] // 2), f"floordiv {LENGTH}"),
        (lambda x, a=3.0: x * (a * x.shape[-1] % 2), f"remainder {LENGTH}"),
        (lambda x: x * x.shape[-1].bit_length(), f"bit_length {LENGTH}"),
        (lambda x: x * {5: 2}[x.shape[-1]], f"hash {LENGTH}"),
        (lambda x: x * math.sqrt(x.shape[-1]), f"float(x) or a function of math {LENGTH}"),
        (lambda x: x if x.shape[-1] > 3 else -x, f"a condition {LENGTH}"),
    ],
)
def test_what_is_no_row_op_is_refused_with_its_line(f: Any, message: str) -> None:
    with pytest.raises(ad.TraceError) as error:
        ad.rowwise(f)
    line, problem = str(error.value).split("\n  ")  # the line has the message in it, too
    assert "test_rowwise.py" in line and message in problem


def test_a_kernel_runs(row_kernels: list[str], monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(norm, "_front", None)
    x, weight, bias = of((4, 5), (5,), (5,), device=device)
    (slope,) = torch.autograd.grad(norm(x, weight, bias).sum(), x, create_graph=True)
    torch.autograd.grad(slope.pow(2).sum(), (x, weight))
    assert [name.partition("_")[2].partition("_grad")[0] for name in row_kernels] == [
        "",
        "backward_x",
        "double_backward_x_weight",
    ]


def test_compiling_traces_the_definition() -> None:
    x, weight, bias = (x.detach() for x in of((4, 5), (5,), (5,)))
    compiled = torch.compile(lambda x: norm(x, weight, bias) * 2, backend="eager", fullgraph=True)
    assert_close(compiled(x), norm(x, weight, bias) * 2)


def test_a_gradient_of_zeros_has_no_kernel_to_compile() -> None:
    ad.rowwise(lambda x: torch.sign(x.sum(-1))).compile(orders=[1])


def test_other_dtypes_run_the_definition() -> None:
    total = ad.rowwise(lambda x: x.sum(-1))
    assert total(torch.tensor([[1 + 2j, 3j]])).item() == 1 + 5j
    assert total(torch.arange(3)).item() == 3


def test_source_and_latex() -> None:
    assert norm.latex().startswith(r"\mathrm{norm}(x, \mathrm{weight}")
    assert r"\sum_{j} x" in norm.latex()


def test_a_notebook_shows_a_formula_that_can_be_read() -> None:
    assert norm._repr_latex_() == rf"$\displaystyle {norm.latex()}$"
    assert ad.cosine_similarity._repr_latex_() is None  # three lines of cases
    assert "struct NormBackwardTerms1" in norm.source(order=1)
    assert norm.operands(order=1) == (3, 3)


def test_pickle() -> None:
    assert pickle.loads(pickle.dumps(norm)) is norm


def test_numbers_are_run_time_numbers() -> None:
    x, weight, bias = of((4, 5), (5,), (5,))
    for eps in (1e-5, 0.5):
        assert_close(norm(x, weight, bias, eps), norm.definition(x, weight, bias, eps))


def test_ties_share_the_slope() -> None:
    x = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(ad.rowwise(lambda x: x.amax(-1))(x).sum(), x)
    assert_close(slope, torch.tensor([[0, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3]]))


@pytest.mark.usefixtures("kernels_when_long")
def test_verify_finds_a_wrong_definition() -> None:
    with pytest.raises(ad.VerificationError):
        ad.verify(
            lambda x: norm(x, torch.ones(5).double(), torch.zeros(5).double()),
            lambda x: torch.nn.functional.layer_norm(x, (5,), eps=1e-3),
            inputs=torch.randn(3, 5, dtype=torch.float64),
            dtypes=torch.float64,
            quiet=True,
        )


@pytest.mark.usefixtures("kernels_when_long")
@pytest.mark.parametrize("name", ["softmax", "normalize", "layer_norm", "logsumexp", "vector_norm"])
def test_laplacian(name: str) -> None:
    op = {"normalize": lambda x: ad.normalize(x, dim=-1), "vector_norm": lambda x: ad.vector_norm(x, dim=-1)}.get(
        name, getattr(ad, name)
    )
    points, mixing = (x.detach() for x in of((6, 3), (3, 5)))

    def f(x: torch.Tensor) -> torch.Tensor:
        y = op((x @ mixing).sin()).pow(3)
        return y if name in ("logsumexp", "vector_norm") else y.sum(-1)

    def of_one(p: torch.Tensor) -> torch.Tensor:
        return hessian(lambda p: f(p.reshape(1, 3)).sum())(p).trace()

    assert_close(ad.laplacian(f, points).reshape(6), torch.stack([of_one(p) for p in points]))


def test_a_row_couples_its_elements() -> None:
    x = torch.randn(4, 3, dtype=torch.float64)

    def f(x: torch.Tensor) -> torch.Tensor:
        return ad.softmax(x).pow(2).sum()

    expected = torch.block_diag(*[torch.ones(3, 3)] * 4).bool()
    assert torch.equal(ad.hessian_sparsity(f, x).to_dense().reshape(12, 12).bool(), expected)
    assert_close(ad.hessian(f, x, sparsity="auto").reshape(12, 12), hessian(f)(x).reshape(12, 12))


@pytest.mark.parametrize("length", [3, 5, 24])
@pytest.mark.parametrize("batch", [(4,), (2, 1, 1), (1, 3, 1), (2, 1, 4)])
def test_operands_that_repeat_over_a_batch(length: int, batch: tuple[int, ...]) -> None:
    scores, scale, mask = of((2, 3, 4, length), (), (*batch, length))
    for mine, reference in zip(
        *(repeated(f, (scores, scale, mask), 2) for f in (attention, attention.definition)), strict=True
    ):
        for y, expected in zip(mine, reference, strict=True):
            assert_close(y, expected, rtol=1e-10, atol=1e-12)


@ad.rowwise
def attention_weights(scores, mask, scale=1.0):  # type: ignore[no-untyped-def]
    """Scale, mask and softmax in one pass."""
    return torch.softmax(scores * scale + mask, -1)


def attend(weights: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return weights(q @ k.mT, mask, q.shape[-1] ** -0.5) @ v


def test_attention_under_second_derivatives() -> None:
    """An energy of attention: its Hessian-vector product, Laplacian, and the gradient of a loss on its forces."""
    q, k, v = (x.detach() for x in of((2, 3, 4, 5), (2, 3, 4, 5), (2, 3, 4, 5)))
    causal = torch.full((4, 4), float("-inf"), dtype=torch.float64).triu(1)

    def energies(weights: Any) -> Any:
        def energy(q: torch.Tensor) -> torch.Tensor:
            return attend(weights, q, k, q.sin() + v, causal).pow(2).sum()

        forces = torch.func.grad(lambda q: torch.func.grad(energy)(q).pow(2).sum())(q)
        return torch.func.jvp(torch.func.grad(energy), (q,), (v,))[1], forces, hessian(energy)(q)

    for mine, reference in zip(energies(attention_weights), energies(attention_weights.definition), strict=True):
        assert_close(mine, reference)

    sdpa = torch.nn.functional.scaled_dot_product_attention
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert_close(attend(attention_weights, q, k, v, causal), sdpa(q, k, v, causal))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 37, 70), (16, 16), (3, 2, 17), (40,), (1, 100)])
def test_rows_of_any_stride(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    total = ad.rowwise(lambda x: x - x.mean(-1, keepdim=True))
    x = torch.randn(shape).to(dtype)
    layouts = [x.expand(2, *shape).movedim(0, -1)[..., 0], x[..., ::3], x.flip(-1)[..., :-1]]
    for y in [*layouts, *(x.movedim(d, -1) for d in range(x.dim()))]:
        assert torch.equal(total(y), total(y.contiguous()))


REDUCED_OPERANDS = {
    "logsumexp": lambda x, y: x * y.logsumexp(-1, keepdim=True),
    "softmax": lambda x, y: x * torch.softmax(y, -1),
    "var": lambda x, y: x * y.var(-1, keepdim=True, correction=0),
    "vector_norm": lambda x, y: x * torch.linalg.vector_norm(y, dim=-1, keepdim=True),
    "length": lambda x, y: x * y.shape[-1],
    "vecdot": lambda x, y: torch.linalg.vecdot(x, y),
    "sum": lambda x, y: x * y.sum(-1, keepdim=True),
}


@pytest.mark.usefixtures("kernels_when_long")
@pytest.mark.parametrize("shapes", [((4, 3), (4, 1)), ((4, 1), (4, 3)), ((4, 3), (1, 1)), ((2, 4, 3), (4, 1))], ids=str)
@pytest.mark.parametrize("name", REDUCED_OPERANDS)
def test_a_reduction_of_what_has_one_value_a_row(name: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    """The definition runs, whatever the shapes are of the usual call."""
    definition = REDUCED_OPERANDS[name]
    op = ad.rowwise(definition)
    xs = [torch.rand(shape, dtype=torch.float64, requires_grad=True) + 0.1 for shape in shapes]
    for _ in range(2):
        y, expected = op(*xs), definition(*xs)
        torch.testing.assert_close(y, expected)
        slopes = (torch.autograd.grad(z.sum(), xs, materialize_grads=True) for z in (y, expected))
        torch.testing.assert_close(*slopes)


def test_how_many_dimensions_there_are_is_not_known() -> None:
    with pytest.raises(TypeError, match="asks for another size than that of a row"):
        ad.rowwise(lambda x: x / len(x.shape))


def test_an_argument_may_be_called_self_by_who_calls() -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'input'"):
        ad.pow(self=2.0, exponent=torch.ones(2))
