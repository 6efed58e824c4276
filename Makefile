# `make demo` and `make test` each work as the first command on a fresh machine with python3, pip and make.

VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
FIGURES ?= .benchmarks
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard backends/*/pyproject.toml))
PROJECTS := pyproject.toml $(wildcard backends/*/pyproject.toml)

export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test lint servers integration bench clean

demo: $(VENV)/installed
	$(BIN)/python -m demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The servers that the integration suite starts. INTEGRATION=moto,ceph narrows the choice, here and there.
servers:
	scripts/install-servers

# loadgroup: all tests over one server on one worker, so that it is started once.
integration: $(VENV)/installed servers
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup integration

# What docs/benchmarks.md describes. About twelve minutes on two cores.
bench: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	mkdir -p $(FIGURES)
	$(BIN)/python -m benchmarks --json $(FIGURES)/raw.json --plots $(FIGURES) --markdown $(FIGURES)/ratios.md

$(VENV)/installed: $(PROJECTS) scripts/find-python
	@python=$$(scripts/find-python) && $$python -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[tensorflow,dev]' $(addprefix -e ./,$(PLUGINS))
	@touch $@

clean:
	rm -rf $(VENV)
