# make demo     train a readable model beside its dense twin and write the report
# make test     the whole default test suite
# make help     the rest

.DEFAULT_GOAL := help
.PHONY: help demo test install compile interop lint types docs

VENV := .venv
PY := $(VENV)/bin/python
JOBS ?= 2
# An environment holds absolute paths: one that was moved or copied has no marker of this place.
INSTALLED := $(VENV)/.installed-$(shell pwd -P | cksum | cut -d " " -f 1)
INTEROP := $(VENV)/.interop
# Without the run-time shape checks, which torch.compile cannot trace.
COMPILE := $(PY) -m pytest tests/compile -o addopts=--import-mode=importlib
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

# The first interpreter that runs and is new enough; PYTHON=/path/to/python overrides the search.
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { command -v $$p; break; }; done)
endif

help:
	@echo "make demo      train a pools model and its dense twin, write one HTML report"
	@echo "make test      the default test suite, then tests/compile (JOBS=$(JOBS) processes)"
	@echo "make install   only make $(VENV), from constraints.txt"
	@echo "make compile   only tests/compile"
	@echo "make interop   tests against the packages pellucid exchanges with, installed first"
	@echo "make lint      ruff"
	@echo "make types     pyright"
	@echo "make docs      rebuild the tables and the help texts in the docs"

demo: $(INSTALLED)
	$(VENV)/bin/pellucid demo

# One torch thread a process: the processes share the cores between them.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist worksteal
	$(COMPILE)

compile: $(INSTALLED)
	$(COMPILE)

interop: $(INTEROP)
	$(PY) -m pytest -m interop tests/interop

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(INSTALLED)
	$(VENV)/bin/pyright

docs: $(INSTALLED)
	$(PY) docs/build.py

install: $(INSTALLED)

# The folder is made anew when it was made elsewhere, as before a move of the checkout, or when its
# interpreter no longer runs.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "pellucid needs Python 3.11 or newer and found none: \
	install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "pellucid needs \
	Python 3.11 or newer; $(PYTHON) is older or does not run" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual \
	environments: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@grep -qsF "$$(pwd -P)/$(VENV)/bin/" $(VENV)/bin/pip && $(PY) -m pip --version >/dev/null 2>&1 \
	|| $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing the pinned versions of constraints.txt into $(VENV) ..."
	@$(PIP) -e ".[data,bench,dev]" || { echo "The installation failed; the lines above say why \
	(no network to the package index?). Run the same command again to continue." >&2; exit 1; }
	@touch $@

$(INTEROP): $(INSTALLED)
	@$(PIP) -e ".[data,bench,dev,interop]"
	@touch $@
