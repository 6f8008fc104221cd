# make selftest     environment, this machine against the recorded numbers; times
# make quickstart   environment, a small training on drawn shapes, COCO AP, pictures
# make test         environment, tests
# make test-all     the tests that take minutes too
# make lint         ruff, mypy, the direction of imports
# make docs         the site, in output/site; a broken link fails
#
# make env-latest   an environment with the latest versions, not the tested ones (constraints/)
#
# VENV=/some/env reuses an environment that exists.

VENV ?= .venv
PYTHON ?= python3
PY = $(VENV)/bin/python
# One stamp per clone: an environment may serve several.
TESTED = .tested-versions
READY = $(VENV)/.isonet_det-$(shell pwd | cksum | cut -d' ' -f1)
# This clone's package, whichever clone the environment was installed for.
export PYTHONPATH := $(CURDIR)

.PHONY: selftest quickstart test test-all lint docs env env-latest clean

env: $(READY)

env-latest:
	$(MAKE) env LATEST=1

$(READY): setup.py tools/install_detectron2.py constraints/copy.txt constraints/official.txt
	# A new environment gets the tested versions; in one of yours nothing is replaced.
	test -x $(PY) || { $(PYTHON) -m venv $(VENV); test '$(LATEST)' || touch $(VENV)/$(TESTED); }
	$(PY) -m pip install -q 'setuptools>=64,<81' wheel 'torch>=2.6' torchvision \
	    $$($(PY) tools/install_detectron2.py --constraints)
	$(PY) tools/install_detectron2.py
	# With the numpy that Detectron2 runs with: other packages would take a newer one.
	$(PY) -m pip install -q --no-build-isolation -e '.[dev]' \
	    $$($(PY) tools/install_detectron2.py --constraints) \
	    "$$($(PY) -c 'import numpy; print("numpy==" + numpy.__version__)')"
	# Alone: its bound on numpy would rule official Detectron2 out, its code does not.
	$(PY) -m pip install -q --no-deps panopticapi-lite \
	    $$($(PY) tools/install_detectron2.py --constraints)
	touch $@

selftest: $(READY)
	$(PY) -W ignore tools/selftest.py

quickstart: $(READY)
	$(PY) -W ignore tools/train_net.py --config-file configs/quickstart.yaml --resume

test: $(READY)
	$(PY) -m pytest -n 2 --dist worksteal

test-all: $(READY)
	$(PY) -m pytest -n 2 --dist worksteal -m 'slow or not slow'

lint: $(READY)
	$(PY) -m ruff check .
	# No private name of one module in another.
	$(PY) -m ruff check --preview --select PLC2701 isonet_det tools
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-cache

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(PY) -W ignore -m mkdocs build -q
	@echo "The site: output/site/index.html"

clean:
	rm -rf .venv build output *.egg-info
