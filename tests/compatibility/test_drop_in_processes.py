"""Copies, threads, processes, devices and streams: an op is right wherever it is sent, and built once."""

from __future__ import annotations

import copy
import functools
import io
import os
import pickle
import re
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from drop_in import MISSION, POINTWISE, QUADRATIC_FORM, SUBJECTS, Subject, each, row
from selection import NO_GPU
from torch import Tensor, nn
from torch.autograd import grad
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset

import torchad_ext as ad
from torchad_ext import _settings

SEVERAL = [subject for subject in POINTWISE if len(subject.intervals or ()) > 1]
ROOT = Path(__file__).resolve().parents[2]
WITHIN = 90  # seconds, after which a process hangs
Function = Callable[..., Any]


@ad.pointwise
def wave(x: Tensor, a: float = 2.0) -> Tensor:
    return torch.sin(a * x) * torch.exp(-x)


def results(function: Function, xs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The value, the gradient of its squares, and the gradient of the squares of that."""
    y = function(*xs)
    slopes = grad(y.square().sum(), xs, create_graph=True)
    return (y, *slopes, *grad(sum(slope.square().sum() for slope in slopes), xs))


class Energy(nn.Module):
    """A scalar of each row of x, and its derivative with respect to x."""

    def __init__(self, sine: Function, snake: Function, form: Function) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.sine, self.snake, self.form = sine, snake, form
        self.first, self.second = nn.Linear(4, 6).double(), nn.Linear(6, 6).double()
        self.a = nn.Parameter(torch.empty(6, dtype=torch.float64))
        self.A = nn.Parameter(torch.empty(6, 6, dtype=torch.float64))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, 0.1, 1.0, generator=generator)

    def energy(self, x: Tensor) -> Tensor:
        return self.form(self.snake(self.second(self.sine(self.first(x))), self.a), self.A)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energy = self.energy(x)
        return energy, grad(energy.sum(), x, create_graph=True)[0]


OURS = (ad.sin, ad.snake, ad.quadratic_form)
NATIVE = (torch.sin, ad.snake.definition, QUADRATIC_FORM.native)


def penalty(model: Function, x: Tensor) -> Tensor:
    energy, force = model(x.clone().requires_grad_())
    return energy.mean() + force.square().sum(-1).mean()


def batch() -> Tensor:
    return torch.linspace(-1, 1, 32, dtype=torch.float64).reshape(8, 4).sin()


def started(context: str, function: Function, *arguments: tuple[Any, ...]) -> list[Any]:
    """What a function gives in one new process for each of its tuples of arguments; none may hang."""
    processes = mp.get_context(context)
    queue = processes.Queue()
    running = [processes.Process(target=_answer, args=(queue, i, function, xs)) for i, xs in enumerate(arguments)]
    for process in running:
        process.start()
    try:
        answers = dict(queue.get(timeout=WITHIN) for _ in running)
        for process in running:
            process.join(WITHIN)
        assert [process.exitcode for process in running] == [0] * len(running)
        assert all(isinstance(answer, bytes) for answer in answers.values()), answers
        return [pickle.loads(answers[i]) for i in range(len(running))]
    finally:
        for process in running:
            process.kill()


def _answer(queue: Any, i: int, function: Function, arguments: tuple[Any, ...]) -> None:
    try:
        queue.put((i, pickle.dumps(function(*arguments))))
    except Exception:
        queue.put((i, traceback.format_exc()))


def programs(program: str, cache: Path, *arguments: tuple[object, ...]) -> int:
    """How many libraries runs of a program compiled, all at once on one cache."""
    environment = {**os.environ, "TORCHAD_EXT_CACHE_DIR": str(cache), "TORCHAD_EXT_STRICT": "1"}
    pipe = subprocess.PIPE
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", program, *map(str, xs)], cwd=ROOT, env=environment, stderr=pipe, text=True
        )
        for xs in arguments
    ]
    try:
        errors = "".join(run.communicate(timeout=WITHIN)[1] for run in runs)
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0] * len(runs), errors
    return sum(map(int, re.findall(r"compiled (\d+) librar", errors)))


def kept(cache: Path) -> Counter[str]:
    """The libraries in a cache, by their names."""
    names = (re.match(r"cpu|fast_path|.+-float64", folder.parent.name) for folder in cache.glob("*/library.so"))
    return Counter(name.group() for name in names if name)


# Copies


class Holder(nn.Module):
    """Holds an op beside a parameter."""

    def __init__(self, op: Function) -> None:
        super().__init__()
        self.op, self.weight = op, nn.Parameter(torch.full((3,), 0.7, dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.op(self.weight)


@row("copying")
class TestCopies:
    @pytest.mark.parametrize("op", [wave, *(s.op for s in SUBJECTS)], ids=lambda op: op.__name__)
    @pytest.mark.parametrize("through", [lambda x: pickle.loads(pickle.dumps(x)), copy.copy, copy.deepcopy])
    def test_of_an_op_are_the_op(self, op: Function, through: Function) -> None:
        assert through(op) is op
        assert through([op, {"op": op}])[1]["op"] is op

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_pickle_by_name_as_a_function_does(self, protocol: int) -> None:
        assert pickle.dumps(wave, protocol).count(b"wave") == pickle.dumps(batch, protocol).count(b"batch") == 1

    def test_of_a_local_op_do_what_a_local_function_does(self) -> None:
        def local(x: Tensor) -> Tensor:
            return x * torch.exp(x)

        for function in (local, lambda x: x * 3.0):
            op = ad.pointwise(function)
            for each_one in (function, op):
                assert copy.deepcopy(each_one) is each_one
                with pytest.raises((pickle.PicklingError, AttributeError), match=r"<lambda>|<locals>"):
                    pickle.dumps(each_one)

    @pytest.mark.parametrize("op", [wave, ad.sin, torch.sin], ids=["wave", "sin", "native"])
    def test_of_a_module_are_modules_with_the_op(self, op: Function) -> None:
        module = Holder(op)
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)):
            assert other.op is op
            assert other.weight is not module.weight
            other().sum().backward()
            expected = grad(getattr(op, "definition", op)(module.weight).sum(), module.weight)[0]
            assert_close(other.weight.grad, expected)
        assert module.weight.grad is None

    def test_of_a_state_dict_load_with_weights_only(self) -> None:
        file = io.BytesIO()
        torch.save(Energy(*OURS).state_dict(), file)
        file.seek(0)
        native = Energy(*NATIVE)
        assert native.load_state_dict(torch.load(file, weights_only=True)).missing_keys == []
        assert_close(native(batch().requires_grad_()), Energy(*OURS)(batch().requires_grad_()))


class Slopes(Dataset):
    """Values and derivatives, computed by whoever asks."""

    def __init__(self, subjects: list[Subject], size: int) -> None:
        self.names, self.size = [subject.name for subject in subjects], size

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        return tuple(result.detach() for result in computed(self.names[i], "op", self.size))


def computed(name: str, which: str, size: int) -> tuple[Tensor, ...]:
    """Results of an op, or of its definition, in the process that calls."""
    (subject,) = [subject for subject in SUBJECTS if subject.name == name]
    return results(getattr(subject, which), subject.inputs(size, requires_grad=True))


def used_on_all_threads() -> None:
    """The parent has run parallel loops, ours and native ones."""
    x = torch.rand(1 << 20, dtype=torch.float64, requires_grad=True)
    assert_close(results(ad.sin, (x,)), results(torch.sin, (x,)))


def alone(function: Function, *arguments: Any) -> list[Any]:
    """Calls with one thread, as DataLoader's workers do: native loops on several hang after a fork, too."""
    torch.set_num_threads(1)
    return [result.detach().numpy() for result in function(*arguments)]


def of(op: Function, x: Any) -> tuple[Tensor, ...]:
    return results(op, (torch.from_numpy(x).requires_grad_(),))


@row("copying")
class TestProcesses:
    @pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
    def test_workers_of_a_dataloader(self, context: str) -> None:
        used_on_all_threads()
        data = Slopes([*MISSION, QUADRATIC_FORM], 200)
        loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context=context, timeout=WITHIN)
        for result, name in zip(loader, data.names, strict=True):
            assert_close(tuple(result), tuple(r.detach() for r in computed(name, "native", 200)))

    @pytest.mark.parametrize("context", ["fork", "spawn"])
    def test_children(self, context: str) -> None:
        used_on_all_threads()
        x = torch.linspace(0, 1, 100_000, dtype=torch.float64)  # parallel, if there were threads
        for result, op in zip(
            started(context, alone, (of, ad.sin, x.numpy()), (of, wave, x.numpy())), (ad.sin, wave), strict=True
        ):
            expected = results(op.definition, (x.clone().requires_grad_(),))
            assert_close([torch.from_numpy(r) for r in result], [e.detach() for e in expected])


def few(size: int) -> float:
    return float(results(ad.exp, (torch.zeros(size, dtype=torch.float64, requires_grad=True),))[-1].sum())


@row("copying")
def test_a_forked_child_computes_small_tensors_with_the_threads_of_its_parent() -> None:
    used_on_all_threads()
    assert started("fork", few, (100,)) == [pytest.approx(1600)]  # (e^2x)' = 2 e^2x, (4 e^4x)' = 16 e^4x


FORKED = """
import os, signal, threading, torch, torchad_ext as ad
from torchad_ext._native.state import state
held, done = threading.Event(), threading.Event()

def build():
    with state.loading:
        held.set()
        done.wait()

threading.Thread(target=build).start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(60)
    torch.testing.assert_close(ad.sin(torch.ones(3)), torch.ones(3).sin())
    os._exit(0)
_, status = os.waitpid(child, 0)
done.set()
assert status == 0
"""


@row("copying")
def test_a_child_that_is_forked_while_its_parent_builds_does_not_wait_for_it() -> None:
    assert programs(FORKED, _settings.cache_dir(), ()) <= 1


# Ranks


def sharded(mesh: DeviceMesh, subject: Subject) -> None:
    """One placement for all arguments."""
    rank = mesh.get_rank()
    plain = subject.inputs(4, 6, requires_grad=True)
    expected = results(subject.native, plain)
    for placement in (Shard(0), Shard(1), Replicate(), Partial()):
        xs = tuple(distributed(x, mesh, placement) for x in plain)
        try:
            placements = subject.native(*xs).placements
        except NotImplementedError as error:  # some releases cannot shard all functions
            with pytest.raises(NotImplementedError, match=re.escape(str(error))):
                subject.op(*xs)
            return
        ours = results(subject.op, xs)
        assert {type(result) for result in ours} == {DTensor}
        assert ours[0].placements == placements
        if subject is not QUADRATIC_FORM and not placement.is_partial():
            assert ours[0].placements == (placement,)
            size = 4 * 6 // (2 if placement.is_shard() else 1)
            assert ours[0].to_local().numel() == size, rank
        assert_close([result.full_tensor() for result in ours], list(expected))


def distributed(x: Tensor, mesh: DeviceMesh, placement: Placement) -> Tensor:
    """A leaf; partial, it is a quarter of x on one rank and three on the other."""
    if placement.is_partial():
        share = x.detach() * (0.25 if mesh.get_rank() == 0 else 0.75)
        return DTensor.from_local(share, mesh, (placement,)).requires_grad_()
    return distribute_tensor(x.detach(), mesh, (placement,)).requires_grad_()


def differently_sharded(mesh: DeviceMesh, subject: Subject) -> None:
    """Another placement, or fewer dimensions, for every argument but the first."""
    for narrow in (False, True):
        first, *others = subject.inputs(4, 6)
        others = [x[0] if narrow else x for x in others]
        plain = tuple(x.detach().requires_grad_() for x in (first, *others))
        expected = results(subject.native, plain)
        for one, other in (
            (Shard(0), Replicate()),
            (Replicate(), Shard(0)),
            (Shard(1), Partial()),
            (Partial(), Shard(0)),
        ):
            xs = (distributed(plain[0], mesh, one), *(distributed(x, mesh, other) for x in plain[1:]))
            assert_close([result.full_tensor() for result in results(subject.op, xs)], list(expected))
    for function in (subject.native, subject.op):
        with pytest.raises(RuntimeError, match=r"mixed torch.Tensor and DTensor"):
            function(xs[0], *plain[1:])


def trained(model: nn.Module, wrapped: Function, rank: int) -> None:
    """Two backward passes over half of the batch on each rank give the gradients of the whole, single-process."""
    reference = Energy(*NATIVE)
    penalty(reference, batch()).backward()
    for _ in range(2):
        model.zero_grad()
        penalty(wrapped, batch()[rank::2]).backward()
        for (name, parameter), other in zip(model.named_parameters(), reference.parameters(), strict=True):
            slope = parameter.grad
            assert slope.count_nonzero(), name
            assert_close(slope.full_tensor() if isinstance(slope, DTensor) else slope, other.grad)


def data_parallel(mesh: DeviceMesh) -> None:
    for options in ({}, {"static_graph": True}, {"gradient_as_bucket_view": True}):
        model = Energy(*OURS)
        trained(model, DistributedDataParallel(model, **options), mesh.get_rank())


def data_parallel_with_the_penalty_outside(mesh: DeviceMesh) -> None:
    """The derivative is taken of what the wrapped model gives."""
    model = Energy(*OURS)
    model.forward = model.energy
    wrapped = DistributedDataParallel(model)

    def outside(x: Tensor) -> tuple[Tensor, Tensor]:
        energy = wrapped(x)
        return energy, grad(energy.sum(), x, create_graph=True)[0]

    trained(model, outside, mesh.get_rank())


def fully_sharded(mesh: DeviceMesh) -> None:
    """The derivative is taken inside: FSDP2 frees the weights after a backward, native or not."""
    model = fully_shard(Energy(*OURS), mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    trained(model, model, mesh.get_rank())


WORK: dict[str, Callable[[DeviceMesh], None]] = {
    "DDP": data_parallel,
    "DDP, penalty outside": data_parallel_with_the_penalty_outside,
    "FSDP2": fully_sharded,
    **{f"sharded {s.name}": functools.partial(sharded, subject=s) for s in SUBJECTS},
    **{f"differently sharded {s.name}": functools.partial(differently_sharded, subject=s) for s in SEVERAL},
}


def all_work(rank: int, store: str) -> dict[str, str]:
    """What went wrong, for each work that did."""
    torch.set_num_threads(1)
    limit = timedelta(seconds=20)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=limit)
    mesh = init_device_mesh("cpu", (2,))
    failed = {}
    for name, work in WORK.items():
        try:
            work(mesh)
        except Exception:
            failed[name] = traceback.format_exc()
    dist.destroy_process_group()
    return failed


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """All work, done once by two processes."""
    store = str(tmp_path_factory.mktemp("ranks") / "store")
    first, second = started("spawn", all_work, (0, store), (1, store))
    return {**first, **second}


COLD = """
import sys, torch, torch.distributed as dist, torchad_ext as ad
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=int(sys.argv[1]), world_size=2)
x = torch.linspace(-3, 3, 1001, dtype=torch.float64, requires_grad=True)
dist.barrier()
y = ad.sin(x)
slope, = torch.autograd.grad(y.sum(), x)
torch.testing.assert_close((y, slope), (x.sin(), x.cos()))
dist.all_reduce(slope)
torch.testing.assert_close(slope, 2 * x.detach().cos())
dist.destroy_process_group()
"""


@pytest.mark.long
@row("data parallel")
class TestDataParallel:
    @pytest.mark.parametrize("work", ["DDP", "DDP, penalty outside", "FSDP2"])
    def test_gradients_are_those_of_one_process(self, work: str, failed: dict[str, str]) -> None:
        assert work not in failed, failed[work]

    def test_a_cold_cache_is_built_once(self, tmp_path: Path) -> None:
        store = tmp_path / "store"
        compiled = programs(COLD, tmp_path / "cache", (0, store), (1, store))
        calls = ["fast_path"] if os.environ["TORCHAD_EXT_EAGER"] == "wait" else []
        assert kept(tmp_path / "cache") == Counter(["cpu", *calls, "sin-float64", "sin_backward-float64"])
        assert compiled == 3 + len(calls)


@row("DTensor")
class TestDTensor:
    @each(SUBJECTS)
    def test_is_sharded_as_its_argument(self, subject: Subject, failed: dict[str, str]) -> None:
        name = f"sharded {subject.name}"
        assert name not in failed, failed[name]

    @each(SEVERAL)
    def test_arguments_of_different_placements(self, subject: Subject, failed: dict[str, str]) -> None:
        name = f"differently sharded {subject.name}"
        assert name not in failed, failed[name]


# Threads

SIXTEEN = """
import sys, threading, torch, torchad_ext as ad
sys.setswitchinterval(1e-6)  # as many races as there can be
x = torch.linspace(-1, 1, 1001, dtype=torch.float64)
start, answers, wrong = threading.Barrier(16), [], []
shared = x.clone().requires_grad_()
graph = ad.square(shared)

def work(i):
    start.wait()
    leaf = x.clone().requires_grad_()
    declared = ad.pointwise(lambda u: torch.atan(u) * (2.5 + i % 2))
    y = ad.sin(leaf) + declared(leaf)
    slope, = torch.autograd.grad(y.sum(), leaf, create_graph=True)
    curvature, = torch.autograd.grad(slope.sum(), leaf)
    torch.autograd.backward(graph, torch.full_like(x, i), retain_graph=True)
    q = 1 + x * x
    torch.testing.assert_close(y, x.sin() + x.atan() * (2.5 + i % 2))
    torch.testing.assert_close(slope, x.cos() + (2.5 + i % 2) / q)
    torch.testing.assert_close(curvature, -x.sin() - (2.5 + i % 2) * 2 * x / q**2)
    answers.append(i)

threading.excepthook = lambda args: wrong.append(args.exc_value)
threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
[t.start() for t in threads]
[t.join() for t in threads]
assert not wrong, wrong
assert sorted(answers) == list(range(16))
torch.testing.assert_close(shared.grad, 2 * x * sum(range(16)))
"""


@pytest.mark.long
@row("threads")
def test_sixteen_threads_declare_build_and_differentiate_at_once(tmp_path: Path) -> None:
    compiled = programs(SIXTEEN, tmp_path, ())
    libraries = kept(tmp_path)
    assert libraries["lambda-float64"] == 2  # there are two functions of this name
    assert libraries.keys() >= {"cpu", "sin-float64", "sin_backward-float64"}
    assert {n for name, n in libraries.items() if not name.startswith("lambda")} == {1}
    assert compiled == libraries.total()


# GPUs

GPU_SUBJECTS = [*MISSION, QUADRATIC_FORM]
TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch.cuda.device_count() is below 2")


def compiled_first(subject: Subject, device: str) -> tuple[Tensor, ...]:
    """Inputs, after all kernels of them have run."""
    xs = subject.inputs(64, device=device, requires_grad=True)
    results(subject.op, xs)
    return xs


def on_a_stream_that_is_late(subject: Subject, device: str) -> None:
    """The inputs are written by work that waits in the same stream."""
    values = compiled_first(subject, device)
    xs = tuple(torch.full_like(x, 0.5) for x in values)
    cuda = device != "cpu"
    stream = torch.cuda.Stream(device) if cuda else None
    if cuda:
        stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        if cuda:
            torch.cuda._sleep(100_000_000)  # cycles
        for x, value in zip(xs, values, strict=True):
            x.copy_(value.detach())
        ours = results(subject.op, tuple(x.requires_grad_() for x in xs))
    if cuda:
        torch.cuda.current_stream(device).wait_stream(stream)
    assert_close(ours, results(subject.native, values))


def in_a_graph(subject: Subject, device: str) -> None:
    """A captured value, gradient and double backward follow their inputs."""
    xs = compiled_first(subject, device)
    if device == "cpu":
        replay, captured = (lambda: None), None
    else:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                results(subject.op, xs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = results(subject.op, xs)
        replay = graph.replay
    for scale in (0.5, 0.25):
        with torch.no_grad():
            for x in xs:
                x.mul_(scale)
        replay()
        expected = results(subject.native, tuple(x.detach().clone().requires_grad_() for x in xs))
        assert_close(results(subject.op, xs) if captured is None else captured, expected)


def under_autocast_with_a_scaler(subject: Subject, device: str) -> None:
    """A step of training in half precision."""
    dtype = torch.bfloat16 if device == "cpu" else torch.float16
    _, A = QUADRATIC_FORM.inputs(8, dtype=torch.float32, device=device)

    def step(function: Function) -> list[Tensor]:
        torch.manual_seed(0)
        layer = nn.Linear(8, 8, device=device)
        scaler = torch.amp.GradScaler(device, init_scale=128.0)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        x = torch.rand(16, 8, device=device, requires_grad=True)
        with torch.autocast(device, dtype):
            hidden = layer(x)
            y = function(hidden, A.to(hidden.dtype)) if subject is QUADRATIC_FORM else function(hidden)
            (force,) = grad(y.float().sum(), x, create_graph=True)
            loss = y.float().mean() + force.square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert all(p.grad.count_nonzero() for p in layer.parameters())
        return [y, loss, *(p.grad for p in layer.parameters()), *layer.parameters()]

    assert_close(step(subject.op), step(subject.native), rtol=3e-2, atol=3e-2)


def without_waiting_for_the_device(subject: Subject, device: str) -> None:
    """No value travels back to the host."""
    xs = compiled_first(subject, device)
    before = torch.cuda.get_sync_debug_mode() if device != "cpu" else None
    if before is not None:
        torch.cuda.set_sync_debug_mode("error")
    try:
        ours = results(subject.op, xs)
    finally:
        if before is not None:
            torch.cuda.set_sync_debug_mode(before)
    assert_close(ours, results(subject.native, xs))


def on_a_device_that_is_not_current(subject: Subject, device: str) -> None:
    """The results are where the arguments are."""
    current = torch.cuda.current_device() if device != "cpu" else None
    xs = compiled_first(subject, device)
    ours = results(subject.op, xs)
    assert {str(result.device) for result in ours} == {device}
    assert_close(ours, results(subject.native, xs))
    assert current is None or torch.cuda.current_device() == current


bodies = pytest.mark.parametrize(
    "body",
    [on_a_stream_that_is_late, in_a_graph, under_autocast_with_a_scaler, without_waiting_for_the_device],
    ids=lambda body: body.__name__,
)


@row("CUDA", device="cuda")
@NO_GPU
class TestCuda:
    @each(GPU_SUBJECTS)
    @bodies
    def test_on_the_current_gpu(self, subject: Subject, body: Callable[[Subject, str], None]) -> None:
        body(subject, "cuda")

    @TWO_GPUS
    @each(GPU_SUBJECTS)
    @pytest.mark.parametrize("body", [on_a_device_that_is_not_current, on_a_stream_that_is_late])
    def test_on_another_gpu(self, subject: Subject, body: Callable[[Subject, str], None]) -> None:
        body(subject, "cuda:1")


@each(GPU_SUBJECTS)
@pytest.mark.parametrize("body", [*bodies.args[1], on_a_device_that_is_not_current], ids=lambda body: body.__name__)
def test_what_the_tests_on_a_gpu_ask_holds_on_a_cpu(subject: Subject, body: Callable[[Subject, str], None]) -> None:
    body(subject, "cpu")
