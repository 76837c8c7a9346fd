# Two commands for a newcomer: `make demo` and `make test`. Everything is fetched by the first run.
PYTHON := $(shell for p in python3.11 /usr/bin/python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo $$p && break; done)
BOOTSTRAP := $(or $(PYTHON),python3) -m deploy.setup.bootstrap
BIN := .venv/bin

# Each worker is a process that imports Feast and Faust: twice as fast where Python may keep what it has compiled.
unexport PYTHONDONTWRITEBYTECODE

PIECES := test-live test-integration test-training lint test-contract test-core

.PHONY: setup setup-training setup-test demo test $(PIECES) unit bench faults fuzz soak train quality freshness \
	freshness-deskdrop lock clean

setup:
	@$(BOOTSTRAP)

setup-training: setup
	@$(BOOTSTRAP) --training

setup-test:
	@$(BOOTSTRAP) --tests

demo: setup
	@$(BIN)/freshet demo

# Everything, two pieces at a time; each is shown when it ends. The training environment is fetched meanwhile.
test: setup-test
	@echo "tests: $(PIECES) ..."
	@$(MAKE) --no-print-directory --keep-going --jobs=2 --output-sync=target $(PIECES)

PYTEST := $(BIN)/pytest -q -p no:cacheprovider -m 'not bench' --durations=10

LIVE := $(patsubst %,tests/integration/test_%.py,worker release policies)

test-live: setup
	$(PYTEST) $(LIVE) tests/fuzz tests/faults

test-integration: setup
	$(PYTEST) tests/integration $(LIVE:%=--ignore=%)

test-training: setup-training
	.parts/training-env/bin/python -m pytest -q -c /dev/null --rootdir=. -p no:cacheprovider \
		tests/parity/test_torch_parity.py tests/quality tests/training

test-contract: setup
	$(PYTEST) tests/contract tests/parity --ignore=tests/parity/test_torch_parity.py

test-core: setup
	$(PYTEST) tests --ignore=tests/integration --ignore=tests/contract --ignore=tests/parity --ignore=tests/quality \
		--ignore=tests/training --ignore=tests/fuzz --ignore=tests/faults

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

unit: setup
	$(BIN)/pytest -m 'not integration and not bench'

bench: setup
	@$(BIN)/freshet bench

# Every fault, and a table of what holds.
faults: setup
	@$(BIN)/python -m tests.faults --write

# Random records on every topic for an hour, or FUZZ_SECONDS, from FUZZ_SEED on.
fuzz: export FUZZ_SECONDS ?= 3600
fuzz: setup
	@$(BIN)/pytest -q -p no:cacheprovider tests/fuzz

soak: setup-training
	@$(BIN)/python -m tests.soak

train: setup-training
	@$(BIN)/freshet train

# For the night: three seeds of everything and the peers beside them.
quality:
	@$(BOOTSTRAP) --peers
	@$(BIN)/freshet quality

# The worth of freshness on real data, as in the README: MovieLens-100K and, where DESKDROP names a folder with
# its events.tsv.gz and items.tsv, Deskdrop, for which a version is trained first (10 minutes).
FRESHNESS := .freshet/freshness
FILMS := $(FRESHNESS)/movielens
NEWS := $(FRESHNESS)/deskdrop
freshness: setup-training
	rm -rf $(FRESHNESS)
	$(BIN)/python -m deploy.demo.movielens .parts/data/ml-100k $(FILMS)
	$(BIN)/freshet replay $(FILMS)/events.jsonl --items $(FILMS)/items.jsonl --bundle triton_models/user_encoder/1 \
		--freshness --burn-in 0.9 --out $(FILMS)/replay
	$(if $(DESKDROP),@$(MAKE) --no-print-directory freshness-deskdrop)
	for picture in report.html freshness.svg; do \
		$(BIN)/freshet report $(if $(DESKDROP),$(NEWS)/replay/results.json --name "News: Deskdrop") \
			$(FILMS)/replay/results.json --name "Films: MovieLens-100K" --out $(FRESHNESS)/$$picture || exit 1; done

freshness-deskdrop:
	$(BIN)/python -m deploy.demo.deskdrop $(DESKDROP) $(NEWS)
	$(BIN)/freshet train --config deploy/domains/news.toml --events $(NEWS)/events.jsonl --items $(NEWS)/items.jsonl \
		--tracking none --dir $(NEWS)/training --out $(NEWS)/models/user_encoder/1 || test $$? = 3
	FRESHET_MODEL_REPOSITORY=$(NEWS)/models $(BIN)/freshet replay $(NEWS)/events.jsonl --items $(NEWS)/items.jsonl \
		--config deploy/domains/news.toml --freshness --burn-in 0.9 --out $(NEWS)/replay

# Resolve the requirement files again, with hashes and without any index in them.
COMPILE := uv pip compile -q --generate-hashes --no-emit-index-url --no-emit-find-links \
	--python-version 3.11 --no-annotate --no-header
lock:
	$(COMPILE) pyproject.toml --extra dev --extra history --extra bench -o deploy/requirements/worker.txt
	for part in triton training peers uv; do \
		$(COMPILE) deploy/requirements/$$part.in -o deploy/requirements/$$part.txt || exit 1; done
	for part in data oracle; do \
		$(COMPILE) --no-deps deploy/requirements/$$part.in -o deploy/requirements/$$part.txt || exit 1; done

clean:
	rm -rf .venv .parts .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis dist
