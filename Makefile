# Each command below works on a fresh clone: it first sets up .venv, again only when pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=

.PHONY: help demo test lint types docs clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo    ESS across widths on real digits: a table, a figure, a store of summaries in out/demo'
	@echo 'make test    the whole test suite (PYTEST_ARGS="-m '"'not slow'"'" for a quick one)'
	@echo 'make lint    ruff: rules and format'
	@echo 'make types   pyright'
	@echo 'make docs    the documentation, strictly, into site/'
	@echo 'make clean   remove what runs wrote; .venv stays'

demo: $(VENV)/.installed
	$(BIN)/bnnwide ess --data digits --out out/demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/pyright

docs: $(VENV)/.installed-dev
	$(BIN)/mkdocs build --strict

clean:
	rm -rf out site build dist .pytest_cache .ruff_cache .hypothesis
	find bnnwide tests benchmarks notebooks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# Editable, so that an edited source is what runs; what is installed depends on pyproject.toml alone.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo 'installing bnnwide and what it needs into $(VENV) (a minute or two, once)'
	$(BIN)/python -m pip install -qq --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo 'installing bnnwide and its development tools into $(VENV) (a minute or two, once)'
	$(BIN)/python -m pip install -qq --editable '.[dev]'
	@touch $@ $(VENV)/.installed

# The checkout's python3 first (.python-version names it to version managers), then the named version itself.
$(BIN)/python:
	@for python in $(PYTHON) python$$(cat .python-version); do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then \
			echo "setting up $(VENV) with $$($$python --version)"; \
			exec $$python -m venv $(VENV); \
		fi; \
	done; \
	echo "bnnwide needs Python 3.12 or newer; \`$(PYTHON)\` is $$($(PYTHON) --version 2>&1)." >&2; \
	echo "Install Python $$(cat .python-version), or name one: make PYTHON=/path/to/python3.13 ..." >&2; \
	exit 1
