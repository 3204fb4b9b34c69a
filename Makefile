# Everything from a bare machine with Python 3.11: `make demo`, `make test`.

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup browser demo test lint test-fast test-slow lock clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

# The report is tested in a real browser.
browser:
	@command -v chromium >/dev/null || (SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo); \
		$$SUDO apt-get update -qq && $$SUDO apt-get install -y -qq chromium)

# A local judge that knows the planted truth stands in for a paid vision model.
demo: setup
	$(BIN)/python tests/demo_judge.py configs/demo.yaml

test: setup browser lint test-fast test-slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-fast: setup
	$(BIN)/pytest -q -m "not slow"

test-slow: setup
	$(BIN)/pytest -v -m slow --maxfail=5 --durations=25

# The +cpu of a local build is cut off, so that the same version is found elsewhere.
lock: setup
	$(BIN)/pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --strip-extras --no-annotate --no-header --no-emit-index-url \
		--no-emit-find-links --extra cpu --extra demo --extra dev -o requirements.lock pyproject.toml
	sed -i 's/+cpu$$//; /^#/d; /^$$/d' requirements.lock

clean:
	rm -rf $(VENV) build dist *.egg-info runs
