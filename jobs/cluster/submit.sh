#!/bin/bash
# Run a sweep on a cluster: through Ray's Jobs API when ADRAY_JOBS names it, else here, on the head node.
set -euo pipefail
if [ "${1:-}" = "-h" ] || [ $# -lt 2 ]; then
    echo "usage: submit.sh HEAD_ADDRESS FILE [OPTIONS OF THE SWEEP]"
    echo "Needs the project and the store at the same path on every node. It runs on this node, the head; or, so that it"
    echo "outlives this shell, as a job of Ray: start_head.sh with ADRAY_RAY_OPTIONS=--include-dashboard=true, then this"
    echo "with ADRAY_JOBS=http://127.0.0.1:8265, both with pip install 'ray[default]'."
    [ "${1:-}" = "-h" ] && exit 0 || exit 2
fi
. "$(dirname "$0")/common.sh"
need_token
head="$1" file="$2"
shift 2
command=(python -m adray.sweep "$file" --address "$head:$PORT" "$@")
if [ -n "${ADRAY_JOBS:-}" ]; then
    # A job begins in the folder where the head was started; the file and its paths are relative to this one.
    exec ray job submit --address "$ADRAY_JOBS" -- env --chdir="$PWD" "${command[@]}"
fi
exec "${command[@]}"
