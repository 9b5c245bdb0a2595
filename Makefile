# Everything runs from a virtual environment that the first target makes. It needs a Python from 3.11 on.
#
#   make demo      build the demo bundle on first use and serve it    HOST=127.0.0.1 PORT=8000
#   make test      the whole test suite                               ARGS="-k weights" for a part of it
#   make check     lint, format, types
#   make format    mend what lint and format can
#   make audit     known vulnerabilities in the pinned packages       asks a public database
#   make bench     the benchmarks                                     ARGS="--help" for their options
#   make clean     remove the environment and every cache
#
#   PYTHON=python3.12 chooses the interpreter of the environment.

HOST ?= 127.0.0.1
PORT ?= 8000
ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt
SOURCES := emorl_core server training emorl_cli tests

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format audit bench clean

help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

setup: $(READY)

# torch goes first and by its pin: a build of it that lies on this machine is taken, where a free choice of version
# could fetch gigabytes. A half-made environment (no pip in it) is made anew.
$(READY): pyproject.toml constraints.txt
	@$(RUN) -m pip --version >/dev/null 2>&1 || { \
	  for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3.14 python3 python); do \
	    "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && break; \
	    python=; \
	  done; \
	  test -n "$$python" || { \
	    echo 'emorl needs Python >= 3.11 with its venv module (on Debian: apt-get install python3 python3-venv);' \
	         'name one with: make PYTHON=/path/to/python3.11' >&2; exit 1; }; \
	  echo "making $(VENV) with $$python; the first time takes a few minutes"; \
	  "$$python" -m venv --clear $(VENV); }
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --editable '.[dev]'
	@touch $@

demo: $(READY)
	@$(VENV)/bin/emorl demo --host $(HOST) --port $(PORT)

test: $(READY)
	$(RUN) -m pytest $(ARGS)

check: $(READY)
	$(RUN) -m ruff check $(SOURCES)
	$(RUN) -m ruff format --check $(SOURCES)
	$(RUN) -m mypy

format: $(READY)
	$(RUN) -m ruff check --fix $(SOURCES)
	$(RUN) -m ruff format $(SOURCES)

audit: $(READY)
	$(RUN) -m pip_audit --progress-spinner off --requirement constraints.txt --no-deps --disable-pip

bench: $(READY)
	$(VENV)/bin/emorl bench $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
