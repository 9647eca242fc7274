"""Values of rows that a call keeps for its gradients: derivatives are those that compute them again."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bad_arguments import outcome
from selection import few
from torch.autograd.graph import save_on_cpu
from torch.profiler import profile
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import torchad_ext as ad
from torchad_ext import _row_function
from torchad_ext._native.keys import CSRC
from torchad_ext._symbolic.expr import Expr, row, tensor, topological
from torchad_ext._symbolic.operations import abs_, exp, log, reciprocal, row_sum, sin
from torchad_ext._symbolic.softmaxes import softmaxes, with_known
from torchad_ext.rows import ROW_CATALOGUE


def normal(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


@ad.rowwise
def gate(x, scale):  # type: ignore[no-untyped-def]
    """Two sums, one of what the other gives, and two results."""
    share = torch.softmax(x * scale, -1)
    norm = torch.linalg.vector_norm(x - share, dim=-1, keepdim=True)
    return x * share / norm, norm


@ad.rowwise
def quotient(x, y):  # type: ignore[no-untyped-def]
    """The gradient for x has one value a row, in the shape of x."""
    return (x / y.exp().sum(-1, keepdim=True)).sum(-1)


def derivatives(f: Callable[..., Any], xs: tuple[torch.Tensor, ...], orders: int = 3) -> list[torch.Tensor]:
    """The gradients of each order, each of sines of multiples of the one before."""
    found: list[torch.Tensor] = []
    results = f(*xs)
    for _ in range(orders):
        results = results if isinstance(results, tuple) else (results,)
        multiples = [y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape) for y in results]
        results = torch.autograd.grad(sum(y.sin().sum() for y in multiples), xs, create_graph=True)
        found += results
    return found


@pytest.fixture(params=[pytest.param("C++", marks=pytest.mark.fast_path), "Python"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By which route a call goes."""
    if request.param == "Python":
        monkeypatch.setattr(_row_function.RowFunction, "fast_function", None)
    return str(request.param)


OPS: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    **{
        name: (lambda x, op=ROW_CATALOGUE[name]: op(x), ROW_CATALOGUE[name].definition, ((3, 24),))
        for name in ("softmax", "log_softmax", "logsumexp", "vector_norm", "normalize")
    },
    "gate": (gate, gate.definition, ((2, 3, 24), (2, 3, 1))),
    "quotient": (quotient, quotient.definition, ((2, 24), (2, 24))),
}


@pytest.mark.parametrize("name", few(OPS, lambda name: name in ("softmax", "gate", "quotient")))
def test_three_orders(name: str, way: str) -> None:
    op, definition, shapes = OPS[name]
    xs = tuple(normal(*shape) for shape in shapes)
    for y, expected in zip(derivatives(op, xs), derivatives(definition, xs), strict=True):
        assert_close(y, expected, rtol=1e-10, atol=1e-12 * float(expected.detach().abs().max()))


def rows_softmax(x: torch.Tensor) -> torch.Tensor:
    return ad.softmax(x, -1)


def native_softmax(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x, -1)


def reductions(member: _row_function.RowFunction) -> list[str]:
    return [node.op for node in topological(member.program.outputs) if node.op.startswith("row_")]


def test_what_the_value_sums_the_gradient_does_not() -> None:
    member = ROW_CATALOGUE["softmax"]._usual
    recording = member.recorded(())
    of_sum, result = sorted(recording.kept, key=lambda node: node.op != "reciprocal")
    assert of_sum.op == "reciprocal" and result is member.program.outputs[0]
    gradient = member.vjp((True,), (True,)).function
    assert sorted(reductions(gradient)) == ["row_amax", "row_sum", "row_sum"]
    reading = gradient.recorded(recording.kept).function
    assert reductions(reading) == ["row_sum"]  # with the cotangent
    assert not any(node.op == "exp" for node in topological(reading.program.outputs))


def saved_by(f: Callable[[], torch.Tensor]) -> list[tuple[int, ...]]:
    """The shapes of what the graph of a result saves."""
    shapes: list[tuple[int, ...]] = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(x.shape))
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        f()
    return shapes


def test_a_value_a_row_is_kept_but_of_short_rows_half_types_and_constants(way: str) -> None:
    ad.softmax(normal(3, 24), -1)  # and what calls it in C++ is there
    x = normal(3, 24)
    assert saved_by(lambda: ad.softmax(x, -1)) == [(3, 24), (3, 1), (3, 24)]  # x, a function of the sum, the result
    assert saved_by(lambda: ad.log_softmax(x, -1)) == [(3, 24), (3, 1), (3, 1)]
    short, half, constant = normal(3, 4), normal(3, 24).half(), normal(3, 24).detach()
    assert saved_by(lambda: ad.softmax(short, -1)) == [(3, 4)]
    assert (3, 1) not in saved_by(lambda: ad.softmax(half, -1))
    assert saved_by(lambda: ad.softmax(constant, -1)) == []


@pytest.mark.parametrize("k", few([0, 1], lambda k: k == 1))
def test_some_gradients_of_some_results(k: int, way: str) -> None:
    x, scale = normal(3, 24), normal(3, 1)
    for wanted in ((x,), (scale,), (x, scale)):
        mine, expected = (
            torch.autograd.grad(f(x, scale)[k].sin().sum(), wanted, create_graph=True) for f in (gate, gate.definition)
        )
        assert_close(mine, expected)
        second = [torch.autograd.grad(g[0].square().sum(), (x, scale)) for g in (mine, expected)]
        assert_close(*second)


@pytest.mark.parametrize("context", [nullcontext, save_on_cpu])
def test_hooks_of_saved_tensors(context: Any) -> None:
    x = normal(3, 24)
    with context():
        mine = derivatives(gate_of, (x,), 2)
    assert_close(mine, derivatives(lambda x: gate.definition(x, 2.0 * torch.ones_like(x[:, :1])), (x,), 2))


def gate_of(x: torch.Tensor) -> Any:
    return gate(x, 2.0 * torch.ones_like(x[:, :1]))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(use_reentrant: bool) -> None:
    x = normal(3, 24)
    y = checkpoint(lambda x: ad.softmax(x, -1), x, use_reentrant=use_reentrant)
    y.square().sum().backward()
    assert_close(x.grad, torch.autograd.grad(torch.softmax(x, -1).square().sum(), x)[0])


WRITABLE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "normalize": lambda x: ad.normalize(x, dim=-1),
    "norm": lambda x: ad.vector_norm(x, dim=-1),
    "norm [..., 1]": lambda x: ad.vector_norm(x, dim=-1, keepdim=True),
    "norm of columns": lambda x: ad.vector_norm(x.T, dim=0, keepdim=True),
    "distance": lambda x: ad.distance(x, x.detach().sin()),
    "softmax of a column": lambda x: ad.softmax(x[0].unsqueeze(-1), 0),
}


@pytest.mark.parametrize("name", WRITABLE)
def test_a_result_may_be_written_in_place(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ad.softmax, "moves_from", 0)
    x, f = normal(3, 24), WRITABLE[name]
    (expected,) = torch.autograd.grad(f(x).sin().sum(), x)
    y = f(x)
    y.mul_(2)
    assert_close(torch.autograd.grad((y / 2).sin().sum(), x)[0], expected)


def test_a_softmax_may_not(way: str) -> None:
    """As in PyTorch, whose softmax keeps its result too."""
    y = ad.softmax(normal(3, 24), -1)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e5])
def test_shares_that_vanish(scale: float, way: str) -> None:
    """Gradients from a result that is small, subnormal or zero are no worse than those of plain PyTorch."""
    x = (scale * normal(4, 300)).detach().float().requires_grad_()
    mine, native = derivatives(rows_softmax, (x,), 2), derivatives(native_softmax, (x,), 2)
    exact = derivatives(native_softmax, (x.detach().double().requires_grad_(),), 2)
    for y, of_pytorch, true in zip(mine, native, exact, strict=True):
        errors = [float((of.double() - true).detach().abs().max()) for of in (y, of_pytorch)]
        least = torch.finfo(torch.float32).eps * float(true.detach().abs().max())
        assert errors[0] <= 4 * max(errors[1], least)


@pytest.mark.parametrize("scale", [1e-10, 1e10, 1e13, 1e15, 1e17])
@pytest.mark.parametrize("n", [3, 40])
def test_normalisation_of_large_and_small_rows(n: int, scale: float) -> None:
    """The cube of the reciprocal deviation underflows, which is smaller than all that it is multiplied by."""
    generator = torch.Generator().manual_seed(n)
    x, g, v = (torch.randn(4, n, generator=generator) for _ in range(3))

    def derivatives(f: Callable[..., torch.Tensor], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        at = (x.to(dtype) * scale).requires_grad_()
        (first,) = torch.autograd.grad(f(at, (n,), eps=1e-30), at, g.to(dtype), create_graph=True)
        (second,) = torch.autograd.grad(first, at, v.to(dtype) * scale)
        return first.detach() * scale, second * scale

    found = derivatives(ad.layer_norm, torch.float32)
    expected = derivatives(F.layer_norm, torch.float64)
    torch.testing.assert_close(found, expected, check_dtype=False, rtol=2e-5, atol=2e-5)


def test_batches_of_cotangents() -> None:
    x, v = normal(3, 24), normal(5, 3, 24).detach()
    for create_graph in (False, True):
        y = ad.softmax(x, -1)
        mine = torch.autograd.grad(y, x, v, is_grads_batched=True, create_graph=create_graph)[0]
        assert_close(mine, torch.stack([torch.autograd.grad(torch.softmax(x, -1), x, one)[0] for one in v]))


def test_transforms_over_a_recorded_call() -> None:
    x, v = normal(3, 24), normal(3, 24).detach()

    def product(f: Callable[..., torch.Tensor]) -> torch.Tensor:
        y = f(x, -1)
        (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.func.vmap(lambda v: torch.autograd.grad(g, x, v, retain_graph=True)[0])(v.expand(2, 3, 24))

    assert_close(product(ad.softmax), product(torch.softmax))


def test_the_graph_frees_what_it_kept(way: str) -> None:
    y = ad.softmax(normal(3, 24), -1)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.sum().backward()


@pytest.mark.parametrize(
    "function", [lambda x: torch.softmax(x, -1), lambda x: x - x.mean(-1, keepdim=True)], ids=["kept", "nothing kept"]
)
def test_an_op_that_is_used_no_more_is_freed(function: Callable[..., torch.Tensor]) -> None:
    op = ad.rowwise(lambda x: function(x))
    for _ in range(3):
        derivatives(op, (normal(3, 24),), 2)
    member = weakref.ref(op._usual)
    del op
    for _ in range(4):  # each frees one order of derivative
        gc.collect()
    assert member() is None


def weight_of(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(0, -2)[0]


SPELLINGS: dict[str, list[tuple[Callable[..., Any], Callable[..., Any]]]] = {
    "softmax": [
        (lambda x: ad.softmax(x, -1), lambda x: torch.softmax(x, -1)),
        (lambda x: ad.softmax(x, dim=-1), lambda x: torch.softmax(x, -1)),
        (lambda x: ad.softmax(x, 1), lambda x: torch.softmax(x, 1)),
        (lambda x: ad.softmax(x, 0), lambda x: torch.softmax(x, 0)),
        (lambda x: ad.softmax(x, -1, dtype=torch.float64), lambda x: torch.softmax(x, -1, dtype=torch.float64)),
    ],
    "layer_norm": [
        (lambda x: ad.layer_norm(x, x.shape[-1:]), lambda x: F.layer_norm(x, x.shape[-1:])),
        (
            lambda x: ad.layer_norm(x, [x.shape[-1]], weight_of(x)),
            lambda x: F.layer_norm(x, x.shape[-1:], weight_of(x)),
        ),
        (lambda x: ad.layer_norm(x, x.shape[-1:], eps=1), lambda x: F.layer_norm(x, x.shape[-1:], eps=1)),
        (lambda x: ad.layer_norm(x, x.shape[-2:]), lambda x: F.layer_norm(x, x.shape[-2:])),
        (
            lambda x: ad.layer_norm(x, None, None, weight_of(x)),
            lambda x: F.layer_norm(x, x.shape[-1:], None, weight_of(x)),
        ),
    ],
    "rms_norm": [(lambda x: ad.rms_norm(x, x.shape[-1:]), lambda x: F.rms_norm(x, x.shape[-1:]))],
    "vector_norm": [
        (lambda x: ad.vector_norm(x, dim=-1), lambda x: torch.linalg.vector_norm(x, dim=-1)),
        (lambda x: ad.vector_norm(x, 2, -1, True), lambda x: torch.linalg.vector_norm(x, 2, -1, True)),
        (lambda x: ad.vector_norm(x, 1, -1), lambda x: torch.linalg.vector_norm(x, 1, -1)),
        (lambda x: ad.vector_norm(x, 3, 1), lambda x: torch.linalg.vector_norm(x, 3, 1)),
        (lambda x: ad.vector_norm(x), lambda x: torch.linalg.vector_norm(x)),
    ],
    "normalize": [
        (lambda x: ad.normalize(x), lambda x: F.normalize(x)),
        (lambda x: ad.normalize(x, 1), lambda x: F.normalize(x, 1)),
    ],
    "logsumexp": [
        (lambda x: ad.logsumexp(x, -1), lambda x: torch.logsumexp(x, -1)),
        (lambda x: ad.logsumexp(x, 1, True), lambda x: torch.logsumexp(x, 1, True)),
    ],
    "cosine_similarity": [
        (lambda x: ad.cosine_similarity(x, x[:, :1]), lambda x: F.cosine_similarity(x, x[:, :1])),
        (lambda x: ad.cosine_similarity(x, x.sin(), -1), lambda x: F.cosine_similarity(x, x.sin(), -1)),
    ],
}


@pytest.mark.parametrize("name", few(SPELLINGS, lambda name: name in ("softmax", "layer_norm")))
def test_a_call_that_was_seen_before_is_not_taken_for_another(name: str) -> None:
    for _ in range(3):
        for ours, native in SPELLINGS[name]:
            for shape in ((3, 24), (2, 3, 24), (3, 5), (2, 5, 1)):
                for dtype in (torch.float64, torch.float32):
                    x = normal(*shape).detach().to(dtype).requires_grad_()
                    y, expected = ours(x), native(x)
                    assert y.dtype == expected.dtype and y.shape == expected.shape
                    assert_close(y, expected)
                    if dtype is torch.float32:
                        continue  # of one element the gradient is a difference of terms of 1 / sqrt(eps)
                    cotangent = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
                    assert_close(*(torch.autograd.grad(of, x, cotangent)[0] for of in (y, expected)))


SHAPES = ((4,), (3, 4), (1, 4), (1, 1, 4), (2, 3, 4), (3, 1), (1,), (), (0, 4), (4, 4), (20,), (3, 20))


def calls_of(name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Calls of an op with arguments of many shapes, those that do not fit together included."""
    parameters = ROW_CATALOGUE[name].__signature__.parameters
    xs = [normal(*shape).detach() for shape in SHAPES]
    if "normalized_shape" in parameters:
        weights = [None, *xs]
        return [
            ((x, of), {"weight": weight})
            for x in xs
            for of in (None, (4,), [20], (3, 4), torch.Size([1]))
            for weight in weights
        ]
    pairs = [(x,) for x in xs] if len([p for p in parameters.values() if p.default is p.empty]) == 1 else [
        (x, y) for x in xs for y in xs
    ]  # fmt: skip
    options = [{"dim": dim} for dim in (-1, 0, 1, 2, -2, (-1,))]
    options += [{**of, "keepdim": True} for of in options[:2] if "keepdim" in parameters]
    return [(pair, of) for pair in pairs for of in options]


@pytest.mark.fast_path
@pytest.mark.parametrize("name", ROW_CATALOGUE)
def test_calls_that_cpp_takes_are_what_python_makes_of_them(name: str) -> None:
    op = type(ROW_CATALOGUE[name])(ROW_CATALOGUE[name].definition, name=name)
    calls = calls_of(name)
    for _ in range(2):
        for args, kwargs in calls:
            ours = outcome(lambda: op(*args, **kwargs))  # noqa: B023
            expected = outcome(lambda: op.computed(op.bound(args, kwargs)))  # noqa: B023
            given = [tuple(x.shape) if isinstance(x, torch.Tensor) else x for x in (*args, *kwargs.values())]
            assert type(ours.error) is type(expected.error), (given, str(ours), str(expected))
            assert_close(ours.values, expected.values, msg=lambda text: f"{given}: {text}", equal_nan=True)  # noqa: B023


def test_a_wrong_call_raises_after_right_ones() -> None:
    x = normal(3, 24)
    for _ in range(3):
        ad.layer_norm(x, (24,), normal(24))
    with pytest.raises(RuntimeError, match="expected input with shape"):
        ad.layer_norm(x, (23,))
    with pytest.raises(RuntimeError, match="expected weight with shape"):
        ad.layer_norm(x, (24,), normal(1))
    with pytest.raises(TypeError, match="layer_norm"):
        ad.layer_norm(x, (24,), wait=1)


@pytest.mark.fast_path
def test_the_second_call_is_taken_by_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(3, 24)
    for _ in range(2):
        ad.layer_norm(x, (24,), normal(24), normal(24), 1e-3)
    monkeypatch.setattr(type(ad.layer_norm), "computed", lambda *_: pytest.fail("it went through Python"))
    for eps in (1e-3, 1e-2, 1):
        y = ad.layer_norm(x, [24], normal(24), bias=normal(24), eps=eps)
        assert_close(y, F.layer_norm(x, (24,), normal(24), normal(24), eps))


def test_python_and_cpp_agree_on_which_rows_are_short() -> None:
    header = (CSRC / "rowwise.h").read_text(encoding="utf-8")
    assert f"longest_short_row = {_row_function.SHORT};" in header


@pytest.mark.parametrize(("length", "is_short"), [(_row_function.SHORT, True), (_row_function.SHORT + 1, False)])
def test_rows_of_another_length_than_a_kernel_is_for_are_refused(length: int, is_short: bool) -> None:
    x = normal(2, length).detach()
    op = ROW_CATALOGUE["softmax"]._usual
    right, wrong = (op.kernel("cpu", x.dtype, short) for short in (is_short, not is_short))
    assert_close(right([x], [], x.shape)[0], torch.softmax(x, -1))
    with pytest.raises(RuntimeError, match=f"rows was given rows of {length} elements"):
        wrong([x], [], x.shape)


@pytest.mark.parametrize("change", [lambda x: x.float(), lambda x: x.to_sparse(), lambda x: x.to("meta")])
def test_hooks_that_make_something_else_of_kept_values(change: Callable[..., torch.Tensor], way: str) -> None:
    op = ad.rowwise(lambda x: torch.tanh(x.sum(-1, keepdim=True)))  # whose gradient reads the kept sum, and not x
    x = normal(3, 24)
    (expected,) = torch.autograd.grad(op.definition(x).sin().sum(), x)

    def pack(x: torch.Tensor) -> torch.Tensor:
        return change(x.detach()) if x.shape[-1] == 1 else x

    for _ in range(2):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            y = op(x)
        assert_close(torch.autograd.grad(y.sin().sum(), x)[0], expected)


@pytest.mark.fast_path
def test_a_gradient_that_is_not_differentiated_keeps_nothing() -> None:
    x = normal(300, 24)
    y = ad.normalize(x, dim=-1)
    torch.autograd.grad(y.sum(), x, retain_graph=True)  # and its kernel is there
    for create_graph in (False, True):
        with profile(profile_memory=True) as recorded:
            torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True, create_graph=create_graph)
        most = max(event.cpu_memory_usage for event in recorded.events())
        assert (most > x.nbytes) == create_graph, most


def test_steps_of_the_exponentials_of_a_softmax(way: str) -> None:
    """The largest is 1, to which the softmax times their sum may only be next: on the other side of a step."""

    @ad.rowwise
    def steps(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        e = torch.exp(x - x.amax(-1, keepdim=True).detach())
        beside = torch.where(e == 1, x * x, x), torch.floor(e) * x * x, e.amax(-1, keepdim=True)
        return torch.softmax(x, -1), *beside

    x = torch.randn(40, 24, dtype=torch.float64, requires_grad=True)
    assert_close(derivatives(steps, (x,), 2), derivatives(steps.definition, (x,), 2))


def test_the_sum_of_a_softmax_cancels_in_its_derivatives() -> None:
    """In place of e (r g - r r Σ e g), of a softmax y = e r with r = 1 / Σe: y (g - Σ y g), which has no r."""
    gradient = ad.softmax._order(1).program
    r, y = recorded = ad.softmax._order(0).recorded(()).kept
    program, operands = gradient.recording(recorded, ())
    assert {node.op for node in topological(program.outputs)} == {"tensor", "mul", "sub", "row_sum"}
    assert len(program) == 4 and operands == (1, 3), "the cotangent and y"
    for known in ((r,), (y,)):
        assert len(gradient.recording(known, ())[0]) > 4


X, G = tensor("x"), tensor("g")
E, OTHER = exp(X), exp(G)
R, OTHER_R = (reciprocal(row_sum(e)) for e in (E, OTHER))
Y_KNOWN, R_KNOWN = tensor("y"), row("r")


def test_exponentials_over_their_sum_are_a_softmax_and_nothing_else_is() -> None:
    assert softmaxes([X, E * R, E + R]) == {E: (E * R, R)}
    others = [abs_(X) * reciprocal(row_sum(abs_(X))), sin(X) * reciprocal(row_sum(sin(X)))]
    assert softmaxes([E * X, E * OTHER_R, *others]) == {}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (E * (R * G), Y_KNOWN * G),
        (E * (R * G - R * R * row_sum(E * G)), Y_KNOWN * (G - row_sum(Y_KNOWN * G))),
        (R * row_sum(-E), row_sum(-Y_KNOWN)),
        (E * (R * R * G + R), Y_KNOWN * (R_KNOWN * G + 1)),
        (E * (R + G), reciprocal(R_KNOWN) * (Y_KNOWN * (R_KNOWN + G))),
        (R * (E - G), Y_KNOWN - R_KNOWN * G),
        (E * E, reciprocal(R_KNOWN) * (reciprocal(R_KNOWN) * (Y_KNOWN * Y_KNOWN))),
        (log(R * R), log(R_KNOWN * R_KNOWN)),
    ],
    ids=str,
)
def test_powers_of_a_softmaxs_sum_cancel(expression: Expr, expected: Expr) -> None:
    assert with_known([expression], {R: R_KNOWN, E * R: Y_KNOWN}) == (expected,)


def test_a_second_softmax_divides_by_its_sum() -> None:
    y, r = tensor("other_y"), row("other_r")
    known = {R: R_KNOWN, E * R: Y_KNOWN, OTHER_R: r, OTHER * OTHER_R: y}
    assert with_known([E * OTHER], known) == (reciprocal(R_KNOWN) * (Y_KNOWN * (y * reciprocal(r))),)
