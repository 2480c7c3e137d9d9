# Clouds of their own for those who measure. Sourced, never run, beside lib.sh; $INSULA is the binary.
# shellcheck shell=bash

# machine: where and when.
machine() {
    date -u +"%Y-%m-%d %H:%M UTC"
    uname -srm
    grep -m1 "model name" /proc/cpuinfo
    echo "$(nproc) processors, load $(cut -d' ' -f1-3 /proc/loadavg) before"
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

# cloud WITHOUT [ARGUMENTS..]: one without these parts, in $data. Its process is $cloud.
cloud() {
    local without=$1
    shift
    data=$(mktemp -d) running=
    trap end EXIT
    begin cloud "$INSULA" up --data-dir "$data" --listen 127.0.0.1:0 --without "$without" "$@"
    cloud=$begun
    local n
    for n in $(seq 300); do
        grep -qs '^ready' "$data/cloud.out" && return
        sleep 0.2
    done
    cat "$data/cloud.log"
    return 1
}
