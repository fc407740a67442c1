# Thin on purpose: every target calls cargo, xtask or one script.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help deps programs lint licences bundle test test-crash test-visitor end2end screenshots demo demo-cli bench dist

# Tests, demo and benchmarks start servers and restore files with their owners: that takes root. Whoever is not
# root builds as himself, and cargo runs what it built through sudo.
host := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
ifneq ($(shell id -u),0)
as_root := sudo --preserve-env env PATH=$(PATH)
export CARGO_TARGET_$(host)_RUNNER := $(as_root)
endif

# A test mostly waits for servers that it has started: two at a time for each core.
export RUST_TEST_THREADS ?= $(shell expr 2 \* $$(nproc))

# All of the workspace at once: one package alone would be built with other features of its dependencies, and they anew.
programs := $(or $(CARGO_TARGET_DIR),target)/debug

help: ## Show the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

deps: ## Install what building and testing need and this machine lacks (Debian, Ubuntu)
	@xtask/install-deps

programs: deps
	cargo build --workspace --locked

lint: ## Formatting, clippy and documentation, warnings are errors; that the library can be packed
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy --package backup-app --lib --features hydrate --target wasm32-unknown-unknown --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
	cargo package --package backup-core --no-verify --allow-dirty --locked

licences: ## Licences, advisories and sources of all dependencies
	@if cargo deny --version >/dev/null 2>&1; then \
		cargo deny --locked check; \
	else \
		echo "SKIPPED: licences and advisories were not checked (cargo install cargo-deny)" >&2; \
	fi

# As oneself, not through sudo: it runs cargo and writes below target.
bundle: programs ## The browser's part of the dashboard: script, WebAssembly, style; in target/site
	$(programs)/xtask-bundle

test: deps lint licences ## Everything that has to pass before a change goes in
	@xtask/cargo-test --workspace --locked --no-fail-fast
	@$(MAKE) --no-print-directory end2end

test-crash: deps ## Kill restores at 200 random moments; each has to leave the site wholly old or wholly new
	SHOPHOSTING_BACKUP_CRASHES=200 cargo test --workspace --locked --test restore -- --nocapture killed_at_a_random_moment

test-visitor: deps ## Restore a shop of 1 GB among its visitors: how long it is closed, and that nobody sees anything else
	SHOPHOSTING_BACKUP_VISIT_MB=1024 cargo test --workspace --locked --test restore -- --nocapture visitors_see

end2end: bundle ## Drive a real browser against server, worker, shops and backup server
	$(as_root) $(programs)/xtask end2end

screenshots: bundle ## Pictures of every page and state, in target/screenshots
	$(as_root) $(programs)/xtask screenshots

demo: bundle ## The dashboard with two real shops, at http://127.0.0.1:3000; Ctrl-C stops it
	$(as_root) $(programs)/xtask demo

demo-cli: programs ## Back up a real shop, wreck it, restore it, prove that it is the same; undo that; kill a restore and recover it
	$(as_root) $(programs)/xtask demo-cli

# As oneself. Without the workspace's other programs: optimized, they would take longer than the product.
dist: bundle ## One archive with everything that a hosting server needs, in target/dist
	cargo build --package backup-web --locked --release
	$(programs)/xtask dist

bench: bundle ## Time and memory beside the stock restic, speed of jobs; writes docs/benchmarks*.md
	cargo build --workspace --locked --release
	$(as_root) $(programs)/xtask bench
	cargo bench --workspace --locked --bench jobs
	cargo bench --workspace --locked --bench restore
	$(as_root) $(programs)/xtask bench-web
