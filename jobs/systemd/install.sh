#!/bin/bash
# Install the unit that runs sweeps as a service of the machine.
set -euo pipefail
if [ "${1:-}" = "-h" ] || [ $# -ne 3 ]; then
    echo "usage: install.sh FOLDER ENVIRONMENT USER    such as /srv/parts /opt/adray anna; then"
    echo "       systemctl start adray@NAME            runs FOLDER/NAME.yaml as USER; journalctl -fu adray@NAME shows it"
    echo "       systemctl enable adray@NAME           continues it after each start of the machine"
    [ "${1:-}" = "-h" ] && exit 0 || exit 2
fi
folder="$1" environment="$2" user="$3"
if [ ! -x "$environment/bin/python" ]; then
    echo "error: $environment/bin/python is missing; make it with jobs/cluster/install_node.sh" >&2
    exit 2
fi
units="${ADRAY_UNITS:-/etc/systemd/system}"
sed -e "s|@FOLDER@|$folder|" -e "s|@ENVIRONMENT@|$environment|" -e "s|@USER@|$user|" \
    "$(dirname "$0")/adray@.service" > "$units/adray@.service"
systemctl daemon-reload
echo "installed $units/adray@.service; systemctl start adray@NAME runs $folder/NAME.yaml"
