#!/usr/bin/env bash
# Runs every test there is: `tests/all.sh`. Uses what is on the PATH, installs the rest where it is root, and fails loudly
# where it can't. Needs Rust and Python 3 (for the oracle of
# `rehearse`).
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }
skip() { printf '\n!! SKIPPED: %s\n' "$*" >&2; skipped+=("$*"); }
skipped=()

# need COMMAND DEBIAN-PACKAGE...
need() {
    local command=$1
    shift
    command -v "$command" >/dev/null 2>&1 && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        step "installing $*"
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null
    fi
    command -v "$command" >/dev/null 2>&1 || {
        echo "'$command' is missing. As root: apt-get install -y $*" >&2
        exit 1
    }
}

command -v cargo >/dev/null 2>&1 || {
    echo "cargo is missing: install Rust 1.95 or later, see https://rustup.rs" >&2
    exit 1
}
need python3 python3

export CARGO_TERM_COLOR=never

step "format"
if cargo fmt --version >/dev/null 2>&1; then cargo fmt --all --check; else skip "rustfmt is missing"; fi

step "lints"
if cargo clippy --version >/dev/null 2>&1; then
    cargo clippy --workspace --all-targets --quiet -- -D warnings
else
    skip "clippy is missing"
fi

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

step "tests"
cargo test --workspace --quiet

# The library's features, alone and together; the other tests don't depend on them.
step "features"
for features in metrics tracing; do
    cargo check -p stockade --lib --features "$features" --quiet
done
if cargo clippy --version >/dev/null 2>&1; then
    cargo clippy -p stockade --all-targets --all-features --quiet -- -D warnings
fi
RUSTDOCFLAGS="-D warnings" cargo doc -p stockade --all-features --no-deps --quiet
cargo test -p stockade --all-features --test telemetry --quiet

step "loom models"
RUSTFLAGS="--cfg stockade_loom" CARGO_TARGET_DIR=target/loom \
    cargo test --quiet --profile loom --lib -p stockade loom_

step "benches, each row once and small"
for bench in allocator engine journal ring ticket; do
    cargo bench --quiet -p stockade --profile release --bench "$bench" -- --test
done

step "examples"
for example in examples/*.rs; do
    name=$(basename "$example" .rs)
    echo "-- $name"
    cargo run --quiet --release -p stockade --example "$name"
done

step "a whole sale"
report=$(mktemp -d)
trap 'rm -rf "$report"' EXIT
cargo run --quiet --release -p flash-sale -- demo --report-dir "$report"
test -s "$report/report.html"
python3 - "$report/report.json" <<'PYTHON'
import json, sys
report = json.load(open(sys.argv[1]))
assert report["oversell_count"] == 0, report["oversell_count"]
assert report["sold"] + report["reserved"] + report["available"] == report["units"], report
assert report["sold"] == report["units"], f"sold {report['sold']} of {report['units']}"
assert report["audit"]["ok"], report["audit"]
PYTHON

printf '\nall tests passed\n'
for what in "${skipped[@]+"${skipped[@]}"}"; do echo "but skipped: $what" >&2; done
