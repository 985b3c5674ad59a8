# Every target uses .venv, which is created once from the lock files. `make help` lists the targets.

PYTHON ?= python3
HOURS  ?= 0.05
DATA   ?= stdlib
MODEL  ?= auto
DEVICE ?= auto
WANDB  ?= disabled
SWEEP  ?= seeds
NAME   ?= run
PROJECT ?= stint
ENTITY ?=
RUNS   ?= outputs/*
WORKERS ?= 2
ARGS   ?=

VENV   := .venv
PY     := $(VENV)/bin/python
RUN    := $(VENV)/.runtime
DEV    := $(VENV)/.dev

.DEFAULT_GOAL := help
.PHONY: help train plan law doctor sweep dashboard evaluate sample test test-slow lint audit format lock clean
.PHONY: bench bench-gpu soak prove-plan prove-faults slurm-up slurm-down

help:  ## show this list
	@echo "make TARGET [VARIABLE=value ...]"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  %-12s %s\n", $$1, $$2}'
	@echo
	@echo "variables (with their defaults):"
	@echo "  HOURS=$(HOURS)     wall clock of the run"
	@echo "  DATA=$(DATA)    stdlib | slimpajama | hub | text | tokens | mix; the last four need ARGS, e.g. \"data.repo=OWNER/NAME\""
	@echo "  MODEL=$(MODEL)     auto | classic | llama | modern"
	@echo "  DEVICE=$(DEVICE)    auto | cpu | cuda; make plan also takes a100, h100, ..."
	@echo "  WANDB=$(WANDB) | offline | online"
	@echo "  NAME=$(NAME)       first part of the run's folder"
	@echo "  PROJECT=$(PROJECT)  wandb project of make dashboard; ENTITY=: its team or user"
	@echo "  ARGS=          any options, e.g. ARGS=\"model.dropout=0.1\"; python train.py --help lists them"
	@echo "  WORKERS=$(WORKERS)      processes of make test; each takes one core"
	@echo "  PYTHON=$(PYTHON) Python for .venv, 3.11 or 3.12 (3.13: untested)"
	@echo
	@echo "examples:"
	@echo "  make train HOURS=3 DATA=slimpajama WANDB=online ARGS=\"model.dropout=0.1\""
	@echo "  make plan HOURS=3 DEVICE=a100"

$(RUN): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "error: $(PYTHON) is not Python 3.11, 3.12 or 3.13; name one with PYTHON=python3.12"; exit 2; }
	@echo "set-up: installing requirements.lock into $(VENV) (once, takes some minutes)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@

$(DEV): $(RUN) requirements-dev.lock
	@echo "set-up: installing requirements-dev.lock into $(VENV) (test tools)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	@touch $@

train: $(RUN)  ## plan, train for HOURS, evaluate and report
	@$(PY) train.py budget.hours=$(HOURS) data=$(DATA) model=$(MODEL) device=$(DEVICE) wandb.mode=$(WANDB) name=$(NAME) $(ARGS)

# Without DATA, plan.py chooses the corpus: DATA's default is for training on this machine.
plan: $(RUN)  ## show the plan for HOURS on DEVICE
	@$(PY) plan.py budget.hours=$(HOURS) $(if $(filter-out file,$(origin DATA)),data=$(DATA)) model=$(MODEL) device=$(DEVICE) $(ARGS)

law: $(RUN)  ## fit a scaling law to your own runs, for law=local: RUNS="outputs/*"
	@$(PY) -m budget.laws.refit $(RUNS) $(ARGS)

doctor: $(RUN)  ## check this machine and suggest fixes: ARGS=--json
	@$(PY) -m cli.doctor $(ARGS)

sweep: $(RUN)  ## run sweeps/SWEEP.yaml, HOURS per job
	@$(PY) train.py -cd sweeps -cn $(SWEEP) budget.hours=$(HOURS) data=$(DATA) $(ARGS)

dashboard: $(RUN)  ## save a view of the wandb project PROJECT, with budget hours as x axis
	@$(PY) -m run.tracking.workspace --project $(PROJECT) $(if $(ENTITY),--entity $(ENTITY)) $(ARGS)

evaluate: $(RUN)  ## evaluate a model on text: ARGS="checkpoint=outputs/NAME data.path=FILE"
	@$(PY) evaluate.py $(ARGS)

sample: $(RUN)  ## generate text: ARGS="checkpoint=outputs/NAME"
	@$(PY) sample.py $(ARGS)

test: $(DEV)  ## run the test suite
	@$(PY) -m pytest -m "not slow" --numprocesses=$(WORKERS) --dist=worksteal $(ARGS)

test-slow: $(DEV)  ## run the tests that take minutes
	@$(PY) -m pytest -m slow $(ARGS)

lint: $(DEV)  ## run ruff, mypy and bandit
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -m bandit --quiet --configfile pyproject.toml --recursive .

audit: $(DEV)  ## look for known vulnerabilities in the locked packages; asks pypi.org
	@$(PY) -c "import sys; from common.network import why_unreachable; sys.exit(why_unreachable('https://pypi.org', 5))" \
	  || { echo "make audit: nothing was checked, because pypi.org cannot be reached"; exit 1; }
	@$(PY) -m pip_audit --requirement requirements-dev.lock --strict --no-deps --disable-pip --progress-spinner off

format: $(DEV)  ## format the code and apply ruff's fixes
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

bench: $(DEV)  ## run the benchmarks, into bench/results/: CORPUS=FOLDER CURVES=FILE PEER=NANOGPT BASELINES=LLM_BASELINES
	$(if $(CORPUS),,$(error make bench: CORPUS is missing; give a folder in SlimPajama's layout with CORPUS=FOLDER))
	$(if $(CURVES),@$(PY) -m bench.quality.law_extrapolation $(CURVES),\
	  @echo "no CURVES=FILE of published runs: skipping bench.quality.law_extrapolation")
	@$(PY) -m bench.speed.train_step
	@$(PY) -m bench.speed.startup
	$(if $(PEER),@$(PY) -m bench.peers.same_as_nanogpt --peer "$(PEER)",\
	  @echo "no PEER=NANOGPT: skipping bench.peers.same_as_nanogpt")
	$(if $(PEER),@$(PY) -m bench.peers.tune_peer $(CORPUS) --peer "$(PEER)" --at-once)
	@for peer in $(PEER) $(BASELINES) cramming; do $(PY) -m bench.peers.against $(CORPUS) --peer "$$peer" || exit 1; done
	@$(PY) -m bench.quality.ablation $(CORPUS) --at-once
	@$(PY) -m bench.quality.plan_neighbours $(CORPUS) --at-once
	@$(PY) -m bench.docs.performance_page

bench-gpu: $(DEV)  ## measure speed on one GPU in 8 minutes; with PEER=NANOGPT also time to loss
	@$(PY) -m bench.speed.gpu $(if $(PEER),--peer "$(PEER)") $(ARGS)

soak: $(DEV)  ## look for leaks: 30 minutes of training, a million lines of metrics, 10 GB of corpus
	@$(PY) -m bench.faults.soak $(ARGS)

prove-plan: $(DEV)  ## test the plan against other sizes; takes 1.5 hours: CORPUS=FOLDER
	@$(PY) -m bench.quality.plan_validation $(CORPUS) $(ARGS)

slurm-up: $(DEV)  ## start a one-node Slurm on this machine, to test sweeps; needs root
	@$(PY) -m tests.slurm_cluster up && echo "to use it, run: eval \"\$$($(PY) -m tests.slurm_cluster env)\""

slurm-down:  ## stop that Slurm
	@$(PY) -m tests.slurm_cluster down

prove-faults: $(DEV)  ## kill and stop runs in every phase and inject other faults; half an hour: ARGS="--kills 20 --signals 14"
	@$(PY) -m bench.faults.prove_faults $(ARGS)
	@$(PY) -m bench.docs.reliability_page

lock:  ## update the lock files from requirements*.in, in a temporary environment
	@for set in requirements requirements-dev; do \
	  rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock && \
	  .venv-lock/bin/python -m pip install --quiet --disable-pip-version-check -r $$set.in && \
	  { echo "# Made by 'make lock' from $$set.in; edit that instead."; \
	    .venv-lock/bin/python -m pip freeze --exclude pip --exclude setuptools \
	    | sed -E 's/ @ .*//; s/\+cpu$$//' | grep -vE '^(nvidia-[^m]|triton)'; } > $$set.lock || exit 1; \
	done; rm -rf .venv-lock

clean:  ## remove .venv and caches; keep runs and prepared corpora
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
