"""pointwise: what can be declared, how an op is called, what is compiled, and what happens when that fails."""

from __future__ import annotations

import copy
import math
import pickle
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from builds import with_operators
from drop_in import row
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import DeviceType, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.profiler import profile
from torch.testing import assert_close

import torchad_ext as ad
from torchad_ext import BuildError
from torchad_ext._elementwise import Elementwise
from torchad_ext._native.progress import progress
from torchad_ext._native.state import state


@ad.pointwise
def wave(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.exp(-a * x**2) * torch.sin(b * x + torch.cos(x)) + torch.tanh(a * x)


@ad.pointwise
def polar(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.hypot(x, y), torch.atan2(y, x)


@ad.pointwise
def damped(x: torch.Tensor, rate: float = 0.5, *, power: float = 2.0, shifted: bool = False) -> torch.Tensor:
    decayed = torch.exp(-rate * x) * (1 + x * x) ** power
    return decayed + 1 if shifted else decayed


def normal(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, device=device)


def kernels(work: Callable[[], object]) -> list[str]:
    """The names of the kernels that run."""
    with profile() as recorded:
        work()
    events = (event for event in recorded.events() if event.device_type == DeviceType.CPU)
    return [event.name.removeprefix("torchad_ext::") for event in events if event.name.startswith("torchad_ext::")]


class TestDerivatives:
    @pytest.mark.usefixtures("kernels_when_long")
    @pytest.mark.parametrize("op", [wave, polar], ids=["three inputs", "two outputs"])
    @row("forward mode")
    def test_every_mode_against_finite_differences(self, op: ad.Pointwise, device: str) -> None:
        inputs = [normal(3, device=device).requires_grad_() for _ in op.domain]
        every = {"check_batched_grad": True}
        assert gradcheck(op, inputs, check_forward_ad=True, check_batched_forward_grad=True, **every)
        assert gradgradcheck(op, inputs, check_fwd_over_rev=True, check_rev_over_rev=True, **every)

    @pytest.mark.parametrize(
        "transform",
        [
            lambda f: hessian(f),
            lambda f: jacfwd(jacfwd(f)),
            lambda f: jacrev(jacrev(f)),
            lambda f: jacfwd(jacfwd(jacfwd(f))),
            lambda f: vmap(hessian(f)),
            lambda f: grad(lambda x, *rest: vmap(f)(x, *rest).sum()),
            lambda f: lambda *xs: jvp(grad(f), xs, xs),
            lambda f: lambda *xs: vjp(grad(f), *xs)[1](xs[0]),
        ],
        ids=["hessian", "ff", "rr", "fff", "vmap of hessian", "grad of vmap", "jvp of grad", "vjp of grad"],
    )
    @row("torch.func")
    def test_under_torch_func(self, transform: Callable[..., Callable[..., object]], device: str) -> None:
        xs = normal(3, 4, device=device)
        ours = transform(lambda *xs: wave(*xs).sum())(*xs)
        assert_close(ours, transform(lambda *xs: wave.definition(*xs).sum())(*xs), rtol=1e-11, atol=1e-11)

    @row("reverse mode")
    def test_four_orders_of_three_inputs(self, device: str) -> None:
        results = []
        for f in (wave, wave.definition):
            leaves = [x.requires_grad_() for x in normal(3, 5, device=device).clone() * 0 + 0.3]
            total, orders = f(*leaves).sum(), []
            for _ in range(4):
                gradients = torch.autograd.grad(total, leaves, create_graph=True)
                orders.append(torch.stack(gradients))
                total = sum(g.square().sum() for g in gradients)
            results.append(orders)
        assert_close(*results, rtol=1e-10, atol=1e-10)

    @row("reverse mode")
    def test_some_cotangents_of_several_outputs(self, device: str) -> None:
        for chosen in ((True, False), (False, True), (True, True)):
            results = []
            for f in (polar, polar.definition):
                x, y = (leaf.requires_grad_() for leaf in torch.tensor([[1.0, -2.0], [0.5, 3.0]], device=device))
                outputs = [output for output, c in zip(f(x, y), chosen, strict=True) if c]
                first = torch.autograd.grad(sum(o.square().sum() for o in outputs), (x, y), create_graph=True)
                results.append([first, torch.autograd.grad(sum(g.square().sum() for g in first), (x, y))])
            assert_close(*results)

    @row("reverse mode")
    def test_a_cotangent_that_is_shared_expanded_or_its_own_input(self, device: str) -> None:
        x = normal(4, 5, device=device).requires_grad_()
        y = ad.tanh(x)
        for cotangent in (
            x.detach(),
            x.detach()[:1].expand(4, 5),
            x.new_ones(()).expand(4, 5),
            x.detach().t().clone().t(),
        ):
            (ours,) = torch.autograd.grad(y, x, cotangent, retain_graph=True)
            assert_close(ours, torch.autograd.grad(x.tanh(), x, cotangent)[0])

    @row("reverse mode")
    def test_what_does_not_depend_on_an_input_has_no_gradient_for_it(self, device: str) -> None:
        x, a = normal(2, 3, device=device).requires_grad_().unbind()
        double = ad.pointwise(lambda x: 2 * x)
        (first,) = torch.autograd.grad(double(x).sum(), x, create_graph=True)
        assert not first.requires_grad
        mixed = ad.pointwise(lambda x, a: x * x + a)
        for_x, for_a = torch.autograd.grad(mixed(x, a).sum(), (x, a), create_graph=True)
        assert_close(torch.autograd.grad(for_x.sum(), x)[0], torch.full_like(x, 2))
        assert_close(for_a, torch.ones_like(a))

    def test_a_derivative_that_vanishes_is_zero(self, device: str) -> None:
        x = normal(3, device=device).requires_grad_()
        step = ad.pointwise(lambda x: torch.sign(x) * torch.abs(x))
        (first,) = torch.autograd.grad(step(x).sum(), x, create_graph=True)
        assert_close(torch.autograd.grad(first.sum(), x)[0], torch.zeros_like(x))
        assert_close(hessian(lambda x: step(x).sum())(x.detach()), torch.zeros(3, 3, dtype=x.dtype, device=device))

    def test_in_a_module(self, device: str) -> None:
        class Layer(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = torch.nn.Linear(3, 3, dtype=torch.float64, device=device)
                self.frequency = torch.nn.Parameter(torch.ones(3, dtype=torch.float64, device=device))
                self.activation = ad.snake

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.activation(self.linear(x), self.frequency)

        layer = copy.deepcopy(Layer())
        x = normal(4, 3, device=device)
        parameters = dict(layer.named_parameters())
        gradients = grad(lambda p: functional_call(layer, p, (x,)).square().sum())(parameters)
        layer(x).square().sum().backward()
        assert gradients["frequency"].shape == (3,)
        for name, parameter in parameters.items():
            assert_close(gradients[name], parameter.grad)


class TestFusion:
    def test_each_order_is_one_kernel_with_the_wanted_outputs(self, device: str) -> None:
        leaves = [normal(5, device=device).requires_grad_() for _ in range(3)]
        xs = [1 * leaf for leaf in leaves]
        cotangents = [leaf.detach() for leaf in leaves]
        assert kernels(lambda: wave(*xs)) == ["wave"]
        y = wave(*xs)
        assert kernels(lambda: torch.autograd.grad(y.sum(), xs, retain_graph=True)) == ["wave_backward"]
        assert kernels(lambda: torch.autograd.grad(y.sum(), leaves[0], retain_graph=True)) == ["wave_backward_x"]
        first = torch.autograd.grad(y, xs, cotangents[0], create_graph=True)

        def second(*wanted: torch.Tensor) -> object:
            return torch.autograd.grad(first, wanted, cotangents, retain_graph=True)

        assert kernels(lambda: second(*leaves)) == ["wave_double_backward_x_a_b"]
        assert kernels(lambda: second(leaves[1])) == ["wave_double_backward_a"]
        (third,) = torch.autograd.grad(first, leaves[0], cotangents, create_graph=True)
        assert kernels(lambda: torch.autograd.grad(third.sum(), leaves[0])) == ["wave_triple_backward_x"]

    def test_of_large_leaves_too_only_the_wanted_gradients_are_computed(self, device: str) -> None:
        leaves = [normal(2**19, device=device).requires_grad_() for _ in range(3)]
        y = wave(*leaves)
        for wanted, kernel in (
            (leaves[:1], "wave_backward_x"),
            (leaves[1:], "wave_backward_a_b"),
            (leaves, "wave_backward"),
        ):
            assert kernels(lambda: torch.autograd.grad(y.sum(), wanted, retain_graph=True)) == [kernel]  # noqa: B023
        assert kernels(y.sum().backward) == ["wave_backward"]

    def test_an_unwanted_input_costs_nothing(self, device: str) -> None:
        x, a, b = (normal(5, device=device) for _ in range(3))
        y = wave(x.requires_grad_(), a, b)
        assert kernels(lambda: torch.autograd.grad(y.sum(), x)) == ["wave_backward_x"]

    def test_only_what_the_result_depends_on_is_read(self) -> None:
        derivative = ad.exp._usual.vjp((True,), (True,)).function.vjp((False, True), (True,))
        assert derivative.arguments == (0, 2)  # x and grad_grad_x, not grad_output
        assert wave.operands(0) == (3, 1) and wave.operands(1) == (4, 3) and wave.operands(2) == (7, 4)

    def test_a_new_number_needs_no_new_kernel(self, device: str) -> None:
        x = normal(5, device=device)
        damped(x, 0.1)
        before = dict(state.kernels)
        for rate in (0.2, 3, 0.0, -1.5):
            assert_close(damped(x, rate), damped.definition(x, rate))
            assert_close(damped(x, rate=rate, power=rate), damped.definition(x, rate, power=rate))
        assert state.kernels == before


class TestCall:
    @pytest.mark.parametrize(
        "shapes",
        [[(4, 5), (5,), ()], [(4, 1), (1, 5), (3, 1, 1)], [(0, 3), (3,), ()], [(), (), ()], [(1,), (7,), (7,)]],
        ids=str,
    )
    def test_tensors_broadcast(self, shapes: list[tuple[int, ...]], device: str) -> None:
        results = []
        for f in (wave, wave.definition):
            torch.manual_seed(0)
            leaves = [normal(*shape, device=device).requires_grad_() for shape in shapes]
            y = f(*leaves)
            first = torch.autograd.grad(y.sum(), leaves, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
            results.append([y, first, second])
            assert [g.shape for g in first] == [torch.Size(shape) for shape in shapes]
        assert_close(*results, rtol=1e-11, atol=1e-11)

    def test_an_output_has_the_shape_of_what_it_depends_on(self, device: str) -> None:
        pair = ad.pointwise(lambda x, b: (torch.sin(x * b), b * b))
        for rows in (100, 0):
            x, b = normal(rows, 4, device=device), normal(4, device=device).requires_grad_()
            ours, native = pair(x, b), pair.definition(x, b)
            assert_close(ours, native)
            assert_close(torch.autograd.grad(ours[1].sum(), b), torch.autograd.grad(native[1].sum(), b))
        unused = ad.pointwise(lambda x, y: x * x)
        assert unused(normal(1, device=device), normal(5, device=device)).shape == (1,)
        like = ad.pointwise(lambda x, y: torch.full_like(x, 2.0) * y)
        assert like(normal(3, 1, device=device), normal(5, device=device)).shape == (3, 5)

    @row("dtypes")
    def test_tensors_without_dimensions_and_integers_promote_as_in_pytorch(self, device: str) -> None:
        wave2 = ad.pointwise(lambda x, w: torch.sin(w * x))
        x = normal(3, device=device, dtype=torch.bfloat16)
        frequency = torch.nn.Parameter(torch.tensor(0.7, device=device))
        assert wave2(x, frequency).dtype == wave2.definition(x, frequency).dtype == torch.bfloat16
        whole = torch.tensor([2, 3], device=device)
        assert_close(ad.pow(whole, 2), torch.pow(whole, 2))

    def test_traced_by_torch_jit_and_fx(self) -> None:
        x = normal(3)
        traced = torch.jit.trace(lambda x: ad.sin(x) * 2, (x,))
        assert_close(traced(2 * x), 2 * (2 * x).sin())

        class Module(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return ad.softplus(x, 2.0) + 1

        assert_close(torch.fx.symbolic_trace(Module())(x), ad.softplus(x, 2.0) + 1)

    @row("errors")
    def test_shapes_that_do_not_broadcast_raise_as_in_pytorch(self, device: str) -> None:
        with pytest.raises(RuntimeError, match=r"must match|not broadcastable|incompatible"):
            wave(torch.zeros(3, device=device), torch.zeros(4, device=device), torch.zeros(1, device=device))

    @settings(max_examples=300, deadline=None)
    @given(data=st.data())
    @row("layouts")
    def test_strides_of_two_operands_are_those_of_pytorch(self, data: st.DataObject) -> None:
        dims = data.draw(st.integers(1, 4))
        sizes = data.draw(st.lists(st.integers(1, 4), min_size=dims, max_size=dims))
        views = []
        for _ in range(2):
            order = data.draw(st.permutations(range(dims)))
            repeated = data.draw(st.sets(st.integers(0, dims - 1), max_size=1))
            memory = torch.randn([1 if d in repeated else sizes[d] for d in order], dtype=torch.float64)
            views.append(memory.permute([order.index(d) for d in range(dims)]).expand(sizes))
        product = PRODUCT(*views)
        expected = views[0] * views[1]
        assert product.stride() == expected.stride()
        assert_close(product, expected)

    def test_numbers_in_place_of_tensors_and_tensors_in_place_of_numbers(self, device: str) -> None:
        x, a = normal(2, 5, device=device).abs() + 0.1
        for arguments in ((x, a, 2.0), (x, 0.5, a), (x, 1, 2), (x, a, math.pi)):
            assert_close(wave(*arguments), wave.definition(*(torch.as_tensor(v, device=device) for v in arguments)))
        assert_close(damped(x, a), damped.definition(x, a))
        rate = a.clone().requires_grad_()
        (ours,) = torch.autograd.grad(damped(x, rate).sum(), rate)
        assert_close(ours, torch.autograd.grad(damped.definition(x, rate).sum(), rate)[0])

    def test_keywords_defaults_and_fixed_options(self, device: str) -> None:
        x = normal(5, device=device).abs()
        for options in ({}, {"rate": 1.5}, {"power": 1}, {"shifted": True}, {"shifted": True, "power": 0.5, "rate": 2}):
            assert_close(damped(x, **options), damped.definition(x, **options))
            assert_close(damped(x=x, **options), damped.definition(x, **options))

    @row("errors")
    def test_arguments_that_do_not_fit_are_named(self) -> None:
        with pytest.raises(TypeError, match=r"damped\(x.*too many positional"):
            damped(torch.zeros(1), 1.0, 2.0)
        with pytest.raises(TypeError, match="unexpected keyword argument 'speed'"):
            damped(torch.zeros(1), speed=1.0)
        with pytest.raises(TypeError, match=r"takes a torch\.Tensor or a number for rate, got str"):
            damped(torch.zeros(1), "fast")
        with pytest.raises(TypeError, match=r"takes a torch\.Tensor for x, got numbers alone"):
            wave(1.0, 2.0, 3.0)
        with pytest.raises(TypeError, match="cos is given a Python number"):
            wave(1.0, torch.zeros(1), 3.0)

    @pytest.mark.parametrize("dtype", [torch.complex128, torch.int64], ids=str)
    @row("dtypes")
    def test_dtypes_without_kernels_run_the_definition(self, dtype: torch.dtype, device: str) -> None:
        x = torch.tensor([1, 2, 3], device=device).to(dtype)
        assert_close(wave(x, x, x), wave.definition(x, x, x))

    @row("dtypes")
    def test_mixed_dtypes_promote_as_in_pytorch(self, device: str) -> None:
        x, a = normal(3, device=device), normal(3, device=device, dtype=torch.float32)
        result, native = wave(x, a, a), wave.definition(x, a, a)
        assert result.dtype == native.dtype
        assert_close(result, native)

    @row("torch.compile")
    def test_traced_by_torch_compile_and_export(self) -> None:
        x = normal(3)
        compiled = torch.compile(lambda x: damped(x, rate=0.3) * 2, fullgraph=True, backend="aot_eager")
        assert_close(compiled(x), damped.definition(x, 0.3) * 2)

    def test_on_all_threads(self, device: str) -> None:
        xs = [normal(100_003, device=device) for _ in range(3)]
        assert_close(wave(*xs), wave.definition(*xs), rtol=1e-11, atol=1e-11)


LONG_ROWS = {  # of [7, 10000], so that threads begin within a row
    "contiguous": lambda m: m[:, :5000].contiguous(),
    "half of each row": lambda m: m[:, 3:5003],
    "every other element": lambda m: m[:, ::2],
    "transposed": lambda m: m[:, :5000].T.contiguous().T,
    "a number a row": lambda m: m[:, :1].expand(7, 5000),
    "one row": lambda m: m[0, :5000].expand(7, 5000),
    "one number": lambda m: m[0, 0].expand(7, 5000),
}


@pytest.mark.parametrize("first", LONG_ROWS)
@pytest.mark.parametrize("second", LONG_ROWS)
def test_long_rows(first: str, second: str, device: str) -> None:
    x, a, b = (normal(7, 10_000, device=device) for _ in range(3))
    x, a = LONG_ROWS[first](x), LONG_ROWS[second](a)
    for xs in (
        (x, a, b[:, 5000:]),
        (x[:, :131], a[:, :131], b[0, :131]),
        (x[:, :127], a[:, :127], b[:, ::77][:, :127]),
    ):
        assert_close(wave(*xs), wave.definition(*xs), rtol=1e-11, atol=1e-11)


PRODUCT = ad.pointwise(lambda x, y: x * y)


class TestComposition:
    def test_a_declared_op_within_another_is_part_of_its_kernel(self, device: str) -> None:
        outer = ad.pointwise(lambda x, a: ad.silu(damped(x, a, power=1.0)) * ad.sin(x))
        x, a = normal(2, 6, device=device).abs().requires_grad_().unbind()
        native = torch.nn.functional.silu(damped.definition(x, a, power=1.0)) * x.sin()
        assert kernels(lambda: outer(x, a)) == ["lambda"]
        assert_close(outer(x, a), native)
        assert_close(torch.autograd.grad(outer(x, a).sum(), (x, a)), torch.autograd.grad(native.sum(), (x, a)))

    def test_what_is_wrong_inside_is_refused(self) -> None:
        with pytest.raises(ad.TraceError, match="in place"):
            ad.pointwise(lambda x: ad.silu(x, inplace=True))


class TestPresentation:
    def test_source_is_the_functor(self) -> None:
        source = wave.source(order=1)
        assert source.startswith("struct WaveBackward {")
        assert "operator()(T x, T a, T b, T grad_output) const" in source
        assert "SinDoubleBackward" in ad.sin.source(order=2) and "struct Sin " not in ad.sin.source(order=2)

    def test_numbers_are_members_computed_once(self) -> None:
        source = ad.gaussian_basis.source()
        assert "explicit GaussianBasis(const double* scalars)" in source
        assert source.index("scalars[1]") < source.index("operator()")

    def test_latex(self) -> None:
        assert ad.square.latex() == r"\mathrm{square}(x) = x^{2}"
        assert ad.siren.latex() == r"\mathrm{siren}(x, \omega) = \sin\left(\omega \, x\right)"
        assert ad.sin.latex(order=1) == r"\bar{x} = \bar{y} \, \cos x"
        assert r"\bar{x}" in wave.latex(order=1) and r"\bar{\bar{x}}" in wave.latex(order=2)
        assert wave._repr_latex_().startswith("$")
        cases = r"\begin{cases}\alpha & x = 0 \\ 1 & x \ge 0 \\ \alpha \, e^{x} & \text{otherwise}\end{cases}"
        assert ad.elu.derivative().latex().endswith(f" = {cases}")
        assert max(map(len, ad.ops.table().splitlines())) < 350  # where a page has no space for the rest
        for op in ad.ops.CATALOGUE.values():
            for order in range(3):
                text = op.latex(order)
                assert text.count("{") == text.count("}") and text.count(r"\left") == text.count(r"\right")

    def test_matplotlib_can_draw_the_formulas(self) -> None:
        from matplotlib import mathtext

        for op in (ad.sin, ad.silu, ad.gelu, ad.snake, ad.gaussian, ad.sinc):
            text = op.latex().replace(r"\tfrac", r"\frac")
            mathtext.MathTextParser("agg").parse(f"${text}$")

    def test_repr_and_signature(self) -> None:
        assert repr(ad.softplus) == "<torchad_ext.softplus(input, beta=1.0, threshold=20.0)>"
        assert damped.__name__ == "damped" and damped.__doc__ == damped.definition.__doc__

    @row("copying")
    def test_a_declared_op_pickles_by_its_name(self) -> None:
        assert pickle.loads(pickle.dumps(wave)) is wave
        assert copy.deepcopy(wave) is wave

    def test_a_negative_order_is_refused(self) -> None:
        with pytest.raises(ValueError, match="got order -1; 0 is the value"):
            wave.source(-1)

    @pytest.mark.parametrize("order", ["1", 1.0, None])
    def test_an_order_that_is_no_whole_number_is_refused(self, order: object) -> None:
        with pytest.raises(ValueError, match=f"got order {order!r}; 0 is the value"):
            wave.latex(order=order)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"orders": 1}, r"a list of orders, got 1; write \[1\]"),
            ({"dtypes": torch.float32}, "a list of dtypes, of .*; got torch.float32"),
            ({"dtypes": ["float32"]}, "a list of dtypes, of torch.float16, .*; got .'float32'"),
            ({"dtypes": [torch.int32]}, "a list of dtypes, of .*; got .torch.int32"),
            ({"devices": "cpu"}, "a list of devices, of cpu, cuda; got 'cpu'"),
            ({"devices": ["tpu"]}, "a list of devices, of cpu, cuda; got .'tpu'"),
        ],
    )
    def test_what_cannot_be_compiled_is_refused(self, options: dict[str, list], message: str) -> None:
        with pytest.raises(ValueError, match=f"compile takes {message}"):
            wave.compile(**options)

    def test_an_option_that_a_function_has_not_is_refused_with_the_line_of_the_call(self) -> None:
        with pytest.raises(ad.TraceError, match=r"test_pointwise.*: ad\.gelu.*\n  gelu has no approximate 'x'"):
            ad.gelu(torch.ones(3), approximate="x")

    def test_a_name_that_is_a_macro_of_c_will_do(self) -> None:
        circle = ad.pointwise(lambda NULL, M_PI=3.0: NULL * NULL * M_PI)
        assert_close(circle(torch.ones(2)), torch.full((2,), 3.0))

    @pytest.mark.parametrize("name", ["double", "T", "Outputs", "x y", "ω", "2x", "sin", "Float", "_", "run"])
    def test_any_name_will_do(self, name: str) -> None:
        def function(x: torch.Tensor) -> torch.Tensor:
            return torch.sin(x) + 1

        function.__name__ = name
        x = normal(3)
        assert_close(ad.pointwise(function)(x), function(x))

    def test_any_argument_name_will_do(self) -> None:
        @ad.pointwise
        def named(
            double: torch.Tensor,
            T: torch.Tensor,
            sin: torch.Tensor,
            ω: torch.Tensor,
            t1: torch.Tensor,
            M_PI: float = 1.5,
        ) -> torch.Tensor:
            return torch.sin(double * T) * (double * T) + sin * ω * t1

        xs = normal(5, 4).requires_grad_()
        assert_close(named(*xs), named.definition(*xs))
        assert_close(
            torch.autograd.grad(named(*xs).sum(), xs)[0], torch.autograd.grad(named.definition(*xs).sum(), xs)[0]
        )


class TestBuild:
    @pytest.fixture
    def empty_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        wave(*normal(3, 2))  # the operators are loaded
        monkeypatch.setenv("TORCHAD_EXT_CACHE_DIR", str(tmp_path))
        return tmp_path

    def test_compile_is_ahead_of_use_and_in_parallel(
        self, empty_cache: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        cube = ad.pointwise(lambda x, y: x**3 * y + 0.125)
        cube.compile(orders=range(3), dtypes=[torch.float32, torch.float64])
        assert len(list(empty_cache.glob("*/library.so"))) == 6
        capfd.readouterr()
        x = normal(3).requires_grad_()
        first = torch.autograd.grad(cube(x, x), x, torch.ones_like(x))
        assert capfd.readouterr().err == "" and first

    def test_a_kernel_that_fails_to_build_falls_back_with_one_warning(
        self, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TORCHAD_EXT_STRICT", "0")
        broken = ad.pointwise(lambda x: x * 3.25)
        monkeypatch.setattr(Elementwise, "functor", lambda *_: ("Broken", "struct Broken { nonsense };"))
        x = normal(3).requires_grad_()
        with pytest.warns(UserWarning, match=r"no native kernel of .*; its output is in (.*\.log)") as caught:
            y = broken(x)
        assert len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_close(broken(x), y)
            (slope,) = torch.autograd.grad(y.sum(), x)
        assert_close(y, x * 3.25)
        assert_close(slope, torch.full_like(x, 3.25))
        (log,) = empty_cache.glob("*/library.log")
        assert "nonsense" in log.read_text() and str(log) in str(caught[0].message)
        assert caught[0].filename == __file__

    def test_a_derivative_that_fails_to_build_falls_back_too(
        self, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TORCHAD_EXT_STRICT", "0")
        op = ad.pointwise(lambda x: torch.sin(x) * 3.5)
        x = normal(3).requires_grad_()
        y = op(x)
        monkeypatch.setattr(Elementwise, "functor", lambda *_: ("Broken", "struct Broken { nonsense };"))
        with pytest.warns(UserWarning, match="no native kernel") as caught:
            (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        assert len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            (second,) = torch.autograd.grad(first.sum(), x)
        assert_close(first, 3.5 * x.cos())
        assert_close(second, -3.5 * x.sin())

    def test_it_is_an_error_when_strict(self, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        op = ad.pointwise(lambda x: x * 3.75)
        monkeypatch.setenv("TORCHAD_EXT_STRICT", "1")
        monkeypatch.setattr(Elementwise, "functor", lambda *_: ("Broken", "struct Broken { nonsense };"))
        for _ in range(2):
            with pytest.raises(BuildError, match="no native kernel"):
                op(normal(3))

    @row("threads")
    def test_threads_compile_once(self, empty_cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
        op = ad.pointwise(lambda x: x * 4.25)
        x = normal(3)
        progress.finish()
        capfd.readouterr()
        threads = [threading.Thread(target=op, args=(x,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        progress.finish()
        assert "compiled 1 library" in capfd.readouterr().err

    def test_the_same_declaration_finds_its_kernel_in_another_process(self, tmp_path: Path) -> None:
        program = """
import torch, torchad_ext as ad
op = ad.pointwise(lambda x, y: torch.exp(-x * y) / (1 + y * x) ** 2)
x = torch.ones(3, requires_grad=True)
first, = torch.autograd.grad(op(x, x).sum(), x, create_graph=True)
torch.autograd.grad(first.sum(), x)
"""
        setting = with_operators(tmp_path)
        errors = [
            subprocess.run(
                [sys.executable, "-c", program],
                env={**setting, "PYTHONHASHSEED": str(seed)},
                capture_output=True,
                text=True,
                check=True,
            ).stderr
            for seed in (1, 2)
        ]
        assert re.search(r"compiled 3 libraries", errors[0]) and errors[1] == ""


def test_declaring_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHAD_EXT_CACHE_DIR", str(tmp_path))
    ad.pointwise(lambda x: x + 5.5).source(order=3)
    assert not list(tmp_path.iterdir())


def test_an_error_belongs_to_the_declaration() -> None:
    with pytest.raises(ad.TraceError, match="reduce the result outside"):

        @ad.pointwise
        def total(x: torch.Tensor) -> torch.Tensor:
            return x / x.sum()

    with pytest.raises(TypeError, match=r"takes \*xs; name every argument"):
        ad.pointwise(lambda *xs: xs[0])
    with pytest.raises(TypeError, match=r"takes \*\*options; name every argument"):
        ad.pointwise(lambda x, **options: x)
    with pytest.raises(TypeError, match="has no arguments"):
        ad.pointwise(lambda: 1.0)


def test_no_warning_escapes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wave(*normal(3, 4))
