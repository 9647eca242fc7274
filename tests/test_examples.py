"""The examples run, alone and in two processes, and their losses are those of plain PyTorch and of one process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from matplotlib import image
from selection import few

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem not in ("pde", "training"))
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def losses(name: str, folder: Path, *options: str, by: tuple[str, ...] = ()) -> tuple[float, float]:
    """Losses of the first and of the third step."""
    command = [sys.executable, *by, str(EXAMPLES / f"{name}.py"), "--steps", "3", "--device", "cpu", *options]
    result = subprocess.run([*command, "--output", str(folder)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    first, last = re.search(r"loss (\S+) to (\S+) in 3 steps", result.stdout).groups()  # type: ignore[union-attr]
    return float(first), float(last)


def test_the_examples_are_there() -> None:
    assert NAMES == ["energy_forces", "pinn_poisson", "siren_image"]


@pytest.mark.parametrize("name", few(NAMES, lambda name: name == "energy_forces"))
def test_an_example_has_the_losses_of_plain_pytorch(name: str, tmp_path: Path) -> None:
    ours = losses(name, tmp_path)
    assert image.imread(tmp_path / f"{name}.png").std() > 0.05 and ours[1] < ours[0]
    assert ours == pytest.approx(losses(name, tmp_path, "--native"), rel=1e-4)


def test_a_folder_that_cannot_be_made_is_said_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, str(EXAMPLES / "siren_image.py"), "--output", str(tmp_path / "file")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and f"--output {tmp_path / 'file'}: File exists; give a folder" in result.stderr
    assert "Traceback" not in result.stderr and not result.stdout


@pytest.mark.long
@pytest.mark.skipif(not dist.is_gloo_available(), reason="no gloo")
@pytest.mark.parametrize("name", NAMES)
def test_an_example_has_the_losses_of_two_processes(name: str, tmp_path: Path) -> None:
    assert losses(name, tmp_path) == pytest.approx(losses(name, tmp_path, by=TORCHRUN), rel=1e-4)


@pytest.mark.long
def test_the_equations_are_solved() -> None:
    result = subprocess.run([sys.executable, str(EXAMPLES / "pde.py")], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.findall(r"^(.+): largest error", result.stdout, re.MULTILINE) == [
        "Burgers, Cole-Hopf",
        "Korteweg-de Vries, soliton",
        "clamped beam, polynomial",
    ]
