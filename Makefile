# Everything runs in .venv, which is made once from constraints.txt and then left alone. Two stamps: the demo and the
# dashboard need half of the packages that the tests and checks need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LIGHT := $(VENV)/.light
STAMP := $(VENV)/.installed
# Python compiles what it imports, a fraction of what is installed: compiling everything would double the time.
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
WORKERS := -n auto --maxprocesses 4 --dist loadfile # a file's tests stay together: they share what they made

# Some machines tell Python to write no bytecode; then every process that imports torch compiles it again, for seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo dashboard docs test test-slow test-kernels test-cuda gpu test-all lint types check bench dist clean
help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(LIGHT): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { $(CHECK_PYTHON) && echo "setting up $(VENV)" && $(PYTHON) -m venv --clear $(VENV); }
	@$(MEND)
	$(PIP) -e '.[dashboard,gpt2]'
	@touch $@

$(STAMP): $(LIGHT)
	@$(MEND)
	$(PIP) -e '.[dev]'
	@touch $@

define CHECK_PYTHON
$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, and $(PYTHON) is %d.%d: name another one, as in `make demo PYTHON=python3.12`" % sys.version_info[:2])' \
  && { $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no module venv: install it (on Debian and Ubuntu the package python3-venv)" >&2; false; }; }
endef

# An installation that was killed half-way leaves packages that pip takes for whole: those without INSTALLER, which it
# writes at a package's end; and remains of replaced ones, whose names begin with ~.
define MEND
for half in $(VENV)/lib/python*/site-packages/*.dist-info; do test -e "$$half/INSTALLER" || rm -rf "$$half"; done; rm -rf $(VENV)/lib/python*/site-packages/~*
endef

install: $(STAMP) ## make .venv with everything, for the tests and checks (the others set up what they need)

demo: $(LIGHT) ## train a small GPT-2 with the tracker attached (about two minutes)
	$(BIN)/inrank-monitor demo --overwrite $(ARGS)

dashboard: $(LIGHT) ## open the runs in ./runs in the browser
	$(BIN)/inrank-monitor dashboard $(or $(DIR),runs)

docs: $(STAMP) ## build the documentation, tutorial included, into build/docs; it opens offline
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open file://$(CURDIR)/build/docs/index.html"

test: $(STAMP) ## the fast tests (about three minutes)
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

test-slow: $(STAMP) ## the slow tests; those that measure time run alone at the end
	$(BIN)/python -m pytest $(WORKERS) -m "slow and not alone" $(ARGS)
	$(BIN)/python -m pytest -m alone $(ARGS)

test-kernels: $(STAMP) ## the numeric tests as other processors would round: four arithmetics (five minutes)
	$(BIN)/python tests/kernels.py $(ARGS)

test-cuda: $(STAMP) ## what needs a GPU, on one (eight minutes)
	CUBLAS_WORKSPACE_CONFIG=:4096:8 $(BIN)/python -m pytest -m cuda $(ARGS)

gpu: test-cuda ## that, and a table of what the GPU was found to do, in build/gpu.md
	CUBLAS_WORKSPACE_CONFIG=:4096:8 $(BIN)/python benchmarks/bench_cuda.py --table build/gpu.md $(ARGS)

test-all: test test-slow test-kernels ## every test

lint: $(STAMP) ## ruff: format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

check: lint types ## lint, types, and which module may import which
	$(BIN)/lint-imports --no-logo

bench: $(STAMP) ## the figures that the README quotes
	@for script in $(filter-out benchmarks/bench_cuda.py,$(wildcard benchmarks/bench_*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

dist: $(STAMP) ## the sdist and the wheel, checked, the wheel in an empty environment (two minutes)
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	INRANK_DIST=dist $(BIN)/python -m pytest -m slow tests/packaged $(ARGS)

clean: ## remove .venv and caches, never a run
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist
