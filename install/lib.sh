# What the installation scripts share. Sourced, never run.
# shellcheck shell=bash

INSTALL_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
ETC_DIR=/etc/insula
VAR_DIR=/var/lib/insula
RUN_DIR=/run/insula
IMAGE_DIR="$VAR_DIR/images"
# A Python of our own, with the official Kubernetes client, for the tests.
PYTHON_DIR="$VAR_DIR/python"
# Where Debian's containernetworking-plugins puts them.
CNI_BIN_DIR=/usr/lib/cni

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }

need_root() {
    [ "$(id -u)" = 0 ] || die "needs root; run: sudo $1"
}

# install_packages PACKAGE..: those that are not there yet.
install_packages() {
    local wanted=() package apt=(apt-get -o DPkg::Lock::Timeout=600 -q -y)
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
            wanted+=("$package")
    done
    [ ${#wanted[@]} = 0 ] && return
    command -v apt-get >/dev/null ||
        die "this is no Debian machine: install these by hand, then run again: ${wanted[*]}"
    say "installing ${wanted[*]}"
    export DEBIAN_FRONTEND=noninteractive
    "${apt[@]}" update >/dev/null || say "apt-get update failed; trying with the lists at hand"
    "${apt[@]}" install --no-install-recommends "${wanted[@]}" >/dev/null && return
    # One at a time, so that the message names the one that failed.
    for package in "${wanted[@]}"; do
        "${apt[@]}" install --no-install-recommends "$package" >/dev/null ||
            die "cannot install package $package; see the lines above"
    done
}

# Succeeds where systemd is this machine's init and not merely installed.
has_systemd() { [ -d /run/systemd/system ]; }

# Succeeds if this root may lower an OOM score (CAP_SYS_RESOURCE, bit 24); inside containers and
# micro VMs it often may not, and then the runtime must not try.
may_lower_oom_score() {
    local effective
    effective=$(awk '/^CapEff:/ {print $2}' /proc/self/status)
    (( (16#$effective >> 24) & 1 ))
}

has_apparmor() { [ "$(cat /sys/module/apparmor/parameters/enabled 2>/dev/null)" = Y ]; }

not() { if "$@"; then echo false; else echo true; fi; }

# containerd_config ROOT STATE SOCKET CNI_CONF_DIR: our containerd configuration on stdout.
containerd_config() {
    cat <<CONFIG
# Written by Insula's install scripts; changes are overwritten.
version = 2
root = "$1"
state = "$2"
disabled_plugins = [
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.tracing",
]

[grpc]
  address = "$3"

[ttrpc]
  address = "$3.ttrpc"

[plugins."io.containerd.internal.v1.opt"]
  path = "$1/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/insula/pause:1"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  disable_apparmor = $(not has_apparmor)
  restrict_oom_score_adj = $(not may_lower_oom_score)
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$CNI_BIN_DIR"
    conf_dir = "$4"
CONFIG
}

# cni_config NETWORK BRIDGE CIDR MASQUERADE IPAM_DIR: a bridge network on stdout. The bridge owns the
# first address, so the machine and its pods reach each other directly.
cni_config() {
    cat <<CONFIG
{
  "cniVersion": "0.4.0",
  "name": "$1",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "$2",
      "isGateway": true,
      "ipMasq": $4,
      "hairpinMode": true,
      "ipam": {
        "type": "host-local",
        "dataDir": "$5",
        "ranges": [[{ "subnet": "$3" }]],
        "routes": [{ "dst": "0.0.0.0/0" }]
      }
    },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ]
}
CONFIG
}

# answers SOCKET: a containerd serves this socket.
answers() { [ -S "$1" ] && ctr -a "$1" version >/dev/null 2>&1; }

# start_detached CONFIG SOCKET PID_FILE LOG_FILE: starts containerd so that it survives this script,
# and waits until it answers.
start_detached() {
    local config=$1 socket=$2 pid_file=$3 log_file=$4 pid
    setsid containerd --config "$config" >>"$log_file" 2>&1 </dev/null &
    pid=$!
    echo "$pid" >"$pid_file"
    for _ in $(seq 300); do
        answers "$socket" && return 0
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    tail -n 5 "$log_file" >&2
    if kill -0 "$pid" 2>/dev/null; then
        kill "$pid"
        die "containerd did not answer at $socket within 30 s; its log is $log_file"
    fi
    die "containerd ended while starting; its log is $log_file"
}

# import_images SOCKET: makes our images known to the CRI plugin, if they are not yet.
import_images() {
    local archive name digest known
    known=$(ctr -a "$1" -n k8s.io images list | awk 'NR > 1 {print $1, $3}')
    for archive in "$IMAGE_DIR"/*.tar; do
        name=$(cat "${archive%.tar}.name")
        digest=$(cat "${archive%.tar}.digest")
        if ! grep -qxF "$name $digest" <<<"$known"; then
            ctr -a "$1" -n k8s.io images import "$archive" >/dev/null ||
                die "cannot import $archive into the containerd at $1"
        fi
    done
}
