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

.PHONY: help setup system demo test lint format bench test-chaos test-image hil rig image lock clean force

help: ## Print this list
	@echo 'Sluice. Targets:'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

setup: $(READY) ## Prepare this machine: system packages, .venv, hash-checked Python packages
	@# Demo and tests start these programs very often, perhaps where Python is told to keep no bytecode.
	@$(PY) -m compileall -q gateway cloud_bridge hil

# What builds the TPM binding (which has no wheels) and stands in for a TPM: only setup on this machine needs it.
TPM_BUILD_PACKAGES := libtss2-dev pkg-config gcc libc6-dev python3-dev
TPM_PACKAGES := $(TPM_BUILD_PACKAGES) swtpm swtpm-tools tpm2-tools

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

# Some tests use these; without them they skip themselves, and say so.
TEST_PACKAGES := umockdev cryptsetup-bin fdisk dosfstools faketime libfaketime

# Three workers on two cores: the tests that run whole sites mostly wait for what comes over the network.
test: setup lint ## Check the code, then run the tests [ARGS=]
	-@sh hil/loopback/system-packages.sh $(TEST_PACKAGES)
	-@$(MAKE) $(ASSETS) || echo '==> no clip or model fetched: the tests that need one skip themselves'
	$(SAY) 'pytest'
	@$(PY) -m pytest -n 3 --dist loadgroup $(ARGS)

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

# Three workers on two cores: the experiments mostly wait for faults to last. One at a time goes out, the longest ones first.
# The long form goes one by one: ARGS are then all there is.
CHAOS_SHORT := -n 3 --dist load --maxschedchunk 1

# Without one of these packages, or without root, the experiments that need it skip themselves and say why.
test-chaos: setup ## Kill, cut and fill things many times over [ARGS=--minutes 60 -k soak]
	-@sh hil/loopback/system-packages.sh iproute2 nftables libfaketime faketime strace fuse3 e2fsprogs postgresql \
		qemu-system-x86 qemu-utils
	@$(PY) -m pytest tests/chaos -m chaos $(or $(ARGS),$(CHAOS_SHORT))

# What the virtual rig is made of. The disks and bundles that the tests boot are built when they are not there.
ENV          ?= hil/envs/virtual-amd64.yaml
RIG_KIND     := $(if $(findstring virtual-arm64,$(ENV)),arm64,amd64)
RIG_QEMU     := $(if $(filter arm64,$(RIG_KIND)),qemu-system-arm qemu-efi-aarch64,qemu-system-x86 ovmf)
RIG_PACKAGES := $(RIG_QEMU) qemu-utils swtpm swtpm-tools mtools dosfstools mosquitto
RIG_DISK     := var/image/uefi-$(RIG_KIND)/disk-rig.raw
RIG_PYTEST    = SLUICE_RIG_REPORT=var/hil/report $(PY) -m pytest -p labgrid -p hil.rig.report --lg-env $(ENV) \
	--junit-xml var/hil/report/junit.xml -o cache_dir=var/hil/cache

rig: setup
	@$(PY) -m hil.rig.environment '$(ENV)'
	@sh hil/loopback/system-packages.sh $(RIG_PACKAGES)
	@$(PY) -c 'import labgrid' 2>/dev/null || { echo '==> installing labgrid'; \
		$(PIP) install --quiet --only-binary :all: --require-hashes -r requirements/hil.txt; }
	@case '$(ENV)' in *virtual-*) [ -f $(RIG_DISK) ] || $(MAKE) image TARGET=uefi-$(RIG_KIND) ARGS=--rig ;; esac
	@case '$(ENV)' in *virtual-*) made=$$(sed -n 's/.*"commit": "\([0-9a-f]*\)[-"].*/\1/p' $(dir $(RIG_DISK))manifest.json); \
		now=$$(git rev-parse HEAD 2>/dev/null); [ "$$made" = "$$now" ] || \
		echo "==> the image is of commit $$made, this checkout of $$now: make image TARGET=uefi-$(RIG_KIND) ARGS=--rig" ;; esac
	@mkdir -p var/hil/report

# The boot script of a board with U-Boot runs under QEMU's arm64 machine. That QEMU has to be 9 or later (docs/hil.md).
test-image: RIG_PACKAGES += qemu-system-arm u-boot-qemu libubootenv-tool fdisk
test-image: rig ## Examine the appliance image, boot it under QEMU, break it in many ways [ARGS=]
	@$(RIG_PYTEST) tests/image -m image $(ARGS)

hil: rig ## Run the hardware tests on a rig: the virtual one, or a board [ENV=hil/envs/x.yaml ARGS=]
	@$(RIG_PYTEST) hil/tests -m hil $(ARGS)
	$(SAY) 'report: var/hil/report/index.html'

# Runs before there is a virtual environment, with Python alone; what it needs beside that is in a tools tree of its own.
IMAGE_PACKAGES := mmdebstrap zstd git ca-certificates $(TPM_BUILD_PACKAGES)
image: ## Build the appliance image and the update bundle, as root [TARGET=uefi-amd64 KEYS= VENDOR= ARGS=--rig]
	@sh hil/loopback/system-packages.sh --python "$(PYTHON)" $(IMAGE_PACKAGES)
	@"$(PYTHON)" image/build $(or $(TARGET),uefi-amd64) $(if $(KEYS),--keys "$(KEYS)") \
		$(if $(VENDOR),--vendor "$(VENDOR)") $(ARGS)

# Pins and hashes for Linux on x86-64 and arm64, Python 3.11 to 3.13. Keeps what is pinned; make lock ARGS=--upgrade moves it.
lock: setup ## Write requirements/*.txt anew from pyproject.toml [ARGS=--upgrade]
	@[ -x var/lock/bin/uv ] || { $(PY) -m venv var/lock && var/lock/bin/pip install --quiet --disable-pip-version-check uv==0.13.8; }
	@for name in dev runtime; do \
		case $$name in \
		dev) extra='--extra dev' ;; \
		runtime) extra='--constraints requirements/dev.txt' ;; \
		esac; \
		echo "==> requirements/$$name.txt"; \
		var/lock/bin/uv pip compile pyproject.toml --group build --extra device --extra cloud --extra s3 --extra training $$extra \
			--universal --python-version 3.11 --fork-strategy fewest --generate-hashes --no-emit-index-url \
			--no-annotate --custom-compile-command 'make lock' $(ARGS) --quiet \
			--output-file requirements/$$name.txt || exit 1; \
	done
	@echo '==> requirements/hil.txt'
	@var/lock/bin/uv pip compile pyproject.toml --extra hil --constraints requirements/dev.txt \
		--universal --python-version 3.11 --fork-strategy fewest --generate-hashes --no-emit-index-url \
		--no-annotate --custom-compile-command 'make lock' $(ARGS) --quiet --output-file requirements/hil.txt
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

# Whoever loses the vendor's keys can never update a device again that he has shipped.
clean: ## Remove everything that make made, except the signing keys in var/image/keys
	@! ls var/image/keys/*.key >/dev/null 2>&1 || echo '==> kept: var/image/keys, which every device of yours trusts; remove it by hand'
	@if ls var/image/keys/*.key >/dev/null 2>&1; then \
		find var -mindepth 1 -maxdepth 1 ! -name image -exec rm -rf {} +; \
		find var/image -mindepth 1 -maxdepth 1 ! -name keys -exec rm -rf {} +; \
	else rm -rf var; fi
	rm -rf $(VENV) dist build .coverage .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find gateway cloud_bridge hil tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
