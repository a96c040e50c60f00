# `make` lists the commands. Each one makes the environment first if it is missing or out of date.
PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
SCALE  ?= small

BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check
# Two notebooks at a time, one thread each; nothing that runs here may ask the hub for anything.
QUIET  := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1

# The stamp holds the folder it was made in, since the scripts of a virtual environment do not survive a move.
MADE_IN := $(shell cat $(STAMP) 2>/dev/null)
ifneq "$(MADE_IN)" "$(CURDIR)"
MOVED := moved
endif

.DEFAULT_GOAL := help
.PHONY: help env reproduce paper test sync benchmark readme docs clean moved

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

env: $(STAMP) ## make the virtual environment from constraints.txt (PYTHON=python3.12 picks another Python)

$(STAMP): constraints.txt settings.ini setup.py $(MOVED)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "merge_nb needs Python 3.11 or newer; %s is %d.%d. Try: make PYTHON=python3.12 ..." % (sys.executable, v[0], v[1]))'
	@$(PYTHON) -m venv $(if $(MADE_IN),$(if $(MOVED),--clear)) $(VENV)
	@echo "installing the pinned environment into $(VENV) (some minutes the first time)"
	@$(PIP) install -q -c constraints.txt setuptools wheel
	@$(PIP) install -q --no-build-isolation --use-pep517 -c constraints.txt -e '.[dev]'
	@echo "$(CURDIR)" > $(STAMP)

reproduce: env ## run the main experiment from nothing, compare with the record, write a summary
	@$(BIN)/merge_nb reproduce over-time --scale $(SCALE)

paper: env ## run what has no record, re-execute the paper, render the site
	@$(BIN)/merge_nb paper
	@$(MAKE) --no-print-directory docs

test: env ## everything continuous integration checks
	@$(BIN)/python tests/unchanged.py nbdev_export nbdev_clean
	@$(QUIET) $(BIN)/nbdev_test --n_workers $(JOBS) --timing
	@$(QUIET) $(BIN)/python -m pytest -q -p no:cacheprovider tests

sync: env ## export, clean, and test the notebooks that changed: before each commit
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean
	@$(BIN)/python tests/readme.py
	@$(QUIET) $(BIN)/python tests/changed.py

benchmark: env ## measure speed and memory beside the alternatives, on an idle machine: benchmarks/results.json
	@$(BIN)/python benchmarks

readme: env ## make README.md from nbs/index.ipynb
	@$(BIN)/python tests/readme.py

docs: env ## render the site into _docs, if Quarto is installed
	@if command -v quarto >/dev/null; then rm -rf _proc && $(BIN)/nbdev_docs && echo "open _docs/index.html"; \
	else echo "Quarto is not installed, so the site was not rendered. Get it from https://quarto.org/docs/get-started/ and run: make docs"; fi

clean: ## remove the site, caches of tools and build files; keeps .venv, checkpoints and records
	rm -rf _docs _proc .quarto .pytest_cache .hypothesis build dist *.egg-info nbs/nbdev.yml nbs/sidebar.yml
