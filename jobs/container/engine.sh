# Read by the other scripts of this folder: which program runs containers here.
ENGINE="${ADRAY_ENGINE:-$(command -v docker || command -v podman || true)}"
if [ -z "$ENGINE" ]; then
    echo "error: neither docker nor podman is here; install one, or name it with ADRAY_ENGINE" >&2
    exit 2
fi
