# make demo   the whole graph, from encoded video to a simulated arm that reaches its goal image
# make test   lint, types and tests
# make ui     the Dagster UI on the same store      make soak   long campaigns (about an hour)
# Options: VIDEOS=folder, manifest or tars (adds your videos), TUBELET_STORE=folder, RECIPE=nano, PORT=3000

SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
PY := .venv/bin/python
RECIPE ?= nano
PORT ?= 3000
VIDEOS ?=
export TUBELET_STORE ?= $(CURDIR)/store
export DAGSTER_HOME := $(CURDIR)
export TUBELET_DAGSTER := $(TUBELET_STORE)/dagster
GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo yes)
EXTRAS := $(if $(GPU),gpu,cpu),dev

.PHONY: demo test ui soak lint doctor setup rendering clean

demo: setup
	@$(PY) tubelet.py demo --recipe $(RECIPE) $(if $(VIDEOS),--videos "$(VIDEOS)")

test: setup lint
	@$(PY) -m pytest -m "not soak" -n 2 --dist loadfile

soak: setup
	@$(PY) -m pytest -m soak -s --timeout 14400

lint: setup
	@$(PY) -m ruff check . && $(PY) -m mypy

ui: setup
	@$(PY) tubelet.py ui --port $(PORT)

doctor:
	@$(if $(wildcard $(PY)),$(PY),$(PYTHON)) tubelet.py doctor

clean:
	rm -rf .venv

setup: rendering .venv/installed

# Software OpenGL for headless rendering: checked before anything is installed, so that nothing half-done stays behind.
GL_PACKAGES := libegl1 libgl1-mesa-dri libosmesa6 libgl1 libgles2
rendering:
	@test -n "$(PYTHON)" || { echo "no Python found: install python3.11 and python3.11-venv, or run make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; from pipelines.doctor import graphics; sys.exit(not graphics()[0])' && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing headless rendering libraries: $(GL_PACKAGES)"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(GL_PACKAGES) >/dev/null \
		|| { echo "could not install them; run: apt-get update && apt-get install -y $(GL_PACKAGES)"; exit 1; }; \
	else \
		echo "Headless rendering libraries are missing. Run this once, then make again:"; \
		echo "    sudo apt-get update && sudo apt-get install -y $(GL_PACKAGES)"; exit 1; \
	fi

# torch comes first and alone: every later pip call is held to constraints.txt, or some package replaces the CPU build.
.venv/installed: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "Tubelet needs Python 3.11 to 3.13, found %d.%d: install python3.11 and python3.11-venv, or run make PYTHON=/path/to/python3.11" % v)'
	@echo "installing into .venv (a few minutes the first time)"
	@test -x $(PY) || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "could not make .venv; on Debian: apt-get install -y python3.11-venv"; exit 1; }
	@$(PY) -m pip install -q --disable-pip-version-check $(if $(GPU),"torch>=2.11",torch==2.13.0)
	@DS_BUILD_OPS=0 $(PY) -m pip install -q --disable-pip-version-check $(if $(GPU),,-c constraints.txt) -e ".[$(EXTRAS)]"
	@touch $@
