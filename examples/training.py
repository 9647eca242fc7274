"""What the examples share: their command line, Adam with a progress bar, and data shared out among processes.

Under ``torchrun --nproc_per_node 2 examples/NAME.py`` each process has a part of the data, and all have the loss that
one process alone would have.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def options(description: str, steps: int) -> argparse.Namespace:
    """The command line of an example."""
    parser = argparse.ArgumentParser(description=description)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default, help="default: %(default)s")
    parser.add_argument("--native", action="store_true", help="plain PyTorch in place of torchad_ext")
    parser.add_argument("--steps", type=int, default=steps, help="training steps; default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("."), help="folder for the picture")
    chosen = parser.parse_args()
    if chosen.steps < 1:
        parser.error(f"--steps {chosen.steps}; give 1 or more")
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but PyTorch finds no CUDA device; use --device cpu")
    try:  # before the training, not after it
        chosen.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output {chosen.output}: {error.strerror}; give a folder for the picture")
    return chosen


@dataclass(frozen=True)
class Processes:
    """The processes that train together.

    Attributes:
        rank: the number of this process, from 0.
        count: the number of processes.
        device: the device of this process.
    """

    rank: int
    count: int
    device: torch.device

    @classmethod
    @contextlib.contextmanager
    def join(cls, device: str) -> Iterator[Processes]:
        """Processes that torchrun started; without it this one alone."""
        count, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        of = torch.device(device, int(os.environ.get("LOCAL_RANK", 0)) if device == "cuda" else None)
        if count == 1:
            yield cls(0, 1, of)
            return
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
        try:
            yield cls(rank, count, of)
        finally:
            dist.destroy_process_group()

    def train(self, errors: nn.Module, data: Sequence[Tensor], steps: int, rate: float = 1e-3) -> list[float]:
        """Trains a module whose forward gives an error for each example.

        The module, not the network in it, is what DistributedDataParallel wraps: derivatives are taken inside.

        Args:
            errors: maps a part of each tensor of ``data`` to errors ``[count]``; its parameters are trained.
            data: tensors ``[examples, ...]``.
            steps: how many; all examples in each.
            rate: the learning rate, which falls to 0 with the last step.

        Returns:
            The mean error before each step.
        """
        from rich.progress import Progress, TextColumn

        part = [x[self.rank :: self.count].to(self.device) for x in data]
        model = errors.to(self.device)
        if self.count > 1:  # a derivative of the network may not depend on its last bias: that has no gradient then
            model = DistributedDataParallel(model, find_unused_parameters=True)
        optimizer = torch.optim.Adam(model.parameters(), rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        losses: list[float] = []
        columns = (*Progress.get_default_columns(), TextColumn("{task.fields[loss]}"))
        with Progress(*columns, disable=self.rank > 0) as progress:
            bar = progress.add_task("Training", total=steps, loss="")
            for _ in range(steps):
                # Gradients are averaged over processes, whose parts may differ in size.
                loss = model(*part).sum() * self.count / len(data[0])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(self.mean(loss.detach()).item())
                progress.update(bar, advance=1, loss=f"loss {losses[-1]:.3g}")
        if self.rank == 0:
            print(f"loss {losses[0]:.6e} to {losses[-1]:.6e} in {steps} steps")
        return losses

    def mean(self, x: Tensor) -> Tensor:
        """The mean over processes."""
        if self.count > 1:
            dist.all_reduce(x)
        return x / self.count
