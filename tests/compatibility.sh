#!/usr/bin/env bash
# Whether the built wheel works everywhere that it says: on each Python at hand, with the oldest and the newest
# OpenTelemetry, with the oldest of whatever it needs, with no extra, each one alone, and all. In each environment `compatibility_smoke.py` runs, warnings as
# errors. Environments are made in a temporary folder by uv, which must be there (`pip install uv`), as must a package
# index.
#
#   tests/compatibility.sh [WHEEL]     the wheel is built of the tree where none is given
#   PYTHON=python3.12                  for the extras (python3)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/trifle-compatibility.XXXXXX")
trap 'rm -rf "$work"' EXIT
uv=${UV:-uv}
python=${PYTHON:-python3}
extras="cli s3 receiver viewer postgres mongo celery rq dramatiq huey"
oldest=$(sed -n 's/^ *"opentelemetry-sdk>=\([0-9.]*\)",.*/\1/p' "$root/pyproject.toml")
export UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=1
unset PYTHONPATH VIRTUAL_ENV

wheel=${1:-}
if [ -z "$wheel" ]; then
    "$uv" build -q --wheel --out-dir "$work/dist" "$root"
    wheel=$(ls "$work"/dist/*.whl)
fi
cp "$root/tests/compatibility_smoke.py" "$work/"
cd "$work"

# An interpreter of that version: of pyenv, else on the path. A pyenv shim may be there and yet not run.
python_of_version() {
    local candidate
    for candidate in $(ls -d "$(pyenv root 2>/dev/null)/versions/$1".*/bin/python 2>/dev/null | sort -rV) "python$1"; do
        if [ "$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$1" ]; then
            echo "$candidate"
            return
        fi
    done
}

# try NAME PYTHON "EXTRAS" [REQUIREMENT...]: in a new environment, or in NAME where no PYTHON is named
try() {
    local name=$1 interpreter=$2 with=$3
    shift 3
    [ -z "$interpreter" ] || "$uv" venv -q --python "$interpreter" "$name"
    "$uv" pip install -q --python "$name/bin/python" "$wheel${with:+[${with// /,}]}" "$@"
    # shellcheck disable=SC2086 # each extra is a word
    "$name/bin/python" -W error compatibility_smoke.py $with || { echo "$name: does not work" >&2; exit 1; }
    rm -rf "$name"
}

# Likewise, while others are tried; as many at once as there are cores. `wait -n` fails with the one that failed.
running=0
start() {
    [ "$running" -lt "$(nproc)" ] || finish_one
    try "$@" &
    running=$((running + 1))
}
finish_one() {
    wait -n
    running=$((running - 1))
}

# The oldest of all that pyproject.toml allows. Newer Pythons have no wheels of it.
interpreter=$(python_of_version 3.10)
if [ -n "$interpreter" ]; then
    servers="cli s3 receiver viewer postgres mongo"
    "$uv" venv -q --python "$interpreter" lowest
    # shellcheck disable=SC2086 # each extra is an option
    "$uv" pip install -q --python lowest/bin/python --resolution lowest-direct -r "$root/pyproject.toml" \
        $(printf -- '--extra %s ' $servers)
    try lowest "" "$servers" --no-deps
fi
for version in 3.10 3.11 3.12 3.13 3.14; do
    interpreter=$(python_of_version "$version")
    if [ -z "$interpreter" ]; then
        echo "Python $version is not at hand: skipped"
        continue
    fi
    old=("opentelemetry-api==$oldest" "opentelemetry-sdk==$oldest" "opentelemetry-exporter-otlp==$oldest")
    start "$version-oldest" "$interpreter" "cli" "${old[@]}"
    start "$version-newest" "$interpreter" "cli"
done
for extra in "" $extras "$extras"; do
    start "extra-${extra// /-}" "$python" "$extra"
done
while [ "$running" -gt 0 ]; do finish_one; done
