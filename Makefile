# Everything a developer does, and what CI runs. `make` lists it.
#
# Rust and make are all that has to be there: on Debian as root the rest is installed (deploy/local/build-deps), and the
# servers that tests and the demo run are fetched into a private folder (deploy/local/parts). Elsewhere these say what
# is missing.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help

CARGO ?= cargo
CARGO_DENY_VERSION := 0.20.2
CARGO_FUZZ_VERSION := 0.13.1
PARTS := $(shell deploy/local/parts --dir)
# One on PATH will do; else it is built once into the folder of the parts.
CARGO_DENY := $(or $(shell command -v cargo-deny),$(PARTS)/cargo-deny-$(CARGO_DENY_VERSION)/bin/cargo-deny)

.PHONY: help
help: ## Show this list
	@awk 'BEGIN { FS = ":.*## " } /^##@/ { print "\n" substr($$0, 5) ":" } /^[a-z0-9-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' Makefile

##@ Try it

.PHONY: demo up down
demo: build-deps ## See it work: real servers, two nodes, a job from start to end (root; minutes the first time, seconds later)
	@deploy/local/demo
up: build-deps ## Start the same and leave it running to play with (root)
	@deploy/local/up
down: ## End what `make up` started
	@deploy/local/down

# What the program may have, in bytes: it is on every node, and comes there before anything is warm.
SIZE_LIMIT := 25000000

.PHONY: build image build-deps parts python-env
build: build-deps ## Build the program for use, and hold it to its size: target/release/prewarm
	$(CARGO) build --release --locked --bin prewarm
	@size=$$(stat --format=%s target/release/prewarm); echo "target/release/prewarm: $$size bytes, of at most $(SIZE_LIMIT)"; \
	  [ "$$size" -le $(SIZE_LIMIT) ] || { echo "it is too large: look what came in with 'cargo bloat --release --crates'" >&2; exit 1; }
image: build ## Pack it into a container image, without a network: target/prewarm-image.tar (root)
	@deploy/local/build-deps image
	@deploy/local/parts buildah
	deploy/image/build target/release/prewarm target/prewarm-image.tar
	@echo "target/prewarm-image.tar is an OCI archive: 'podman load --input' it, or 'skopeo copy oci-archive:…' it to a registry"
build-deps:
	@deploy/local/build-deps
parts: ## Fetch the servers that tests and the demo run (about 130 MB, once)
	@deploy/local/parts
python-env: ## Make the Python environment for the tests that speak to prewarm from Python
	@deploy/local/python-env

# Tests of real servers need these; unit tests do not.
.PHONY: test-parts test-deps
test-deps: build-deps parts python-env

##@ Test

# A test binary tests/NAME/main.rs or tests/NAME.rs, with its arguments in ARGS: make test-e2e ARGS=some_test
cargo_test = $(CARGO) test --locked $(1) -- $(ARGS)

.PHONY: test unit test-webhook test-nats test-broker test-containerd test-cli test-e2e test-cluster rolling chaos sim conformance
test: test-deps ## Run every test (root, for containerd)
	$(CARGO) test --locked
unit: build-deps ## Run the tests that need no server
	$(call cargo_test,--lib --bins)
sim: build-deps ## Run the simulations: the whole system in one thread, with faults, on many seeds
	$(call cargo_test,--test simulation)
conformance: test-deps ## Hold the simulations' model of JetStream against real nats-servers
	$(call cargo_test,--test conformance)
test-parts: test-deps ## Test the servers and images that the other tests stand on
	$(call cargo_test,--test parts)
test-nats: test-deps ## Test against real nats-servers, the oldest and the newest supported
	$(call cargo_test,--test nats)
test-broker: test-deps ## Test the broker that is shipped: its configuration, how it starts and goes, its probes
	$(call cargo_test,--test broker)
test-containerd: test-deps ## Test against real containerds, every supported generation (root)
	$(call cargo_test,--test containerd)
test-webhook: test-deps ## Test the receiver of webhooks against a real broker and a real registry
	$(call cargo_test,--test webhook)
test-cli: test-deps ## Test the command line as a user meets it
	$(call cargo_test,--test cli)
test-e2e: test-deps ## Test everything together, with crashes (root)
	$(call cargo_test,--test e2e)
test-cluster: test-deps ## Test three brokers and several dispatchers of which some end
	$(call cargo_test,--test cluster)
rolling: test-deps ## Restart everything within a job, three shipped brokers among it: NODES=1000
	NODES=$(or $(NODES),1000) SHIPPED_TIMES=1 $(CARGO) test --locked --test cluster -- --nocapture \
	  a_rolling_restart_of_everything_loses_nothing
chaos: test-deps ## Break everything at once on real servers: SEED=7 MINUTES=60 (root, iproute2)
	SEED=$(or $(SEED),1) MINUTES=$(or $(MINUTES),10) $(CARGO) test --locked --test chaos

# One target of fuzz/targets for so many seconds: make fuzz TARGET=untar SECONDS=600. Needs rustup's nightly.
SECONDS ?= 120
found = target/fuzz/$(TARGET)
cargo_fuzz = $(PARTS)/cargo-fuzz-$(CARGO_FUZZ_VERSION)/bin/cargo-fuzz
run_fuzz = TARGET=$(TARGET) $(cargo_fuzz) run --fuzz-dir fuzz prewarm
.PHONY: fuzz fuzz-keep fuzz-target test-fuzz
fuzz-target:
	@[ -n "$(TARGET)" ] && [ -d "fuzz/corpus/$(TARGET)" ] || { echo "TARGET says what to fuzz, one of:" $$(ls fuzz/corpus) >&2; exit 2; }
test-fuzz: build-deps ## Run the fuzz targets on what was found and on a few mutations of it
	$(call cargo_test,--test fuzz)
fuzz: fuzz-target build-deps $(cargo_fuzz) ## Look for inputs that break TARGET, for SECONDS; what is new goes to target/fuzz
	@mkdir -p $(found)
	RUSTUP_TOOLCHAIN=nightly $(run_fuzz) $(found) fuzz/corpus/$(TARGET) -- \
	  -max_total_time=$(SECONDS) -max_len=65536 -timeout=10 -rss_limit_mb=2048
fuzz-keep: fuzz-target build-deps $(cargo_fuzz) ## Keep what was found for TARGET and reaches something new
	RUSTUP_TOOLCHAIN=nightly $(run_fuzz) fuzz/corpus/$(TARGET) $(found) -- -merge=1 -max_len=4096
$(PARTS)/cargo-fuzz-$(CARGO_FUZZ_VERSION)/bin/cargo-fuzz:
	CARGO_TARGET_DIR=$(PARTS)/cargo-fuzz-build $(CARGO) install --locked cargo-fuzz \
	  --version $(CARGO_FUZZ_VERSION) --root $(PARTS)/cargo-fuzz-$(CARGO_FUZZ_VERSION)
	rm -rf $(PARTS)/cargo-fuzz-build

.PHONY: bench
bench: test-deps ## Measure what is promised: latency, memory, pull time (root)
	@deploy/local/parts unpigz igzip
	$(CARGO) bench --locked

##@ Check

.PHONY: lint fmt deny schemas verify-schemas ci
lint: build-deps ## Check format, lints and documentation
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps --document-private-items --quiet
fmt: ## Format the code
	$(CARGO) fmt
deny: build-deps $(CARGO_DENY) ## Check the licences and sources of all dependencies
	$(CARGO_DENY) --locked --log-level error check --hide-inclusion-graph licenses bans sources
$(PARTS)/cargo-deny-$(CARGO_DENY_VERSION)/bin/cargo-deny:
	CARGO_TARGET_DIR=$(PARTS)/cargo-deny-build $(CARGO) install --locked cargo-deny \
	  --version $(CARGO_DENY_VERSION) --root $(PARTS)/cargo-deny-$(CARGO_DENY_VERSION)
	rm -rf $(PARTS)/cargo-deny-build
schemas: build-deps ## Write schemas/ from the types
	UPDATE_SCHEMAS=1 $(call cargo_test,--test schemas)
verify-schemas: build-deps ## Check that schemas/ is what the types say
	$(call cargo_test,--test schemas)
ci: lint deny build test ## Everything that has to pass before a change lands, the size of the program included
