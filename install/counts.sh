#!/usr/bin/env bash
# Counts how often what runs: builds the program so that it counts, has it do what clouds do (train.sh),
# and keeps the sums in FILE, by which PROFILE=dist is built from then on. Half an hour to an hour on
# two processors, most of it for the build.
#
#     CARGO_TARGET_DIR=DIR install/counts.sh FILE
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

cd "$INSTALL_DIR/.."
file=${1:?where to}
counting=${CARGO_TARGET_DIR:?}/counting
counted=$(mktemp -d)
trap 'rm -rf "$counting" "$counted"' EXIT

# The compiler's own LLVM decides the form of what is counted.
llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
summing() {
    local at
    for at in "$(rustc --print sysroot)"/lib/rustlib/*/bin/llvm-profdata \
        "/usr/lib/llvm-$llvm/bin/llvm-profdata"; do
        [ -x "$at" ] && echo "$at" && return
    done
    return 1
}
summing >/dev/null || { need_root "make counts"; install_packages "llvm-$llvm"; }
sum=$(summing) || die "no llvm-profdata of LLVM $llvm; try: rustup component add llvm-tools"

say "building the program that counts"
# Programs that only run for the build would count as well.
LLVM_PROFILE_FILE=/dev/null RUSTFLAGS="${RUSTFLAGS:-} -Cprofile-generate=$counted" \
    cargo build --profile dist --locked -p insula --target-dir "$counting"

# A file for each process.
LLVM_PROFILE_FILE=$counted/%p.profraw INSULA=$counting/dist/insula "$INSTALL_DIR/train.sh"
"$sum" merge -o "$file.new" "$counted"/*.profraw
mv "$file.new" "$file"
# Cargo does not see that what was built by older ones is to be built anew.
rm -rf "$CARGO_TARGET_DIR/dist"
say "counted; build with PROFILE=dist"
