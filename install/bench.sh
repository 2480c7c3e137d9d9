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

# begin NAME COMMAND..: in the background, with what it says in $data; ended with this shell, the last
# one first. Its process is $begun.
begin() {
    local name=$1
    shift
    "$@" >"$data/$name.out" 2>"$data/$name.log" &
    begun=$!
    running="$begun $running"
}

end() {
    local pid
    for pid in $running; do kill "$pid" && wait "$pid"; done 2>/dev/null
    rm -rf "$data"
}

# cloud WITHOUT: one without these parts, in $data. Its process is $cloud.
cloud() {
    data=$(mktemp -d) running=
    trap end EXIT
    begin cloud "$INSULA" up --data-dir "$data" --listen 127.0.0.1:0 --without "$1"
    cloud=$begun
    local n
    for n in $(seq 300); do
        grep -qs '^ready' "$data/cloud.out" && return
        sleep 0.2
    done
    cat "$data/cloud.log"
    return 1
}

# load SCENARIO: on a cloud without nodes, which is started before.
load() {
    say "load test $1"
    local small=(--small)
    [ -z "$FULL" ] || small=()
    "$INSULA" loadtest run "$1" "${small[@]}" --kubeconfig "$data/admin.kubeconfig" \
        --process "server=$cloud" --out "$OUT/$1" 2>&1 | tee "$OUT/$1.txt"
    # A missed threshold is a result; that nothing was measured is a failure.
    [ "${PIPESTATUS[0]}" -le 1 ]
}

loads() (
    cloud node || exit 1
    failed=0
    for scenario in load watch-fan-out tenant-scale noisy-neighbour density controller-rollout \
        scheduler-throughput node-storm live-move; do
        load "$scenario" || failed=1
    done
    exit "$failed"
)

# rolled OUT REPLICAS ARGUMENTS.. -- COMMAND..: deployments rolled out and scaled by so many processes of
# controllers, ours or a peer's, on a cloud of its own: what those use.
rolled() (
    out=$1 replicas=$2
    shift 2
    arguments=()
    while [ "$1" != -- ]; do
        arguments+=("$1")
        shift
    done
    shift
    say "$out"
    cloud node,controllers || exit 1
    command=("${@//DATA/$data}")
    for n in $(seq "$replicas"); do
        begin "controllers-$n" "${command[@]}"
        arguments+=(--process "controllers$n=$begun")
    done
    shared || exit 1
    "$INSULA" loadtest run controller-rollout --kubeconfig "$data/admin.kubeconfig" \
        --set nodes=100 "${arguments[@]}" --out "$OUT/$out" 2>&1 | tee "$OUT/$out.txt"
    [ "${PIPESTATUS[0]}" -le 1 ]
)

# Waits until each of $replicas processes of ours has its share of the tenants; a single one is alone.
shared() {
    local n shares
    [ "$replicas" -gt 1 ] || return 0
    for n in $(seq 300); do
        shares=$(kubectl --kubeconfig "$data/admin.kubeconfig" get controllerinstances \
            -o jsonpath='{range .items[*]}{.status.slots}{"\n"}{end}' 2>/dev/null | grep -c '^[1-9]')
        [ "$shares" != "$replicas" ] || return 0
        sleep 0.2
    done
    return 1
}

# creation OUT: how fast a run's pods were made, and what each took of the processor.
creation() {
    jq -r --arg run "$1" '
        (.steps | map({(.name): .}) | add) as $steps
        | ($steps["roll-out"].began) as $began
        | ($steps["rolled-out"] | .began + .seconds - $began) as $seconds
        | ([.processes[] | select(.name | startswith("controllers"))]) as $all
        | [$run, ($all | length), .pods.created, (.pods.created / $seconds | floor),
            (([$all[].cpuSeconds] | add) * 1e6 / .pods.created | floor / 1000),
            ([$all[].memoryMost] | max / 1048576 | floor)] | @tsv' "$OUT/$1/report.json"
}

beside_controllers() {
    local peer deployments n all rollout
    local ours=("$INSULA" controllers --kubeconfig DATA/admin.kubeconfig --root-ca DATA/ca.crt)
    peer=$(peer kube-controller-manager)
    local theirs=("$peer" --kubeconfig DATA/admin.kubeconfig
        --authentication-kubeconfig DATA/admin.kubeconfig
        --authorization-kubeconfig DATA/admin.kubeconfig --secure-port 0
        --root-ca-file DATA/ca.crt --service-account-private-key-file DATA/pki/sa.key)

    # In namespaces of the platform's tenant: a peer knows no other. At a rate that does not decide.
    deployments=${ROLLOUTS:-$([ -n "$FULL" ] && echo 1000 || echo 100)}
    rollout=(--no-tenants --set tenants=10 --set "deployments=$deployments" --set rate=10)
    if [ -n "$FULL" ]; then
        rollout+=(--set replicas=10 --set scaleTo=12 --set "scaled=$((12 * deployments))")
    else
        rollout+=(--set replicas=2 --set scaleTo=4 --set "scaled=$((4 * deployments))")
    fi
    rolled rollouts-ours 1 "${rollout[@]}" -- "${ours[@]}" || failed+=("rollouts by ours")
    if [ -n "$peer" ]; then
        rolled rollouts-upstream 1 "${rollout[@]}" -- "${theirs[@]}" ||
            failed+=("rollouts by kube-controller-manager")
        "$INSULA" loadtest compare "$OUT/rollouts-ours" "$OUT/rollouts-upstream" |
            tee "$OUT/rollouts.txt"
    fi

    # All at once, so that controllers decide how fast pods are made; by several of ours in tenants,
    # which they share.
    deployments=$([ -n "$FULL" ] && echo 1000 || echo 60)
    all=(--set "deployments=$deployments" --set rate=10000 --set replicas=10 --set scaleTo=10
        --set "scaled=$((10 * deployments))")
    for n in 1 2 4; do
        rolled "creation-ours-$n" "$n" "${all[@]}" --set tenants=40 -- "${ours[@]}" ||
            failed+=("creation by $n of ours")
    done
    rolled creation-ours 1 --no-tenants "${all[@]}" --set tenants=10 -- "${ours[@]}" ||
        failed+=("creation by ours")
    [ -z "$peer" ] ||
        rolled creation-upstream 1 --no-tenants "${all[@]}" --set tenants=10 -- "${theirs[@]}" ||
        failed+=("creation by kube-controller-manager")
    {
        printf 'run\treplicas\tpods\tpods a second\tCPU ms for a pod\tmost memory of one, MiB\n'
        for n in creation-ours-1 creation-ours-2 creation-ours-4 creation-ours creation-upstream; do
            [ ! -e "$OUT/$n/report.json" ] || creation "$n"
        done
    } | tee "$OUT/creation.txt"
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
beside_controllers
loads || failed+=("load tests")

[ ${#failed[@]} = 0 ] || die "not measured: ${failed[*]}"
say "all is in $OUT"
