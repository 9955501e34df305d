# `make help` tells what there is. The virtual environment is used by its path: nothing needs to be activated.
.DEFAULT_GOAL := help
SHELL := /bin/sh
MAKEFLAGS += --no-print-directory

VENV   := .venv
BIN    := $(VENV)/bin
PY     := $(BIN)/python
READY  := $(VENV)/.ready
ASSETS := var/demo/assets.stamp

# The first Python on the PATH that is new enough, and not too new. Override: make PYTHON=/usr/bin/python3.12 setup
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 /usr/bin/python3; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 \
	&& command -v "$$p" && break; done)

PIP  := $(PY) -m pip --disable-pip-version-check --no-input
SAY   = @printf '==> %s\n'
ARGS ?=

# CAMERA, SPEED and DURATION reach the demo by themselves: make hands on what its command line or environment sets.

.PHONY: help setup system demo test lint format bench test-chaos test-image hil image lock clean force

help: ## Print this list
	@echo 'Sluice. Targets:'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

setup: $(READY) ## Prepare this machine: system packages, .venv, hash-checked Python packages

# What builds the TPM binding (which has no wheels) and stands in for a TPM: only setup on this machine needs it.
TPM_PACKAGES := libtss2-dev pkg-config gcc libc6-dev python3-dev swtpm swtpm-tools tpm2-tools

# Runs every time, and says and does nothing when all is there: .venv may outlive the machine it was made on.
system:
	@sh hil/loopback/system-packages.sh --python "$(PYTHON)" mosquitto mosquitto-clients $(TPM_PACKAGES)

$(READY): pyproject.toml $(addprefix requirements/,dev.txt tpm-build.txt tpm.txt) $(if $(wildcard $(PY)),,force) | system
	@if $(PY) -c 'import pip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; then \
		echo '==> $(VENV) is there: bringing it up to date'; \
	else \
		echo "==> making $(VENV) with $(PYTHON)"; \
		rm -rf $(VENV) && "$(PYTHON)" -m venv $(VENV); \
	fi
	$(SAY) "installing $$(grep -c '^[a-z0-9-]*==' requirements/dev.txt) Python packages, each checked against its hash (about a minute)"
	@$(PIP) install --quiet --only-binary :all: --require-hashes -r requirements/dev.txt
	$(SAY) 'building the TPM binding from its source (half a minute)'
	@$(PIP) install --quiet --only-binary :all: --require-hashes -r requirements/tpm-build.txt
	@$(PIP) install --quiet --no-deps --no-build-isolation --no-binary tpm2-pytss --require-hashes -r requirements/tpm.txt
	$(SAY) 'installing sluice itself, editable'
	@$(PIP) install --quiet --no-deps --no-index --no-build-isolation --editable .
	@touch $@
	$(SAY) "ready: $$($(PY) --version) in $(VENV)"

# Needed by the demo; tests that want a clip or a model do without when this machine cannot fetch them.
$(ASSETS): $(wildcard hil/loopback/fetch.py hil/loopback/assets/*.py) cloud_bridge/training/detector.py | $(READY)
	$(SAY) 'fetching the clip and the models for the demo'
	@mkdir -p $(@D)
	@$(PY) -m hil.loopback.fetch
	@touch $@

demo: setup $(ASSETS) ## Run brokers, cloud bridge and a gateway with a TPM on this machine [CAMERA= SPEED= DURATION=]
	@$(PY) -m hil.loopback.demo $(ARGS)

test: setup lint ## Check the code, then run the tests [ARGS=]
	-@$(MAKE) $(ASSETS) || echo '==> no clip or model fetched: the tests that need one skip themselves'
	$(SAY) 'pytest'
	@$(PY) -m pytest -n 2 --dist loadgroup $(ARGS)

lint: setup ## Check style, types and import rules
	$(SAY) 'ruff'
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	$(SAY) 'mypy'
	@$(PY) -m mypy
	$(SAY) 'import rules'
	@$(BIN)/lint-imports --no-logo

format: setup ## Format the code and fix what can be fixed
	@$(PY) -m ruff check --fix-only .
	@$(PY) -m ruff format .

bench: setup ## Measure on this machine [ARGS=]
	@$(PY) -m tests.bench $(ARGS)

# Without one of these packages, or without root, the experiments that need it skip themselves and say why.
test-chaos: setup ## Kill, cut and fill things many times over [ARGS=--minutes 60 -k soak]
	-@sh hil/loopback/system-packages.sh iproute2 nftables libfaketime faketime strace fuse3 e2fsprogs postgresql \
		qemu-system-x86 qemu-utils
	@$(PY) -m pytest tests/chaos -m chaos $(ARGS)

test-image: setup ## Boot the appliance image under QEMU and update it [ARGS=]
	@$(PY) -m pytest tests/image -m image $(ARGS)

hil: setup ## Run the hardware tests on a rig, virtual or real [ARGS=]
	@$(PY) -m pytest hil -m hil $(ARGS)

image: ## Build the appliance image [ARGS=]
	@if [ -x image/build ]; then image/build $(ARGS); else echo 'image/build: not part of this version yet' >&2; exit 2; fi

# Pins and hashes for Linux on x86-64 and arm64, Python 3.11 to 3.13. Keeps what is pinned; make lock ARGS=--upgrade moves it.
lock: setup ## Write requirements/*.txt anew from pyproject.toml [ARGS=--upgrade]
	@[ -x var/lock/bin/uv ] || { $(PY) -m venv var/lock && var/lock/bin/pip install --quiet --disable-pip-version-check uv==0.13.8; }
	@for name in dev runtime; do \
		case $$name in \
		dev) extra='--extra dev' ;; \
		runtime) extra='--constraints requirements/dev.txt' ;; \
		esac; \
		echo "==> requirements/$$name.txt"; \
		var/lock/bin/uv pip compile pyproject.toml --group build --extra device --extra cloud --extra training $$extra \
			--universal --python-version 3.11 --fork-strategy fewest --generate-hashes --no-emit-index-url \
			--no-annotate --custom-compile-command 'make lock' $(ARGS) --quiet \
			--output-file requirements/$$name.txt || exit 1; \
	done
	@# The TPM binding has no wheels. What builds it is installed first, so that nothing unhashed is downloaded for that.
	@echo '==> requirements/tpm.txt, tpm-build.txt'
	@var/lock/bin/uv pip compile --group tpm-build --constraints requirements/dev.txt \
		--universal --python-version 3.11 --fork-strategy fewest --generate-hashes --no-emit-index-url \
		--no-annotate --custom-compile-command 'make lock' $(ARGS) --quiet --output-file requirements/tpm-build.txt
	@var/lock/bin/uv pip compile pyproject.toml --extra tpm --no-deps --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-annotate --custom-compile-command 'make lock' $(ARGS) --quiet \
		--output-file var/lock/tpm.txt
	@awk '/^[a-z0-9]/ { keep = /^tpm2-pytss/ } /^#/ || keep' var/lock/tpm.txt >requirements/tpm.txt
	@if grep -n '://' requirements/*.txt; then echo 'an address is in the lock' >&2; exit 1; fi

clean: ## Remove everything that make made
	rm -rf $(VENV) var dist build .coverage .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find gateway cloud_bridge hil tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
