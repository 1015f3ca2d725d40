# Two commands do everything on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Another torch, e.g. make .venv TORCH='torch==2.11.0'; the default is the one in constraints.txt.
TORCH ?= $(shell grep '^torch==' constraints.txt)

.PHONY: help demo test check lint types format memory gpu clean .venv

help:
	@echo 'make demo    draw faces, make shards, train for about three minutes, survive a kill -9'
	@echo 'make test    run the tests'
	@echo 'make check   lint, types and tests: what CI runs'
	@echo 'make format  put the code into shape'
	@echo 'make memory  measure peak memory on 10,000 and on 100,000 images'
	@echo 'make gpu     measure training on this GPU, at most seven minutes; GPU_SHARDS=FOLDER: on photos of 64 px'
	@echo 'make .venv   only install; TORCH="torch==2.11.0" chooses another torch'

.venv: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	  f"error: Python must be 3.11 or newer; got {sys.version.split()[0]}. Use make PYTHON=python3.12 or the like.")'
	@echo 'Installing into $(VENV): $(TORCH) (a CPU build is about 200 MB to download, one with CUDA 2 to 3 GB)'
	@echo 'and about 60 small packages (about 150 MB). Another torch: make .venv TORCH="torch==X.Y.Z".'
	$(PYTHON) -m venv $(VENV)
	@grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint $(VENV)/constraints.txt '$(TORCH)' --editable '.[dev]'
	@touch $@

demo: .venv
	$(BIN)/python demo/run.py

test: .venv
	$(BIN)/python -m pytest

check: lint types test

lint: .venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv
	$(BIN)/mypy

format: .venv
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

memory: .venv
	$(BIN)/python benchmarks/memory.py

gpu: .venv
	$(BIN)/python benchmarks/gpu.py $(if $(GPU_SHARDS),--shards '$(GPU_SHARDS)')

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
