# `make help` lists the targets. `make demo` and `make test` set everything up by themselves.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: help setup demo docs lint mypy mypy-baseline test test-all test-image test-p100 bench clean
.DEFAULT_GOAL := demo

help:
	@echo "make setup       .venv with the packages of requirements.txt (several GB with torch)"
	@echo "make demo        the sample competition from audio to submission.csv; a minute or two on 2 cores"
	@echo "make test        the tests that are not slow; 10 to 13 minutes on 2 cores"
	@echo "make test-all    all tests; about 35 minutes on 2 cores"
	@echo "make lint        style and types"
	@echo "make docs        the documentation as a site, in site/"
	@echo "make bench       start-up, training, scale and memory on this machine, into benchmarks/RESULTS.md"
	@echo "make test-image  all tests with the versions in Kaggle's image; test-p100: with torch for a P100"
	@echo "make clean       removes runs, submissions and caches of the tools; keeps data/ and .venv"

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt
	@echo "setup: makes a virtual environment in $(VENV) with the packages of requirements.txt (several GB with torch, some minutes)"
	@$(PYTHON) -c 'import sys; sys.exit("error: Python %d.%d is too old: 3.11 or newer is needed (make PYTHON=python3.12)" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

demo:
	@echo "demo: builds the sample competition (synthetic clips, no download), extracts features, trains 5 folds,"
	@echo "      writes submissions/submission.csv and scores it; one to two minutes on 2 cores after the setup"
	@$(MAKE) --no-print-directory setup
	$(PY) get_features.py --competition sample --recipe sample
	$(PY) train.py --recipe sample --features data/sample/logmel

lint: $(VENV)/.lint
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	@$(MAKE) --no-print-directory mypy

# docs/cli.md is written from the help of the commands; a link that leads nowhere is an error.
docs: $(VENV)/.docs
	$(PY) docs/write_cli.py
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "docs: site/index.html; with its search: $(PY) -m http.server -d site"

$(VENV)/.docs: $(VENV)/.installed requirements-docs.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $@

# Complaints that are not in the baseline fail, and so do lines of the baseline that are no complaint any more.
mypy: $(VENV)/.lint
	$(VENV)/bin/mypy | $(VENV)/bin/mypy-baseline filter

mypy-baseline: $(VENV)/.lint
	$(VENV)/bin/mypy > .mypy_found; test $$? -lt 2
	$(VENV)/bin/mypy-baseline sync < .mypy_found; rm -f .mypy_found

$(VENV)/.lint: $(VENV)/.installed requirements-dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

# Without these the tests of the extractor onnx, of exports, clusters and Modal's cloud skip.
OPTIONAL := requirements-onnx.txt requirements-openvino.txt requirements-cluster.txt requirements-cloud.txt
$(VENV)/.optional: $(VENV)/.installed $(OPTIONAL)
	$(PY) -m pip install --quiet --disable-pip-version-check $(OPTIONAL:%=-r %)
	@touch $@

test:
	@echo "test: runs all tests that are not marked slow, on all cores; 10 to 13 minutes on 2 cores after the setup"
	@$(MAKE) --no-print-directory setup
	OMP_NUM_THREADS=1 $(PY) -m pytest tests -q -m "not slow" -n auto --dist worksteal

test-all:
	@echo "test-all: runs all tests on all cores; about 35 minutes on 2 cores after the setup"
	@$(MAKE) --no-print-directory $(VENV)/.optional
	OMP_NUM_THREADS=1 $(PY) -m pytest tests -q -n auto --dist worksteal

# The same tests with other versions of the packages: those in Kaggle's image, and torch 2.7.1's for a real P100.
test-image: .venv-kaggle/.installed
	OMP_NUM_THREADS=1 .venv-kaggle/bin/python -m pytest tests -q -n auto --dist worksteal

test-p100: .venv-p100/.installed
	OMP_NUM_THREADS=1 .venv-p100/bin/python -m pytest tests -q -n auto --dist worksteal

.venv-%/.installed: requirements.txt constraints-%.txt
	@echo "setup: makes a virtual environment in $(@D) with the versions of constraints-$*.txt (Kaggle has Python 3.12: make PYTHON=python3.12)"
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints-$*.txt
	@touch $@

bench:
	@echo "bench: measures start-up, training, scale and memory; with DATA=ESC10 also extraction and the headline, with"
	@echo "       WEIGHTS=mn04_as_mAP_432.pt also EfficientAT; writes benchmarks/RESULTS.md; up to 20 minutes on 2 idle cores"
	@$(MAKE) --no-print-directory setup
	$(PY) benchmarks/startup.py
	$(PY) benchmarks/training.py
	$(PY) benchmarks/scale.py
	$(PY) benchmarks/memory.py
ifdef DATA
	$(PY) benchmarks/extraction.py --data "$(DATA)" $(if $(WEIGHTS),--weights "$(WEIGHTS)")
	$(PY) benchmarks/headline.py --data "$(DATA)"
else
	@echo "bench: skipped extraction and headline, which need real clips: make bench DATA=ESC10 [WEIGHTS=mn04_as_mAP_432.pt]"
endif

clean:
	@echo "clean: removes runs, submissions, site/ and caches of the tools; keeps data/ and $(VENV)"
	find runs submissions -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	rm -rf .pytest_cache .ruff_cache .mypy_cache site
