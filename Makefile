# On a machine with python3 (3.10+) and make: `make demo` shows what it does, `make test` runs the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# transformers, numpy and pandas have left Python 3.10: it has pins of its own.
PINS := $(shell $(PYTHON) -c 'import sys; print("constraints-3.10.txt" if sys.version_info < (3, 11) else "constraints.txt")')

.PHONY: demo test test-slow lint format constraints clean

$(VENV)/.installed: pyproject.toml $(PINS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(PINS) -e '.[dev]'
	touch $@

demo: $(VENV)/.installed
	rm -rf demo-out
	$(BIN)/kosbert-ray embed --config configs/quickstart.yaml
	@echo; echo "What was written:"; ls -l demo-out
	@echo; echo "The five sentences nearest to: 비가 오는 날에는 무엇을 먹을까?"
	@$(BIN)/kosbert-ray search demo-out "비가 오는 날에는 무엇을 먹을까?" --top 5

test: $(VENV)/.installed
	$(BIN)/pytest -m "not slow"

test-slow: $(VENV)/.installed
	$(BIN)/pytest

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Pins every package, from a fresh resolution of pyproject.toml.
constraints:
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0 -e '.[dev]'
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt
	touch $(VENV)/.installed

clean:
	rm -rf $(VENV) demo-out build *.egg-info
