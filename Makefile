# Everything a newcomer needs: `make quickstart`, `make test`. Python 3.11+, pip and make are enough.
# `make docs` builds the site into build/docs; `make pictures` takes the README's pictures of the quickstart's run.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: quickstart test test-slow check format docs pictures clean

quickstart: $(INSTALLED)
	$(BIN)/rlhf-loop run recipes/quickstart.yaml

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)
	$(BIN)/zensical build --strict --clean

pictures: $(INSTALLED)
	$(BIN)/python benchmarks/pictures.py runs/quickstart

clean:
	rm -rf .venv build dist

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rlhf-loop needs Python 3.11 or newer; name one with: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
