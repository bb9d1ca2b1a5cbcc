# Everything runs in .venv, which is made when it is needed: Python >= 3.10, pip and make suffice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
RUNS ?= runs

.PHONY: demo demo-faces demo-gan test test-all test-lowest lint format bench docs docs-serve \
	release-check clean

demo: $(VENV)/.classification  ## train on the embedded digits with and without MHE: a table, a picture
	$(BIN)/mhe-classification compare --output $(RUNS)/demo --data digits --model vgg9 --width 0.25 \
		--regularizers none,half_mhe,comhe_random --seeds 0,1 --epochs 10 --batch-size 64

demo-faces: $(VENV)/.sphereface_plus  ## verify digits never seen in training, with SphereFace+
	$(BIN)/sphereface-plus train --output $(RUNS)/demo-faces --resume --model sfnet4 --width 0.25 \
		--dim 64 --lr 0.05 --annealing.gamma 1 --steps 150
	$(BIN)/sphereface-plus test $(RUNS)/demo-faces --output $(RUNS)/demo-faces/report

demo-gan: $(VENV)/.mhe_gan  ## train a small GAN on the embedded digits and draw samples
	$(BIN)/mhe-gan train --output $(RUNS)/demo-gan --resume --width 0.125 --lr 2e-4 --steps 600
	$(BIN)/mhe-gan sample $(RUNS)/demo-gan --num 64 --output $(RUNS)/demo-gan/samples.png

# A process a core, each with whole files of tests, so that what a file sets up is set up once.
TESTS := python -m pytest -q -n logical --maxprocesses 8 --dist loadfile
PYTEST := $(BIN)/$(TESTS)

test: $(VENV)/.development  ## the fast tests
	$(PYTEST)

test-all: $(VENV)/.development  ## all tests, the slow ones too
	$(PYTEST) -m ""

# What the packages declare as the lowest they work with, Python included.
LOWEST_PYTHON ?= python3.10
test-lowest: .venv-lowest/.development  ## the fast tests with the lowest versions of everything
	.venv-lowest/bin/$(TESTS)

lint: $(VENV)/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.development
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.development
	$(BIN)/python packages/core/benchmarks/energy.py
	$(BIN)/python packages/classification/benchmarks/training_step.py
	$(BIN)/python packages/mhe_gan/benchmarks/training_step.py
	$(BIN)/python packages/sphereface_plus/benchmarks/verification.py
	$(BIN)/mhe-uniformity bench

MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

docs: $(VENV)/.documentation  ## the site, in site/; a broken link or reference fails
	$(MKDOCS) build --strict

docs-serve: $(VENV)/.documentation  ## the site at http://localhost:8000, made anew when a page changes
	$(MKDOCS) serve

release-check: $(VENV)/.release  ## build, check and install every package, and run each from its wheel
	$(BIN)/python tools/release_check.py

clean:
	rm -rf $(VENV) .venv-lowest $(RUNS) site .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.classification: $(BIN)/pip packages/core/pyproject.toml packages/classification/pyproject.toml
	$(PIP) -e packages/core -e packages/classification
	touch $@

$(VENV)/.sphereface_plus: $(BIN)/pip packages/core/pyproject.toml packages/sphereface_plus/pyproject.toml
	$(PIP) -e packages/core -e packages/sphereface_plus
	touch $@

$(VENV)/.mhe_gan: $(BIN)/pip packages/core/pyproject.toml packages/mhe_gan/pyproject.toml
	$(PIP) -e packages/core -e packages/mhe_gan
	touch $@

$(VENV)/.development: $(BIN)/pip requirements-dev.txt $(wildcard packages/*/pyproject.toml)
	$(PIP) -r requirements-dev.txt
	touch $@

.venv-lowest/.development: requirements-dev.txt $(wildcard packages/*/pyproject.toml)
	$(LOWEST_PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check uv
	.venv-lowest/bin/uv pip install --quiet --compile-bytecode --python .venv-lowest \
		--resolution lowest-direct -r requirements-dev.txt
	touch $@

$(VENV)/.documentation: $(VENV)/.development docs/requirements.txt
	$(PIP) -r docs/requirements.txt
	touch $@

$(VENV)/.release: $(VENV)/.development requirements-release.txt
	$(PIP) -r requirements-release.txt
	touch $@
