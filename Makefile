# make demo and make test do all the set-up on a fresh machine with Python 3.11 or later.
PYTHON ?= python3
LOWEST_PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install demo test lint test-slow test-lowest test-latest clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

install: $(READY) ## Make the virtual environment in .venv with everything in it

$(READY): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; say make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(READY)

demo: $(READY) ## Train 40 face subtasks on eight simulated devices, compare, and write a report (about 2 minutes)
	$(BIN)/python -m experiments.demo

lint: $(READY) ## Style, types and layer contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint ## Lint, types, layer contracts and tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test-slow: $(READY) ## The heavier checks
	$(BIN)/python -m pytest -m slow

test-lowest: ## The tests on the lowest versions that setup.cfg admits, in .venv-lowest (some GB; Python 3.11)
	$(LOWEST_PYTHON) -m venv .venv-lowest
	sed -nE 's/^ +([A-Za-z0-9_.-]+)(\[.*\])?>=([0-9.]+)$$/\1==\3/p' setup.cfg > .venv-lowest/lowest.txt
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check --constraint .venv-lowest/lowest.txt --editable '.[dev]'
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n auto --dist loadfile

test-latest: ## The tests on the newest versions that pip finds, in .venv-latest (some GB; PYTHON=... picks the interpreter)
	$(PYTHON) -m venv .venv-latest
	.venv-latest/bin/pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager --editable '.[dev]'
	OMP_NUM_THREADS=1 .venv-latest/bin/python -m pytest -n auto --dist loadfile

clean: ## Remove the environments and every cache (runs and data stay)
	rm -rf $(VENV) .venv-lowest .venv-latest .mypy_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info
