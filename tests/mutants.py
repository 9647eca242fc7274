"""Mutation testing: ``python tests/mutants.py torchad_ext/_symbolic/operations.py tests/symbolic/test_trace.py ...``

Each mutant is the module with one operator, comparison, number or truth value exchanged (by cosmic-ray). The tests are
collected once, and each is run in a fork to see how long it takes and which lines of the module it runs. For each
mutant a fork puts the mutated code in the place of what was imported and runs the tests of the changed line, the
quickest first, until one fails. Programs run in the place of kernels, which would have to be compiled for each mutant.
Mutants that no test kills are printed as diffs: a test is missing, or the mutant computes the same. Then its line
stands in ``equivalent_mutants.py``, with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import gc
import importlib
import inspect
import itertools
import os
import pickle
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import pytest
import torch
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from equivalent_mutants import EQUIVALENT
from hypothesis import settings
from rich.progress import track

ROOT = Path(__file__).resolve().parents[1]
# Exchanges of which a reader would overlook one; those by bit operations fail at once.
OPERATORS = (
    "NumberReplacer ReplaceTrueWithFalse ReplaceFalseWithTrue ReplaceAndWithOr ReplaceOrWithAnd AddNot "
    "ReplaceBinaryOperator_Add_Sub ReplaceBinaryOperator_Sub_Add ReplaceBinaryOperator_Mul_Div "
    "ReplaceBinaryOperator_Mul_Add ReplaceBinaryOperator_Div_Mul ReplaceBinaryOperator_Pow_Mul "
    "ReplaceComparisonOperator ReplaceUnaryOperator_Delete"
).split()


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """The name of each mutation, and the source with it."""
    for name in operator_names():
        if not any(name.removeprefix("core/").startswith(start) for start in OPERATORS):
            continue
        texts = (mutate_code(source, get_operator(name)(), occurrence) for occurrence in itertools.count())
        yield from ((name, text) for text in itertools.takewhile(bool, texts) if is_python(text))


def is_python(source: str) -> bool:
    try:
        compile(source, "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


def codes(code: CodeType, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], CodeType]]:
    """The code of a module and of all functions in it, by where they stand in one another."""
    yield path, code
    nested = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    for i, inner in enumerate(nested):
        yield from codes(inner, (*path, i))


def identity(code: CodeType) -> Any:
    """What tells code from that of an equal function in the same line."""
    return code, tuple(code.co_positions())


def own(code: CodeType) -> Any:
    """What a code object does by itself, without the functions and the texts in it."""
    return code.co_code, [c for c in code.co_consts if not isinstance(c, (CodeType, str))], code.co_names


class Mutated:
    """A module that is imported, and what puts mutated code in its place.

    Args:
        module: the module.
        source: its source.
    """

    def __init__(self, module: ModuleType, source: str) -> None:
        assert module.__file__
        self.module, self.file = module, module.__file__
        self.original = dict(codes(compile(source, self.file, "exec", dont_inherit=True)))
        gc.unfreeze()
        self.functions: dict[Any, list[FunctionType]] = defaultdict(list)
        for function in gc.get_objects():
            if isinstance(function, FunctionType) and function.__code__.co_filename == self.file:
                self.functions[identity(function.__code__)].append(function)

    def put(self, source: str) -> None:
        """Gives functions the code of a mutant; what it changes outside of functions is executed again."""
        made = compile(source, self.file, "exec", dont_inherit=True)
        for path, code in codes(made):
            for function in self.functions[identity(self.original[path])]:
                function.__code__ = code
        if not self.is_of_module(source):
            return
        before = dict(vars(self.module))
        exec(made, vars(self.module))
        for name, kind in before.items():
            mutant = getattr(self.module, name)
            if isinstance(kind, FunctionType) and kind.__code__ is getattr(mutant, "__code__", None):
                kind.__defaults__, kind.__kwdefaults__ = mutant.__defaults__, mutant.__kwdefaults__
                setattr(self.module, name, kind)
            if isinstance(kind, type) and mutant is not kind:  # others have imported the class
                for key, value in vars(mutant).items():
                    with contextlib.suppress(AttributeError):
                        setattr(kind, key, value)
                setattr(self.module, name, kind)

    def is_of_module(self, source: str) -> bool:
        """Does a mutant change what is executed when the module is imported?"""
        return any(
            own(code) != own(self.original[path])
            for path, code in codes(compile(source, self.file, "exec", dont_inherit=True))
            if not code.co_flags & inspect.CO_OPTIMIZED  # the module and its classes
        )


class Lines:
    """The lines of a file that are run."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: set[int] = set()

    def trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename != self.file:
            return None
        self.found.add(frame.f_lineno)
        return self.trace


class Killer:
    """A plugin of pytest that runs the collected tests on mutants in the place of its own loop.

    Attributes:
        survivors: the name and the source of each mutant that was not killed.
    """

    def __init__(self, module: Path, chosen: Sequence[tuple[str, str]], has_kernels: bool) -> None:
        self.path, self.chosen, self.has_kernels = module, chosen, has_kernels
        self.source = module.read_text(encoding="utf-8")
        self.failed = False
        self.survivors: list[tuple[str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed = self.failed or report.failed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if not self.has_kernels:
            from random_modules import interpret

            interpret(setattr)
        parts = self.path.relative_to(ROOT).with_suffix("").parts
        module = importlib.import_module(".".join(part for part in parts if part != "__init__"))
        self.mutated, self.items = Mutated(module, self.source), session.items
        # Each in a fork of its own, as what one has traced others find in a cache.
        found = [in_fork(functools.partial(self.measured, item)) for item in self.items]
        self.seconds = {i: of[0] for i, of in enumerate(found) if of}
        self.lines = {i: of[1] for i, of in enumerate(found) if of}
        if self.is_killed(self.source.replace("\n", " \n")):
            pytest.exit("the tests fail without a mutation, or do not run in this order")
        for name, text in track(self.chosen, "mutants", disable=not sys.stderr.isatty()):
            if not self.is_killed(text):
                self.survivors.append((name, text))
                print(name, *changes(self.source, text), sep="\n", flush=True)
        return True

    def fails(self, item: pytest.Item) -> bool:
        self.failed = False
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        return self.failed

    def measured(self, item: pytest.Item) -> tuple[float, set[int]] | None:
        """The seconds that a test takes and the lines that it runs, if it passes."""
        found, start = Lines(self.mutated.file), time.perf_counter()
        threading.settrace(found.trace)
        sys.settrace(found.trace)
        fails = self.fails(item)
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        return None if fails else (time.perf_counter() - start, found.found)

    def is_killed(self, source: str) -> bool:
        """Does a test of the changed lines fail, or hang, with this source in the module's place?"""
        changed = set(changed_lines(self.source, source))
        everywhere = self.mutated.is_of_module(source)
        tests = [i for i in self.seconds if everywhere or changed & self.lines[i]]
        tests.sort(key=lambda i: (not changed & self.lines[i], self.seconds[i]))
        child = os.fork()
        if not child:
            signal.alarm(30 + int(10 * sum(self.seconds[i] for i in tests)))  # it hangs
            with open(os.devnull, "w", encoding="utf-8") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
            try:
                self.mutated.put(source)
                os._exit(any(self.fails(self.items[i]) for i in tests))
            finally:
                os._exit(1)
        return os.waitpid(child, 0)[1] != 0


def in_fork(function: Callable[[], Any]) -> Any:
    """The result of a function that a fork of this process computes."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            with open(writing, "wb") as pipe:
                pickle.dump(function(), pipe)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    with open(reading, "rb") as pipe:
        result = pipe.read()
    os.waitpid(child, 0)
    return pickle.loads(result)


def changes(source: str, mutant: str) -> list[str]:
    return list(difflib.unified_diff(source.splitlines(), mutant.splitlines(), lineterm="", n=0))[2:]


def changed_lines(source: str, mutant: str) -> Iterator[int]:
    """The lines of the source that a mutant changes."""
    pairs = zip(source.splitlines(), mutant.splitlines(), strict=True)
    return (i for i, (line, other) in enumerate(pairs, start=1) if line != other)


def is_equivalent(source: str, mutant: str) -> bool:
    """Is it known that a mutant computes the same?"""
    lines = mutant.splitlines()
    return any(lines[i - 1].partition("  #")[0].strip() in EQUIVALENT for i in changed_lines(source, mutant))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", type=Path)
    parser.add_argument("tests", nargs="+", help="arguments of pytest")
    parser.add_argument("--part", default="1/1", help="2/3 takes the second of every three mutants")
    parser.add_argument("--lines", default="", help="33,65 takes the mutants of these lines")
    parser.add_argument("--kind", default="", help="NumberReplacer takes the mutants of this kind")
    parser.add_argument("--kernels", action="store_true", help="compile kernels")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings.register_profile("mutants", derandomize=True, database=None)
    settings.load_profile("mutants")
    part, parts = map(int, options.part.split("/"))
    module = options.module.resolve()
    source = module.read_text(encoding="utf-8")
    of_kind = (mutant for mutant in mutants(source) if options.kind in mutant[0])
    chosen = [mutant for mutant in of_kind if not is_equivalent(source, mutant[1])][part - 1 :: parts]
    if options.lines:
        wanted = set(map(int, options.lines.split(",")))
        chosen = [mutant for mutant in chosen if wanted & set(changed_lines(source, mutant[1]))]
    killer = Killer(module, chosen, options.kernels)
    quiet = ["-q", "--no-header", "--tb=no", "-s", "-p", "no:cacheprovider", "-p", "no:xdist"]
    ended = pytest.main([*quiet, *options.tests], plugins=[killer])
    if ended not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        sys.exit(f"not all mutants were tried: {ended!r}")
    print(f"{len(chosen) - len(killer.survivors)} of {len(chosen)} mutants of {options.module} killed")
    return bool(killer.survivors)


if __name__ == "__main__":
    sys.exit(main())
