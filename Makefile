# Thin: it calls cargo and install/. Build artefacts stay outside the checkout.
CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/insula/target
export CARGO_TARGET_DIR
# `dist` takes longer to build and is faster; most so by the counts of what runs how often.
PROFILE ?= release
COUNTS := $(CARGO_TARGET_DIR)/counts.profdata
ifeq ($(PROFILE),dist)
ifneq ($(wildcard $(COUNTS)),)
export RUSTFLAGS += -Cprofile-use=$(COUNTS)
endif
endif
INSULA := $(CARGO_TARGET_DIR)/$(PROFILE)/insula
DATA_DIR ?= run

.PHONY: help deps build counts install run test lint docs bench growth soak fuzz

help:
	@echo "make run    install what is needed, build, and run a cloud in ./$(DATA_DIR)"
	@echo "make test   everything that is tested"
	@echo "make deps   system packages, containerd and the test images (root; safe to repeat)"
	@echo "make install  put the insula command into /usr/local/bin (PROFILE=dist: the faster one)"
	@echo "make counts   count what runs how often, in an hour; PROFILE=dist is built by that from then on"
	@echo "make soak   thousands of random runs under faults: SEEDS=5000 RUNS=1000 SEED=1"
	@echo "make fuzz   random input for what faces the network: SECONDS_EACH=60 NAMES=\"cel json\""
	@echo "make bench  side by side with the peers on this machine, reports in bench/: FULL=1 INSULA_PEERS=DIR"
	@echo "make growth what more nodes, pods, tenants, watches and partitions cost: FULL=1 SWEEPS=nodes"
	@echo "make lint | docs"

deps:
	@install/deps.sh

# What the program says of itself: that of the last commit.
SAID = INSULA_COMMIT=$$(git rev-parse HEAD 2>/dev/null || echo unknown) \
	INSULA_BUILT=$$(TZ=UTC git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null || date -u +%Y-%m-%dT%H:%M:%SZ)

build:
	$(SAID) cargo build --profile $(PROFILE) --locked -p insula

# Not by older counts.
counts: deps
	env -u RUSTFLAGS install/counts.sh $(COUNTS)

install: build
	install -m 755 $(INSULA) /usr/local/bin/insula

run: deps install
	exec $(INSULA) up --data-dir $(DATA_DIR)

test: deps
	cargo test --workspace --locked --no-fail-fast

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

docs:
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# Small, in minutes; FULL=1 for all of it, PROFILE=dist as it is handed out. Peers are looked for in
# INSULA_PEERS, then in PATH.
bench: deps build
	$(SAID) PROFILE=$(PROFILE) FULL=$(FULL) install/bench.sh

# Tables of how figures grow, in bench/growth/.
growth: build
	PROFILE=$(PROFILE) FULL=$(FULL) install/growth.sh

# Each failure prints the seed that repeats it.
SEEDS ?= 5000
RUNS ?= 1000
SEED ?= $(shell date +%s)
soak: deps
	INSULA_SEED=$(SEED) INSULA_SEEDS=$(SEEDS) cargo test --release --locked -p insula-partition --lib sim::
	INSULA_SEED=$(SEED) INSULA_RUNS=$(RUNS) cargo test --release --locked -p insula --test faults -- --test-threads=1

# All of fuzz/, or NAMES of it. What it learns and finds is kept in the cache, beside the builds.
SECONDS_EACH ?= 60
fuzz: deps
	SECONDS_EACH=$(SECONDS_EACH) NAMES="$(NAMES)" fuzz/run.sh
