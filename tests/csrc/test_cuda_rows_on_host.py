"""The CUDA kernels of rows and what launches them, on a driver that runs them on the host: what they compute, shown
where there is no GPU."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from emulated_cuda import address
from selection import few
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jacfwd, jacrev, vmap
from torch.testing import assert_close

import torchad_ext as ad
from torchad_ext._native import kernels, loader, toolchain
from torchad_ext._row_function import RowFunction, shape_of
from torchad_ext.rows import ROW_CATALOGUE

pytestmark = [
    pytest.mark.skipif(toolchain.find_cxx() is None, reason="no C++ compiler"),
    pytest.mark.usefixtures("emulated_cuda"),
]

Tensors = Sequence[torch.Tensor]
LENGTHS = (1, 3, 8, 9, 31, 32, 33, 256, 1000, 1024, 1025, 5000)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def norm(x, weight, bias, eps=1e-5):  # type: ignore[no-untyped-def]
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * weight + bias


def attention(scores, scale, mask):  # type: ignore[no-untyped-def]
    """Operands of every kind, results of every kind, sums of every kind; e^x is taken in two passes."""
    weights = torch.softmax(scores * scale + mask, -1)
    return weights, scores.amax(-1, keepdim=True) * scale.sum(-1, keepdim=True), (weights * scores).amin(-1)


def share(x):  # type: ignore[no-untyped-def]
    return torch.softmax(x, -1)


def product(x, weight):  # type: ignore[no-untyped-def]
    return x * weight


def weighted_sum(x, weight):  # type: ignore[no-untyped-def]
    return x.sum(-1, keepdim=True) * weight


KINDS = {  # of their operands
    norm: ("tensor", "column", "column"),
    attention: ("tensor", "row", "column"),
    product: ("tensor", "column"),
    weighted_sum: ("tensor", "column"),
}


@functools.cache
def member(function: Callable[..., Any], order: int) -> RowFunction:
    """A function, or the vjp of that of the order before, with every gradient."""
    op = ad.rowwise(function)
    kinds = KINDS.get(function, ("tensor",) * len(op.__signature__.parameters))
    _, found, _ = op.resolve(op.bound([torch.zeros(shape_of(kind, (2, 3))) for kind in kinds], {}))
    for _ in range(order):
        found = found.vjp(*found._masks(-1, -1)).function
    assert isinstance(found, RowFunction)
    return found


def operands(function: RowFunction, shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    """Small numbers: the error of e^x is that of x times x."""
    generator = torch.Generator().manual_seed(0)
    shapes = [shape_of(x.op, shape) for x in function.program.inputs]
    return [(0.3 * torch.randn(s, dtype=torch.float64, generator=generator)).to(dtype) for s in shapes]


def run(function: RowFunction, xs: Tensors, shape: tuple[int, ...], numbers: Sequence[float] = ()) -> list[Any]:
    at = address(function, xs[0].dtype)
    results: list[Any] = torch.ops.torchad_ext_on_host.rowwise(at, list(xs), list(numbers), list(shape))
    return results


def defined(function: RowFunction, xs: Tensors, shape: tuple[int, ...], numbers: Sequence[float] = ()) -> list[Any]:
    results = function.definition(shape, *(x.double() for x in xs), *numbers)
    return list(results) if isinstance(results, tuple) else [results]


def assert_like(results: Tensors, exact: Tensors) -> None:
    """Equal but for the roundings of the type that is computed in, and a last one."""
    scale = max(float(y.abs().max()) for y in exact)
    for y, expected in zip(results, exact, strict=True):
        assert y.shape == expected.shape and y.is_contiguous()
        computed, stored = torch.finfo(torch.promote_types(y.dtype, torch.float32)), torch.finfo(y.dtype)
        bound = 20 * computed.eps * scale + 0.51 * (stored.eps * expected.abs() + stored.smallest_normal * stored.eps)
        assert ((y.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize(
    ("order", "dtype"), few(itertools.product(range(3), DTYPES), lambda k, dtype: k == 1 and dtype == torch.float32)
)
@pytest.mark.parametrize("length", LENGTHS)
def test_every_length(length: int, order: int, dtype: torch.dtype) -> None:
    function, shape = member(attention, order), (5, 4, length)
    xs = operands(function, shape, dtype)
    assert_like(run(function, xs, shape), defined(function, xs, shape))


@pytest.mark.parametrize("length", [3, 33, 1030])
def test_what_the_cpu_computes(length: int) -> None:
    function, shape = member(norm, 2), (70, length)
    xs = operands(function, shape, torch.float64)
    of_cpu = function.kernel("cpu", torch.float64, length <= 16)
    assert of_cpu
    for y, expected in zip(run(function, xs, shape, [1e-5]), of_cpu(xs, [1e-5], shape), strict=True):
        assert_close(y, expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "a dimension that does not merge": lambda x: torch.stack([x, x], 1)[:, 0],
    "every other element": lambda x: torch.stack([x, x], -1)[..., 0],
    "not aligned": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
    "rows an odd number apart": lambda x: torch.cat([x, x[..., :1]], -1)[..., : x.shape[-1]],
    "rows further apart": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
}


@pytest.mark.parametrize("length", [8, 40, 1032])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_have_the_same_bits(layout: str, length: int) -> None:
    function, shape = member(attention, 1), (3, 4, length)
    xs = operands(function, shape, torch.float32)
    changed = [LAYOUTS[layout](x) if x.dim() == 3 else torch.stack([x, x], -1)[:, 0] for x in xs]
    assert [x.stride() for x in changed] != [x.stride() for x in xs] or layout == "not aligned"
    for y, same in zip(run(function, changed, shape), run(function, xs, shape), strict=True):
        assert torch.equal(y, same)


@pytest.mark.parametrize("shape", [(6, 40), (2, 3, 8), (7,)])
def test_operands_that_repeat_one_number(shape: tuple[int, ...]) -> None:
    function = member(attention, 1)
    xs = [x.flatten()[0].expand(x.shape) for x in operands(function, shape, torch.float32)]
    for y, same in zip(run(function, xs, shape), run(function, [x.contiguous() for x in xs], shape), strict=True):
        assert torch.equal(y, same)


@pytest.mark.parametrize(
    ("rows", "length"), few([(9000, 3), (2100, 40), (600, 300), (300, 1100)], lambda rows, length: length == 40)
)
def test_sums_over_many_rows(rows: int, length: int) -> None:
    """More rows than a block has groups; one pack for each lane, and more."""
    function, shape = member(attention, 1), (rows, length)
    assert "column" in function.kinds
    xs = operands(function, shape, torch.float32)
    results = run(function, xs, shape)
    assert_like(results, defined(function, xs, shape))
    for y, again in zip(results, run(function, xs, shape), strict=True):
        assert torch.equal(y, again)


def test_sums_over_more_rows_than_there_are_groups() -> None:
    function, shape = member(product, 1), (300_000, 2)  # two rows a group
    xs = operands(function, shape, torch.float32)
    assert_like(run(function, xs, shape), defined(function, xs, shape))


def test_the_rows_of_a_block_wait_for_each_other() -> None:
    """One pass, and two rows a block: the second is not reduced where the first still is."""
    function, shape = member(weighted_sum, 1), (260, 1028)
    xs = operands(function, shape, torch.float32)
    assert_like(run(function, xs, shape), defined(function, xs, shape))


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9])
@pytest.mark.parametrize("length", [1, 3, 64, 2000])
def test_rows_that_do_not_fill_a_block(rows: int, length: int) -> None:
    function, shape = member(attention, 0), (rows, length)
    xs = operands(function, shape, torch.float32)
    assert_like(run(function, xs, shape), defined(function, xs, shape))


def test_a_long_sum_is_as_accurate_as_pytorchs() -> None:
    total = member(lambda x: x.sum(-1, keepdim=True), 0)
    x = torch.rand(2, 400_003)
    exact = x.double().sum(-1, keepdim=True)
    error, native = ((y.double() - exact).abs().max() for y in (*run(total, [x], (2, 400_003)), x.sum(-1, True)))
    assert error <= max(native, torch.finfo(torch.float32).eps * exact.max())


@pytest.mark.parametrize("length", [1, 3, 8, 40, 1500])
@pytest.mark.parametrize("dtype", few(DTYPES, lambda dtype: dtype == torch.float32))
def test_nan_and_infinity_are_as_native(length: int, dtype: torch.dtype) -> None:
    x = torch.linspace(-2, 2, 8 * length, dtype=torch.float64).view(8, length).to(dtype)
    nan, inf = float("nan"), float("inf")
    x[0, 0], x[1, -1], x[2, length // 2] = nan, inf, -inf
    x[3], x[4], x[5] = -inf, inf, nan
    (y,) = run(member(share, 0), [x], (8, length))
    assert_close(y, torch.softmax(x.double(), -1).to(dtype), equal_nan=True)
    largest = member(lambda x: x.amax(-1, keepdim=True), 0)
    assert torch.equal(run(largest, [x], (8, length))[0].nan_to_num(7.0), x.amax(-1, keepdim=True).nan_to_num(7.0))


@pytest.mark.parametrize("length", [2, 8, 40, 1100])
def test_ties_share_the_slope_of_an_extremum(length: int) -> None:
    """The largest of products that are computed in two passes: it equals them only if both round alike."""
    function = member(lambda x, y: (x * y + y).amax(-1, keepdim=True), 1)
    x = torch.linspace(-1, 1, length).sin().repeat(6, 1)
    x[1], x[2, 1] = 0.3, x[2, 0]
    y = torch.full_like(x, 0.7)
    xs = x.double().requires_grad_()
    g = torch.linspace(1, 2, 6).unsqueeze(-1)
    largest = (xs * y.double() + y.double()).amax(-1, keepdim=True)
    (expected,) = torch.autograd.grad(largest, xs, g.double())
    names = {str(i.value): i for i in function.program.inputs}
    given = dict(zip(names, (x, y, g), strict=True))
    assert_close(run(function, [given[name] for name in names], (6, length))[0], expected.float())


class TestOps:
    """Calls of an op, with every derivative by such kernels: CPU tensors take them for once."""

    @pytest.fixture(autouse=True)
    def ran(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        names: list[str] = []

        def compile_rowwise(name: str, dtype: torch.dtype, device: str, source: Any) -> Callable[..., Any]:
            found = loader.load_kernel(name, "cuda", source)

            def kernel(xs: Tensors, numbers: Sequence[float], shape: Sequence[int]) -> Any:
                names.append(name)
                return torch.ops.torchad_ext_on_host.rowwise(found, list(xs), list(numbers), list(shape))

            return kernel

        source = RowFunction.source
        monkeypatch.setattr(RowFunction, "source", lambda self, device, dtype, _=False: source(self, "cuda", dtype))
        monkeypatch.setattr(RowFunction, "fast_function", None)
        monkeypatch.setattr(kernels, "compile_rowwise", compile_rowwise)
        return names

    @staticmethod
    def of(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        numbers = (0.3 * torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes)
        return tuple(x.to(dtype).requires_grad_() for x in numbers)

    @staticmethod
    def derivatives(f: Callable[..., Any], xs: Tensors) -> list[Any]:
        """The value, its gradients, and the gradients of those, for fixed cotangents."""
        found, results = [], f(*xs)
        for _ in range(2):
            results = results if isinstance(results, tuple) else (results,)
            found += results
            results = [y for y in results if y.requires_grad]
            cotangents = [torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape) for y in results]
            results = torch.autograd.grad(results, xs, cotangents, create_graph=True, materialize_grads=True)
        return [y.detach() for y in (*found, *results)]

    @pytest.mark.parametrize("function", [norm, attention], ids=lambda f: f.__name__)
    @pytest.mark.parametrize("length", few([0, *LENGTHS], lambda n: n in (0, 33)))
    def test_two_orders_against_float64(self, function: Any, length: int, ran: list[str]) -> None:
        op = ad.rowwise(function)
        shapes = ((5, length), *([(length,)] * 2 if function is norm else [(5, 1), (length,)]))
        if length == 0 and function is attention:
            pytest.skip("no elements have no largest")
        xs = self.of(*shapes, dtype=torch.float32)
        exact = self.derivatives(function, [x.detach().double().requires_grad_() for x in xs])
        results = self.derivatives(op, xs)
        scale = max((float(y.abs().max()) for y in exact if y.numel()), default=1.0)
        for y, expected in zip(results, exact, strict=True):
            assert_close(y.double(), expected, rtol=0, atol=30 * torch.finfo(torch.float32).eps * scale)
        assert len(ran) == (3 if length else 0)
        assert ran[:1] == ([op._order(0).name + "_recorded"] if length > 16 else [op._order(0).name] if length else [])

    @pytest.mark.long
    @pytest.mark.parametrize("length", [3, 20])
    def test_every_mode_against_finite_differences(self, length: int) -> None:
        op, xs = ad.rowwise(norm), self.of((3, length), (length,), (length,))
        assert gradcheck(op, xs, check_forward_ad=True, check_batched_grad=True)
        assert gradgradcheck(op, xs, check_fwd_over_rev=True, fast_mode=True)

    def test_transforms(self) -> None:
        op, (x, weight) = ad.rowwise(norm), (x.detach() for x in self.of((3, 4), (4,)))
        for outer, inner in ((jacfwd, jacrev), (jacrev, jacfwd)):
            mine, reference = (
                outer(inner(lambda w, f=f: f(x, w, w).pow(2).sum(0)))(weight) for f in (op, op.definition)
            )
            assert_close(mine, reference)
        in_batch = vmap(op, (0, None, None))(torch.stack([x, x.sin()]), weight, weight)
        assert_close(in_batch[1], norm(x.sin(), weight, weight))

    def test_a_laplacian(self) -> None:
        op, (x, weight) = ad.rowwise(norm), (x.detach() for x in self.of((5, 4), (4,)))
        mine, reference = (ad.laplacian(lambda x, f=f: f(x, weight, weight).pow(3).sum(-1), x) for f in (op, norm))
        assert_close(mine, reference)


def test_tensors_on_cuda_are_given_to_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors that say they are on CUDA: the kernel is found as for every call there."""
    for asked in ("device_for", "device_of"):
        monkeypatch.setattr(kernels, asked, lambda xs: "cuda")
    monkeypatch.setattr(kernels, "_load", lambda name, device: getattr(torch.ops.torchad_ext_on_host, name))
    op, xs = ad.rowwise(attention), TestOps.of((5, 3), (5, 1), (3,))
    for y, expected in zip(TestOps.derivatives(op, xs), TestOps.derivatives(attention, xs), strict=True):
        assert_close(y, expected)
    assert list(op.resolve(xs)[1]._kernels) == [("cuda", torch.float64)]


@pytest.mark.long
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("name", ROW_CATALOGUE)
def test_the_catalogue(name: str, order: int) -> None:
    op = ROW_CATALOGUE[name]
    function = op._order(order)
    assert isinstance(function, RowFunction)
    numbers = [1e-5] * len(function.program.scalars)  # each is an eps
    for shape in ((3, 3), (4, 40), (2, 1100)):
        xs = operands(function, shape, torch.float64)
        for y, expected in zip(run(function, xs, shape, numbers), defined(function, xs, shape, numbers), strict=True):
            assert_close(y, expected, rtol=1e-11, atol=1e-12 * max(1.0, float(expected.abs().max())))


def test_a_failure_carries_cudas_name_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILING_LAUNCHES", "1")
    with pytest.raises(RuntimeError, match=r"CUDA_ERROR_INVALID_VALUE .* at the launch of \w+_float32_\w+;"):
        run(member(share, 0), [torch.ones(2, 3)], (2, 3))


@pytest.mark.parametrize(
    ("xs", "shape", "message"),
    [
        ([torch.ones(0, 3)], (0, 3), "was given no elements"),
        ([torch.ones(3, 0)], (3, 0), "was given no elements"),
        ([torch.ones(2, 4)], (2, 3), "a wrong shape"),
        ([torch.ones(2, 3), torch.ones(2, 3)], (2, 3), "of 1 inputs was given 2 tensors"),
    ],
)
def test_what_a_kernel_does_not_take(xs: Tensors, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        run(member(share, 0), xs, shape)
