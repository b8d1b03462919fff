# make demo   set up and run the main job: simulate five companies, attack the run, write the report
# make test   set up and run lint, types and tests
# make proto  generate the data plane's code again, after a change to transport/frames.proto
# make setup  only the set-up; a second make does not install again
# make constraints   resolve what is installed again, after a change to the dependencies in pyproject.toml

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check
# PyTorch is its build without CUDA, or where the index has none the usual one; a build with another hash stops.
# (Of one requirement alone pip says ResolutionImpossible where it finds none.)
# Nothing but the files whose hashes stand in constraints*.txt; these name all that is needed.
PINNED := $(PIP) install --require-hashes --no-deps --requirement

export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION = 1
export RAY_USAGE_STATS_ENABLED = 0
export HF_HUB_OFFLINE = 1

.PHONY: demo test lint slow proto setup constraints clean

demo: $(READY)
	$(BIN)/fedblocks simulate digits --runs-dir runs
	$(BIN)/fedblocks audit --runs-dir runs
	$(BIN)/fedblocks report --runs-dir runs

test: lint
	$(BIN)/python -m pytest

slow: $(READY)
	$(BIN)/python -m pytest -m slow

# The folder may have any name; mypy wants the package's, so it looks through a link.
lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p $(VENV)/typecheck && ln -sfn ../.. $(VENV)/typecheck/fedblocks
	MYPYPATH=$(VENV)/typecheck $(BIN)/mypy -p fedblocks
	$(BIN)/lint-imports

# The generated code is committed; a test compares it.
proto: $(READY)
	mkdir -p $(VENV)/typecheck && ln -sfn ../.. $(VENV)/typecheck/fedblocks
	cd $(VENV)/typecheck && ../bin/python -m grpc_tools.protoc -I . \
		--python_out=. --pyi_out=. --grpc_python_out=. fedblocks/protocol/transport/frames.proto

setup: $(READY)

constraints: $(READY)
	$(BIN)/python tests/support/constraints.py

$(READY): pyproject.toml constraints.txt constraints-cpu.txt constraints-cuda.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not ((3, 11) <= v <= (3, 13)) and "fedblocks needs Python 3.11 to 3.13, this is %d.%d; try make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	sed -n '/^pip==/,/[^\\]$$/p' constraints.txt > $(VENV)/pip.txt
	$(PINNED) $(VENV)/pip.txt
	$(PINNED) constraints.txt
	$(PINNED) constraints-cpu.txt 2> $(VENV)/cpu.txt || { cat $(VENV)/cpu.txt >&2; \
		grep -qE 'No matching distribution|ResolutionImpossible' $(VENV)/cpu.txt && $(PINNED) constraints-cuda.txt; }
	$(PIP) install --no-deps --no-build-isolation --editable .
	rm -rf build
	$(BIN)/python -m pip check
	touch $(READY)

clean:
	rm -rf $(VENV) build *.egg-info
