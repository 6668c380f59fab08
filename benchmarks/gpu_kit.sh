#!/usr/bin/env bash
# Collect, on a machine with a package index, what a card's machine without network needs:
#
#     benchmarks/gpu_kit.sh PYTHON_VERSION [FOLDER]     e.g. benchmarks/gpu_kit.sh 3.12
#
# gpu_machine.toml says what that machine holds already and why what is left out is left out.
# FOLDER (default: kit) then holds kit.NN.part, each small enough to be carried in one call beside
# this repository, SHA256SUMS and kit.json. Gather them in one folder there, one call each if need
# be, and give that folder to benchmarks/gpu_run.sh.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: benchmarks/gpu_kit.sh PYTHON_VERSION [FOLDER], e.g. 3.12" >&2
    exit 2
fi
python=$here/../.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" "$here/gpu_kit.py" "$1" "${2:-kit}"
