#!/bin/bash
# Build the image from a folder of wheels, without a network.
set -euo pipefail
if [ "${1:-}" = "-h" ] || [ $# -lt 1 ]; then
    echo "usage: build.sh WHEELS [EXTRA ...]    WHEELS is made by jobs/cluster/make_wheelhouse.sh; extras: clip vlm onnx search"
    echo "ADRAY_ENGINE is docker or podman (default: what is there), ADRAY_BASE the base image (default: python:3.11-slim),"
    echo "which is on this machine: on a connected one 'docker pull' and 'docker save', then 'docker load' here."
    [ "${1:-}" = "-h" ] && exit 0 || exit 2
fi
here="$(cd "$(dirname "$0")" && pwd)"
. "$here/engine.sh"
wheels="$1"
shift
extras=$(IFS=,; echo "$*")
if ! ls "$wheels"/adray-*.whl > /dev/null 2>&1; then
    echo "error: $wheels holds no wheel of adray; make it with jobs/cluster/make_wheelhouse.sh $wheels" >&2
    exit 2
fi
exec "$ENGINE" build --network=none --pull=false --build-arg "BASE=${ADRAY_BASE:-python:3.11-slim}" \
    --build-arg "EXTRAS=$extras" --tag adray --file "$here/Dockerfile" "$wheels"
