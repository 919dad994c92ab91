# Needs only Python 3.11 or newer with its venv module, make and a package index.
# Another interpreter: make setup PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-header $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help setup run demo test chaos fuzz bench screenshots fmt lock clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'

setup: $(STAMP) ## the project, its extras and its tools in .venv

$(STAMP): requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON): Python 3.11 or newer is needed (make setup PYTHON=python3.12)" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "setting up $(VENV)"
	@$(PIP) install --require-hashes -r requirements-dev.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

run: setup ## everything on this machine until Ctrl-C
	@$(BIN)/hitl up

demo: setup ## the main job once, shown step by step
	@$(BIN)/hitl demo

test: setup ## format, lint, types, import contracts, then the tests (ARGS go to pytest)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest -n 4 --dist worksteal $(ARGS)

chaos: setup ## everything that can die is killed under 2,000 runs, then counted (about 5 minutes)
	$(BIN)/python -m tests.chaos.suite --runs 2000 $(ARGS)

fuzz: setup ## search for examples that break a property, a run's record or the API (ARGS go to pytest)
	HYPOTHESIS_PROFILE=search $(BIN)/pytest -n 2 tests/domain tests/fuzz tests/test_audit.py $(ARGS)

bench: setup ## what it costs and how fast it is, beside this machine's floors (ARGS name parts; under 10 minutes)
	$(BIN)/python -m bench $(ARGS)

screenshots: setup ## the pictures of docs/images anew, by a Chromium of this machine
	$(BIN)/python -m docs.screenshots

fmt: setup ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: setup ## the requirements files anew (ARGS=--upgrade for newer versions)
	@$(PIP) install uv
	$(COMPILE) --extra s3 --extra sentry --extra otel pyproject.toml -o requirements.txt
	$(COMPILE) --all-extras --group pyproject.toml:dev -c requirements.txt pyproject.toml -o requirements-dev.txt
	echo hatchling | $(COMPILE) -c requirements-dev.txt - -o requirements-build.txt

clean: ## .venv, caches and build output; the data in .data stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
