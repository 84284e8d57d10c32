# Two commands do all the set-up on a fresh machine with Python 3.11 to 3.13:
#   make sweep    the main job on an embedded data set
#   make test     lint, types, and every test

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Extras of pyproject.toml that are installed, once for each list of them.
EXTRAS ?= test
ARGS ?=

.PHONY: help install sweep test gpu-check mutants lint types docs format review dist clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed-$(EXTRAS)  ## create the virtual environment

$(VENV)/.installed-$(EXTRAS): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11 to 3.13 is needed: make PYTHON=python3.11 ...")'
	@echo "installing into $(VENV), once: some minutes, several gigabytes"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

sweep: install  ## sweep the default experiment; ARGS="conf=cifar10 ..." for another
	$(BIN)/python -m pipeline.sweep $(ARGS)

test: lint types  ## run lint, types, and every test
	@echo "running the tests, three at a time"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

gpu-check:  ## check the laws of a GPU against the CPU, with what PYTHON has installed; writes gpu-check.md
	$(PYTHON) tools/gpu_check.py $(ARGS)

mutants: install  ## make each mistake of tests/mutations.toml and see a test fail; ARGS="kale-* ..." for some
	$(BIN)/python tools/mutants.py $(ARGS)

lint: install  ## check style, layers, and the container's files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml

types: install  ## run the type checker on gebm, pipeline and benchmarks
	$(BIN)/basedpyright

# The variable silences an announcement of mkdocs-material, which is no warning of ours.
docs: install  ## build the site in site/; a broken link or name fails the build
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "documentation   site/index.html"

format: install  ## fix what the linter can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

review: install  ## open the MLflow UI on the results here
	$(BIN)/mlflow ui --backend-store-uri sqlite:///$(CURDIR)/results/mlflow.db

dist: install  ## build a wheel
	$(BIN)/python -m build --wheel

clean:  ## remove everything that was made here, except results
	rm -rf $(VENV) dist build site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
