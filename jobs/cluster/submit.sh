#!/bin/bash
# Run a sweep on a cluster: through Ray's Jobs API where ray[default] is installed, else here, on the head node.
set -euo pipefail
if [ "${1:-}" = "-h" ] || [ $# -lt 2 ]; then
    echo "usage: submit.sh HEAD_ADDRESS FILE [OPTIONS OF THE SWEEP]"
    echo "Needs the project and the store at the same path on every node. With \$ADRAY_JOBS=http://127.0.0.1:8265 the"
    echo "Jobs API of a head that was started with a dashboard takes it; without, it runs on this node, the head."
    [ "${1:-}" = "-h" ] && exit 0 || exit 2
fi
. "$(dirname "$0")/common.sh"
need_token
head="$1" file="$2"
shift 2
command=(python -m adray.sweep "$file" --address "$head:$PORT" "$@")
if [ -n "${ADRAY_JOBS:-}" ] && python -c 'import ray.job_submission' 2>/dev/null; then
    exec ray job submit --address "$ADRAY_JOBS" -- "${command[@]}"
fi
exec "${command[@]}"
