# What a person types. All of it happens in .venv and build/, both of which `make clean` removes.
#
#   make demo   installs shmstore into .venv and counts the standard library's words with eight processes
#   make test   the C tests, plain and under sanitizers, then pytest; then a table of what was killed, fuzzed, searched
#   make proofs the long form of that: every store, 10,000 kills an engine, 10,000,000 hostile segments; takes hours.
#               Each of its parts alone: make proofs-core, proofs-life, proofs-storm, proofs-processes, proofs-model,
#               mutants, fuzz
#   make fuzz   hostile segments and hostile peers, the long form: libFuzzer on three targets, each in a process of its
#               own; needs clang. What is ended early goes on where it was with the next `make fuzz`
#   make mutants  removes one check of the core after the other; the short form of the fuzz targets must find each
#   make bench  measures against torch's stores, Redis, LMDB and MPI (what is not installed is named); BENCH: its options
#   make lint   formats, types, floors: checks only, changes nothing
#   make format rewrites what `make lint` would complain about in the layout of files
#
# A target installs again only when a source is newer than its stamp, and what is installed is not downloaded again.

PYTHON ?= python3
VENV   ?= .venv
# The tests and the checkers run against this release of torch.
TORCH  ?= torch==2.13.0
# Options of `python -m bench`.
BENCH  ?= --plots build/bench
# Of each fuzz target: executions in all its runs, seconds of this one (0: no limit), further options of libFuzzer.
# fuzz_wire's are sessions of many requests; what it reaches of the core, the other two have as single calls.
CLANG        ?= clang
FUZZ_RUNS    ?= 10000000
FUZZ_RUNS_wire ?= 2000000
FUZZ_SECONDS ?= 0
FUZZ         ?=
# Of the storm in its long form, an engine.
KILLS        ?= 10000
JOBS   ?= $(shell getconf _NPROCESSORS_ONLN)
# Of the C tests, which wait half of their time: for a dead process's lock, for a slice.
WAITERS = $(shell expr $(JOBS) \* 2)

BIN := $(VENV)/bin
# The backend of pyproject.toml, with a CMake that knows stable-ABI modules. Building without isolation makes a rebuild
# incremental and free of the network.
TOOLS   := 'scikit-build-core>=0.11' 'cffi>=1.16' 'cmake>=3.26,<4.5' 'ninja>=1.11'
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Editable: a change of Python needs no install; a change of C reruns Ninja in build/extension.
PACKAGE := $(INSTALL) --no-build-isolation --config-settings=build-dir=build/extension --editable

# $(SHOW)NAME [--all] [--long] -- COMMAND: prints what COMMAND recorded in build/proofs/NAME, and ends badly where that
# has a finding; with --all also where a row is missing that it has to have (tests/proofs.py).
SHOW  := $(BIN)/python tests/proofs.py run build/proofs/
PARTS := $(MAKE) --no-print-directory --jobs=1

SOURCES   := pyproject.toml $(wildcard shmstore/*.py shmstore/*/*.py shmstore/_core/*)
C_FILES   := $(wildcard $(foreach at,shmstore/_core tests/core tests/fuzz bench/limit,$(at)/*.c $(at)/*.h))

.PHONY: venv demo test test-c test-py proofs proofs-core proofs-life proofs-storm proofs-processes proofs-model fuzz \
    mutants bench lint format clean

venv: $(VENV)/stamp-tools

$(VENV)/stamp-tools:
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) $(TOOLS)
	@touch $@

$(VENV)/stamp-cli: $(VENV)/stamp-tools $(SOURCES)
	$(PACKAGE) '.[cli]'
	@touch $@

$(VENV)/stamp-test: $(VENV)/stamp-tools $(SOURCES)
	$(PACKAGE) '.[test,cli]' $(TORCH)
	@touch $@

$(VENV)/stamp-bench: $(VENV)/stamp-tools $(SOURCES)
	$(PACKAGE) '.[bench]' $(TORCH)
	@touch $@

$(VENV)/stamp-lint: $(VENV)/stamp-tools $(SOURCES)
	$(PACKAGE) '.[lint]'
	@touch $@

demo: $(VENV)/stamp-cli
	$(BIN)/shmstore demo

test: $(VENV)/stamp-tools
	$(SHOW)test --all -- $(PARTS) test-c test-py

# $(call c_build,NAME,SANITIZERS): configure and build the core and its C tests in build/core-NAME.
define c_build
	$(BIN)/cmake -S shmstore/_core -B build/core-$(1) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	    -DSST_EXTENSION=OFF -DSST_TESTS=ON -DSST_SANITIZE=$(2) --log-level=WARNING
	$(BIN)/cmake --build build/core-$(1) --parallel $(JOBS)
endef

comma := ,
SANITIZERS_asan := address$(comma)undefined
SANITIZERS_tsan := thread

test-c: $(VENV)/stamp-tools
	$(SHOW)test-c -- $(PARTS) test-core-plain test-core-asan test-core-tsan

test-core-%: $(VENV)/stamp-tools
	$(call c_build,$*,$(SANITIZERS_$*))
	$(BIN)/ctest --test-dir build/core-$* --output-on-failure --parallel $(WAITERS)

# One process a core, each with tests of its own; more of them than four gain little.
test-py: $(VENV)/stamp-test
	$(BIN)/python -m pytest --numprocesses $(JOBS) --maxprocesses 4 --dist worksteal

# -- the long form: a part that fails keeps no other from being run ---------------------------------------------------
proofs: $(VENV)/stamp-test
	$(SHOW)long --all --long -- $(PARTS) --keep-going proofs-core proofs-life proofs-storm proofs-processes proofs-model \
	    mutants fuzz

proofs-core: $(VENV)/stamp-tools
	$(call c_build,plain,)
	$(SHOW)core --long -- env SST_LONG=1 $(BIN)/ctest --test-dir build/core-plain --tests-regex '^fault_' --timeout 36000 \
	    --output-on-failure --parallel $(JOBS)

proofs-life: $(VENV)/stamp-test
	$(SHOW)life --long -- env SHMSTORE_LONG=1 $(BIN)/python -m pytest tests/life/test_kills.py \
	    tests/barrier/test_segment_deaths.py

proofs-storm: $(VENV)/stamp-test
	$(SHOW)storm --long -- $(PARTS) --keep-going storm-futex storm-semaphore

storm-%: $(VENV)/stamp-test
	$(BIN)/python -m tests.crash.storm --kills $(KILLS) --sync $*

# They have no longer form.
proofs-processes: $(VENV)/stamp-test
	$(SHOW)processes --long -- $(BIN)/python -m pytest tests/process tests/crash/test_namespaces.py \
	    tests/crash/test_stopped.py tests/crash/test_full_memory.py

proofs-model: $(VENV)/stamp-test
	$(SHOW)model --long -- $(BIN)/python -m pytest tests/model/test_promela.py

# Findings end up in build/fuzz, one file each; `build/core-asan/fuzz_live FILE` runs one again.
define fuzz_needs
make fuzz needs clang and its libFuzzer runtime. Debian, Ubuntu: apt-get install clang libclang-rt-NN-dev, with the NN of
`clang --version`. Fedora: dnf install clang compiler-rt. Another compiler's name: make fuzz CLANG=clang-18
endef
export fuzz_needs

fuzz: $(VENV)/stamp-cli
	@mkdir -p build/fuzz
	@echo 'int LLVMFuzzerTestOneInput(const char *p, unsigned long n) { return p + n == 0; }' > build/fuzz/probe.c
	@$(CLANG) -fsanitize=fuzzer,address,undefined build/fuzz/probe.c -o build/fuzz/probe 2> build/fuzz/probe.log \
	    || { echo "$$fuzz_needs"; exit 1; }
	$(BIN)/cmake -S shmstore/_core -B build/fuzz -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	    -DCMAKE_C_COMPILER=$(CLANG) -DSST_EXTENSION=OFF -DSST_FUZZ=ON --log-level=WARNING
	$(BIN)/cmake --build build/fuzz --parallel $(JOBS)
	$(SHOW)fuzz --long -- $(MAKE) --no-print-directory --jobs=3 --output-sync=target fuzz-live fuzz-attach \
	    fuzz-wire

# What each begins with, and how long its inputs get: a byte and 32 records, or a byte and a session.
SEEDS_live    := build/fuzz/fuzz_seeds --write
SEEDS_attach  := build/fuzz/fuzz_seeds --write
SEEDS_wire    := $(BIN)/python tests/fuzz/wire_seeds.py
LENGTH_live   := 257
LENGTH_attach := 257
LENGTH_wire   := 4096

fuzz-%:
	@mkdir -p build/fuzz/corpus-$*
	@$(SEEDS_$*) build/fuzz/corpus-$*
	$(BIN)/python tests/fuzz/campaign.py build/fuzz $* $(or $(FUZZ_RUNS_$*),$(FUZZ_RUNS)) -max_total_time=$(FUZZ_SECONDS) -timeout=10 \
	    -max_len=$(LENGTH_$*) $(FUZZ)

# The mutants' own runs of the targets record nothing: that they fail is what is wanted.
mutants: $(VENV)/stamp-tools
	$(SHOW)mutants --long -- $(PARTS) find-mutants

find-mutants:
	@mkdir -p build
	@$(BIN)/python tests/proofs.py add began 'fuzz: checks of the core removed'
	env -u SHMSTORE_PROOFS PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tests/fuzz/mutant.py build/mutants \
	    > build/mutants.log 2>&1 || { cat build/mutants.log; exit 1; }
	@cat build/mutants.log
	@$(BIN)/python tests/proofs.py add ended 'fuzz: checks of the core removed' \
	    "removed and found=$$(sed -n 's/^mutants: \(.*\) found$$/\1/p' build/mutants.log)"

bench: $(VENV)/stamp-bench
	$(BIN)/python -m bench $(BENCH)

lint: $(VENV)/stamp-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)

format: $(VENV)/stamp-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
