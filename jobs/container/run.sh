#!/bin/bash
# Run a command of adray in the container, on a folder that holds all that it reads and writes.
set -euo pipefail
if [ "${1:-}" = "-h" ] || [ $# -lt 2 ]; then
    echo "usage: run.sh FOLDER COMMAND ...    such as run.sh /srv/parts sweep sweep.yaml; paths count from FOLDER"
    echo "ADRAY_SHM is the size of /dev/shm (default: 2g). Docker's own 64 MB are too small: Ray keeps its objects there"
    echo "(200 MB), and loader processes hand over their batches through it."
    echo "ADRAY_GPUS is all, none, or a list such as 0,1 (default: all where nvidia-smi finds one)."
    [ "${1:-}" = "-h" ] && exit 0 || exit 2
fi
. "$(dirname "$0")/engine.sh"
folder="$(cd "$1" && pwd)"
shift

gpus="${ADRAY_GPUS:-$(nvidia-smi -L > /dev/null 2>&1 && echo all || echo none)}"
devices=()
if [ "$gpus" != none ]; then
    case "$ENGINE" in
        *podman) for gpu in ${gpus//,/ }; do devices+=(--device "nvidia.com/gpu=$gpu"); done ;;
        *) [ "$gpus" = all ] && devices=(--gpus all) || devices=(--gpus "\"device=$gpus\"") ;;
    esac
fi

# Sweeps in and out of containers see each other's leases of GPUs.
leases="${ADRAY_LEASES:-/tmp/adray-leases}"
if [ ! -d "$leases" ]; then mkdir -m 1777 "$leases"; fi

user=(--user "$(id -u):$(id -g)")
case "$ENGINE" in *podman) user+=(--userns=keep-id) ;; esac
exec "$ENGINE" run --rm --init --network=none --shm-size="${ADRAY_SHM:-2g}" --ulimit nofile=65536 "${user[@]}" \
    "${devices[@]}" --volume "$leases:/tmp/adray-leases" --volume "$folder:$folder" --workdir "$folder" adray "$@"
