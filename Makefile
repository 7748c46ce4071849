# make demo, make test: each sets up what it needs, once. The rest is for developers.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
READY := $(VENV)/.manualgrad-ready
RUN := $(VENV)/bin/python

# every combination of what make test takes a selection of
EXHAUSTIVE := $(filter --exhaustive,$(ARGS))
OTHERS := $(filter-out --exhaustive,$(ARGS))

.PHONY: demo test check bench gpu lint clean

demo: $(READY)
	@$(RUN) -m experiments.demo $(ARGS)
	@echo; echo "More: $(RUN) -m experiments all --quick (3 minutes; docs/experiments.md)"

test: $(READY)
	@$(RUN) -m ruff check . && $(RUN) -m ruff format --check .
	@$(RUN) -m pytest $(or $(OTHERS),-n auto --dist worksteal) $(EXHAUSTIVE)
	@test -n "$(OTHERS)" || $(RUN) tools/kernel_tests.py $(EXHAUSTIVE)

check: $(READY)
	@$(RUN) -m manualgrad check $(ARGS)

bench: $(READY)
	@$(RUN) -m benchmarks $(ARGS)

gpu: # in the interpreter that has torch and triton; nothing is fetched
	@$(PYTHON) tools/gpu.py $(ARGS)

lint: $(READY)
	@$(RUN) -m ruff check . && $(RUN) -m ruff format --check . && $(RUN) -m pyright

$(READY): pyproject.toml tools/environment.py $(CONSTRAINTS)
	@$(PYTHON) tools/environment.py $(VENV) $(CONSTRAINTS)
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
