# Every target sets up the environment that it needs; nothing has to be installed first but Python 3.11 or newer.
.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-kernels test-peers fuzz kills soak security lint types bench docs docs-check schema clean

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
WORKERS ?= 2
KERNEL_TESTS := tests/kernels tests/decode tests/invariants/test_i18_qat_is_deployed.py
VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin
RESULTS := $(if $(QUICK),build,docs/results)
INSTALL := pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

# llama.cpp for the machine at hand. AMX is left out: such a build crashes there.
CPU_FLAGS := $(shell grep -m1 ^flags /proc/cpuinfo 2>/dev/null)
WITH = $(if $(filter $(1),$(CPU_FLAGS)),-D$(2)=ON,-D$(2)=OFF)
LLAMA_CMAKE ?= $(if $(CPU_FLAGS),-DGGML_NATIVE=OFF $(call WITH,avx,GGML_AVX) $(call WITH,avx2,GGML_AVX2) \
	$(call WITH,fma,GGML_FMA) $(call WITH,f16c,GGML_F16C) $(call WITH,bmi2,GGML_BMI2) \
	$(call WITH,avx_vnni,GGML_AVX_VNNI) $(call WITH,avx512f,GGML_AVX512) $(call WITH,avx512_vbmi,GGML_AVX512_VBMI) \
	$(call WITH,avx512_vnni,GGML_AVX512_VNNI) $(call WITH,avx512_bf16,GGML_AVX512_BF16))

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

demo: $(VENV)/.base ## train a toy teacher, distil it, compare: about three minutes on two cores
	$(BIN)/limbeck demo

test: $(VENV)/.dev ## run the quick tests; COVER=1: keep their coverage; real data is taken from LIMBECK_DATA if set
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) -m "not peers and not slow" $(if $(COVER),--cov --cov-report=)

test-slow: $(VENV)/.dev ## run the slow tests; COVER=1 (after make test COVER=1): both together must cover 90 %
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) -m "not peers and slow" \
		$(if $(COVER),--cov --cov-append --cov-report=term:skip-covered --cov-fail-under=90)

test-kernels: $(VENV)/.dev ## run the kernels' tests again with AVX2 alone, and without compiled kernels
	OMP_NUM_THREADS=1 LIMBECK_ARCH=x86-64-v3 $(BIN)/pytest -n $(WORKERS) -m "not slow" $(KERNEL_TESTS)
	OMP_NUM_THREADS=1 LIMBECK_NATIVE=off $(BIN)/pytest -n $(WORKERS) -m "not slow" $(KERNEL_TESTS)

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
	$(BIN)/python scripts/audit_pins.py constraints.txt

docs: $(VENV)/.dev ## build the site of all pages and the Python API into build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "open build/site/index.html"

docs-check: docs ## open every page of the site in headless Chromium, at 390 and at 1,440 pixels
	$(BIN)/python scripts/site/check.py build/site

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
	$(BIN)/$(INSTALL) ".[dev,docs]"
	@touch $@ $(VENV)/.base

$(PEERS)/.ready: pyproject.toml constraints.txt | $(PEERS)/bin/python
	CMAKE_ARGS="$(LLAMA_CMAKE)" $(PEERS)/bin/$(INSTALL) ".[dev,peers,harness]"
	@touch $@
