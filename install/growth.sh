#!/usr/bin/env bash
# How throughput, latency and memory grow with nodes, pods, tenants, watchers and partitions: a load
# test for each size, on a cloud of its own. In minutes; FULL=1 takes larger ones, and an hour.
# Reports are in $BENCH_DIR (./bench), and of each variable a table with a column for each size.
#
# SWEEPS="nodes partitions" takes only these.
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$INSTALL_DIR/cloud.sh"

cd "$INSTALL_DIR/.."
FULL=${FULL:-}
OUT=${BENCH_DIR:-bench}/growth
INSULA=${CARGO_TARGET_DIR:-target}/${PROFILE:-release}/insula
failed=()
mkdir -p "$OUT"

# size NAME VALUE SCENARIO ARGUMENTS..: one run, with that many partitions if NAME is that, and else
# with that value of a variable.
size() (
    local name=$1 value=$2 scenario=$3 variable=() partitions=()
    shift 3
    case $name in
    partitions) partitions=(--partitions "$value") ;;
    *) variable=(--set "$name=$value") ;;
    esac
    say "$scenario with $value $name"
    cloud node "${partitions[@]}" || exit 1
    "$INSULA" loadtest run "$scenario" --kubeconfig "$data/admin.kubeconfig" --quiet \
        "${variable[@]}" "$@" --process "cloud=$cloud" --out "$OUT/$name-$value"
    # A missed threshold is a result; that nothing was measured is a failure.
    [ $? -le 1 ]
)

# sweep NAME "VALUES" SCENARIO ARGUMENTS..
sweep() {
    local name=$1 values=$2 value reports=()
    shift 2
    [[ " ${SWEEPS:-nodes pods tenants watches partitions} " == *" $name "* ]] || return
    for value in $values; do
        size "$name" "$value" "$@" || failed+=("$name $value")
        reports+=("$OUT/$name-$value")
    done
    {
        echo "$name: $values"
        "$INSULA" loadtest compare "${reports[@]}"
    } | tee "$OUT/$name.txt" || failed+=("$name")
}

# sizes SMALL FULL
sizes() { if [ -n "$FULL" ]; then echo "$2"; else echo "$1"; fi; }

machine | tee "$OUT/machine.txt"
sweep nodes "$(sizes '100 1000 4000' '1000 5000 20000')" density \
    --set tenants=20 --set pods=4000 --set rate=200
sweep pods "$(sizes '2000 8000 32000' '10000 40000 160000')" density \
    --set tenants=20 --set nodes=500 --set rate=400
sweep tenants "$(sizes '100 1000 4000' '1000 10000 50000')" tenant-scale \
    --set objects=8000 --set rate=500 --set time=20s
sweep watches "$(sizes '10 100 1000' '100 1000 5000')" watch-fan-out --set time=20s
sweep partitions "1 2 4" load \
    --set tenants=40 --set objects=20000 --set rate="$(sizes 500 2000)" --set time=20s

[ ${#failed[@]} = 0 ] || die "not measured: ${failed[*]}"
say "all is in $OUT"
