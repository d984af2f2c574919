#!/usr/bin/env bash
# Runs a command that outlives the connection it was started over.
set -euo pipefail

usage="usage: launch/detached.sh [--dry-run] NAME COMMAND [ARGUMENT...]

Starts COMMAND in the background, cut off from the terminal, shows what it
prints (NAME.log) until it ends, and ends with its status. Called again with
the same NAME it starts nothing, but waits for the same command in the same
way: \`gcloud ... ssh\` repeats a command whose connection was lost. The
command's process id is in NAME.pid. Status 2: a mistake in the options.
--dry-run prints the command."

dry_run=false
case "${1-}" in
  --help) echo "$usage" && exit ;;
  --dry-run) dry_run=true && shift ;;
  -*) echo "error: $1: no such option; --help shows them" >&2 && exit 2 ;;
esac
if (($# < 2)); then
  echo "error: NAME and COMMAND: got $# words, needed are both" >&2
  exit 2
fi
name=$1
shift
if "$dry_run"; then
  printf '%q ' "$@"
  echo
  exit
fi

mkdir -p "$(dirname "$name")"
if (set -o noclobber && : >"$name.started") 2>/dev/null; then
  : >"$name.log"
  # The status appears whole, and after the last line of the log.
  # shellcheck disable=SC2016
  setsid bash -c '
    name=$1 && shift
    "$@" >"$name.log" 2>&1 &
    echo "$!" >"$name.new" && mv "$name.new" "$name.pid"
    status=0
    wait "$!" || status=$?
    echo "$status" >"$name.new" && mv "$name.new" "$name.status"
  ' detached "$name" "$@" </dev/null >/dev/null 2>&1 &
fi
until [[ -e "$name.pid" ]]; do sleep 0.1; done
tail -n +1 --follow --pid="$(<"$name.pid")" --sleep-interval=0.2 "$name.log"
for _ in {1..50}; do # the status comes just after the process has gone
  if [[ -e "$name.status" ]]; then exit "$(<"$name.status")"; fi
  sleep 0.1
done
echo "error: $name: the command is gone and left no status" >&2
exit 1
