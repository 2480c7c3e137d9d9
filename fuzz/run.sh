#!/usr/bin/env bash
# Runs targets under libFuzzer, one after the other, on a stable compiler: SECONDS_EACH seconds
# each, with NAMES instead of all. What it learns and finds is kept in FUZZ_DIR, outside the
# checkout; a finding ends the run, and is repeated with `fuzz/run.sh repeat NAME FILE`.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${CARGO_TARGET_DIR:?the Makefile sets it}"
: "${FUZZ_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/insula/fuzz}"
: "${SECONDS_EACH:=60}"
: "${NAMES:=$(ls fuzz/seeds)}"

# Optimised a little, with every check that a test has.
export CARGO_PROFILE_DEV_OPT_LEVEL=1
RUSTC_WORKSPACE_WRAPPER=$PWD/fuzz/rustc.sh \
    cargo build --locked -p insula-fuzz --features libfuzzer --bin insula-fuzz
program=$CARGO_TARGET_DIR/debug/insula-fuzz

if [[ ${1:-} == repeat ]]; then
    INSULA_FUZZ_TARGET=$2 exec "$program" "$3"
fi
for name in $NAMES; do
    mkdir -p "$FUZZ_DIR/corpus/$name" "$FUZZ_DIR/found/$name"
    echo "== $name"
    INSULA_FUZZ_TARGET=$name nice -n 19 "$program" -max_total_time="$SECONDS_EACH" \
        -timeout=20 -rss_limit_mb=4096 -max_len=16384 -print_final_stats=1 -verbosity=1 \
        -artifact_prefix="$FUZZ_DIR/found/$name/" \
        "$FUZZ_DIR/corpus/$name" "fuzz/seeds/$name" 2>&1 | tee "$FUZZ_DIR/$name.log" |
        { grep -E '^(stat::(number|average|peak)|==|thread|SUMMARY|artifact|  left|  right)|panicked' || true; } || {
        echo "see $FUZZ_DIR/$name.log" >&2
        exit 1
    }
done
