#!/bin/bash
# Whether a bundle runs in a clean environment of each Python that is named, with the packages of the line alone.
# Needs a package index, as every `pip install` does.
set -euo pipefail
if [ $# -lt 3 ] || [ "$1" = "-h" ]; then
    echo "usage: line_pythons.sh BUNDLE IMAGES PYTHON [PYTHON ...]"
    exit 0
fi
bundle=$(realpath "$1")
images=$(realpath "$2")
shift 2
project=$(realpath "$(dirname "$0")/..")
place=$(mktemp -d)
server=""
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; rm -rf "$place"' EXIT

for python in "$@"; do
    "$python" -m venv "$place/env"
    run="$place/env/bin/python"
    "$run" -m pip install --quiet numpy Pillow onnxruntime starlette uvicorn python-multipart watchdog PyYAML
    "$run" -m pip install --quiet --no-deps "$project"
    cd "$place"
    "$run" -c 'import sys, importlib.util as u; sys.exit(u.find_spec("torch") is not None)'
    "$run" -m adray doctor "$bundle" >doctor.txt
    "$run" -m adray predict "$bundle" "$images" --out judged >predict.txt || [ $? = 1 ]
    "$run" -m adray watch "$images" --bundle "$bundle" --out watched --once --maps none >watch.txt
    "$run" -m adray serve "$bundle" --port 0 >serve.txt &
    server=$!
    "$run" - <<'PROGRAM'
import json, re, time, urllib.request

while "http" not in (said := open("serve.txt").read()):
    time.sleep(0.1)
address = re.search(r"http://\S+/", said)[0]
for _ in range(100):
    try:
        health = json.load(urllib.request.urlopen(f"{address}health"))
        break
    except OSError:
        time.sleep(0.1)
scores = {json.loads(line)["pred_score"] for line in open("judged/predictions.jsonl")}
watched = {json.loads(line)["pred_score"] for line in open("watched/results.jsonl")}
assert scores == watched, (scores, watched)
image = json.loads(open("judged/predictions.jsonl").readline())
body = open(image["image"], "rb").read()
request = urllib.request.Request(f"{address}predict", body, {"Content-Type": "image/png"})
answer = json.load(urllib.request.urlopen(request))
assert answer["results"][0]["pred_score"] == image["pred_score"], answer
PROGRAM
    kill "$server"
    wait "$server" 2>/dev/null || true
    server=""
    echo "$("$run" -V): $(tail -1 doctor.txt); $(wc -l <judged/predictions.jsonl) images, the same by predict, watch and serve"
    cd /
    rm -rf "${place:?}"/*
done
