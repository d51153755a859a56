# The commands of this repository. Each does its own set-up first; `make setup` does only that.
SHELL := /bin/bash
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME PYTHONSTARTUP
export PYTHONNOUSERSITE := 1
python := .venv/bin/python
# Arguments for pytest: without any, everything runs, and core and codec must be covered.
PYTEST ?= --cov=wormfs.core --cov=wormfs.codec --cov-report=term:skip-covered --cov-fail-under=95

.PHONY: help setup demo demo-cluster test test-all check format sim bench bench-etcd proto clean

help:
	@echo 'make demo      a six-node cluster on this machine, shown working (3 minutes)'
	@echo 'make demo-cluster  the same on etcd: its metadata master is killed in the middle of a copy'
	@echo 'make test      the tests, the long ones sampled (10 minutes)'
	@echo 'make test-all  all rounds of all tests (an hour or more)'
	@echo 'make check     ruff, mypy --strict, import-linter, stale stubs'
	@echo 'make format    let ruff format and mend what it can'
	@echo 'make sim       simulated clusters under faults: a minute of new seeds (SIM="--seed N": one again)'
	@echo 'make bench     figures, beside GlusterFS: bench-results/*.json (root)'
	@echo 'make bench-etcd  metadata of many servers, beside JuiceFS on the same etcd members (root)'
	@echo 'make proto     generate the stubs in wormfs/rpc/v1 from proto/'
	@echo 'make setup     Debian packages, .venv, locked dependencies'
	@echo 'make clean     remove what the commands above made, .venv too'

setup:
	@scripts/setup.sh

demo: setup
	@$(python) scripts/demo.py $(DEMO)

demo-cluster: setup
	@$(python) scripts/demo.py --engine etcd $(DEMO)

test: setup
	@$(python) scripts/run_tests.py --limit 1500 -- $(PYTEST)

test-all: setup
	@WORMFS_ROUNDS=all $(python) scripts/run_tests.py --limit 21600 -- $(PYTEST)

check: setup
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-cache
	@scripts/make_stubs.sh --check

format: setup
	@.venv/bin/ruff check --fix
	@.venv/bin/ruff format

sim: setup
	@$(python) -m wormfs.sim $(SIM)

bench: setup
	@$(python) -m benches.run $(BENCH)

bench-etcd: setup
	@$(python) -m benches.etcd $(BENCH)

proto: setup
	@scripts/make_stubs.sh

clean:
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage* build bench-results *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
