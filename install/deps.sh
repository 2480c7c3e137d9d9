#!/usr/bin/env bash
# Brings this machine to where Insula builds, runs and tests: system packages, a running containerd,
# the test images. Safe to run again, and quick when nothing is to do.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_root "make deps"

PACKAGES=(
    busybox-static ca-certificates containerd containernetworking-plugins curl etcd-client
    etcd-server gcc iproute2 iptables jq libc6-dev libprotobuf-dev make nftables openssl procps protobuf-compiler
    libfaketime python3-venv runc strace util-linux
)
SYSTEM_SOCKET=/run/containerd/containerd.sock

# Debian's kubernetes-client claims /usr/bin/kubectl, which a vendor's kubectl package owns where it
# is installed; so only where there is no kubectl at all.
install_kubectl() {
    command -v kubectl >/dev/null || install_packages kubernetes-client
}

start_containerd() {
    if ! ls /etc/cni/net.d/*.conf* >/dev/null 2>&1; then
        mkdir -p /etc/cni/net.d
        cni_config insula insula0 10.244.0.0/24 true /var/lib/cni/networks \
            >/etc/cni/net.d/10-insula.conflist
    fi
    answers "$SYSTEM_SOCKET" && return
    if has_systemd; then
        systemctl start containerd ||
            die "containerd does not start; see: journalctl -u containerd"
        return
    fi
    say "starting containerd; pid file $RUN_DIR/containerd.pid, log /var/log/insula/containerd.log"
    mkdir -p "$ETC_DIR" "$RUN_DIR" /var/log/insula
    containerd_config /var/lib/containerd /run/containerd "$SYSTEM_SOCKET" /etc/cni/net.d \
        >"$ETC_DIR/containerd.toml"
    start_detached "$ETC_DIR/containerd.toml" "$SYSTEM_SOCKET" "$RUN_DIR/containerd.pid" \
        /var/log/insula/containerd.log
}

# A containerd we did not configure names another sandbox image, which it would fetch from the
# network when the first pod starts. Without it at hand, ours serves under that name.
provide_sandbox_image() {
    local image
    has_systemd || return 0
    image=$(containerd config dump 2>/dev/null | sed -n 's/^ *sandbox_image = "\(.*\)"$/\1/p' | head -n 1)
    [ -n "$image" ] && [ "$image" != localhost/insula/pause:1 ] || return 0
    ctr -n k8s.io images list -q | grep -qxF "$image" ||
        ctr -n k8s.io images tag localhost/insula/pause:1 "$image" >/dev/null
}

# The official client library of another language, which the API is tested with.
install_python_client() {
    local wanted="kubernetes==37.*"
    "$PYTHON_DIR/bin/python" -c 'import kubernetes; assert kubernetes.__version__ > "37"' \
        2>/dev/null && return
    say "installing Python's $wanted"
    mkdir -p "$VAR_DIR"
    /usr/bin/python3 -m venv "$PYTHON_DIR"
    "$PYTHON_DIR/bin/pip" install --quiet --disable-pip-version-check "$wanted" ||
        die "cannot install Python's $wanted; see the lines above"
}

install_packages "${PACKAGES[@]}"
install_python_client
install_kubectl
"$INSTALL_DIR/images/build.sh" "$IMAGE_DIR"
start_containerd
import_images "$SYSTEM_SOCKET"
provide_sandbox_image
