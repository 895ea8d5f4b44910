STACK ?= openmmlab
VENV ?= $(if $(filter onedl,$(STACK)),.venv-onedl,.venv)
PYTHON ?=
export STACK VENV PYTHON
python := $(VENV)/bin/python
JOBS ?= 2
workers := -n $(JOBS) --dist loadfile

.PHONY: help setup demo demo-classifier test test-all lint format clean

help:
	@echo 'make demo     prune a small detector that comes with the project'
	@echo 'make demo-classifier   the short one: a classifier of handwritten digits, half a minute'
	@echo 'make test     run the tests, some minutes'
	@echo 'make test-all run them, and then those that take long: whole runs, several processes, an installed wheel'
	@echo 'make lint     check the code with ruff; make format puts it right'
	@echo 'make setup    only make the environment; the others do that first where it is missing'
	@echo 'make clean    remove the environments and the caches; data and work_dirs stay'
	@echo
	@echo 'STACK=...     openmmlab (default) or onedl, the maintained forks with a newer torch'
	@echo 'PYTHON=...    Python 3.10 or 3.11 to use (default: looked for)'
	@echo 'JOBS=...      processes that share the tests, of up to 2 GB each (default: 2)'
	@echo 'VENV=...      folder of the environment (default: .venv, of the second stack .venv-onedl)'

setup:
	@tools/setup.sh

demo: setup
	$(python) tools/make_digits.py
	$(python) tools/prune.py configs/demo/faster_rcnn_digits_autodfp.py

demo-classifier: setup
	$(python) tools/prune.py configs/demo/vgg_digits_autodfp.py

test: setup
	$(python) -m pytest $(workers)

test-all: test
	$(python) -m pytest $(workers) -m slow

lint: setup
	$(python) -m ruff check .
	$(python) -m ruff format --check .

format: setup
	$(python) -m ruff check --fix .
	$(python) -m ruff format .

clean:
	rm -rf .venv .venv-onedl build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
