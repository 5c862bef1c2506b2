# Every target sets up .venv first, with the versions that constraints.txt is known to pass with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Reaches pip's isolated build environments as well, so that nothing is ever searched for.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-all frameworks matrix check bench format clean

demo: $(VENV)/.run
	$(BIN)/dataporter demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 -m 'not slow'

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --hypothesis-profile=full

frameworks: $(VENV)/.frameworks
	$(BIN)/python -m pytest -n 2 --hypothesis-profile=full tests/integrations

matrix: $(VENV)/.matrix
	$(BIN)/nox $(if $(PYTHONS),--python $(PYTHONS))

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .nox

# torch goes first and alone: whatever else asks for it then finds it installed.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "DataPorter needs Python 3.10 or newer; name one with: make PYTHON=python3.11 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch numpy
	@touch $@

$(VENV)/.run: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[examples]'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet -e '.[examples,dev]'
	@touch $@

$(VENV)/.frameworks: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet -e '.[examples,dev,frameworks]'
	@touch $@

$(VENV)/.matrix: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet 'nox[uv]'
	@touch $@

$(VENV)/.bench: $(VENV)/.dev benchmarks/requirements.txt
	$(BIN)/python -m pip install --quiet -r benchmarks/requirements.txt
	@touch $@
