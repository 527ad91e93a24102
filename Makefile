# make demo   a video from nothing: environment, install, one prompt (PROMPT="..." changes it)
# make test   everything CI runs: linter, formatter, types, tests (two cores, no GPU)
# make test-fast, make soak: the quick part of the tests; faults and load
# PYTHON=python3.12 names the Python to build the environment with. PIP_ARGS passes extra arguments to pip; without an
# NVIDIA GPU, spare yourself CUDA (about 3 GB):
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_ARGS ?=
PROMPT ?= an orange cat runs to the right through a sunny garden
# the text as it was typed, also where it has a dollar sign, through the environment: no quote can break out
override PROMPT := $(value PROMPT)
export PROMPT

VENV := .venv
BIN := $(VENV)/bin
# through the environment, so that the build of our own package obeys the constraints too
INSTALL := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

.PHONY: demo install lint test test-fast soak clean

demo: $(VENV)/.installed
	@$(BIN)/turbodiffusion generate -- "$$PROMPT"

install: $(VENV)/.installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "Python 3.11 to 3.13 is needed, $(PYTHON) is %d.%d: make demo PYTHON=python3.12" % v)'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV): minutes the first time, nearly all of it PyTorch. Without an NVIDIA GPU see PIP_ARGS in the Makefile."
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "Installing what the tests need ..."
	@$(INSTALL) --editable ".[test]"
	@touch $@

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(PYTEST) -m "not soak and not gpu"

test-fast: $(VENV)/.installed-test
	$(PYTEST) -m "not slow and not soak and not gpu"

soak: $(VENV)/.installed-test
	$(PYTEST) -m soak

clean:
	rm -rf $(VENV) build dist *.egg-info
