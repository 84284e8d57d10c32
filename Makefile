# Two commands do all the set-up on a fresh machine with Python 3.11 to 3.13:
#   make sweep    the main job on an embedded data set
#   make test     lint, the layers' contract, and the tests

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help install sweep test lint format review dist clean

help:  ## what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed  ## the virtual environment, with everything in it

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11 to 3.13 is needed: make PYTHON=python3.11 ...")'
	@echo "installing into $(VENV), once: some minutes, several gigabytes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

sweep: install  ## sweep the default experiment; ARGS="conf=cifar10 ..." for another
	$(BIN)/python -m pipeline.sweep $(ARGS)

test: lint  ## lint, the layers' contract, and every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

format: install  ## what the linter can mend by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

review: install  ## the MLflow UI on the results here
	$(BIN)/mlflow ui --backend-store-uri sqlite:///$(CURDIR)/results/mlflow.db

dist: install  ## a wheel
	$(BIN)/python -m build --wheel

clean:  ## everything that was made here, results excepted
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
