# Everything happens in .venv, which is made on first use and found by the second run. Needs Python 3.11 to 3.13, pip, git.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p && break; done)
BIN := .venv/bin
INSTALLED := .venv/installed-$(shell git hash-object pyproject.toml constraints.txt | git hash-object --stdin)

.DEFAULT_GOAL := help
.PHONY: help venv demo test check lint types docs bench clean

help: ## what there is to make
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/make \1\t\2/' | expand -t 14

venv: $(INSTALLED) ## the virtual environment, with everything that demo and tests need

$(INSTALLED):
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	rm -f .venv/installed-*
	touch $@

demo: venv ## fit, keep and compare three methods on photos of solar cells, and write a report
	$(BIN)/viapt demo

test: venv ## the tests, with run-time shape checks; then those that compile and export
	@.ci/tests

check: lint types docs test ## format, lint, types, documentation, and the tests (those that passed on the very same files are not run again)

lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: venv
	$(BIN)/basedpyright --pythonpath $(BIN)/python

docs: venv ## the documentation site in build/site, warnings being errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: venv ## speed and memory of a training step, beside the floor
	$(BIN)/python benchmarks/training.py

clean: ## remove the virtual environment and every cache
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
