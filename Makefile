# Thin: each target is one real command. PYTHON must be 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Many tests wait for processes, so one more than there are processors.
WORKERS ?= $(shell expr $$(nproc) + 1)
# Some containers set it: each process that a test starts would compile all our modules again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: setup demo kill-each up test test-slow check bench hook load autoscaling-live soak campaign autoscaling-bars probe-live slurm-chaos wire outage ingest agent-footprint dashboards lint type dist clean help

$(STAMP): pyproject.toml constraints.txt proto/build.py $(shell find proto/switchgear -name '*.proto')
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[server,train,dev]'
	touch $(STAMP)

setup: $(STAMP)  ## install everything into .venv

demo: $(STAMP)  ## train a real model on simulated nodes, break it three times, recover it; serve it under load; prove it
	$(BIN)/switchgear demo

kill-each: $(STAMP)  ## the demo with services apart, once for each process: SIGKILL it twice, start it again, prove all the same
	for name in collector scheduler recovery autoscaler gateway router gpu-01; do \
		$(BIN)/switchgear demo --apart --kill $$name || exit 1; \
	done

up: $(STAMP)  ## run the control plane on this machine
	$(BIN)/switchgear up

test: $(STAMP)  ## run all tests
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP)  ## run the tests that take long
	$(BIN)/python -m pytest -m slow

check: lint type  ## formatting, lint, layers, types

lint: $(STAMP)  ## ruff and import-linter
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

type: $(STAMP)  ## mypy --strict
	$(BIN)/mypy

bench: $(STAMP)  ## each fault of training and the way back, beside torchrun and ft_launcher: about an hour
	$(BIN)/python benchmarks/recovery.py

hook: $(STAMP)  ## what watching costs a training step
	$(BIN)/python benchmarks/hook.py

load: $(STAMP)  ## three minutes of requests while replicas come, go and are killed: none may be lost
	$(BIN)/python benchmarks/serving.py

autoscaling-live: $(STAMP)  ## ten minutes of recorded requests (TRACE=FILE) on real replicas that the policy sizes; every decision replayed
	$(BIN)/python benchmarks/autoscaling_live.py --trace $(TRACE) --minutes 10

soak: $(STAMP)  ## rounds of random faults, each with the proofs
	$(BIN)/python benchmarks/soak.py

campaign: $(STAMP)  ## one long job, eight faults a minute for ten minutes, with all proofs
	$(BIN)/python benchmarks/campaign.py

autoscaling-bars: $(STAMP)  ## the autoscaling policy against every baseline, on the traces in TRACES and hard ones of our own: an hour at first
	$(BIN)/python benchmarks/autoscaling.py --hard $(if $(TRACES),--traces $(TRACES))

probe-live: $(STAMP)  ## what the inference servers of PyPI really tell, beside our table: installs them into an environment of its own
	test -x build/probe-live/bin/python || $(PYTHON) -m venv build/probe-live
	build/probe-live/bin/python -m pip install --quiet 'ray[serve]' bentoml litserve torch torchserve torch-model-archiver packaging psutil kserve nvidia-pytriton
	SWITCHGEAR_PROBE_PYTHON=$(CURDIR)/build/probe-live/bin/python $(BIN)/python -m pytest tests/e2e/test_adapters_live.py -v -p no:cacheprovider

slurm-chaos: $(STAMP)  ## SIGKILL of a scheduler that drives a real Slurm, a hundred rounds: the same result each round
	$(BIN)/python benchmarks/slurm_chaos.py --rounds 100 --seed 1

wire: $(STAMP)  ## bytes and CPU of the telemetry wire, beside OTLP with zstd and remote write
	$(BIN)/python benchmarks/wire.py

outage: $(STAMP)  ## ten minutes without a collector, the agent killed meanwhile: nothing missing, live data first
	$(BIN)/python benchmarks/outage.py --seconds 600

ingest: $(STAMP)  ## what taking in telemetry costs, beside Prometheus and VictoriaMetrics, and what faults cost it: half an hour
	$(BIN)/python benchmarks/ingest.py

agent-footprint: $(STAMP)  ## what the node agent costs with 8 GPUs, beside node_exporter; and what a GPU that hangs costs the others
	$(BIN)/python benchmarks/agent_footprint.py
	$(BIN)/python benchmarks/gpu_hang.py

dashboards: $(STAMP)  ## write Grafana's dashboards as JSON from their code
	$(BIN)/python dashboards/build.py

dist: $(STAMP)  ## build the wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12
