# minimegatron: every command sets up what it needs, once, in .venv.
#
#   make demo        train a small GPT on 1, 2 and 4 ranks and compare them
#   make lab         open JupyterLab on lesson 00
#   make test        lint, types, tests, and every lesson under strict nbval
#   make help        all of them

# Any Python from 3.11 to 3.14. An existing .venv keeps its own unless you name another:
# make venv PYTHON=python3.12
supported = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))
PYTHON ?= $(shell for p in .venv/bin/python python3 python3.14 python3.13 python3.12 python3.11; do \
    $$p -c '$(supported)' 2>/dev/null && echo $$p && break; done)
# cpu: PyTorch's CPU build, 0.2 GB. default: what PyPI has; on Linux that is the CUDA build, several
# GB, which a machine without a GPU has no use for.
TORCH ?= $(if $(shell command -v nvidia-smi 2>/dev/null || [ "$$(uname)" != Linux ] && echo yes),default,cpu)
CPU_INDEX = https://download.pytorch.org/whl/cpu
WORKERS ?= 2
LESSONS ?= $(wildcard notebooks/*.ipynb)

version := $(shell $(PYTHON) -c '$(supported)' 2>/dev/null && \
    $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
stamp = .venv/made-with-python-$(version)
torch := $(shell grep '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help venv demo lab test test-all lint test-package test-lessons test-slow lattice bench notebooks \
    check-notebooks doctor clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##  */\1\t/p' Makefile | awk -F '\t' '{printf "make %-16s %s\n", $$1, $$2}'

venv: $(stamp)  ## the virtual environment .venv, made once; TORCH=cpu or TORCH=default chooses torch

# A changed constraints.txt or pyproject.toml brings .venv up to date; another Python makes it anew.
$(stamp): constraints.txt pyproject.toml
	@[ -n "$(version)" ] || { echo "minimegatron needs Python 3.11 to 3.14, not '$(PYTHON)';" \
	    "name one: make venv PYTHON=python3.12"; exit 1; }
	@if .venv/bin/python -c 'import pip, sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(version)")' 2>/dev/null; \
	    then echo "Bringing .venv up to date (Python $(version))"; \
	    else echo "Making .venv with Python $(version)"; $(PYTHON) -m venv --clear .venv; fi
	@rm -f .venv/made-with-python-*
	@if [ "$(TORCH)" = cpu ]; then \
	    echo "Installing $(torch), CPU build (TORCH=default takes PyPI's build)"; \
	    .venv/bin/python -m pip install -qq --no-deps --retries 1 --timeout 20 --index-url $(CPU_INDEX) $(torch) 2>/dev/null \
	    || echo "PyTorch's CPU index has no build for here or cannot be reached: taking PyPI's"; fi
	@echo "Installing the packages of constraints.txt (a minute or two)"
	@.venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: venv  ## train a small GPT on real text: 1 process, tp=2, dp=2, tp=2 x dp=2
	@.venv/bin/python -m minimegatron.cli demo

lab: venv  ## JupyterLab, on lesson 00
	@.venv/bin/python -m jupyter lab notebooks/00_start_here.ipynb

doctor: venv  ## does this machine have what it takes, and what to do if not
	@.venv/bin/python -m minimegatron.cli doctor

test: lint check-notebooks test-package test-lessons  ## everything that a change must pass (15 minutes at most)

test-all: lint check-notebooks test-package test-slow test-lessons  ## and what takes longer

lint: venv  ## ruff and mypy
	@.venv/bin/python -m ruff check .
	@.venv/bin/python -m mypy

test-package: venv
	@.venv/bin/python -m pytest tests -m "not slow" -n $(WORKERS) --dist loadfile -q

test-slow: venv
	@.venv/bin/python -m pytest tests -m slow -n $(WORKERS) --dist loadfile -q || [ $$? = 5 ]  # 5: none

lattice: venv  ## parity of every pair of options, and every triple with pp or zero (20 minutes)
	@.venv/bin/python -m pytest tests/training/test_parity_lattice.py -q -s

# One after the other: a lesson's ranks want both cores, and its time is judged.
test-lessons: venv
	@.venv/bin/python -m pytest --nbval --nbval-current-env -q $(LESSONS)

bench: venv  ## this machine's numbers beside the design's
	@.venv/bin/python -m minimegatron.cli bench

notebooks: venv  ## run the lessons again and store their outputs, normalised (LESSONS="a.ipynb b.ipynb")
	@.venv/bin/python -m minimegatron.classroom.notebooks run $(LESSONS)

check-notebooks: venv
	@.venv/bin/python -m minimegatron.classroom.notebooks check $(LESSONS)

clean:  ## remove .venv and what the tools left
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
