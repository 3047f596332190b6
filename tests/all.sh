#!/usr/bin/env bash
# Runs every test there is: `tests/all.sh`. Uses what is on the PATH, installs the rest where it is root, and fails loudly
# where it can't. Needs Rust, a C++ compiler (for the fuzzer's engine), Python 3 (for the oracle of `rehearse`), and the
# servers that the adapters speak to: PostgreSQL, Redis, and Kafka, whose files Maven fetches into the user's cache. Tests start
# them on free ports, in temporary folders.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }
skip() { printf '\n!! SKIPPED: %s\n' "$*" >&2; skipped+=("$*"); }
skipped=()

# Debian keeps PostgreSQL's programs beside the PATH, in a folder for each version.
has() {
    PATH=$PATH:$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1) command -v "$1" >/dev/null 2>&1
}

# need COMMAND DEBIAN-PACKAGE...
need() {
    local command=$1
    shift
    has "$command" && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        step "installing $*"
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null
    fi
    has "$command" || {
        echo "'$command' is missing. As root: apt-get install -y $*" >&2
        exit 1
    }
}

command -v cargo >/dev/null 2>&1 || {
    echo "cargo is missing: install Rust 1.95 or later, see https://rustup.rs" >&2
    exit 1
}
need python3 python3
need c++ g++
need initdb postgresql
need psql postgresql-client
need redis-server redis-server
need redis-cli redis-tools
need java openjdk-17-jre-headless
need mvn maven
need make make
need openssl openssl

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
for features in metrics tracing postgres postgres-tls redis kafka; do
    cargo check -p stockade --lib --features "$features" --quiet
done
if cargo clippy --version >/dev/null 2>&1; then
    cargo clippy -p stockade --all-targets --all-features --quiet -- -D warnings
fi
RUSTDOCFLAGS="-D warnings" cargo doc -p stockade --all-features --no-deps --quiet
cargo test -p stockade --all-features --test telemetry --quiet
if cargo clippy --version >/dev/null 2>&1; then
    for features in postgres redis kafka; do
        cargo clippy -p flash-sale --all-targets --features "$features" --quiet -- -D warnings
    done
fi

step "real servers"
tests/servers/kafka.sh --fetch
cargo test -p stockade --all-features --test postgres --test redis --test kafka --quiet
cargo test --release -p flash-sale --features kafka --test takeover --test shared --test repair --test system --quiet

step "loom models"
RUSTFLAGS="--cfg stockade_loom" CARGO_TARGET_DIR=target/loom \
    cargo test --quiet --profile loom --lib -p stockade loom_

# Coverage needs no more of the compiler than these flags, so neither `cargo fuzz` nor a nightly; they go to the target
# alone, for build scripts don't link with them. `FUZZ_SECONDS=600 tests/all.sh` looks longer.
step "fuzz smoke"
host=$(rustc -vV | sed -n 's/^host: //p')
coverage=(
    --cfg fuzzing
    -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
)
RUSTFLAGS="${coverage[*]}" cargo build --quiet --release --manifest-path fuzz/Cargo.toml --locked --bins \
    --target "$host" --target-dir target/fuzz
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for target in fuzz/fuzz_targets/*.rs; do
    name=$(basename "$target" .rs)
    mkdir -p "fuzz/corpus/$name" "fuzz/artifacts/$name"
    "target/fuzz/$host/release/$name" -max_total_time="${FUZZ_SECONDS:-20}" -timeout=10 -rss_limit_mb=2048 \
        -artifact_prefix="fuzz/artifacts/$name/" "fuzz/corpus/$name" >"$scratch/$name.log" 2>&1 || {
        cat "$scratch/$name.log" >&2
        exit 1
    }
    echo "-- $name: $(grep '^Done ' "$scratch/$name.log")"
done

# A package holds its tests whole, so that who has it can run them; what belongs to the workspace is not in it.
step "package"
cargo package --quiet -p stockade --offline --allow-dirty
crate=$(ls -t "${CARGO_TARGET_DIR:-target}"/package/stockade-*.crate | head -n 1)
tar -xzf "$crate" -C "$scratch"
package=$scratch/$(basename "$crate" .crate)
for file in README.md CHANGELOG.md LICENSE-APACHE LICENSE-MIT src/lib.rs benches/ring/main.rs tests/model/mod.rs; do
    test -f "$package/$file" || { echo "the package has no $file" >&2; exit 1; }
done
for other in .ci fuzz benches/peers examples/flash_sale; do
    test ! -e "$package/$other" || { echo "the package has $other" >&2; exit 1; }
done
cargo check --quiet --all-targets --offline --manifest-path "$package/Cargo.toml" \
    --target-dir "${CARGO_TARGET_DIR:-target}/packaged"

step "benches, each row once and small"
for bench in allocator engine journal ring ticket; do
    cargo bench --quiet -p stockade --profile release --bench "$bench" -- --test
done
for bench in postgres redis kafka; do
    cargo bench --quiet -p stockade --profile release --features postgres,redis,kafka --bench "$bench" -- --test
done

step "peers, each row once and small"
cargo run --quiet --release -p peers -- --test

step "examples"
for example in examples/*.rs; do
    name=$(basename "$example" .rs)
    echo "-- $name"
    cargo run --quiet --release -p stockade --example "$name"
done

step "a whole sale"
report=$scratch/report
mkdir "$report"
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
