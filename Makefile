# make demo      set up .venv, run the whole workflow on the embedded corpus (CPU, minutes)
# make learn     the same with trainings long enough to learn; fails if a network does not beat its input
#                SPEECH=DIR: on your own recordings; RESULTS=DIR: results elsewhere (both also for make demo)
# make test      set up .venv, run the tests
# make docs      build the documentation as a site: site/index.html
# make install   set up .venv only
# make bench     run the benchmarks of speed (that of quality needs corpora: benchmarks/quality.py)
# make schema    regenerate config/schema.json and config/README.md's tables after changing options or parts
# make rulegraph redraw docs/rulegraph.svg (needs graphviz)
# make format    format and lint

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install demo learn test docs bench schema rulegraph format clean-demo

VENV := .venv
BIN := $(VENV)/bin
CORES ?= $(shell nproc 2>/dev/null || echo 2)
# The first of these on the PATH that is Python 3.11 to 3.13; to override: make PYTHON=/path/to/python3.11
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3 python,$(shell command -v $(p) >/dev/null 2>&1 && \
	$(p) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 && echo $(p))))

help:
	@sed -n '/^# make/,/^$$/s/^# //p' Makefile

install: $(BIN)/.installed-dev

$(BIN)/.python:
	@if [ -z "$(PYTHON)" ]; then echo "error: Python 3.11, 3.12 or 3.13 is needed, and none is on the PATH; install one, or say: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1), not Python 3.11, 3.12 or 3.13; say: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) -m venv failed; on Debian or Ubuntu install the package python3-venv" >&2; exit 1; }
	@touch $@

# torch is installed first: requested on its own, pip may pick a CPU build from a local folder.
$(BIN)/.installed: requirements.txt pyproject.toml $(BIN)/.python
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$$(grep -E '^torch==' requirements.txt)"
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

$(BIN)/.installed-dev: requirements-dev.txt $(BIN)/.installed
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	@touch $@

$(BIN)/.installed-docs: requirements-docs.txt $(BIN)/.installed
	$(BIN)/python -m pip install --quiet -r requirements-docs.txt
	@touch $@

OVERRIDES = $(if $(SPEECH)$(RESULTS),--config $(if $(SPEECH),"demo_speech=$(SPEECH)") $(if $(RESULTS),"results=$(RESULTS)"))

# Snakemake's source cache is in the home folder by default.
demo learn: export XDG_CACHE_HOME := $(CURDIR)/.snakemake/cache
demo: $(BIN)/.installed
	$(BIN)/snakemake --cores $(CORES) --configfile config/demo.yaml $(OVERRIDES)
	@echo "The report: $(or $(RESULTS),results/demo)/report.html"
	@echo "Listen: resources/demo/example/noisy.flac, and enhanced by the network that comes with the package:" \
		"$(or $(RESULTS),results/demo)/example.wav"

learn: $(BIN)/.installed
	$(BIN)/snakemake --cores $(CORES) --configfile config/learn.yaml $(OVERRIDES) -- learn
	@echo "The report: $(or $(RESULTS),results/learn)/report.html"

# A process for each core; the tests of a file share what they need, and stay in one.
test: $(BIN)/.installed-dev
	$(BIN)/python -m pytest -n $(CORES) --dist loadfile

docs: $(BIN)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(BIN)/.installed-dev
	for script in $(filter-out %/quality.py %/peers.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

schema: $(BIN)/.installed
	$(BIN)/python -m finallyse.schema

rulegraph: $(BIN)/.installed
	$(BIN)/snakemake all --nolock --rulegraph | sed 's/bgcolor=white/bgcolor=transparent, rankdir=LR/; s/fontname=sans,/fontname=sans, fillcolor=white,/; s/style=rounded,/style="rounded,filled",/; s/style="rounded"/style="rounded,filled"/' \
		| dot -Tsvg > docs/rulegraph.svg

format: $(BIN)/.installed-dev
	$(BIN)/ruff check --fix . && $(BIN)/ruff format . && $(BIN)/snakefmt Snakefile workflow

clean-demo:
	rm -rf results/demo
