"""What "drop-in" means: the rows of docs/drop-in.md, the ops they hold for, and the mark that ties a test to a row.

``make table`` writes the table from the results of the tests that carry the mark.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from selection import few

import torchad_ext as ad
from torchad_ext import Pointwise
from torchad_ext.ops import CATALOGUE

ROWS = {
    "dtypes": "float16, bfloat16, float32, float64 on kernels; complex, integers and bool through the definition; the "
    "result's dtype is native's",
    "layouts": "contiguous, transposed, channels_last(_3d), sliced, flipped, expanded, overlapping, 0-dimensional, "
    "empty, more than 2³¹ elements on CUDA: values and strides are native's",
    "reverse mode": "any order, `retain_graph`, hooks, subsets of `inputs=`, undefined and `None` gradients, "
    "accumulation, anomaly mode, saved-tensor hooks, both forms of checkpointing; in-place changes of a saved input "
    "raise",
    "forward mode": "`forward_ad`, `torch.func.jvp`, forward over reverse, reverse over forward, forward over forward, "
    "three deep",
    "torch.func": "grad, vjp, jvp, jacrev, jacfwd, hessian, vmap at any `in_dims` and `out_dims`, nested both ways, "
    "`functional_call`, `is_grads_batched`, `functional.hessian(vectorize=True)`",
    "torch.compile": "`fullgraph=True`, static and dynamic shapes, backward; derivatives taken inside are exact or a "
    "clear error",
    "export": "`torch.export`, strict and not, loaded where torchad_ext is not installed; ONNX",
    "fake and meta": "shape, dtype and strides without data",
    "autocast": "the dtype native would give, backward in the matching one, `GradScaler`",
    "other layouts": "sparse, nested, mkldnn, quantised, conjugate and negative views: as native, or native's kind of "
    "error",
    "subclasses and modes": "`__torch_function__`, `__torch_dispatch__`, `Parameter`, `no_grad`, `inference_mode`, "
    "`set_default_device`",
    "copying": "pickle, deepcopy, DataLoader workers, `multiprocessing` with fork and spawn",
    "data parallel": "DistributedDataParallel and FSDP2 with a double backward in two processes; a cold cache is built "
    "once",
    "DTensor": "elementwise ops keep the sharding; values and gradients are the unsharded ones",
    "CUDA": "the current stream, any device, graphs of forward and double backward, `torch.cuda.amp`",
    "threads": "called, and first built, from 16 threads at once",
    "bare kernels": "`torch.library.opcheck`; a tensor that needs a gradient raises",
    "PyTorch's own samples": "OpInfo's sample inputs for `sin` and `exp`, all dtypes, and for what other ops stand in "
    "for; its error inputs, where it has any",
    "errors": "wrong types, mixed devices, `requires_grad` of integers: as native says it, or clearer",
}

row = pytest.mark.drop_in
BEGIN, END = "<!-- make table -->", "<!-- end of the table -->"


@dataclass(frozen=True)
class Subject:
    """An op under test.

    Attributes:
        op: of torchad_ext.
        native: the same in plain PyTorch.
        intervals: where each of its tensors is sampled; None for ``quadratic_form``.
    """

    name: str
    op: Callable[..., torch.Tensor]
    native: Callable[..., torch.Tensor]
    intervals: tuple[tuple[float, float], ...] | None

    def inputs(
        self, *shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu", requires_grad: bool = False
    ) -> tuple[torch.Tensor, ...]:
        """Tensors of one shape, one for each argument; for ``quadratic_form`` x ``[*shape]`` and A ``[*shape, n]``."""
        generator = torch.Generator().manual_seed(len(self.name))
        if self.intervals is None:
            shapes, intervals = (shape, (*shape, shape[-1])), ((-1.0, 1.0), (-1.0, 1.0))
        else:
            shapes, intervals = (shape,) * len(self.intervals), self.intervals
        return tuple(
            (low + (high - low) * torch.rand(s, dtype=torch.float64, generator=generator))
            .to(device, dtype)
            .requires_grad_(requires_grad)
            for s, (low, high) in zip(shapes, intervals, strict=True)
        )


def _pointwise(op: Pointwise) -> Subject:
    return Subject(op.__name__, op, op.definition, tuple(op.domain.values()))


POINTWISE = [_pointwise(op) for op in CATALOGUE.values()]
MISSION = [_pointwise(ad.sin), _pointwise(ad.exp)]
QUADRATIC_FORM = Subject("quadratic_form", ad.quadratic_form, ad.quadratic_form.definition, None)
SUBJECTS = [*POINTWISE, QUADRATIC_FORM]
A_FEW = [s for s in SUBJECTS if s.name in ("sin", "exp", "silu", "snake", "quadratic_form")]


def each(subjects: list[Any]) -> pytest.MarkDecorator:
    """Runs a test for each subject."""
    return pytest.mark.parametrize("subject", subjects, ids=lambda subject: subject.name)


each_of_few = each(few(SUBJECTS, lambda subject: subject in A_FEW))


def every_sixth(start: int) -> pytest.MarkDecorator:
    """Runs a test that needs kernels of its own for sin, exp and every sixth subject; for the others it is ``long``."""
    return each(few(SUBJECTS, lambda subject: subject in A_FEW or SUBJECTS.index(subject) % 6 == start))


def rounded_once(op: Pointwise, *xs: torch.Tensor) -> torch.Tensor:
    """What an op gives for halves: the float32 result rounded, but for float16 on the CPU the exact sin and exp."""
    if xs[0].dtype is torch.float16 and xs[0].device.type == "cpu" and op in (ad.sin, ad.exp):
        exact = op.definition(*(x.double() for x in xs)).numpy()
        with np.errstate(over="ignore"):
            return torch.from_numpy(exact.astype(np.float16))  # torch would round to float32 on the way
    return op(*(x.float() for x in xs)).to(xs[0].dtype)


def table(results: dict[str, dict[str, list[str]]]) -> str:
    """The table in Markdown, from the outcomes of the tests of each row on each device."""
    lines = ["| | what holds | CPU | CUDA |", "|---|---|---|---|"]
    for name, meaning in ROWS.items():
        cells = []
        for device in ("cpu", "cuda"):
            outcomes = results.get(name, {}).get(device, [])
            passed = outcomes.count("passed")
            cells.append(f"{passed} tests" if passed else "not run" if outcomes else "")
        lines.append(f"| {name} | {meaning} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
