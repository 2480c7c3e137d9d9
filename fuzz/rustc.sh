#!/usr/bin/env bash
# The compiler for the crates of this workspace (cargo's RUSTC_WORKSPACE_WRAPPER): with counters
# that libFuzzer reads to learn what an input reached. What they depend on is built as ever, and
# so is what only runs while building.
rustc=$1
shift
case " $* " in *" --crate-name build_script_"*) exec "$rustc" "$@" ;; esac
exec "$rustc" "$@" -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=3 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares
