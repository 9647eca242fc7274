"""The examples run, alone and in two processes, and their losses are those of plain PyTorch and of one process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from matplotlib import image

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "training")
STEPS = 3


def losses(*command: str, name: str, folder: Path) -> tuple[float, float]:
    """Of the first and of the last step."""
    arguments = [str(EXAMPLES / f"{name}.py"), "--steps", str(STEPS), "--device", "cpu", "--output", str(folder)]
    given = [part for part in command if part.startswith("--native")]
    before = [sys.executable, *(part for part in command if part not in given)]
    result = subprocess.run([*before, *arguments, *given], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    first, last = re.search(r"loss (\S+) to (\S+) in 3 steps", result.stdout).groups()  # type: ignore[union-attr]
    return float(first), float(last)


def test_the_examples_are_there() -> None:
    assert NAMES == ["energy_forces", "pinn_poisson", "siren_image"]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_has_the_losses_of_plain_pytorch(name: str, tmp_path: Path) -> None:
    ours = losses(name=name, folder=tmp_path)
    picture = image.imread(tmp_path / f"{name}.png")
    assert picture.std() > 0.05 and ours[1] < ours[0]
    assert ours == pytest.approx(losses("--native", name=name, folder=tmp_path), rel=1e-4)


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this PyTorch has no gloo")
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_have_the_loss_of_one(name: str, tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    both = losses(*torchrun, name=name, folder=tmp_path)
    assert both == pytest.approx(losses(name=name, folder=tmp_path), rel=1e-4)
