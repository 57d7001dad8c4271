# make run    generate the sample clips with the embedded model
# make serve  serve the embedded model on http://127.0.0.1:8000
# make train-demo   clips to a trained, validated adapter of the embedded model, in minutes
# make test   the quick tests      make check   all that CI runs: lint, more tests
# make check-all   with the slow tests and those that kill processes, 30 minutes
# make soak   half an hour of mixed load with faults; MINUTES=5 for less
# make clean  remove the environment, builds and caches, never outputs/
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUTPUT ?= outputs/samples

MINUTES ?= 30

.PHONY: run serve train-demo examples test check check-all soak setup setup-dev lint clean

run: setup
	@$(BIN)/vidgen batch data/samples/jobs.jsonl --config nano --output $(OUTPUT); \
	code=$$?; if [ $$code -eq 0 ] || [ $$code -eq 3 ]; then exit 0; else exit $$code; fi

serve: setup
	$(BIN)/vidgen serve configs/serve_nano.yaml --address local

DEMO ?= outputs/train_demo
train-demo: setup
	$(BIN)/python -m scripts.demo_clips $(DEMO)/clips
	$(BIN)/vidgen encode $(DEMO)/clips/metadata.jsonl --output $(DEMO)/latents --config training/lora_nano
	$(BIN)/vidgen train --latents $(DEMO)/latents --output $(DEMO)/lora --config training/lora_nano --num-workers 0
	$(BIN)/vidgen validate --lora $(DEMO)/lora --prompts validation_demo --output $(DEMO)/validation --config training/lora_nano

# Regenerate the clips that README.md shows.
examples: setup
	rm -rf outputs/examples
	$(BIN)/vidgen batch data/samples/jobs.jsonl --config nano --output outputs/examples
	sed -i 's#$(CURDIR)/##g' outputs/examples/*.json*
	$(BIN)/python scripts/contact_sheet.py docs/examples.webp outputs/examples/*.mp4

test: setup-dev
	$(BIN)/pytest -m "not thorough and not slow and not gpu and not chaos" $(ARGS)

check: setup-dev lint
	$(BIN)/pytest -m "not gpu and not slow and not chaos" $(ARGS)

check-all: setup-dev lint
	$(BIN)/pytest -m "not gpu" $(ARGS)

soak: setup-dev
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt scripts/setup.sh
	@PYTHON=$(PYTHON) VENV=$(VENV) scripts/setup.sh .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt scripts/setup.sh
	@PYTHON=$(PYTHON) VENV=$(VENV) scripts/setup.sh ".[dev]"
	@touch $(VENV)/.installed $@

# Only what builds made; outputs/ belongs to the user.
clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path "./outputs/*" -prune -exec rm -rf {} +
