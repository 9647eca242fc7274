# Needs python3, g++ and make. PYTHON=/path/to/python uses an interpreter that has everything installed: no .venv is
# made then.
PYTHON ?= .venv/bin/python

CSRC := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cuh')
ASAN_CACHE := build/asan
INSTALLED := $(if $(filter .venv/bin/python,$(PYTHON)),.venv/installed)

.PHONY: help demo test test-all test-long coverage mutants docs fuzz table versions rules notebooks bench bench-check rivals figures \
  first-minute long-run gpu ulp tails lint format asan wheel clean

help:  ## Show the targets
	@sed -n 's/^\([a-z-]*\):[^#]*##/\1\t/p' $(MAKEFILE_LIST) | expand -t 14

.venv/installed: pyproject.toml constraints.txt
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet -c constraints.txt -e '.[test,notebooks,dev,docs]'
	touch $@

demo: $(INSTALLED)  ## Show what the library does
	$(PYTHON) -m torchad_ext demo

# A thread that waits for another spins by default, on the processor which that one needs.
PYTEST := OMP_WAIT_POLICY=passive $(PYTHON) -m pytest -n 2 --dist loadfile

ROOMS := tests
test: $(INSTALLED)  ## Run the tests, all but the longest
	$(PYTEST)

test-all: $(INSTALLED)  ## Run all tests
	$(PYTEST) -m ''

test-long: $(INSTALLED)  ## Run the longest tests; make test-long ROOMS=tests/native runs those of a room
	$(PYTEST) -m long $(ROOMS)

coverage: $(INSTALLED)  ## Run the tests, or those of ROOMS=tests/native, on the CPU, and list the lines of torchad_ext that none runs
	$(PYTEST) --device cpu --cov --cov-report=term $(ROOMS)

MODULE := torchad_ext/_symbolic/operations.py
OF_MODULE := tests/symbolic/test_operations.py tests/symbolic/test_expr.py tests/symbolic/test_trace.py tests/test_rowwise.py tests/test_row_values.py
mutants: $(INSTALLED)  ## Run the tests OF_MODULE on every mutant of MODULE, and show those that no test kills
	$(PYTHON) -m pip install --quiet -c constraints.txt -e '.[mutants]'
	$(PYTHON) tests/mutants.py $(MODULE) $(OF_MODULE)

PYTORCH := $(foreach library,torch torch_cpu torch_python c10,--exclude lib$(library).so)
wheel: $(INSTALLED)  ## Build a wheel for where there is no compiler: both catalogues, for every level of x86-64
	rm -rf build/wheel
	TORCHAD_EXT_PREBUILD=cpu TORCHAD_EXT_BUILD_TIMEOUT=3600 \
	  $(PYTHON) -m pip wheel --no-build-isolation --no-deps -w build/wheel .
	PATH="$(abspath $(dir $(PYTHON))):$$PATH" $(PYTHON) -m auditwheel repair --strip $(PYTORCH) -w dist build/wheel/*.whl
	du -h dist/*.whl

SECONDS := 600
fuzz: $(INSTALLED)  ## Hold random programs against plain PyTorch; make fuzz SECONDS=3600 takes an hour
	$(PYTHON) tests/fuzz.py --seconds $(SECONDS)

table: $(INSTALLED)  ## Run the tests of what drop-in means, and write their table into docs/drop-in.md
	$(PYTEST) -m drop_in --drop-in-table=docs/drop-in.md

VERSIONS := 2.10.0 2.11.0 2.13.0 2.14.1
TESTS := tests
MINUTES := 240
versions: $(INSTALLED)  ## Run the tests under each of VERSIONS of PyTorch, and write their table into docs/versions.md
	PYTHONPATH=benchmarks $(PYTHON) tests/compatibility/versions.py $(VERSIONS) --tests '$(TESTS)' --minutes $(MINUTES)

rules: $(INSTALLED)  ## Write the table of operations that ad.laplacian has rules for
	$(PYTHON) -W ignore tests/forward/laplacian_table.py

notebooks: $(INSTALLED)  ## Execute the notebooks in place; once more if kernels were compiled, which stderr says
	$(dir $(PYTHON))jupyter-execute --inplace notebooks/*.ipynb

STEPS := 100000
long-run: $(INSTALLED)  ## Train for 100,000 steps, with 500 declared ops, and fail where anything grows; make long-run STEPS=5000
	$(PYTHON) benchmarks/long_run.py --steps $(STEPS) --ops 500

LEVEL :=
bench: $(INSTALLED)  ## Run the benchmarks; make bench LEVEL=v3 runs them with AVX2 on a CPU that has AVX-512
	$(PYTHON) benchmarks/run.py $(LEVEL:%=--level %)

bench-check: $(INSTALLED)  ## Run the benchmarks, and fail where a floor that was kept is missed
	$(PYTHON) benchmarks/run.py --check $(LEVEL:%=--level %)

build/rivals/installed: benchmarks/rivals.txt
	python3 -m venv build/rivals
	build/rivals/bin/python -m pip install --quiet -r benchmarks/rivals.txt
	touch $@

rivals: $(INSTALLED) build/rivals/installed  ## Measure training steps on a Laplacian and on equations against torch.compile and JAX, in half an hour
	$(PYTHON) benchmarks/rivals.py
	$(PYTHON) benchmarks/partials.py
	$(PYTHON) benchmarks/partials.py --memory

docs: $(INSTALLED)  ## Build the documentation in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet

figures: $(INSTALLED)  ## Write the picture and the table of the README from kept results
	$(PYTHON) benchmarks/figures.py

first-minute: $(INSTALLED)  ## Time the first minute of a new user, from pip install on
	$(PYTHON) benchmarks/first_minute.py

GPU_PARTS :=
gpu: $(INSTALLED)  ## Test and measure everything on the GPU at hand, in eight minutes; GPU_PARTS="build paths bench" does some
	$(PYTHON) benchmarks/gpu.py $(GPU_PARTS)

ulp: $(INSTALLED)  ## Measure the errors of sin, exp and their derivatives on every float32
	$(PYTHON) benchmarks/accuracy.py

tails: $(INSTALLED)  ## Measure the errors of every op and its derivatives over the whole range
	$(PYTHON) benchmarks/tails.py

lint: $(INSTALLED)  ## Check style and types
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
	$(dir $(PYTHON))clang-format --dry-run -Werror $(CSRC)

format: $(INSTALLED)  ## Format the code and mend what can be mended
	$(PYTHON) -m ruff check --fix
	$(PYTHON) -m ruff format
	$(dir $(PYTHON))clang-format -i $(CSRC)

asan: $(INSTALLED)  ## Run the tests of the ops on CPU kernels under AddressSanitizer and UBSan
	TORCHAD_EXT_CXXFLAGS='-fsanitize=address,undefined -fno-sanitize-recover=undefined -g' \
	  TORCHAD_EXT_CACHE_DIR=$(ASAN_CACHE) TORCHAD_EXT_STRICT=1 TORCHAD_EXT_BUILD_TIMEOUT=3600 \
	  LD_PRELOAD="$$(for each in asan ubsan stdc++; do $${CXX:-c++} -print-file-name=lib$$each.so; done | xargs)" \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 $(PYTHON) -m pytest --device cpu \
  tests/test_ops.py tests/test_pointwise.py tests/test_rows.py tests/csrc/test_scalar.py tests/test_quadratic_form.py \
  tests/csrc/test_guard_pages.py \
  tests/native/test_fast_path.py::TestCalls tests/native/test_fast_path.py::TestWhatIsSaved tests/native/test_fast_path.py::TestLifetime

clean:  ## Remove what was built, the environment included
	rm -rf .venv build dist *.egg-info .*_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
