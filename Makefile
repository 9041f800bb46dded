# `make demo` and `make test` are all one needs; each sets up .venv first when it is missing or out of date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
TORCH := $(shell grep '^torch==' constraints.txt)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test test-all lint check benchmark container-check constraints clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    simulate a session with known units, sort it, score it, say where the files are"
	@echo "make test    run the tests (test-all: with the slow ones)"
	@echo "make setup   install everything in .venv; the command is then .venv/bin/accm"
	@echo "make lint    format, lint, types, import contracts"
	@echo "make container-check   build the image, and sort a session by the service in it"
	@echo "make benchmark   measure accm, its ablations and other sorters (an hour); writes benchmarks/RESULTS.md"

setup: $(VENV)/.stamp

# torch comes first and alone: it is the largest, and its version decides the others
$(VENV)/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
		|| { echo "accm needs Python 3.11, 3.12 or 3.13; name one, as in: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[service]' --group dev
	@touch $@

demo: setup
	@mkdir -p $(DEMO)
	$(BIN)/accm simulate $(DEMO)/session.nwb --probe poly32 --duration 60 --units 12 --seed 1 --overwrite
	$(BIN)/accm sort $(DEMO)/session.nwb --overwrite
	$(BIN)/accm evaluate $(DEMO)/session_sorted.nwb --truth $(DEMO)/session_truth.nwb
	@echo
	@echo "sorted NWB   $(DEMO)/session_sorted.nwb"
	@echo "figures      $(DEMO)/session_sorted.html   (open it in a browser)"

test: setup  # one process for each of up to four cores, a file's tests in one
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow and not gpu"

test-all: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

benchmark: setup
	$(BIN)/python -m pip install --quiet -c constraints.txt --group benchmarks
	$(BIN)/python -m benchmarks.run

container-check:  # builds the image, starts the service in it, sorts a session there
	deploy/container_check.sh

constraints: setup
	{ echo '# What CI installs, pinned. Made by `make constraints` from a set-up that passed.'; \
	  $(BIN)/python -m pip freeze --exclude accm --exclude pip | grep '==' | sed 's/+cpu$$//'; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) $(DEMO) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
