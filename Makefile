# Two commands do everything on a machine that has Python >= 3.11 and make:
#   make demo   town -> training -> recall -> map -> localization -> report
#   make test   lint and the whole test suite
# Each sets up .venv by itself. Elsewhere: make demo PYTHON=python3.13

PYTHON ?= python3
DEMO ?= demo
CONFIG ?= configs/saliency_i2ploc.py
RUN = .venv/bin/python main.py --config=$(CONFIG) --workdir=$(DEMO)/run \
  --data_dir=$(DEMO)/data

# Python's own default: five processes of a demonstration read what the first
# one compiled.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test lint clean

demo: .venv/runtime
	$(RUN) --mode=train
	$(RUN) --mode=index
	$(RUN) --mode=localize --query='$(DEMO)/run/queries/*.png'
	$(RUN) --mode=report
	@echo 'Look at $(DEMO)/run/report.html'

test: .venv/dev lint
	.venv/bin/python -m pytest -q -n 2 --dist=loadscope \
	  --durations=15 tests

lint: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/ty check

clean:
	rm -rf .venv $(DEMO)

.venv/runtime: pyproject.toml requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "i2ploc needs Python >= 3.11, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q --no-compile -r requirements.txt
	@touch $@

.venv/dev: .venv/runtime
	.venv/bin/python -m pip install -q --no-compile -e '.[dev]'
	@touch $@
