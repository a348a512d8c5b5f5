# Everything sets itself up; see README.md.

CARGO ?= cargo

.PHONY: demo test check fmt clippy deny doc build bench clean

# A real workload between two real servers, with an outage in the middle. Under a minute once built.
demo:
	@scripts/mongod > /dev/null
	@$(CARGO) build --quiet --release --bin outrigger --example demo
	@OUTRIGGER_BIN="$(CURDIR)/target/release/outrigger" target/release/examples/demo

# Everything that CI runs.
test: check
	scripts/mongod > /dev/null
	$(CARGO) build --locked --all-targets
	scripts/test

check: fmt clippy deny doc

fmt:
	$(CARGO) fmt --check

clippy:
	$(CARGO) clippy --locked --all-targets -- -D warnings

deny:
	scripts/deny

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items

build:
	$(CARGO) build --locked --release

bench:
	$(CARGO) bench --locked --bench queue

clean:
	$(CARGO) clean
	rm -rf .tools
