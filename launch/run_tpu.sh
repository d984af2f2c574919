#!/usr/bin/env bash
# Runs hawis_jax.main on all workers of a Cloud TPU slice; fetches the results.
set -euo pipefail

usage="usage: launch/run_tpu.sh NAME --zone=ZONE --bucket=gs://BUCKET[/FOLDER]
  [--run=RUN] [--results=FOLDER] [--retries=N] [--dry-run] -- FLAGS
       launch/run_tpu.sh NAME --zone=ZONE --nfs=HOST:/SHARE [as above]
       launch/run_tpu.sh NAME --zone=ZONE --stop [--dry-run]

Copies the tracked files of this checkout to all workers of the slice NAME (see
create_tpu.sh), installs them with Python 3.11, and runs hawis_jax.main on all
workers with FLAGS and the work directory RUN (NAME by default) in the bucket,
or in the NFS share, which is mounted on /mnt/hawis_jax. Then it fetches
configuration, metrics, results and report, without checkpoints, to FOLDER
(runs/RUN).

The run doesn't depend on the connection. --stop tells it to save and end.

Ends with the run's status: 0 done; 2 a mistake in the options or the run's
input; 75 told to stop and saved, or the machines are gone: make them anew with
create_tpu.sh and call this again. While the machines are there, a run that
ended with 75 is started again, up to N (0) times. --dry-run prints the
commands."

die() { # MESSAGE
  echo "error: $1" >&2
  exit 2
}

name="" zone="" nfs="" bucket="" folder="" results=""
retries=0 stop=false dry_run=false
while (($#)); do
  case "$1" in
    --zone=*) zone=${1#*=} ;;
    --nfs=*) nfs=${1#*=} ;;
    --bucket=*) bucket=${1#*=} ;;
    --run=*) folder=${1#*=} ;;
    --results=*) results=${1#*=} ;;
    --retries=*) retries=${1#*=} ;;
    --stop) stop=true ;;
    --dry-run) dry_run=true ;;
    --help) echo "$usage" && exit ;;
    --) shift && break ;;
    -*) die "$1: no such option; --help shows them" ;;
    *)
      [[ -z "$name" ]] || die "$1: got a second NAME, allowed is one"
      name=$1
      ;;
  esac
  shift
done
[[ "$name" =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
  die "NAME: got '$name', allowed are a-z, 0-9 and -, from a letter on"
[[ "$zone" ]] || die "--zone: missing, needed is one such as us-west4-a"

run() { # COMMAND...
  if "$dry_run"; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

on() { # WORKER COMMAND, a line of shell
  run gcloud compute tpus tpu-vm ssh "$name" "--zone=$zone" "--worker=$1" \
    "--command=$2"
}

# shellcheck disable=SC2016
each_run='for pid in hawis_jax_runs/*.pid; do
  [ -e "$pid" ] && ! [ -e "${pid%pid}status" ] || continue'
if "$stop"; then
  # shellcheck disable=SC2016
  on all "$each_run"'
  kill -TERM "$(cat "$pid")" || true
done'
  exit
fi

folder=${folder:-$name}
results=${results:-runs/$folder}
if [[ "$bucket" ]]; then
  [[ -z "$nfs" ]] || die "--nfs: got '$nfs', allowed is none with --bucket"
  [[ "$bucket" =~ ^gs://[a-z0-9][-a-z0-9_.]+(/[-A-Za-z0-9_./]*)?$ ]] ||
    die "--bucket: got '$bucket', needed is gs://BUCKET[/FOLDER]"
else
  [[ "$nfs" =~ ^[^:/]+:/([^/]|$) ]] ||
    die "--nfs: got '$nfs', needed is HOST:/SHARE, as of Filestore, or --bucket"
fi
[[ "$folder" =~ ^[A-Za-z0-9_][-A-Za-z0-9_./]*$ && "$folder" != *..* ]] ||
  die "--run: got '$folder', allowed is a relative path of -A-Za-z0-9_./"
[[ "$retries" =~ ^[0-9]+$ ]] ||
  die "--retries: got '$retries', allowed is a whole number"
(($#)) || die "FLAGS: missing, needed is at least -- --config=FILE"
for flag in "$@"; do
  case "$flag" in
    --workdir | --workdir=*) die "--workdir: is set by --run, now $folder" ;;
  esac
done

mount=/mnt/hawis_jax
workdir=$mount/$folder
[[ -z "$bucket" ]] || workdir=${bucket%/}/$folder
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
checkout=$(dirname "${BASH_SOURCE[0]}")/..

install() {
  git -C "$checkout" ls-files -z >"$scratch/files"
  run tar --create --gzip --file="$scratch/hawis_jax.tgz" \
    --directory="$checkout" --null --files-from="$scratch/files"
  run gcloud compute tpus tpu-vm scp "$scratch/hawis_jax.tgz" "$name:" \
    "--zone=$zone" --worker=all
  # What all workers need to see the work directory.
  local share=:
  [[ "$bucket" ]] || share="if ! mountpoint -q $mount; then
  sudo DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet \
-o DPkg::Lock::Timeout=300 nfs-common
  sudo mkdir -p $mount
  sudo mount -t nfs $(printf %q "$nfs") $mount
fi
sudo mkdir -p $workdir && sudo chown \$(id -u) $workdir"
  # The machines' own Python is older than 3.11.
  on all "set -e
$each_run
  if kill -0 \$(cat \$pid) 2>/dev/null; then
    echo 'error: a run is going on; --stop ends it' >&2
    exit 2
  fi
done
rm -rf hawis_jax && mkdir hawis_jax && tar -xzf hawis_jax.tgz -C hawis_jax
cd hawis_jax
python3 -m pip install --quiet --user uv
~/.local/bin/uv venv --quiet --allow-existing --python=3.11 ~/hawis_venv
~/.local/bin/uv pip install --quiet --python=\$HOME/hawis_venv/bin/python \
--editable='.[tpu,gcs]' --constraints=constraints.txt
$share"
}

main() { # FLAGS: one try, with a name that gcloud finds again by
  local command=(launch/detached.sh "../hawis_jax_runs/$(date +%s%N)"
    env PYTHONUNBUFFERED=1 ../hawis_venv/bin/python -m hawis_jax.main "$@"
    "--workdir=$workdir" --distributed)
  on all "cd hawis_jax && $(printf '%q ' "${command[@]}")"
}

fetch() {
  # Checkpoints are the folders whose names are numbers.
  if [[ "$bucket" ]]; then
    run mkdir -p "$results"
    run gcloud storage rsync --recursive '--exclude=(^|.*/)[0-9]+/.*|^lock$' \
      "$workdir" "$results"
    return
  fi
  on 0 "tar -czf results.tgz --exclude='[0-9]*' --exclude=lock -C $workdir ."
  run gcloud compute tpus tpu-vm scp "$name:results.tgz" \
    "$scratch/results.tgz" "--zone=$zone" --worker=0
  run mkdir -p "$results"
  run tar -xzf "$scratch/results.tgz" -C "$results"
}

state() {
  gcloud compute tpus tpu-vm list "--zone=$zone" \
    "--filter=name ~ \"/$name\$\"" '--format=value(state)'
}

install
for ((try = 0; ; try++)); do
  status=0
  main "$@" || status=$?
  case "$status" in
    0) break ;;
    2) exit 2 ;;
  esac
  now=$(state)
  if [[ "$now" != READY ]]; then
    echo "$name is gone: create it anew, then run this again" >&2
    exit 75
  fi
  if ((status != 75 || try == retries)); then exit "$status"; fi
  echo "told to stop, and saved: starting again" >&2
done
fetch
"$dry_run" || echo "results in $results"
