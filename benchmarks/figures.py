"""Writes what the README shows of kept results: the picture of a training step, and a table of ratios.

``make figures`` runs it; it measures nothing.
"""

from __future__ import annotations

import json
from typing import Any

import matplotlib
from marks import replace_between
from matplotlib.figure import Figure
from run import HERE, RESULTS, duration

ROOT = HERE.parent
PICTURE = ROOT / "docs" / "images" / "training-step.svg"
BEGIN, END = "<!-- make figures -->", "<!-- end of figures -->"
NETWORKS = ("sin, d = 2", "tanh, d = 2", "silu, d = 2")
WAYS = {
    "PyTorch, nested autograd": lambda way: way == "PyTorch, nested autograd",
    "torch.compile, fastest of two ways": lambda way: way.startswith("torch.compile"),
    "JAX, fastest of four ways": lambda way: way.startswith("jax.jit"),
    "torchad_ext, ad.laplacian": lambda way: way == "ad.laplacian",
}
COLOURS = ("#8a8f98", "#56B4E9", "#E69F00", "#0072B2")
RATIOS = "cpu-v4-float32"
SHOWN = {  # rows of that file: name and size, and what the README calls them
    ("sin: f + b + bb", "1e6"): "`ad.sin`: value, gradient and double backward of a million elements",
    ("exp: f + b + bb", "1e6"): "`ad.exp`: the same",
    ("quadratic_form, an A each: f + b + bb", "1e4 × 16"): "`ad.quadratic_form`: the same, 10,000 x of length 16",
    ("f(x, a, b): second order", "1e6"): "`ad.pointwise` of exp(−ax²) sin(bx + cos x) + tanh(ax): the same",
    ("f(x, a, b): second order, against compiled vjps", "1e6"): "the same, against `torch.compile` of each vjp",
    ("sin: f", "10"): "`ad.sin` of ten elements, no derivative",
    ("quadratic_form, one x: f + b", "1000"): "`ad.quadratic_form` of one x of length 1000, with both gradients",
    ("hessian of Σ sin(xᵢ) exp(xᵢ₊₁), sparse", "4096"): "`ad.hessian(..., sparsity='auto')`, tridiagonal, n = 4096",
    ("laplacian: training step", "4096 × 10"): "`ad.laplacian`: a training step in ten dimensions",
}  # fmt: skip
PROSE = ("plain PyTorch", "compiled vjps", "nested autograd")  # no code


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def best(rows: list[Any], network: str) -> dict[str, Any]:
    """The seconds of the fastest way of each kind."""
    found = {}
    for name, is_one in WAYS.items():
        ways = [row["seconds"] for row in rows if row["network"] == network and is_one(row["way"])]
        found[name] = min(ways, key=lambda seconds: seconds["median"])
    return found


def facts(machine: dict[str, str]) -> str:
    """The machine of a result in a line."""
    cores = f"{machine['cores']} cores"
    return f"{machine['CPU']}, {cores}; torch {machine['torch']}; {machine['date']}, commit {machine['commit']}"


def draw(record: Any) -> Figure:
    """Bars for each way and network, with the quartiles."""
    figure = Figure(figsize=(7.2, 3.8), layout="constrained", facecolor="white")
    ax = figure.subplots()
    height = 0.8 / len(WAYS)
    for i, network in enumerate(NETWORKS):
        for k, (name, seconds) in enumerate(best(record["rows"], network).items()):
            q1, median, q3 = (1e3 * seconds[key] for key in ("q1", "median", "q3"))
            at = i + (k - (len(WAYS) - 1) / 2) * height
            error = [[median - q1], [q3 - median]]
            label = name if i == 0 else None
            ax.barh(at, median, 0.9 * height, xerr=error, color=COLOURS[k], ecolor="0.3", label=label)
            ax.text(q3 + 8, at, f"{median:.0f}", va="center", fontsize=9, weight="bold" if k == 3 else "normal")
    ax.set_yticks(range(len(NETWORKS)), [network.split(",")[0] for network in NETWORKS])
    ax.invert_yaxis()
    ax.set_xlabel("milliseconds a training step (median, quartiles)")
    ax.set_title("Train a network on Δu = −f: four layers of 128, 16,384 points in the plane", fontsize=10, loc="left")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.margins(x=0.1)
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    return figure


def _ratio(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio >= 1 else f"{ratio:.2f}"


def ratios() -> str:
    """The table of the README: how many times faster than the fastest native way; and the times of first calls."""
    lines = ["| | against | times faster |", "| --- | --- | ---: |"]
    record = read(RATIOS)
    rows = {(row["name"], row["size"]): row for row in record["rows"]}
    for key, text in SHOWN.items():
        row = rows[key]
        native = row["native"]
        against = native if native in PROSE else f"`{native}`"
        lines.append(f"| {text} | {against} | {_ratio(row['ratio']['median'])} |")
    startup = {row["name"]: duration(row["seconds"]["median"]) for row in record["startup"]}
    first, later = startup["first call, nothing compiled yet"], startup["first call, kernels in the cache"]
    new, imported = startup["first call of a newly declared op"], startup["import torchad_ext, after import torch"]
    times = (
        f"`import torchad_ext` takes {imported}, the first call ever {first}, that of later processes {later}, the "
        f"first call of a newly declared op {new}. All of it: {facts(record['machine'])}."
    )
    return "\n".join([*lines, "", times, ""])


def main() -> None:
    """Writes the picture and the table."""
    record = read("rivals")
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "torchad_ext"}):
        PICTURE.parent.mkdir(exist_ok=True)
        draw(record).savefig(PICTURE, metadata={"Date": None, "Description": facts(record["machine"])})
    replace_between(ROOT / "README.md", BEGIN, END, ratios())


if __name__ == "__main__":
    main()
