# `make demo` and `make test` need nothing but Python 3.11, 3.12 or 3.13.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test install lock clean

demo: install
	$(BIN)/h2tune demo --out runs/demo

test: install
	$(BIN)/python -m pytest -n 2

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements/lock.txt requirements/torch.txt scripts/install.sh
	PYTHON="$(PYTHON)" VENV="$(VENV)" sh scripts/install.sh
	touch $@

# Locks what pyproject.toml asks for; `make lock UPGRADE=--upgrade` takes the newest versions that it allows.
lock: install
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python scripts/lock.py $(UPGRADE)

clean:
	rm -rf $(VENV) build dist src/*.egg-info
