# On a machine with python3 (3.11+) and make: `make demo` shows what it does, `make test` runs the tests.
PYTHON ?= python3
VENV := .venv
MITMPROXY := .venv-mitmproxy
AIRFLOW := .venv-airflow
AUDIT := .venv-audit
BIN := $(VENV)/bin
PINS := constraints.txt

.PHONY: bench coverage demo test test-slow test-faults test-airflow test-image audit lint format constraints clean

$(VENV)/.installed: pyproject.toml $(PINS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(PINS) -e '.[dev]'
	touch $@

demo: $(VENV)/.installed
	rm -rf demo-out
	$(BIN)/kosbert-ray embed --config configs/quickstart.yaml
	@echo; echo "What was written:"; ls -l demo-out
	@echo; echo "The five sentences nearest to: 비가 오는 날에는 무엇을 먹을까?"
	@$(BIN)/kosbert-ray search demo-out "비가 오는 날에는 무엇을 먹을까?" --top-k 5

test: $(VENV)/.installed
	$(BIN)/pytest -m "not slow and not faults and not airflow and not image"

# Lines and branches that the tests reach, also in the processes they start and in Ray's workers.
coverage: $(VENV)/.installed
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m "not slow and not faults and not airflow and not image"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --sort=cover

test-slow: $(VENV)/.installed
	$(BIN)/pytest -m "not faults and not airflow and not image"

# All competitors, in environments of their own under bench-out/: the better part of an hour. BENCH="--data FOLDER" names other texts.
bench: $(VENV)/.installed
	$(BIN)/python jobs/benchmark/benchmark.py $(BENCH)

# mitmproxy pins what we do not: it has an environment of its own.
$(MITMPROXY)/.installed:
	$(PYTHON) -m venv $(MITMPROXY)
	$(MITMPROXY)/bin/pip install --quiet --disable-pip-version-check mitmproxy
	touch $@

test-faults: $(VENV)/.installed $(MITMPROXY)/.installed
	$(BIN)/pytest -m faults

# Airflow pins much of what it uses: it has an environment of its own, where kosbert-ray is installed as its extra says.
$(AIRFLOW)/.installed: pyproject.toml
	$(PYTHON) -m venv $(AIRFLOW)
	$(AIRFLOW)/bin/pip install --quiet --disable-pip-version-check 'apache-airflow==3.3.2' $(shell grep -hE '^(ray|torch|transformers)==' $(PINS)) -e '.[airflow]'
	touch $@

# Needs buildah and mmdebstrap (Debian), and a quarter of an hour.
test-image: $(VENV)/.installed
	$(BIN)/pytest -m image

test-airflow: $(VENV)/.installed $(AIRFLOW)/.installed
	$(BIN)/pytest -m airflow

# Known vulnerabilities of the pinned packages; asks PyPI, so it needs the network.
audit: $(AUDIT)/.installed
	$(AUDIT)/bin/pip-audit --no-deps --disable-pip -r constraints.txt

$(AUDIT)/.installed:
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/pip install --quiet --disable-pip-version-check pip-audit
	touch $@

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
	rm -rf $(VENV) $(MITMPROXY) $(AIRFLOW) $(AUDIT) demo-out build *.egg-info
