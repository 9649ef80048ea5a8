# Every target is thin: the work is in the programs and scripts it calls. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := stairlib controlplane vmmd downstaird scripts bench tests
TEST_FLAGS ?=
# The tests that need nothing but Python. Two at once leave a quarter of two processors unused.
PYTEST_OF_PYTHON = $(BIN)/python -m pytest --numprocesses 3 --dist loadscope --no-loadscope-reorder \
  --ignore tests/compose --ignore tests/documents --ignore tests/guest --ignore tests/sim \
  --ignore tests/torture_storage --ignore tests/bench --ignore tests/console
# A third of a guest's tests is waiting for time that passes: two files are run at once.
TWO_GUESTS = tests/guest --numprocesses 2 --dist loadfile
# Of `make bench`: --quick, --only TEXT, --rounds N, --stack NAME.
BENCH_FLAGS ?=
FUZZ_SECONDS ?= 60
# The seeds of `make sim`; without SEEDS the program's fixed ones, of which it also wants that all is reached.
FIRST ?= 0
SEEDS ?=
# Of `make torture`.
SECONDS ?= 600
SCENARIO ?= all
SEED ?= 1
# Seconds of each of the two halves of `make torture-storage`.
DURATION ?= 40

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

.PHONY: setup
setup: $(STAMP) ## Make .venv and install everything the programs and tests need

$(STAMP): pyproject.toml scripts/check_python.py $(wildcard stairlib/native/*.pyx stairlib/native/*.pxd)
	@$(PYTHON) scripts/check_python.py
	@echo "== making $(VENV) and installing; the first time takes a minute"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --editable . --group dev
	@touch $(STAMP)

.PHONY: demo
demo: setup ## Replace a replica under a verified load, on real processes, and prove the result
	@$(BIN)/stairwell demo

.PHONY: test
test: setup ## Run the tests that need only Python
	@$(PYTEST_OF_PYTHON) -m 'not postgres and not long and not prometheus' $(TEST_FLAGS)

.PHONY: test-long
test-long: setup ## Run what `make test` leaves out because it takes long: more kills, more seeds, whole scenarios (Python only)
	@$(PYTEST_OF_PYTHON) -m 'long and not postgres and not prometheus' $(TEST_FLAGS)

.PHONY: test-postgres
test-postgres: setup ## Run the store's tests on a PostgreSQL of their own, and kill control planes that share it (skipped where it is not installed)
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadscope -m postgres -ra \
	  tests/unit/controlplane tests/contract tests/integration $(TEST_FLAGS)

.PHONY: test-prometheus
test-prometheus: setup ## Have a real Prometheus read a cluster with the rules and the dashboard of deploy/ (skipped where it is not installed)
	@$(BIN)/python -m pytest -m prometheus -ra tests/integration $(TEST_FLAGS)

.PHONY: sim
sim: setup ## Run the simulator's seeds on all processors (SEEDS=100000 for a soak, FIRST=n to begin elsewhere)
	@$(BIN)/python -m tests.sim --first $(FIRST) $(if $(SEEDS),--seeds $(SEEDS))

.PHONY: test-python-form
test-python-form: setup ## Run the frame loop's tests with its Python form, which serves where no C compiler was
	@STAIRWELL_NATIVE=0 $(BIN)/python -m tests.sim --first 5000 --seeds 100
	@STAIRWELL_NATIVE=0 $(PYTEST_OF_PYTHON) -m 'not postgres and not long and not prometheus' \
	  tests/unit/stairlib/wire tests/unit/downstaird tests/unit/vmmd/upstairs tests/unit/vmmd/block \
	  tests/contract/downstairs/test_downstairs_data.py tests/property/test_frame.py \
	  tests/property/test_nbd_protocol.py tests/property/test_region_model.py \
	  tests/property/test_upstairs_runs.py $(TEST_FLAGS)

.PHONY: test-sim
test-sim: setup ## Have the simulator find the bugs planted in tests/sim/mutants
	@$(BIN)/python -m pytest --numprocesses 2 tests/sim $(TEST_FLAGS)

.PHONY: torture
torture: setup ## Kill, freeze and replace daemons under verified loads (SECONDS=600 SCENARIO=all SEED=1)
	@$(BIN)/python -m tests.torture --seconds $(SECONDS) --scenario $(SCENARIO) --seed $(SEED)

.PHONY: torture-storage
torture-storage: setup ## Cut the power under regions; kill, cut off and fill them on real file systems (DURATION=seconds SEED=1; root, for the mounts)
	@$(BIN)/python -m tests.crashes --seconds $(DURATION) --seed $(SEED)
	@STAIRWELL_TORTURE_SECONDS=$(DURATION) STAIRWELL_TORTURE_SEED=$(SEED) $(BIN)/python -m pytest tests/torture_storage -ra $(TEST_FLAGS)

.PHONY: test-guest
test-guest: setup ## Boot a real Linux on replicated disks (needs qemu-system-x86 and apt; says so where they are absent)
	@$(BIN)/python -m pytest $(TWO_GUESTS) -ra -m 'not long' $(TEST_FLAGS)

.PHONY: test-guest-all
test-guest-all: setup ## Those, and what they show on every other transport as well (twenty minutes)
	@$(BIN)/python -m pytest $(TWO_GUESTS) -ra $(TEST_FLAGS)

.PHONY: guest-qemu
guest-qemu: setup ## Unpack a QEMU that speaks vfio-user beside the system's, as `make test-guest` does (a minute, 430 MB, no root)
	@$(BIN)/python -m tests.guest.newer_qemu

.PHONY: test-compose
test-compose: setup ## Run the walk-through and the faults on docker compose (needs docker; says so where it is absent)
	@$(BIN)/python -m pytest tests/compose -ra $(TEST_FLAGS)

BROWSER_STAMP := $(VENV)/.browser-installed

$(BROWSER_STAMP): $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group browser
	@touch $(BROWSER_STAMP)

.PHONY: test-console
test-console: $(BROWSER_STAMP) ## Use the web console in a real browser (needs Debian's chromium; says so where it is absent)
	@$(BIN)/python -m pytest tests/console -ra $(TEST_FLAGS)

.PHONY: grpcurl
grpcurl: .grpcurl/grpcurl ## Build grpcurl into .grpcurl, from the Go module proxy (needs Go)

.grpcurl/grpcurl:
	@command -v go >/dev/null || { echo "grpcurl is built with Go: install it, or grpcurl itself" >&2; exit 1; }
	GOBIN=$(CURDIR)/.grpcurl go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3

.PHONY: test-docs
test-docs: setup ## Run the commands of docs/tutorial.md, docs/operations.md and docs/grpcurl.md and compare what they print (these need qemu-io, nothing, `make grpcurl`)
	@$(BIN)/python -m pytest --numprocesses 2 tests/documents -ra $(TEST_FLAGS)

.PHONY: record-docs
record-docs: setup ## Write down anew what those commands print where it is no longer shown rightly
	@$(BIN)/python -m tests.documents.record

.PHONY: bench
bench: setup ## Compare with QEMU's quorum mirror, same fio, same machine, in ratios (about 8 minutes; needs qemu-utils and fio)
	@$(BIN)/python -m bench.mirror $(BENCH_FLAGS)

.PHONY: test-bench
test-bench: setup ## Run the comparison in its smallest form, and the tests of what it prints (skipped where fio or qemu-nbd is absent)
	@$(BIN)/python -m pytest tests/bench -ra $(TEST_FLAGS)

.PHONY: bench-region
bench-region: setup ## Measure a region: opening, memory, flushes, sequential I/O and repair, beside plain files (minutes)
	@$(BIN)/python bench/region.py

.PHONY: fuzz
fuzz: setup ## Feed the judge of construction requests, the NVMe controller and virtqueues whatever atheris thinks of (FUZZ_SECONDS=60 each)
	@$(BIN)/python tests/fuzz/fuzz_construction.py --seconds $(FUZZ_SECONDS)
	@$(BIN)/python tests/fuzz/fuzz_nvme.py --seconds $(FUZZ_SECONDS)
	@$(BIN)/python tests/fuzz/fuzz_virtio.py --seconds $(FUZZ_SECONDS)

.PHONY: bench-growth
bench-growth: setup ## What a request costs on 1 to 100 GiB; activation and memory by extents and by machines (5 minutes; needs fio)
	@$(BIN)/python -m bench.growth

.PHONY: bench-replacements
bench-replacements: setup ## Many replacements in one control plane: time of an answer, lost transitions, memory, idle watchers
	@$(BIN)/python -m bench.replacements

.PHONY: bench-repair
bench-repair: setup ## What a guest feels of a repair: latency before, during and after it, with limits off, fixed and adaptive
	@$(BIN)/python bench/repair_latency.py

.PHONY: bench-guest
bench-guest: setup ## What a guest gets of a disk, 4 KiB at random: vhost-user-blk and vfio-user beside QEMU's own virtio-blk and NVMe on qemu-nbd (4 minutes)
	@$(BIN)/python bench/guest.py

.PHONY: bench-gateway
bench-gateway: setup ## What NBD from another host (TLS, by the daemon) costs beside the disk's own socket, and what control calls wait meanwhile (2 minutes; needs nbdcopy)
	@$(BIN)/python bench/gateway.py

.PHONY: check
check: setup ## Format, lint, types, stubs current, layering
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/mypy
	@$(BIN)/python scripts/gen_protos.py --check
	@$(BIN)/python scripts/draw_states.py --check
	@$(BIN)/python scripts/man_pages.py --check
	@$(BIN)/python -m pytest --quiet tests/tidy

.PHONY: fmt
fmt: setup ## Format and fix what can be fixed
	@$(BIN)/ruff format $(SOURCES)
	@$(BIN)/ruff check --fix $(SOURCES)

.PHONY: protos
protos: setup ## Regenerate the stubs beside the .proto files
	@$(BIN)/python scripts/gen_protos.py

.PHONY: man
man: setup ## Write the man pages and the shell completion anew, from the programs
	@$(BIN)/python scripts/man_pages.py

DOCS_STAMP := $(VENV)/.docs-installed

$(DOCS_STAMP): $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group docs
	@touch $(DOCS_STAMP)

.PHONY: docs
docs: $(DOCS_STAMP) ## Build the documentation's site in build/site, references made from the programs and protos; links are checked
	@$(BIN)/python scripts/build_docs.py

.PHONY: clean
clean: ## Remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
