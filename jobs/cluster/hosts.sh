#!/bin/bash
# A sweep on a bare list of hosts that this one reaches by ssh: Ray up everywhere, the sweep here, Ray down everywhere.
set -euo pipefail
if [ "${1:-}" = "-h" ] || [ $# -lt 2 ]; then
    echo "usage: hosts.sh HOSTS FILE [OPTIONS OF THE SWEEP]"
    echo "HOSTS is a file with an address a line, this machine's first. ssh must need no password, and the project, the"
    echo "data and the store must be at the same path on every host. The token is copied to them."
    [ "${1:-}" = "-h" ] && exit 0 || exit 2
fi
here="$(cd "$(dirname "$0")" && pwd)"
. "$here/common.sh"
mapfile -t hosts < <(sed 's/#.*//' "$1" | tr -d '\r' | awk 'NF { print $1 }')
if [ ${#hosts[@]} -eq 0 ]; then
    echo "error: $1 names no host; write an address a line, this machine's first" >&2
    exit 2
fi
shift
head="${hosts[0]}" others=("${hosts[@]:1}")
if [ ${#others[@]} -gt 0 ]; then
    need_address "$({ getent ahostsv4 "$head" || true; } | first_address)" "$head"
fi

# Run a command on a host as it would run here: same folder, same programs, same token.
on_host() {
    local host="$1"
    shift
    ssh -o BatchMode=yes "$host" "$(printf '%q ' env --chdir="$PWD" PATH="$PATH" ADRAY_TOKEN="$RAY_AUTH_TOKEN_PATH" "$@")"
}

stop_all() {
    for host in "${others[@]}"; do on_host "$host" "$here/stop.sh" || true; done
    "$here/stop.sh" || true
}
trap stop_all EXIT

"$here/start_head.sh" "$head"
for host in "${others[@]}"; do
    on_host "$host" bash -c 'umask 077; mkdir -p "$(dirname "$0")"; cat > "$0"' "$RAY_AUTH_TOKEN_PATH" < "$RAY_AUTH_TOKEN_PATH"
    on_host "$host" "$here/start_worker.sh" "$head" "$host"
done
"$here/submit.sh" "$head" "$@"
