# Corral's commands. `make` alone lists them.
#
# What is set up once leaves a stamp in .venv, so that the next `make run` starts at once. PYTHON, CUDA
# and every environment variable of docs/settings.md pass through: make run GATEWAY_PORT=9000

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
PY := $(VENV)/bin/python

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# To use it ---------------------------------------------------------------------------------------

.PHONY: run
run: $(VENV)/.installed ## Set up what is missing and start the gateway; Ctrl-C stops it
	@$(MAKE) --no-print-directory engine models >/dev/null # progress comes on stderr and is seen
	@$(PY) scripts/keys.py ensure
	@exec $(PY) scripts/gateway.py

.PHONY: engine
engine: $(VENV)/.installed ## Find a llama-server or build one (CUDA=1: for NVIDIA GPUs)
	@if [ "$(CUDA)" = 1 ]; then PYTHON=$(PY) exec scripts/build_engine.sh; fi; \
	$(PY) scripts/find_engine.py || { [ $$? = 3 ] && PYTHON=$(PY) scripts/build_engine.sh; }

.PHONY: models
models: $(VENV)/.installed ## Make two tiny demo models if there is no model yet
	@$(PY) scripts/demo_models.py

.PHONY: plan
plan: $(VENV)/.installed ## Say what fits where, with nothing started: make plan ARGS="--gpus 24GiB,24GiB"
	@$(PY) scripts/plan.py $(ARGS) || [ $$? = 1 ] # something does not fit, and has been told

.PHONY: key gen-key
gen-key: key
key: $(VENV)/.installed ## Make an API key: make key NAME=alice OPTIONS=rpm=60,priority=high
	@$(PY) scripts/keys.py generate "$(or $(NAME),$(error say whose key it is: make key NAME=alice))" "$(OPTIONS)"

.PHONY: list-keys
list-keys: $(VENV)/.installed ## Show what every key may do, and no key
	@$(PY) scripts/keys.py list

# To run it in containers -------------------------------------------------------------------------

# GPU=1 gives the gateway the GPUs of this machine.
COMPOSE := docker compose -f docker-compose.yml -f docker-compose.monitoring.yml \
	$(if $(filter 1,$(GPU)),-f deploy/docker-compose.gpu.yml)

.PHONY: has-compose
has-compose:
	@docker compose version >/dev/null 2>&1 || { \
		echo "make: this needs Docker, with Compose 2.24 or newer as its plugin (docker compose version)" >&2; \
		exit 1; \
	}

.PHONY: up
up: has-compose ## Start all of it in containers, Prometheus and Grafana too (GPU=1: with the GPUs)
	@$(COMPOSE) up --detach --build
	@at=$$($(COMPOSE) port gateway 8000); $(COMPOSE) exec -T gateway python3 scripts/keys.py ensure --at "$$at"

.PHONY: down
down: has-compose ## Stop the containers and remove them; volumes stay
	@$(COMPOSE) down

.PHONY: restart
restart: has-compose ## Restart the gateway's container, and no other
	@$(COMPOSE) restart gateway

.PHONY: logs
logs: ## Follow the logs of the containers, or without Docker those in data/logs
	@if docker compose version >/dev/null 2>&1; then exec $(COMPOSE) logs --follow; fi; \
	exec tail -F data/logs/api_access.log data/logs/*/latest.txt

.PHONY: nuke
nuke: has-compose ## Remove the containers and their volumes: keys, logs, figures (asks first, unless FORCE=1)
	@if [ "$(FORCE)" != 1 ]; then \
		read -rp "Delete the containers and all that is in their volumes? [y/N] " answer || answer=; \
		[ "$$answer" = y ] || { echo "nothing is deleted"; exit 1; }; \
	fi; \
	$(COMPOSE) down --volumes --remove-orphans

# To work on it -----------------------------------------------------------------------------------

.PHONY: test
test: engine $(VENV)/.tests-installed ## Run all tests, against the real llama-server
	@$(PY) -m pytest

.PHONY: simulate
simulate: $(VENV)/.tests-installed ## Play the policy on worlds made by chance: make simulate SEED=7 COUNT=100
	@PYTHONPATH=scripts:. $(PY) -m tests.simulate $(or $(SEED),1) $(COUNT)

.PHONY: figures
figures: $(VENV)/.tests-installed ## Make the figures of docs/scheduling.md anew (minutes; QUICK=1: fewer)
	@PYTHONPATH=scripts:. QUICK=$(QUICK) $(PY) -m tests.simulation.figures

.PHONY: smoke
smoke: engine ## Start everything, chat once from outside, stop, and see that nothing is left
	@tests/smoke.sh

.PHONY: bench
bench: $(VENV)/.installed ## Measure what Corral costs beside nginx (QUICK=1, RIVALS=1, PUBLISH=1)
	@$(if $(RIVALS),PYTHONPATH=scripts $(PY) -m tests.bench.install)
	@PYTHONPATH=scripts $(PY) -m tests.bench \
		$(if $(QUICK),--quick) $(if $(RIVALS),--rivals) $(if $(PUBLISH),--publish)

.PHONY: bench-gate
bench-gate: $(VENV)/.installed ## Hold what was reached: processor time of a request and of a chunk, against nginx
	@PYTHONPATH=scripts $(PY) -m tests.bench.gate

.PHONY: cold-start
cold-start: $(VENV)/.installed ## Measure a start: to the health port, to listening, to the first token
	@PYTHONPATH=scripts:. $(PY) -m tests.cold_start $(ARGS)

.PHONY: image
image: engine $(VENV)/.tests-installed ## Build and run the image as a plain folder (root and debootstrap)
	@PYTHONPATH=scripts:. $(PY) -m tests.image $(ARGS)

.PHONY: lint
lint: $(VENV)/.tests-installed ## Check style and types, of scripts and the Dockerfile too
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/mypy
	@$(VENV)/bin/shellcheck entrypoint.sh scripts/*.sh tests/*.sh .ci/run
	@$(VENV)/bin/hadolint Dockerfile

.PHONY: format
format: $(VENV)/.tests-installed ## Let the formatter have its way
	@$(VENV)/bin/ruff check --fix
	@$(VENV)/bin/ruff format

.PHONY: docs
docs: $(VENV)/.installed ## Write docs/settings.md from the table of settings
	@PYTHONPATH=scripts $(PY) -m tests.settings_page

.PHONY: clean
clean: ## Remove what Python and the tools left; models, keys and logs stay
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
	@find scripts tests -name __pycache__ -prune -exec rm -rf {} +

# Set up once -------------------------------------------------------------------------------------

$(VENV)/.installed: requirements.txt
	@scripts/make_venv.sh $(VENV)
	@touch $@

$(VENV)/.tests-installed: tests/requirements.txt $(VENV)/.installed
	@$(PY) -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@
