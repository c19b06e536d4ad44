# Everything a developer or CI runs. `make` alone lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
BIN := .venv/bin

.PHONY: help setup tools demo proto lint test test-slow bench-capacity bench-planner \
	bench-emulated bench-live bench-kv lock clean

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-16s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install everything into .venv (needs Python 3.11); quick when nothing changed
	@infra/setup.sh venv

tools: setup ## install what only tests need: .venv-otlp, the Node client's packages (Node 20)
	@infra/setup.sh tools

demo: setup ## serve a real model on this machine's CPU and show promises being kept
	@$(BIN)/headway demo

proto: tools ## generate headway/v1 and the Node example's code from proto/
	@rm -f headway/v1/*_pb2* && rm -rf examples/node/gen
	@infra/generate.sh .

lint: tools ## check style, types, imports, scripts, images, protos and generated code
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/shellcheck --external-sources infra/*.sh .ci/run
	@$(BIN)/hadolint services/*/Dockerfile infra/docker/*.Dockerfile
	@infra/check_protos.sh

test: lint ## lint, then all tests but the slow ones
	@$(BIN)/python -m pytest tests/unit tests/integration tests/vllm -m "not slow"
	@echo "make test: passed"

test-slow: setup ## the tests left out of `make test`
	@$(BIN)/python -m pytest -m slow
	@echo "make test-slow: passed"

bench-capacity: setup ## find each policy's capacity by simulation: about 15 min (ARGS=--full: hours)
	@$(BIN)/python -m bench.capacity $(ARGS)

bench-planner: setup ## measure how long the planner decides, and the simulator's speed
	@$(BIN)/python -m bench.planner $(ARGS)

bench-emulated: setup ## measure the controller against emulated engines
	@$(BIN)/python -m bench.emulated

bench-live: setup ## compare with plain vLLM on real engines (hours; ARGS=--quick: 30 min)
	@$(BIN)/python -m bench.live $(ARGS)

bench-kv: setup ## measure KV transfer between two processes
	@$(BIN)/python -m bench.kv_transfer

lock: setup ## pin all dependencies anew in requirements/
	@infra/lock.sh

clean: ## remove all that was built or installed here
	@rm -rf .venv .venv-otlp examples/node/node_modules build dist out \
		.mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
