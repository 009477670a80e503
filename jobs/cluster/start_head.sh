#!/bin/bash
# Start Ray's head on this node.
set -euo pipefail
if [ "${1:-}" = "-h" ] || [ $# -ne 1 ]; then
    echo "usage: start_head.sh ADDRESS    the address of this node on the network of the cluster, such as 10.0.0.1"
    echo "Makes the shared token if there is none ($HOME/.adray/token, or \$ADRAY_TOKEN); copy it to every node."
    [ "${1:-}" = "-h" ] && exit 0 || exit 2
fi
. "$(dirname "$0")/common.sh"
if [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then
    mkdir -p "$(dirname "$RAY_AUTH_TOKEN_PATH")"
    (umask 077 && python -c 'import secrets; print(secrets.token_hex(32))' > "$RAY_AUTH_TOKEN_PATH")
    echo "made $RAY_AUTH_TOKEN_PATH; copy it to every node, readable by its owner only"
fi
need_token
ray start --head --node-ip-address="$1" --port="$PORT" "${PORTS[@]}" --include-dashboard=false \
    --disable-usage-stats $(label_options) ${ADRAY_RAY_OPTIONS:-}
echo "join from other nodes: jobs/cluster/start_worker.sh $1 THEIR_ADDRESS"
echo "then here: RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$RAY_AUTH_TOKEN_PATH python -m adray.sweep FILE --address $1:$PORT"
