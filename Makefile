# make demo: the whole chain on a simulated cohort. make test: lint and tests. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean-demo

demo: .venv/ready
	PATH="$(CURDIR)/$(BIN):$$PATH" bash demo.sh

test: .venv/test-ready lint
	$(BIN)/python -m pytest

lint: .venv/test-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean-demo:
	rm -rf demo

.venv/ready: requirements.txt requirements-offline.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-offline.txt
	touch $@

.venv/test-ready: .venv/ready requirements-test.txt
	$(BIN)/python -m pip install --quiet -r requirements-test.txt
	$(BIN)/python -m pip install --quiet --no-deps torchgan==0.1.0 pytorch-fid==0.3.0 \
	  torch-fidelity==0.4.0 prdc==0.2
	touch $@
