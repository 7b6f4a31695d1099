# On a machine with python3 (3.11+) and make: `make demo` shows what it does, `make test` runs the tests.
PYTHON ?= python3
VENV := .venv
MITMPROXY := .venv-mitmproxy
AIRFLOW := .venv-airflow
AUDIT := .venv-audit
DOCS := .venv-docs
BIN := $(VENV)/bin
PINS := constraints.txt
# Test processes side by side, each with a Ray of its own.
JOBS ?= 2
# Suites with a make target of their own.
APART := not docs and not faults and not airflow and not image and not wheel

.PHONY: bench coverage demo docs docs-generate test test-docs test-slow test-faults test-airflow test-image test-wheel audit lint prose format constraints clean

$(VENV)/.installed: pyproject.toml $(PINS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(PINS) -e '.[dev]'
	touch $@

# What the command itself needs, without the tools for tests.
$(VENV)/.demo: pyproject.toml $(PINS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -c $(PINS) -e '.[cpu]'
	touch $@

demo: $(if $(wildcard $(VENV)/.installed),,$(VENV)/.demo)
	rm -rf demo-out
	$(BIN)/kosbert-ray demo demo-out

test: $(VENV)/.installed
	$(BIN)/pytest -n $(JOBS) --dist loadfile -m "not slow and $(APART)"

# Lines and branches that the tests reach, also in the processes they start and in Ray's workers.
coverage: $(VENV)/.installed
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n $(JOBS) --dist loadfile -m "not slow and $(APART)"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --sort=cover

test-slow: $(VENV)/.installed
	$(BIN)/pytest -m "$(APART)"

# Every command of README.md and docs/, in one chain that shares its outputs and one Ray.
test-docs: $(VENV)/.installed
	$(BIN)/pytest -m docs

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

# Builds the wheel and uses it from a clean environment.
test-wheel: $(VENV)/.installed
	$(BIN)/pytest -m wheel

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
	$(BIN)/python docs/prose.py

# PATHS="docs README.md" checks a part.
prose: $(VENV)/.installed
	$(BIN)/python docs/prose.py $(PATHS)

# The generated pages of docs/reference/: options, commands, models. Tests compare them with the code.
docs-generate: $(VENV)/.installed
	$(BIN)/python -m kosbert_ray.cli.reference docs/reference
	PYTHONPATH=tests:tests/helpers $(BIN)/python tests/helpers/models_page.py

# Dead links and anchors fail. The site is in site/.
docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --quiet

$(DOCS)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet --disable-pip-version-check $(shell sed -n 's/^docs = \["\(.*\)"\]/"\1"/p' pyproject.toml)
	touch $@

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
	rm -rf $(VENV) $(MITMPROXY) $(AIRFLOW) $(AUDIT) $(DOCS) demo-out site build *.egg-info
