"""No kernel reads beside its operands: at the edge of a page without access that would end the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("guard_pages.py")


@pytest.mark.parametrize(
    "dtype", ["float32", *(pytest.param(name, marks=pytest.mark.long) for name in ("float64", "bfloat16", "float16"))]
)
def test_operands(dtype: str) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), dtype], capture_output=True, text=True, check=False)
    assert done.returncode == 0, "\n".join([*done.stdout.splitlines()[-1:], done.stderr])


def test_the_pages_guard() -> None:
    """A read of one number more ends the process."""
    for index, at_end in ((64, True), (-1, False)):
        program = (
            f"import torch; from guard_pages import guarded; x = guarded(torch.ones(64), {at_end}); "
            f"import ctypes; ctypes.c_float.from_address(x.data_ptr() + 4 * {index}).value"
        )
        # AddressSanitizer would end the process by itself.
        environment = {**os.environ, "ASAN_OPTIONS": f"{os.environ.get('ASAN_OPTIONS', '')}:handle_segv=0"}
        done = subprocess.run([sys.executable, "-c", program], cwd=SCRIPT.parent, env=environment, check=False)
        assert done.returncode == -signal.SIGSEGV
