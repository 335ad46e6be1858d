# Each target makes .venv when it is missing.
# The first Python >= 3.11 that starts and can make an environment: a version manager's shim may fail, Debian may lack venv.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do \
  $$name -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Which build of torch, on Linux: `cpu` (2 GB) or `cuda` (7 GB); by itself `cpu` where there is no NVIDIA device.
TORCH ?= $(if $(filter Linux,$(shell uname -s)),$(if $(wildcard /dev/nvidia0 /dev/dxg),cuda,cpu),any)
# Address of an index of CPU builds, where pip's own have none: pytorch.org, "Get started", shows PyTorch's.
TORCH_INDEX ?=
CPU_TORCH = $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX) torch torchvision,\
  $(shell sed -nE 's/^(torch|torchvision)<=(.*)/\1==\2+cpu/p' constraints.txt))

.PHONY: setup demo test test-all check bench docs ui clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Python 3.11 or newer with venv is needed; PYTHON=/path/to/python3.11 make setup names one."; exit 2; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@if [ "$(TORCH)" = cpu ] && ! $(BIN)/python -m pip install --quiet --disable-pip-version-check $(CPU_TORCH) 2>/dev/null; then \
	  echo "pip's indexes offer no CPU build of torch, so the one with CUDA is installed (5 GB more, no difference in use);"; \
	  echo "make setup TORCH_INDEX=ADDRESS takes it from PyTorch's index of CPU builds (pytorch.org, 'Get started')."; fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m pipelines.demo

test: $(STAMP)
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist worksteal

test-all: $(STAMP)
	$(BIN)/python -m pytest -m 'slow or gpu or not slow'

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

# MLflow's default server takes 2.6 GB in eleven processes; one worker shows the same pages.
ui: $(STAMP)
	@case "$$MLFLOW_TRACKING_URI" in http*) echo "The runs are on a server: open $$MLFLOW_TRACKING_URI"; exit 2;; esac
	@echo "The runs: http://127.0.0.1:5000/#/experiments/0?workflowType=machine_learning"
	MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --host 127.0.0.1 --port 5000 --workers 1 \
	  --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}"

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
