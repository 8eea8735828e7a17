# `make demo` and `make test` need nothing but Python 3.11, 3.12 or 3.13. Continuous integration runs `make check`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo demo-real test check lint types imports docs coverage digests test-oldest test-newest format install lock clean

demo: install
	$(BIN)/h2tune demo --out runs/demo

# Two real pretrained models on real rows:  make demo-real MODELS=FOLDER DATA=FOLDER
demo-real: install
	@test -d "$(MODELS)/smollm2-135m" -a -d "$(MODELS)/gemma3-270m" -a -f "$(DATA)/SST-2/train.tsv" || { \
	  echo "make demo-real needs MODELS=FOLDER with the folders smollm2-135m (SmolLM2-135M-Instruct) and gemma3-270m"; \
	  echo "(Gemma 3 270M), saved by Transformers' save_pretrained, and DATA=FOLDER with GLUE's SST-2/train.tsv and dev.tsv."; \
	  exit 1; }
	$(BIN)/python benchmarks/real/prepare.py --models "$(MODELS)" --data "$(DATA)" --families smollm gemma --baseline \
	  --out runs/demo-real
	$(BIN)/h2tune run runs/demo-real/sst2.yaml --out runs/demo-real/run

check:  # the quick ones first
	$(MAKE) lint
	$(MAKE) types
	$(MAKE) imports
	$(MAKE) docs
	$(MAKE) test

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/check_sizes.py

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: install
	$(BIN)/mypy

imports: install
	$(BIN)/lint-imports

docs: install
	$(BIN)/mkdocs build --strict --site-dir build/site

test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The floor is for the rooms that everything stands on. Measured in November 2026: 99.2 % of their lines.
FLOOR := 98
FLOORED := src/h2tune/core/*,src/h2tune/aggregation/*,src/h2tune/protocol/*

coverage: install
	mkdir -p build
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term --cov-report=html:build/coverage
	$(BIN)/coverage report --include='$(FLOORED)' --fail-under=$(FLOOR)

# Whether all methods still compute what they did, to the last bit: the first run records, later ones compare.
digests: install
	$(BIN)/python scripts/digests.py

# The suite with the lowest versions that pyproject.toml allows, and with the newest that the package index has.
test-oldest:
	PYTHON="$(PYTHON)" VENV=.venv-oldest sh scripts/install_unlocked.sh oldest
	.venv-oldest/bin/python -m pytest -n 2 --dist worksteal

test-newest:
	PYTHON="$(PYTHON)" VENV=.venv-newest sh scripts/install_unlocked.sh newest
	.venv-newest/bin/python -m pytest -n 2 --dist worksteal

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements/lock.txt requirements/torch.txt scripts/install.sh scripts/install_torch.sh
	PYTHON="$(PYTHON)" VENV="$(VENV)" sh scripts/install.sh
	touch $@

# Locks what pyproject.toml asks for; `make lock UPGRADE=--upgrade` takes the newest versions that it allows.
lock: install
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python scripts/lock.py $(UPGRADE)

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest build dist src/*.egg-info
