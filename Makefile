# make demo    follow a real target through real ROS 2 nodes; results in demo_output/
# make test    ruff, mypy and pytest, as CI does
# make lint    ruff and mypy only
# make venv    just the environment, for work on the package
# make jazzy   the tests against ROS 2 Jazzy instead of Kilted
#
# All of them make a virtual environment if there is none, with pinned packages from PyPI. They need
# Python >= 3.10 and a C/C++ compiler; a ROS install is neither needed nor used.
#
# PYTHON=python3.12   the interpreter that makes the environment
# VENV=.venv          where it is
# TORCH=auto|yes|no   torch and TensorRT's compiler, which some tests need; auto: unless PyPI's
#                     torch for this machine is several GB (CUDA)
# ARGS="-k geometry"  passed on to pytest, or to the demo

PYTHON ?= python3
VENV ?= .venv
TORCH ?= auto
ARGS ?=

# Not one level of make, but every process below it sees the environment, only this machine's DDS
# peers, and a Fast DDS segment that images fit into.
PREFIX := $(abspath $(VENV))
BIN := $(PREFIX)/bin
export AMENT_PREFIX_PATH := $(PREFIX)
export CMAKE_PREFIX_PATH := $(PREFIX)
export VIRTUAL_ENV := $(PREFIX)
export PATH := $(BIN):$(PATH)
export ROS_AUTOMATIC_DISCOVERY_RANGE := LOCALHOST
export FASTDDS_DEFAULT_PROFILES_FILE := $(CURDIR)/config/fastdds_shm.xml
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# From an activated environment or a sourced distro these would reach the new one.
unexport PYTHONPATH PYTHONHOME
ifdef _ROS_WHEELS_BOOTSTRAP_COMPLETE
unexport _ROS_WHEELS_BOOTSTRAP_COMPLETE LD_LIBRARY_PATH
endif

PIP := $(BIN)/python -m pip install --quiet
STAMPS := $(VENV)/stamps

.PHONY: demo test lint venv jazzy clean
.DEFAULT_GOAL := help

.PHONY: help
help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

demo: $(STAMPS)/package
	@$(BIN)/python scripts/demo.py $(ARGS)

test: $(STAMPS)/package lint $(STAMPS)/network-$(TORCH)
	@$(BIN)/python -m pytest $(ARGS)

lint: $(STAMPS)/package $(STAMPS)/development
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

venv: $(STAMPS)/package $(STAMPS)/development

$(STAMPS)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "Python 3.10 or newer is needed, and '$(PYTHON)' is not: make ... PYTHON=python3.12" >&2; \
	  exit 1; }
	@command -v c++ >/dev/null || { \
	  echo "no C++ compiler (c++) was found: sudo apt install g++" >&2; exit 1; }
	@echo "making $(VENV) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) pip==26.3
	@mkdir -p $(STAMPS)
	@touch $@

$(STAMPS)/runtime: requirements.txt requirements-ros.txt requirements-build.txt $(STAMPS)/python
	@echo "installing ROS 2 and the inference engines into $(VENV) ..."
	@$(PIP) -r requirements.txt -r requirements-ros.txt
	@touch $@

# Editable: the sources are used where they are, the messages are built into the environment.
PACKAGE_SOURCES := setup.py pyproject.toml package.xml CMakeLists.txt \
  $(wildcard cmake/* msg/*.msg srv/*.srv launch/* config/*.* demo/* models/*)
$(STAMPS)/package: $(STAMPS)/runtime $(PACKAGE_SOURCES)
	@echo "building the messages ..."
	@PYTHONWARNINGS=ignore $(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

$(STAMPS)/development: requirements-dev.txt $(STAMPS)/runtime
	@echo "installing the test tools ..."
	@$(PIP) -r requirements-dev.txt
	@touch $@

# Compiles the exported graphs in the tests, without a GPU. There is no wheel for other systems than
# Linux with glibc 2.28; the tests that need it say so and skip.
$(STAMPS)/tensorrt: requirements-tensorrt-ci.txt $(STAMPS)/development
	@echo "installing the TensorRT-RTX compiler ..."
	@$(PIP) -r requirements-tensorrt-ci.txt || echo "not to be had here: its tests will skip" >&2
	@touch $@

$(STAMPS)/network-$(TORCH): requirements-network.txt requirements-tensorrt-ci.txt \
  scripts/install_network.py $(STAMPS)/development
	@$(BIN)/python scripts/install_network.py $(TORCH)
	@touch $@

# Jazzy's message modules must not meet Kilted's in the source tree, so this one installs the
# package and runs the tests against the installed copy (PYTHONSAFEPATH keeps the sources off the
# path). Needs Python 3.11 or newer.
jazzy: VENV := .venv-jazzy
jazzy:
	@$(MAKE) --no-print-directory VENV=$(VENV) jazzy-tests

.PHONY: jazzy-tests
jazzy-tests: $(STAMPS)/jazzy
	@cd test && unset FASTDDS_DEFAULT_PROFILES_FILE && export PYTHONSAFEPATH=1 && \
	  export FASTRTPS_DEFAULT_PROFILES_FILE=$(CURDIR)/config/fastdds_shm.xml && \
	  $(BIN)/python -m pytest -p no:cacheprovider $(ARGS)

$(STAMPS)/jazzy: requirements.txt requirements-ros-jazzy.txt requirements-build.txt \
  requirements-dev.txt $(STAMPS)/python $(PACKAGE_SOURCES) $(shell find ostrack_ros -name '*.py')
	@echo "installing ROS 2 Jazzy into $(VENV) ..."
	@$(PIP) -r requirements.txt -r requirements-ros-jazzy.txt -r requirements-dev.txt
	@$(PIP) --no-build-isolation --no-deps --force-reinstall .
	@touch $@

clean:
	rm -rf build demo_output $(VENV) .venv-jazzy
