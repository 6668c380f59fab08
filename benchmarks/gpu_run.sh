#!/usr/bin/env bash
# On a machine with a card and without network: install from the kit and run, in order of value.
#
#     benchmarks/gpu_run.sh KIT_FOLDER OUT_FOLDER [--small]
#
# KIT_FOLDER holds what benchmarks/gpu_kit.sh made; OUT_FOLDER is new and gets what gpu_run.py
# writes. All of it takes at most ten minutes. PYTHON names the interpreter that has torch (default
# python3). --small runs the same parts on the CPU with small models.
set -euo pipefail
began=$(date +%s)
here=$(cd "$(dirname "$0")" && pwd)
if [ $# -lt 2 ] || [ $# -gt 3 ] || { [ $# = 3 ] && [ "$3" != --small ]; }; then
    echo "usage: benchmarks/gpu_run.sh KIT_FOLDER OUT_FOLDER [--small]" >&2
    exit 2
fi
python=${PYTHON:-python3}
if [ ! -f "$1/SHA256SUMS" ]; then
    echo "failed: $1 holds no SHA256SUMS, expected the pieces that benchmarks/gpu_kit.sh makes" >&2
    exit 1
fi
if [ -e "$2" ] && [ -n "$(ls -A "$2")" ]; then
    echo "failed: $2 is not empty, expected a new folder; name another" >&2
    exit 1
fi
mkdir -p "$2"
out=$(cd "$2" && pwd)
cd "$1"
if ! sha256sum --quiet --check SHA256SUMS 2>"$out/log.txt"; then
    echo "failed: a piece of the kit is missing or not what it was; copy it again:" >&2
    cat "$out/log.txt" >&2
    exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat kit.*.part | tar -x -C "$work"
if compgen -G "$work/wheels/*.whl" >/dev/null; then
    # Beside the machine's packages, not among them, and none of the kit's needs is looked up.
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
        --disable-pip-version-check --target "$work/site" "$work"/wheels/*.whl 2>&1 |
        tee -a "$out/log.txt"
fi
export PYTHONPATH="$work/site:$here/.." PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
export UNSLOTH_DISABLE_STATISTICS=1 TOKENIZERS_PARALLELISM=false
"$python" "$here/gpu_run.py" "$work" "$out" --began "$began" "${@:3}"
