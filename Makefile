# `make demo` and `make test` do all set-up themselves: they need Python 3.11, its venv module, and pip.
PYTHON ?= python3.11
VENV := .venv
LAVA := .venv-lava
RUN := $(VENV)/bin/python
export BENTOML_DO_NOT_TRACK := True

.PHONY: help setup lava demo serve page bento test check clean

help:  ## say what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/'

setup: $(VENV)/.installed  ## the project's environment in .venv

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[train,serve,dev]'
	@touch $@

lava: $(LAVA)/.installed  ## Lava's environment in .venv-lava (its numpy is another)

# Lava's own metadata asks for Python below 3.11 and for packages that the simulator does not need.
$(LAVA)/.installed: hardware/lava/requirements.txt
	$(PYTHON) -m venv $(LAVA)
	$(LAVA)/bin/pip install --quiet --no-deps --ignore-requires-python --requirement $<
	@touch $@

demo: setup lava  ## teacher, TSER student, evaluation, ONNX, netx in Lava, NIR, energy, bundle; one table
	$(RUN) -m train.distill digits --out runs/demo --resume auto
	$(RUN) -m train.evaluate runs/demo/student.pt
	$(RUN) -m export.bundle runs/demo/student.pt --tolerance 0.015  # 144 validation images show no less

serve: setup  ## serve the newest bundle on http://localhost:3000 (page: /ui)
	$(VENV)/bin/bentoml serve

page: setup  ## the Gradio page alone
	$(RUN) -m serve.demo

bento: setup  ## pack the newest bundle and the server for deployment (BentoML)
	rm -rf bundle && cp -rL runs/latest/bundle bundle
	$(VENV)/bin/bentoml build

test: setup lava  ## all tests
	$(RUN) -m pytest -n auto --dist loadfile --no-loadscope-reorder  # the longest files first: tests/conftest.py

check: setup  ## lint, format, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:  ## remove the environments
	rm -rf $(VENV) $(LAVA)
