"""Every test that takes ``device`` runs on the CPU and on a GPU; without one, it is shown as skipped."""

from __future__ import annotations

import pytest
import torch

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch.cuda.is_available() is False")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("cpu", "cuda"), help="run the tests on this device only")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("device")
        devices = [chosen] if chosen else ["cpu", "cuda"]
        metafunc.parametrize("device", [pytest.param(d, marks=NO_GPU if d == "cuda" else ()) for d in devices])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
