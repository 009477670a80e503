#!/bin/bash
# What follows from a new model, in one command: hold its configurations to the contract, record their scores, and make
# the example of its search space, its sections of the documents and all tables.
# First its file, its rows in MODEL_SPECS and its lines in tests/tiny.py (docs/en/07-contributing.md, "A model").
set -euo pipefail
if [ $# = 0 ] || [ "$1" = "-h" ]; then
    echo "usage: add_model.sh CONFIGURATION ..."
    exit 0
fi
cd "$(dirname "$0")/.."

# -k takes every test with the name in it, also of a configuration whose name begins so; recorded are only those named.
names=$(printf ' or %s' "$@")
ADRAY_WRITE_GOLDEN="$*" python -m pytest -n 0 tests/test_models_contract.py -k "${names# or }"
python docs/make_tables.py
