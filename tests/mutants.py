"""Mutation testing: ``python tests/mutants.py torchad_ext/_symbolic/operations.py tests/symbolic/test_trace.py ...``

Each mutant is the module with one operator, comparison, number or truth value exchanged (by cosmic-ray). The tests run
on it in a process that is forked when PyTorch and pytest are imported. Mutants that no test kills are printed as diffs:
a test is missing, or the mutant computes the same.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib.machinery
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from rich.progress import track

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
        yield from ((name, text) for text in itertools.takewhile(bool, texts))


def is_killed(module: Path, source: str, tests: list[str], seconds: float) -> bool:
    """Do the tests fail with this source in the module's place?"""
    child = os.fork()
    if not child:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        _replace(module, source)
        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests])) != 0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status != 0
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True  # it hangs


def _replace(module: Path, source: str) -> None:
    get_data = importlib.machinery.SourceFileLoader.get_data

    def mutated(self: importlib.machinery.SourceFileLoader, path: str) -> bytes:
        if path.endswith(".pyc") and f"/{module.stem}." in path:
            raise OSError("compiled from the module itself")
        return source.encode() if Path(path) == module else get_data(self, path)

    importlib.machinery.SourceFileLoader.get_data = mutated  # type: ignore[method-assign]
    sys.dont_write_bytecode = True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", type=Path)
    parser.add_argument("tests", nargs="+", help="arguments of pytest; those that kill most come first")
    parser.add_argument("--seconds", type=float, default=900.0, help="after which a mutant hangs")
    parser.add_argument("--part", default="1/1", help="2/3 takes the second of every three mutants")
    options = parser.parse_args()
    torch.set_num_threads(1)
    module, source = options.module.resolve(), options.module.read_text(encoding="utf-8")
    if is_killed(module, source, options.tests, options.seconds):
        sys.exit("the tests fail without a mutation")
    part, parts = map(int, options.part.split("/"))
    survived, chosen = 0, list(mutants(source))[part - 1 :: parts]
    for name, text in track(chosen, "mutants", disable=not sys.stderr.isatty()):
        if not is_killed(module, text, options.tests, options.seconds):
            survived += 1
            lines = difflib.unified_diff(source.splitlines(), text.splitlines(), lineterm="", n=0)
            print(name, *list(lines)[2:], sep="\n", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} mutants of {options.module} killed")
    return bool(survived)


if __name__ == "__main__":
    sys.exit(main())
