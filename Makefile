# Everything runs in .venv, which is made once from pyproject.toml and constraints.txt.
#   PYTHON=python3.12   the interpreter for a new .venv (default: the first of 3.11, 3.12, 3.13, 3.14 found)
#   ARGS="..."          handed on: make demo ARGS="--members 50", make test ARGS="tests/verification -k crps"
#   JOBS=2              test processes, one thread each
#   FULL=1              make campaign at its full counts

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test check campaign bench notebooks clean

BIN := .venv/bin
JOBS ?= 2
ARGS ?=
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMBA_NUM_THREADS=1 MPLBACKEND=Agg
PYTEST := $(ONE_THREAD) $(BIN)/pytest -n $(JOBS) --dist worksteal

# pyenv and friends put commands on the path that only print an error: run a candidate before choosing it.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3.14 python3; do \
	"$$name" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' >/dev/null 2>&1 \
	&& { echo "$$name"; break; }; done)

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.installed  ## forecast the packaged planet, verify it, write a report (under 3 minutes after installation)
	@$(BIN)/plumecast demo $(ARGS)

test: .venv/.installed  ## what every commit runs: all tests but the slow proofs (under 6 minutes on 2 cores)
	@$(PYTEST) -m "not campaign and not full" $(ARGS)

check: .venv/.installed  ## lint, format, types, and the direction of imports between the packages
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

campaign: .venv/.installed-notebooks  ## slow proofs, a shortened draw (under 25 minutes); FULL=1 runs the full counts
	@mkdir -p runs/artefacts
	@$(if $(FULL),PLUMECAST_FULL=1 )PLUMECAST_ARTEFACTS=$(CURDIR)/runs/artefacts $(PYTEST) -m "$(if $(FULL),campaign or full,campaign and not full)" $(ARGS)

bench: .venv/.installed-peers  ## benchmarks, by hand: time, throughput, peak memory, beside peers
	@$(BIN)/python -m tests.benchmarks $(ARGS)

notebooks: .venv/.installed-notebooks  ## open JupyterLab on notebooks/ (installs it the first time)
	@$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/01_data.ipynb \
		--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate --LabApp.extension_manager=readonly $(ARGS)

clean:  ## remove caches and build output; ALL=1 also removes .venv and runs/
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@$(if $(ALL),rm -rf .venv runs)

.venv/bin/python:
	@[ -n "$(PYTHON)" ] || { echo "plumecast needs Python 3.11 or newer with the venv module (on Debian: python3-venv);" \
		"none was found. Give one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "PYTHON=$(PYTHON) is older than 3.11" >&2; exit 2; }
	@echo "creating .venv with $$("$(PYTHON)" --version) ($(PYTHON))"
	@"$(PYTHON)" -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing plumecast and its dependencies into .venv (once, about 2 GB on disk; a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

.venv/.installed-peers: .venv/.installed
	@echo "installing the packages we are compared with into .venv (once, about 200 MB on disk)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,peers]'
	@touch $@

.venv/.installed-all: .venv/.installed-peers
	@echo "installing every extra that tests touch into .venv (once, about 1 GB on disk): cloud archives, live data, the simulated planet, JupyterLab"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,peers,cloud,live,simulate,notebooks]'
	@touch $@

.venv/.installed-notebooks: .venv/.installed
	@echo "installing JupyterLab into .venv (once, about 150 MB on disk)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,notebooks]'
	@touch $@
