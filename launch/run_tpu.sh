#!/usr/bin/env bash
# Runs hawis_jax.main on all workers of a Cloud TPU slice.
# shellcheck disable=SC2016 # what is in single quotes expands on the workers
set -euo pipefail

usage="usage: launch/run_tpu.sh NAME --zone=ZONE [--setup=COMMAND] [--dry-run]
         [--stop | -- --workdir=FOLDER FLAGS]

Copies hawis_jax, configs and launch to all workers of the slice NAME,
installs them, runs COMMAND there (it may mount a share), then hawis_jax.main
with FLAGS; all must see FOLDER, e.g. gs://... The run outlives the connection;
--stop tells it to save and end. Ends with its status, or 75 where the machines
are gone; 2: a mistake. --dry-run prints the commands."

die() { echo "error: $1" >&2 && exit 2; }
run() { if "$dry_run"; then echo "${*@Q}"; else "$@"; fi; }
tpu() { run gcloud compute tpus tpu-vm "$@" "--zone=$zone" --worker=all; }
name="" zone="" setup=: stopping=false dry_run=false
while (($#)); do
  case "$1" in
    --zone=*) zone=${1#*=} ;;
    --setup=*) setup=${1#*=} ;;
    --stop) stopping=true ;;
    --dry-run) dry_run=true ;;
    --help) echo "$usage" && exit ;;
    --) shift && break ;;
    -*) die "$1: no such option" ;;
    *) name+=${name:+ }$1 ;;
  esac
  shift
done
[[ "$zone" && "$name" =~ ^[a-z][-a-z0-9]*$ ]] ||
  die "NAME, --zone: got '$name', '$zone', needed are such as tpu, us-west4-a"
pids='pids=$(for f in hawis_jax_runs/*.pid; do [ -e "${f%pid}status" ] ||
  cat "$f"; done 2>/dev/null);'
stop="$pids"' [ -z "$pids" ] || kill $pids'
if "$stopping"; then tpu ssh "$name" --command="$stop" && exit; fi
[[ " $*" == *" --workdir="* ]] || die "--workdir=FOLDER: missing from FLAGS"

archive=$(mktemp -d)/hawis_jax.tgz
trap 'rm -r "${archive%/*}"' EXIT
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tar -czf "$archive" hawis_jax configs launch LICENSE ./*.{md,cfg,toml,txt}
tpu scp "$archive" "$name:"
# The machines' own Python is older than 3.11.
tpu ssh "$name" --command="$pids"' ! kill -0 $pids 2>/dev/null ||
  { echo "error: a run is going on; --stop ends it" >&2; exit 2; }
set -e; rm -rf hawis_jax; mkdir hawis_jax; cd hawis_jax; tar xf ../hawis_jax.tgz
python3 -m pip install -q --user uv -c constraints.txt; env=~/hawis_venv
uv=~/.local/bin/uv; $uv venv -q --allow-existing --python=3.11 $env
$uv pip install -q -p $env/bin/python -c constraints.txt -e ".[tpu,gcs]"
'"$setup"
# gcloud repeats a command whose connection was lost: the name finds it again.
command=(launch/detached.sh "../hawis_jax_runs/$(date +%s%N)"
  env PYTHONUNBUFFERED=1 ../hawis_venv/bin/python -m hawis_jax.main "$@")
run="cd hawis_jax && ${command[*]@Q} --distributed" status=0
tpu ssh "$name" --command="$run" || status=$?
((status == 0 || status == 2)) || gcloud compute tpus tpu-vm describe "$name" \
  "--zone=$zone" '--format=value(state)' | grep -qx READY || status=75
exit "$status"
