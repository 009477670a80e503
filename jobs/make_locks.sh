#!/bin/bash
# Pin a tested set anew: requirements.lock for sites, requirements-dev.lock for what a developer needs besides.
# Needs uv (pip install uv). Names of packages as arguments are upgraded, --upgrade upgrades all; else pins stay.
set -euo pipefail
if [ "${1:-}" = "-h" ]; then
    echo "usage: make_locks.sh [--upgrade | PACKAGE ...]"
    exit 0
fi
cd "$(dirname "$0")/.."
options=(--generate-hashes --no-header --no-annotate --no-emit-index-url --python-version 3.11 --quiet)
upgrades=()
for name in "$@"; do
    if [ "$name" = --upgrade ]; then upgrades+=(--upgrade); else upgrades+=(--upgrade-package "$name"); fi
done
uv pip compile pyproject.toml "${options[@]}" "${upgrades[@]}" --output-file requirements.lock

# What the site's lock has is not repeated.
besides=()
while read -r name; do besides+=(--no-emit-package "$name"); done < <(grep -o '^[a-z0-9._-]*' requirements.lock | grep .)
uv pip compile pyproject.toml --extra dev --constraints requirements.lock "${options[@]}" "${upgrades[@]}" \
    "${besides[@]}" --output-file requirements-dev.lock
