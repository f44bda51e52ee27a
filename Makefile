# Every target sets up what it needs, once. `make setup` is enough to work; `make check` is what a change must pass.
# Variables: PYTHON (python3), TESTS (what `make test` runs), ARGS (more arguments for pytest or the benchmarks).

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMPS := build/stamps
TESTS  ?= tests/unit tests/contract tests/fuzz tests/model tests/mount tests/faults
PYTEST := $(BIN)/python -m pytest
PARALLEL := --numprocesses=auto --maxprocesses=4 --dist=loadfile
# The watchdog's look at a running interpreter can crash it.
PATIENT := --timeout=0 -o faulthandler_timeout=0
PIP    := PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check
export PATH := $(CURDIR)/$(BIN):$(PATH)
EXT    := $(shell find ext -name '*.pyx' -o -name '*.pxd')

.PHONY: setup demo test check lint types test-mount bench bench-quick bench-programs bench-engine soak crash fuzz sanitize cover annotate clean
.DELETE_ON_ERROR:

setup: $(STAMPS)/engine

$(STAMPS)/system: .ci/system
	@mkdir -p $(STAMPS)
	bash .ci/system $(PYTHON)
	@touch $@

$(BIN)/python: | $(STAMPS)/system
	$(PYTHON) -m venv $(VENV)

$(STAMPS)/venv: pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(PIP) pip setuptools wheel Cython
	$(PIP) --no-build-isolation -e '.[dev]'
	@touch $@

$(STAMPS)/engine: $(STAMPS)/venv $(EXT)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

$(STAMPS)/demo $(STAMPS)/bench: $(STAMPS)/%: $(STAMPS)/engine
	$(PIP) --no-build-isolation -e '.[$*]'
	@touch $@

$(STAMPS)/programs: .ci/system | $(STAMPS)/system
	bash .ci/system $(PYTHON) tests
	@touch $@

demo: $(STAMPS)/demo
	$(BIN)/python examples/data_pipeline/demo.py

check: lint types test

lint: $(STAMPS)/engine
	$(BIN)/ruff check .
	$(BIN)/cython-lint ext

types: $(STAMPS)/engine
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest sluicefs.engine --allowlist tests/stubtest-allow.txt --ignore-unused-allowlist

test: $(STAMPS)/engine $(STAMPS)/programs
	timeout --kill-after=20 1500 $(PYTEST) $(PARALLEL) $(TESTS) -m 'not soak' $(ARGS)

# SERVER=seaweedfs: a second pass, on that server.
test-mount: $(STAMPS)/engine $(STAMPS)/programs
	timeout --kill-after=20 1500 $(PYTEST) $(PARALLEL) tests/mount tests/faults -m 'not soak' $(ARGS)

# New examples for FUZZ_MINUTES (60) in all.
fuzz: $(STAMPS)/engine $(STAMPS)/programs
	FUZZ_MINUTES=$${FUZZ_MINUTES:-60} $(PYTEST) tests/fuzz $(PATIENT) $(ARGS)

# SOAK_MINUTES (60): mixed load with faults on one mount; build/soak has the plot.
soak: $(STAMPS)/engine $(STAMPS)/programs
	$(BIN)/python -m tests.soak $(ARGS)

# The tests that take long: hundreds of SIGKILLs, thousands of crashes.
crash: $(STAMPS)/engine $(STAMPS)/programs
	$(PYTEST) tests -m soak $(PATIENT) $(ARGS)

# WORKLOAD, CONTESTANTS: some of them, by name. ROUNDS=5: all of that many, full sizes, no limit of time. MINUTES: another limit.
bench: $(STAMPS)/bench $(STAMPS)/programs
	$(BIN)/python -m benchmarks run $(ARGS)

bench-quick: $(STAMPS)/bench $(STAMPS)/programs
	$(BIN)/python -m benchmarks run --quick $(ARGS)

# DuckDB, pandas, random records and grep on mounts, side by side.
bench-programs: $(STAMPS)/bench $(STAMPS)/demo $(STAMPS)/programs
	$(BIN)/python -m benchmarks.analysis run $(ARGS)

bench-engine: $(STAMPS)/bench
	$(PYTEST) benchmarks/bench_engine.py $(PATIENT) $(ARGS)

# The same tests on an engine built with the address and undefined-behaviour sanitizers; the benchmarks' start others' programs.
sanitize: $(STAMPS)/engine $(STAMPS)/programs
	SANITIZE=1 $(BIN)/python setup.py --quiet build --build-base build/sanitize --build-lib build/sanitize/lib
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
	  PYTHONMALLOC=malloc PYTHONPATH=build/sanitize/lib $(PYTEST) tests/unit tests/model --ignore-glob='*/test_benchmarks_*' $(PATIENT) -m 'not soak' $(ARGS)

cover: $(STAMPS)/engine $(STAMPS)/programs
	COVERAGE=1 $(BIN)/python setup.py --quiet build --build-base build/cover --build-lib build/cover/lib
	@rm -rf build/coverage && mkdir -p build/coverage
	PYTHONPATH=build/cover/lib $(BIN)/coverage run -m pytest $(TESTS) $(PATIENT) -m 'not soak' $(ARGS)
	$(BIN)/coverage combine --quiet && $(BIN)/coverage report && $(BIN)/coverage html --quiet -d build/coverage/html
	@find ext -name '*.c' -delete

# Which lines of the engine touch Python: build/c/**/*.html.
annotate: $(STAMPS)/venv
	ANNOTATE=1 $(BIN)/python setup.py --quiet build_ext --inplace --force
	@find build/c -name '*.html'

clean:
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src -name '*.so' -delete
