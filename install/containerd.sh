#!/usr/bin/env bash
# A private containerd: own root, state, socket and pod network, all below one directory, so that
# tests and labs run side by side and never touch the machine's own.
#
#   containerd.sh start --root DIR [--pod-cidr C] [--bridge NAME]   prints the socket's path
#   containerd.sh halt  --root DIR     ends the daemon only; its containers run on, `start` resumes
#   containerd.sh stop  --root DIR     ends everything and removes what `start` made
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

USAGE="usage: containerd.sh start --root DIR [--pod-cidr C] [--bridge NAME] | halt --root DIR | stop --root DIR"
VERB=${1:-}
[ $# -gt 0 ] && shift
ROOT='' CIDR='' BRIDGE=''
while [ $# -gt 0 ]; do
    case $1 in
        --root) ROOT=${2:?$USAGE} ;;
        --pod-cidr) CIDR=${2:?$USAGE} ;;
        --bridge) BRIDGE=${2:?$USAGE} ;;
        *) die "$USAGE" ;;
    esac
    shift 2
done
[ -n "$ROOT" ] || die "$USAGE"
need_root "${BASH_SOURCE[0]} $VERB --root $ROOT"
ROOT=$(realpath -m "$ROOT")
# Everything of ours lies in one directory below the caller's, which may hold other things.
HOME_DIR="$ROOT/containerd"
SOCKET="$HOME_DIR/containerd.sock"
# A unix socket's path has at most 107 bytes, and containerd derives a longer one from it.
[ ${#SOCKET} -le 95 ] || die "$ROOT is too long a path for a unix socket below it; at most 73 bytes"

# pick_network: sets BRIDGE and CIDR to what no interface and no route uses. Called under the lock,
# which is held until the bridge exists.
pick_network() {
    local hash try
    hash=$(printf '%s' "$ROOT" | sha256sum | cut -c1-8)
    BRIDGE=${BRIDGE:-ins$hash}
    [ -n "$CIDR" ] && return
    for try in $(seq 0 255); do
        CIDR="10.$((200 + (16#${hash:0:2} + try) % 50)).$(((16#${hash:2:2} + try) % 256)).0/24"
        ip -4 route show | grep -q "^${CIDR%.0/24}\." || return 0
    done
    die "no free pod network in 10.200.0.0/16 to 10.249.0.0/16; give one with --pod-cidr"
}

start() {
    if answers "$SOCKET"; then
        echo "$SOCKET"
        return
    fi
    "$INSTALL_DIR/images/build.sh" "$IMAGE_DIR"
    mkdir -p "$HOME_DIR"/{root,state,cni/net.d}
    if [ ! -s "$HOME_DIR/network" ]; then
        mkdir -p "$RUN_DIR"
        exec 8>"$RUN_DIR/pod-networks.lock"
        flock 8
        pick_network
        # The route of the bridge is what tells others that this network is taken.
        ip link add "$BRIDGE" type bridge || die "cannot create the bridge $BRIDGE"
        ip address add "${CIDR%.*}.1/${CIDR#*/}" dev "$BRIDGE"
        ip link set "$BRIDGE" up
        echo "$BRIDGE $CIDR" >"$HOME_DIR/network"
        exec 8>&-
        cni_config "$BRIDGE" "$BRIDGE" "$CIDR" false "$HOME_DIR/cni/ipam" \
            >"$HOME_DIR/cni/net.d/10-insula.conflist"
    fi
    containerd_config "$HOME_DIR/root" "$HOME_DIR/state" "$SOCKET" "$HOME_DIR/cni/net.d" \
        >"$HOME_DIR/config.toml"
    start_detached "$HOME_DIR/config.toml" "$SOCKET" "$HOME_DIR/pid" "$HOME_DIR/log"
    import_images "$SOCKET"
    echo "$SOCKET"
}

# end_daemon SIGNAL: ends containerd itself and waits until it is gone.
end_daemon() {
    local pid
    [ -s "$HOME_DIR/pid" ] || return 0
    pid=$(cat "$HOME_DIR/pid")
    # The number may have gone to another process since.
    if tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF "$HOME_DIR/config.toml"; then
        kill -s "$1" "$pid"
        for _ in $(seq 100); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.05
        done
        kill -9 "$pid" 2>/dev/null || true
    fi
    rm -f "$HOME_DIR/pid"
}

halt() { end_daemon TERM; }

# end_containers: kills every task with its shim and removes the pods' network namespaces and
# control groups.
end_containers() {
    local ctr=(ctr -a "$SOCKET" -n k8s.io) task path info namespaces groups
    info=$("${ctr[@]}" containers list -q | while read -r task; do
        "${ctr[@]}" containers info "$task"
    done)
    namespaces=$(jq -r '.Spec.linux.namespaces[]? | select(.type == "network") | .path // empty' <<<"$info" |
        sort -u | grep -E '^/(var/)?run/netns/' || true)
    groups=$(jq -r '.Spec.linux.cgroupsPath // empty' <<<"$info" | grep -o '^/.*/pod[^/]*' |
        sort -u || true)
    "${ctr[@]}" tasks list -q | while read -r task; do
        "${ctr[@]}" tasks kill -a -s SIGKILL "$task" >/dev/null 2>&1 || true
    done
    "${ctr[@]}" tasks list -q | while read -r task; do
        "${ctr[@]}" tasks rm -f "$task" >/dev/null 2>&1 || true
    done
    for path in $namespaces; do
        umount "$path" 2>/dev/null || true
        rm -f "$path"
    done
    # CNI notes what it did for each pod; it will not be asked to undo it.
    for task in $(jq -r '.ID // empty' <<<"$info"); do
        rm -f /var/lib/cni/results/*-"$task"-*
    done
    for path in $groups; do
        for path in "/sys/fs/cgroup$path" /sys/fs/cgroup/*"$path"; do
            [ -d "$path" ] && find "$path" -depth -type d -exec rmdir {} + 2>/dev/null || true
        done
    done
}

# end_shims: ends what is left of them, known by the socket in their command line.
end_shims() {
    local pid
    for pid in $(pgrep -f -- "-address $SOCKET" || true); do
        kill -9 "$pid" 2>/dev/null || true
    done
}

# forget_network: removes the bridge, the host port rules of its network, and what CNI noted of it.
forget_network() {
    local bridge chain
    [ -s "$HOME_DIR/network" ] || return 0
    read -r bridge _ <"$HOME_DIR/network"
    # Each rule of the portmap plugin names its network in a comment; `-S` quotes it with \".
    { iptables -w -t nat -S 2>/dev/null | grep -F "name: \\\"$bridge\\\"" || true; } | while read -r rule; do
        chain=$(sed -n 's/.* -j \(CNI-[^ ]*\)$/\1/p' <<<"$rule")
        eval "iptables -w -t nat -D ${rule#-A }" 2>/dev/null || true
        case $chain in
            CNI-DN-*)
                iptables -w -t nat -F "$chain" 2>/dev/null || true
                iptables -w -t nat -X "$chain" 2>/dev/null || true
                ;;
        esac
    done
    ip link delete "$bridge" 2>/dev/null || true
    rm -f /var/lib/cni/results/"$bridge"-*
}

stop() {
    local mount
    [ -d "$HOME_DIR" ] || return 0
    # Only containerd knows its containers; one that was halted is started once more for it.
    if ! answers "$SOCKET" && [ -s "$HOME_DIR/config.toml" ]; then
        start_detached "$HOME_DIR/config.toml" "$SOCKET" "$HOME_DIR/pid" "$HOME_DIR/log"
    fi
    answers "$SOCKET" && end_containers
    # Nothing of it is kept, so nothing needs to be written down.
    end_daemon KILL
    end_shims
    forget_network
    awk -v below="$HOME_DIR/" 'index($2, below) == 1 {print $2}' /proc/mounts | sort -r |
        while read -r mount; do umount -l "$mount" || true; done
    rm -rf "$HOME_DIR"
}

case $VERB in
    start | halt | stop) "$VERB" ;;
    *) die "$USAGE" ;;
esac
