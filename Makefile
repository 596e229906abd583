# Every target sets up what it needs: Python 3.11 or later and make are enough.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.bench-ready
# Linux has a build of torch without CUDA, half a gigabyte smaller; set TORCH=torch for another one.
TORCH ?= torch==2.13.0
SOAK_MINUTES ?= 10
CHAOS_MINUTES ?= 10
SIMULATE_MINUTES ?= 1
STUBS := everstep/control everstep/trainer everstep/training buf

.PHONY: setup protos check-protos lint format test soak chaos simulate demo bench-checkpoint bench-progress picture clean help

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## make setup         .venv with everything that development needs
setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Everstep needs Python 3.11 or later")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt '$(TORCH)'
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable '.[dev]'
	@touch $@

## make demo          kills a training twice, and shows that it ends in the same bytes
demo: $(READY)
	$(BIN)/everstep demo

## make test          everything that must hold: lint, types, floors, contract, tests
test: lint check-protos
	$(BIN)/python -m pytest --numprocesses 2 --dist loadscope

## make soak          trials of the promise for SOAK_MINUTES (10): killed at random, compared;
##                    before them a store and a control plane are away for a minute
soak: $(READY)
	EVERSTEP_TEST_OUTAGE_SECONDS=60 $(BIN)/python -m pytest -q tests/services/test_store_away.py \
	    tests/services/test_store_trouble.py tests/services/test_outages.py -k "goes_on or away"
	$(BIN)/python -m tests.soak --minutes $(SOAK_MINUTES)

## make chaos         real services, faults for CHAOS_MINUTES (10), and every promise checked;
##                    CHAOS_SEED=N replays one trial
chaos: $(READY)
	$(BIN)/python -m tests.chaos $(if $(CHAOS_SEED),--seed $(CHAOS_SEED),--minutes $(CHAOS_MINUTES))

## make simulate      the services' code on a simulated clock and network, faults for SIMULATE_MINUTES (1),
##                    and every promise checked; SIMULATE_SEED=N tells one schedule
simulate: $(READY)
	$(BIN)/python -m tests.simulation \
	    $(if $(SIMULATE_SEED),--seed $(SIMULATE_SEED),--minutes $(SIMULATE_MINUTES))

## make bench-checkpoint  Everstep's checkpoints beside its peers': an hour; BENCH="--rounds 1 ..." for less
bench-checkpoint: $(BENCH_READY)
	$(BIN)/python -m benchmarks.checkpoint $(BENCH)

## make bench-progress  how fast progress travels, beside a bare stream: a quarter of an hour;
##                    BENCH="--rounds 1 --sections delivery" for less
bench-progress: $(BENCH_READY)
	$(BIN)/python -m benchmarks.progress $(BENCH)

$(BENCH_READY): $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable '.[bench]'
	@touch $@

## make lint          ruff, mypy --strict, import-linter, buf
lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/buf lint protos
	$(BIN)/buf format --diff --exit-code protos

## make format        ruff and buf, in place
format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format --write protos

## make protos        the stubs in everstep/ and buf/, from protos/
protos: $(READY)
	PYTHON=$(BIN)/python protos/generate.sh .

check-protos: $(READY)
	@rm -rf build/stubs && mkdir -p build/stubs
	@PYTHON=$(BIN)/python protos/generate.sh build/stubs
	@for folder in $(STUBS); do \
	    diff --recursive --exclude __pycache__ --exclude '__init__.py' $$folder build/stubs/$$folder \
	    || { echo "error: the stubs in $$folder are not those of protos/; run: make protos"; exit 1; }; \
	done
	@echo "stubs: as generated"

## make picture       docs/images/, from real runs of the demo and of the page (needs chromium)
picture: $(READY)
	$(BIN)/python docs/images/record_demo.py
	PYTHONPATH=. $(BIN)/python docs/images/record_dashboard.py

## make clean         .venv and what the tools leave behind
clean:
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
