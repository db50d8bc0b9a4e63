# Every target does all its set-up. See README.md for CPU and CUDA builds of torch.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
export OMP_NUM_THREADS ?= $(shell nproc)

.PHONY: setup demo test test-fast test-all soak check bench clean

setup: $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/graft demo $(ARGS)

# Files of tests side by side, in as many processes as there are cores, four at most: each computes with one thread or two.
test: $(VENV)/.tested
	$(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile --durations 15 $(ARGS)

# A minute and a half, before a commit: three families, no processes, no other libraries.
test-fast: $(VENV)/.tested
	$(BIN)/python -m pytest -q -m "not slow" --fast $(ARGS)

# The slow ones too, in the same way: two hours or so on two cores.
test-all: $(VENV)/.tested
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --durations 30 $(ARGS)

# Longer than a test may take: tables whose bars are checks. Two hours or three, on a quiet machine.
soak: $(VENV)/.benched
	$(BIN)/python -m benchmarks.tables.proof
	$(BIN)/python -m benchmarks.tables.proof --times
	$(BIN)/python -m benchmarks.tables.neighbour
	$(BIN)/python -m benchmarks.tables.demo
	$(BIN)/python -m benchmarks.tables.over_http
	GRAFT_FUZZ_CASES=100000 $(BIN)/python -m pytest -q tests/hub/web/test_fuzz.py tests/server/http/test_fuzz.py

check: $(VENV)/.tested build/types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=build/types $(BIN)/mypy -p graft.hub -p graft.server -p graft.trainer
	PYTHONPATH=build/types $(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/python -m pytest -q tests/test_house.py tests/test_architecture.py

bench: $(VENV)/.benched
	$(BIN)/python -m benchmarks.tables.serving $(ARGS)

# Torch first and by its exact name: a plain `torch`, or one pulled in by another package, may bring
# gigabytes of CUDA where a CPU build is wanted.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14) and "graft needs Python 3.11 to 3.14, for which its packages are built: make PYTHON=python3.13")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q "$(TORCH)"
	$(PIP) install -q -c constraints.txt -e .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(PIP) install -q -c constraints.txt -e ".[test,check]"
	touch $@

$(VENV)/.benched: $(VENV)/.installed
	$(PIP) install -q -c constraints.txt -e ".[bench]"
	touch $@

# Type checkers can't see setuptools' package-dir mapping: show them links.
build/types:
	mkdir -p build/types/graft
	for room in hub server trainer; do ln -sfn ../../../$$room build/types/graft/$$room; done

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
