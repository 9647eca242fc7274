"""quadratic_form: every batch shape, layout, dtype and derivative, against the definition, loops and closed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from drop_in import row
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, functionalize, grad, hessian, jacfwd, jacrev, vmap
from torch.profiler import profile
from torch.testing import assert_close

import torchad_ext as ad
from torchad_ext._quadratic_form import definition, quadratic_form

Shapes = tuple[tuple[int, ...], tuple[int, ...]]

SHAPES: list[Shapes] = [
    ((3,), (3, 3)),
    ((4, 3), (3, 3)),
    ((5, 2, 3), (3, 3)),
    ((1, 3), (3, 3)),
    ((4, 3), (4, 3, 3)),
    ((4, 3), (1, 3, 3)),
    ((3,), (4, 3, 3)),
    ((1, 3), (4, 3, 3)),
    ((2, 1, 3), (4, 3, 3)),
    ((1,), (1, 1)),
    ((2, 1), (2, 1, 1)),
]
EMPTY: list[Shapes] = [((0,), (0, 0)), ((2, 0), (2, 0, 0)), ((2, 0), (0, 0)), ((0, 3), (3, 3)), ((0, 3), (0, 3, 3))]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
MODES = ["ff", "rr", "rf", "fr", "fff", "rrr", "rfr", "frf"]


def named(shapes: Shapes) -> str:
    return "x{} A{}".format(*(list(shape) for shape in shapes))


def pair(shapes: Shapes, device: str, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, A = (torch.randn(shape, dtype=torch.float64, generator=generator).to(device, dtype) for shape in shapes)
    return x, A


def by_loops(x: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """q = sum_ij x_i A_ij x_j with nothing but Python arithmetic."""
    batch = torch.broadcast_shapes(x.shape[:-1], A.shape[:-2])
    n = x.shape[-1]
    xs = x.expand(*batch, n).reshape(batch.numel(), n).tolist()
    As = A.expand(*batch, n, n).reshape(batch.numel(), n, n).tolist()
    values = [sum(u[i] * B[i][j] * u[j] for i in range(n) for j in range(n)) for u, B in zip(xs, As, strict=True)]
    return torch.tensor(values, dtype=torch.float64, device=x.device).reshape(batch)


shapes = pytest.mark.parametrize("shapes", SHAPES, ids=named)


class TestValue:
    @pytest.mark.parametrize("shapes", SHAPES + EMPTY, ids=named)
    def test_against_loops(self, shapes: Shapes, device: str) -> None:
        x, A = pair(shapes, device)
        assert_close(quadratic_form(x, A), by_loops(x, A))
        assert_close(definition(x, A), by_loops(x, A))

    @pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64, 65, 127, 130, 257, 700])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("batch", [(), (3,)], ids=["one", "batch"])
    @row("dtypes")
    def test_every_size_and_dtype(self, n: int, dtype: torch.dtype, batch: tuple[int, ...], device: str) -> None:
        x, A = pair(((*batch, n), (*batch, n, n)), device)
        x, A = x.to(dtype), (A / n**0.5).to(dtype)
        terms = definition(x.double().abs(), A.double().abs())
        for product in (False, True):
            q = quadratic_form(x.requires_grad_(product), A)
            assert q.dtype == dtype
            error = (q.double() - definition(x.double(), A.double())).abs()
            assert (error <= 2 * torch.finfo(dtype).eps * terms).all()

    def test_the_number_of_threads_changes_no_bit(self) -> None:
        x, A = pair(((900,), (900, 900)), "cpu", torch.float32)
        threads = torch.get_num_threads()
        try:
            results = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                x = x.detach().requires_grad_()
                q = quadratic_form(x, A)
                results.append((q, torch.autograd.grad(q, x)[0]))
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))

    @pytest.mark.parametrize(
        "layout",
        [
            lambda x, A: (x, A.mT),
            lambda x, A: (x.flip(-1)[..., ::2], A[..., ::2, ::2]),
            lambda x, A: (x[..., 1:], A[..., 1:, 1:]),
            lambda x, A: (x[..., :1].expand_as(x), A),
            lambda x, A: (x, A[..., :1].expand_as(A)),
            lambda x, A: (x, A[:1].expand_as(A)),
            lambda x, A: (
                x.transpose(0, 1).contiguous().transpose(0, 1),
                A.permute(2, 0, 1).contiguous().permute(1, 2, 0),
            ),
        ],
        ids=["transposed", "stepped", "sliced", "repeated x", "repeated columns", "repeated A", "batch innermost"],
    )
    @row("layouts")
    def test_layouts(self, layout: Callable[..., Any], device: str) -> None:
        x, A = layout(*pair(((6, 8), (6, 8, 8)), device))
        before = x.clone(), A.clone()
        leaves = x.detach().requires_grad_(), A.detach().requires_grad_()
        assert_close(quadratic_form(x, A), by_loops(x, A))
        for result, expected in zip(
            torch.autograd.grad(quadratic_form(*leaves).sum(), leaves),
            torch.autograd.grad(definition(*leaves).sum(), leaves),
            strict=True,
        ):
            assert_close(result, expected)
        assert torch.equal(x, before[0]) and torch.equal(A, before[1])

    @row("dtypes")
    def test_integers_are_native(self, device: str) -> None:
        x, A = torch.arange(3, device=device), torch.arange(9, device=device).reshape(3, 3)
        if device == "cpu":  # CUDA has no integer matrix product
            assert quadratic_form(x, A).item() == definition(x, A).item() == by_loops(x, A).item()


class TestDerivatives:
    @row("reverse mode")
    def test_closed_forms(self, device: str) -> None:
        x, A = (v.requires_grad_() for v in pair(((3,), (3, 3)), device))
        q = quadratic_form(x, A)
        grad_x, grad_A = torch.autograd.grad(q, (x, A), create_graph=True)
        assert_close(grad_x, (A + A.T) @ x)
        assert_close(grad_A, torch.outer(x, x))
        assert_close(hessian(lambda u: quadratic_form(u, A.detach()))(x.detach()), (A + A.T).detach())

    @shapes
    @pytest.mark.parametrize("constant", ["nothing", "x", "A"])
    @row("reverse mode")
    def test_gradcheck_and_gradgradcheck_in_every_mode(self, shapes: Shapes, constant: str, device: str) -> None:
        x, A = pair(shapes, device)
        x.requires_grad_(constant != "x")
        A.requires_grad_(constant != "A")
        assert gradcheck(
            quadratic_form, (x, A), check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
        )
        assert gradgradcheck(
            quadratic_form, (x, A), check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True
        )

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_verify(self, dtype: torch.dtype, device: str) -> None:
        ad.verify(quadratic_form, dtypes=[dtype], devices=[device], quiet=True)

    @pytest.mark.parametrize("shapes", [((3,), (3, 3)), ((4, 3), (3, 3)), ((2, 3), (2, 3, 3))], ids=named)
    @pytest.mark.parametrize("modes", MODES)
    @pytest.mark.parametrize("argnums", [(0,), (1,), (0, 1)], ids=str)
    @row("forward mode")
    def test_nested_modes(self, shapes: Shapes, modes: str, argnums: tuple[int, ...], device: str) -> None:
        x, A = pair(shapes, device)

        def nest(f: Callable[..., Any]) -> Any:
            def energy(u: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
                return (f(u, B).square() * u.sum()).sum()

            for mode in modes:
                energy = jacfwd(energy, argnums) if mode == "f" else jacrev(energy, argnums)
            return energy(x, A)

        assert_close(nest(quadratic_form), nest(definition))

    @shapes
    @pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0), (-1, None), (0, -1)], ids=str)
    @row("torch.func")
    def test_vmap_inside_and_outside_of_grad(
        self, shapes: Shapes, in_dims: tuple[int | None, int | None], device: str
    ) -> None:
        x, A = pair(shapes, device)
        x, A = (v if d is None else torch.stack([v, v.sin(), v + 1], d) for v, d in zip((x, A), in_dims, strict=True))
        for take in (
            lambda f: vmap(f, in_dims),
            lambda f: vmap(grad(lambda u, B: f(u, B).sum().sin(), (0, 1)), in_dims),
            lambda f: grad(lambda u, B: vmap(f, in_dims)(u, B).sin().sum(), (0, 1)),
            lambda f: vmap(hessian(lambda u, B: f(u, B).sum().sin(), (0, 1)), in_dims),
        ):
            assert_close(take(quadratic_form)(x, A), take(definition)(x, A))

    @row("torch.func")
    def test_functionalize_around_and_inside_of_other_transforms(self, device: str) -> None:
        x, A = pair(((3,), (3, 3)), device)
        for take in (
            lambda f: functionalize(jacfwd(f, (0, 1))),
            lambda f: functionalize(jacrev(jacrev(f), (0, 1))),
            lambda f: jacrev(functionalize(jacrev(f)), (0, 1)),
        ):
            assert_close(take(quadratic_form)(x, A), take(definition)(x, A))

    @pytest.mark.parametrize("shapes", EMPTY, ids=named)
    @row("layouts")
    def test_empty(self, shapes: Shapes, device: str) -> None:
        x, A = (v.requires_grad_() for v in pair(shapes, device))
        gradients = torch.autograd.grad(quadratic_form(x, A).sum(), (x, A), create_graph=True)
        assert all(g.shape == v.shape and not g.any() for g, v in zip(gradients, (x, A), strict=True))
        second = torch.autograd.grad([g.sum() for g in gradients], (x, A), allow_unused=True)
        assert all(g is None or not g.any() for g in second)

    @row("torch.func")
    def test_mixed_expression_has_the_native_hessian(self, device: str) -> None:
        x, A = pair(((6,), (6, 6)), device)
        ours = torch.autograd.functional.hessian(lambda u: quadratic_form(u, A) + (ad.sin(u) * ad.exp(u)).sum(), x)
        native = torch.autograd.functional.hessian(lambda u: definition(u, A) + (u.sin() * u.exp()).sum(), x)
        assert_close(ours, native, rtol=1e-14, atol=1e-14)
        assert_close(ours, A + A.T + torch.diag(2 * x.cos() * x.exp()), rtol=1e-14, atol=1e-14)

    @row("torch.func")
    def test_a_module_with_learned_A(self, device: str) -> None:
        class Energy(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.A = torch.nn.Parameter(pair(((1,), (4, 4)), device)[1])

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return quadratic_form(x, self.A)

        energy = Energy().to(device)
        x = torch.randn(5, 4, dtype=torch.float64, device=device, requires_grad=True)
        (force,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
        force.square().sum().backward()
        A = energy.A.detach()
        S = (A + A.T) @ (x.T @ x).detach() * 2
        assert_close(energy.A.grad, S + S.T)
        result = grad(lambda p: functional_call(energy, p, (x.detach(),)).sum())(dict(energy.named_parameters()))
        assert_close(result["A"], (x.T @ x).detach())


def test_value_and_gradient_read_A_once(device: str) -> None:
    x, A = (v.requires_grad_() for v in pair(((200,), (200, 200)), device))
    with profile() as recorded:
        torch.autograd.grad(quadratic_form(x, A), x)
    names = [event.name for event in recorded.events()]
    assert names.count("torchad_ext::quadratic_form_and_product") == 1
    assert not any("mm" in name or "mv" in name for name in names)


def test_the_gradient_of_A_is_not_computed_for_who_asks_for_that_of_x(device: str) -> None:
    x, A = (v.requires_grad_() for v in pair(((9,), (9, 9)), device))
    twice = A * 2  # not a leaf
    for matrix, inputs, outer in ((A, (x,), 0), (twice, (x,), 0), (A, (x, A), 1), (twice, (A,), 1), (A, (A,), 1)):
        with profile() as recorded:
            results = torch.autograd.grad(quadratic_form(x, matrix), inputs, retain_graph=True)
        assert [event.name for event in recorded.events()].count("torchad_ext::quadratic_form_outer") == outer
        for result, expected in zip(
            results, torch.autograd.grad(definition(x, matrix), inputs, retain_graph=True), strict=True
        ):
            assert_close(result, expected)


@pytest.mark.parametrize("shapes", [((4,), (4, 4)), ((3, 4), (4, 4)), ((3, 4), (3, 4, 4)), ((4,), (3, 4, 4))])
@pytest.mark.parametrize("of", [0, 1])
def test_batched_gradients_of_gradients(shapes: Any, of: int, device: str) -> None:
    xs = [torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True) for shape in shapes]
    (slope,) = torch.autograd.grad(quadratic_form(*xs).sum(), xs[0], create_graph=True)
    cotangents = torch.randn(5, *slope.shape, dtype=torch.float64, device=device)
    (result,) = torch.autograd.grad(slope, xs[of], cotangents, is_grads_batched=True, retain_graph=True)
    rows = [torch.autograd.grad(slope, xs[of], row, retain_graph=True)[0] for row in cotangents]
    assert_close(result, torch.stack(rows))


@pytest.mark.parametrize("n", [5, 17])
def test_infinities_stay_where_native_has_them(n: int, device: str) -> None:
    x, A = pair(((n,), (n, n)), device, torch.float32)
    A[-1, 1] = torch.inf
    for leaves in ((x, A), (x.index_fill(0, torch.tensor([2], device=device), torch.inf), torch.eye(n, device=device))):
        ours, native = (
            torch.autograd.grad(f(*(u := [v.clone().requires_grad_() for v in leaves])), u)
            for f in (quadratic_form, definition)
        )
        for result, expected in zip(ours[leaves[0].isinf().any() :], native[leaves[0].isinf().any() :], strict=True):
            assert torch.equal(result.isnan(), expected.isnan()) and torch.equal(result.isinf(), expected.isinf())


class TestErrors:
    @pytest.mark.parametrize(
        ("x", "A", "message"),
        [
            ((3,), (4, 4), r"x \[3\] and A \[4, 4\]"),
            ((3,), (3, 4), r"square A; got x \[3\] and A \[3, 4\]"),
            ((), (3, 3), r"x \[\.\.\., n\] and A \[\.\.\., n, n\]; got x \[\]"),
            ((3,), (3,), r"got x \[3\] and A \[3\]"),
            ((2, 3), (4, 3, 3), r"batch dimensions \[2\] of x and \[4\] of A do not broadcast"),
        ],
        ids=str,
    )
    @row("errors")
    def test_shapes(self, x: tuple[int, ...], A: tuple[int, ...], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            quadratic_form(torch.zeros(x), torch.zeros(A))

    @row("errors")
    def test_dtypes(self) -> None:
        with pytest.raises(ValueError, match=r"x is torch.float32, A is torch.float64; convert one, A.to\(x.dtype\)"):
            quadratic_form(torch.zeros(3), torch.zeros(3, 3, dtype=torch.float64))

    @row("errors")
    def test_devices(self) -> None:
        with pytest.raises(ValueError, match=r"x is on cpu, A is on meta; move one, A.to\(x.device\)"):
            quadratic_form(torch.zeros(3), torch.zeros(3, 3, device="meta"))

    @pytest.mark.parametrize(
        ("x", "A"), [(torch.zeros(1).numpy(), torch.zeros(1, 1)), (torch.zeros(1), torch.zeros(1, 1).numpy())]
    )
    @row("errors")
    def test_numpy_arrays(self, x: Any, A: Any) -> None:
        with pytest.raises(TypeError, match=r"got ndarray for [xA]; write torch.as_tensor\([xA]\)"):
            quadratic_form(x, A)

    @row("errors")
    def test_numbers(self) -> None:
        with pytest.raises(TypeError, match="got float for x"):
            quadratic_form(1.0, torch.zeros(1, 1))  # type: ignore[arg-type]


class TestWithoutKernels:
    @row("torch.compile")
    def test_tracing_sees_the_definition(self) -> None:
        x, A = pair(((4, 3), (3, 3)), "cpu")
        compiled = torch.compile(lambda u, B: quadratic_form(u, B).sin(), fullgraph=True, backend="aot_eager")
        assert_close(compiled(x, A), definition(x, A).sin())

    @row("fake and meta")
    def test_meta_tensors(self) -> None:
        x, A = pair(((4, 3), (3, 3)), "meta")
        assert quadratic_form(x, A).shape == (4,)

    @row("autocast")
    def test_autocast_gives_the_native_dtype(self, device: str) -> None:
        x, A = pair(((4, 3), (3, 3)), device, torch.float32)
        with torch.autocast(device, dtype=torch.bfloat16):
            assert quadratic_form(x, A).dtype == definition(x, A).dtype

    @row("dtypes")
    def test_complex_is_native(self, device: str) -> None:
        x, A = (v.to(torch.complex128) * (1 + 1j) for v in pair(((4, 3), (3, 3)), device))
        assert_close(quadratic_form(x, A), definition(x, A))
