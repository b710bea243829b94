# make demo | test | lint | bench: each sets up all that it needs (scripts/setup) and needs no stdin.
BIN := .venv/bin
IMAGE ?=
ARGS ?=
MYPY := $(BIN)/mypy --strict

.PHONY: help demo test lint format bench clean

help:
	@echo 'make demo [IMAGE=docker:python:3.12-slim]   an image from registry to Parsl, Snakemake and a plain command'
	@echo 'make test [ARGS="-k store"]                 all tests'
	@echo 'make lint                                   ruff, mypy --strict, import contracts'
	@echo 'make bench [ARGS="flatten enter"]           benchmarks; see benchmarks/README.md'
	@echo 'make clean                                  what the above made: .venv, .cache'

setup-%:
	@scripts/setup $*

demo: setup-demo
	@$(BIN)/python -m demo $(IMAGE)

test: setup-test
	@$(BIN)/python -m pytest $(ARGS)

lint: setup-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MYPY) -p udi_core -p udi_parsl -p udi_snakemake -p udi_jupyter
	$(BIN)/lint-imports

format: setup-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup-bench
	@$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache runinfo .snakemake
