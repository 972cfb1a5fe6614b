# Everything needs only Python 3.11+, git and make: the first target that is run makes .venv itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Test processes, each with embedded servers of its own; 0 is one without. Servers that are given by
# LANGMEM_STACK_TEST_... URLs are shared, and some tests end all connections: then it is 0.
WORKERS ?= $(if $(LANGMEM_STACK_TEST_POSTGRES_URL)$(LANGMEM_STACK_TEST_REDIS_URL),0,2)

.DEFAULT_GOAL := help
.PHONY: help demo test lint types check bench notebooks lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## An agent that remembers across a restart, on embedded servers: no key, no Docker
	@$(BIN)/langmem-stack demo

test: $(READY) ## The test suite, on real embedded PostgreSQL and Redis
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --durations=15

lint: $(READY) ## ruff and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY) ## mypy --strict
	$(BIN)/mypy

check: lint types test ## Lint, types and tests: what CI runs

bench: $(READY) ## The benchmarks (benchmarks/README.md says what each one prints)
	$(BIN)/python benchmarks/imports.py
	$(BIN)/python benchmarks/store.py --items 20000
	$(BIN)/python benchmarks/working_memory.py
	$(BIN)/python benchmarks/checkpointer.py
	$(BIN)/python benchmarks/fact_survival.py

notebooks: $(READY) ## Run the notebooks and save what they show now
	$(BIN)/python -m tests.notebooks

lock: $(READY) ## Resolve pyproject.toml anew into requirements.lock
	$(BIN)/uv pip compile pyproject.toml --all-extras --group test --group bench --group lint --universal \
	  --python-version 3.11 --generate-hashes --no-annotate --no-header --quiet --upgrade -o requirements.lock

clean: ## Remove the virtual environment, caches and the demo's memory
	rm -rf $(VENV) .langmem-demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# uv installs the locked set several times faster than pip; where it cannot reach the index that pip
# is configured for, pip installs the same set.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"langmem_stack needs Python 3.11 or newer, $(PYTHON) is {v[0]}.{v[1]}; use make PYTHON=python3.12 ...")'
	@echo "making $(VENV) from requirements.lock (once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep -o '^uv==[0-9.]*' requirements.lock)"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable . \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(READY)
