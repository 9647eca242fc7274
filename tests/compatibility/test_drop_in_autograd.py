"""Reverse mode, forward mode and torch.func, for every op, against native autograd of its definition."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, product
from typing import Any

import pytest
import torch
from compiled_together import compiled_together
from drop_in import A_FEW, MISSION, QUADRATIC_FORM, SUBJECTS, Subject, each, every_sixth, row
from selection import few
from torch.autograd import forward_ad
from torch.autograd import functional as AF
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.func import (
    functional_call,
    functionalize,
    grad,
    grad_and_value,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import torchad_ext as ad

Function = Callable[..., torch.Tensor]
SEVERAL = [subject for subject in SUBJECTS if len(subject.inputs(2)) > 1]
SIZE = (3, 4)
SECOND, THIRD = ["f", "fr", "rf", "ff"], ["frf", "rff", "fff"]


@ad.pointwise
def two(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.sin(x) * y, x * torch.exp(y)


@ad.pointwise
def gated(x: torch.Tensor, y: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return torch.tanh(a * x) * y * y


def in_turn(subject: Subject, modes: str) -> bool:
    """Is it the turn of a mode among those of its order? A few subjects take all of the first and second."""
    of_order = THIRD if modes in THIRD else SECOND
    return modes == of_order[SUBJECTS.index(subject) % len(of_order)] or (subject in A_FEW and modes in SECOND)


def named(x: Subject | str) -> str:
    return x.name if isinstance(x, Subject) else x


def all_of(xs: Sequence[torch.Tensor]) -> tuple[int, ...]:
    return tuple(range(len(xs)))


def nested(f: Function, modes: str, xs: Sequence[torch.Tensor]) -> Any:
    """The derivatives of a scalar function of f, each of the one before: f in forward mode, r in reverse mode."""
    result = weighted(lambda *us: f(*us) * us[0].sum())
    for mode in modes:
        result = jacfwd(result, all_of(xs)) if mode == "f" else jacrev(result, all_of(xs))
    return result(*xs)


def both(subject: Subject, compute: Callable[[Function], Any], nonzero: bool = True) -> None:
    """Asserts that the op computes what native autograd of the definition does, and that it is not all zero."""
    ours, native = compute(subject.op), compute(subject.native)
    if nonzero:
        assert any(x.detach().abs().max() > 1e-3 for x in torch.utils._pytree.tree_leaves(native) if x is not None)
    assert_close(ours, native, rtol=1e-10, atol=1e-12)


def same_error(subject: Subject, compute: Callable[[Function], Any]) -> None:
    """Asserts that both raise the same error."""
    with pytest.raises(RuntimeError) as native:
        compute(subject.native)
    with pytest.raises(type(native.value)) as ours:
        compute(subject.op)
    assert str(ours.value).split(". ")[0].split(":")[0] == str(native.value).split(". ")[0].split(":")[0]


def leaves(subject: Subject, device: str, *shape: int) -> tuple[torch.Tensor, ...]:
    return subject.inputs(*(shape or SIZE), device=device, requires_grad=True)


def cotangent(y: torch.Tensor) -> torch.Tensor:
    return torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype, device=y.device).reshape(y.shape)


def weighted(f: Function) -> Function:
    """f as a scalar function whose derivatives are not symmetric in the elements."""
    return lambda *xs: (f(*xs) * cotangent(f(*xs))).sum()


def first_derivatives(f: Function, xs: Sequence[torch.Tensor], **options: Any) -> tuple[torch.Tensor, ...]:
    y = f(*xs)
    return torch.autograd.grad(y, xs, cotangent(y), **options)


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    with compiled_together():
        for subject in SUBJECTS:
            first_derivatives(subject.op, leaves(subject, "cpu"))


class TestGraph:
    @row("reverse mode")
    @each(SUBJECTS)
    def test_the_graph_is_freed_unless_retained(self, subject: Subject, device: str) -> None:
        xs = leaves(subject, device)

        def twice(f: Function, retain: bool) -> list[tuple[torch.Tensor, ...]]:
            y = f(*xs)
            return [torch.autograd.grad(y, xs, cotangent(y), retain_graph=retain) for _ in range(2)]

        both(subject, lambda f: twice(f, True))
        same_error(subject, lambda f: twice(f, False))

    @row("reverse mode")
    @every_sixth(1)
    def test_backward_that_creates_a_graph_accumulates_every_order(self, subject: Subject, device: str) -> None:
        def accumulated(f: Function) -> list[torch.Tensor]:
            xs = leaves(subject, device)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Using backward\\(\\) with create_graph=True")
                weighted(f)(*xs).backward(create_graph=True)
            first = [x.grad.clone() for x in xs]
            sum(g.square().sum() for g in first).backward()
            return [*first, *(x.grad for x in xs)]

        both(subject, accumulated)

    @row("reverse mode")
    @each(SUBJECTS)
    def test_gradients_accumulate(self, subject: Subject, device: str) -> None:
        def accumulated(f: Function) -> list[torch.Tensor]:
            xs = leaves(subject, device)
            for x in xs:
                x.grad = torch.full_like(x, 3.0)
            before = [x.grad for x in xs]
            weighted(f)(*xs).backward()
            weighted(f)(*xs).backward()
            assert all(x.grad is b for x, b in zip(xs, before, strict=True))  # in place
            return before

        both(subject, accumulated)

    @row("reverse mode")
    @each(SUBJECTS)
    def test_a_gradient_is_memory_of_its_own(self, subject: Subject, device: str) -> None:
        xs = leaves(subject, device)
        y = subject.op(*xs)
        memory = {x.untyped_storage().data_ptr() for x in (y, *xs)}
        y.backward(torch.ones_like(y))
        assert memory.isdisjoint(x.grad.untyped_storage().data_ptr() for x in xs)

    @row("reverse mode")
    @each(SUBJECTS)
    def test_subsets_of_the_inputs(self, subject: Subject, device: str) -> None:
        every = range(len(leaves(subject, device)))
        for chosen in (c for n in every for c in combinations(every, n + 1)):

            def gradients(f: Function, chosen: tuple[int, ...] = chosen) -> list[torch.Tensor]:
                xs = leaves(subject, device)
                wanted = [xs[i] for i in chosen]
                by_grad = torch.autograd.grad(weighted(f)(*xs), wanted)
                weighted(f)(*xs).backward(inputs=wanted)
                assert [i for i in every if xs[i].grad is not None] == list(chosen)
                return [*by_grad, *(x.grad for x in wanted)]

            both(subject, gradients)

    @row("reverse mode")
    @each(SUBJECTS)
    def test_an_output_may_be_among_the_inputs(self, subject: Subject, device: str) -> None:
        def gradients(f: Function) -> tuple[torch.Tensor, ...]:
            xs = leaves(subject, device)
            y = f(*xs)
            return torch.autograd.grad(y.sin().sum(), (y, *xs))

        both(subject, gradients)

    @row("reverse mode")
    @each(SUBJECTS)
    def test_unused_inputs(self, subject: Subject, device: str) -> None:
        xs, unused = leaves(subject, device), torch.ones(2, dtype=torch.float64, device=device, requires_grad=True)
        both(subject, lambda f: torch.autograd.grad(weighted(f)(*xs), (*xs, unused), materialize_grads=True))
        assert torch.autograd.grad(weighted(subject.op)(*xs), (*xs, unused), allow_unused=True)[-1] is None
        same_error(subject, lambda f: torch.autograd.grad(weighted(f)(*xs), (*xs, unused)))

    @row("reverse mode")
    @each(SEVERAL)
    def test_constants_among_the_inputs(self, subject: Subject, device: str) -> None:
        for constant in range(len(leaves(subject, device))):

            def second(f: Function, constant: int = constant) -> list[torch.Tensor]:
                xs = [x.requires_grad_(i != constant) for i, x in enumerate(subject.inputs(*SIZE, device=device))]
                wanted = [x for x in xs if x.requires_grad]
                first = torch.autograd.grad(weighted(f)(*xs), wanted, create_graph=True)
                total = sum((g.square() * x).sum() for g, x in zip(first, wanted, strict=True))
                return [*first, *torch.autograd.grad(total, wanted)]

            both(subject, second)

    @row("reverse mode")
    @each(SUBJECTS)
    def test_an_undefined_gradient_is_none(self, subject: Subject, device: str) -> None:
        class Cut(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
                return x.clone()

            @staticmethod
            def backward(ctx: Any, g: torch.Tensor) -> None:
                return None

        xs = leaves(subject, device)
        for f in (subject.op, subject.native):
            result = torch.autograd.grad(Cut.apply(f(*xs)).sum(), xs, allow_unused=True)
            assert all(g is None or not g.any() for g in result)
        both(subject, lambda f: torch.autograd.grad((Cut.apply(f(*xs)) + 2 * f(*xs)).sum(), xs))

    @row("reverse mode")
    def test_one_of_two_outputs(self, device: str) -> None:
        subject = Subject("two", two, two.definition, ((-1.0, 1.0), (-1.0, 1.0)))
        xs = leaves(subject, device)
        for chosen in (0, 1):

            def second(f: Callable[..., Any], chosen: int = chosen) -> list[torch.Tensor]:
                first = torch.autograd.grad(f(*xs)[chosen].sum(), xs, create_graph=True)
                return [*first, *torch.autograd.grad((first[1].square() * xs[1]).sum(), xs)]

            both(subject, second)
        both(subject, lambda f: torch.autograd.grad(f(*xs), xs, [cotangent(xs[0]), cotangent(xs[1]) * 2]))
        with pytest.raises(RuntimeError, match="grad can be implicitly created only for scalar outputs"):
            torch.autograd.grad(two(*xs), xs, [cotangent(xs[0]), None])
        ones = [x.detach()[0, 0].requires_grad_() for x in xs]
        both(subject, lambda f: torch.autograd.grad(f(*ones), ones, [None, None]))

    @row("reverse mode")
    @each(SUBJECTS)
    def test_no_graph_where_none_is_wanted(self, subject: Subject, device: str) -> None:
        xs = leaves(subject, device)
        with torch.no_grad():
            assert subject.op(*xs).grad_fn is None
        with torch.inference_mode():
            assert subject.op(*xs).is_inference()
        with torch.set_grad_enabled(False), torch.enable_grad():
            assert subject.op(*xs).requires_grad
        assert not subject.op(*(x.detach() for x in xs)).requires_grad
        y = subject.op(*xs)
        assert y.requires_grad and not y.is_leaf and not y.detach().requires_grad
        with pytest.raises(RuntimeError, match="you can only change requires_grad flags of leaf variables"):
            y.requires_grad_(False)
        frozen = [x.requires_grad_(False) for x in xs]
        assert subject.op(*frozen).is_leaf


class TestHooks:
    @row("reverse mode")
    @each(SUBJECTS)
    def test_hooks_of_tensors(self, subject: Subject, device: str) -> None:
        def hooked(f: Function) -> list[torch.Tensor]:
            xs, seen = leaves(subject, device), []
            for x in xs:
                x.register_hook(lambda g: 2 * g)
                x.register_post_accumulate_grad_hook(lambda x: seen.append(x.grad.clone()))
            y = f(*xs)
            y.register_hook(lambda g: g + 1)
            y.retain_grad()
            y.backward(cotangent(y))
            return [y.grad, *sorted(seen, key=torch.numel), *(x.grad for x in xs)]

        both(subject, hooked)

    @row("reverse mode")
    @each(SUBJECTS)
    def test_hooks_of_nodes(self, subject: Subject, device: str) -> None:
        xs = leaves(subject, device)
        expected = first_derivatives(subject.native, xs)
        y = subject.op(*xs)
        seen = []
        y.grad_fn.register_prehook(lambda outputs: tuple(g if g is None else 3 * g for g in outputs))
        y.grad_fn.register_hook(lambda inputs, outputs: seen.append((inputs, outputs)))
        y.grad_fn.register_hook(lambda inputs, _: tuple(5 * g for g in inputs))
        results = torch.autograd.grad(y, xs, cotangent(y))
        ((inputs, outputs),) = seen
        assert_close(outputs[0], 3 * cotangent(y))
        for before, after, gradient in zip(inputs, results, expected, strict=True):
            assert_close(before, 3 * gradient)
            assert_close(after, 15 * gradient)
        assert all(node.variable is x for (node, _), x in zip(y.grad_fn.next_functions, xs, strict=True))

    @row("reverse mode")
    @each(SUBJECTS)
    def test_saved_tensors_are_packed_and_unpacked(self, subject: Subject, device: str) -> None:
        xs = leaves(subject, device)
        packed: list[torch.Tensor] = []

        def pack(x: torch.Tensor) -> int:
            packed.append(x.detach().clone())
            return len(packed) - 1

        def gradients(f: Function) -> tuple[torch.Tensor, ...]:
            with saved_tensors_hooks(pack, lambda i: packed[i]):
                y = f(*xs)
            return torch.autograd.grad(y, xs, cotangent(y))

        both(subject, gradients)
        packed.clear()
        with saved_tensors_hooks(pack, lambda i: packed[i]):
            subject.op(*xs)
        assert len(packed) >= len(xs)
        with saved_tensors_hooks(lambda x: x, lambda x: x.detach() * 0 + 0.7):
            y = subject.op(*xs)
        moved = [torch.full_like(x, 0.7).requires_grad_() for x in xs]
        assert_close(torch.autograd.grad(y, xs, cotangent(y))[-1], first_derivatives(subject.native, moved)[-1])

    @row("reverse mode")
    @each(SUBJECTS)
    def test_saved_on_the_cpu(self, subject: Subject, device: str) -> None:
        xs = leaves(subject, device)

        def second(f: Function) -> list[torch.Tensor]:
            with save_on_cpu():
                first = first_derivatives(f, xs, create_graph=True)
                total = sum(g.square().sum() for g in first)
            return [*first, *torch.autograd.grad(total, xs)]

        both(subject, second)

    @row("reverse mode")
    @every_sixth(2)
    @pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
    def test_checkpointing(self, subject: Subject, reentrant: bool, device: str) -> None:
        calls = []

        def gradients(f: Function) -> list[torch.Tensor]:
            xs = leaves(subject, device)

            def block(*us: torch.Tensor) -> torch.Tensor:
                calls.append(f)
                return f(*us).sin() * us[0].sum()

            y = checkpoint(block, *xs, use_reentrant=reentrant)
            if reentrant:
                y.sum().backward()
                return [x.grad for x in xs]
            first = torch.autograd.grad(y.sum(), xs, create_graph=True)
            return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), xs)]

        both(subject, gradients)
        assert calls.count(subject.op) >= 2  # once more in backward


class TestAnomalies:
    @row("reverse mode")
    @each(SUBJECTS)
    @pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
    def test_the_line_that_made_a_nan_is_named(self, subject: Subject, device: str) -> None:
        def made_here(f: Function, xs: Sequence[torch.Tensor]) -> torch.Tensor:
            return f(*xs)

        for f in (subject.op, subject.native):
            xs = leaves(subject, device)
            with torch.autograd.detect_anomaly():
                y = made_here(f, xs)
                message = r"Function '\w+' returned nan values in its \d\w\w output"
                made = r"Traceback of forward call that caused the error:(.*\n)*.*in made_here"
                with pytest.warns(UserWarning, match=made), pytest.raises(RuntimeError, match=message):
                    torch.autograd.grad(y, xs, torch.full_like(y, torch.nan))

    @row("reverse mode")
    @each(SUBJECTS)
    @pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
    def test_without_a_nan_nothing_is_said(self, subject: Subject, device: str) -> None:
        xs = leaves(subject, device)
        with torch.autograd.detect_anomaly():
            both(subject, lambda f: first_derivatives(f, xs, create_graph=True))

    @row("reverse mode")
    @each(SUBJECTS)
    def test_a_saved_input_changed_in_place(self, subject: Subject, device: str) -> None:
        for changed in range(len(leaves(subject, device))):
            xs = [x.clone() for x in leaves(subject, device)]
            y = subject.op(*xs)
            xs[changed].mul_(1.5)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.sum().backward()

    @row("reverse mode")
    @each(SUBJECTS)
    def test_a_saved_input_changed_in_place_through_a_view(self, subject: Subject, device: str) -> None:
        xs = [x.clone() for x in leaves(subject, device)]
        y = subject.op(*xs)
        with torch.no_grad():
            xs[0][0].zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()

    @row("reverse mode")
    @each(SUBJECTS)
    def test_an_output_changed_in_place(self, subject: Subject, device: str) -> None:
        def gradients(f: Function, in_place: bool) -> tuple[torch.Tensor, ...]:
            xs = leaves(subject, device)
            y = f(*xs)
            y = y.mul_(3).add_(xs[0].sum()) if in_place else 3 * y + xs[0].sum()
            return torch.autograd.grad(y, xs, cotangent(y))

        assert_close(gradients(subject.op, True), gradients(subject.native, False), rtol=1e-10, atol=1e-12)

    @row("reverse mode")
    @each(SUBJECTS)
    def test_an_output_written_into_a_view(self, subject: Subject, device: str) -> None:
        def gradients(f: Function) -> tuple[torch.Tensor, ...]:
            xs = leaves(subject, device)
            y = f(*xs)
            result = y.new_zeros(2, *y.shape)
            result[1] = y
            result[0].copy_(y)[..., :1].mul_(2)
            return torch.autograd.grad(result, xs, cotangent(result))

        both(subject, gradients)

    @row("reverse mode")
    @each(SUBJECTS)
    def test_views_as_inputs(self, subject: Subject, device: str) -> None:
        def gradients(f: Function) -> list[torch.Tensor]:
            bases = leaves(subject, device, 5, *SIZE)
            first = torch.autograd.grad(weighted(f)(*(x[1::2] for x in bases)), bases, create_graph=True)
            return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), bases)]

        both(subject, gradients)

    @row("reverse mode")
    @each(SUBJECTS)
    def test_many_threads_differentiate_one_graph(self, subject: Subject, device: str) -> None:
        xs = leaves(subject, device)
        y = subject.op(*xs)
        expected = first_derivatives(subject.native, xs)

        def work(i: int) -> tuple[torch.Tensor, ...]:
            return torch.autograd.grad(y, xs, (i + 1) * cotangent(y), retain_graph=True)

        with ThreadPoolExecutor(4) as pool:
            for i, gradients in enumerate(pool.map(work, range(16))):
                for ours, native in zip(gradients, expected, strict=True):
                    assert_close(ours, (i + 1) * native, rtol=1e-10, atol=1e-12)


class TestForwardMode:
    @row("forward mode")
    @each(SUBJECTS)
    def test_dual_numbers(self, subject: Subject, device: str) -> None:
        xs = subject.inputs(*SIZE, device=device)
        every = range(len(xs))
        for chosen in (c for n in every for c in combinations(every, n + 1)):

            def tangent(f: Function, chosen: tuple[int, ...] = chosen) -> torch.Tensor:
                with forward_ad.dual_level():
                    duals = [forward_ad.make_dual(x, cotangent(x)) if i in chosen else x for i, x in enumerate(xs)]
                    return forward_ad.unpack_dual(f(*duals)).tangent

            both(subject, tangent)
        with forward_ad.dual_level():
            assert forward_ad.unpack_dual(subject.op(*xs)).tangent is None

    @row("forward mode")
    @every_sixth(1)
    def test_forward_over_reverse_with_dual_numbers(self, subject: Subject, device: str) -> None:
        xs = leaves(subject, device)

        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(x, cotangent(x)) for x in xs]
            first = torch.autograd.grad(weighted(subject.op)(*duals), duals)
            tangents = tuple(forward_ad.unpack_dual(g).tangent for g in first)
        # In reverse mode: not every function of PyTorch has a backward with a forward mode.
        _, expected = AF.hvp(weighted(subject.native), xs, tuple(map(cotangent, xs)))
        assert_close(tangents, expected, rtol=1e-10, atol=1e-12)
        assert all(t.abs().max() > 1e-3 for t in tangents)

    @row("forward mode")
    @each(SUBJECTS)
    def test_reverse_over_forward_with_dual_numbers(self, subject: Subject, device: str) -> None:
        xs = leaves(subject, device)

        def gradients(f: Function) -> tuple[torch.Tensor, ...]:
            with forward_ad.dual_level():
                y = f(*(forward_ad.make_dual(x, cotangent(x)) for x in xs))
                tangent = forward_ad.unpack_dual(y).tangent
            return tangent.detach(), *torch.autograd.grad(tangent, xs, cotangent(tangent))

        both(subject, gradients)

    @row("forward mode")
    @each(SUBJECTS)
    def test_dual_numbers_within_func_and_func_within_dual_numbers(self, subject: Subject, device: str) -> None:
        xs = subject.inputs(*SIZE, device=device)

        def within(f: Function) -> tuple[torch.Tensor, ...]:
            def tangent(*us: torch.Tensor) -> torch.Tensor:
                with forward_ad.dual_level():
                    duals = [forward_ad.make_dual(u, cotangent(u)) for u in us]
                    return forward_ad.unpack_dual(weighted(f)(*duals)).tangent

            return grad(tangent, tuple(range(len(xs))))(*xs)

        def around(f: Function) -> list[torch.Tensor]:
            with forward_ad.dual_level():
                duals = [forward_ad.make_dual(x, cotangent(x)) for x in xs]
                gradients = grad(weighted(f), tuple(range(len(xs))))(*duals)
                return [forward_ad.unpack_dual(g).tangent for g in gradients]

        both(subject, within)
        both(subject, around)

    @row("forward mode")
    @pytest.mark.parametrize(("subject", "modes"), few(product(SUBJECTS, SECOND + THIRD), in_turn), ids=named)
    def test_nested(self, subject: Subject, modes: str, device: str) -> None:
        xs = subject.inputs(3, device=device)
        both(subject, lambda f: nested(f, modes, xs))

    @row("forward mode")
    @each(MISSION)
    def test_three_deep_in_closed_form(self, subject: Subject, device: str) -> None:
        third = {"sin": lambda x: -x.cos(), "exp": torch.exp}[subject.name]
        x = torch.tensor(0.3, dtype=torch.float64, device=device)
        assert_close(jacfwd(jacfwd(jacfwd(subject.op)))(x), third(x), rtol=1e-14, atol=0)

    @row("forward mode")
    @each(SUBJECTS)
    @pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # linearize's own
    def test_jvp_and_linearize(self, subject: Subject, device: str) -> None:
        xs = subject.inputs(*SIZE, device=device)
        tangents = tuple(cotangent(x) for x in xs)
        both(subject, lambda f: jvp(f, xs, tangents))
        both(subject, lambda f: jvp(lambda *us: jvp(f, us, tangents)[1], xs, tangents))

        def linear(f: Function) -> tuple[torch.Tensor, ...]:
            y, apply = linearize(f, *xs)
            return y, apply(*tangents), apply(*(2 * t for t in tangents))

        both(subject, linear)


def stacked(xs: Sequence[torch.Tensor], dim: int = 0) -> tuple[torch.Tensor, ...]:
    return tuple(torch.stack([x, 0.9 * x, 0.8 * x], dim) for x in xs)


TRANSFORMS: dict[str, Callable[[Function, Sequence[torch.Tensor]], Any]] = {
    "grad": lambda f, xs: grad(weighted(f), all_of(xs))(*xs),
    "grad and value": lambda f, xs: grad_and_value(weighted(f))(*xs),
    "vjp": lambda f, xs: (r := vjp(f, *xs))[1](cotangent(r[0])),
    "jacrev": lambda f, xs: jacrev(f, all_of(xs))(*xs),
    "jacrev in chunks": lambda f, xs: jacrev(f, all_of(xs), chunk_size=1)(*xs),
    "jacfwd": lambda f, xs: jacfwd(f, all_of(xs))(*xs),
    "hessian": lambda f, xs: hessian(weighted(f), all_of(xs))(*xs),
    "grad of grad": lambda f, xs: grad(lambda *us: grad(weighted(f))(*us).square().sum(), all_of(xs))(*xs),
    "vmap of grad": lambda f, xs: vmap(grad(weighted(f), all_of(xs)))(*stacked(xs)),
    "vmap of hessian": lambda f, xs: vmap(hessian(weighted(f), all_of(xs)))(*stacked(xs)),
    "grad of vmap": lambda f, xs: grad(weighted(vmap(f)), all_of(xs))(*stacked(xs)),
    "vmap of vmap": lambda f, xs: vmap(vmap(f, -1))(*stacked(stacked(xs), -1)),
    "vmap in chunks": lambda f, xs: vmap(f, chunk_size=2)(*stacked(xs)),
    "vmap of jvp": lambda f, xs: vmap(lambda *us: jvp(f, us, us))(*stacked(xs)),
    "jvp of vmap": lambda f, xs: jvp(vmap(f), stacked(xs), stacked(xs)),
    "functionalize": lambda f, xs: functionalize(f)(*xs),
    "grad of functionalize": lambda f, xs: grad(functionalize(weighted(f)), all_of(xs))(*xs),
    "functional.jacobian": lambda f, xs: AF.jacobian(f, tuple(xs), create_graph=True),
    "functional.jacobian vectorized": lambda f, xs: AF.jacobian(f, tuple(xs), vectorize=True),
    "functional.jacobian forward": lambda f, xs: AF.jacobian(f, tuple(xs), vectorize=True, strategy="forward-mode"),
    "functional.hessian": lambda f, xs: AF.hessian(weighted(f), tuple(xs)),
    "functional.hessian vectorized": lambda f, xs: AF.hessian(weighted(f), tuple(xs), vectorize=True),
    "functional.hessian forward": lambda f, xs: AF.hessian(
        weighted(f), tuple(xs), vectorize=True, outer_jacobian_strategy="forward-mode"
    ),
    "functional.jvp": lambda f, xs: AF.jvp(f, tuple(xs), tuple(map(cotangent, xs))),
    "functional.vjp": lambda f, xs: AF.vjp(f, tuple(xs), cotangent(f(*xs))),
    "functional.hvp": lambda f, xs: AF.hvp(weighted(f), tuple(xs), tuple(map(cotangent, xs))),
    "functional.vhp": lambda f, xs: AF.vhp(weighted(f), tuple(xs), tuple(map(cotangent, xs))),
}


class Model(torch.nn.Module):
    def __init__(self, f: Function, weight: torch.Tensor) -> None:
        super().__init__()
        self.f = f
        self.weight = torch.nn.Parameter(weight.clone())

    def forward(self, *xs: torch.Tensor) -> torch.Tensor:
        return self.f(xs[0] * self.weight, *xs[1:])


def is_due(subject: Subject, transform: str) -> bool:
    """Does it need no kernels of its own, or is it the turn of the subject?"""
    return transform not in ("functional.jvp", "functional.hvp") or SUBJECTS.index(subject) % 6 == 0


class TestFunc:
    @row("torch.func")
    @pytest.mark.parametrize(("subject", "transform"), few(product(SUBJECTS, TRANSFORMS), is_due), ids=named)
    def test_transforms(self, subject: Subject, transform: str, device: str) -> None:
        xs = subject.inputs(3, device=device)
        both(subject, lambda f: TRANSFORMS[transform](f, xs))

    @row("torch.func")
    @each(SUBJECTS)
    @pytest.mark.parametrize("in_dim", [0, 1, -1])
    @pytest.mark.parametrize("out_dim", [0, -1])
    def test_vmap_at_any_dimension(self, subject: Subject, in_dim: int, out_dim: int, device: str) -> None:
        xs = subject.inputs(*SIZE, device=device)
        batched = stacked(xs, in_dim)
        both(subject, lambda f: vmap(f, in_dim, out_dim)(*batched))
        both(subject, lambda f: vmap(lambda *us: f(*us).sin(), in_dim, out_dim, randomness="different")(*batched))
        first = vmap(grad(weighted(subject.op)), in_dim)(*batched)
        one_by_one = [
            grad(weighted(subject.native))(*us) for us in zip(*(b.unbind(in_dim) for b in batched), strict=True)
        ]
        assert_close(first, torch.stack(one_by_one), rtol=1e-10, atol=1e-12)

    @row("torch.func")
    @pytest.mark.parametrize("in_dims", [(0, None, None), (None, -1, None), (None, 1, 0), (-1, None, 1), (1, 0, -1)])
    def test_vmap_with_some_arguments_unbatched(self, in_dims: tuple[int | None, ...], device: str) -> None:
        subject = Subject("gated", gated, gated.definition, ((-1.0, 1.0),) * 3)
        xs = subject.inputs(*SIZE, device=device)
        xs = [x if dim is None else stacked([x], dim)[0] for x, dim in zip(xs, in_dims, strict=True)]
        for f in (
            lambda g: vmap(g, in_dims, -1),
            lambda g: vmap(grad(weighted(g), (0, 1, 2)), in_dims),
            lambda g: grad(weighted(vmap(g, in_dims)), (0, 1, 2)),
            lambda g: vmap(hessian(lambda *us: g(*us).sum()), in_dims),
            lambda g: lambda *us: jvp(vmap(g, in_dims), us, us),
        ):
            both(subject, lambda g, f=f: f(g)(*xs))

    @row("torch.func")
    @pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (-1, 1)])
    def test_vmap_of_two_outputs(self, in_dims: tuple[int | None, int | None], device: str) -> None:
        subject = Subject("two", two, two.definition, ((-1.0, 1.0),) * 2)
        xs = subject.inputs(*SIZE, device=device)
        xs = [x if dim is None else stacked([x], dim)[0] for x, dim in zip(xs, in_dims, strict=True)]
        both(subject, lambda f: vmap(f, in_dims, (0, -1))(*xs))
        both(subject, lambda f: vmap(jacrev(lambda x, y: f(x, y)[1]), in_dims)(*xs))

    @row("torch.func")
    @each(SUBJECTS)
    def test_batched_gradients(self, subject: Subject, device: str) -> None:
        xs = leaves(subject, device)

        def gradients(f: Function) -> list[torch.Tensor]:
            y = f(*xs)
            batch = torch.stack([cotangent(y), cotangent(y).square(), 2 * cotangent(y)])
            first = torch.autograd.grad(y, xs, batch, is_grads_batched=True, create_graph=True)
            return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), xs)]

        both(subject, gradients)

    @row("torch.func")
    @each(SUBJECTS)
    def test_functional_call_and_ensembles(self, subject: Subject, device: str) -> None:
        xs = subject.inputs(*SIZE, device=device)
        scale = torch.full(SIZE[-1:], 0.9, dtype=torch.float64, device=device)

        def gradients(f: Function) -> list[torch.Tensor]:
            model = Model(f, scale)
            parameters = dict(model.named_parameters())
            first = grad(lambda p: functional_call(model, p, xs).square().sum())(parameters)
            ensemble, _ = stack_module_state([Model(f, scale), Model(f, 0.8 * scale)])
            of_each = vmap(grad(lambda p: functional_call(model, p, xs).square().sum()))(ensemble)
            return [first["weight"], of_each["weight"]]

        both(subject, gradients)

    @row("torch.func")
    def test_the_hessian_of_the_quadratic_form_in_closed_form(self, device: str) -> None:
        x, A = QUADRATIC_FORM.inputs(5, device=device)
        assert_close(hessian(ad.quadratic_form)(x, A), A + A.T, rtol=1e-14, atol=1e-14)
        assert_close(jacfwd(grad(ad.quadratic_form))(x, A), A + A.T, rtol=1e-14, atol=1e-14)
        assert_close(vmap(hessian(ad.quadratic_form), (0, None))(stacked([x])[0], A), (A + A.T).expand(3, 5, 5))
