# Everything sets itself up; see README.md.

CARGO ?= cargo

.PHONY: demo demo-postgres demo-outbox test test-matrix memory many check fmt clippy deny doc fuzz-check build deb bench bench-queue bench-copy bench-smoke soak nightly nightly-soak nightly-faults nightly-cuts nightly-settings nightly-aarch64 fuzz mutants clean

# A real workload between two real servers, with an outage in the middle. Under a minute once built.
demo:
	@scripts/mongod > /dev/null
	@$(CARGO) build --quiet --profile demo --no-default-features --package outrigger --package outrigger-demo --bins
	@OUTRIGGER_BIN="$(CURDIR)/target/demo/outrigger" target/demo/demo

# The same shop, whose orders somebody asks PostgreSQL for, in SQL. The same program: nothing more is built.
demo-postgres:
	@scripts/mongod > /dev/null
	@scripts/postgres > /dev/null
	@$(CARGO) build --quiet --profile demo --no-default-features --package outrigger --package outrigger-demo --bins
	@OUTRIGGER_BIN="$(CURDIR)/target/demo/outrigger" target/demo/demo postgres

# A shop that keeps its orders in PostgreSQL, and has MongoDB as the copy.
demo-outbox:
	@scripts/mongod > /dev/null
	@scripts/postgres > /dev/null
	@$(CARGO) build --quiet --profile demo --no-default-features --package outrigger --package outrigger-demo --bins
	@OUTRIGGER_BIN="$(CURDIR)/target/demo/outrigger" target/demo/demo outbox

# Everything that CI runs.
test: check
	scripts/mongod > /dev/null
	scripts/postgres > /dev/null
	$(CARGO) build --locked --workspace --lib --bins --tests --examples --all-features
	scripts/test

# Every pair of MongoDB 5.0.4, 6.0.5 and 6.0.27 as local database and as target; about five minutes. Of others with
# MONGODS=/path/to/mongod:/path/to/another (7.0, 8.0, Enterprise, Percona Server: whatever is at hand).
test-matrix:
	$(if $(MONGODS),,for version in 5.0.4 6.0.5 6.0.27; do scripts/mongod $$version > /dev/null || exit 1; done)
	OUTRIGGER_MATRIX=all $(CARGO) test --locked --all-features --test operating version_matrix:: -- --nocapture --test-threads 1

# What an outage leaves of large documents, in as much memory as the unit allows (MemoryMax=1G): 3.5 GB wait, are
# changed, and go, through two kills. Needs root, 20 GB of disk and some minutes.
memory:
	scripts/mongod > /dev/null
	$(CARGO) build --locked --release --bin outrigger
	OUTRIGGER_BIN="$(CURDIR)/target/release/outrigger" OUTRIGGER_MEMORY=2000x1000000,100x15000000 \
	  OUTRIGGER_MEMORY_LIMIT=1073741824 $(CARGO) test --locked --all-features --test faults memory_of_the_unit:: -- --nocapture

# 10,000 collections with three indexes each, and 5 million deletes over a slow line; 10 GB of disk. For the first the servers make
# 100,000 files, which takes most of the time: with TMPDIR=/dev/shm it was eleven minutes.
many:
	scripts/mongod > /dev/null
	$(CARGO) build --locked --release --bin outrigger
	OUTRIGGER_BIN="$(CURDIR)/target/release/outrigger" OUTRIGGER_COLLECTIONS=$(or $(COLLECTIONS),10000) \
	  OUTRIGGER_DELETES=$(or $(DELETES),5000000) $(CARGO) test --locked --all-features --test faults many:: -- --nocapture --test-threads 1

check: fmt clippy deny doc

fmt:
	$(CARGO) fmt --check

clippy:
	$(CARGO) clippy --locked --workspace --all-targets --all-features -- -D warnings

deny:
	scripts/deny

# With the examples, since then it takes what `clippy` has of the dependencies, and does not look at all of them again.
doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --lib --bins --examples --all-features --no-deps --document-private-items

# That the fuzz targets still fit what they fuzz, with the compiler that all else is built with. Nothing is linked, so the
# fuzzer itself need not be built.
fuzz-check:
	@$(CARGO) metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml > /dev/null || { \
	  echo "hint: cp Cargo.lock fuzz/ && $(CARGO) metadata --format-version 1 --manifest-path fuzz/Cargo.toml > /dev/null"; exit 1; }
	CUSTOM_LIBFUZZER_PATH=/nowhere/libfuzzer.a $(CARGO) check --locked --manifest-path fuzz/Cargo.toml --target-dir target

# The Debian package, into target/debian/.
deb:
	scripts/deb

build:
	$(CARGO) build --locked --release

# Everything that is measured: the queue by itself, then Outrigger between two real servers beside their own limits.
# Results in target/bench/. Some hours; OUTRIGGER_BENCH_ONLY chooses (see benches/end_to_end/main.rs).
bench: $(if $(OUTRIGGER_BENCH_ONLY),,bench-queue)
	scripts/mongod > /dev/null
	$(CARGO) bench --locked --bench end_to_end

# The queue, with criterion.
bench-queue:
	$(CARGO) bench --locked --bench queue

# The first copy and the verification between two real servers, beside a raw pipe. About ten minutes.
bench-copy:
	scripts/mongod > /dev/null
	OUTRIGGER_BENCH_ONLY=first-copy $(CARGO) bench --locked --bench end_to_end

# Whether every scenario runs: a hundredth of the data, once. Its figures mean nothing.
bench-smoke:
	scripts/mongod > /dev/null
	OUTRIGGER_BENCH_SCALE=0.01 OUTRIGGER_BENCH_RUNS=1 OUTRIGGER_BENCH_SECONDS=3 $(CARGO) bench --locked --bench end_to_end

# Random work under random faults for ten minutes; SOAK_SECONDS for longer.
soak:
	scripts/mongod > /dev/null
	OUTRIGGER_SOAK_SECONDS=$(or $(SOAK_SECONDS),600) $(CARGO) test --locked --test faults soak:: -- --nocapture

# What takes too long for every change: the program as it is shipped, with its allocator and at its own timeouts and waits
# (tests have them shortened), under random faults and under every row of the fault matrix; what a kill or a power cut leaves of
# the queue behind any call; each setting's own test against a program that ignores the setting; whether it compiles for 64-bit
# ARM; the memory; every pair of servers. Some hours; NIGHTLY="soak" for a part. What fails keeps none of the others from its
# turn.
nightly:
	@$(MAKE) --no-print-directory --keep-going $(addprefix nightly-,$(or $(NIGHTLY),soak faults cuts settings aarch64)) \
	  $(if $(NIGHTLY),,memory many test-matrix)

nightly-soak nightly-faults: export OUTRIGGER_BIN := $(CURDIR)/target/release/outrigger
nightly-soak nightly-faults: export OUTRIGGER_TEST_UNSCALED := yes
nightly-soak: build
	scripts/mongod > /dev/null
	OUTRIGGER_SOAK_SECONDS=$(or $(SOAK_SECONDS),600) $(CARGO) test --locked --all-features --test faults soak:: -- --nocapture

nightly-faults: build
	scripts/mongod > /dev/null
	$(CARGO) test --locked --all-features --test faults fault_matrix:: -- --nocapture --test-threads 2

# A kill and two power cuts behind each call that changes a file of the queue, and not only behind some.
nightly-cuts:
	OUTRIGGER_TEST_EVERY_CALL=yes $(CARGO) test --locked --all-features --test faults power_cut:: -- --test-threads 2

nightly-settings:
	scripts/mongod > /dev/null
	scripts/postgres > /dev/null
	scripts/settings

nightly-aarch64:
	scripts/aarch64

# Needs `cargo install cargo-fuzz` and a nightly compiler; FUZZ_SECONDS for each target.
fuzz:
	cd fuzz && for target in codec event delta configuration admin_request; do \
	  $(CARGO) +nightly fuzz run $$target -- -max_total_time=$(or $(FUZZ_SECONDS),300) || exit 1; done

# Whether the library's own tests notice a fault: cargo-mutants plants one after another in what was changed since main.
# MUTANTS="--file src/policy/in_doubt.rs" for a file, MUTANTS="--shard 0/8" for an eighth of everything; never in CI.
mutants:
	scripts/mutants $(MUTANTS)

clean:
	$(CARGO) clean
	rm -rf .tools
