# Two commands set everything up: `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= demo

.PHONY: demo test lint slow clean

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lsm needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/installed
	$(BIN)/lsm build-sequences data_samples/dataset.toml --out $(DEMO)/store --overwrite
	rm -rf $(DEMO)/runs
	$(BIN)/lsm train --recipe dnn --data $(DEMO)/store --out $(DEMO)/runs/dnn
	$(BIN)/lsm train --recipe stacked_tin --data $(DEMO)/store --out $(DEMO)/runs/stacked_tin
	$(BIN)/lsm eval $(DEMO)/runs/stacked_tin --shuffle-history

test: .venv/installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

slow: .venv/installed
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf .venv $(DEMO)
