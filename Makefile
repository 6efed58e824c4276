# `make demo` and `make test` work as the first command on a fresh machine that has python3, pip and make.

VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
FIGURES := docs/benchmarks
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard backends/*/pyproject.toml))
PROJECTS := pyproject.toml $(wildcard backends/*/pyproject.toml)

COVERAGE ?= --cov

export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test test-matrix test-distributions lint servers integration bench clean

demo: $(VENV)/installed
	$(BIN)/python -m demo

# Measures branch coverage and prints it. `make test COVERAGE=` leaves that out and takes two thirds of the time.
test: $(VENV)/installed
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(COVERAGE)

# PYTHONS="3.9 3.12" narrows the choice.
test-matrix:
	JOBS=$(JOBS) scripts/test-matrix

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/lint-imports

# Builds the distributions and installs them into new environments, as users do. Takes about a minute.
test-distributions: $(VENV)/installed
	$(BIN)/python -m pytest integration/test_distributions.py

# Installs the servers that `make integration` starts. INTEGRATION=moto,ceph narrows the choice for both.
servers:
	scripts/install-servers

# loadgroup: all tests of a server run on the same worker, so that it starts only once.
integration: $(VENV)/installed servers
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup integration

# The measurements that docs/benchmarks.md describes, about 15 minutes on two cores. Writes the raw figures, the
# ratios and the plots, and fills the tables of the documentation.
bench: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	$(BIN)/python -m benchmarks --json $(FIGURES)/raw.json --plots $(FIGURES) --markdown $(FIGURES)/ratios.md
	$(BIN)/python -m benchmarks.documentation $(FIGURES)/raw.json

$(VENV)/installed: $(PROJECTS) scripts/find-python
	@python=$$(scripts/find-python) && $$python -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[tensorflow,dev]' $(addprefix -e ./,$(PLUGINS))
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-3.*
