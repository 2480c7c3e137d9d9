#!/usr/bin/env bash
# Has a program that counts what it runs do what clouds do, for a few minutes, on clouds of its own.
# What it counts each of its processes writes at its end, to where LLVM_PROFILE_FILE says.
#
#     INSULA=PROGRAM install/train.sh
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$INSTALL_DIR/cloud.sh"

: "${INSULA:?the program that counts}"
failed=()

# load ARGUMENTS..: a load test on $data's cloud. That it is slow is no failure.
load() {
    "$INSULA" loadtest run "$@" --quiet --cleanup --kubeconfig "$data/admin.kubeconfig" \
        --out "$data/report" >"$data/load.txt" 2>&1
    [ $? -le 1 ] || { tail -n 5 "$data/load.txt" >&2; return 1; }
}

k() { kubectl --kubeconfig "$data/admin.kubeconfig" "$@" >/dev/null; }

# What people do by hand: kinds of all sorts, applied by either side, changed, described, deleted.
by_hand() {
    local n
    for n in $(seq 20); do
        k create configmap "config-$n" --from-literal=a=b || return
        k create deployment "web-$n" --image=localhost/insula/pause:1 --replicas=3 || return
        k get deployment "web-$n" -o yaml
        k get deployment "web-$n" -o yaml --show-managed-fields |
            sed '/uid:/d; /resourceVersion:/d; /managedFields:/,/^  name:/{/^  name:/!d}' >"$data/web.yaml"
        k get deployment "web-$n" -o json
        k apply --server-side --force-conflicts -f - <<APPLIED
apiVersion: apps/v1
kind: Deployment
metadata: { name: web-$n, labels: { by: hand } }
spec: { replicas: 2 }
APPLIED
        k label configmap "config-$n" a=b
        k annotate deployment "web-$n" a=b
        k patch deployment "web-$n" -p '{"spec":{"template":{"metadata":{"labels":{"a":"b"}}}}}'
        k scale deployment "web-$n" --replicas=1
    done
    k get all -A
    k describe deployments
    k api-resources
    k explain pod.spec.containers
    k delete deployments,configmaps --all
}

everything() (
    cloud node || exit
    load "$INSTALL_DIR/train.yaml" || exit
    for scenario in load watch-fan-out tenant-scale noisy-neighbour density controller-rollout \
        node-storm live-move; do
        say "training: $scenario"
        load "$scenario" --small || exit
    done
    load watch-fan-out --set rate=20 --set time=10s || exit
    load controller-rollout --set nodes=100 --set deployments=100 --set replicas=10 --set rate=1000 \
        --set scaleTo=12 --set scaled=1200 || exit
    by_hand
)

# Nobody finishes namespaces there; all of it goes with its cloud.
pods() (
    cloud node,controllers || exit
    say "training: $1"
    load "$@" --no-tenants --cleanup-timeout 1
)

pods_of_shapes() {
    local shape
    for shape in basic affinity antiaffinity spread; do
        pods scheduling --set shape=$shape --set nodes=1000 --set pods=500 --set scheduled=500 ||
            return
    done
    pods light-nodes --small
}

# The same on an etcd, where that is installed.
on_etcd() (
    command -v etcd >/dev/null || { say "no etcd here: what speaks to it is not trained"; exit 0; }
    kept=$(mktemp -d)
    trap 'rm -rf "$kept"' EXIT
    url=http://127.0.0.1:$((20000 + RANDOM % 10000))
    etcd --data-dir "$kept" --listen-client-urls "$url" --advertise-client-urls "$url" \
        --listen-peer-urls http://127.0.0.1:0 >/dev/null 2>&1 &
    etcd=$!
    (
        cloud node --store "etcd=p1=$url" && say "training: on etcd" &&
            load "$INSTALL_DIR/train.yaml" --small && load controller-rollout --small
    )
    result=$?
    kill "$etcd"
    wait "$etcd"
    exit "$result"
)

for part in everything pods_of_shapes on_etcd; do
    "$part" || failed+=("$part")
done
[ ${#failed[@]} = 0 ] || die "training failed: ${failed[*]}"
