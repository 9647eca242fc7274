"""The rows of the benchmarks for a GPU compute what they say, on few elements and without one."""

from __future__ import annotations

import functools
import itertools
import json
import sys
from pathlib import Path

import gpu
import gpu_cases
import levels
import pytest
import rivals
import run
import torch
from cases import Case
from selection import few
from training import Training

CASES = {f"{case.name}, {case.size}": case for case in gpu_cases.cases(elements=2**14, points=2**8)}


def in_turn(d: int, name: str) -> bool:
    return (d - 1) % 3 == list(rivals.ACTIVATIONS).index(name) % 3


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in CASES if "compile" not in name])
def test_a_row_for_a_gpu_runs_and_its_ways_agree(name: str, device: str) -> None:
    case = CASES[name]
    if "CUDA graph" in name and device == "cpu":
        pytest.skip("there are no CUDA graphs on the CPU")
    measured = run.measure(case, run.prepared(case, device, "float32"), device, seconds=0.01, least=2)
    assert measured["seconds"].keys() == {*case.native, "torchad_ext"}
    assert measured["ratio"]["median"] > 0


def test_ways_that_differ_are_an_error() -> None:
    case = Case("wrong", "4", lambda op, x: op(x), lambda randn: (randn(4),), {"cos": torch.cos}, torch.sin)
    with pytest.raises(RuntimeError, match="torchad_ext and cos differ"):
        run.prepared(case, "cpu", "float32")


def test_bare_kernels_write_what_their_ops_give() -> None:
    for case in gpu_cases.kernels(elements=64):
        randn = functools.partial(torch.randn, dtype=torch.float32)
        tensors = case.inputs(randn)
        reads = {4: 1, 5: 2, 7: 3}[len(tensors)]  # beside the outputs and the two of the copy
        name, order = case.name.split()[0], reads - 1
        case.ours(*tensors)
        xs = [tensor[0] for tensor in tensors[:reads]]
        expected = gpu_cases.CATALOGUE[name]._order(order).definition(*(x.double() for x in xs))
        expected = expected if isinstance(expected, tuple) else (expected,)
        for out, y in zip(tensors[reads : reads + len(expected)], expected, strict=True):
            torch.testing.assert_close(out[0].double(), y, rtol=1e-2, atol=1e-2)


def test_goals_of_a_gpu_are_set() -> None:
    assert sum(case.floor is not None for case in CASES.values()) >= 20
    assert any(isinstance(case, Training) for case in CASES.values())


def test_losses_that_differ_by_a_rounding_agree_and_others_do_not() -> None:
    class Op:
        def __init__(self, loss: float) -> None:
            self.loss = loss

    def training(difference: float) -> Training:
        op = Op(1.0)
        op.definition = Op(1.0 + difference)  # type: ignore[attr-defined]
        return Training("constant", "1", lambda choice, randn: itertools.repeat(choice(op).loss), ("plain",))

    run.prepared(training(torch.finfo(torch.float32).eps), "cpu", "float32")
    with pytest.raises(RuntimeError, match="torchad_ext and plain differ"):
        run.prepared(training(1e-3), "cpu", "float32")


def test_a_failed_row_is_told_beside_the_others() -> None:
    record = {"machine": {"CPU": "one"}, "rows": [], "training": [], "startup": [], "failed": ["sin, 1e3: differ"]}
    assert run.markdown(record) == "CPU one\n\nFailed: sin, 1e3: differ\n"


def test_a_row_that_fell_is_measured_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "run.py"
    script.write_text("import re, sys; sys.exit(re.search(sys.argv[3], 'sin: f + b 1e3') is None)")
    monkeypatch.setattr(sys, "argv", [str(script), "--check"])
    assert run.is_kept_alone("sin: f + b 1e3")
    assert not run.is_kept_alone("sin: f + b 1e30")


def test_a_floor_counts_as_kept_where_the_last_runs_that_have_its_row_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    for kept in ({"a": True, "b": False}, {"a": True, "b": True}, {"a": False, "b": True, "new": True}):
        rows = [{"name": name, "size": "1", "kept": value} for name, value in kept.items()]
        run.keep_for_checks("cpu-v4-float32")
        (tmp_path / "cpu-v4-float32.json").write_text(json.dumps({"rows": rows, "training": [], "startup": []}))
    assert run.kept_rows(tmp_path.glob("cpu-v4-float32*.json")) == {"b 1", "new 1"}
    assert not run.kept_rows(tmp_path.glob("cpu-v3-float32*.json"))
    run.keep_for_checks("cpu-v4-float32")
    assert [path.name for path in tmp_path.iterdir()] == ["cpu-v4-float32-before.json"]


@pytest.mark.parametrize("level", levels.ENVIRONMENTS)
def test_a_level_is_measured_in_its_environment(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Replaced(Exception):
        pass

    def execve(_program: str, command: list[str], environment: dict[str, str]) -> None:
        raise Replaced(command, environment)

    monkeypatch.setattr(levels.os, "execve", execve)
    monkeypatch.setattr(levels.toolchain, "cpu_level", lambda: f"x86-64-{level}")
    for name in {name for environment in levels.ENVIRONMENTS.values() for name in environment}:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Replaced) as replaced:
        levels.start_again_at(level)
    command, environment = replaced.value.args
    assert command[1:] == levels.sys.orig_argv[1:]
    for name, value in levels.ENVIRONMENTS[level].items():
        assert environment[name] == value
        monkeypatch.setenv(name, value)
    assert levels.start_again_at(None) == levels.start_again_at(level) == level


@pytest.mark.parametrize(("d", "name"), few(itertools.product([1, 2, 3], rivals.ACTIVATIONS), in_turn))
def test_ways_of_rivals_give_one_loss_and_its_gradients(name: str, d: int) -> None:
    problem = rivals.Problem.of(d, points=17, width=8).to(torch.float64)
    native, ours, with_derivatives = rivals.ACTIVATIONS[name]
    expected = rivals.eagerly(rivals.nested_autograd, native)(problem)
    ways = [
        (rivals.nested_autograd, ours),
        (rivals.one_sweep, native),
        (rivals.reverse_over_reverse, native),
        (rivals.by_hand, with_derivatives),
    ]
    for way, activation in ways:
        given = rivals.eagerly(way, activation)(problem)
        assert max(rivals.distance(a, b) for a, b in zip(given, expected, strict=True)) < 1e-12, way.__name__


class TestPartsOnAGpu:
    """A part that fails or hangs costs itself alone, and what ended before is on the disk."""

    @pytest.fixture
    def output(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        python = [sys.executable, "-c"]
        hangs = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
        seen = f"print(open({str(tmp_path / 'parts.md')!r}).read().count('failed'))"
        every = [
            gpu.Part("wrong", [[*python, "print('half'); raise SystemExit(3)"], [*python, "print('done')"]], 60),
            gpu.Part("slow", [[*python, hangs]], 2),
            gpu.Part("right", [[*python, seen]], 60),
        ]
        monkeypatch.setattr(gpu, "OUTPUT", tmp_path)
        monkeypatch.setattr(gpu, "parts", lambda device, quick: {part.name: part for part in every})
        return tmp_path

    def test_each_part_runs_and_is_told(
        self, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu"])
        with pytest.raises(SystemExit, match="see the logs"):
            gpu.main()
        _, _, wrong, slow, right = (output / "parts.md").read_text().splitlines()
        assert wrong.startswith("- wrong: failed") and wrong.endswith("exit status 3: done")
        assert slow.startswith("- slow: failed") and "stopped after 2 s" in slow
        assert right.startswith("- right: right") and right.endswith("; 2")  # both failures were on the disk by then
        assert "slow: at most 2 s, of 4" in capsys.readouterr().out

    def test_parts_are_chosen(self, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["gpu.py", "slow", "wrong", "--device", "cpu"])
        with pytest.raises(SystemExit, match="see the logs"):
            gpu.main()
        assert [line.split()[1] for line in (output / "parts.md").read_text().splitlines()[2:]] == ["slow:", "wrong:"]

    def test_a_part_that_there_is_not(self, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["gpu.py", "fast", "--device", "cpu"])
        with pytest.raises(SystemExit, match="no part is called fast; there are wrong, slow, right"):
            gpu.main()


def test_parts_on_a_gpu_fit_its_time() -> None:
    every = gpu.parts("cuda", quick=False)
    assert list(every)[:4] == ["build", "paths", "bench", "tests"]
    assert all(part.seconds < gpu.LIMIT for part in every.values())
