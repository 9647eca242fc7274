"""The first minute of a new user: a small physics-informed network from `pip install` on, with an empty cache.

    python benchmarks/first_minute.py [--seconds 60]

Installs the package into an empty folder and trains the network in fresh processes: with torch.sin, with the op of
torchad_ext, and with the op once more, when the cache has what the process before it left.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
STEPS = 20  # of the first impression

TRAINING = """
import json, sys, time
start = time.perf_counter()
import torch
if sys.argv[1] == "torch.sin":
    sin = torch.sin
else:
    import torchad_ext
    sin = torchad_ext.sin
imported = time.perf_counter()
x = torch.rand(512, 2, requires_grad=True)
sin(x).sum().item()
called = time.perf_counter()

class Sine(torch.nn.Module):
    def forward(self, x):
        return sin(x)

torch.manual_seed(0)
linear = torch.nn.Linear
network = torch.nn.Sequential(linear(2, 64), Sine(), linear(64, 64), Sine(), linear(64, 64), Sine(), linear(64, 1))
optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

def step():
    optimizer.zero_grad()
    u = network(x)
    slope = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
    laplacian = sum(torch.autograd.grad(slope[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(2))
    ((laplacian - 1) ** 2).mean().backward(inputs=list(network.parameters()))
    optimizer.step()

steps, native = [], None  # when each ended, how long it took
while len(steps) < 40 or time.perf_counter() - start < float(sys.argv[2]):
    begin = time.perf_counter()
    step()
    end = time.perf_counter()
    steps.append((end - start, end - begin))
    if native is None and sin(x).grad_fn.name() == "SinBackward":
        native = end - start
print(json.dumps({"import": imported - start, "call": called - imported, "steps": steps, "in C++": native}))
"""


def train(way: str, seconds: float, package: Path, cache: Path) -> dict[str, float | None]:
    """What a process sees that trains for so long: seconds, and milliseconds of steps."""
    settings = {k: v for k, v in os.environ.items() if not k.startswith("TORCHAD_EXT_")}
    settings |= {"PYTHONPATH": str(package), "TORCHAD_EXT_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", TRAINING, way, str(seconds)]
    ran = subprocess.run(command, cwd=package, env=settings, stdout=subprocess.PIPE, check=True)
    seen = json.loads(ran.stdout)
    steps, change = seen["steps"], seen["in C++"]
    warm = steps[STEPS:]
    before = [length for end, length in warm if change is None or end <= change]
    after = [length for end, length in warm if change is not None and end > change]
    return {
        "import, s": seen["import"],
        "first call, s": seen["call"],
        f"end of step {STEPS}, s": steps[STEPS - 1][0],
        "calls in C++ from, s": None if way == "torch.sin" else change,
        "step before, ms": 1e3 * statistics.median(before) if before else None,
        "step after, ms": 1e3 * statistics.median(after) if after and way != "torch.sin" else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each process trains (default: 60)")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        package, cache, source = (Path(folder, name) for name in ("package", "cache", "source"))
        shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "dist", "*.egg-info"))
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--target", str(package)]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True)
        print(f"pip install: {time.perf_counter() - start:.1f} s")
        columns = {"torch.sin": train("torch.sin", seconds, package, cache)}
        start = time.time()
        columns["torchad_ext"] = train("ours", seconds, package, cache)
        (lock,) = cache.glob("fast_path-*/lock")
        with FileLock(lock):
            last = max(library.stat().st_mtime for library in cache.glob("*/library.so"))
        print(f"everything compiled {last - start:.1f} s after the first process of torchad_ext began")
        columns["torchad_ext, next"] = train("ours", seconds, package, cache)
    rows = list(next(iter(columns.values())))
    print(f"| {'':24} | " + " | ".join(f"{name:>17}" for name in columns) + " |")
    print(f"| {'-' * 24} | " + " | ".join("-" * 16 + ":" for _ in columns) + " |")
    for row in rows:
        values = (columns[name][row] for name in columns)
        print(f"| {row:24} | " + " | ".join(f"{'' if v is None else f'{v:.2f}':>17}" for v in values) + " |")


if __name__ == "__main__":
    main()
