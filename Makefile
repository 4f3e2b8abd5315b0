VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BUILT := $(VENV)/.built
VERSION = $(shell $(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')

.DEFAULT_GOAL := help
.PHONY: help install build test test-debug proof mutants asan cov lint format types check docs bench bench-service bench-tail results dist test-dist clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.* ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	SDAX_REQUIRE_EXTENSIONS=1 $(BIN)/pip install -q -e ".[dev]"
	@touch $@ $(BUILT)

$(BUILT): sdax/_core.pyx sdax/_core.h setup.py | $(INSTALLED)
	SDAX_REQUIRE_EXTENSIONS=1 $(BIN)/pip install -q --no-deps -e .
	@touch $@

install: $(INSTALLED) ## make .venv with sdax (editable) and all that development needs

build: ## compile the engine in place
	@rm -f $(BUILT)
	@$(MAKE) --no-print-directory $(BUILT)

test: $(BUILT) ## run the tests on both engines
	$(BIN)/python -m pytest

test-debug: $(BUILT) ## run them in Python's development mode, with asyncio's debug mode
	$(BIN)/python -X dev -m pytest

proof: $(BUILT) ## disturb small workflows at every point, on both engines (minutes)
	$(BIN)/python -m tests.crash_points --full
	$(BIN)/python -m tests.monte_carlo --engine both --seed 0 --runs 5000
	$(BIN)/python -m tests.monte_carlo --engine both --runs 1000
	$(BIN)/python -m tests.faults
	$(BIN)/python -m tests.resource_points
	SDAX_THOROUGH=1 $(BIN)/python -m pytest -q tests/test_size.py tests/test_graph_size.py \
		tests/test_load.py tests/test_resource_runs.py tests/test_critical_path.py \
		tests/test_max_concurrency.py tests/test_bad_input.py tests/test_diagram.py
	SDAX_DEPLOY_SCHEDULES=1000 $(BIN)/python -m pytest -q tests/test_deploy.py -k real_processes

MUTANTS ?= --count 200
mutants: $(BUILT) ## change sdax in 200 places, and look which tests notice (20 minutes)
	$(BIN)/python -m tests.mutants $(MUTANTS)

# In a copy, because an extension with AddressSanitizer is of no use to anything else. Some tests
# cannot run: the sanitizer keeps freed memory, and browsers inherit it.
ASAN := build/asan
asan: $(INSTALLED) ## run the compiled engine's tests with AddressSanitizer (gcc, Linux)
	rm -rf $(ASAN)
	mkdir -p $(ASAN)
	cp -r sdax _sdax_pytest.py setup.py pyproject.toml MANIFEST.in README.md LICENSE $(ASAN)
	rm -f $(ASAN)/sdax/_core*.so
	SDAX_REQUIRE_EXTENSIONS=1 CFLAGS="-fsanitize=address -fno-omit-frame-pointer" \
		LDFLAGS=-fsanitize=address $(BIN)/pip install -q --no-deps --target $(ASAN)/installed ./$(ASAN)
	LD_PRELOAD=$$(gcc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
		PYTHONPATH=$(CURDIR)/$(ASAN)/installed $(BIN)/pytest --engine compiled \
		-m "not undisturbed" --ignore tests/test_documentation.py \
		--ignore tests/test_page_in_browser.py --ignore tests/test_perfetto.py

cov: ## measure which lines the tests run, on Python 3.11 and 3.13 together (minutes)
	.ci/cov

lint: $(INSTALLED) ## check style, spelling, plain English, workflows and news
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	PATH="$(abspath $(BIN)):$$PATH" cython-lint sdax
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell
	$(BIN)/python -m tests.prose
	$(BIN)/shellcheck -x -P SCRIPTDIR .ci/run .ci/cov .ci/dist .ci/test-dist .ci/windows
	$(BIN)/zizmor -q --offline .github
	$(BIN)/towncrier build --draft --version next > /dev/null

format: $(INSTALLED) ## mend what of the style can be mended
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(INSTALLED) ## check types with mypy and pyright
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

check: lint types test ## lint, types and tests

docs: $(BUILT) ## build the documentation, into build/docs
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/docs

bench: $(BUILT) ## measure sdax beside asyncio.TaskGroup, on both engines, for half a minute
	$(BIN)/python -m sdax bench

bench-service: $(BUILT) ## load an endpoint over PostgreSQL with wrk; both must be installed
	$(BIN)/python benchmarks/throughput.py

bench-tail: $(BUILT) ## load it with an upstream service that is slow now and then, with and without hedged
	$(BIN)/python benchmarks/tail_latency.py

results: $(BUILT) ## measure all that benchmarks/RESULTS.md shows, with this VENV's Python
	$(BIN)/pip install -q -e ".[bench,bench-peers]"
	for round in 1 2 3; do \
		$(BIN)/pytest benchmarks/ --benchmark-json=benchmarks/results/$(VERSION)-$$round.json || exit 1; \
	done
	$(BIN)/python benchmarks/published.py 0.7 0.3
	$(BIN)/python benchmarks/report.py

dist: $(INSTALLED) ## build and check the source distribution and the wheels from it, in dist/
	.ci/dist $(BIN)/python

test-dist: dist ## test each of them in clean environments, on every supported Python found
	.ci/test-dist

clean: ## remove what was built, but not .venv
	rm -rf build dist sdax.egg-info sdax/_core*.so sdax/_core*.pyd sdax/_core.c $(BUILT)
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find sdax tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} +
