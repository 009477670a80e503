#!/bin/bash
# On a node without internet: make an environment from a folder of wheels, and look whether it works.
set -euo pipefail
if [ "${1:-}" = "-h" ] || [ $# -lt 2 ]; then
    echo "usage: install_node.sh WHEELS ENVIRONMENT [EXTRA ...]    such as /mnt/share/wheels /opt/adray search"
    [ "${1:-}" = "-h" ] && exit 0 || exit 2
fi
wheels="$1" environment="$2"
shift 2
extras=$(IFS=,; echo "$*")
python3 -m venv "$environment"
"$environment/bin/pip" install --no-index --find-links "$wheels" "adray${extras:+[$extras]}"
"$environment/bin/python" -m adray models > /dev/null
echo "installed $("$environment/bin/python" -c 'import adray; print(adray.__version__)') in $environment"
