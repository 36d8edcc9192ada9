# Everything sets itself up: `make demo` and `make test` need Python 3.11 or newer, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
DATA := .data
DEMO := .demo

.PHONY: demo test lint types data clean

demo: $(INSTALLED) data
	$(BIN)/python demo/run.py $(DEMO)

test: $(INSTALLED) data
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

data: $(INSTALLED)
	$(BIN)/python demo/fetch.py $(DATA)

# The link gives mypy a folder named as the package; where the clone lies does not matter then.
# The timestamp is written last, so an installation that was interrupted is begun again.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "headstart needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	mkdir -p $(VENV)/src && ln -sfn ../.. $(VENV)/src/headstart
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) $(DATA) $(DEMO)
