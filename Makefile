# What there is to do here. `make run` and `make test` need nothing but a Debian-like machine with a Rust toolchain.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# A recipe is one script, not one shell a line.
.ONESHELL:
export TIMEFORMAT = --- took %0R s

# Outside the checkout, so that fresh clones find the compiled dependencies again.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/verus-target

VERUS := $(CARGO_TARGET_DIR)/debug/verus
DATA_DIR ?= ./verus-data
LISTEN ?= 127.0.0.1:5432
HTTP ?= 127.0.0.1:8080
# Passed to `verus demo` and `verus bench`.
ARGS ?=

.PHONY: help deps build run demo bench test format lint release

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

# The C++ of RocksDB needs a compiler, its bindings need libclang. Only what is missing is installed.
deps: ## install what the build needs and is missing (Debian and its like)
	@missing=()
	command -v c++ >/dev/null || missing+=(g++)
	command -v cc >/dev/null || missing+=(gcc libc6-dev)
	compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null || compgen -G '/usr/lib/*/libclang*.so*' >/dev/null || [ -n "$${LIBCLANG_PATH:-}" ] || missing+=(libclang-dev)
	if [ $${#missing[@]} -gt 0 ]; then
		command -v apt-get >/dev/null || { echo "install these first: $${missing[*]}" >&2; exit 1; }
		echo "installing: $${missing[*]}"
		sudo=(); [ "$$(id -u)" -eq 0 ] || sudo=(sudo)
		"$${sudo[@]}" apt-get update -qq
		DEBIAN_FRONTEND=noninteractive "$${sudo[@]}" apt-get install -y -qq --no-install-recommends "$${missing[@]}"
	fi
	command -v cargo >/dev/null || { echo "a Rust toolchain is needed: https://rustup.rs" >&2; exit 1; }
	for component in rustfmt clippy; do
		cargo "$${component/rustfmt/fmt}" --version >/dev/null 2>&1 || rustup component add "$$component"
	done

build: deps ## compile (the first time takes about half an hour on two cores)
	@cargo build

export LISTEN

run: build ## start the server on ./verus-data with the commerce schema
	@echo
	echo "Starting Verus on $(LISTEN), data in $(DATA_DIR). Connect from another terminal:"
	echo
	echo "    psql -h $${LISTEN%:*} -p $${LISTEN##*:} -U verus verus"
	echo
	exec "$(VERUS)" serve --data-dir "$(DATA_DIR)" --listen "$(LISTEN)" --http "$(HTTP)"

demo: build ## start a server with live shop traffic, and queries to try
	@exec "$(VERUS)" demo $(ARGS)

bench: release ## measure a release build: ingestion, queries, freshness (ARGS="ingest --views 5")
	@"$(CARGO_TARGET_DIR)/release/verus" bench $(if $(ARGS),$(ARGS),all)

test: deps format lint ## everything that has to be green: format, clippy, unit and integration tests
	@time cargo test

format: ## check the format
	@cargo fmt --all --check

lint: ## clippy with warnings denied
	@time cargo clippy --all-targets -- -D warnings

release: deps ## compile for production
	@cargo build --release
