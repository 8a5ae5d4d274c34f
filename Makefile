# One command each for the main job (make demo) and for the tests (make test); both build their own environment first.
#
#   PYTHON   the interpreter the environments are made from (3.11 or newer)
#   VENV     where the environment goes; everything in it belongs to this Makefile
#   ARGS     passed on to `latentcomm sweep` (make demo) or to pytest (make unit)
#
# On Linux the package index's torch brings several GB of CUDA libraries. Where a processor is enough, point pip at an
# index of CPU builds first (PIP_EXTRA_INDEX_URL): `torch==2.13.0` then takes the CPU build.

SHELL := /bin/bash
VENV ?= .venv
VENV39 ?= .venv-tl39
WORKERS ?= 2
ARGS ?=

ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
endif

BIN := $(VENV)/bin
SEAM_TESTS := $(addprefix tests/,models/test_models.py hooks/test_capture.py hooks/test_graft.py hooks/test_decode.py \
	experiments/sweep/test_sweep_grid.py $(addprefix experiments/cascade/test_cascade_,openings.py \
	hand_offs.py continuations.py fitting.py))
ARITHMETIC_TESTS := tests/test_numerics.py tests/test_alignment.py tests/fusion tests/_core/test_linalg.py \
	tests/models/test_models.py tests/hooks tests/similarity/test_spaces.py tests/similarity/layer_maps tests/drift/test_drift_files.py \
	tests/redundancy/test_redundancy.py $(addprefix tests/channels/test_,$(addsuffix .py,channel_contract channels coconut state_deltas \
	kv interlat message)) tests/channels/training tests/experiments/test_effects.py tests/experiments/sweep/test_sweep_grid.py

.DEFAULT_GOAL := help
.PHONY: demo test lint types unit docs docs-serve test-arithmetic test-tl39 bench figures clean help FORCE

demo: $(VENV)/ready-base  ## the main job: the layer sweep of the built-in model, written to figures/
	$(BIN)/latentcomm sweep $(ARGS)
	@[ -n '$(ARGS)' ] || $(BIN)/python analyses/readme_table.py

test: lint types docs unit  ## every check: ruff, basedpyright, docs, pytest

lint: $(VENV)/ready-dev  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready-dev  ## basedpyright over latentcomm/ and analyses/
	$(BIN)/basedpyright --pythonpath $(BIN)/python

unit: $(VENV)/ready-dev  ## pytest, with the doctests and the examples of the docs
	$(BIN)/python -m pytest -n $(WORKERS) --durations 10 $(ARGS)

docs: $(VENV)/ready-dev  ## the documentation, into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs-serve: $(VENV)/ready-dev  ## the documentation, served while it is written
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

test-arithmetic: $(VENV)/ready-dev  ## the tests of what computes, with every sum in another order, as on another processor
	MKL_CBWR=COMPATIBLE $(BIN)/python -m pytest -n $(WORKERS) --other-kernels -m 'not real_weights and not slow' $(ARITHMETIC_TESTS)

test-tl39: $(VENV39)/ready-tl39  ## the seam, graft and sweep tests on TransformerLens 3.9 and its HookedTransformer
	$(VENV39)/bin/python -c 'from transformer_lens import HookedTransformer'
	$(VENV39)/bin/python -m pytest -n $(WORKERS) $(SEAM_TESTS)

bench: $(VENV)/ready-base  ## the layer sweep timed against the naive grid
	$(BIN)/python benchmarks/sweep_vs_naive.py

figures: $(VENV)/ready-base  ## every figure of analyses/, from its settings
	for script in analyses/fig*.py; do $(BIN)/python $$script || exit 1; done

clean:  ## remove the environments made here and what the tools left behind
	@$(call discard,$(VENV))
	@$(call discard,$(VENV39))
	rm -rf site dist build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@awk -F ':.*  ## ' '/^[a-z0-9-]+:.*  ## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Environments. A ready-* file is written last and holds the checkout's path: an install that was interrupted, an
# environment whose interpreter is gone and a checkout that was moved are all built anew. A folder that is not ours is
# never touched.

OURS := made-by-latentcomm
usable = grep -qxF '$(CURDIR)' $(1)/ready-* 2>/dev/null && $(1)/bin/python -c '' 2>/dev/null
discard = if [ -e $(1)/$(OURS) ]; then rm -rf $(1).stale && mv $(1) $(1).stale; fi; rm -rf $(1).stale

ifneq ($(shell $(call usable,$(VENV)) && echo yes),yes)
$(VENV)/ready-base $(VENV)/ready-dev: FORCE
endif
ifneq ($(shell $(call usable,$(VENV39)) && echo yes),yes)
$(VENV39)/ready-tl39: FORCE
endif

# $(call environment,FOLDER,CONSTRAINTS,WHAT PIP INSTALLS,READY FILES)
define environment
@[ -n '$(PYTHON)' ] && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo 'latentcomm needs Python 3.11 or newer, and $(if $(PYTHON),$(PYTHON) is not that,none is on the PATH);' \
		'install it and name it: make PYTHON=/path/to/python3.11' >&2; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	echo '$(PYTHON) cannot make environments: it lacks venv or ensurepip (on Debian and Ubuntu, install python3-venv)' >&2; exit 1; }
@[ ! -e $(1) ] || [ -e $(1)/$(OURS) ] || { \
	echo '$(1) exists and was not made here; remove it, or name another folder: make VENV=.venv-latentcomm' >&2; exit 1; }
@$(call usable,$(1)) || { $(call discard,$(1)); mkdir -p $(1) && touch $(1)/$(OURS) && $(PYTHON) -m venv $(1); }
@echo 'installing into $(1): a few minutes the first time'
@rm -f $(1)/ready-*
$(1)/bin/python -m pip install -qq --disable-pip-version-check --upgrade -c $(2) pip
$(1)/bin/python -m pip install -qq --disable-pip-version-check -c $(2) --build-constraint $(2) $(3)
@for file in $(4); do echo '$(CURDIR)' > $(1)/$$file; done
endef

$(VENV)/ready-base: pyproject.toml constraints.txt
	$(call environment,$(VENV),constraints.txt,-e .,ready-base)

$(VENV)/ready-dev: pyproject.toml constraints.txt
	$(call environment,$(VENV),constraints.txt,-e '.[dev$(comma)docs]',ready-base ready-dev)

$(VENV39)/ready-tl39: pyproject.toml constraints-3.9.txt
	$(call environment,$(VENV39),constraints-3.9.txt,-e . pytest pytest-xdist hypothesis,ready-tl39)

comma := ,
