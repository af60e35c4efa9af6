# make demo   adapt the built-in model to a video: from nothing to an overlay video
# make test   the test suite          make check   style, types, layers, documentation
# make torture   mutated files, kills and limits, a hundred times as many as in the test suite
# make docs   the documentation site, in site/
VENV ?= .venv
PYTHON ?= python3
TORCH := torch==2.13.0
CPU_INDEX := https://download.pytorch.org/whl/cpu
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
REACHABLE := import urllib.request as r; r.urlopen('https://pypi.org/pypi/pip/json', timeout=5)
# Two cores shared by two test processes: more threads than cores only make them wait. The tests of a
# file run in one process, which makes the networks and exports that they share only once.
TEST_ENV := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: demo test test-gpu torture check fast docs audit clean

demo: $(VENV)/.demo
	$(VENV)/bin/fada demo

test: $(VENV)/.dev
	$(TEST_ENV) $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered --durations=8

torture: $(VENV)/.dev
	FADA_TORTURE=100 FADA_SOAK_S=600 $(TEST_ENV) $(VENV)/bin/python -m pytest -n 2 tests/torture \
	  tests/training/test_killed.py tests/training/test_tensorboard.py

# With any Python that has PyTorch for CUDA and this package: make test-gpu GPU_PYTHON=python3
GPU_PYTHON ?= $(VENV)/bin/python
test-gpu:
	$(GPU_PYTHON) -m pytest -n 0 -m gpu tests/gpu

fast: $(VENV)/.dev
	$(TEST_ENV) $(VENV)/bin/python -m pytest -n 2 -m "not slow"

check: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy examples/perception_app/*.py
	$(VENV)/bin/mypy --implicit-reexport benchmarks/*.py
	$(VENV)/bin/mypy --implicit-reexport benchmarks/runtime/*.py
	$(VENV)/bin/lint-imports
	$(VENV)/bin/python -m pytest -q tests/test_readme.py tests/docs/test_pages.py
	$(MAKE) --no-print-directory docs audit

# Known vulnerabilities of the installed packages, where their database can be reached.
audit: $(VENV)/.dev
	@if $(VENV)/bin/python -c "$(REACHABLE)" 2>/dev/null; \
	then $(VENV)/bin/pip-audit --progress-spinner off --skip-editable; \
	else echo "audit skipped: pypi.org cannot be reached"; fi

# Offline, with warnings as errors; the variable silences a notice of the theme about its successor.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs --quiet build --strict

# torch's default build brings gigabytes of CUDA. Taken in this order: a CPU wheel that pip already
# knows, the CPU index, the default one. For training on a GPU install torch yourself, before.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --no-index --no-deps "$(TORCH)" 2>/dev/null \
	  || $(PIP) install --quiet --retries 0 --timeout 10 --index-url $(CPU_INDEX) "$(TORCH)" 2>/dev/null \
	  || $(PIP) install --quiet "$(TORCH)"
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) install --quiet -c constraints.txt -e '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build dist site *.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache
