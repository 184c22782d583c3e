# Two commands: `make run` (the main job, on real data) and `make test` (lint, types, tests).
# Both install into .venv first, from the pinned constraints.txt, and only when something changed.

OUT ?= experiment
CONSTRAINTS ?= constraints.txt
# python3.11 first: the pinned torch has a CPU wheel for it.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
BIN := .venv/bin

.PHONY: run test test-slow install clean

run: install
	$(BIN)/brittle run --out $(OUT)

# Three processes: two for the tests that start Ray, which mostly wait, and one for the others (tests/conftest.py).
test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n 3 -rs

test-slow: install
	$(BIN)/pytest -m slow -rs

install: .venv/installed

.venv/installed: pyproject.toml requirements-toolkits.txt $(CONSTRAINTS)
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "brittle needs Python 3.11 or newer; found $$(python3 --version 2>&1 || echo none); set PYTHON=" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-toolkits.txt
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info
