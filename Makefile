# Payswitch: `make up` runs the whole system, `make test` checks it. Both set up .venv by themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Into $(VENV), also where pip is set up to install into the user's home.
export PIP_USER := 0
# Else each of the hundreds of processes that the tests start would compile all modules again.
export PYTHONDONTWRITEBYTECODE :=
BENCH_STAMP := $(VENV)/.bench-installed

.PHONY: up check test test-long chaos rinha entry bench-queue bench-processor bench-pipeline bench-peers bench-summary bench-routing bench-cluster bench-failover docs lint format lock clean

up: $(STAMP)
	@exec $(BIN)/payswitch up $(ARGS)

# The inner loop: what needs no server. One test: .venv/bin/pytest tests/unit/payments/test_ledger.py -k window
check: lint
	$(BIN)/pytest -n 2 tests/unit $(ARGS)

# Four processes for two cores, as the tests wait for each other's servers half of the time.
test: $(STAMP)
	$(BIN)/pytest -n 4 -m "not long" $(ARGS)

test-long: $(BENCH_STAMP)
	$(BIN)/pytest -n 2 -m long $(ARGS)

# Breaks the system on purpose and audits every payment: make chaos ARGS='--seed 7 --minutes 2'
chaos: $(STAMP)
	@$(BIN)/payswitch chaos $(ARGS)

# Each writes bench/results/NAME.json and NAME.png: make bench-queue ARGS='--rounds 1'
bench-queue bench-processor bench-pipeline bench-peers bench-summary bench-routing bench-cluster bench-failover: $(BENCH_STAMP)
	@$(BIN)/python -m bench.$(@:bench-%=%) $(ARGS)

SCENARIO ?= preview

# A scored run of the challenge: make rinha SCENARIO=final ARGS='--target processes'
rinha: $(STAMP)
	@$(BIN)/python -m bench.rinha $(SCENARIO) $(ARGS)

# What the challenge asks of an entry, into build/entry: make entry ARGS='--owner somebody'
entry: $(STAMP)
	@$(BIN)/python -m bench.rinha.entry $(ARGS)

# The documentation as a site of plain files: site/index.html. A link that leads nowhere fails it.
docs: $(STAMP)
	$(BIN)/zensical build --strict

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Resolves pyproject.toml's ranges into the two hashed lock files, for every Python from 3.11 on.
lock:
	$(PYTHON) -m venv $(VENV)-lock && $(VENV)-lock/bin/pip install --quiet uv
	$(VENV)-lock/bin/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate \
	    --no-emit-index-url --python-version 3.11 pyproject.toml -o requirements.lock
	$(VENV)-lock/bin/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate \
	    --no-emit-index-url --python-version 3.11 --extra dev pyproject.toml -o requirements-dev.lock
	$(VENV)-lock/bin/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate \
	    --no-emit-index-url --python-version 3.11 --extra dev --extra bench pyproject.toml -o bench/requirements.lock
	rm -rf $(VENV)-lock

# What the benches compare with and the soaks use comes on top.
$(BENCH_STAMP): bench/requirements.lock $(STAMP)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r bench/requirements.lock
	@touch $(BENCH_STAMP)

$(STAMP): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "payswitch needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	@echo "setting up $(VENV) (once, about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

clean:
	rm -rf $(VENV) site build .cache .payswitch .pytest_cache .mypy_cache .ruff_cache .hypothesis
