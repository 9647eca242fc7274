"""torch.compile, torch.export, tracers, and tensors without data: all of them see the definition, and nothing else."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from drop_in import A_FEW, MISSION, POINTWISE, QUADRATIC_FORM, SUBJECTS, Subject, each, each_of_few, every_sixth, row
from layouts import NAMED, sample
from selection import few
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize, grad, hessian, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import torchad_ext as ad
from torchad_ext.ops import _STANDS_IN_FOR

Function = Callable[..., Any]
Tensors = tuple[torch.Tensor, ...]


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(f: Function, **options: Any) -> Function:
    return torch.compile(f, **{"fullgraph": True, "backend": "aot_eager", **options})


def stood_in_for(subject: Subject) -> Function:
    """The function of PyTorch, with the numbers that are the op's defaults; the definition where there is none."""
    like = _STANDS_IN_FOR.get(subject.name)
    if not like:
        return subject.native
    parameters = subject.op.__signature__.parameters.values()
    numbers = {p.name: p.default for p in parameters if isinstance(p.default, float)}
    return functools.partial(functools.reduce(getattr, like.split(".")[1:], torch), **numbers)


def value_and_gradients(f: Function, xs: Tensors) -> Tensors:
    """f and the gradients of the sum of its sine."""
    leaves = [x.detach().requires_grad_() for x in xs]
    y = f(*leaves)
    return (y.detach(), *torch.autograd.grad(y.sin().sum(), leaves))


def second_derivatives(f: Function, xs: Tensors) -> Tensors:
    """Of the sum of the sine of f, by reverse mode over reverse mode."""

    def slope(*xs: torch.Tensor) -> torch.Tensor:
        return sum(g.square().sum() for g in grad(lambda *v: f(*v).sin().sum(), tuple(range(len(xs))))(*xs))

    return grad(slope, tuple(range(len(xs))))(*xs)


def assert_all_close(results: Any, expected: Any, **options: Any) -> None:
    """Equal, and not because everything is zero."""
    assert_close(results, expected, **options)
    leaves, _ = torch.utils._pytree.tree_flatten(expected)
    assert all(leaf.abs().max() > 1e-3 for leaf in leaves)


def graphs(f: Function, xs: Tensors) -> list[str]:
    """The code of the graphs that a compiler is given, forward and backward."""
    # Imported here: they bring Inductor, for which every worker would wait.
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    seen: list[str] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Function:
        seen.append(graph.code)
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    value_and_gradients(compiled(f, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep)), xs)
    return seen


def closed_forms(subject: Subject, xs: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """f' and f'' by x of sin, exp and the quadratic form: s = (A + A^T) x and the sums of the rows of A + A^T."""
    x = xs[0].detach()
    if subject.name == "quadratic_form":
        S = (xs[1] + xs[1].mT).detach()
        return (S @ x.unsqueeze(-1)).squeeze(-1), S.sum(-1)
    return {"sin": (x.cos(), -x.sin()), "exp": (x.exp(), x.exp())}[subject.name]


def in_turn(subject: Subject) -> bool:
    return SUBJECTS.index(subject) % 2 == 0


known = each([*MISSION, QUADRATIC_FORM])


class Holder(torch.nn.Module):
    def __init__(self, op: Function) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(5, 5, dtype=torch.float64)
        self.op = op

    def forward(self, x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return self.op(self.linear(x), *rest)


@row("torch.compile")
class TestCompile:
    @each(SUBJECTS)
    def test_value_and_gradients(self, subject: Subject) -> None:
        xs = subject.inputs(4, 5)
        result = value_and_gradients(compiled(subject.op), xs)
        assert_all_close(result, value_and_gradients(subject.native, xs))

    @every_sixth(2)
    def test_the_graphs_are_those_of_the_native_function(self, subject: Subject) -> None:
        xs = subject.inputs(4, 5)
        ours, native = (graphs(lambda *v, f=f: f(*v), xs) for f in (subject.op, stood_in_for(subject)))
        assert len(ours) == 2 and ours == native
        assert "torchad_ext" not in "".join(ours)

    @pytest.mark.parametrize(
        ("subject", "marked"),
        few(product(SUBJECTS, [True, False]), lambda subject, marked: subject in A_FEW and marked == in_turn(subject)),
        ids=lambda x: x.name if isinstance(x, Subject) else "mark_dynamic" if x else "dynamic=True",
    )
    def test_one_graph_for_all_sizes(self, subject: Subject, marked: bool) -> None:
        counts = []
        for f in (subject.op, subject.native):
            torch._dynamo.reset()
            counts.append([])
            counter = CompileCounterWithBackend("aot_eager")
            g = compiled(lambda *v, f=f: f(*v), backend=counter, dynamic=None if marked else True)
            for shape in (4, 5), (7, 5), (2, 5):
                xs = tuple(x.requires_grad_() for x in subject.inputs(*shape))
                for x in xs if marked else ():
                    torch._dynamo.mark_dynamic(x, 0)
                y = g(*xs)
                result = y.detach(), *torch.autograd.grad(y.sin().sum(), xs)
                assert_all_close(result, value_and_gradients(subject.native, xs))
                counts[-1].append(counter.frame_count)
        assert counts[0] == counts[1] and len(set(counts[0])) == 1

    @known
    def test_no_graph_break(self, subject: Subject) -> None:
        explained = torch._dynamo.explain(lambda *v: subject.op(*v) * 2)(*subject.inputs(4, 5))
        assert (explained.graph_count, explained.graph_break_count) == (1, 0)

    @known
    def test_a_module_that_holds_the_op(self, subject: Subject) -> None:
        ours = Holder(subject.op)
        native = Holder(subject.native)
        native.load_state_dict(ours.state_dict())
        xs = subject.inputs(4, 5)
        for module in (compiled(ours), native):
            module(*xs).sin().sum().backward()
        assert_all_close(ours.linear.weight.grad, native.linear.weight.grad)

    @pytest.mark.parametrize(
        ("op", "native", "options"),
        [
            (ad.softplus, F.softplus, [{"beta": 2.0}, {"beta": 0.5, "threshold": 1.0}, {"threshold": 3}]),
            (ad.gelu, F.gelu, [{"approximate": "tanh"}, {}, {"approximate": "none"}]),
            (ad.elu, F.elu, [{"alpha": 2.0}, {}, {"alpha": 0.25}]),
            (ad.snake, ad.snake.definition, [{"a": a} for a in (2.0, 3.0, 4.5, 1)]),
        ],
        ids=lambda x: getattr(x, "__name__", None),
    )
    def test_keywords_and_numbers_recompile_as_native(
        self, op: Function, native: Function, options: list[dict[str, Any]]
    ) -> None:
        x = torch.linspace(-2, 2, 9, dtype=torch.float64)
        counts = []
        for f in (op, native):
            torch._dynamo.reset()
            counter = CompileCounterWithBackend("aot_eager")
            g = compiled(lambda x, f=f, **options: f(x, **options), backend=counter)
            counts.append([])
            for given in options:
                result = value_and_gradients(functools.partial(g, **given), (x,))
                assert_all_close(result, value_and_gradients(functools.partial(native, **given), (x,)))
                counts[-1].append(counter.frame_count)
        assert counts[0] == counts[1]

    @pytest.mark.parametrize(
        ("op", "native", "given"),
        [
            (ad.gelu, lambda x, form: F.gelu(x, approximate=form), ["tanh"]),
            (ad.pointwise(torch.logit, domain=(0.1, 0.9)), torch.logit, [0.3]),
            (ad.elu, F.elu, [0.5]),
        ],
        ids=["gelu", "logit", "elu"],
    )
    def test_an_option_by_position(self, op: Function, native: Function, given: list[Any]) -> None:
        x = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
        result = value_and_gradients(compiled(lambda x: op(x, *given)), (x,))
        assert_all_close(result, value_and_gradients(lambda x: native(x, *given), (x,)))

    def test_mixed_numbers_and_dtypes_of_the_arguments(self) -> None:
        x = torch.linspace(0.1, 2, 5, dtype=torch.float64)
        for xs in ((x, 2.5), (2.0, x), (x, x.float()), (x[:, None], x)):
            result, expected = compiled(lambda a, b: ad.pow(a, b), dynamic=False)(*xs), torch.pow(*xs)
            assert result.dtype == expected.dtype
            assert_all_close(result, expected)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.int32], ids=str)
    @each(few(POINTWISE, lambda subject: subject in A_FEW))
    def test_other_dtypes(self, subject: Subject, dtype: torch.dtype) -> None:
        xs = subject.inputs(4, 5, dtype=dtype)
        if dtype is torch.int32:
            xs = tuple(x.abs() + 1 for x in xs)
        try:
            expected = subject.native(*xs)
        except (NotImplementedError, RuntimeError):
            with pytest.raises((NotImplementedError, RuntimeError)):
                compiled(lambda *v: subject.op(*v))(*xs)
            return
        assert_close(compiled(lambda *v: subject.op(*v))(*xs), expected)

    def test_around_the_op(self) -> None:
        x = torch.tensor([0.5, 1.0, -2.0], dtype=torch.float64)
        for f, slope in (
            (lambda u: torch.cond(u.sum() > 0, ad.sin, ad.exp, (u,)), x.exp()),
            (lambda u: torch.cond(u.sum() < 0, ad.sin, ad.exp, (u,)), x.cos()),
            (lambda u: checkpoint(lambda v: ad.sin(ad.exp(v)), u, use_reentrant=False), x.exp().cos() * x.exp()),
            (torch.compiler.disable(lambda u: ad.sin(u)), x.cos()),
        ):
            leaf = x.clone().requires_grad_()
            compiled(lambda u, f=f: 2 * f(u), fullgraph=not hasattr(f, "_torchdynamo_disable"))(leaf).sum().backward()
            assert_all_close(leaf.grad, 2 * slope)

    def test_higher_order_operators(self) -> None:
        from torch._higher_order_ops.map import map
        from torch._higher_order_ops.scan import scan
        from torch._higher_order_ops.while_loop import while_loop

        x = torch.tensor([[0.5, 1.0], [-2.0, 0.1]], dtype=torch.float64)
        assert_all_close(compiled(lambda u: map(lambda r: ad.sin(r), u))(x), x.sin())
        last, steps = scan(lambda c, r: (ad.sin(c + r), ad.exp(r)), x[0], x)
        assert_all_close((last, steps), (((2 * x[0]).sin() + x[1]).sin(), x.exp()))
        _, thrice = while_loop(lambda i, _: i < 3, lambda i, v: (i + 1, ad.sin(v)), (torch.tensor(0), x))
        assert_all_close(thrice, x.sin().sin().sin())

    @each(few(A_FEW, lambda subject: subject.name in ("sin", "quadratic_form")))
    def test_inductor_writes_the_same_code(self, subject: Subject) -> None:
        from torch._inductor.utils import run_fw_bw_and_get_code

        xs = subject.inputs(4, 5)
        codes = []
        for f in (subject.op, stood_in_for(subject)):
            torch._dynamo.reset()
            leaves = [x.clone().requires_grad_() for x in xs]
            g = compiled(lambda *v, f=f: f(*v).sin(), backend="inductor")
            y, code = run_fw_bw_and_get_code(lambda g=g, leaves=leaves: g(*leaves))
            codes.append(code)
            expected = value_and_gradients(subject.native, xs)
            assert_all_close((y.detach(), *(leaf.grad for leaf in leaves)), (expected[0].sin(), *expected[1:]))
        assert len(codes[0]) == 2 and codes[0] == codes[1]


@row("torch.compile")
class TestDerivativesInside:
    @each(few(SUBJECTS, lambda subject: subject in (*MISSION, QUADRATIC_FORM)))
    def test_every_transform(self, subject: Subject) -> None:
        xs = subject.inputs(3, 2)

        def work(f: Function, *xs: torch.Tensor) -> Any:
            def energy(*v: torch.Tensor) -> torch.Tensor:
                return f(*v).sin().sum()

            every = tuple(range(len(xs)))
            y, pull = vjp(f, *xs)
            return (
                grad(energy, every)(*xs),
                jvp(f, xs, tuple(x + 1 for x in xs)),
                pull(y + 1),
                vmap(grad(energy, every))(*xs),
                hessian(energy)(*xs),
            )

        result = compiled(functools.partial(work, lambda *v: subject.op(*v)))(*xs)
        assert_all_close(result, work(subject.native, *xs))

    @known
    def test_closed_forms(self, subject: Subject) -> None:
        xs = subject.inputs(4, 5)
        first, second = closed_forms(subject, xs)
        rest = xs[1:]
        slope = grad(lambda x: subject.op(x, *rest).sum())
        assert_all_close(compiled(lambda x: slope(x))(xs[0]), first)
        assert_all_close(compiled(lambda x: grad(lambda x: slope(x).sum())(x))(xs[0]), second)
        assert_all_close(compiled(lambda x: jvp(slope, (x,), (torch.ones_like(x),))[1])(xs[0]), second)

    @known
    def test_autograd_grad(self, subject: Subject) -> None:
        xs = subject.inputs(4, 5)
        first, second = closed_forms(subject, xs)

        def slope(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            return torch.autograd.grad(subject.op(x, *rest).sum(), x, create_graph=True)[0]

        def curvature(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            return torch.autograd.grad(slope(x, *rest).sum(), x)[0]

        def accumulated(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            subject.op(x, *rest).sum().backward()
            return x.grad * 1

        def leaves() -> list[torch.Tensor]:
            return [xs[0].clone().requires_grad_(), *xs[1:]]

        with torch._dynamo.config.patch(trace_autograd_ops=True):
            assert_all_close(compiled(slope)(*leaves()).detach(), first)
            assert_all_close(compiled(curvature)(*leaves()), second)
            assert_all_close(compiled(accumulated)(*leaves()), first)
            torch._dynamo.reset()
            given = leaves()
            compiled(slope)(*given).sum().backward()  # a gradient inside, one more outside
            assert_all_close(given[0].grad, second)
        with torch._dynamo.config.patch(trace_autograd_ops=False):
            torch._dynamo.reset()
            with pytest.raises(Unsupported, match=r"torch\.autograd\.grad"):
                compiled(slope)(*leaves())
            torch._dynamo.reset()
            assert_all_close(torch.compile(slope, backend="aot_eager")(*leaves()).detach(), first)

    def test_forward_mode(self) -> None:
        from torch.autograd import forward_ad

        def tangent(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            with forward_ad.dual_level():
                return forward_ad.unpack_dual(ad.sin(forward_ad.make_dual(x, t))).tangent

        x, t = torch.randn(2, 5, dtype=torch.float64)
        assert_all_close(compiled(tangent)(x, t), t * x.cos())

    @each(MISSION)
    def test_what_native_cannot_do_raises_alike(self, subject: Subject) -> None:
        x = torch.randn(5, dtype=torch.float64)

        def twice(f: Function) -> None:
            leaf = x.clone().requires_grad_()
            (first,) = torch.autograd.grad(compiled(f)(leaf).sum(), leaf, create_graph=True)
            torch.autograd.grad(first.sum(), leaf)

        def of_an_outer_graph(f: Function) -> None:
            leaf = x.clone().requires_grad_()
            with torch._dynamo.config.patch(trace_autograd_ops=True):
                compiled(lambda y, x: torch.autograd.grad(y.sum(), x))(f(leaf), leaf)

        for work in (
            twice,
            of_an_outer_graph,
            lambda f: grad(lambda u: compiled(f)(u).sum())(x),
            lambda f: vmap(compiled(f))(x),
        ):
            raised = []
            for f in (subject.op, subject.native):
                torch._dynamo.reset()
                with pytest.raises(RuntimeError) as caught:
                    work(lambda u, f=f: f(u))
                raised.append((caught.type, str(caught.value).partition("\n")[0]))
            assert raised[0] == raised[1]

    @known
    def test_compiled_autograd(self, subject: Subject) -> None:
        xs = subject.inputs(4, 5)
        first, second = closed_forms(subject, xs)

        def leaf() -> torch.Tensor:
            return xs[0].clone().requires_grad_()

        with torch._dynamo.config.patch(compiled_autograd=True):
            x = leaf()
            compiled(lambda x: subject.op(x, *xs[1:]))(x).sum().backward()
            assert_all_close(x.grad, first)

        x, y = leaf(), leaf()
        value = subject.op(x, *xs[1:])
        (slope,) = torch.autograd.grad(subject.op(y, *xs[1:]).sum(), y, create_graph=True)
        try:
            with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
                value.sum().backward()
                slope.sum().backward()
        except RuntimeError as error:
            refused = str(error)
        else:
            assert_all_close((x.grad, y.grad), (first, second))
            return
        assert "compiled_args not implemented" in refused  # PyTorch's error for a node that it cannot trace


@row("torch.compile")
class TestTracers:
    """A graph is run on other numbers than it was traced with: a result that became a constant would show."""

    @each(SUBJECTS)
    @pytest.mark.parametrize(
        "options",
        [{"tracing_mode": "real"}, {"tracing_mode": "fake"}, {"tracing_mode": "symbolic"}, {"pre_dispatch": True}],
        ids=lambda options: str(next(iter(options.values()))),
    )
    def test_make_fx(self, subject: Subject, options: dict[str, Any]) -> None:
        traced_with = subject.inputs(4, 5)
        others = tuple(x * 0.9 + 0.05 for x in subject.inputs(7 if "symbolic" in options.values() else 4, 5))
        traced = make_fx(lambda *v: subject.op(*v), **options)(*traced_with)
        assert "torchad_ext" not in traced.code and not dict(traced.named_buffers())
        assert_all_close(value_and_gradients(traced, others), value_and_gradients(subject.native, others))
        assert_all_close(second_derivatives(traced, others), second_derivatives(subject.native, others))

    @each_of_few
    @pytest.mark.parametrize("mode", ["real", "symbolic"])
    def test_make_fx_of_derivatives(self, subject: Subject, mode: str) -> None:
        xs = subject.inputs(4, 5)
        others = tuple(x * 0.9 + 0.05 for x in xs)
        every = tuple(range(len(xs)))

        def derivatives(f: Function, *xs: torch.Tensor) -> Any:
            first = grad(lambda *v: f(*v).sin().sum(), every)(*xs)
            return first, second_derivatives(f, xs), jvp(f, xs, xs), vmap(f)(*xs)

        traced = make_fx(functools.partial(derivatives, lambda *v: subject.op(*v)), tracing_mode=mode)(*xs)
        assert "torchad_ext" not in traced.code
        assert_all_close(traced(*others), derivatives(subject.native, *others))

    @known
    @pytest.mark.parametrize("pre_dispatch", [False, True])
    def test_make_fx_of_autograd_and_of_the_backward_of_an_eager_op(self, subject: Subject, pre_dispatch: bool) -> None:
        xs = subject.inputs(4, 5)
        leaf = xs[0].clone().requires_grad_()
        y = subject.op(leaf, *xs[1:])
        pull = make_fx(lambda g: torch.autograd.grad(y, leaf, g, retain_graph=True)[0], pre_dispatch=pre_dispatch)
        backward = pull(torch.ones_like(y))
        first, _ = closed_forms(subject, xs)
        assert "torchad_ext" not in backward.code
        assert_all_close(backward(torch.full_like(y, 3.0)), 3 * first)

        def curvature(x: torch.Tensor) -> torch.Tensor:
            x = x.detach().requires_grad_()
            (g,) = torch.autograd.grad(subject.op(x, *xs[1:]).sum(), x, create_graph=True)
            return torch.autograd.grad(g.sum(), x)[0]

        other = xs[0] + 0.1
        assert_all_close(make_fx(curvature)(xs[0])(other), closed_forms(subject, (other, *xs[1:]))[1])

    @each(SUBJECTS)
    def test_aot_function_and_functionalize(self, subject: Subject) -> None:
        from functorch.compile import aot_function, nop

        xs = subject.inputs(4, 5)
        expected = value_and_gradients(subject.native, xs)
        ahead = aot_function(lambda *v: subject.op(*v), fw_compiler=nop, bw_compiler=nop)
        assert_all_close(value_and_gradients(ahead, xs), expected)
        traced = make_fx(functionalize(lambda *v: subject.op(*v)))(*xs)
        assert_all_close(value_and_gradients(traced, xs), expected)

    @each(SUBJECTS)
    def test_jit_trace(self, subject: Subject) -> None:
        xs = subject.inputs(4, 5)
        others = tuple(x * 0.9 + 0.05 for x in subject.inputs(7, 5))
        traced = torch.jit.trace(lambda *v: subject.op(*v), xs)
        assert all(node.kind().startswith(("aten::", "prim::")) for node in traced.graph.nodes())
        assert_all_close(value_and_gradients(traced, others), value_and_gradients(subject.native, others))

    @each(SUBJECTS)
    def test_symbolic_trace(self, subject: Subject) -> None:
        xs = subject.inputs(4, 5)
        op = subject.op
        of = {1: lambda a: 2 * op(a), 2: lambda a, b: 2 * op(a, b), 3: lambda a, b, c: 2 * op(a, b, c)}
        traced = torch.fx.symbolic_trace(of[len(xs)])
        assert next(n.target for n in traced.graph.nodes if n.op == "call_function") is subject.op
        assert_all_close(traced(*xs), 2 * subject.native(*xs))
        assert_all_close(second_derivatives(traced, xs), second_derivatives(lambda *v: 2 * subject.native(*v), xs))

    def test_symbolic_trace_beside_tensors_and_numbers(self) -> None:
        x, a = torch.randn(3, 4), torch.rand(3, 4) + 0.5
        for f, native, given in (
            (lambda u: ad.snake(x, a=u), lambda u: ad.snake.definition(x, u), a),
            (lambda u: ad.pow(2.0, u), lambda u: torch.pow(2.0, u), a),
            (lambda u: ad.softplus(u, beta=2.0), lambda u: F.softplus(u, beta=2.0), x),
            (lambda u: ad.quadratic_form(u, x.mT @ x), lambda u: ad.quadratic_form.definition(u, x.mT @ x), a),
        ):
            assert_all_close(torch.fx.symbolic_trace(f)(given), native(given))


COUNTS = [len(subject.inputs(1)) for subject in SUBJECTS]


class Everything(torch.nn.Module):
    """All ops at once, on the tensors of all of them one after another."""

    def __init__(self, native: bool = False) -> None:
        super().__init__()
        self.functions = [subject.native if native else subject.op for subject in SUBJECTS]

    def forward(self, *xs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results, start = [], 0
        for function, count in zip(self.functions, COUNTS, strict=True):
            results.append(function(*xs[start : start + count]))
            start += count
        return tuple(results)


def everything(*shape: int, dtype: torch.dtype = torch.float64) -> Tensors:
    return tuple(x for subject in SUBJECTS for x in subject.inputs(*shape, dtype=dtype))


def values_and_gradients(f: Function, xs: Tensors) -> list[torch.Tensor]:
    """The values of all ops, and the gradients of the sum of their sines."""
    leaves = [x.detach().requires_grad_() for x in xs]
    ys = f(*leaves)
    return [*(y.detach() for y in ys), *torch.autograd.grad(sum(y.sin().sum() for y in ys), leaves)]


NAMES = [s.name for s in SUBJECTS] + [
    f"gradient of {s.name}" for s, n in zip(SUBJECTS, COUNTS, strict=True) for _ in range(n)
]


def assert_each_close(results: list[torch.Tensor], expected: list[torch.Tensor], **options: Any) -> None:
    for name, result, native in zip(NAMES, results, expected, strict=len(expected) == len(NAMES)):
        assert_close(result, native, msg=lambda text, name=name: f"{name}: {text}", **options)
        assert native.abs().max() > 1e-3, name


WITHOUT_TORCHAD_EXT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchad_ext":
            raise ImportError("torchad_ext is not installed here")
sys.meta_path.insert(0, Refuse())
import torch
try:
    import torchad_ext
except ImportError:
    pass
else:
    raise SystemExit("torchad_ext was imported")
folder, *programs = sys.argv[1:]
for name in programs:
    load = torch.jit.load if name.startswith("jit") else lambda file: torch.export.load(file).module()
    run = load(f"{folder}/{name}.pt2")
    inputs = [x.requires_grad_() for x in torch.load(f"{folder}/{name}-inputs.pt")]
    outputs = list(run(*inputs))
    gradients = torch.autograd.grad(sum(y.sin().sum() for y in outputs), inputs)
    torch.save([*(y.detach() for y in outputs), *gradients], f"{folder}/{name}-results.pt")
"""


def run_without_torchad_ext(folder: Path, programs: dict[str, Tensors]) -> dict[str, list[torch.Tensor]]:
    """What the programs saved in a folder give for the tensors, values and gradients, in another process."""
    for name, inputs in programs.items():
        torch.save(list(inputs), folder / f"{name}-inputs.pt")
    finished = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCHAD_EXT, str(folder), *programs],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert finished.returncode == 0, finished.stderr
    return {name: torch.load(folder / f"{name}-results.pt") for name in programs}


@row("export")
class TestExport:
    def test_programs_run_where_torchad_ext_is_not_installed(self, tmp_path: Path) -> None:
        xs = everything(4, 5)
        programs: dict[str, Tensors] = {}
        batch = torch.export.Dim("batch", min=2)
        for strict in (True, False):
            mode = "strict" if strict else "non-strict"
            for shapes, given in ((None, everything(4, 5)), (({0: batch},) * len(xs), everything(7, 5))):
                name = f"{mode}-{'dynamic' if shapes else 'static'}"
                dynamic = {"xs": shapes} if shapes else None
                program = torch.export.export(Everything(), xs, strict=strict, dynamic_shapes=dynamic)
                assert "torchad_ext" not in str(program.graph)
                torch.export.save(program, tmp_path / f"{name}.pt2")
                programs[name] = given
        torch.jit.trace(Everything(), xs).save(str(tmp_path / "jit.pt2"))
        programs["jit"] = everything(7, 5)
        for name, results in run_without_torchad_ext(tmp_path, programs).items():
            expected = values_and_gradients(Everything(native=True), programs[name])
            assert_each_close(results, expected)

    @pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
    def test_the_graph_is_that_of_the_native_functions(self, strict: bool) -> None:
        xs = everything(4, 5)
        ours, native = (torch.export.export(Everything(n), xs, strict=strict) for n in (False, True))
        assert ours.graph_module.code == native.graph_module.code
        lowered = ours.run_decompositions()
        assert_each_close(lowered.module()(*everything(4, 5)), Everything(native=True)(*xs))

    def test_onnx(self) -> None:
        pytest.importorskip("onnxscript")
        from onnx.reference import ReferenceEvaluator

        xs = everything(4, 5, dtype=torch.float32)
        batch = torch.export.Dim("batch", min=2)
        program = torch.onnx.export(
            Everything(), xs, dynamo=True, dynamic_shapes=(({0: batch},) * len(xs),), verbose=False
        )
        model = program.model_proto
        assert "torchad_ext" not in {node.domain for node in model.graph.node}
        others = everything(7, 5, dtype=torch.float32)
        names = [x.name for x in model.graph.input]
        results = ReferenceEvaluator(model).run(None, {n: x.numpy() for n, x in zip(names, others, strict=True)})
        expected = Everything(native=True)(*everything(7, 5))
        assert_each_close([torch.from_numpy(y).double() for y in results], list(expected), rtol=1e-5, atol=1e-5)


Described = tuple[torch.Size, tuple[int, ...], torch.dtype, str]


def described(x: torch.Tensor) -> Described:
    return x.shape, x.stride(), x.dtype, x.device.type


def free_strides(x: Described) -> Any:
    """Without the strides of dimensions of size 1, in which PyTorch's results with and without data differ."""
    shape, stride, dtype, _ = x
    return shape, tuple(step for size, step in zip(shape, stride, strict=True) if size > 1), dtype


def outcome(f: Function, xs: Tensors) -> Described | type[Exception]:
    """The result's description, or the kind of error."""
    try:
        return described(f(*xs))
    except Exception as error:
        return type(error)


def arguments(subject: Subject, x: torch.Tensor) -> Tensors:
    """x for every argument; for ``quadratic_form`` also a matrix for each of its rows."""
    if subject is QUADRATIC_FORM:
        return x, x.unsqueeze(-1).expand(*x.shape, x.shape[-1])
    return (x,) * len(subject.inputs(1))


layouts = pytest.mark.parametrize("layout", NAMED)
parts = pytest.mark.parametrize("part", few(range(4), lambda part: part == 0))


def some(subjects: list[Subject], layout: str, part: int) -> list[Subject]:
    """Every fourth subject, others for the next layout and for the next part."""
    return subjects[(list(NAMED).index(layout) + part) % 4 :: 4]


@row("fake and meta")
class TestWithoutData:
    @layouts
    @parts
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64], ids=str)
    def test_shape_dtype_and_strides(self, layout: str, part: int, dtype: torch.dtype) -> None:
        real = NAMED[layout](sample(torch.float64, "cpu").abs().add(1).to(dtype))
        meta = NAMED[layout](sample(torch.float64, "meta").to(dtype))
        for subject in some(SUBJECTS if real.dim() else POINTWISE, layout, part):
            data, none = arguments(subject, real), arguments(subject, meta)
            with FakeTensorMode() as mode:
                fake = arguments(subject, mode.from_tensor(real))
                inside = [outcome(f, fake) for f in (subject.op, subject.native)]
            outside = [outcome(f, fake) for f in (subject.op, subject.native)]
            on_meta = [outcome(f, none) for f in (subject.op, subject.native)]
            for ours, native in (inside, outside, on_meta):
                assert ours == native, subject.name
            if isinstance(outcome(subject.native, data), tuple):
                known = [free_strides(x) for x in (outcome(subject.op, data), inside[0], on_meta[0])]
                assert known[0] == known[1] == known[2], subject.name

    @layouts
    @parts
    def test_derivatives(self, layout: str, part: int) -> None:
        def derivatives(f: Function, xs: Tensors) -> list[Described]:
            leaves = [x.detach().requires_grad_() for x in xs]
            y = f(*leaves)
            first = torch.autograd.grad(y, leaves, torch.empty_like(y).requires_grad_(), create_graph=True)
            second = torch.autograd.grad(first, leaves, [torch.empty_like(g) for g in first], allow_unused=True)
            composed = grad(lambda x: f(x, *xs[1:]).sum())(xs[0])
            _, tangent = jvp(lambda x: f(x, *xs[1:]), xs[:1], xs[:1])
            results = [described(x) for x in (*first, *second, composed, tangent) if x is not None]
            assert {device for *_, device in results} == {xs[0].device.type}
            return results

        meta = NAMED[layout](sample(torch.float64, "meta"))
        mode = FakeTensorMode()
        fake = mode.from_tensor(NAMED[layout](sample(torch.float64, "cpu")))
        for x, around in ((meta, contextlib.nullcontext()), (fake, mode)):
            with around:
                for subject in some(SUBJECTS if x.dim() else POINTWISE, layout, part):
                    xs = arguments(subject, x)
                    assert derivatives(subject.op, xs) == derivatives(subject.native, xs), subject.name

    @each_of_few
    def test_symbolic_sizes(self, subject: Subject) -> None:
        seen = []
        for f in (subject.op, subject.native):
            known: list[Any] = []

            def work(*xs: torch.Tensor, f: Function = f, known: list[Any] = known) -> torch.Tensor:
                y = f(*xs)
                first = grad(lambda *v: f(*v).sum(), tuple(range(len(xs))))(*xs)
                known.extend((str(r.shape), str(r.stride()), r.dtype) for r in (y, *first))
                return y

            sizes = make_fx(work, tracing_mode="symbolic")(*subject.inputs(6, 5)).shape_env
            seen.append((known, [str(guard.expr) for guard in sizes.guards]))
        assert seen[0] == seen[1]
        assert "s" in seen[0][0][0][0].removeprefix("torch.Size")

    def test_no_kernel_is_needed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any) -> None:
            raise AssertionError("a kernel was asked for")

        monkeypatch.setattr("torchad_ext._elementwise.Elementwise.kernel", refuse)
        monkeypatch.setattr("torchad_ext._native.kernels.find", refuse)
        with pytest.raises(AssertionError, match="a kernel was asked for"):
            ad.pointwise(ad.sin.definition)(torch.zeros(1))
        for subject in SUBJECTS:
            meta = tuple(x.to("meta") for x in subject.inputs(4, 5))
            assert subject.op(*meta).is_meta
            torch._dynamo.reset()
            compiled(subject.op)(*subject.inputs(4, 5))
