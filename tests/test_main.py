"""The command line: what each command prints, its exit code, and what it says of a mistake."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builds import with_operators
from matplotlib import image
from selection import few

import torchad_ext as ad
from torchad_ext import __main__, _bench, _formula, _named_ops, doctor, ops, rows
from torchad_ext._native import cache, prebuilt, toolchain
from torchad_ext.rows import ROW_CATALOGUE

Run = Callable[..., "tuple[int, str, str]"]
OWN = """
import torch

def snake(x, a=1.0):
    return x + torch.sin(a * x) ** 2 / a

def cube(x):
    return x * x * x

number = 2.0

class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return {factor} * x**2 * grad
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command, and gives its exit code and what it wrote to stdout and to stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            __main__.main(list(arguments))
        code = exit.value.code
        return int(code or 0), *capsys.readouterr()

    return call


def process(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torchad_ext", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **settings})


def own_ops(folder: Path, factor: int = 3) -> Path:
    file = folder / "own.py"
    file.write_text(OWN.format(factor=factor))
    return file


class TestFormulas:
    @pytest.mark.parametrize("text", ["x", "3", "sin(x)*exp(-x**2)", "  maximum(x, 0) / (1 + x**2)  ", "2**x - pi*e"])
    def test_a_formula_is_the_function_that_python_would_compute(self, text: str) -> None:
        x = torch.linspace(-2, 2, 9, dtype=torch.float64)
        names = {"sin": torch.sin, "exp": torch.exp, "pi": torch.pi, "e": torch.e, "x": x}
        names["maximum"] = lambda a, b: a.clamp(min=b)
        expected = torch.as_tensor(eval(text.strip(), names), dtype=torch.float64).expand_as(x)
        torch.testing.assert_close(_formula.parse(text)(x), expected)
        torch.testing.assert_close(ad.pointwise(_formula.parse(text))(x), expected)

    @pytest.mark.parametrize("name", _formula.FUNCTIONS)
    def test_every_function_may_be_declared(self, name: str) -> None:
        x = torch.tensor([0.3, 0.7], dtype=torch.float64)
        for arguments in ("x", "x * 2") if _formula._arity(name)[0] == 1 else ("x, 2", "2, x", "x, x"):
            f = _formula.parse(f"{name}({arguments})")
            assert f(x).shape == x.shape and ad.pointwise(f).operands() == (1, 1)

    @pytest.mark.parametrize(
        ("text", "column", "message"),
        [
            ("", 0, "got no formula"),
            ("sinn(x)", 0, "did you mean sin?"),
            ("1 + softpluss(x)", 4, "did you mean softplus?"),
            ("sin", 0, "sin is a function; write sin(x)"),
            ("x + y", 4, "y is not known"),
            ("é + q", 0, "é is not known"),
            ("sin(x) + é", 9, "é is not known"),
            ("ｓｉｎ(x) + q", 9, "q is not known"),  # Python takes wide letters for the usual ones
            ("2x", 0, "write 2*x"),
            ("(x + 1) ^ 2", 8, "write ** for a power"),
            ("x(1 + x)", 0, "write * for a product"),
            ("sin(x", 3, "never closed"),
            ("atan2(x)", 0, "atan2 takes 2 arguments, got 1"),
            ("sin(x, x)", 0, "sin takes 1 argument, got 2"),
            ("sin(*x)", 4, "by their place"),
            ("snake(x, a=2)", 9, "by their place"),
            ("x < 1", 0, "no comparisons"),
            ("1 / 0", 0, "no finite number"),
            ("x + log(-1)", 4, "no finite number"),
        ],
    )
    def test_a_mistake_is_pointed_at(self, text: str, column: int, message: str) -> None:
        with pytest.raises(_formula.FormulaError) as raised:
            _formula.parse(text)
        said, shown, caret = str(raised.value).split("\n")
        assert message in said and shown == f"  {text}" and caret.index("^") == 2 + column

    @pytest.mark.parametrize(
        "text",
        [
            "__import__('os').system('touch hacked')",
            "x.__class__.__mro__[1].__subclasses__()",
            "(lambda: open('hacked', 'w'))()",
            "[open('hacked', 'w') for i in x]",
            "exec('1')",
            "eval(x)",
            "sin.__globals__",
            "f'{open(x)}'",
            "'a' * 10**9",
            "(y := x)",
            "x if x else 1",
            "x[0]",
            "True",
            "None",
            "...",
            "1j",
            "await x",
            "x; x",
            "x\nx",
            "\0",
            "9**9**9**9**9",
            "10**400",
            "1" * 999,
            "1" * 100_000,
            "(" * 900,
            "(" * 300 + "x" + ")" * 300,
            "-" * 900 + "x",
            "sin(" * 150 + "x" + ")" * 150,
            "x" + "**x" * 200,
        ],
        ids=lambda text: repr(text[:20]),
    )
    def test_a_hostile_formula_is_refused_and_never_run(
        self, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(_formula.FormulaError):
            _formula.parse(text)
        assert not list(tmp_path.iterdir())

    def test_values_are_those_of_the_derivatives(self, run: Run) -> None:
        code, out, _ = run("plot", "sin(2 * x)", "--low", "-1", "--high", "1", "--points", "5", "--json")
        printed = json.loads(out)
        x = torch.tensor(printed["x"], dtype=torch.float64)
        f, slope, curvature = torch.tensor(printed["derivatives"], dtype=torch.float64)
        assert code == 0
        torch.testing.assert_close(f, torch.sin(2 * x))
        torch.testing.assert_close(slope, 2 * torch.cos(2 * x))
        torch.testing.assert_close(curvature, -4 * torch.sin(2 * x))

    def test_a_formula_may_begin_with_a_minus(self, run: Run) -> None:
        _, out, _ = run("plot", "-x**2", "--points", "2", "--orders", "1", "--json")
        assert json.loads(out)["derivatives"] == [[-9.0, -9.0], [6.0, -6.0]]

    def test_a_pole_is_null(self, run: Run) -> None:
        _, out, _ = run("plot", "1 / x", "--points", "3", "--orders", "0", "--json")
        assert json.loads(out)["derivatives"][0][1] is None

    @pytest.mark.parametrize("declaration", ["", "@torchad_ext.pointwise\n"], ids=["plain PyTorch", "an op"])
    def test_a_function_of_a_file(self, run: Run, tmp_path: Path, declaration: str) -> None:
        (tmp_path / "mine.py").write_text(f"import torchad_ext\n{declaration}def cube(x):\n    return x**3\n")
        code, out, _ = run("plot", f"{tmp_path / 'mine.py'}:cube", "--points", "3", "--orders", "1", "--json")
        assert code == 0
        assert json.loads(out)["derivatives"] == [[-27, 0, 27], [27, 0, 27]]

    @pytest.mark.parametrize(
        ("declaration", "message"),
        [
            ("def f(x, y):\n    return x * y\n", "takes x, y; plot draws functions of one number"),
            ("@ad.rowwise\ndef f(x):\n    return x - x.mean(-1, keepdim=True)\n", "is no function of elements"),
            ("def f(x):\n    return x, x**2\n", "has 2 results"),
            (
                "def f(*, x):\n    return x\n",
                "takes x by name alone; plot draws functions of one number: let it go unnamed",
            ),
        ],
    )
    def test_a_function_that_cannot_be_drawn(self, run: Run, declaration: str, message: str, tmp_path: Path) -> None:
        _named_ops._module.cache_clear()
        (tmp_path / "mine.py").write_text(f"import torchad_ext as ad\n{declaration}")
        code, out, err = run("plot", f"{tmp_path / 'mine.py'}:f", "--output", str(tmp_path / "f.png"))
        assert code == 2 and message in err and "Traceback" not in err and not out

    def test_a_picture_is_saved(self, run: Run, tmp_path: Path) -> None:
        file = tmp_path / "f.png"
        code, out, _ = run("plot", "sin(x) * exp(-x**2)", "--output", str(file))
        assert code == 0 and str(file) in out and image.imread(file).std() > 0.05
        _, out, _ = run("plot", "x", "--output", str(tmp_path / "g"))
        assert out == f"saved {tmp_path / 'g.png'}\n" and (tmp_path / "g.png").exists()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["sin(y)"], "     ^"),
            (["x", "--low", "2", "--high", "1"], "--low must be less than --high"),
            (["x", "--low", "nan"], "the interval goes from nan to 3; --low must be less than --high"),
            (["x", "--low", "-inf"], "the interval goes from -inf to 3; its length must be finite"),
            (["x", "--high", "inf", "--json"], "the interval goes from -3 to inf; its length must be finite"),
            (["x", "--output", "."], "--output . is a folder; give the name of a picture in it"),
            (["x", "--output", "picture.nothing"], "--output picture.nothing: Format 'nothing' is not supported"),
            (["x", "--output", "no_folder/picture.png"], "--output no_folder/picture.png: No such file or directory"),
            (["x", "--lows", "2"], "unexpected extra argument"),
            (["x", "--orders", "9"], "'--orders': 9 is not in the range"),
        ],
    )
    def test_a_mistake_is_an_exit_with_2(self, run: Run, arguments: list[str], message: str) -> None:
        code, out, err = run("plot", *arguments)
        assert code == 2 and message in err and "Traceback" not in err and not out


class TestVerify:
    def test_an_op_by_name(self, run: Run) -> None:
        code, out, _ = run("verify", "exp", "--device", "cpu")
        assert code == 0 and "exp against its definition" in out
        assert set(_named_ops.OPS) >= {"sin", "exp", "quadratic_form"}

    def test_a_function_of_a_file_is_declared(self, run: Run, tmp_path: Path) -> None:
        code, out, _ = run("verify", f"{own_ops(tmp_path)}:snake", "--device", "cpu", "--json")
        checks = json.loads(out)
        assert code == 0 and {check["op"] for check in checks} == {"snake"} and all(c["passed"] for c in checks)

    @pytest.mark.parametrize(("factor", "status"), [(3, 0), (4, 1)])
    def test_a_function_by_hand_is_held_against_another(
        self, run: Run, tmp_path: Path, factor: int, status: int
    ) -> None:
        _named_ops._module.cache_clear()
        file = own_ops(tmp_path, factor)
        code, out, err = run("verify", f"{file}:Cube", "--against", f"{file}:cube", "--device", "cpu", "--json")
        assert code == status and all(check["passed"] for check in json.loads(out)) is (status == 0)
        assert ("gradient differs" in err or "differs" in err) is (status == 1)

    def test_every_op_that_is_wrong_is_named(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        verify, x = ad.verify, torch.linspace(-1, 1, 5, dtype=torch.float64)

        def wrong(x: torch.Tensor) -> torch.Tensor:
            return x.sin() * 1.01

        monkeypatch.setattr(ad, "verify", lambda op, devices, quiet: verify(wrong, torch.sin, inputs=(x,)))
        code, _, err = run("verify", "sin", "exp", "--device", "cpu")
        assert code == 1 and err.count("torchad_ext.verify: wrong, float64, cpu") == 2

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["tanhh"], "'tanhh' is no op; did you mean tanh?"),
            (["nothing.py:f"], "there is no file nothing.py; give FILE:FUNCTION"),
            (["{own}:snakes"], "has no 'snakes'; did you mean snake?"),
            (["{own}:zzz"], "has no 'zzz'; it has snake, "),
            (["{own}:Cube"], "own.py:Cube --against FILE:FUNCTION"),
            (["{own}:number"], "is of type float; this takes a function of tensors"),
            (["{own}:cube", "sin", "--against", "{own}:cube"], "--against takes one autograd.Function"),
            (["{own}:Cube", "--against", "{own}:cube", "--interval", "0", "inf"], "its length must be finite"),
        ],
    )
    def test_a_mistake_is_an_exit_with_2(self, run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
        own = own_ops(tmp_path)
        code, _, err = run("verify", *(argument.format(own=own) for argument in arguments))
        assert code == 2 and message in err and "Traceback" not in err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["verify", "{own}:fails"], "own.py:fails (line 3) raises ValueError: no such thing"),
            (["bench", "{own}:fails"], "own.py:fails (line 3) raises ValueError: no such thing"),
            (["plot", "{own}:fails"], "own.py:fails (line 3) raises ValueError: no such thing"),
            (["verify", "{own}:nothing"], "a pointwise function takes at least a tensor"),
            (["verify", "{own}:two", "--against", "sin"], "missing a required argument: 'y'"),
            (["verify", "{own}:tanh", "--against", "sin"], "differs"),
        ],
    )
    def test_what_a_function_raises_is_said(self, run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
        _named_ops._module.cache_clear()
        own = tmp_path / "own.py"
        own.write_text(
            "import torch\ndef fails(x):\n    raise ValueError('no such thing')\ndef nothing():\n    return 1\n"
            "@__import__('torchad_ext').pointwise\ndef two(x, y):\n    return x * y\ntanh = torch.nn.Tanh()\n"
        )
        code, _, err = run(*(argument.format(own=own) for argument in arguments), "--json")
        assert code == 1 and message in err and "Traceback" not in err

    @pytest.mark.parametrize("module", [False, True], ids=["an op", "a module"])
    def test_a_module_and_an_op_may_be_held_against_another(self, run: Run, tmp_path: Path, module: bool) -> None:
        _named_ops._module.cache_clear()
        (tmp_path / "own.py").write_text("import torch\ntanh = torch.nn.Tanh()\n")
        found = f"{tmp_path / 'own.py'}:tanh" if module else "tanh"
        code, out, _ = run("verify", found, "--against", f"{tmp_path / 'own.py'}:tanh", "--json")
        assert code == 0 and all(check["passed"] for check in json.loads(out))

    def test_a_bug_of_an_op_of_ours_has_a_traceback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*args: Any, **kwargs: Any) -> None:
            raise ValueError("a bug")

        monkeypatch.setattr(ad, "verify", broken)
        with pytest.raises(ValueError, match="a bug"):
            __main__.main(["verify", "sin", "--device", "cpu"])

    @pytest.mark.parametrize("relative", [False, True])
    def test_what_a_file_raises_is_said_with_its_line(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool
    ) -> None:
        monkeypatch.chdir(tmp_path)
        file = Path("broken.py") if relative else tmp_path / "broken.py"
        file.write_text("a = 1\nb = a / 0\n")
        code, _, err = run("verify", f"{file}:f")
        assert code == 1 and "(line 2) raises ZeroDivisionError: division by zero" in err

    def test_a_function_that_is_not_elementwise_is_refused_without_a_traceback(self, run: Run, tmp_path: Path) -> None:
        file = tmp_path / "sums.py"
        file.write_text("def f(x):\n    return x.sum()\n")
        code, _, err = run("verify", f"{file}:f")
        assert code == 1 and "sums.py:2" in err and "Traceback" not in err


class TestDoctor:
    @pytest.fixture(autouse=True)
    def _small_cache(self, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
        """Whoever runs the tests may have one of thousands of entries, at all of which it looks."""
        monkeypatch.setenv("TORCHAD_EXT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))

    def findings(self, subject: str) -> list[doctor.Finding]:
        return [finding for finding in doctor.diagnose() if finding.subject == subject]

    def test_a_pytorch_that_lacks_private_names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "missing", ["torch._C._is_tracing"])
        (found,) = self.findings("torch")
        assert found.state == doctor.NOTE and "torch._C._is_tracing" in found.text and "versions.md" in found.remedy

    def test_all_is_well_here(self, run: Run) -> None:
        code, out, _ = run("doctor", "--json")
        printed = json.loads(out)
        assert code == 0 and printed["works"] and printed["routes"]["CPU: declared ops"].startswith("native kernels")
        assert {finding["subject"] for finding in printed["findings"]} >= {"torch", "compiler", "ninja", "cache"}
        assert "compiler" in run("doctor")[1]

    def test_no_compiler_is_a_problem_with_a_remedy(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        (compiler,) = self.findings("compiler")
        assert compiler.state == doctor.PROBLEM and "no-such-compiler" in compiler.text and "g++" in compiler.remedy
        code, out, _ = run("doctor")
        assert code == 1 and "problem" in out and "the plain PyTorch definition" in out

    def test_a_compiler_that_fails_is_a_problem(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCHAD_EXT_CXXFLAGS", "-no-such-flag")
        (compiler,) = self.findings("compiler")
        assert compiler.state == doctor.PROBLEM and "no-such-flag" in compiler.text

    def test_an_unknown_cpu_level_is_a_problem(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCHAD_EXT_CPU_LEVEL", "x86-64-v9")
        (level,) = self.findings("CPU level")
        assert level.state == doctor.PROBLEM and "x86-64-v9" in level.text

    def test_a_cache_that_is_a_file_is_a_problem(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("TORCHAD_EXT_CACHE_DIR", str(tmp_path / "file"))
        (found,) = self.findings("cache")
        assert (
            found.state == doctor.PROBLEM and "is no folder" in found.text and "TORCHAD_EXT_CACHE_DIR" in found.remedy
        )

    def test_a_cache_without_rights_is_a_problem(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("TORCHAD_EXT_CACHE_DIR", str(tmp_path))
        monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)  # root may write everywhere
        (found,) = self.findings("cache")
        assert found.state == doctor.PROBLEM and "may not be written" in found.text

    def test_what_is_prebuilt_is_named(self, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(prebuilt, "FOLDER", tmp_path)
        monkeypatch.setenv("CXX", "no-such-compiler")
        level = toolchain.cpu_level()
        for what, of in (("operators", level), ("operators", "other"), ("kernels", level)):
            prebuilt.library("cpu", of, what).write_bytes(bytes(100_000))
        (found,) = self.findings("prebuilt")
        levels = " and ".join(sorted((level, "other")))
        assert found.text == f"CPU kernels for {level}, CPU operators for {levels}; 0.3 MB"
        code, out, _ = run("doctor", "--json")
        routes = json.loads(out)["routes"]
        assert code == 0 and routes["CPU: catalogue, quadratic_form"] == "native kernels, prebuilt"
        assert routes["CPU: declared ops"] == "the plain PyTorch definition"

    def test_a_setting_with_a_slip_is_noted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCHAD_EXT_CACHEDIR", "somewhere")
        assert any("did you mean TORCHAD_EXT_CACHE_DIR?" in finding.remedy for finding in self.findings("settings"))

    def test_a_failed_compilation_is_noted(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("TORCHAD_EXT_CACHE_DIR", str(tmp_path))
        entry = tmp_path / f"f-float32-cpu-x86-64-v3-{'0' * 16}"
        entry.mkdir()
        (entry / "library.log").write_text("error: ...")
        assert [finding.state for finding in self.findings("cache")] == [doctor.OK, doctor.NOTE]


class TestCache:
    @pytest.fixture
    def folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        """A cache with a finished entry, a failed one, and what is not of the cache."""
        monkeypatch.setenv("TORCHAD_EXT_CACHE_DIR", str(tmp_path))
        for name, file in (("sin-float32-cpu-x86-64-v3-" + "0" * 16, "library.so"), ("f-" + "1" * 16, "library.log")):
            (tmp_path / name).mkdir()
            (tmp_path / name / file).write_bytes(b"x" * 1000)
        (tmp_path / ("thesis-" + "2" * 16)).mkdir()
        (tmp_path / ("thesis-" + "2" * 16) / "chapter.tex").touch()
        (tmp_path / "photos").mkdir()
        (tmp_path / "letter.txt").touch()
        return tmp_path

    def test_entries_are_listed(self, run: Run, folder: Path) -> None:
        _, out, _ = run("cache", "--list", "--json")
        entries = json.loads(out)["entries"]
        assert {(entry["size"], entry["is_finished"]) for entry in entries} == {(1000, True), (1000, False)}
        assert "2 entries, 0.0 MB" in run("cache")[1]

    def test_entries_alone_are_removed(self, run: Run, folder: Path) -> None:
        code, out, _ = run("cache", "--clear")
        assert code == 0 and "removed 2 entries" in out
        assert {path.name for path in folder.iterdir()} == {"thesis-" + "2" * 16, "photos", "letter.txt"}

    def test_an_entry_that_is_being_compiled_stays(self, run: Run, folder: Path) -> None:
        import filelock

        held = folder / ("f-" + "1" * 16)
        with filelock.FileLock(held / "lock"):
            _, out, _ = run("cache", "--clear", "--json")
        assert json.loads(out)["busy"] == 1 and held.exists()

    def test_no_folder_is_an_empty_cache(self, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("TORCHAD_EXT_CACHE_DIR", str(tmp_path / "not there"))
        assert cache.entries() == [] and "0 entries" in run("cache")[1]

    def test_what_a_build_leaves_is_an_entry(self, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        settings = with_operators(tmp_path)
        assert process("plot", "x", "--json", "--orders", "0", "--points", "2", **settings).returncode == 0
        monkeypatch.setenv("TORCHAD_EXT_CACHE_DIR", str(tmp_path))
        assert len(cache.entries()) == len(list(tmp_path.iterdir())) == 2
        run("cache", "--clear")
        assert not list(tmp_path.iterdir())


def test_bench_prints_a_row_for_each_order_and_size(run: Run) -> None:
    code, out, _ = run("bench", "square", "--seconds", "0", "--device", "cpu", "--json")
    rows = json.loads(out)
    assert code == 0 and len(rows) == 9 and all(row["ours"]["median"] > 0 for row in rows)
    assert "ratio" in run("bench", "quadratic_form", "--seconds", "0", "--device", "cpu")[1]


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1"])
def test_bench_ends(run: Run, seconds: str) -> None:
    code, _, err = run("bench", "sin", "--seconds", seconds)
    assert code == 2 and f"--seconds {seconds}; give 0 or more, and an end" in err


@pytest.mark.parametrize(
    "declaration",
    [
        "@ad.rowwise\ndef f(x):\n    return torch.softmax(x, -1)\n",
        "@ad.pointwise\ndef f(r, phi):\n    return r * torch.cos(phi), r * torch.sin(phi)\n",
        "def f(x):\n    return 2 * x\n",
        "def f(x, y):\n    return x + y\n",
    ],
    ids=["rows", "several results", "a constant derivative", "no second derivative"],
)
def test_bench_takes_every_op(run: Run, declaration: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bench, "SIZES", (100,))
    _named_ops._module.cache_clear()
    file = tmp_path / "own.py"
    file.write_text(f"import torch\nimport torchad_ext as ad\n{declaration}")
    code, out, err = run("bench", f"{file}:f", "--seconds", "0", "--device", "cpu", "--json")
    assert code == 0, err
    assert [row["computes"] for row in json.loads(out)] == list(_bench.COMPUTATIONS)


@pytest.mark.parametrize("name", few(ROW_CATALOGUE, lambda name: name == "rms_norm"))
def test_bench_takes_the_catalogue_of_rows(name: str) -> None:
    rows = list(_bench.rows(ROW_CATALOGUE[name], "cpu", torch.float32, 0, sizes=(640,)))
    assert [row.computes for row in rows] == list(_bench.COMPUTATIONS)
    assert {row.elements for row in rows} == {640}


def test_bars_go_to_stderr_and_to_a_terminal_alone() -> None:
    options = ("verify", "exp", "square", "--device", "cpu", "--json")
    quiet = {"PYTHONWARNINGS": "ignore"}  # some releases of PyTorch warn of their own functions
    shown, plain = process(*options, **quiet, FORCE_COLOR="1", NO_COLOR=""), process(*options, **quiet)
    assert "Verifying" in shown.stderr and not plain.stderr
    assert {check["op"] for check in json.loads(shown.stdout)} == {"exp", "square"}
    assert shown.stdout == plain.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["square", "--order", "1"], "struct SquareBackward"),
        (["sin", "--order", "2", "--device", "cpu"], "SinDoubleBackward"),
        (["silu", "--device", "cuda", "--dtype", "bfloat16"], "pointwise.cuh"),
        (["softmax", "--device", "cuda"], "cuda/rowwise.cuh"),
        (["quadratic_form"], "quadratic"),
    ],
)
def test_source_prints_the_kernel(run: Run, arguments: list[str], expected: str) -> None:
    code, out, _ = run("source", *arguments)
    assert code == 0 and expected in out


def test_ops_prints_the_catalogue(run: Run) -> None:
    assert run("ops")[1] == f"{ops.table()}\n{rows.table()}"
    described = json.loads(run("ops", "--json")[1])
    assert [op["name"] for op in described if op["of"] == "elements"] == list(ops.CATALOGUE)
    assert [op["name"] for op in described if op["of"] == "rows"] == list(ROW_CATALOGUE)
    likes = {op["name"]: op["stands_in_for"] for op in described}
    assert likes["sin"] == "torch.sin" and likes["softmax"] == "torch.softmax" and likes["distance"] is None


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["demo", "--steps", "0"], 2, "'--steps': 0 is not in the range x>=1"),
        (["demo", "--picture", "nothing.png", "--output", "{tmp}"], 1, "no picture at nothing.png"),
        (["verfy"], 2, "No such command 'verfy'"),
        (["verify", "--device", "tpu"], 2, "'tpu' is not one of 'cpu', 'cuda'"),
        (["verify", "sin", "--against", "sin", "--interval", "nan", "1"], 2, "--interval goes from nan to 1"),
    ],
)
def test_a_mistake_is_said(run: Run, arguments: list[str], status: int, message: str, tmp_path: Path) -> None:
    code, _, err = run(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert code == status and message in err


def test_a_file_that_ends_the_process_is_said(run: Run, tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text("import sys\n\nsys.exit(3)\n")
    code, _, err = run("verify", f"{tmp_path}/ends.py:f")
    assert code == 1 and "ends.py (line 3) raises SystemExit: 3" in err


def test_letters_that_stdout_lacks_are_replaced() -> None:
    done = process("bench", "sin", "--seconds", "0", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "double backward" in done.stdout


@pytest.mark.parametrize("arguments", [["source", "sin"], ["ops"]])
def test_stdout_may_be_closed(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "torchad_ext", *arguments]
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Error" not in done.stderr


@pytest.mark.parametrize("command", ["demo", "verify", "bench", "doctor", "plot", "source", "cache", "ops"])
def test_help_has_an_example(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0 and f"  torchad_ext {command}" in out


@pytest.mark.parametrize("arguments", [["verify", "sin"], ["bench", "sin", "--seconds", "0"], ["doctor"]])
def test_a_narrow_terminal_cuts_nothing_short(run: Run, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    code, out, _ = run(*arguments)
    assert code == 0 and "…" not in out
    if arguments[0] == "bench":
        assert len(re.findall(r" \d+\.\d\d +$", out, flags=re.MULTILINE)) == 9  # a ratio in each row


def test_no_command_is_help(run: Run) -> None:
    assert "Commands:" in run()[1] and ad.__version__ in run("--version")[1]


def test_colours_go_where_they_are_wanted(tmp_path: Path) -> None:
    settings = {"FORCE_COLOR": "1", "TORCHAD_EXT_CACHE_DIR": str(tmp_path)}
    coloured = process("doctor", **settings, NO_COLOR="")
    plain = process("doctor", **settings, NO_COLOR="1")
    assert "\x1b[32m" in coloured.stdout and "\x1b[32m" not in plain.stdout


def test_the_package_is_imported_without_the_command_line() -> None:
    code = "import sys, torchad_ext; assert 'click' not in sys.modules and 'rich' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_op_of_a_file_may_be_pickled(tmp_path: Path) -> None:
    import pickle

    file = tmp_path / "kept.py"
    file.write_text("import torchad_ext\n\n@torchad_ext.pointwise\ndef twice(x):\n    return 2 * x\n")
    op: Any = _named_ops.named(f"{file}:twice")
    assert pickle.loads(pickle.dumps(op)) is op
