# Shortcuts for everyday commands. Each recipe runs what CI runs, so `just` itself is optional.

set shell := ["bash", "-euo", "pipefail", "-c"]

# List the recipes
default:
    @just --list --unsorted

# Build the binary
[group('develop')]
build *ARGS:
    cargo build --locked -p trunkline {{ ARGS }}

# Run every role in one process, with the sample shop
[group('develop')]
dev *ARGS:
    cargo run --locked -p trunkline -- dev {{ ARGS }}

# Format the code
[group('develop')]
fmt:
    cargo fmt --all

# Run the tests that need nothing installed
[group('test')]
test *ARGS:
    cargo test --locked {{ ARGS }}

# Run everything that CI runs, with real Kafka, PostgreSQL and a schema registry
[group('test')]
test-all *FILTER:
    tests/run {{ FILTER }}

# Start Kafka, PostgreSQL and a schema registry, and leave them running
[group('test')]
up:
    tests/run up

# Stop what `up` started
[group('test')]
down:
    tests/run down

# Run COUNT seeds of both simulations, beginning with seed FROM
[group('test')]
simulate FROM COUNT:
    TRUNKLINE_SIMULATION={{ FROM }},{{ COUNT }} cargo test --release --locked -p trunkline-streams-test --lib -- --nocapture output_under_random_faults
    TRUNKLINE_VIEWS_SIMULATION={{ FROM }},{{ COUNT }} cargo test --release --locked -p trunkline-processors --lib -- --nocapture devices_under_random_faults

# Check that the simulations detect every mutation of the protocols
[group('test')]
mutations *ARGS:
    tests/mutations {{ ARGS }}

# Run a benchmark; without a name, list them
[group('test')]
bench *ARGS:
    cargo build --release --locked -p trunkline
    parts=$(tests/run up); eval "$parts"; cargo run --release --locked -p trunkline-tests --bin bench -- {{ ARGS }}

# Check format, dependencies and clippy
[group('check')]
lint:
    tests/run lint

# Check dependencies; without CHECKS: bans, licenses and sources
[group('check')]
deny *CHECKS:
    tests/run deny {{ CHECKS }}

# Build the API documentation, without warnings, and check the links between documents
[group('check')]
docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps
    cargo test --locked -p trunkline-tidy links

# Build the release archives of this platform under target/dist
[group('release')]
release *TAG:
    .ci/release {{ TAG }}
