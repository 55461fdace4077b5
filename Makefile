# make repro [PROFILE=demo|laptop|paper]   run the pipeline
# make test                                lint and test
# make help                                the rest
PROFILE ?= demo
PYTHON ?= python3
BIN := .venv/bin
# For the commands that these start: the stages of dvc.yaml, the kernels of notebooks.
export PATH := $(CURDIR)/$(BIN):$(PATH)
PIPELINE = $(if $(filter demo,$(PROFILE)),dvc.yaml,profiles/$(PROFILE)/dvc.yaml)

.PHONY: help repro has_stages test notebooks benchmarks lock clean

help:
	@echo "make repro [PROFILE=demo]  run the pipeline of a profile: demo, laptop or paper"
	@echo "make test                  lint and test, notebooks included"
	@echo "make notebooks             execute the notebooks again and store their outputs"
	@echo "make benchmarks            measure the training step and the kernels, into results/benchmarks (leave the machine alone)"
	@echo "make lock                  pin the dependencies of pyproject.toml in requirements.txt"
	@echo "make clean                 remove the environment and the caches, nothing else"

repro: has_stages $(BIN)/.ready
	$(BIN)/python -m psp.pipeline ahead $(PROFILE)
	$(BIN)/dvc repro --keep-going $(PIPELINE)
	@echo "Figures: results/$(PROFILE)/figures; tables: results/$(PROFILE)/tables; of the sections cifar and ilsvrc beside these."

has_stages:
	@test -f $(PIPELINE) || { echo "error: no $(PIPELINE); profiles with stages are demo, laptop and paper (docs/running.md has the others)"; exit 1; }

# A process for each core, one thread in each: several threads in several processes wait for one another.
test: $(BIN)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

notebooks: $(BIN)/.ready
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace \
	  --ExecutePreprocessor.record_timing=False notebooks/*.ipynb

# Into a file that is kept only once it is whole, so that a measurement that fails loses no earlier one.
benchmarks: $(BIN)/.ready
	mkdir -p results/benchmarks
	for name in column_conv overhead train_speed; do \
	  $(BIN)/python benchmarks/$$name.py > results/benchmarks/$$name.new && \
	  mv results/benchmarks/$$name.new results/benchmarks/$$name.txt || exit 1; done

$(BIN)/.ready: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

lock:
	$(PYTHON) -m venv .lock-venv
	.lock-venv/bin/python -m pip install --quiet uv
	.lock-venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate --all-extras pyproject.toml -o requirements.txt

clean:
	rm -rf .venv .lock-venv .pytest_cache .ruff_cache .hypothesis
