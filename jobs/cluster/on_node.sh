#!/bin/bash
# What a batch queue runs on every node of a job: Ray up, the sweep on the head, Ray down.
set -euo pipefail
if [ "${1:-}" = "-h" ] || [ $# -lt 3 ]; then
    echo "usage: on_node.sh HEAD_ADDRESS NODES FILE [OPTIONS OF THE SWEEP]    called by sweep.slurm and sweep.pbs"
    [ "${1:-}" = "-h" ] && exit 0 || exit 2
fi
. "$(dirname "$0")/common.sh"
need_token
address="$1:$PORT" nodes="$2"
shift 2
# Nodes of a queue do not start at the same second; Ray itself waits for half a minute.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
exec ray symmetric-run --address "$address" --min-nodes "$nodes" -- python -m adray.sweep "$@" --address "$address"
