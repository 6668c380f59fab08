# Set-up happens by itself: every target first builds .venv from pyproject.toml and constraints.txt,
# with what the notebooks need, and before tests also what only tests and tools need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
APP := $(VENV)/.ready-for-app
TESTED := $(VENV)/.ready-for-tests
DOCUMENTED := $(VENV)/.ready-for-docs
RUN := .[figures,real]
TESTS := .[test]
DOCS := .[docs]
PYTEST := $(BIN)/python -m pytest
SHARED := -n 2 --dist loadfile --no-loadscope-reorder
NOTEBOOKS := --nbval --nbval-current-env --nbval-cell-timeout 600 --nbval-kernel-startup-timeout 600 \
	-p tests.helpers.notebook_environment

.PHONY: run app real test test-quick test-long nightly coverage docs lab setup lint format types hooks \
	notebook-filter bench licences audit release-check clean

run: $(READY)  ## every notebook with the default profile, then the report
	$(BIN)/finemem run --figures

app: $(APP)  ## the credit laboratory in a browser, without code
	$(BIN)/finemem app

DATA ?= data/real/train.parquet data/real/held_out.parquet
real: $(READY)  ## SmolLM2 on real text from the shipped adapter, on two cores (DATA=FILE: on your own)
	$(BIN)/finemem fetch smollm2
	$(BIN)/finemem run --profile smollm2 --data $(DATA) --figures

# mypy, which uses one core, runs as one of the tests.
test: $(TESTED) lint  ## what every change must pass
	$(PYTEST) $(SHARED) $(NOTEBOOKS) finemem_lib tests notebooks

test-long: $(TESTED)  ## tests of whole runs, benchmarks and the site, which a merge must pass, too
	$(PYTEST) $(SHARED) -m "long and not nightly" tests

test-quick: $(TESTED)  ## core, credit and data, for the change at hand
	$(PYTEST) -n 2 --dist load -q $(wildcard finemem_lib/*.py) finemem_lib/credit finemem_lib/data \
		tests/core tests/credit tests/data

nightly: $(TESTED)  ## the long fuzz tiers, and the notebooks with all of their training
	$(PYTEST) -m nightly tests
	$(PYTEST) $(SHARED) $(NOTEBOOKS) --full-training notebooks

coverage: $(TESTED)  ## which lines the tests reach; shown, not enforced
	$(PYTEST) $(SHARED) -m "not nightly and not browser" --cov=finemem_lib \
		--cov-report=term:skip-covered finemem_lib tests

docs: $(DOCUMENTED)  ## the site, in site/html/index.html; a warning is an error
	$(BIN)/python -m sphinx -q -W --keep-going -j auto -c docs -d site/doctrees . site/html
	@echo "site/html/index.html"

lint: $(TESTED)  ## formatter, linter, and the contracts of who imports whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

format: $(TESTED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(TESTED)
	$(BIN)/mypy

hooks: $(TESTED) notebook-filter  ## formatter, linter and types before every commit
	$(call install,.[dev])
	$(BIN)/pre-commit install

lab: $(READY) notebook-filter  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks

notebook-filter:  # git leaves out of notebooks what a kernel leaves in them
	-@git config filter.finemem-notebook.clean '$(BIN)/python -m finemem_lib.util.notebook_filter %f'

bench: $(TESTED)  ## the speed claims, as ratios measured side by side; credit rules, a small table
	$(BIN)/python benchmarks/retrieval.py
	$(BIN)/python benchmarks/rewards.py
	$(BIN)/python benchmarks/explore.py
	$(BIN)/python benchmarks/credit.py --quick
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/gpu.py

licences: $(TESTED)  ## the licences of the pinned packages, checked
	$(BIN)/python release/licences.py

audit: $(TESTED)  ## known vulnerabilities of the pinned packages; needs PyPI's service
	$(call install,.[dev])
	$(BIN)/python release/audit.py

release-check: $(TESTED)  ## the checklist of CONTRIBUTING.md; leaves sdist and wheel in dist
	$(call install,.[dev])
	$(BIN)/python release/check.py

setup: $(TESTED)

define install
@release/install.sh $(BIN)/python --editable '$(1)'
endef

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is %s; choose another one, e.g. make PYTHON=python3.12" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned packages into $(VENV) (some GB, once)"
	$(call install,$(RUN))
	@touch $(READY)

$(APP): $(READY)
	@echo "Installing what the laboratory needs into $(VENV)"
	$(call install,.[app])
	@touch $(APP)

$(TESTED): $(READY)
	@echo "Installing what tests and tools need into $(VENV)"
	$(call install,$(TESTS))
	@touch $(TESTED)

$(DOCUMENTED): $(READY)
	@echo "Installing what the site is built with into $(VENV)"
	$(call install,$(DOCS))
	@touch $(DOCUMENTED)

clean:  ## the virtual environment, the site and caches; runs under data/runs are kept
	rm -rf $(VENV) site .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis *.egg-info build
