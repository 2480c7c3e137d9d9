#!/usr/bin/env bash
# Runs the benches of the repository, each beside the peers that are on this machine, and load tests
# against a cloud of its own. Small, in minutes; FULL=1 takes as long as it takes. What each printed
# is kept in $BENCH_DIR (./bench), load tests' reports too.
#
# Peers are looked for in $INSULA_PEERS, then in PATH.
#
#     install/bench.sh [cores] [beside_controllers] [beside_schedulers] [beside_clouds] [loads]
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$INSTALL_DIR/cloud.sh"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PROFILE=${PROFILE:-release}
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

# The examples that bench runs. In one go: each alone would have what they share built anew, with other
# features.
examples() {
    say "building the benches"
    cargo build --profile "$PROFILE" --locked -q \
        -p insula-partition --example bench \
        -p insula-apiserver --example forward_bench --example write_bench \
        -p insula-scheduler --example throughput \
        -p insula --example api_bench --example noise_bench --example tenant_bench
}

# bench EXAMPLE [ARGUMENTS..]
bench() {
    local example=$1
    shift
    say "$example $*"
    "$TARGET/$PROFILE/examples/$example" "$@" 2>&1 |
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

# free_port: one that nobody has at the moment.
free_port() {
    local port
    while port=$((20000 + RANDOM % 12000)); do
        (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

# upstream: kube-apiserver on an etcd, and kube-scheduler without limits on what it asks, in $data. With
# the authority of a cloud of ours, whose kubeconfig so is good for both. Its API server is $cloud, its
# scheduler $begun, its store $etcd.
upstream() {
    local url port
    cloud node,controllers,scheduler || return 1
    kill "$cloud" && wait "$cloud" 2>/dev/null
    running=
    url=http://127.0.0.1:$(free_port)
    begin etcd "$(peer etcd)" --data-dir "$data/etcd" --listen-client-urls "$url" \
        --advertise-client-urls "$url" --listen-peer-urls "http://127.0.0.1:$(free_port)" \
        --quota-backend-bytes 8000000000
    etcd=$begun
    openssl req -newkey rsa:2048 -nodes -subj /CN=bench -keyout "$data/server.key" 2>/dev/null |
        openssl x509 -req -CA "$data/pki/ca.crt" -CAkey "$data/pki/ca.key" -CAcreateserial -days 1 \
            -extfile <(echo subjectAltName=IP:127.0.0.1) -out "$data/server.crt" 2>/dev/null
    openssl genrsa -out "$data/tokens.key" 2>/dev/null
    openssl rsa -in "$data/tokens.key" -pubout -out "$data/tokens.pub" 2>/dev/null
    port=$(free_port)
    # Who may do anything costs it less than rules would. It lacks what there is to make accounts.
    begin kube-apiserver "$(peer kube-apiserver)" --etcd-servers "$url" --secure-port "$port" \
        --bind-address 127.0.0.1 --advertise-address 127.0.0.1 --client-ca-file "$data/pki/ca.crt" \
        --tls-cert-file "$data/server.crt" --tls-private-key-file "$data/server.key" \
        --service-account-signing-key-file "$data/tokens.key" \
        --service-account-key-file "$data/tokens.pub" --service-account-issuer https://bench \
        --service-cluster-ip-range 10.96.0.0/16 --authorization-mode AlwaysAllow \
        --max-requests-inflight 3000 --max-mutating-requests-inflight 3000
    cloud=$begun
    sed -i "s|https://127.0.0.1:[0-9]*/tenants/system|https://127.0.0.1:$port|" \
        "$data/admin.kubeconfig"
    for _ in $(seq 300); do
        curl -fs --cacert "$data/ca.crt" --cert "$data/pki/admin.crt" --key "$data/pki/admin.key" \
            "https://127.0.0.1:$port/readyz" >/dev/null && break
        sleep 0.2
    done
    printf '%s\n' 'apiVersion: kubescheduler.config.k8s.io/v1' 'kind: KubeSchedulerConfiguration' \
        'leaderElection: {leaderElect: false}' \
        "clientConnection: {kubeconfig: $data/admin.kubeconfig, qps: 100000, burst: 100000}" \
        >"$data/scheduler.yaml"
    begin scheduler "$(peer kube-scheduler)" --config "$data/scheduler.yaml" --secure-port 0
    sleep 5
}

# filled WHOSE NODES PODS RATE: a whole cloud, ours or of upstream's parts, filled with pods on hollow
# nodes that do as standard kubelets do.
filled() (
    whose=$1
    say "density, $2 nodes, $3 pods, $4 a second: $whose"
    case $whose in
    ours)
        cloud node || exit 1
        processes=(--process "server=$cloud")
        ;;
    upstream)
        upstream || exit 1
        processes=(--process "server=$cloud" --process "scheduler=$begun" --process "etcd=$etcd")
        begin controllers "$(peer kube-controller-manager)" --kubeconfig "$data/admin.kubeconfig" \
            --authentication-kubeconfig "$data/admin.kubeconfig" \
            --authorization-kubeconfig "$data/admin.kubeconfig" --secure-port 0 \
            --kube-api-qps 100000 --kube-api-burst 100000 --leader-elect=false \
            --root-ca-file "$data/ca.crt" --service-account-private-key-file "$data/tokens.key"
        processes+=(--process "controllers=$begun")
        ;;
    esac
    # Ten namespaces in the place of as many tenants.
    "$INSULA" loadtest run density --kubeconfig "$data/admin.kubeconfig" --no-tenants --quiet \
        --set tenants=10 --set "nodes=$2" --set "pods=$3" --set "rate=$4" \
        "${processes[@]}" --cleanup-timeout 1 --out "$OUT/density-$2-$3-$whose" 2>&1
    [ $? -le 1 ]
)

# whole OUT: what all processes of a cloud used for the pods of a run, and how long those took.
whole() {
    jq -r --arg run "$1" '
        ([.processes[] | select(.name != "target")]) as $all
        | .podStartup["asked for to running"] as $running
        | [$run, .pods.running, (.podsScheduledPerSecond | floor), $running.p50, $running.p99,
            (([$all[].cpuSeconds] | add) * 1e6 / .pods.running | floor / 1000),
            ([$all[].memoryMost] | add / 1048576 | floor)] | @tsv' "$OUT/$1/report.json"
}

# DENSITY is another size. Two processors are too few for upstream's at that of FULL: it says so.
beside_clouds() {
    local whose size=(50 500 50)
    [ -z "$FULL" ] || size=(1000 10000 100)
    [ -z "${DENSITY:-}" ] || read -ra size <<<"$DENSITY"
    filled ours "${size[@]}" || failed+=("density")
    [ -n "$(peer kube-controller-manager)" ] && has_schedulers || return
    filled upstream "${size[@]}" || failed+=("density by upstream's")
    {
        printf 'run\tpods\tpods a second\trunning 50 %% ms\t99 %% ms\tCPU ms for a pod\tmemory MiB\n'
        for whose in ours upstream; do
            whole "density-${size[0]}-${size[1]}-$whose"
        done
    } | tee "$OUT/density-beside.txt"
}

ours() {
    cloud node,controllers,scheduler || return 1
    begin scheduler "$INSULA" scheduler --kubeconfig "$data/admin.kubeconfig"
    sleep 5
}

# schedule WHOSE NAME ARGUMENTS..: one shape of pods, on a cloud of its own.
schedule() (
    whose=$1 name=$2
    shift 2
    say "scheduling $name: $whose"
    "$whose" || exit 1
    # Nobody finishes namespaces there; all of it goes with its cloud.
    "$INSULA" loadtest run scheduling --kubeconfig "$data/admin.kubeconfig" --no-tenants --quiet \
        --cleanup-timeout 1 "$@" --process "scheduler=$begun" --process "server=$cloud" \
        --out "$OUT/scheduling-$name-$whose" 2>&1
    [ $? -le 1 ]
)

# Whether there is what it takes to compare with kube-scheduler.
has_schedulers() {
    [ -n "$(peer kube-scheduler)" ] && [ -n "$(peer kube-apiserver)" ] && [ -n "$(peer etcd)" ]
}

# beside_scheduler NAME ARGUMENTS..: by ours, by kube-scheduler, and compared.
beside_scheduler() {
    local name=$1
    schedule ours "$@" || failed+=("scheduling $name")
    has_schedulers || return
    schedule upstream "$@" || failed+=("scheduling $name by kube-scheduler")
    "$INSULA" loadtest compare "$OUT/scheduling-$name-ours" "$OUT/scheduling-$name-upstream" |
        tee "$OUT/scheduling-$name.txt"
}

# schedulers NODES PODS: all shapes on so many nodes.
schedulers() {
    local nodes=$1 pods=$2 shape
    for shape in basic affinity antiaffinity spread; do
        beside_scheduler "$shape-$nodes" --set "nodes=$nodes" --set "shape=$shape" \
            --set "pods=$pods" --set "scheduled=$pods"
    done
    beside_scheduler "churn-$nodes" --set "nodes=$nodes" --set "pods=$pods" \
        --set "scheduled=$pods" --set churned=50
    beside_scheduler "preemption-$nodes" --set "nodes=$nodes" --set shape=important \
        --set "pods=$pods" --set "filling=$((4 * nodes))" --set "scheduled=$((4 * nodes + pods))"
    beside_scheduler "steady-$nodes" --set "nodes=$nodes" --set pods=0 --set steady=500 \
        --set scheduled=500
}

{
    machine
    peers
} | tee "$OUT/machine.txt"

cores() {
    local with_peer=()
    examples || die "the benches do not build"
    [ -z "$(peer kube-apiserver)" ] || with_peer=(--peer)
    if [ -n "$FULL" ]; then
        bench bench
        bench forward_bench
        bench write_bench
        bench api_bench
        bench noise_bench "${with_peer[@]}"
        bench tenant_bench
        bench throughput
    else
        bench bench --quick
        bench forward_bench 5000
        bench write_bench 5000
        bench api_bench --quick
        bench noise_bench --seconds 4 "${with_peer[@]}"
        bench tenant_bench --tenants 2000
        bench throughput basic 1000 20000
    fi
}

beside_schedulers() {
    if [ -n "$FULL" ]; then
        schedulers 1000 900
        schedulers 5000 2000
    else
        schedulers 50 45
    fi
}

[ $# != 0 ] || set -- cores beside_controllers beside_schedulers beside_clouds loads
for part in "$@"; do
    case $part in
    cores | beside_controllers | beside_schedulers | beside_clouds) "$part" ;;
    loads) loads || failed+=("load tests") ;;
    *) die "there is no part $part; there are: cores, beside_controllers, beside_schedulers, beside_clouds, loads" ;;
    esac
done

[ ${#failed[@]} = 0 ] || die "not measured: ${failed[*]}"
say "all is in $OUT"
