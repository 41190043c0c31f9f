# Everything runs in a virtual environment of its own, made on first use and brought up to date
# whenever pyproject.toml changes. Needs make and Python >= 3.11, nothing else.

VENV ?= .venv

# The newest Python that is really there: a name on PATH may be a shim that fails when it is run,
# so each candidate is run. Recursive (?=): looked for only when an environment has to be made.
is_supported = $(shell $(1) -c 'import sys; print(sys.version_info >= (3, 11))' 2>/dev/null)
PYTHON ?= $(firstword $(foreach name,python3.15 python3.14 python3.13 python3.12 python3.11 python3,\
	$(if $(filter True,$(call is_supported,$(name))),$(name))))

# Tests that run at a time: most of them wait for processes, signals and clocks.
JOBS ?= 3

# The tests that `make test-switch` runs.
SWITCH_TESTS := tests/unit tests/conformance tests/integration/test_cascades.py \
	tests/integration/test_cpu_auto.py tests/integration/test_cpu_threads.py \
	tests/integration/test_threads_at_odds.py

# The tests of `make test`: all, unless you name some.
TESTS ?=

# Pythons that `make pythons` fetches.
PYTHONS ?= 3.14 3.15

# Extras and dependency groups of pyproject.toml that `make environment` installs.
WITH ?= test

CODE := $(wildcard procbus tests bench)
BIN := $(VENV)/bin

# Two targets must not install into one environment at the same time.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-switch test-dask test-wheel pythons chromium environment lint types bench \
	bench-report docs format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/installed-procbus ## Do one job four ways, then see a killed worker, a hang, a killed script
	@$(BIN)/procbus demo

test: $(VENV)/installed-test ## Run the tests, or TESTS= of them, JOBS=3 at a time; ARGS= are for pytest
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS) $(TESTS)

test-all: $(VENV)/installed-test ## Run the slow tests, long searches and a quick run of each benchmark too
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not soak" --hypothesis-profile=thorough $(ARGS)

test-switch: $(VENV)/installed-test ## Run tests of threads that switch always and inherit contexts, on Python 3.14
	@PYTHON_THREAD_INHERIT_CONTEXT=1 PYTHON_CONTEXT_AWARE_WARNINGS=1 PROCBUS_TEST_SWITCH_S=1e-6 \
		$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS) $(SWITCH_TESTS)

test-dask: $(VENV)/installed-test $(VENV)/installed-dask ## Run the tests that can over Dask, an extra
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not soak" -k dask $(ARGS) tests/conformance \
		tests/integration/test_dask*.py tests/unit/pool/dask tests/test_docs.py tests/bench/test_questions.py

test-wheel: $(BIN)/python ## Build the sdist and the wheel, and run the tests against the installed wheel
	@.ci/test-wheel $(BIN)/python $(JOBS) $(ARGS)

pythons: $(VENV)/installed-pythons ## Fetch PYTHONS="3.14 3.15" from Debian, for make test VENV=.venv-3.14
	@.ci/pythons $(BIN)/python $(PYTHONS)

chromium: ## Fetch Chromium from Debian, for the tests of the page of procbus serve
	@.ci/chromium

environment: $(WITH:%=$(VENV)/installed-%) ## Make VENV with WITH="test" of pyproject.toml

lint: $(VENV)/installed-dev ## Check style and formatting
	@$(BIN)/ruff check $(CODE) docs/conf.py
	@$(BIN)/ruff format --check $(CODE) docs/conf.py

types: $(VENV)/installed-dev ## Check the types, and the public API as pyright sees it
	@$(BIN)/mypy $(CODE)
	@$(BIN)/basedpyright --pythonpath $(BIN)/python

bench: $(VENV)/installed-bench ## Measure the effects of the GIL (takes minutes); ARGS=--all for everything
	@$(BIN)/python -m bench $(ARGS)

bench-report: $(VENV)/installed-bench ## Write docs/benchmarks.md and .html, with plots, from the last run
	@$(BIN)/python -m bench --report docs $(ARGS)

docs: $(VENV)/installed-docs ## Make the site, build/site/index.html, which needs no network
	@$(BIN)/python -m sphinx --nitpicky --fail-on-warning --keep-going --quiet \
		-b html -d build/doctrees docs build/site
	@echo "The site is build/site/index.html"

format: $(VENV)/installed-dev ## Format the code and apply the safe fixes of the linter
	@$(BIN)/ruff check --fix $(CODE) docs/conf.py
	@$(BIN)/ruff format $(CODE) docs/conf.py

clean: ## Remove the environments, caches and build products
	@rm -rf $(VENV) .venv-3.* .venv-dask .pythons .chromium .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	@find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each extra or dependency group of pyproject.toml, and one for procbus alone. pip's output is shown only when it fails.
GROUPS := $(shell sed -n '/^\[dependency-groups\]/,/^\[tool/s/^\([a-z]*\) = \[.*/\1/p' pyproject.toml)
PIP = $(BIN)/python -m pip install --disable-pip-version-check
# For the stamp "procbus", procbus alone: no extra.
EXTRA = $(if $(filter procbus,$*),,[$*])
$(VENV)/installed-%: pyproject.toml | $(BIN)/python
	@echo "Installing procbus$(EXTRA) into $(VENV)"
	@{ $(if $(filter $*,$(GROUPS)),$(PIP) 'pip>=25.1' && $(PIP) --group $* --editable .,$(PIP) --editable '.$(EXTRA)'); \
		} > $(VENV)/pip.log 2>&1 || { \
		cat $(VENV)/pip.log; \
		echo "procbus: pip could not install what is needed, its output is above."; \
		echo "It takes packages from a package index: check the network, or name an index"; \
		echo "that you can reach with PIP_INDEX_URL=... or in pip's configuration."; \
		exit 1; } >&2
	@touch $@

$(BIN)/python:
	@$(if $(PYTHON),,echo "procbus: needs Python 3.11 or later, and none was found on PATH." >&2; \
		echo "Install one, or name it: make $(or $(MAKECMDGOALS),help) PYTHON=/path/to/python3" >&2; \
		exit 1)
	@$(if $(filter True,$(call is_supported,$(PYTHON))),,\
		echo "procbus: needs Python 3.11 or later, and PYTHON=$(PYTHON) is not one:" >&2; \
		$(PYTHON) --version >&2; exit 1)
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "procbus: $(PYTHON) lacks the modules that make environments (venv, ensurepip)."; \
		echo "On Debian and Ubuntu: apt install python3-venv (or python3.12-venv and so on)."; \
		exit 1; } >&2
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
