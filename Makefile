# `make demo` and `make test` set everything up by themselves; `make clean` removes outputs.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: setup demo lint mypy mypy-baseline test test-all test-image test-p100 bench clean
.DEFAULT_GOAL := demo

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt
	@echo "setup: a virtual environment in $(VENV) with the packages of requirements.txt (several GB with torch, some minutes)"
	@$(PYTHON) -c 'import sys; sys.exit("error: Python %d.%d is too old: 3.11 or newer is needed (make PYTHON=python3.12)" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

demo:
	@echo "demo: sets up $(VENV), builds the sample competition (synthesised, no download), extracts its features, trains 5 folds,"
	@echo "      writes submissions/submission.csv and scores it; one to two minutes on 2 cores after the setup"
	@$(MAKE) --no-print-directory setup
	$(PY) get_features.py --competition sample --recipe sample
	$(PY) train.py --recipe sample --features data/sample/logmel

lint: $(VENV)/.lint
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	@$(MAKE) --no-print-directory mypy

# Complaints that are not in the baseline fail, and so do lines of the baseline that are no complaint any more.
mypy: $(VENV)/.lint
	$(VENV)/bin/mypy | $(VENV)/bin/mypy-baseline filter

mypy-baseline: $(VENV)/.lint
	$(VENV)/bin/mypy > .mypy_found; test $$? -lt 2
	$(VENV)/bin/mypy-baseline sync < .mypy_found; rm -f .mypy_found

$(VENV)/.lint: $(VENV)/.installed requirements-dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

test:
	@echo "test: sets up $(VENV) and runs the tests but the slow ones on all cores; 7 to 10 minutes on 2 cores after the setup"
	@$(MAKE) --no-print-directory setup
	OMP_NUM_THREADS=1 $(PY) -m pytest tests -q -m "not slow" -n auto --dist worksteal

test-all:
	@echo "test-all: sets up $(VENV) and runs all tests on all cores; about 25 minutes on 2 cores after the setup"
	@$(MAKE) --no-print-directory setup
	OMP_NUM_THREADS=1 $(PY) -m pytest tests -q -n auto --dist worksteal

# The same tests with other versions of the packages: those in Kaggle's image, and torch 2.7.1's for a real P100.
test-image: .venv-kaggle/.installed
	OMP_NUM_THREADS=1 .venv-kaggle/bin/python -m pytest tests -q -n auto --dist worksteal

test-p100: .venv-p100/.installed
	OMP_NUM_THREADS=1 .venv-p100/bin/python -m pytest tests -q -n auto --dist worksteal

.venv-%/.installed: requirements.txt constraints-%.txt
	@echo "setup: a virtual environment in $(@D) with the versions of constraints-$*.txt (Kaggle has Python 3.12: make PYTHON=python3.12)"
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints-$*.txt
	@touch $@

bench:
	@echo "bench: start-up, training, scale and memory, with DATA=ESC10 extraction and the headline, with WEIGHTS=mn04_as_mAP_432.pt"
	@echo "       EfficientAT as well; into benchmarks/RESULTS.md; up to 20 minutes on 2 cores without other work"
	@$(MAKE) --no-print-directory setup
	$(PY) benchmarks/startup.py
	$(PY) benchmarks/training.py
	$(PY) benchmarks/scale.py
	$(PY) benchmarks/memory.py
ifdef DATA
	$(PY) benchmarks/extraction.py --data "$(DATA)" $(if $(WEIGHTS),--weights "$(WEIGHTS)")
	$(PY) benchmarks/headline.py --data "$(DATA)"
else
	@echo "bench: extraction and headline are skipped, they need real clips: make bench DATA=ESC10 [WEIGHTS=mn04_as_mAP_432.pt]"
endif

clean:
	@echo "clean: removes runs and submissions; keeps data/ and $(VENV)"
	find runs submissions -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	rm -rf .pytest_cache .ruff_cache .mypy_cache
