#!/usr/bin/env bash
# Runs the benches of the repository, each beside the peers that are on this machine, and load tests
# against a cloud of its own. Small, in minutes; FULL=1 takes as long as it takes. What each printed
# is kept in $BENCH_DIR (./bench), load tests' reports too.
#
# Peers are looked for in $INSULA_PEERS, then in PATH.
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$INSTALL_DIR/cloud.sh"

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

# rollouts NAME COMMAND..: deployments rolled out by one process of controllers, ours or a peer's, on a
# cloud of its own: what that process uses. In namespaces of the platform's tenant: a peer knows no
# other.
rollouts() (
    name=$1
    shift
    say "rollouts by $name"
    cloud node,controllers || exit 1
    args=("${@//DATA/$data}")
    begin controllers "${args[@]}"
    deployments=${ROLLOUTS:-$([ -n "$FULL" ] && echo 1000 || echo 100)}
    "$INSULA" loadtest run controller-rollout --kubeconfig "$data/admin.kubeconfig" --no-tenants \
        --set tenants=10 --set nodes=100 --set "deployments=$deployments" --set rate=10 \
        --set "scaled=$((4 * deployments))" \
        --process "controllers=$begun" --out "$OUT/rollouts-$name" 2>&1 |
        tee "$OUT/rollouts-$name.txt"
    [ "${PIPESTATUS[0]}" -le 1 ]
)

beside_controllers() {
    local peer
    rollouts ours "$INSULA" controllers --kubeconfig DATA/admin.kubeconfig --root-ca DATA/ca.crt ||
        failed+=("rollouts by ours")
    peer=$(peer kube-controller-manager)
    [ -n "$peer" ] || return
    rollouts upstream "$peer" --kubeconfig DATA/admin.kubeconfig \
        --authentication-kubeconfig DATA/admin.kubeconfig \
        --authorization-kubeconfig DATA/admin.kubeconfig --secure-port 0 \
        --root-ca-file DATA/ca.crt --service-account-private-key-file DATA/pki/sa.key ||
        failed+=("rollouts by kube-controller-manager")
    "$INSULA" loadtest compare "$OUT/rollouts-ours" "$OUT/rollouts-upstream" |
        tee "$OUT/rollouts.txt"
}

{
    machine
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
