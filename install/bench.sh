#!/usr/bin/env bash
# Runs the benches of the repository, each beside the peers that are on this machine, and load tests
# against a cloud of its own. Small, in minutes; FULL=1 takes as long as it takes. What each printed
# is kept in $BENCH_DIR (./bench), load tests' reports too.
#
# Peers are looked for in $INSULA_PEERS, then in PATH.
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PROFILE=${PROFILE:-dist}
FULL=${FULL:-}
OUT=${BENCH_DIR:-bench}
TARGET=${CARGO_TARGET_DIR:-target}
INSULA=$TARGET/$PROFILE/insula
failed=()
mkdir -p "$OUT"

# The path of a peer; nothing if it is absent.
peer() {
    if [ -n "${INSULA_PEERS:-}" ] && [ -x "$INSULA_PEERS/$1" ]; then
        echo "$INSULA_PEERS/$1"
    else
        command -v "$1"
    fi
}

# peers: what there is to compare with, said aloud.
peers() {
    local name path
    for name in etcd kube-apiserver kube-scheduler kube-controller-manager; do
        path=$(peer "$name")
        echo "peer $name: ${path:-absent, so nothing is compared with it}"
    done
}

# bench PACKAGE EXAMPLE [ARGUMENTS..]
bench() {
    local package=$1 example=$2
    shift 2
    say "$example $*"
    cargo run --profile "$PROFILE" --locked -q -p "$package" --example "$example" -- "$@" 2>&1 |
        tee "$OUT/$example.txt" || failed+=("$example")
}

# load SCENARIO: on a cloud without nodes, which is started before.
load() {
    say "load test $1"
    local small=(--small)
    [ -z "$FULL" ] || small=()
    "$INSULA" loadtest run "$1" "${small[@]}" --kubeconfig "$data/admin.kubeconfig" \
        --process "server=$cloud" --out "$OUT/$1" 2>&1 | tee "$OUT/$1.txt"
    # A missed threshold is a result; that nothing was measured is a failure.
    [ "${PIPESTATUS[0]}" -le 1 ] || failed+=("load test $1")
}

loads() {
    data=$(mktemp -d) cloud=
    trap '[ -z "$cloud" ] || { kill "$cloud"; wait "$cloud"; } 2>/dev/null; rm -rf "$data"' EXIT
    "$INSULA" up --data-dir "$data" --listen 127.0.0.1:0 --without node >"$data/out" 2>"$data/log" &
    cloud=$!
    local n
    for n in $(seq 300); do
        grep -q '^ready' "$data/out" && break
        sleep 0.2
    done
    grep -q '^ready' "$data/out" || { cat "$data/log"; failed+=("load tests"); return; }
    local scenario
    for scenario in load watch-fan-out tenant-scale noisy-neighbour density controller-rollout \
        scheduler-throughput node-storm live-move; do
        load "$scenario"
    done
}

{
    date -u +"%Y-%m-%d %H:%M UTC"
    uname -srm
    grep -m1 "model name" /proc/cpuinfo
    echo "$(nproc) processors, load $(cut -d' ' -f1-3 /proc/loadavg) before"
    peers
} | tee "$OUT/machine.txt"

with_peer=()
[ -z "$(peer kube-apiserver)" ] || with_peer=(--peer)
if [ -n "$FULL" ]; then
    bench insula-partition bench
    bench insula-apiserver forward_bench
    bench insula-apiserver write_bench
    bench insula api_bench
    bench insula noise_bench "${with_peer[@]}"
    bench insula tenant_bench
    bench insula-scheduler throughput
else
    bench insula-partition bench --quick
    bench insula-apiserver forward_bench 5000
    bench insula-apiserver write_bench 5000
    bench insula api_bench --quick
    bench insula noise_bench --seconds 4 "${with_peer[@]}"
    bench insula tenant_bench --tenants 2000
    bench insula-scheduler throughput basic 1000 20000
fi
loads

[ ${#failed[@]} = 0 ] || die "not measured: ${failed[*]}"
say "all is in $OUT"
