# NexTEM. `make demo` and `make test` do all the set-up on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
# Real measured files for the tests that want them; those tests say so and skip where there are none.
NEXTEM_TEST_DATA ?= $(abspath $(wildcard ../shared/data))
export NEXTEM_TEST_DATA

.PHONY: demo test test-kubernetes images lint bench fuzz fuzz-control clean install

demo: $(VENV)/.installed
	$(BIN)/nextem demo $(ARGS)

# Files of tests in two processes, each with a broker of its own; the long ones stand first. WORKERS=0: in one process.
# A process that dies is not replaced: xdist would wait for ever for one that comes after the last file was given out.
# The fault handler is for a test that no signal ends: it shows the stacks and ends its process.
# The kernels are compiled first: each process would compile them for itself, within the first tests that need them.
WORKERS ?= 2
test: $(VENV)/.installed-dev
	@echo "Compiling the kernels, where this machine has not yet"
	@$(BIN)/python -c 'from nextem.edge import warming; warming.warm_up((1, 2, 4, 8))'
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0 \
	  -o faulthandler_timeout=1000 -o faulthandler_exit_on_timeout=true $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/run_all.py $(ARGS)

# A million mutated messages for each receiver; make test sends ten thousand.
fuzz: $(VENV)/.installed-dev
	NEXTEM_FUZZ_MESSAGES=$${NEXTEM_FUZZ_MESSAGES:-1000000} $(BIN)/python -m pytest -n $(WORKERS) \
	  --timeout 7200 tests/fuzz $(ARGS)

# N random lives of the control agent, with crashes between any two steps; make test plays four hundred.
N ?= 100000
fuzz-control: $(VENV)/.installed-dev
	NEXTEM_FUZZ_SEQUENCES=$(N) $(BIN)/python -m pytest --timeout 14400 -s tests/fuzz/test_fuzz_control.py $(ARGS)

# One container image a deployable; images/make.sh says which variables it takes (BASE, ENGINE, FLAGS, …).
images:
	images/make.sh

# On a real cluster, with images built from this checkout. LOAD brings an image to its nodes; kind's way unless told.
KUBECONFIG ?=
test-kubernetes: $(VENV)/.installed-dev
	@if [ -z "$(KUBECONFIG)" ]; then echo "test-kubernetes: skipped, no cluster: say make test-kubernetes KUBECONFIG=FILE"; else \
	NEXTEM_TEST_KUBERNETES=1 $(BIN)/python -m pytest --timeout 1200 tests/kubernetes $(ARGS); fi

install: $(VENV)/.installed

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("NexTEM needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Say make PYTHON=python3.12, for example.") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt hatch_build.py $(wildcard protos/nextem/v1/*.proto)
	@echo "Installing NexTEM into $(VENV) (once)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis nextem-home
	find protos -name '*_pb2*.py*' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +   # numba's caches too
