# Each of these does all of the set-up on a fresh machine with Python >= 3.10 and a C compiler.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test torture lint bench build clean

demo: build          ## MER beside its baselines on MNIST Rotations, with a picture of the forgetting
	$(BIN)/python demo.py

test: build          ## all tests, a file at a time on each core: what a file's tests share is made once; the GPU's alone
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile
	$(BIN)/python -m pytest tests/test_cuda.py

torture: build       ## the long fault injection
	$(BIN)/python -m pytest -m torture --timeout 3600

lint: .venv/dev      ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: build         ## native against reference engine, measured in one run
	$(BIN)/python benchmarks/bench.py

build: .venv/dev     ## the compiled kernels; where there is no compiler, says so and goes on
	@$(BIN)/python setup.py --quiet build_ext --inplace

.venv/dev: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

clean:
	rm -rf .venv build model/engine/*.so model/engine/*.c
