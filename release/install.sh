#!/bin/sh
# Install at the pinned versions; `make` and the Dockerfile call it.
#
#   release/install.sh PYTHON WHAT ...     for example .venv/bin/python --editable '.[test]'
#
# Paths are taken from the root of the repository. uv installs several times faster than pip and takes
# the CPU build of torch where there is no GPU. It does not read pip's configuration, so pip installs
# where there is one, and where uv is missing or fails. UV= (empty) leaves uv out.
set -eu
cd "$(dirname "$0")/.."
python=$1
shift
uv=${UV-$(command -v uv || true)}
if [ -n "$uv" ] && [ -z "$("$python" -m pip config list 2>/dev/null)" ] && "$uv" pip install \
    --quiet --python "$python" --torch-backend auto --constraint constraints.txt "$@"; then
    echo "Installed by uv"
else
    "$python" -m pip install --quiet --constraint constraints.txt "$@"
    echo "Installed by pip"
fi
