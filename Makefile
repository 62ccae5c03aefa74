# Every target works on a fresh clone: the virtual environment is made when it is missing.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: help venv demo test campaign e2e e2e-ci cluster bench mutations lint format protos lock clean

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

venv: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-virtualenv --constraint requirements.lock --editable '.[dev]'
	@touch $@

demo: venv ## a tour on a simulated node, no root and no cluster
	@$(BIN)/bridge sandbox

test: venv ## unit, property and protocol tests; no root, no Kubernetes
	$(BIN)/python -m pytest -m "not e2e" tests

SEED ?= 1
MINUTES ?= 1
campaign: venv ## random histories, judged; SEED=1 MINUTES=1 [OPERATIONS=… CRASHES=… SEEDS=…] [REAL=1 K8S=1.37.1]
	$(BIN)/python -m tests.campaign --seed $(SEED) --minutes $(MINUTES) $(if $(OPERATIONS),--operations $(OPERATIONS)) \
	  $(if $(CRASHES),--crashes $(CRASHES)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(REAL),--real) $(if $(K8S),--k8s $(K8S))

lint: venv ## ruff, mypy strict, import contracts, crash points, stubs current
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --strict -p tests.cluster
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

mutations: venv ## break the code on purpose, once for each line of the list, and see a test go red
	$(BIN)/python -m tests.mutations

bench: venv ## speed and memory beside their floors (root: on the real node); writes bench.json
	$(BIN)/python -m tests.cluster install-packages
	$(BIN)/python -m tests.bench

protos: venv ## generate the stubs
	$(BIN)/python -m tests.protos

lock: ## resolve the dependencies anew
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade --editable '.[dev]'
	$(BIN)/pip freeze --exclude-editable | grep -v '^device-bridge' > requirements.lock

clean: ## remove what was made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis bench.json
