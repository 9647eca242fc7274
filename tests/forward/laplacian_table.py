"""The table of operations in ``docs/laplacian_rules.md``: which have a rule under ``ad.laplacian``, which none.

``make rules`` writes it. Each operation is run on the samples with which PyTorch tests its own derivatives: what warns
falls back. How one that does not is differentiated, the registries of rules tell.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "symbolic"), str(TESTS), str(TESTS.parent)]

from pytorch_samples import samples_of  # noqa: E402
from test_torch_functions import AT, UNUSUAL, of_numbers, second_derivative_exists, size_of  # noqa: E402
from torch.testing._internal.common_methods_invocations import op_db  # noqa: E402
from torch.testing._internal.opinfo.core import OpInfo  # noqa: E402
from torch.utils._pytree import tree_map  # noqa: E402

import torchad_ext as ad  # noqa: E402
from torchad_ext._elementwise import Elementwise  # noqa: E402
from torchad_ext._forward import elementwise_rules, fallback, laplacian, rules  # noqa: E402
from torchad_ext._symbolic.torch_functions import FUNCTIONS  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "laplacian_rules.md"
BEGIN, END = "<!-- make rules -->\n", "<!-- end of the table -->"
RANDOM = ("svd_lowrank", "pca_lowrank")
WAYS = {
    "rule": "a rule: linear, a product, or written for it",
    "kernel": "one fused kernel for value, tangents and Laplacian",
    "composed": "composed of operations that have rules",
    "slopes": "elementwise: its derivatives by one gradient each, for all directions",
    "first": "these rules, where the first argument alone depends on x; else they fall back",
    "operation": "**falls back**: differentiated twice by itself, or with all of f where f is mostly that",
    "function": "**falls back**: the sweep cannot follow it; all of f is differentiated twice",
}


def followed(f: Callable[[Tensor], Tensor]) -> str | None:
    """How the sweep takes f: ``rule``, ``operation`` or ``function``; None if it has no second derivative."""
    try:
        y = f(AT.clone().requires_grad_())
        if not y.requires_grad or not y.numel() or not second_derivative_exists(y):
            return None
    except (RuntimeError, TypeError, ValueError):
        return None
    fallback._warned.clear()
    laplacian._without_rules.clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            ad.forward_laplacian(f, AT)
        except (RuntimeError, ValueError):
            return "function"
    texts = [str(warning.message) for warning in said if "torchad_ext.laplacian" in str(warning.message)]
    if any("cannot follow" in text for text in texts):
        return "function"
    return "operation" if texts else "rule"


def registered(name: str) -> str:
    """How an operation with a rule is differentiated."""
    name = name.rpartition(".")[2]
    if name in rules.RULES:
        return "rule"
    if name in rules.COMPOSITIONS:
        return "composed"
    if name in FUNCTIONS:
        return "kernel"
    of = getattr(torch, name, None) or getattr(torch.special, name, None)
    return "slopes" if of is not None and elementwise_rules.is_elementwise(of) else "composed"


def ways_of(info: OpInfo, dtype: torch.dtype) -> set[str]:
    """How the samples of an operation are taken."""
    if not info.supports_autograd or dtype not in info.supported_dtypes("cpu"):
        return set()
    samples = itertools.islice(samples_of(info, dtype), 6)
    found = set()
    for sample in sorted((s for s in samples if size_of(s)), key=size_of)[:1]:
        args, kwargs = (sample.input, *sample.args), sample.kwargs
        way = followed(of_numbers(info.get_op(), args, kwargs))
        if way == "operation":
            others = tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, (sample.args, kwargs))
            alone = followed(of_numbers(info.get_op(), (sample.input, *others[0]), others[1]))
            way = "first" if alone == "rule" else way
        found.add(way)
    return {way for way in found if way}


def table() -> str:
    """The rows of the page."""
    names: dict[str, set[str]] = {way: set() for way in WAYS}
    with mock.patch.object(Elementwise, "kernel", return_value=None), torch.random.fork_rng():
        for info in op_db:
            if info.variant_test_name in UNUSUAL or info.name in RANDOM:
                continue
            torch.manual_seed(0)
            found = ways_of(info, torch.float64)
            worst = next((way for way in ("function", "operation", "first", "rule") if way in found), None)
            if worst:
                name = info.name.removeprefix("nn.functional.").removeprefix("special.")
                names[registered(name) if worst == "rule" else worst].add(name)
    for better, worse in itertools.combinations(WAYS, 2):  # of variants of one name
        if worse in ("first", "operation", "function"):
            names[better] -= names[worse]
    rows = [
        f"| {what} | {' '.join(f'`{name}`' for name in sorted(names[way]))} |"
        for way, what in WAYS.items()
        if names[way]
    ]
    return "\n".join(["| how | operations |", "|---|---|", *rows, ""])


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    head, _, tail = text.partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}{table()}{END}{tail.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
