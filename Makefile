# Each target sets itself up (in .venv); a second call starts at once.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP = $(PY) -m pip install --quiet --disable-pip-version-check
TORCH = $$(grep '^torch==' requirements.txt)
CONFIG ?= configs/quickstart/pipeline.yaml
# Without a GPU (nvidia-smi) the CPU build of torch is enough and much smaller; to have the other: make TORCH_INDEX= quickstart
TORCH_INDEX ?= $(shell command -v nvidia-smi >/dev/null 2>&1 || [ "$$(uname -s)" != Linux ] || echo "--index-url https://download.pytorch.org/whl/cpu")

.PHONY: quickstart finetune compare smalltalk chat test test-all lint docs bench clean

quickstart: $(VENV)/run
	$(PY) recipes/pipeline.py --config $(CONFIG)

finetune: $(VENV)/gguf
	$(PY) recipes/pipeline.py --config configs/finetune/pipeline.yaml

compare: $(VENV)/run
	for seed in 42 43 44; do $(PY) recipes/pipeline.py --config configs/quickstart/pipeline-methods.yaml --seed $$seed \
		--output_dir outputs/methods-$$seed || exit; done
	$(PY) recipes/compare.py $(foreach seed,42 43 44,outputs/methods-$(seed)/evaluate-methods) --output_dir outputs/methods

smalltalk: $(VENV)/data
	$(PY) recipes/pipeline.py --config configs/smalltalk/pipeline.yaml

chat: $(VENV)/run
	$(PY) recipes/chat.py

# Two processes of one thread each: with more, threads wait for each other on a machine with two cores.
test: $(VENV)/dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile -m "not long"

test-all: $(VENV)/dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile

lint: $(VENV)/dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/bandit -q -r llmrecipes recipes benchmarks -c pyproject.toml

docs: $(VENV)/run
	$(PIP) -r docs/requirements.txt
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet
	@echo "open outputs/docs/index.html; its search needs a server: $(PY) -m http.server --directory outputs/docs"

bench: $(VENV)/run
	$(PY) benchmarks/training.py

$(VENV)/run: requirements.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or newer"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than 3.11; make PYTHON=python3.11 ..."; exit 2; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@# Where the index of torch's CPU builds is in reach, take that build; else what the package index has.
	$(if $(TORCH_INDEX),-$(PIP) --no-deps --retries 0 --timeout 10 $(TORCH) $(TORCH_INDEX) 2>/dev/null)
	$(PIP) -e .
	@touch $@

$(VENV)/gguf: $(VENV)/run
	$(PIP) -e ".[gguf]"
	@touch $@

$(VENV)/data: $(VENV)/run
	$(PIP) -e ".[data]"
	@touch $@

$(VENV)/dev: $(VENV)/run requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV) outputs
