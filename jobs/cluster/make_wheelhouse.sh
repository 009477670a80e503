#!/bin/bash
# On a connected machine with the nodes' Python and kind of CPU: collect all wheels in a folder.
set -euo pipefail
if [ "${1:-}" = "-h" ] || [ $# -lt 1 ]; then
    echo "usage: make_wheelhouse.sh FOLDER [EXTRA ...]    extras: clip vlm onnx search"
    [ "${1:-}" = "-h" ] && exit 0 || exit 2
fi
folder="$1"
shift
cd "$(dirname "$0")/../.."
pip wheel --wheel-dir "$folder" -r requirements.lock
pip wheel --wheel-dir "$folder" --no-deps .
for extra in "$@"; do
    pip wheel --wheel-dir "$folder" --find-links "$folder" ".[$extra]"
done
