# Everything lives in .venv; no root needed.  macOS: written and reviewed, not run here.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
# MLX's backend: Metal on a Mac, CUDA where an NVIDIA driver answers, else the CPU.
BACKEND ?= $(shell if [ "$$(uname)" = Darwin ]; then echo dev; \
	elif nvidia-smi >/dev/null 2>&1; then nvidia-smi | grep -q 'CUDA Version: 1[3-9]' && echo cuda13 || echo cuda12; else echo cpu; fi)

.PHONY: install demo train-demo test test-all check lint format bench clean pages parity

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 found; install one, or give PYTHON=/path/to/python" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) 2>/dev/null || $(PYTHON) -m venv --clear --without-pip $(VENV)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python tools/bootstrap_pip.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$(BACKEND),dev]"
	@touch $@

demo: install
	@$(BIN)/python tools/demo.py

train-demo: install
	@$(BIN)/python tools/train_demo.py

test: install
	$(BIN)/python -m pytest -m "not slow"

test-all: install
	$(BIN)/python -m pytest

check: install lint
	$(BIN)/python -m mypy

lint: install
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .

format: install
	$(BIN)/python -m ruff format .
	$(BIN)/python -m ruff check --fix .

pages: install
	$(BIN)/python tools/pages.py $(if $(PICTURES),--pictures)

parity: install
	$(BIN)/python tools/parity.py $(or $(ORACLE),../shared/oracle/core) --out $(or $(OUT),/tmp/mflux-parity)

ROWS = benchmarks/rows.jsonl
BENCHMARKS = blas.py "blocks.py --bits 4 3 5 6 --tokens 512 1024 --rounds 5" "encoders.py --side 512 --rounds 5" training.py \
  batch.py "peer.py --rounds 5" split.py inside.py start.py growth.py step_cache.py

bench: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check ".[parity]"
	rm -f $(ROWS)
	for each in $(BENCHMARKS); do echo "== $$each"; MFLUX_BENCHMARKS=$(ROWS) $(BIN)/python benchmarks/$$each || exit 1; done
	$(BIN)/python benchmarks/plot.py $(ROWS) docs/images/benchmarks.png

clean:
	rm -rf $(VENV) demo build *.egg-info
