PYTHON ?= python3
BIN := .venv/bin
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.ready  ## Create .venv with everything that demo, test and lint need

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

demo: .venv/.ready  ## Adapt the starter to the embedded scientific samples; the result is in outputs/demo
	$(OFFLINE) $(LAUNCH) recipes/finetune.py --domain scientific --precision fp32 --output_dir outputs/demo

# In the order of the folders, not of how many tests a file has: else the files of few, long tests come last.
test: .venv/.ready  ## Run all tests, offline
	$(OFFLINE) $(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: .venv/.ready  ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:  ## Remove outputs and caches, keep .venv
	rm -rf outputs build *.egg-info .pytest_cache .ruff_cache
