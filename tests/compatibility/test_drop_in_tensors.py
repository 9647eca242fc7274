"""Tensors that are more than numbers in memory, and the modes under which an op may be called: as native in each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import torch
from drop_in import POINTWISE, QUADRATIC_FORM, SUBJECTS, Subject, each, row
from torch import Tensor
from torch.autograd import grad
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

import torchad_ext as ad

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(prototype|beta) (stage|state)",
    "ignore:.*not implemented in __torch_dispatch__ for MaskedTensor",
    "ignore:(log1p_backward|torch.quantize_per_tensor)",
)
SEVERAL = [subject for subject in POINTWISE if len(subject.intervals or ()) > 1]
Function = Callable[..., Any]


def outcome(function: Function, *args: Any) -> Any:
    """What a call gives, or the type of what it raises."""
    try:
        return function(*args)
    except Exception as error:
        return type(error)


def parts(x: Tensor) -> list[Tensor]:
    """The numbers of a tensor of any layout."""
    if x.is_nested:
        return [part for component in x.unbind() for part in parts(component)]
    if x.is_quantized:
        return [x.dequantize()]
    return [x if x.layout is torch.strided else x.to_dense()]


def assert_same(result: Any, expected: Any) -> None:
    """The same kind of tensor with the same numbers, or the same error."""
    if not isinstance(expected, Tensor):
        assert result is expected
        return
    assert type(result) is type(expected)
    assert (result.dtype, result.layout, result.is_nested) == (expected.dtype, expected.layout, expected.is_nested)
    assert (result.is_conj(), result.is_neg()) == (expected.is_conj(), expected.is_neg())
    if result.layout is torch.strided and not result.is_nested:
        assert result.stride() == expected.stride()
    for a, b in zip(parts(result), parts(expected), strict=True):
        assert_close(a, b)


def derivatives(function: Function, xs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Of the squared modulus: the gradient, and the gradient of its square."""
    y = function(*xs)
    slopes = grad((y * y.conj()).sum().real, xs, create_graph=True)
    return (*slopes, *grad(sum(slope.square().sum() for slope in slopes), xs, materialize_grads=True))


def conjugate(x: Tensor) -> Tensor:
    return torch.complex(x, 0.5 * x).conj()


def negative(x: Tensor) -> Tensor:
    view = torch.complex(x, -x).conj().imag
    assert view.is_neg()
    return view


def nested(layout: torch.layout) -> Function:
    return lambda x: torch.nested.as_nested_tensor([x, x[:2]], layout=layout)


LAYOUTS: dict[str, Function] = {
    "COO": lambda x: x.to_sparse(),
    "CSR": lambda x: x.to_sparse_csr(),
    "CSC": lambda x: x.to_sparse_csc(),
    "BSR": lambda x: x.to_sparse_bsr((2, 2)),
    "nested": nested(torch.strided),
    "jagged": nested(torch.jagged),
    "mkldnn": lambda x: x.float().to_mkldnn(),
    "quantised": lambda x: torch.quantize_per_tensor(x.float(), 0.05, 0, torch.qint8),
    "conjugate": conjugate,
    "transposed conjugate": lambda x: conjugate(x).mT,
    "negative": negative,
    "transposed negative": lambda x: negative(x).mT,
    "zero": lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype),
}


def layouts(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("layout", names or LAYOUTS)


@row("other layouts")
class TestLayouts:
    @each(SUBJECTS)
    @layouts()
    def test_is_as_native(self, subject: Subject, layout: str) -> None:
        xs = [LAYOUTS[layout](x) for x in subject.inputs(4, 4)]
        assert_same(outcome(subject.op, *xs), outcome(subject.native, *xs))

    @layouts("COO", "nested", "jagged", "mkldnn", "quantised", "conjugate", "negative", "zero")
    def test_beside_another_is_as_native(self, layout: str) -> None:
        product = ad.pointwise(lambda a, b: a * b)
        x = LAYOUTS[layout](torch.rand(4, 4))
        for other in (x, torch.rand(4, 4), torch.rand(1, 1, 4), torch.rand(4), torch.tensor(1.5), 2.0):
            for pair in ((x, other), (other, x)):
                assert_same(outcome(product, *pair), outcome(product.definition, *pair))

    def test_jagged_tensors_broadcast(self) -> None:
        x = torch.nested.nested_tensor([torch.rand(3, 4), torch.rand(2, 4)], layout=torch.jagged)
        for exponent in (x, torch.rand(1, 1, 4), torch.tensor(1.5)):
            assert_same(ad.pow(x, exponent), x.pow(exponent))
        A = torch.rand(4, 4)
        assert_same(ad.quadratic_form(x, A), QUADRATIC_FORM.native(x, A))

    @each(SUBJECTS)
    @layouts("conjugate", "transposed conjugate", "negative", "transposed negative", "jagged", "COO")
    def test_derivatives_through_it_are_native(self, subject: Subject, layout: str) -> None:
        def through(function: Function) -> Function:
            def call(*xs: Tensor) -> Tensor:
                y = function(*[LAYOUTS[layout](x) for x in xs])
                return torch.cat(parts(y)) if y.is_nested else y.to_dense() if y.is_sparse else y

            return call

        xs = subject.inputs(4, 4, requires_grad=True)
        result = outcome(derivatives, through(subject.op), xs)
        expected = outcome(derivatives, through(subject.native), xs)
        if isinstance(expected, tuple):
            assert all(slope.count_nonzero() for slope in expected[: len(xs)])
            assert_close(result, expected)
        else:
            assert result is expected

    @each(SUBJECTS)
    @layouts("negative", "transposed negative")
    def test_transforms_of_it_are_native(self, subject: Subject, layout: str) -> None:
        """Behind a transform of torch.func, where nobody sees the layout."""
        xs = [LAYOUTS[layout](x) for x in subject.inputs(4, 4)]

        def derivatives(function: Function) -> list[Tensor]:
            loss = lambda *xs: function(*xs).square().sum()  # noqa: E731
            places = tuple(range(len(xs)))
            slopes = torch.func.grad(loss, places)
            of_slopes = torch.func.grad(lambda *xs: sum(y.square().sum() for y in slopes(*xs)), places)
            found = [*slopes(*xs), *of_slopes(*xs)]
            if subject is QUADRATIC_FORM:  # PyTorch has no tangents of a product with a negative view
                return found
            tangents = tuple(map(torch.ones_like, xs))
            found += [torch.func.jvp(function, tuple(xs), tangents)[1], *torch.func.jvp(slopes, tuple(xs), tangents)[1]]
            return [*found, torch.func.vmap(function)(*xs)]

        assert_close(derivatives(subject.op), derivatives(subject.native))

    @each(SUBJECTS)
    @layouts("negative", "transposed negative", "zero")
    def test_a_gradient_of_it_is_propagated(self, subject: Subject, layout: str) -> None:
        xs = subject.inputs(*(4,) * (3 if subject is QUADRATIC_FORM else 2), requires_grad=True)
        given = torch.rand(4, 4, dtype=torch.float64, requires_grad=True)

        def propagate(function: Function) -> tuple[Tensor, ...]:
            slopes = grad(function(*xs), xs, LAYOUTS[layout](given), create_graph=True)
            if layout == "zero":
                return slopes
            return (*slopes, *grad(sum(slope.square().sum() for slope in slopes), (given, *xs)))

        assert_close(propagate(subject.op), propagate(subject.native))


class Tagged(torch.Tensor):
    """Records the functions that it is given to."""

    seen: ClassVar[list[Function]] = []

    @classmethod
    def __torch_function__(cls, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


class Bare(torch.Tensor):
    """Asks for plain tensors, as a Parameter does."""

    __torch_function__ = torch._C._disabled_torch_function_impl


class Reluctant(torch.Tensor):
    """Knows no function."""

    @classmethod
    def __torch_function__(cls, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return NotImplemented


class Symbol:
    """No tensor, and yet an argument of PyTorch's functions."""

    @classmethod
    def __torch_function__(cls, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func, args


class Wrapper(torch.Tensor):
    """Holds a tensor and records the operators that are run on it."""

    seen: ClassVar[list[Any]] = []

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, requires_grad=inner.requires_grad
        )
        wrapper.inner = inner.detach()
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(func)
        args, kwargs = tree_map_only(cls, lambda x: x.inner, (args, kwargs or {}))
        return tree_map_only(Tensor, cls, func(*args, **kwargs))


class Operators(TorchDispatchMode):
    """Records the operators that are run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **kwargs or {})


class Calls(TorchFunctionMode):
    """Records the functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Function] = []

    def __torch_function__(self, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **kwargs or {})


def places(subjects: list[Subject]) -> pytest.MarkDecorator:
    """Runs a test for each argument of each subject."""
    counts = [(subject, len(subject.intervals or "xA")) for subject in subjects]
    cases = [pytest.param(subject, i, id=f"{subject.name}-{i}") for subject, n in counts for i in range(n)]
    return pytest.mark.parametrize(("subject", "place"), cases)


def replaced(xs: tuple[Any, ...], place: int, make: Function) -> list[Any]:
    return [make(x) if i == place else x for i, x in enumerate(xs)]


@row("subclasses and modes")
class TestTorchFunction:
    @places(SUBJECTS)
    def test_a_subclass_is_given_the_op_and_keeps_its_type(self, subject: Subject, place: int) -> None:
        plain = subject.inputs(3, 4, requires_grad=True)
        xs = replaced(plain, place, lambda x: x.detach().as_subclass(Tagged).requires_grad_())
        Tagged.seen.clear()
        result = subject.op(*xs)
        assert Tagged.seen == [subject.op]
        assert type(result) is Tagged
        assert_close(result.as_subclass(Tensor), subject.native(*plain))
        for slope, expected in zip(derivatives(subject.op, xs), derivatives(subject.native, plain), strict=True):
            assert_close(slope.as_subclass(Tensor), expected)

    @places(SUBJECTS)
    def test_a_subclass_that_asks_for_plain_tensors_gets_them(self, subject: Subject, place: int) -> None:
        xs = replaced(subject.inputs(3, 4), place, lambda x: x.as_subclass(Bare))
        assert_same(subject.op(*xs), subject.native(*xs))

    @places(SUBJECTS)
    def test_a_subclass_may_decline(self, subject: Subject, place: int) -> None:
        xs = replaced(subject.inputs(3, 4), place, lambda x: x.as_subclass(Reluctant))
        with pytest.raises(TypeError, match=r"returned NotImplemented|no implementation found"):
            subject.op(*xs)

    @places(SUBJECTS)
    def test_what_is_no_tensor_may_decide_too(self, subject: Subject, place: int) -> None:
        xs = replaced(subject.inputs(3, 4), place, lambda _: Symbol())
        function, args = subject.op(*xs)
        assert function is subject.op
        assert list(args[: len(xs)]) == xs

    @each(SUBJECTS)
    def test_it_can_be_disabled(self, subject: Subject) -> None:
        xs = subject.inputs(3, 4)
        Tagged.seen.clear()
        with torch._C.DisableTorchFunctionSubclass():
            result = subject.op(*[x.as_subclass(Tagged) for x in xs])
        with torch._C.DisableTorchFunction(), Calls() as calls:
            subject.op(*[x.as_subclass(Tagged) for x in xs])
        assert Tagged.seen == calls.seen == []
        assert_same(result, subject.native(*xs))

    @each(SUBJECTS)
    def test_a_mode_sees_the_call(self, subject: Subject) -> None:
        xs = subject.inputs(3, 4, requires_grad=True)
        with Calls() as calls:
            result = subject.op(*xs)
        assert calls.seen == [subject.op]
        assert_close(result, subject.native(*xs))
        with Calls() as calls:
            assert_close(derivatives(subject.op, xs), derivatives(subject.native, xs))
        assert calls.seen.count(subject.op) == 1

    def test_a_mode_may_answer_and_is_given_arguments_by_name(self) -> None:
        class Cosine(TorchFunctionMode):
            def __torch_function__(self, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                return torch.cos(*args) if func is ad.sin else func(*args, **kwargs or {})

        x = torch.rand(3)
        with Cosine():
            assert_close(ad.sin(input=x), x.cos())
            assert_close(ad.pow(exponent=x, input=2.0), 2.0**x)


@row("subclasses and modes")
class TestTorchDispatch:
    @each(SUBJECTS)
    def test_an_unknown_subclass_gets_the_definition(self, subject: Subject) -> None:
        def run(function: Function) -> list[Any]:
            Wrapper.seen.clear()
            xs = [Wrapper(x) for x in subject.inputs(3, 4, requires_grad=True)]
            results = derivatives(function, tuple(xs))
            assert {type(result) for result in results} == {Wrapper}
            assert_close(
                [result.inner for result in results],
                list(derivatives(subject.native, subject.inputs(3, 4, requires_grad=True))),
            )
            return list(Wrapper.seen)

        seen = run(subject.op)
        assert seen == run(subject.native)
        assert seen

    @each(SUBJECTS)
    def test_both_halves_of_a_two_tensor(self, subject: Subject) -> None:
        first = subject.inputs(3, 4, requires_grad=True)
        second = tuple([x.detach().flip(0).requires_grad_() for x in first])
        both = tuple([TwoTensor(a.detach(), b.detach()).requires_grad_() for a, b in zip(first, second, strict=True)])
        results = (subject.op(*both), *derivatives(subject.op, both))
        assert {type(result) for result in results} == {TwoTensor}
        for half, xs in (("a", first), ("b", second)):
            expected = (subject.native(*xs), *derivatives(subject.native, xs))
            assert_close(tuple([getattr(result, half) for result in results]), expected)

    @places([*SEVERAL, QUADRATIC_FORM])
    def test_beside_plain_tensors(self, subject: Subject, place: int) -> None:
        xs = subject.inputs(3, 4)
        for leave in (lambda x: x, lambda x: x[:1]):
            result = subject.op(*replaced(replaced(xs, 1 - place, leave), place, lambda x: TwoTensor(x, x.flip(-1))))
            for half, change in (("a", lambda x: x), ("b", lambda x: x.flip(-1))):
                expected = subject.native(*replaced(replaced(xs, 1 - place, leave), place, change))
                assert_close(getattr(result, half), expected)

    @each(SUBJECTS)
    def test_a_mode_sees_the_operators_of_the_definition(self, subject: Subject) -> None:
        xs = subject.inputs(3, 4, requires_grad=True)
        with Operators() as ours:
            results = derivatives(subject.op, xs)
        with Operators() as native:
            expected = derivatives(subject.native, xs)
        assert ours.seen == native.seen
        assert ours.seen
        assert_close(results, expected)

    @each([*SEVERAL, QUADRATIC_FORM])
    def test_and_no_broadcasting_of_ours(self, subject: Subject) -> None:
        first, *others = subject.inputs(3, 4)
        xs = (first, *[x[:1] for x in others])
        with Operators() as ours:
            result = subject.op(*xs)
        with Operators() as native:
            expected = subject.native(*xs)
        assert ours.seen == native.seen
        assert_close(result, expected)

    @each(SUBJECTS)
    def test_a_mode_around_the_derivatives_alone(self, subject: Subject) -> None:
        xs = subject.inputs(3, 4, requires_grad=True)
        y = subject.op(*xs)
        with Operators() as operators:
            slopes = grad(y.square().sum(), xs, create_graph=True)
        assert {operator.namespace for operator in operators.seen} == {"aten"}
        curvatures = grad(sum(slope.square().sum() for slope in slopes), xs)
        assert_close((*slopes, *curvatures), derivatives(subject.native, xs))

    def test_floating_point_operations_are_counted(self) -> None:
        x, A = QUADRATIC_FORM.inputs(8, requires_grad=True)
        weight = torch.rand(8, 8, dtype=torch.float64)

        def count(form: Function, sine: Function) -> int:
            with FlopCounterMode(display=False) as counter:
                derivatives(lambda x: form(sine(weight @ x), A), (x,))
            return counter.get_total_flops()

        assert count(ad.quadratic_form, ad.sin) == count(QUADRATIC_FORM.native, torch.sin) > 0


@row("subclasses and modes")
class TestTensorsOfPyTorch:
    @each(SUBJECTS)
    def test_parameters_and_buffers(self, subject: Subject) -> None:
        values = subject.inputs(3, 4)
        parameters = [torch.nn.Parameter(x.clone()) for x in values]
        result = subject.op(*parameters)
        assert type(result) is Tensor
        assert result.requires_grad
        result.square().sum().backward()
        xs = [x.clone().requires_grad_() for x in values]
        expected = subject.native(*xs)
        assert_close(result, expected)
        assert_close(tuple(p.grad for p in parameters), grad(expected.square().sum(), xs))
        assert_same(subject.op(*map(torch.nn.Buffer, values)), subject.native(*values))

    @each(SUBJECTS)
    def test_a_parameter_without_data_raises(self, subject: Subject) -> None:
        xs = [torch.nn.UninitializedParameter() for _ in subject.inputs(2, 2)]
        with pytest.raises((ValueError, RuntimeError), match="uninitialized parameter"):
            subject.op(*xs)

    @each(POINTWISE)
    def test_masked_tensors(self, subject: Subject) -> None:
        mask = torch.tensor([True, False, True])
        xs = [torch.masked.masked_tensor(x, mask) for x in subject.inputs(3)]
        result, expected = outcome(subject.op, *xs), outcome(subject.native, *xs)
        if isinstance(expected, Tensor):
            assert type(result) is type(expected)
            assert_close(result.to_tensor(9.0), expected.to_tensor(9.0))
        else:
            assert result is expected


@pytest.fixture
def _restored() -> Iterator[None]:
    """Settings of the process are as before after a test."""
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    torch.set_default_device(None)
    torch.use_deterministic_algorithms(False)


@row("subclasses and modes")
@pytest.mark.usefixtures("_restored")
class TestSettings:
    @each(SUBJECTS)
    def test_no_grad_and_enable_grad(self, subject: Subject) -> None:
        xs = subject.inputs(3, 4, requires_grad=True)
        with torch.no_grad():
            silent = subject.op(*xs)
            with torch.enable_grad():
                heard = subject.op(*xs)
        assert (silent.requires_grad, silent.grad_fn) == (False, None)
        assert heard.requires_grad
        assert_close((silent, heard.detach()), (subject.native(*xs).detach(),) * 2)
        assert_close(grad(heard.square().sum(), xs), derivatives(subject.native, xs)[: len(xs)])

    @each(SUBJECTS)
    def test_first_derivatives_without_a_graph(self, subject: Subject) -> None:
        xs = subject.inputs(3, 4, requires_grad=True)
        for slope in grad(subject.op(*xs).sum(), xs):
            assert not slope.requires_grad

    @each(SUBJECTS)
    def test_inference_mode(self, subject: Subject) -> None:
        plain = subject.inputs(3, 4, requires_grad=True)
        with torch.inference_mode():
            xs = [x.clone() for x in plain]
            for result in (subject.op(*plain), subject.op(*xs)):
                assert result.is_inference()
                assert not result.requires_grad
                assert_close(result, subject.native(*xs))
        outside = subject.op(*xs)
        assert outside.is_inference() == subject.native(*xs).is_inference()
        assert_close(outside, subject.native(*xs))

    @places([*SEVERAL, QUADRATIC_FORM])
    def test_an_inference_tensor_beside_one_that_requires_a_gradient_raises(self, subject: Subject, place: int) -> None:
        with torch.inference_mode():
            inference = subject.inputs(3, 4)
        xs = [inference[i] if i == place else x for i, x in enumerate(subject.inputs(3, 4, requires_grad=True))]
        for function in (subject.native, subject.op):
            with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
                function(*xs)

    @each(SUBJECTS)
    @pytest.mark.parametrize("form", ["set_default_device", "with torch.device"])
    def test_a_default_device(self, subject: Subject, form: str) -> None:
        xs = subject.inputs(3, 4, requires_grad=True)
        expected = (subject.native(*xs), *derivatives(subject.native, xs))
        if form == "set_default_device":
            torch.set_default_device("meta")
            results = (subject.op(*xs), *derivatives(subject.op, xs))
            torch.set_default_device(None)
        else:
            with torch.device("meta"):
                results = (subject.op(*xs), *derivatives(subject.op, xs))
        assert_close(results, expected)

    def test_an_op_is_declared_and_built_under_a_default_device_and_dtype(self) -> None:
        x = torch.rand(5, requires_grad=True)
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            op = ad.pointwise(lambda x, a=1.5: torch.where(x > 0.5, a * torch.sin(x), 0.25) + torch.pi)
            results = (op(x), *derivatives(op, (x,)))
        torch.set_default_dtype(torch.float32)
        assert_close(results, (op.definition(x), *derivatives(op.definition, (x,))))

    @each(SUBJECTS)
    @pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
    def test_a_default_dtype(self, subject: Subject, default: torch.dtype) -> None:
        torch.set_default_dtype(default)
        for dtype in (torch.float32, torch.int32):
            xs = [x.abs().ceil().to(dtype) for x in subject.inputs(3, 4)]
            assert_same(outcome(subject.op, *xs), outcome(subject.native, *xs))

    @each(SUBJECTS)
    def test_deterministic_algorithms(self, subject: Subject) -> None:
        xs = subject.inputs(3, 4, requires_grad=True)
        expected = (subject.native(*xs), *derivatives(subject.native, xs))
        torch.use_deterministic_algorithms(True)
        runs = [(subject.op(*xs), *derivatives(subject.op, xs)) for _ in range(2)]
        assert_close(runs[0], expected)
        for a, b in zip(*runs, strict=True):
            assert torch.equal(a, b)
