# Everything needs only a Python >= 3.11 on the machine; the first target that runs makes the environment.
# Another interpreter: make demo PYTHON=/path/to/python3.12
VENV := .venv
PY := $(VENV)/bin/python
WORKERS ?= 2
ARGS ?=

# uv does not read the machine's certificate store unless told to.
export UV_SYSTEM_CERTS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all test-ci lint format docs bench lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /	/' | expand -t 12

install: $(VENV)/.installed  ## the environment in .venv, from requirements.lock

demo: $(VENV)/.installed  ## the main job on the embedded data: badnet purified by unibp
	$(PY) -m backdoor_bench +attack=badnet +defense=unibp

# One thread per worker: on small networks two processes beat two threads.
test: $(VENV)/.installed  ## the fast tests
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow" -n $(WORKERS) $(ARGS)

test-all: $(VENV)/.installed  ## all tests, slow ones too
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) $(ARGS)

test-ci: $(VENV)/.installed  ## the slow tests that .ci/run takes too
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "slow and ci" -n $(WORKERS) $(ARGS)

lint: $(VENV)/.installed  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(VENV)/.installed  ## let ruff mend what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: $(VENV)/.installed  ## docs/catalog.md, and the cells that docs/capability.md lacks (minutes per defense)
	$(PY) -m backdoor_bench.catalog --out docs/catalog.md
	OMP_NUM_THREADS=1 $(PY) -m backdoor_bench.capability --missing --out docs

bench: $(VENV)/.installed  ## speed and memory beside a plain loop (ARGS="--out FILE.json")
	$(PY) -m benchmarks.core $(ARGS)

lock: $(PY)  ## pin and hash every dependency again (ARGS="--upgrade" for the newest)
	@$(FIND_UV); test -n "$$uv" || { echo "make lock needs uv: pip install uv" >&2; exit 1; }; \
	"$$uv" pip compile --quiet --universal --python-version 3.11 --all-extras --generate-hashes --no-emit-index-url \
		--custom-compile-command "make lock" -o requirements.lock pyproject.toml $(ARGS)
	@! grep -nE '//|find-links|index-url' requirements.lock || { echo "requirements.lock names a host" >&2; exit 1; }

clean:  ## remove the environment and caches; data, store and results stay
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
	find backdoor_bench benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +

# $$uv: the environment's, else the machine's, else installed here in the locked version, else empty.
FIND_UV = uv=; \
	if test -x $(VENV)/bin/uv; then uv=$(VENV)/bin/uv; \
	elif uv --version >/dev/null 2>&1; then uv=uv; \
	elif $(PY) -m pip install --quiet "$$(sed -n 's/^\(uv==[0-9.]*\).*/\1/p' requirements.lock)" >/dev/null 2>&1; \
	then uv=$(VENV)/bin/uv; fi

$(PY):
	@set -e; found=; \
	for python in $(PYTHON) python3 python3.12 python3.11 python3.13; do \
		if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1; \
		then found=$$python; break; fi; \
	done; \
	if test -z "$$found"; then \
		echo "No Python 3.11, 3.12 or 3.13 found (looked for $(PYTHON) python3 python3.12 python3.11 python3.13)." >&2; \
		echo "Install one, or name it: make $(or $(MAKECMDGOALS),demo) PYTHON=/path/to/python" >&2; exit 1; \
	fi; \
	echo "environment in $(VENV) with $$("$$found" --version)"; \
	"$$found" -m venv $(VENV) 2>/dev/null || uv venv --quiet --clear --python "$$found" $(VENV) || { \
		rm -rf $(VENV); \
		echo "$$found cannot make an environment: install its venv module (Debian: python3-venv) or uv." >&2; exit 1; }

# Every package comes pinned and hash-checked from the lock, hatchling too, so the project itself needs no download.
$(VENV)/.installed: pyproject.toml requirements.lock | $(PY)
	@set -e; $(FIND_UV); test -t 2 && quiet= || quiet=--quiet; \
	echo "installing the locked packages (about 5 GB with CUDA's libraries; a minute or so)"; \
	if test -n "$$uv" && "$$uv" pip install $$quiet --compile-bytecode --python $(PY) --require-hashes -r requirements.lock; then :; else \
		echo "uv did not work here; installing with pip" >&2; \
		$(PY) -m pip install $$quiet --require-hashes -r requirements.lock; \
	fi; \
	if test -n "$$uv"; then "$$uv" pip install --quiet --python $(PY) --no-deps --no-build-isolation -e .; \
	else $(PY) -m pip install --quiet --no-deps --no-build-isolation -e .; fi
	@touch $@
