#!/usr/bin/env bash
# Builds the images that need no registry, as OCI archives:
#   localhost/insula/busybox:1   static busybox, every applet linked, `sh` by default
#   localhost/insula/pause:1     what holds a pod's namespaces
# Usage: build.sh OUT_DIR. Quick when the archives are newer than what they are made from.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

case $(uname -m) in
    x86_64) ARCH=amd64 ;;
    aarch64) ARCH=arm64 ;;
    *) die "no images for machine type $(uname -m)" ;;
esac

# put FILE BLOBS: moves a file into the blob directory and prints `DIGEST SIZE`.
put() {
    local digest size
    digest=$(sha256sum <"$1" | cut -d' ' -f1)
    size=$(stat -c %s "$1")
    mv "$1" "$2/$digest"
    echo "$digest $size"
}

# archive ROOT_DIR NAME ENTRYPOINT_JSON CMD_JSON OUT: an OCI image layout with a single layer. Same
# input, same bytes.
archive() {
    local root=$1 name=$2 entrypoint=$3 cmd=$4 out=$5 work layer layer_size config config_size
    local manifest manifest_size
    work=$(mktemp -d -p "$SCRATCH")
    mkdir -p "$work/oci/blobs/sha256"

    tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$root" -cf "$work/layer" .
    read -r layer layer_size < <(put "$work/layer" "$work/oci/blobs/sha256")

    cat >"$work/config" <<JSON
{"architecture":"$ARCH","os":"linux","config":{"Entrypoint":$entrypoint,"Cmd":$cmd,"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"WorkingDir":"/"},"rootfs":{"type":"layers","diff_ids":["sha256:$layer"]},"history":[{"created_by":"insula"}]}
JSON
    read -r config config_size < <(put "$work/config" "$work/oci/blobs/sha256")

    cat >"$work/manifest" <<JSON
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:$config","size":$config_size},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:$layer","size":$layer_size}]}
JSON
    read -r manifest manifest_size < <(put "$work/manifest" "$work/oci/blobs/sha256")

    cat >"$work/oci/index.json" <<JSON
{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:$manifest","size":$manifest_size,"annotations":{"io.containerd.image.name":"$name","org.opencontainers.image.ref.name":"${name##*:}"},"platform":{"architecture":"$ARCH","os":"linux"}}]}
JSON
    echo '{"imageLayoutVersion":"1.0.0"}' >"$work/oci/oci-layout"
    echo "$name" >"${out%.tar}.name"
    echo "sha256:$manifest" >"${out%.tar}.digest"
    tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$work/oci" -cf "$out.new" .
    mv "$out.new" "$out"
}

build_busybox() {
    local root="$SCRATCH/busybox" busybox
    busybox=$(command -v busybox) || die "busybox is missing; install the package busybox-static"
    ldd "$busybox" >/dev/null 2>&1 && die "$busybox is not static; install the package busybox-static"
    mkdir -p "$root"/{bin,etc,root,var/run,dev,proc,sys,home}
    install -d -m 1777 "$root/tmp" "$root/var/tmp"
    install -m 755 "$busybox" "$root/bin/busybox"
    local applet
    for applet in $("$busybox" --list); do
        [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
    done
    printf '%s\n' 'root:x:0:0:root:/root:/bin/sh' 'daemon:x:1:1:daemon:/:/bin/false' \
        'nobody:x:65534:65534:nobody:/:/bin/false' >"$root/etc/passwd"
    printf '%s\n' 'root:x:0:' 'daemon:x:1:' 'nogroup:x:65534:' >"$root/etc/group"
    archive "$root" localhost/insula/busybox:1 null '["sh"]' "$OUT/busybox.tar"
}

build_pause() {
    local root="$SCRATCH/pause"
    mkdir -p "$root"
    gcc -Os -static -s -Wall -Werror -o "$root/pause" "$INSTALL_DIR/images/pause.c" ||
        die "cannot compile pause.c; install the packages gcc and libc6-dev"
    archive "$root" localhost/insula/pause:1 '["/pause"]' null "$OUT/pause.tar"
}

[ $# = 1 ] || die "usage: build.sh OUT_DIR"
OUT=$1
mkdir -p "$OUT"
# Test runs start side by side; one of them builds.
exec 9>"$OUT/.lock"
flock 9
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
umask 022

# stale OUT FILE...: the archive is absent, or older than one of the files it is made from.
stale() {
    local out=$1 input
    shift
    [ -s "$out" ] && [ -s "${out%.tar}.name" ] && [ -s "${out%.tar}.digest" ] || return 0
    for input in "$@"; do [ "$input" -nt "$out" ] && return 0; done
    return 1
}
stale "$OUT/busybox.tar" "$(command -v busybox || true)" && build_busybox
stale "$OUT/pause.tar" "$INSTALL_DIR/images/pause.c" && build_pause
exit 0
