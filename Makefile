# Everything happens in .venv; the first target that needs it installs it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# torch first: sam2 is built against the torch that is there, without its CUDA extension, which we do not use.
# Its own isolated build would download torch a second time.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "etsam needs Python 3.11 or newer; say which with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/pip install --quiet torch torchvision
	SAM2_BUILD_CUDA=0 $(BIN)/pip install --quiet --no-build-isolation 'sam2>=1.1,<1.2'
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $(INSTALLED)

install: $(INSTALLED)  ## the program and its tools into .venv

demo: install  ## segment a real tomogram, on the CPU, without network
	$(BIN)/etsam predict data/demo/hiv_vlps.mrc --output-dir results/demo --post-process --overwrite
	$(BIN)/etsam points results/demo/hiv_vlps_etsam_predicted_mask.mrc data/demo/hiv_vlps_surface_points.csv
	$(BIN)/etsam measure results/demo/hiv_vlps_etsam_predicted_post_processed_mask.mrc --tomogram data/demo/hiv_vlps.mrc --output-dir results/demo --overwrite
	@echo "open in a browser: $(CURDIR)/results/demo/hiv_vlps_etsam_predicted.html"

test: install  ## the fast tests
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: install  ## all tests, slow ones too
	$(BIN)/python -m pytest -n 2

lint: install  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	@cat $$(git ls-files "etsam/*.py") | wc -l | xargs echo "lines in etsam/:"

docs: install  ## draw the pictures, build the site into site/
	$(BIN)/python docs/figures.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.PHONY: help install demo test test-all lint docs
