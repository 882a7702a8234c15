# README's two commands are `make demo` and `make test`; each first makes the environment it needs.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Two processes, whole files each: fixtures and caches are made once a file. The longest files come
# first (tests/conftest.py). One thread each, or the processes would contend for two cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: install demo flower test test-fast lint bench clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/gradguard evaluate

# Top-k and DP-SGD on Flower's own engine; '.[dev]' has brought the extra.
flower: $(READY)
	$(BIN)/python examples/flower/run.py top-k dp-sgd

test: $(READY)
	$(PYTEST)

test-fast: $(READY)
	$(PYTEST) -m "not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Costs as multiples of one copy; `python -m benchmarks` runs the hours of all others, or those named.
bench: $(READY)
	$(BIN)/python -m benchmarks speed

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
