#!/bin/bash
# End the Ray that start_head.sh or start_worker.sh started on this node, under this user.
set -euo pipefail
if [ "${1:-}" = "-h" ]; then
    echo "usage: stop.sh    ends all Ray processes of this user on this node, also those of a sweep that runs"
    exit 0
fi
ray stop --grace-period 10
