# Everything runs from a virtual environment that the first target makes. It needs a Python from 3.11 on.
#
#   make demo      fetch the demo's model on first use and serve it   HOST=127.0.0.1 PORT=8000
#   make test      the whole test suite                               ARGS="-k weights" for a part of it
#   make check     lint, format, types, known vulnerabilities
#   make format    mend what lint and format can
#   make audit     known vulnerabilities in the pinned packages       asks a public database, where there is one
#   make bench     speed beside other engines                         ARGS="--help" for its options
#   make docs      the documentation as a site, in site/
#   make images    build and run the container image           as root, on Debian: apt-get install buildah debootstrap
#   make clean     remove the environment and every cache
#
#   PYTHON=python3.12 chooses the interpreter of the environment.

HOST ?= 127.0.0.1
PORT ?= 8000
ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python
RUNS := $(VENV)/.runs
DEVELOPS := $(VENV)/.develops
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt
SOURCES := emorl_core server training emorl_cli tests examples docs

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format audit bench docs images clean

help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

setup: $(DEVELOPS)

# torch goes first and by its pin: a build of it that lies on this machine is taken, where a free choice of version
# could fetch gigabytes. A half-made environment (no pip in it) is made anew.
$(RUNS): pyproject.toml constraints.txt
	@$(RUN) -m pip --version >/dev/null 2>&1 || { \
	  for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3.14 python3 python); do \
	    "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && break; \
	    python=; \
	  done; \
	  test -n "$$python" || { \
	    echo 'emorl needs Python >= 3.11 with its venv module (on Debian: apt-get install python3 python3-venv);' \
	         'name one with: make PYTHON=/path/to/python3.11' >&2; exit 1; }; \
	  echo "making $(VENV) with $$python"; \
	  "$$python" -m venv --clear $(VENV); }
	@echo 'installing PyTorch and the other packages into $(VENV); the first time takes minutes'
	@$(PIP) "$$(grep '^torch==' constraints.txt)"
	@$(PIP) --editable '.[gguf]'
	@touch $@

# What only work on emorl needs: test tools, linters, extras.
$(DEVELOPS): $(RUNS)
	@echo 'installing the development packages into $(VENV)'
	@$(PIP) --editable '.[dev]'
	@touch $@

demo: $(RUNS)
	@$(VENV)/bin/emorl demo --host $(HOST) --port $(PORT)

test: $(DEVELOPS)
	$(RUN) -m pytest --numprocesses auto --dist loadfile $(ARGS)

check: $(DEVELOPS)
	$(RUN) -m ruff check $(SOURCES)
	$(RUN) -m ruff format --check $(SOURCES)
	$(RUN) -m mypy
	$(RUN) -m tests.audit

format: $(DEVELOPS)
	$(RUN) -m ruff check --fix $(SOURCES)
	$(RUN) -m ruff format $(SOURCES)

audit: $(DEVELOPS)
	$(RUN) -m tests.audit

# ctranslate2 and xllamacpp are peers, and nothing else needs them. The demo's replies measure copied tokens; where its
# base cannot be had, the rest is measured.
bench: $(DEVELOPS)
	@$(PIP) --editable '.[bench]'
	-@$(VENV)/bin/emorl demo --build-only
	$(VENV)/bin/emorl bench $(ARGS)

# The variable silences a notice of the theme's makers: they maintain it until May 2027.
docs: $(DEVELOPS)
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet
	@echo 'site/index.html is written; its search needs a server: $(RUN) -m http.server --directory site 8080'

images:
	docker/check_images.sh

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
