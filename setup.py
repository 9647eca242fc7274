"""Ships the kernel sources in the wheel and, with ``TORCHAD_EXT_PREBUILD=1``, the compiled kernels too.

A plain build needs neither a compiler nor torch. A prebuilding one needs both: ``TORCHAD_EXT_PREBUILD=1 pip install .``
compiles against the torch that is installed beside pip; ``TORCHAD_EXT_PREBUILD=cpu`` leaves CUDA out.
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PREBUILD = os.environ.get("TORCHAD_EXT_PREBUILD", "")


class KernelDistribution(Distribution):
    """Is bound to a platform by what is compiled into it."""

    def has_ext_modules(self) -> bool:
        return bool(PREBUILD)


class BuildKernels(build_py):
    """Adds ``csrc`` and ``prebuilt`` to the package in the build folder, never in the source tree."""

    def run(self) -> None:
        package = Path(self.build_lib, "torchad_ext")
        if not self.editable_mode:
            # A build folder outlives its build: binaries of an earlier one must not slip into this wheel.
            shutil.rmtree(package, ignore_errors=True)
        super().run()
        if self.editable_mode:
            return
        shutil.copytree(ROOT / "csrc", package / "csrc")
        if PREBUILD:
            sys.path.insert(0, str(ROOT))
            # Isolated builds do not see what is installed.
            sys.path += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
            try:
                from torchad_ext import _wheel
            except ModuleNotFoundError as error:
                raise SystemExit(
                    f"TORCHAD_EXT_PREBUILD={PREBUILD} compiles against an installed PyTorch, but {error.name} is not "
                    f"installed for {sys.executable}; pip install torch numpy ninja filelock, and build again with "
                    "pip install --no-build-isolation ."
                ) from None
            from torchad_ext._native import prebuilt

            for library in prebuilt.make(package / "prebuilt", PREBUILD, _wheel.prebuilt_kernels):
                print(f"prebuilt {library} ({library.stat().st_size >> 10} KiB)", file=sys.stderr)


class KernelWheel(bdist_wheel):
    """The binaries serve every Python, so the tag names the platform alone."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


setup(distclass=KernelDistribution, cmdclass={"build_py": BuildKernels, "bdist_wheel": KernelWheel})
