#!/usr/bin/env bash
# Runs hawis_jax as several processes on this machine, as it would on as many.
set -euo pipefail

usage="usage: launch/local_multiprocess.sh [--processes=N] [--devices=D]
  [--port=P] [--dry-run] -- FLAGS

Starts N (2) processes of hawis_jax.main with FLAGS, each with D (4) CPU
devices; the first listens on port P of localhost (a free one). Ends with status
0 where all do; when one fails, the others are killed and its status is
returned. SIGTERM and Ctrl-C are passed on, as SIGTERM: they save, and all end
with status 75; a second Ctrl-C kills them.
--dry-run prints the commands. The Python that runs is \$PYTHON (python).

  launch/local_multiprocess.sh -- --config configs/digits.py"

processes=2 devices=4 port="" dry_run=false
while (($#)); do
  case "$1" in
    --processes=*) processes=${1#*=} ;;
    --devices=*) devices=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --dry-run) dry_run=true ;;
    --help) echo "$usage" && exit ;;
    --) shift && break ;;
    *) echo "$1: no such option; $usage" >&2 && exit 2 ;;
  esac
  shift
done
if (($# == 0)); then
  echo "no FLAGS; $usage" >&2
  exit 2
fi
python=${PYTHON:-python}
if [[ -z "$port" ]]; then
  port=$("$python" -c 'import socket
with socket.socket() as s:
  s.bind(("localhost", 0))
  print(s.getsockname()[1])')
fi

pids=()
# Ctrl-C doesn't reach what bash starts in the background; a second one ends me.
trap 'trap - INT; kill -TERM "${pids[@]}" 2>/dev/null || true' INT
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM
# Hard: jax catches SIGTERM, and a process may wait for one that is gone.
trap 'kill -KILL "${pids[@]}" 2>/dev/null || true' EXIT
for ((id = 0; id < processes; id++)); do
  command=(
    env JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$devices"
    "$python" -m hawis_jax.main "$@" --distributed
    "--coordinator_address=localhost:$port"
    "--num_processes=$processes" "--process_id=$id"
  )
  if "$dry_run"; then
    printf '%q ' "${command[@]}"
    echo
  else
    "${command[@]}" &
    pids+=($!)
  fi
done
preempted=75 result=0
while ((${#pids[@]})); do
  status=0
  wait -n -p ended "${pids[@]}" || status=$?
  [[ -n "${ended:-}" ]] || continue # a signal came
  ((status == 0 || status == preempted)) || exit "$status"
  ((status == 0)) || result=$status
  for id in "${!pids[@]}"; do
    [[ "${pids[id]}" != "$ended" ]] || unset "pids[$id]"
  done
done
exit "$result"
