# Sluicegate. `make help` lists what there is.

CARGO   ?= cargo
PYTHON  ?= python3
# Arguments for `sluicegate serve`: make run ARGS="--listen 127.0.0.1:9000"
ARGS    ?=

# Official builds of ONNX Runtime send usage data unless told not to; the program says so itself, tools may not.
export ORT_DISABLE_TELEMETRY := 1

.PHONY: help run build pgo test clients lint bench onnxruntime

help: ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: build ## build, then serve models/ on 127.0.0.1:8080
	@exec target/release/sluicegate serve $(ARGS)

build: onnxruntime ## build the release binary and get ONNX Runtime
	@$(CARGO) build --release --locked

pgo: onnxruntime ## a faster release binary, target/pgo/sluicegate, by a profile of itself (needs llvm-profdata; half an hour)
	@$(PYTHON) benches/pgo.py

onnxruntime: ## get the pinned ONNX Runtime library into target/onnxruntime
	@$(PYTHON) .ci/onnxruntime.py target/onnxruntime

lint: ## format check and clippy, warnings denied
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

test: onnxruntime lint ## format check, clippy, all tests, the clients of others, documentation build
	$(CARGO) test --locked
	$(CARGO) test --locked --release --manifest-path tests/loom/Cargo.toml --target-dir target/loom
	@$(PYTHON) tests/clients/run.py
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items

clients: onnxruntime ## ask a server with the clients of others: Triton's, KServe's, gRPC's, pages'
	@$(CARGO) build --locked
	@$(PYTHON) tests/clients/run.py

bench: build ## Criterion benches, then end to end against the reference server (needs wrk)
	$(CARGO) bench --locked
	$(PYTHON) benches/end_to_end.py
