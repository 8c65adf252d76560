# Everything runs in .venv, which is made once from constraints.txt and then left alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS := -n auto --maxprocesses 4 --dist loadfile # a file's tests stay together: they share what they made

.PHONY: help install demo dashboard docs test test-slow test-kernels test-all lint types check bench clean
help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || { echo "setting up $(VENV)"; $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

install: $(STAMP) ## make .venv with everything (once)

demo: $(STAMP) ## train a small GPT-2 with the tracker attached (about two minutes)
	$(BIN)/inrank-monitor demo --overwrite $(ARGS)

dashboard: $(STAMP) ## open the runs in ./runs in the browser
	$(BIN)/inrank-monitor dashboard $(or $(DIR),runs)

docs: $(STAMP) ## build the documentation, tutorial included, into build/docs; it opens offline
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open file://$(CURDIR)/build/docs/index.html"

test: $(STAMP) ## the fast tests (under two minutes)
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

test-slow: $(STAMP) ## the slow tests; those that measure time run alone at the end
	$(BIN)/python -m pytest $(WORKERS) -m "slow and not alone" $(ARGS)
	$(BIN)/python -m pytest -m alone $(ARGS)

test-kernels: $(STAMP) ## the numeric tests as other processors would round: eight arithmetics (four minutes)
	$(BIN)/python tests/kernels.py $(ARGS)

test-all: test test-slow test-kernels ## every test

lint: $(STAMP) ## ruff: format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

check: lint types ## lint, types, and which module may import which
	$(BIN)/lint-imports --no-logo

bench: $(STAMP) ## the figures that the README quotes
	@for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean: ## remove .venv and caches, never a run
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist
