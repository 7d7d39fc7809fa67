# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PAGE_VENV ?= .venv-page
export HF_HUB_OFFLINE ?= 1
export NO_MKDOCS_2_WARNING ?= 1

.PHONY: demo test oldest slow hub page-tests check bench bench-gpu dist docs format clean

$(VENV)/installed: $(wildcard $(PIP_CONSTRAINT)) pyproject.toml hatch_build.py $(wildcard src/swinv2/ops/cpu/sources/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[figures]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/installed  ## classify twenty photographs with the model that ships, and draw them
	$(BIN)/swinv2 demo --output build/demo.png

test: $(VENV)/installed-dev  ## the tests, under ten minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

oldest:  ## the tests, with the oldest torch and transformers that the package supports, in an environment of their own
	PIP_CONSTRAINT=tests/oldest.txt PYTEST_ADDOPTS="-W 'ignore:Conversion of an array:DeprecationWarning'" \
		$(MAKE) test VENV=.venv-oldest

slow: $(VENV)/installed-dev  ## the long tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow
	OMP_NUM_THREADS=1 SWINV2_TYPECHECK=0 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow tests/tracing

hub: $(VENV)/installed-dev  ## the tests that need the model hub
	HF_HUB_OFFLINE=0 $(BIN)/python -m pytest -m hub

$(PAGE_VENV)/installed: $(wildcard $(PIP_CONSTRAINT)) pyproject.toml hatch_build.py $(wildcard src/swinv2/ops/cpu/sources/*)
	$(PYTHON) -m venv $(PAGE_VENV)
	$(PAGE_VENV)/bin/pip install --quiet --upgrade pip
	$(PAGE_VENV)/bin/pip install --quiet --editable '.[page-tests]'
	touch $@

page-tests: $(PAGE_VENV)/installed  ## the tests of `swinv2 page` in a browser, in an environment of their own; they need Chromium
	OMP_NUM_THREADS=1 $(PAGE_VENV)/bin/python -m pytest tests/page/test_layout.py tests/cli/test_page.py

check: $(VENV)/installed-dev  ## style, types, import ladder, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --quiet --strict --site-dir build/site

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed-dev  ## speed and memory beside transformers, timm, torchvision and OpenVINO
	$(BIN)/python benchmarks/model.py

bench-gpu: $(VENV)/installed-dev  ## the kernels' tests and the speeds at batches that fill a GPU
	$(BIN)/python benchmarks/attention.py --device cuda --rounds 3
	$(BIN)/python benchmarks/model.py --device cuda --precisions bf16 --executions compiled,graphs --together 16 --rounds 3 --batch-sizes best

dist: $(VENV)/installed-dev  ## sdist and wheels, each checked in an empty environment (CHECK=manylinux: only this one; CHECK=none: none)
	$(BIN)/python scripts/dist.py $(if $(CHECK),--check $(CHECK))

docs: $(VENV)/installed-dev  ## the documentation, served on this machine
	$(BIN)/mkdocs serve

clean:
	rm -rf build dist site .pytest_cache .ruff_cache .hypothesis
