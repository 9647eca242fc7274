"""Measures torchad_ext against PyTorch. README.md beside this file says how, and has the results."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import derivative_cases
import fallback_cases
import gpu_cases
import laplacian_cases
import levels
import row_cases
import torch
from cases import CASES, STARTUPS, Case, Results, Startup
from marks import replace_between
from profiling import KINDS, seconds_by_kind
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from timing import alternate, quartiles
from training import COMPARED, Training, trainings

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
README = HERE / "README.md"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
ROW_HEADER = ("", "size", "the fastest in PyTorch", "PyTorch", "torchad_ext", "ratio", "middle half", "floor", "")
TRAINING_HEADER = ("", *ROW_HEADER[1:7], "losses", "floor", "")
PROFILE_HEADER = ("", "size", *(f"{kind}, {way}" for kind in KINDS for way in ("PyTorch", "torchad_ext")))
STARTUP_HEADER = ("", "time", "middle half", "limit", "")

LOSS_TOLERANCE = 1e-5
DISTURBED = 0.05  # the share of the processors that other programs may take

Json = dict[str, Any]
Ways = Mapping[str, Callable[[], Results]]


def main() -> None:
    """Measures, prints tables, and keeps the results of a complete or a named run."""
    parser = argparse.ArgumentParser(description="Measures torchad_ext against PyTorch.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--level", choices=levels.ENVIRONMENTS, help="instructions of x86-64 to use: v3 has AVX2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each row")
    parser.add_argument("--only", default="", metavar="PATTERN", help="the rows that this regular expression matches")
    parser.add_argument("--quick", action="store_true", help="a few samples a row: does everything run?")
    parser.add_argument("--check", action="store_true", help="fail if a floor that was kept is missed; keep nothing")
    parser.add_argument(
        "--name", help="keep the results as results/DEVICE-NAME; the name of a complete run is its dtype"
    )
    args = parser.parse_args()

    os.environ["TORCHAD_EXT_EAGER"] = "wait"  # its compiler would disturb what is measured
    torch.set_num_threads(args.threads)
    on_gpu = args.device == "cuda"
    level = "" if on_gpu else levels.start_again_at(args.level)
    with_floors = args.dtype == "float32" and (on_gpu or args.threads == 2)
    everything: list[Case | Training] = (
        [*gpu_cases.cases()]
        if on_gpu
        else [
            *CASES,
            *row_cases.CASES,
            *derivative_cases.CASES,
            *laplacian_cases.CASES,
            *fallback_cases.CASES,
            *trainings(),
        ]
    )
    cases = [case for case in everything if re.search(args.only, f"{case.name} {case.size}")]
    startups = [
        startup for startup in (gpu_cases.STARTUPS if on_gpu else STARTUPS) if re.search(args.only, startup.name)
    ]
    of_device = re.sub(r"\W+", "-", torch.cuda.get_device_name()).lower() if on_gpu else f"{args.device}-{level}"
    complete = not (args.quick or args.only)
    name = None if args.check else args.name or (args.dtype if complete else None)
    failed: list[str] = []
    console = Console()
    kept = kept_rows(RESULTS.glob(f"{of_device}-{args.dtype}*.json"))  # of complete runs
    if args.check and not kept:
        sys.exit(f"no results of {args.dtype} are kept for {of_device}: run the benchmarks without --check first")
    record: Json = {"machine": machine(args.device), "rows": [], "training": [], "startup": []}
    # The bar is drawn between rows: a thread that draws would disturb what is measured.
    with Progress(console=Console(stderr=True), auto_refresh=False) as progress:
        task = progress.add_task("", total=len(cases) + len(startups))
        for case in cases:
            progress.update(task, description=f"{case.name}, {case.size}", refresh=True)
            seconds, least, attempts = (0.05, 3, 1) if args.quick else (args.seconds, case.least, case.attempts)
            attempts = 1 if on_gpu else attempts  # other programs take processors, not the GPU
            progress.advance(task)
            try:
                ways = prepared(case, args.device, args.dtype)
                time_ways = functools.partial(measure, case, ways, args.device, seconds, least)
                floor = case.floor if with_floors else None
                measured = undisturbed(time_ways, attempts)
                may_fall = args.check and floor is not None and f"{case.name} {case.size}" in kept
                for _ in range(2 if may_fall else 0):  # what falls by chance does not fall three times
                    if measured["ratio"]["median"] < floor:
                        measured = undisturbed(time_ways, attempts)
                if isinstance(case, Training):
                    measured |= of_training(case, ways, args.device)
            except Exception as error:  # of whatever PyTorch raises; other rows go on
                failed.append(f"{case.name}, {case.size}: {error}")
                record["failed"] = failed
            else:
                rows = record["training" if isinstance(case, Training) else "rows"]
                rows.append(judged(measured, "ratio", floor, 1))
            if name and on_gpu:  # which may be lent, and taken away without warning
                save(record, f"{of_device}-{name}")
        for startup in startups:
            progress.update(task, description=startup.name, refresh=True)
            try:
                measured = start(startup, args.device, 2 if args.quick or on_gpu else 5)
            except subprocess.CalledProcessError as error:
                failed.append(f"{startup.name}: {error.stderr}")
                record["failed"] = failed
            else:
                record["startup"].append(judged(measured, "seconds", startup.limit if with_floors else None, -1))
            progress.advance(task)

    for header, lines in tables(record):
        table = Table(*header)
        for line in lines:
            table.add_row(*line, style="red" if line[-1] == "missed" else None)
        console.print(table)
    verdicts = [row["kept"] for part in ("rows", "training", "startup") for row in record[part] if "kept" in row]
    console.print(f"{sum(verdicts)} of {len(verdicts)} floors kept")
    if args.check:
        fallen = [name for name, row in by_name(record).items() if not row.get("kept", True) and name in kept]
        fallen = [name for name in fallen if not (complete and is_kept_alone(name))]
        sys.exit(
            "\n".join(["failed, or fell below a floor that was kept:", *failed, *fallen]) if failed + fallen else 0
        )
    if name:
        if complete and not on_gpu:
            keep_for_checks(f"{of_device}-{name}")
        save(record, f"{of_device}-{name}")
    sys.exit("\n".join(["failed:", *failed]) if failed else 0)


def by_name(record: Json) -> dict[str, Json]:
    """The rows of a record."""
    rows = (*record["rows"], *record.get("training", ()), *record["startup"])
    return {f"{row['name']} {row.get('size', '')}".strip(): row for row in rows}


def is_kept_alone(name: str) -> bool:
    """Does a row keep its floor in a process of its own, in whose memory no other row left anything?"""
    command = [sys.executable, *sys.argv, "--only", f"^{re.escape(name)}$"]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


def kept_rows(committed: Iterable[Path]) -> set[str]:
    """The rows that keep their floor or limit in all committed results that have them."""
    rows = [item for path in committed for item in by_name(json.loads(path.read_text())).items() if "kept" in item[1]]
    return {name for name, row in rows if row["kept"]} - {name for name, row in rows if not row["kept"]}


def prepared(case: Case | Training, device: str, dtype: str) -> Ways:
    """The calls of each way of a row, on the same inputs; made once, so that everything is compiled, and compared."""
    torch.manual_seed(0)
    ways = case.calls(functools.partial(torch.randn, device=device, dtype=getattr(torch, dtype)))
    expected = flat(ways["torchad_ext"]())
    for name in case.native:
        for y, other in zip(expected, flat(ways[name]()), strict=True):
            tolerance = torch.finfo(y.dtype).eps ** 0.5  # for a sum of many, and two orders of derivatives
            if case.equal and not (y - other).abs().max() <= tolerance * y.abs().max():
                raise RuntimeError(f"{case.name}, {case.size}: torchad_ext and {name} differ")
    return ways


def flat(results: Results) -> Sequence[torch.Tensor]:
    return [results.detach()] if isinstance(results, torch.Tensor) else [y.detach() for y in results]


def measure(case: Case | Training, ways: Ways, device: str, seconds: float, least: int) -> Json:
    """A row of the results: the times of our op and of every native way, and the ratio to the fastest of these."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    samples = alternate(ways, seconds, synchronize, least, lead=3)
    times = {name: quartiles(sample) for name, sample in samples.items()}
    fastest = min(case.native, key=lambda name: times[name].median)
    pairs = zip(samples[fastest], samples["torchad_ext"], strict=True)
    return {
        "name": case.name,
        "size": case.size,
        "native": fastest,
        "ratio": quartiles([native / ours for native, ours in pairs])._asdict(),
        "seconds": {name: time._asdict() for name, time in times.items()},
        "samples": len(samples[fastest]),
    }


def of_training(case: Training, ways: Ways, device: str) -> Json:
    """What a row says of a training besides: the largest relative difference of the losses, and a profile."""
    first, second = (flat(step())[0] for step in ways.values())
    difference = float(((second - first) / first).abs().max())
    if not difference <= LOSS_TOLERANCE:
        raise RuntimeError(f"{case.name}, {case.size}: in {COMPARED} steps the losses differ by {difference:.1e}")
    profile = {name: seconds_by_kind(step, device) for name, step in ways.items()}
    return {"losses_differ_by": difference, "profile": profile}


def start(startup: Startup, device: str, count: int) -> Json:
    """A row of the start-up times: a fresh process each time, after one that is not counted."""
    samples = []
    for _ in range(1 + count):
        with tempfile.TemporaryDirectory() as empty:
            usual = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
            env = {
                **usual,
                **({} if startup.cached else {"TORCHAD_EXT_CACHE_DIR": empty, "TORCHAD_EXT_EAGER": ""}),
            }
            command = [sys.executable, "-c", startup.program, device]
            samples.append(float(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout))
    return {"name": startup.name, "seconds": quartiles(samples[1:])._asdict()}


def judged(row: Json, what: str, bound: float | None, sign: int) -> Json:
    """The row with its bound, if it has one, and whether the median keeps to it: above (sign 1) or below (-1)."""
    if bound is None:
        return row
    return {**row, "bound": bound, "kept": sign * row[what]["median"] >= sign * bound}


def undisturbed(measurement: Callable[[], Json], attempts: int) -> Json:
    """The measurement, repeated after a pause while other programs disturb it; the quietest one."""
    rows: list[Json] = []
    while True:
        start, before = time.perf_counter(), seconds_of_other_programs()
        row = measurement()
        processors = (time.perf_counter() - start) * (os.cpu_count() or 1)
        rows.append({**row, "other_programs": (seconds_of_other_programs() - before) / processors})
        quietest = min(rows, key=lambda row: row["other_programs"])
        if quietest["other_programs"] < DISTURBED or len(rows) == attempts:
            return quietest
        time.sleep(10)


def seconds_of_other_programs() -> float:
    """The processor time that everything but this process has used; 0 where it is unknown."""
    statistics = Path("/proc/stat")
    if not statistics.exists():
        return 0.0
    user, nice, system, _idle, _waiting, *rest = map(int, statistics.read_text().split("\n")[0].split()[1:9])
    own = os.times()
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK") - own.user - own.system


def machine(device: str) -> dict[str, str]:
    """What the results depend on."""

    def output(*command: str) -> str:
        with contextlib.suppress(OSError):
            return subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
        return ""

    cpuinfo, pages = Path("/proc/cpuinfo"), Path("/sys/kernel/mm/transparent_hugepage/enabled")
    names = re.findall(r"^model name\s*:\s*(.+)", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else []
    facts = {
        "CPU": f"{names[0] if names else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "huge pages": "".join(re.findall(r"\[(\w+)\]", pages.read_text())) if pages.exists() else "",
        "GPU": torch.cuda.get_device_name() if device == "cuda" else "",
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        if device == "cuda"
        else "",
        "CUDA": (torch.version.cuda or "") if device == "cuda" else "",
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "compiler": output(os.environ.get("CXX", "c++"), "--version").split("\n")[0],
        "commit": output("git", "describe", "--always", "--dirty"),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }
    return {key: fact for key, fact in facts.items() if fact}


def tables(record: Json) -> Iterator[tuple[Sequence[str], list[list[str]]]]:
    """The tables of a record as text: header and lines."""

    def span(values: Json, text: Callable[[float], str]) -> str:
        return f"{text(values['q1'])} – {text(values['q3'])}"

    def bound(row: Json, text: Callable[[float], str]) -> list[str]:
        verdict = ["kept" if row["kept"] else "missed"] if "bound" in row else []
        verdict += ["disturbed"] if row.get("other_programs", 0) >= DISTURBED else []
        return [text(row["bound"]) if "bound" in row else "", ", ".join(verdict)]

    def ratio(row: Json) -> list[str]:
        times = [duration(row["seconds"][way]["median"]) for way in (row["native"], "torchad_ext")]
        quotient = [f"{row['ratio']['median']:.2f}", span(row["ratio"], "{:.2f}".format)]
        return [row["name"], row["size"], row["native"], *times, *quotient]

    rows = [[*ratio(row), *bound(row, "{:.2g}".format)] for row in record["rows"]]
    trainings = [
        [*ratio(row), f"{row['losses_differ_by']:.0e}", *bound(row, "{:.2g}".format)] for row in record["training"]
    ]
    profiles = [
        [row["name"], row["size"]] + [duration(way[kind]) for kind in KINDS for way in row["profile"].values()]
        for row in record["training"]
    ]
    startups = [
        [row["name"], duration(row["seconds"]["median"]), span(row["seconds"], duration), *bound(row, duration)]
        for row in record["startup"]
    ]
    headers = (ROW_HEADER, TRAINING_HEADER, PROFILE_HEADER, STARTUP_HEADER)
    blocks = (rows, trainings, profiles, startups)
    yield from ((header, lines) for header, lines in zip(headers, blocks, strict=True) if lines)


def duration(seconds: float) -> str:
    unit, scale = ("s", 1.0) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)
    return f"{seconds * scale:#.3g}".rstrip(".") + f" {unit}"


def markdown(record: Json) -> str:
    """The record as Markdown."""
    blocks = ["; ".join(f"{key} {value}" for key, value in record["machine"].items())]
    blocks += [f"Failed: {failure}" for failure in record.get("failed", ())]
    for header, lines in tables(record):
        rule = ["---" if i == 0 else "---:" for i in range(len(header))]
        blocks.append("\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines)))
    return "\n\n".join(blocks) + "\n"


def keep_for_checks(name: str) -> None:
    """Keeps the results of the run before: where memory decides, a row may keep its floor in one of two runs."""
    if (before := RESULTS / f"{name}.json").exists():
        before.replace(RESULTS / f"{name}-before.json")


def save(record: Json, name: str) -> None:
    """Writes results/NAME.json and .md, and the tables of everything in results/ into the README."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    (RESULTS / f"{name}.md").write_text(markdown(record))
    write_tables()


def write_tables() -> None:
    """Puts the tables of everything in results/ into the README."""
    parts = (f"### {path.stem}\n\n{path.read_text()}\n" for path in sorted(RESULTS.glob("*.md")))
    replace_between(README, BEGIN, END, "\n" + "".join(parts))


if __name__ == "__main__":
    main()
