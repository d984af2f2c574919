#!/usr/bin/env bash
# Runs hawis_jax as several processes on this machine, as it would on as many.
set -euo pipefail

usage="usage: launch/local_multiprocess.sh [--processes=N] [--devices=D]
         [--port=P] [--dry-run] -- FLAGS

Starts N (2) processes of hawis_jax.main with FLAGS, each with D (4) CPU
devices; the first listens on port P of localhost (a free one). When one fails,
the others are killed and its status is returned. SIGTERM and Ctrl-C are passed
on: they save and end with status 75; a second Ctrl-C kills them. --dry-run
prints the commands. The Python that runs is \$PYTHON (python)."

die() { echo "error: $1" >&2 && exit 2; }

processes=2 devices=4 port="" dry_run=false
while (($#)); do
  case "$1" in
    --processes=* | --devices=* | --port=*)
      [[ "${1#*=}" =~ ^[1-9][0-9]*$ ]] ||
        die "${1%%=*}: got '${1#*=}', allowed are whole numbers from 1 on"
      declare "${1:2}"
      ;;
    --dry-run) dry_run=true ;;
    --help) echo "$usage" && exit ;;
    --) shift && break ;;
    *) die "$1: no such option; --help shows them" ;;
  esac
  shift
done
(($#)) || die "FLAGS: missing, needed is at least -- --config=FILE"
port=${port:-$("${PYTHON:-python}" -c 'import socket
with socket.create_server(("localhost", 0)) as s: print(s.getsockname()[1])')}

pids=() preempted=75 result=0
# Ctrl-C doesn't reach what bash starts in the background; a second one ends me.
trap 'trap - INT; kill -TERM "${pids[@]}" 2>/dev/null || true' INT
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM
# Hard: jax catches SIGTERM, and a process may wait for one that is gone.
trap 'kill -KILL "${pids[@]}" 2>/dev/null || true' EXIT
for ((id = 0; id < processes; id++)); do
  command=(env JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$devices"
    "${PYTHON:-python}" -m hawis_jax.main "$@" --distributed
    "--coordinator_address=localhost:$port"
    "--num_processes=$processes" "--process_id=$id")
  if "$dry_run"; then echo "${command[*]@Q}" && continue; fi
  "${command[@]}" &
  pids[$!]=$!
done
while ((${#pids[@]})); do
  status=0
  wait -n -p ended "${pids[@]}" || status=$?
  [[ "${ended-}" ]] || continue # a signal came
  ((status == 0 || status == preempted)) || exit "$status"
  ((status == 0)) || result=$status
  unset "pids[$ended]"
done
exit "$result"
