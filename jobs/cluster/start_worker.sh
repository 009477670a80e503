#!/bin/bash
# Join this node to a cluster.
set -euo pipefail
if [ "${1:-}" = "-h" ] || [ $# -ne 2 ]; then
    echo "usage: start_worker.sh HEAD_ADDRESS OWN_ADDRESS    such as 10.0.0.1 10.0.0.2"
    [ "${1:-}" = "-h" ] && exit 0 || exit 2
fi
. "$(dirname "$0")/common.sh"
need_token
ray start --address="$1:$PORT" --node-ip-address="$2" "${PORTS[@]}" --disable-usage-stats $(label_options) ${ADRAY_RAY_OPTIONS:-}
