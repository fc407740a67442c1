# Thin on purpose: every target calls cargo, xtask or one script.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help deps lint licences bundle test end2end screenshots demo demo-cli bench

# Tests, demo and benchmarks start servers and restore files with their owners: that takes root. Whoever is not
# root builds as himself, and cargo runs what it built through sudo.
host := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
ifneq ($(shell id -u),0)
export CARGO_TARGET_$(host)_RUNNER := sudo --preserve-env env PATH=$(PATH)
endif

help: ## Show the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

deps: ## Install what building and testing need and this machine lacks (Debian, Ubuntu)
	@xtask/install-deps

lint: ## Formatting and clippy, warnings are errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

licences: ## Licences, advisories and sources of all dependencies
	@if cargo deny --version >/dev/null 2>&1; then \
		cargo deny --locked check; \
	else \
		echo "SKIPPED: licences and advisories were not checked (cargo install cargo-deny)" >&2; \
	fi

# As oneself, not through sudo: it runs cargo and writes below target.
bundle: deps ## The browser's part of the dashboard: script, WebAssembly, style; in target/site
	env -u CARGO_TARGET_$(host)_RUNNER cargo run --locked --quiet -p xtask-bundle

test: deps lint licences ## Everything that has to pass before a change goes in
	cargo test --workspace --locked --no-fail-fast
	@$(MAKE) --no-print-directory end2end

end2end: bundle ## Drive a real browser against server, worker, shops and backup server
	cargo build --locked -p backup-web
	cargo run --locked --quiet -p xtask -- end2end

screenshots: bundle ## Pictures of every page and state, in target/screenshots
	cargo build --locked -p backup-web
	cargo run --locked --quiet -p xtask -- screenshots

demo: bundle ## The dashboard with two real shops, at http://127.0.0.1:3000; Ctrl-C stops it
	cargo build --locked -p backup-web
	cargo run --locked --quiet -p xtask -- demo

demo-cli: deps ## Back up a real shop, wreck it, restore it, prove that it is the same
	cargo build --locked -p backup-web
	cargo run --locked --quiet -p xtask -- demo-cli

bench: deps ## Time and memory beside the stock restic, speed of jobs; writes docs/benchmarks*.md
	cargo build --locked --release -p backup-web
	cargo run --locked --quiet -p xtask -- bench
	cargo bench --locked -p backup-core --bench jobs
	cargo run --locked --quiet -p xtask -- bench-web
