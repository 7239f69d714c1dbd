# Two commands matter: `make setup` and `make check test`. Everything runs in .venv, whatever is active outside.
# Written for make 3.81 (macOS) and newer; targets run one after another even under -j.

PYTHON ?= python3
# More options for pip, for instance where a torch file without CUDA is kept.
PIP_FLAGS ?=
# Test processes; each computes on one thread, because torch's own threads would fight over the same cores.
WORKERS ?= 2
# Random files that `make fuzz` makes up for each of its tests.
EXAMPLES ?= 2000

BIN := .venv/bin
READY := .venv/.ready
# What the README shows takes minutes to run; that is left to `make test`.
LAWS_OF_THE_TREE := tests/test_layers.py tests/test_style.py tests/test_doctests.py tests/test_docs.py

REFUSE_OLD := import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make setup PYTHON=python3.12")

.PHONY: help setup demo test test-all fuzz mutants check wheel-test clean
.NOTPARALLEL:

help:
	@echo 'make setup       environment in .venv, at the versions of constraints.txt (PYTHON=python3.12 picks another Python)'
	@echo 'make demo        setup, then compress the bundled model and say how good the result is'
	@echo 'make test        the fast tests'
	@echo 'make test-all    all tests'
	@echo 'make fuzz        the tests of damaged files with new random ones (EXAMPLES=5000 a test, SEED=1 for the same again)'
	@echo 'make mutants     plant bugs one at a time and count those that the tests catch (COUNT=200 SEED=0 ONLY=linalg/* NOTES=file)'
	@echo 'make check       format, lint, types, layers, style, examples and documentation'
	@echo 'make wheel-test  build the wheel, install it in an empty environment elsewhere, run tests and demo there'
	@echo 'make clean       remove caches and builds; .venv stays (rm -r .venv for a fresh start)'

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { $(PYTHON) -c '$(REFUSE_OLD)' && $(PYTHON) -m venv .venv; }
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[test,dev]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/eckart demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m 'not slow'

test-all: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

fuzz: $(READY)
	OMP_NUM_THREADS=1 ECKART_FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -n $(WORKERS) $(if $(SEED),--hypothesis-seed=$(SEED)) tests/test_fuzz.py

mutants: $(READY)
	$(BIN)/python scripts/mutants/run.py --workers $(WORKERS) $(if $(COUNT),--count $(COUNT)) $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only '$(ONLY)') $(if $(NOTES),--notes $(NOTES))

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -k 'not test_readme_' $(wildcard $(LAWS_OF_THE_TREE))

wheel-test: $(READY)
	@set -eu; \
	away=$$(mktemp -d "$${TMPDIR:-/tmp}/eckart-wheel.XXXXXX"); \
	trap 'rm -rf "$$away"' EXIT; trap 'exit 130' INT TERM; \
	set -x; \
	$(BIN)/python -m build --wheel --outdir "$$away/dist" .; \
	$(BIN)/python -m venv "$$away/venv"; \
	"$$away/venv/bin/python" -m pip install -q $(PIP_FLAGS) -c constraints.txt "$$(echo "$$away"/dist/*.whl)[test]"; \
	cp -R tests pyproject.toml "$$away"; \
	cd "$$away"; \
	OMP_NUM_THREADS=1 venv/bin/python -m pytest -n $(WORKERS) -m 'not slow' -p no:cacheprovider --ignore tests/test_docs.py; \
	venv/bin/eckart demo

clean:
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
