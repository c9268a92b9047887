# make demo        the reward-tax front of a small world, about three minutes on 2 CPU cores
# make test        lint, types and the default test suite
# make slow        the heavier tests
# make parity      comparison with torch, transformers, mergekit and lm-evaluation-harness, in environments of their own
# make browser     the report in a headless Chromium
# make experiments claims of papers, measured anew: ledgers and figures in experiments/
# make bench       speed against torch, TRL, transformers, Tunix and mergekit
.PHONY: demo test slow lint parity browser experiments bench clean

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PARITY := .venv-parity
MERGEKIT := .venv-mergekit
HARNESS := .venv-lm-eval

demo: $(VENV)/.installed
	$(BIN)/wam run --config configs/alignment_tax/tiny.py --workdir runs/demo

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not parity and not browser"

slow: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow and not parity and not browser"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

parity: $(PARITY)/.installed $(MERGEKIT)/.installed $(HARNESS)/.installed
	$(PARITY)/bin/python -m pytest -m parity tests/parity

browser: $(VENV)/.installed
	$(BIN)/python -m pytest -m browser tests/browser

experiments: $(VENV)/.installed
	$(BIN)/python -m experiments.proposition_4_1
	$(BIN)/python -m experiments.alignment_tax
	$(BIN)/python -m experiments.warm
	$(BIN)/python -m experiments.warp
	$(BIN)/python -m experiments.rewarded_soups
	$(BIN)/python -m experiments.compatible_rewards
	$(BIN)/python -m experiments.clp
	$(BIN)/python -m experiments.warm_penalties
	$(BIN)/python -m experiments.reward_data
	$(BIN)/python -m experiments.bond
	$(BIN)/python -m experiments.elastic_reset
	@test -n "$$WAM_DATA" || echo "WAM_DATA is not set: leaving out warm_stories and warp_stories"
	test -z "$$WAM_DATA" || $(BIN)/python -m experiments.warm_stories
	test -z "$$WAM_DATA" || $(BIN)/python -m experiments.warp_stories

bench: $(VENV)/.installed .venv-bench-torch/.installed .venv-bench-tunix/.installed $(MERGEKIT)/.installed
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/preferences.py
	$(BIN)/python benchmarks/population.py
	$(BIN)/python benchmarks/warp.py
	$(BIN)/python benchmarks/merge.py --size 100m
	$(BIN)/python benchmarks/merge.py

.venv-bench-torch/.installed:
	$(PYTHON) -m venv .venv-bench-torch
	.venv-bench-torch/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-bench-torch/bin/python -m pip install --quiet --disable-pip-version-check transformers trl
	touch $@

.venv-bench-tunix/.installed:
	$(PYTHON) -m venv .venv-bench-tunix
	.venv-bench-tunix/bin/python -m pip install --quiet --disable-pip-version-check google-tunix
	touch $@

# The stamps are rebuilt whenever the metadata or the pins change.
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,datasets,search]"
	touch $@

$(PARITY)/.installed: setup.cfg pyproject.toml constraints.txt
	test -x $(PARITY)/bin/python || $(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

$(MERGEKIT)/.installed:
	test -x $(MERGEKIT)/bin/python || $(PYTHON) -m venv $(MERGEKIT)
	$(MERGEKIT)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(MERGEKIT)/bin/python -m pip install --quiet --disable-pip-version-check mergekit==0.1.5
	touch $@

$(HARNESS)/.installed:
	test -x $(HARNESS)/bin/python || $(PYTHON) -m venv $(HARNESS)
	$(HARNESS)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(HARNESS)/bin/python -m pip install --quiet --disable-pip-version-check lm_eval==0.4.13 transformers==4.57.6 datasets==4.8.4 accelerate==1.15.0
	touch $@

clean:
	rm -rf build *.egg-info .mypy_cache .ruff_cache .pytest_cache
