# The whole project from a fresh clone; needs Python 3.11 or 3.12, make and a package index, nothing else.
#   make demo      train the small default model and evaluate it
#   make test      the tests, without the long matrices and soaks; make test-all adds those
#   make check     lint, format and types
#   make lock      pin the versions anew from pyproject.toml
# PYTHON=/path/to/python chooses the interpreter, PYTEST_ARGS="-k shapes" narrows the tests. The tests read the parity
# fixtures from the folder that VIDTUNE_GOLDEN names in the environment, else from tests/golden.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PYTEST_ARGS ?=
# Two processes, each with whole files, so that fixtures are made once.
PARALLEL := -n 2 --dist loadfile
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Single downloads reach 500 MB.
export UV_HTTP_TIMEOUT ?= 600
# Once, where the packages are installed: a process that compiles torch and lightning itself takes ten seconds to start.
export UV_COMPILE_BYTECODE ?= 1

.PHONY: venv demo test test-all check lock

venv: $(STAMP)

# The stamp is written last, so that an interrupted installation is taken up again.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(not (3, 11) <= v < (3, 13) and "found Python %d.%d, expected 3.11 or 3.12; use: make PYTHON=/path/to/python3.11 ..." % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip uv
	$(BIN)/uv pip install --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps -e .
	@touch $@

demo: venv
	@test -f runs/demo/summary.json || rm -rf runs/demo
	test -f runs/demo/summary.json || $(BIN)/python train.py run_name=demo
	$(BIN)/python evaluate.py run=runs/demo

test: venv
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL) $(PYTEST_ARGS)

test-all: venv
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

check: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Pins that still fit are kept; delete requirements.lock first to raise them all.
lock: venv
	@head -n 2 requirements.lock > $(VENV)/lock.head
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 \
		--quiet --no-header --no-annotate --no-emit-index-url --no-emit-find-links -o requirements.lock
	@cat $(VENV)/lock.head requirements.lock > $(VENV)/lock.new && mv $(VENV)/lock.new requirements.lock
