# Read by the other scripts of this folder: what every node of a cluster sets before Ray starts.
# ADRAY_TOKEN is the file with the shared token, the same on every node, readable by its owner only.
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="${ADRAY_TOKEN:-$HOME/.adray/token}"
export RAY_USAGE_STATS_ENABLED=0 RAY_USAGE_STATS_REPORT_URL=http://127.0.0.1:9/
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
PORT="${ADRAY_PORT:-6379}"
# A small, known range, so that a firewall can name it.
PORTS=(--node-manager-port=6380 --object-manager-port=6381 --runtime-env-agent-port=6382
    --min-worker-port=20000 --max-worker-port=20999)

# Which cards this node has, so that trials can ask for large ones; empty without GPUs.
label_options() {
    local label
    label="$(python -m adray.sweep.cards)"
    if [ -n "$label" ]; then echo "--labels=$label"; fi
}

# Of the addresses that it reads, the first by which other nodes reach this one; empty where there is none.
first_address() {
    awk '{ for (i = 1; i <= NF; i++) if ($i ~ /^[0-9]+[.][0-9.]+$/ && $i !~ /^127[.]/ && !found++) print $i }'
}

# need_address ADDRESS NODE
need_address() {
    if [ -z "$1" ]; then
        echo "error: $2 knows only loopback addresses of itself, which other nodes do not reach; give its name its address on the network of the cluster, in /etc/hosts or DNS" >&2
        exit 2
    fi
}

need_token() {
    if [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then
        echo "error: $RAY_AUTH_TOKEN_PATH is missing; run start_head.sh on the head node, then copy its file here" >&2
        exit 2
    fi
    if [ -n "$(find "$RAY_AUTH_TOKEN_PATH" -perm /077)" ]; then
        echo "error: $RAY_AUTH_TOKEN_PATH can be read by others; run chmod 600 $RAY_AUTH_TOKEN_PATH" >&2
        exit 2
    fi
}
