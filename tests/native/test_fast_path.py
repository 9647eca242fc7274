"""Eager mode in C++: which calls it takes, what it asks Python for, how it is built, and that it lets go."""

from __future__ import annotations

import gc
import inspect
import math
import os
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch.autograd import gradgradcheck
from torch.testing import assert_close

import torchad_ext as ad
from torchad_ext import Pointwise
from torchad_ext._elementwise import Elementwise
from torchad_ext._native import background, fast_path, toolchain
from torchad_ext.rows import ROW_CATALOGUE

CXX = toolchain.find_cxx()
pytestmark = [pytest.mark.skipif(CXX is None, reason="no C++ compiler"), pytest.mark.fast_path]


def product(x: torch.Tensor, y: torch.Tensor, a: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    return x * torch.sin(a * y), x.exp()


@pytest.fixture
def op(device: str) -> Pointwise:
    """A new op, called once: the call that makes its kernel goes through Python."""
    op = ad.pointwise(lambda x: torch.sin(x) * x)
    op(torch.zeros(1, device=device))
    return op


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods of Elementwise that were called."""
    names: list[str] = []
    for name in ("apply", "pullback", "vjp_of_masks"):
        method = getattr(Elementwise, name)

        def record(*args: object, name: str = name, method: Callable[..., object] = method) -> object:
            names.append(name)
            return method(*args)

        monkeypatch.setattr(Elementwise, name, record)
    return names


_ONLY_BY_POSITION = ad.pointwise(lambda x, /: x * x)
_ONLY_BY_NAME = ad.pointwise(lambda x, *, a=2.0: x * a)


def _power(x: torch.Tensor, p: float = 2.0) -> torch.Tensor:
    """A branch on a number, for each value of which there is a kernel."""
    if p == 2:
        return x * x
    return x / p if str(p) == "-0.0" else x + p


_POWER = ad.pointwise(_power)
ROW_CALLS: dict[str, Callable[..., Any]] = {
    "softmax": lambda x, y, w: ad.softmax(x, -1),
    "softmax, named": lambda x, y, w: ad.softmax(x, dim=1),
    "log_softmax": lambda x, y, w: ad.log_softmax(x, -1),
    "logsumexp": lambda x, y, w: ad.logsumexp(x, -1, True),
    "layer_norm": lambda x, y, w: ad.layer_norm(x, (20,), w, w),
    "layer_norm, named": lambda x, y, w: ad.layer_norm(x, [20], weight=w, eps=1e-6),
    "rms_norm": lambda x, y, w: ad.rms_norm(x, (20,), w),
    "vector_norm": lambda x, y, w: ad.vector_norm(x, dim=-1),
    "vector_norm of order 1": lambda x, y, w: ad.vector_norm(x, 1.0, -1),
    "normalize": lambda x, y, w: ad.normalize(x),
    "normalize, named": lambda x, y, w: ad.normalize(x, p=1.0, dim=-1, eps=1e-6),
    "cosine_similarity": lambda x, y, w: ad.cosine_similarity(x, y),
    "distance": lambda x, y, w: ad.distance(x, y),
}


class _Tagged(torch.Tensor):
    """A subclass."""


class _Refused:
    """A front that notes which calls it took."""

    def __init__(self, front: Any) -> None:
        self._front, self.taken = front, False

    def call(self, *call: Any) -> Any:
        result = self._front.call(*call)
        self.taken = self.taken or result is not NotImplemented
        return result

    def add(self, *args: Any) -> None:
        self._front.add(*args)


@pytest.fixture(params=["C++", "Python"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "Python":
        monkeypatch.setattr(fast_path, "module", lambda: None)
    return request.param


class TestCalls:
    def test_python_is_asked_once(self, op: Pointwise, asked: list[str], device: str) -> None:
        x = torch.randn(5, dtype=torch.float32, device=device, requires_grad=True)

        def three_orders() -> list[torch.Tensor]:
            results = [op(x)]
            for _ in range(2):
                results += torch.autograd.grad(results[-1].sum(), x, create_graph=True)
            return results

        three_orders()
        assert Counter(asked) == {"vjp_of_masks": 3, "pullback": 2, "apply": 2}
        asked.clear()
        value, first, second = three_orders()
        assert asked == []
        assert_close(value, x.sin() * x)
        assert_close(first, x.cos() * x + x.sin())
        assert_close(second, 2 * x.cos() - x.sin() * x)

    def test_the_names_in_the_graph(self, device: str) -> None:
        x = torch.randn(5, device=device, requires_grad=True)
        for _ in range(2):
            y = ad.sin(x)
        (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        assert (y.grad_fn.name(), first.grad_fn.name()) == ("SinBackward", "SinDoubleBackward")
        assert "grad_fn=<SinBackward>" in repr(y)

    def test_several_tensors_outputs_and_numbers(self, asked: list[str], device: str) -> None:
        op = ad.pointwise(product)
        for call in (lambda f, x, y: f(x, y), lambda f, x, y: f(x, y, 3), lambda f, x, y: f(x, y, 0.5)):
            for _ in range(2):
                x, y = (torch.randn(4, dtype=torch.float64, device=device, requires_grad=True) for _ in range(2))
                asked.clear()
                for ours, native in zip(call(op, x, y), call(product, x, y), strict=True):
                    assert_close(ours, native)
                    options = {"materialize_grads": True, "retain_graph": True}
                    assert_close(*(torch.autograd.grad(v.sum(), (x, y), **options) for v in (ours, native)))
            assert asked == []

    @pytest.mark.parametrize(
        ("call", "native"),
        [
            (lambda x: ad.silu(x, inplace=False), F.silu),  # as torch.nn.SiLU calls it
            (lambda x: ad.silu(input=x), F.silu),
            (lambda x: ad.gelu(x, approximate="none"), F.gelu),
            (lambda x: ad.gelu(x, approximate="".join(["ta", "nh"])), lambda x: F.gelu(x, approximate="tanh")),
            (lambda x: ad.softplus(x, threshold=0.1), lambda x: F.softplus(x, threshold=0.1)),
            (lambda x: ad.elu(alpha=2, input=x), lambda x: F.elu(x, 2)),
            (lambda x: _POWER(x), torch.square),
            (lambda x: _POWER(x, p=1), lambda x: x + 1),
        ],
    )
    def test_keywords_and_options_take_the_way_in_cpp(
        self, call: Any, native: Any, asked: list[str], device: str
    ) -> None:
        x = torch.randn(5, dtype=torch.float64, device=device)
        call(x)
        asked.clear()
        assert_close(call(x), native(x))
        assert asked == []

    def test_each_option_has_a_way_of_its_own(self, device: str) -> None:
        x = torch.randn(5, dtype=torch.float64, device=device)
        for approximate in ("none", "tanh") * 2:
            assert_close(ad.gelu(x, approximate=approximate), F.gelu(x, approximate=approximate))
        assert_close(ad.gelu(x), F.gelu(x))

    def test_each_number_that_decides_has_a_way_of_its_own(self, asked: list[str], device: str) -> None:
        x = torch.randn(5, dtype=torch.float64, device=device)
        expected = {"2.0": x * x, "2": x * x, "0.0": x + 0.0, "-0.0": x / -0.0, "nan": x + math.nan, "True": x + True}
        for _ in range(2):
            asked.clear()
            for p in (2.0, 2, 0.0, -0.0, math.nan, True):
                assert_close(_POWER(x, p), expected[repr(p)], equal_nan=True)
        assert asked == []

    @pytest.mark.parametrize("call", ROW_CALLS.values(), ids=ROW_CALLS)
    def test_row_ops_take_the_way_in_cpp(self, call: Callable[..., Any], device: str) -> None:
        x, y, w = (torch.randn(*shape, device=device) for shape in ((3, 20), (3, 20), (20,)))
        op = next(op for op in ROW_CATALOGUE.values() if op.__name__ in call.__code__.co_names)
        call(x, y, w)
        front, op._front = op._front, _Refused(op._front)
        try:
            call(x, y, w)
            assert op._front.taken
        finally:
            op._front = front

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda x: ad.silu(x, input=x), "multiple values for argument 'input'"),
            (lambda x: ad.silu(x, x=x), "unexpected keyword argument 'x'"),
            (lambda x: ad.silu(inplace=False), "missing a required argument: 'input'"),
            (lambda x: ad.silu(x, False, 1), "too many positional arguments"),
            (lambda x: ad.softplus(x, True), "a number for beta, got True"),
            (lambda x: ad.gelu(x, approximate="tan"), "no approximate 'tan'"),
            (lambda x: _ONLY_BY_POSITION(x=x), "positional.only"),
            (lambda x: _ONLY_BY_NAME(x, 1.0), "too many positional arguments"),
        ],
    )
    def test_wrong_calls_raise_once_right_ones_were_made(self, call: Any, message: str, device: str) -> None:
        x = torch.randn(5, dtype=torch.float64, device=device)
        for op in (ad.silu, ad.softplus, ad.gelu, _ONLY_BY_POSITION, _ONLY_BY_NAME):
            op(x)
        with pytest.raises(TypeError, match=message):
            call(x)

    @pytest.mark.parametrize(
        "call",
        [
            lambda op, x: op(x.to(torch.complex64)),
            lambda op, x: torch.func.vmap(op)(x),
            lambda op, x: torch.func.jvp(op, (x,), (x,)),
            lambda op, x: op(x.as_subclass(_Tagged)),
            lambda op, x: op(torch.complex(x, x).conj().imag),
        ],
        ids=["complex", "vmap", "jvp", "subclass", "negated"],
    )
    def test_what_is_not_plain_goes_to_python(
        self, op: Pointwise, call: Callable[[Pointwise, torch.Tensor], object], device: str
    ) -> None:
        op._front = refused = _Refused(op._front)
        call(op, torch.randn(3, device=device))
        assert not refused.taken

    def test_rows_of_nested_tensors_go_to_python(self) -> None:
        op = ad.rowwise(lambda x, y: x * torch.softmax(y, -1))
        x = torch.randn(2, 3)
        for _ in range(2):
            op(x, x)
        nested = torch.nested.nested_tensor([x[0], x[1, :2]])
        for given in ((nested, nested), (nested, x), (x, nested)):
            assert op._front.call(given, {}) is NotImplemented
        for row, expected in zip(op(nested, nested).unbind(), nested.unbind(), strict=True):
            assert_close(row, expected * expected.softmax(-1))

    def test_a_gradient_of_a_later_kind_of_tensor(self, op: Pointwise, device: str) -> None:
        x = torch.randn(5, dtype=torch.float64, device=device, requires_grad=True)
        cotangents = torch.randn(3, 5, dtype=torch.float64, device=device)
        batched = torch.autograd.grad(op(x), x, cotangents, is_grads_batched=True)
        assert_close(batched[0], cotangents * (x.cos() * x + x.sin()))

    def test_an_error_of_python_comes_out_of_backward(
        self, op: Pointwise, monkeypatch: pytest.MonkeyPatch, device: str
    ) -> None:
        def broken(*args: object) -> None:
            raise ZeroDivisionError("in the middle of backward")

        x = torch.randn(5, device=device, requires_grad=True)
        y = op(x)
        monkeypatch.setattr(Elementwise, "pullback", broken)
        with pytest.raises(ZeroDivisionError, match="in the middle"):
            y.sum().backward()

    def test_backward_in_many_threads(self, device: str) -> None:
        op = ad.pointwise(product)
        x, y = torch.randn(2, 50, dtype=torch.float64, device=device, requires_grad=True)
        op(x, y)
        start, results = threading.Barrier(8), []

        def work() -> None:
            start.wait()
            results.append(torch.autograd.grad(op(x, y)[0].sum(), (x, y), create_graph=True))

        threads = [threading.Thread(target=work) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert len(results) == 8
        for result in results:
            assert_close(result, ((2 * y).sin(), 2 * x * (2 * y).cos()))

    def test_the_way_through_python_gives_the_same(self, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
        monkeypatch.setattr(fast_path, "module", lambda: None)
        op = ad.pointwise(product)
        x, y = torch.randn(2, 4, dtype=torch.float64, device=device, requires_grad=True)
        assert gradgradcheck(op, (x, y))
        (first,) = torch.autograd.grad(op(x, y)[0].sum(), y, create_graph=True)
        assert first.grad_fn.name() == "_ApplyBackward"
        assert_close(first, 2 * x * (2 * y).cos())

    def test_the_way_through_python_takes_no_detours(self, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
        """No signature is inspected, which takes longer than a small kernel; no Function where nothing is recorded."""
        monkeypatch.setattr(fast_path, "module", lambda: None)
        x = torch.randn(5, device=device, requires_grad=True)
        op = ad.pointwise(lambda x: torch.sin(x) * x)
        op(x)

        def refused(*args: object, **kwargs: object) -> None:
            raise AssertionError("a detour")

        with monkeypatch.context() as patch:
            patch.setattr(inspect, "signature", refused)
            (slope,) = torch.autograd.grad(op(x).sum(), x, create_graph=True)
            torch.autograd.grad(slope.sum(), x)
            patch.setattr(torch.autograd.Function, "apply", refused)
            with torch.no_grad():
                value = op(x)
            op(x.detach())
        assert_close(value, (x.sin() * x).detach())
        assert_close(slope, x.cos() * x + x.sin())

    def test_a_tensor_as_a_default(self, device: str) -> None:
        exponent = torch.full((5,), 2.0, device=device)
        op = ad.pointwise(eval("lambda x, p=exponent: torch.pow(x, p)", {"torch": torch, "exponent": exponent}))
        x = torch.arange(1.0, 6.0, device=device)
        for _ in range(3):
            assert_close(op(x), x**2)

    def test_more_dimensions_than_a_kernel_takes(self, way: str, device: str) -> None:
        op = ad.pointwise(lambda x: torch.sin(x) * x)
        x = torch.randn([1] * 70 + [3], device=device, requires_grad=True)
        for _ in range(2):
            slope = torch.autograd.grad(op(x).sum(), x)[0]
            assert_close(slope.reshape(3), (x.cos() * x + x.sin()).reshape(3))

    def test_a_tensor_without_memory_is_refused(self, way: str, device: str) -> None:
        op = ad.pointwise(lambda x: torch.sin(x) * x)
        x = torch.randn(1000, device=device)
        op(x)
        x.untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match="has no memory"):
            op(x)

    def test_more_tensors_than_bits(self, device: str) -> None:
        names = [f"x{i}" for i in range(40)]
        op = ad.pointwise(eval(f"lambda {', '.join(names)}: ({' + '.join(names)}) ** 2"))
        xs = [torch.randn(3, dtype=torch.float64, device=device, requires_grad=True) for _ in names]
        for _ in range(2):
            first = torch.autograd.grad(op(*xs).sum(), xs, create_graph=True)
            second = torch.autograd.grad(sum(first).sum(), xs)
        assert_close(list(first), [2 * sum(xs)] * 40)
        assert_close(list(second), [torch.full_like(xs[0], 80.0)] * 40)


def test_inside_a_custom_op_nothing_is_recorded() -> None:
    recorded = []

    @torch.library.custom_op("torchad_ext_tests::wave", mutates_args=())
    def wave(x: torch.Tensor) -> torch.Tensor:
        y = ad.sin(x)
        recorded.append(y.requires_grad)
        return y

    x = torch.randn(5, requires_grad=True)
    ad.sin(x)
    wave(x)
    assert recorded == [False]


def test_a_graph_of_any_depth_is_freed(device: str) -> None:
    y = torch.randn(5, device=device, requires_grad=True)
    for _ in range(100_000):
        y = ad.sin(y)
    del y


class TestWhatIsSaved:
    """As native PyTorch does, only what the derivatives depend on."""

    def test_other_inputs_may_be_inference_tensors_and_may_change(self, way: str, device: str) -> None:
        op = ad.pointwise(lambda x, a: x + torch.sin(a))
        a = torch.randn(5, dtype=torch.float64, device=device, requires_grad=True)
        with torch.inference_mode():
            x = torch.randn(5, dtype=torch.float64, device=device)
        for _ in range(2):
            assert_close(torch.autograd.grad(op(x, a).sum(), a)[0], a.cos())
        x = torch.randn(5, dtype=torch.float64, device=device, requires_grad=True).clone()
        y = op(x, a)
        x.zero_()
        (slope,) = torch.autograd.grad(y.sum(), a, create_graph=True)
        assert_close(torch.autograd.grad(slope.sum(), a)[0], -a.sin())

    def test_what_the_wanted_gradient_depends_on_may_not_change(self, way: str, device: str) -> None:
        op = ad.pointwise(lambda x, a: x * a)
        leaf, a = torch.randn(5, device=device, requires_grad=True), torch.randn(5, device=device)
        for _ in range(2):
            x = leaf.clone()
            y = op(x, a)
        if way == "C++":  # knows that no gradient of a is wanted
            with torch.no_grad():
                x.zero_()
            assert_close(torch.autograd.grad(y.sum(), leaf, retain_graph=True)[0], a)
        a.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


class TestLifetime:
    def test_an_op_goes_when_nothing_needs_it(self, device: str) -> None:
        op = ad.pointwise(lambda x: torch.sin(x) * x)
        x = torch.randn(5, device=device, requires_grad=True)
        for _ in range(2):
            y = op(x)
        torch.autograd.grad(y.sum(), x, create_graph=True)
        gone = weakref.ref(op._usual)
        del op
        gc.collect()
        assert gone() is not None
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert_close(slope, x.cos() * x + x.sin())
        del y
        for _ in range(3):
            gc.collect()
        assert gone() is None

    def test_a_graph_holds_its_inputs_and_no_more(self, op: Pointwise, device: str) -> None:
        x = torch.randn(5, device=device, requires_grad=True).clone()
        op(x)
        y = op(x)
        gone = weakref.ref(x)
        del x
        assert gone() is not None
        y.sum().backward()
        del y
        gc.collect()
        assert gone() is None


USE = """
import sys, time, torch, torchad_ext as ad
from torchad_ext._native import background
background._put_last = lambda process: None  # a test is not to wait for an idle machine
x = torch.randn(5, requires_grad=True)
for _ in range(int(sys.argv[1])):
    y = ad.sin(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, x.cos())
    if y.grad_fn.name() == "SinBackward":
        break
    time.sleep(0.05)
print(y.grad_fn.name())
"""


def use(cache: Path, times: int = 2, script: str = USE, **settings: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TORCHAD_EXT_")}
    environment = {**kept, "TORCHAD_EXT_CACHE_DIR": str(cache), **settings}
    command = [sys.executable, "-c", script, str(times)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiler that for ``csrc/fast_path`` notes its session in $NOTES, does what $ORDER says, and gives the library
    of this process in place of one that would take it ten seconds."""
    ad.sin(torch.zeros(1))
    module = fast_path.module()
    assert module
    path = tmp_path_factory.mktemp("bin") / "c++"
    path.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        f'*-shared*function.cpp.o*) exec cp "{module.__file__}" library.so ;;\n'
        '*fast_path/function.cpp*) ps -o sid= -p $$ >> "$NOTES"; touch function.cpp.o; eval "$ORDER"; exit ;;\n'
        f'esac\nexec {CXX} "$@"\n'
    )
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory, compiler: Path) -> Path:
    """A cache with the kernels of sin, and nothing for eager mode."""
    folder = tmp_path_factory.mktemp("cache")
    assert use(folder, TORCHAD_EXT_EAGER="0", CXX=str(compiler)).returncode == 0
    return folder


@pytest.fixture
def cold(tmp_path: Path, kernels: Path) -> Path:
    """Such a cache for one test."""
    return shutil.copytree(kernels, tmp_path / "cache")


@pytest.fixture
def told(tmp_path: Path, compiler: Path) -> Callable[..., dict[str, str]]:
    """The settings under which the compiler does what it is told."""
    return lambda order="": {"CXX": str(compiler), "NOTES": str(tmp_path / "notes"), "ORDER": order}


def entries(cache: Path) -> list[Path]:
    return list(cache.glob("fast_path-*/*"))


def wait_for_the_end(cache: Path) -> None:
    """Waits until no process builds eager mode."""
    for lock in cache.glob("fast_path-*/lock"):
        with FileLock(lock):
            pass


@pytest.mark.long
class TestBuild:
    def test_it_may_be_done_without(self, cold: Path, told: Callable[..., dict[str, str]]) -> None:
        finished = use(cold, TORCHAD_EXT_EAGER="0", **told())
        assert (finished.stdout, finished.stderr) == ("_ApplyBackward\n", "")
        assert entries(cold) == []

    def test_no_call_waits_and_the_next_process_finds_what_a_short_one_began(
        self, cold: Path, told: Callable[..., dict[str, str]], tmp_path: Path
    ) -> None:
        settings = told(f"while [ ! -e {tmp_path}/go ]; do sleep 0.1; done")
        for _ in range(2):
            finished = use(cold, **settings)
            assert finished.returncode == 0, finished.stderr
            assert finished.stdout == "_ApplyBackward\n"
        (tmp_path / "go").touch()
        wait_for_the_end(cold)
        assert sorted(path.name for path in entries(cold)) == ["library.so", "library.so.sha256", "lock"]
        finished = use(cold, **settings)
        assert (finished.stdout, finished.stderr) == ("SinBackward\n", "")
        assert len((tmp_path / "notes").read_text().split()) == 1

    def test_it_takes_the_time_that_no_other_process_wants(self, tmp_path: Path) -> None:
        command = "ps -o sid=,cls= -p $$ > ../notes; nice >> ../notes; cat /proc/self/autogroup >> ../notes"
        background.start(tmp_path, lambda folder: ["/bin/sh", "-c", command])()
        session, scheduling, nice, *autogroup = (tmp_path / "notes").read_text().split()
        assert int(session) != os.getsid(0)
        assert (scheduling, nice) == ("IDL", "19")
        assert autogroup[1:] in ([], ["nice", "19"])  # not every system has such groups

    @pytest.mark.parametrize(
        ("said", "is_kept"),
        [
            ("g++: fatal error: Terminated signal terminated program cc1plus", False),
            ("clang++: error: unable to execute command: Terminated", False),
            ("g++: fatal error: Killed signal terminated program cc1plus", True),  # as where memory runs out
            ("function.cpp:1:1: error: expected declaration", True),
        ],
    )
    def test_it_is_tried_again_unless_the_compiler_failed(self, said: str, is_kept: bool, tmp_path: Path) -> None:
        background.start(tmp_path, lambda folder: ["/bin/sh", "-c", f"echo '{said}'; exit 1"])()
        assert (tmp_path / "library.log").exists() is is_kept

    def test_calls_change_over_when_it_is_compiled(self, cold: Path, told: Callable[..., dict[str, str]]) -> None:
        finished = use(cold, times=4000, **told("sleep 1"))
        assert finished.stdout == "SinBackward\n", finished.stderr

    def test_many_processes_compile_once(self, cold: Path, told: Callable[..., dict[str, str]], tmp_path: Path) -> None:
        with ThreadPoolExecutor(4) as pool:
            all_finished = list(pool.map(lambda _: use(cold, **told("sleep 5; exit 1")), range(4)))
        assert {finished.stdout for finished in all_finished} == {"_ApplyBackward\n"}
        wait_for_the_end(cold)
        assert len((tmp_path / "notes").read_text().split()) == 1

    def test_a_killed_compilation_publishes_nothing_and_the_next_process_begins_again(
        self, cold: Path, told: Callable[..., dict[str, str]], tmp_path: Path
    ) -> None:
        notes = tmp_path / "notes"
        use(cold, **told("exec sleep 60"))
        deadline = time.monotonic() + 60
        while not notes.exists() or not notes.read_text():
            assert time.monotonic() < deadline, "the compiler was not called"
            time.sleep(0.05)
        subprocess.run(["pkill", "-KILL", "-s", notes.read_text().strip()], check=True)
        wait_for_the_end(cold)
        (half,) = [path for path in entries(cold) if path.name != "lock"]
        assert half.name.startswith(".building-")
        use(cold, **told("exit 1"))
        wait_for_the_end(cold)
        assert not half.exists()
        assert len(notes.read_text().split()) == 2

    def test_a_failure_is_remembered_and_told_once_in_each_process(
        self, cold: Path, told: Callable[..., dict[str, str]], tmp_path: Path
    ) -> None:
        settings = told("echo no headers; exit 1")
        use(cold, **settings)
        wait_for_the_end(cold)
        (log,) = cold.glob("fast_path-*/library.log")
        assert "no headers" in log.read_text()
        for strict in ("0", "1"):
            finished = use(cold, times=4, TORCHAD_EXT_STRICT=strict, **settings)
            assert finished.stderr.count(f"its output is in {log}") == 1
            assert ("BuildError" in finished.stderr) is (strict == "1")
            assert finished.stdout == ("" if strict == "1" else "_ApplyBackward\n")
        assert len((tmp_path / "notes").read_text().split()) == 1
        log.unlink()
        use(cold, **settings)
        wait_for_the_end(cold)
        assert len((tmp_path / "notes").read_text().split()) == 2

    def test_a_cache_that_cannot_be_written_is_told_once(
        self, cold: Path, told: Callable[..., dict[str, str]], tmp_path: Path
    ) -> None:
        lacking = 'background.start.__globals__["tempfile"].mkdtemp = lambda **_: open("/proc/no/such")'
        finished = use(cold, times=4, script=USE.replace("x = torch", f"{lacking}\nx = torch", 1), **told())
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout == "_ApplyBackward\n"
        assert finished.stderr.count("cannot be written") == 1

    @pytest.mark.parametrize("strict", ["0", "1"])
    def test_a_failure_that_was_waited_for_is_told_once(
        self, strict: str, cold: Path, told: Callable[..., dict[str, str]]
    ) -> None:
        settings = told("echo no headers; exit 1")
        finished = use(cold, times=4, TORCHAD_EXT_EAGER="wait", TORCHAD_EXT_STRICT=strict, **settings)
        assert finished.stderr.count("torchad_ext has no native calls: ") == 1
        assert "python3-dev" in finished.stderr
        (log,) = cold.glob("fast_path-*/library.log")
        assert "no headers" in log.read_text()
        if strict == "0":
            assert finished.stdout == "_ApplyBackward\n"
        else:
            assert "BuildError" in finished.stderr
