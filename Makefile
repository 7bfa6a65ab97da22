# Three things people do here: `make demo`, `make test`, `make check`. Each sets up what it needs.

PYTHON ?= python3
BIN := .venv/bin
# The stamp is written last, so a set-up that was interrupted leaves none and starts afresh.
# It names the interpreter and this folder: scripts inside .venv hold its absolute path.
STAMP := .venv/.ready
# Compiled when the package is installed, by hatch_build.py.
KERNELS := src/polytask/kernels
IDENTITY = $(CURDIR) $$($(BIN)/python -V 2>&1)

# In the environment rather than as an option: so the build backends are pinned too.
# (PIP_BUILD_CONSTRAINT is what pip 25.3 and later read for them.)
setup: export PIP_CONSTRAINT = constraints.txt
setup: export PIP_BUILD_CONSTRAINT = constraints.txt

# In CI nothing is rewritten: code that is not formatted is a failure.
FORMAT := $(if $(filter true 1,$(CI)),--check)

.PHONY: help setup demo test check
help:
	@echo "make setup   the command polytask at $(BIN)/polytask (quick when nothing changed)"
	@echo "make demo    the main job on the embedded suite; its report is runs/demo/report.html"
	@echo "make test    every test"
	@echo "make check   formatter, linter, type checker, and the floors of the house"

setup:
	@if [ ! -x $(BIN)/polytask ] || [ "$$(cat $(STAMP) 2>/dev/null)" != "$(IDENTITY)" ]; then \
	    $(MAKE) --no-print-directory .fresh && $(MAKE) --no-print-directory .install; \
	elif [ pyproject.toml -nt $(STAMP) ] || [ constraints.txt -nt $(STAMP) ] || \
	    [ hatch_build.py -nt $(STAMP) ] || [ -n "$$(find $(KERNELS) -name '*.[ch]' -newer $(STAMP))" ]; then \
	    $(MAKE) --no-print-directory .install; \
	fi

demo: setup
	$(BIN)/polytask compare digits2 --out runs/demo

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

check: setup
	$(BIN)/ruff format $(FORMAT) .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_house.py

.PHONY: .fresh .install
.fresh:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "polytask needs Python 3.11 or later; '$(PYTHON)' is $$($(PYTHON) -V 2>&1 || true)." \
	         "Name another one: make setup PYTHON=python3.12" >&2; \
	    exit 1; }
	@echo "Setting up .venv; the first time takes a few minutes."
	$(PYTHON) -m venv --clear .venv

.install:
	@rm -f $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[dev]"
	@echo "$(IDENTITY)" > $(STAMP)
