#!/bin/sh
# One unattended run: under a lock, with a log, compared with the last good run; old runs removed.
#
#   schedulers/nightly.sh [OPTION OF `finemem run` ...]
#
# Exit code: that of `finemem run`, 1 when a metric moved by more than FINEMEM_FAIL_OVER, 75 when
# the run before is still going on. Needs flock (util-linux).
#
#   FINEMEM            the command               (default: that of .venv here, else of PATH)
#   FINEMEM_RUNS_DIR   where runs, lock and log are   (default: data/runs)
#   FINEMEM_FAIL_OVER  largest change of a metric     (default: 5%)
#   FINEMEM_KEEP       number of runs that stay       (default: 14)
#   FINEMEM_TIMEOUT    seconds of a run               (default: 7200)
set -u
cd "$(dirname "$(readlink -f "$0")")/.." || exit 2
[ -x .venv/bin/finemem ] && finemem=$PWD/.venv/bin/finemem || finemem=finemem
finemem=${FINEMEM:-$finemem}
export FINEMEM_RUNS_DIR="${FINEMEM_RUNS_DIR:-$PWD/data/runs}"
mkdir -p "$FINEMEM_RUNS_DIR" || exit 2

exec 9>>"$FINEMEM_RUNS_DIR/nightly.lock" || exit 2
if ! flock --nonblock 9; then
    echo "nightly.sh: the run before is still going on, see $FINEMEM_RUNS_DIR/nightly.log" >&2
    exit 75
fi
log=$FINEMEM_RUNS_DIR/nightly.log
touch "$log" || exit 2
if [ "$(wc -c <"$log")" -gt 1000000 ]; then
    mv "$log" "$log.1"
fi
exec >>"$log" 2>&1

run=nightly-$(date -u +%Y%m%d-%H%M%S)-$$
before=$("$finemem" list | awk '$3 == "ok" && $2 ~ /^nightly-/ { run = $2 } END { print run }')
echo "== $run"
"$finemem" run --run-id "$run" --timeout "${FINEMEM_TIMEOUT:-7200}" "$@" &
child=$!
trap 'kill -TERM "$child" 2>/dev/null' HUP INT TERM  # so that it can end its manifest
wait "$child"
code=$?
while [ "$code" -gt 128 ] && kill -0 "$child" 2>/dev/null; do
    wait "$child"
    code=$?
done
if [ "$code" -eq 0 ] && [ -n "$before" ]; then
    "$finemem" diff "$before" "$run" --fail-over "${FINEMEM_FAIL_OVER:-5%}"
    code=$?
fi
if [ "$code" -le 3 ]; then
    "$finemem" clean --keep "${FINEMEM_KEEP:-14}"
fi
echo "== $run: exit code $code"
exit "$code"
