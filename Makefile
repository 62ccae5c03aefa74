# Every target works on a fresh clone: the virtual environment is made when it is missing.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: help venv demo test campaign e2e e2e-full rbac journey cluster bench mutations lint format docs protos image wheels lock clean

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

venv: $(VENV)/.installed ## the virtual environment, made where it is missing
$(VENV)/.installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-virtualenv --constraint requirements.lock --editable '.[dev]'
	@touch $@

demo: venv ## a tour on a simulated node, no root and no cluster
	@$(BIN)/bridge sandbox

test: venv ## unit, property and protocol tests; no root, no Kubernetes
	$(BIN)/python -m pytest -m "not e2e" -n 3 --dist loadscope tests

SEED ?= 1
MINUTES ?= 1
campaign: venv ## random histories, judged; SEED=1 MINUTES=1 [OPERATIONS=… CRASHES=… SEEDS=…] [REAL=1 K8S=1.37.1]
	$(BIN)/python -m tests.campaign --seed $(SEED) --minutes $(MINUTES) $(if $(OPERATIONS),--operations $(OPERATIONS)) \
	  $(if $(CRASHES),--crashes $(CRASHES)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(REAL),--real) $(if $(K8S),--k8s $(K8S))

lint: venv ## ruff, mypy strict, import contracts, crash points, stubs current
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --strict -p tests.cluster -p tests.docs -p tests.image
	$(BIN)/lint-imports
	$(BIN)/python -m tests.lint.points
	$(BIN)/python -m tests.protos --check

format: venv ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

cluster: venv ## a real Kubernetes node on this machine (root); K8S=1.37.1
	$(BIN)/python -m tests.cluster install-packages
	$(BIN)/python -m tests.cluster up

e2e: venv ## the tests on the real node (root); K8S=1.37.1|1.34.4|1.32.2
	$(BIN)/python -m tests.cluster install-packages
	$(BIN)/python -m pytest -m e2e tests

# By release: `.ci/run` has all of `ci` on the newest, of the oldest what is marked so, and nothing of those between.
LEFT_OUT_1.37.1 := e2e and not ci
LEFT_OUT_1.32.2 := e2e and not oldest
e2e-full: venv ## what `.ci/run` leaves out of them: kills, journey, matrix of rights, documentation (root); K8S=1.37.1|…
	$(BIN)/python -m tests.cluster install-packages
	$(BIN)/python -m pytest -s -m "$(or $(LEFT_OUT_$(or $(K8S),1.37.1)),e2e)" tests

rbac: venv ## each right of the daemon taken away in turn on a real node (root); K8S=1.37.1|1.34.4|1.32.2
	$(BIN)/python -m tests.cluster install-packages
	$(BIN)/python -m pytest -q -s tests/manifests/test_rbac_matrix.py

journey: venv ## two real nodes go from the device plugin API to DRA and back under a workload that goes on serving (root)
	$(BIN)/python -m tests.cluster install-packages
	$(BIN)/python -m pytest -q -s tests/journey

mutations: venv ## break the code on purpose, once for each line of the list, and see a test go red
	$(BIN)/python -m tests.mutations

bench: venv ## speed and memory beside their floors (root: on the real node); writes bench.json
	$(BIN)/python -m tests.cluster install-packages
	$(BIN)/python -m tests.bench

docs: venv ## write the tables of docs/configuration.md anew
	$(BIN)/python -m tests.docs.reference

protos: venv ## generate the stubs
	$(BIN)/python -m tests.protos

# The builder takes packages from where pip in it is told. Behind a mirror of one's own run `make wheels` first: what
# pip here can reach is then taken along, and the build needs no network.
ENGINE ?= $(shell command -v podman || command -v docker)
IMAGE ?= device-bridge:0.1.0
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
image: ## the container image, by podman or docker; [BASE=… BUILDER=…] [IMAGE=name:tag] [IMAGE_FLAGS=--platform=linux/s390x]
	$(or $(ENGINE),$(error podman or docker is needed to build an image)) build --file Containerfile --tag $(IMAGE) \
	  --build-arg SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) $(if $(BASE),--build-arg BASE=$(BASE)) \
	  $(if $(BUILDER),--build-arg BUILDER=$(BUILDER)) $(IMAGE_FLAGS) .

# Of the builder, not of this machine.
IMAGE_PYTHON ?= 3.12
IMAGE_MACHINE ?= $(shell uname -m)
wheels: venv ## what `make image` then takes instead of the network; IMAGE_PYTHON=3.12 IMAGE_MACHINE=x86_64|aarch64
	rm -rf container/wheels
	$(BIN)/pip download --quiet --require-hashes --dest container/wheels --only-binary :all: --implementation cp \
	  --python-version $(IMAGE_PYTHON) $(foreach of,2014 _2_17 _2_28,--platform manylinux$(of)_$(IMAGE_MACHINE)) \
	  --requirement container/requirements.txt --requirement container/build.txt

HASHED = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
  --constraint requirements.lock
lock: ## resolve the dependencies anew
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade --editable '.[dev]'
	$(BIN)/pip freeze --exclude-editable | grep -v '^device-bridge' > requirements.lock
	$(BIN)/pip install --quiet uv
	$(HASHED) --output-file container/requirements.txt pyproject.toml
	$(HASHED) --output-file container/build.txt container/build.in

clean: ## remove what was made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis bench.json
