# Everything here runs on a machine that has only Python (3.11 or newer) and make: the first target that
# needs it creates .venv and installs into it; the stamps in .venv make the next call immediate.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: help demo quickstart test test-only test-fast lint house test-slow test-compiler test-recipes test-support support test-faults test-hostile \
        bench-step bench-around bench-data bench-memory bench-roofline bench-save bench-objectives gpu-check plan-flux docs clean

help:
	@echo "make demo         install, and look at a shipped teacher and its one-step student: a minute after installation"
	@echo "make quickstart   install, then train, distill and sample a small model"
	@echo "make test         lint and tests, about 12 minutes on two cores"
	@echo "make test-fast    the tests to run first, under two minutes"
	@echo "make lint         ruff, mypy and codespell"
	@echo "make house        the measures of the source that docs/architecture.md shows"
	@echo "make test-slow    the heavy checks"
	@echo "make test-compiler   losses and gradients of compiled networks against those of others, half an hour"
	@echo "make test-recipes the whole path of every paper's recipe at a tiny size, and whether it fits as it says"
	@echo "make test-support every teacher, objective and export against docs/support.md; make support writes it"
	@echo "make test-faults  kill -9 at random moments, full disks and worse; writes docs/results/faults.md"
	@echo "make test-hostile damaged and hostile inputs for every reader; writes docs/results/hostile.md"
	@echo "make bench-save   what a checkpoint costs training"
	@echo "make bench-step   time of a training step"
	@echo "make bench-around launches and milliseconds of a training step outside the networks"
	@echo "make bench-data   the images that a core decodes in a second"
	@echo "make bench-memory the peak of distill plan against the measured one"
	@echo "make bench-roofline   operations and bytes of every paper's recipe, 6 minutes"
	@echo "make gpu-check    everything that needs a GPU, in 8 minutes on one; writes docs/results/gpu.md"
	@echo "make bench-objectives   every objective on the digits, hours"
	@echo "make plan-flux    memory and communication of a 12B teacher on 8, 64 and 1024 GPUs"
	@echo "make docs         build the site of docs/ into site/, strictly"
	@echo "make clean        remove .venv, builds and caches; runs/ stays"

demo: .venv/.installed
	$(BIN)/distill demo

quickstart: .venv/.installed
	$(BIN)/distill quickstart

test: lint test-only

test-only: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# The rules of the source, recipes and the mathematics; not what trains, exports or starts processes.
test-fast: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/test_layers.py tests/test_house.py tests/trainers/recipe tests/distill \
	  --ignore=tests/distill/export --ignore=tests/distill/teachers

lint: .venv/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy distill trainers launch configs
	$(BIN)/codespell

house: .venv/.installed-dev
	$(BIN)/python -m benchmarks.house

test-slow: .venv/.installed-dev
	$(BIN)/python -m pytest -m slow

test-recipes: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow tests/launch/test_recipes.py \
	  tests/trainers/plan/test_recipes_fit.py

test-support: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow tests/test_support.py

support: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.support

test-compiler: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow tests/trainers/engine/test_compiler.py

test-faults: .venv/.installed-dev
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m tests.faults

test-hostile: .venv/.installed-dev
	$(BIN)/python -m tests.hostile --out docs/results/hostile.md

bench-save: .venv/.installed
	$(BIN)/python -m benchmarks.save

bench-step: .venv/.installed
	$(BIN)/python -m benchmarks.step

bench-around: .venv/.installed
	$(BIN)/python -m benchmarks.around

bench-data: .venv/.installed
	$(BIN)/python -m benchmarks.data

bench-memory: .venv/.installed-dev
	$(BIN)/python -m benchmarks.memory

bench-roofline: .venv/.installed-dev
	$(BIN)/python -m benchmarks.roofline

gpu-check: .venv/.installed-dev
	PATH="$(CURDIR)/$(BIN):$$PATH" benchmarks/gpu_check.sh

plan-flux: .venv/.installed
	$(BIN)/python -m benchmarks.plan_flux

bench-objectives: .venv/.installed
	$(BIN)/python -m benchmarks.objectives digits

# A warning is an error: a dead link, a missing heading, a page that no menu has. Read it by
# .venv/bin/python -m http.server -d site, or open site/index.html, where only the search does not work.
docs: .venv/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# torch comes first, on its own line: it is by far the largest.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("constraints.txt needs Python 3.11 or newer: make PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e .
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(PIP) -e ".[dev]"
	$(PIP) --no-deps torch-fidelity  # its requirements would bring torchvision, which nothing here imports
	$(PIP) --no-deps trackio gradio_client orjson starlette uvicorn  # trackio asks for a Pillow before 13, and runs with it
	@touch $@

.venv/.installed-docs: .venv/.installed
	$(PIP) -e ".[docs]"
	@touch $@

clean:
	rm -rf .venv build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find distill trainers launch configs benchmarks examples tests -name __pycache__ -type d -prune -exec rm -rf {} +
