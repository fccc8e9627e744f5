# The recipes that operators expect; the work is in xtask.

default:
    @just --list

# Build a workspace with Bazel through a fresh server, clean, and build again from its cache.
demo *ARGUMENTS:
    cargo xtask demo {{ARGUMENTS}}

# Everything that CI runs, or the tests whose names contain a filter.
test *FILTER:
    cargo xtask test {{FILTER}}

# Measure.
bench *ARGUMENTS:
    cargo xtask bench {{ARGUMENTS}}

# Ask a server the conformance suite: just conformance --endpoint grpc://HOST:PORT
conformance *ARGUMENTS:
    cargo xtask conformance {{ARGUMENTS}}

# Format, lint, and check the tree's own rules.
tidy:
    cargo xtask tidy

# Run the server.
serve *ARGUMENTS:
    cargo run --release --package gf-cli -- serve {{ARGUMENTS}}
