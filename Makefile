# Every target sets up the environment that it needs; nothing has to be installed first but Python 3.11 or newer.
.DEFAULT_GOAL := help
.PHONY: fuzz kills soak security help demo test test-peers lint types bench schema clean

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
WORKERS ?= 2
VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin
RESULTS := $(if $(QUICK),build,docs/results)
INSTALL := pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

# A default build of llama-cpp-python crashes on machines with AMX; this one runs on anything with AVX-512.
LLAMA_CMAKE ?= -DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON \
	-DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

demo: $(VENV)/.base ## train a toy teacher, distil it, compare: about three minutes on two cores
	$(BIN)/limbeck demo

test: $(VENV)/.dev ## run the tests with coverage; real data is taken from LIMBECK_DATA if set
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) -m "not peers" --cov --cov-report=term:skip-covered --cov-fail-under=90

test-peers: $(PEERS)/.ready ## run the tests against trl, llama.cpp and lm-eval, in an environment of their own
	OMP_NUM_THREADS=1 $(PEERS)/bin/pytest -m peers

lint: $(VENV)/.dev ## ruff
	$(BIN)/ruff check .

types: $(VENV)/.dev ## mypy, strict
	$(BIN)/mypy

bench: $(PEERS)/.ready ## run every benchmark and write docs/results/performance.md; QUICK=1: toy shapes, into build/
	@for file in $(sort $(wildcard benchmarks/*.py)); do name=$$(basename $$file .py); echo "== $$name"; \
		$(PEERS)/bin/python $$file $(if $(QUICK),--quick) --json $(RESULTS)/performance/$$name.json || exit 1; done
	PYTHONPATH=benchmarks $(PEERS)/bin/python -m harness.page $(RESULTS)/performance $(RESULTS)/performance.md

fuzz: $(VENV)/.dev ## give every reader, config, model file and template 10,000 broken inputs; FUZZ_CASES=N: so many
	FUZZ_CASES=$(or $(FUZZ_CASES),10000) OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) tests/fuzz

kills: $(VENV)/.dev ## kill commands 200 times with SIGKILL, run them again, and compare the end to the bit
	$(BIN)/python tests/faults/kills.py $(or $(KILLS),200)

soak: $(VENV)/.dev ## train, evaluate and generate for two hours; memory, handles and threads must stay flat; MINUTES=5
	$(BIN)/python tests/faults/soak.py --minutes $(or $(MINUTES),120)

security: $(VENV)/.dev ## bandit over the source; pip-audit over the pins where its database can be reached
	$(BIN)/bandit --quiet --recursive src --configfile pyproject.toml
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip || echo "pip-audit: no database at hand, or findings above"

schema: $(VENV)/.base ## rewrite schema.json and docs/verbs from the recipes
	$(BIN)/python -m limbeck.schema

clean: ## remove what is generated: environments, caches, builds; runs/ stays
	rm -rf $(VENV) $(PEERS) build dist src/*.egg-info .coverage* htmlcov
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found: set PYTHON" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(PEERS)/bin/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found: set PYTHON" >&2; exit 1; }
	$(PYTHON) -m venv $(PEERS)

$(VENV)/.base: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/$(INSTALL) .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/$(INSTALL) ".[dev]"
	@touch $@ $(VENV)/.base

$(PEERS)/.ready: pyproject.toml constraints.txt | $(PEERS)/bin/python
	CMAKE_ARGS="$(LLAMA_CMAKE)" $(PEERS)/bin/$(INSTALL) ".[dev,peers,harness]"
	@touch $@
