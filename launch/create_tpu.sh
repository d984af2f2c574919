#!/usr/bin/env bash
# Makes a Cloud TPU slice ready, or deletes it.
set -euo pipefail

usage="usage: launch/create_tpu.sh NAME --zone=ZONE --type=TYPE [--dry-run]
         [--delete | -- GCLOUD_FLAGS]

Requests the TPU slice NAME of an accelerator TYPE such as v5litepod-16 as a
queued resource, and waits until it is ACTIVE. One that is there is waited for;
one that is SUSPENDED (preempted) or FAILED is deleted and requested anew.
GCLOUD_FLAGS go to \`queued-resources create\`, e.g. --spot. --delete deletes
the machines and their disks. --dry-run prints the commands for a new name.
Status 1: it can't be had; 2: a mistake; else gcloud's own."

die() { echo "error: $2" >&2 && exit "$1"; }
run() { if "$dry_run"; then echo "${*@Q}"; else "$@"; fi; }
queued() { run gcloud compute tpus queued-resources "$@" "--zone=$zone"; }
state() { # listed, not described: one that is missing is no error
  queued list "--filter=name ~ /$name\$" '--format=value(state.state)'
}

name="" zone="" type="" delete=false dry_run=false
while (($#)); do
  case "$1" in
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --delete) delete=true ;;
    --dry-run) dry_run=true ;;
    --help) echo "$usage" && exit ;;
    --) shift && break ;;
    -*) die 2 "$1: no such option" ;;
    *) name+=${name:+ }$1 ;;
  esac
  shift
done
[[ "$zone" && "$name" =~ ^[a-z][-a-z0-9]*$ ]] ||
  die 2 "NAME, --zone: got '$name', '$zone', needed are such as tpu, us-west4-a"
if "$delete"; then queued delete "$name" --force --quiet && exit; fi
case "$type" in
  v[234]-*) runtime=tpu-ubuntu2204-base ;;
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  *) die 2 "--type: got '$type', allowed are v4-8, v5litepod-16, v6e-8, ..." ;;
esac

request=(create "$name" "--node-id=$name" "--accelerator-type=$type"
  "--runtime-version=$runtime" "$@")
if "$dry_run"; then state && queued "${request[@]}" && exit; fi
now=$(state)
if [[ "$now" =~ ^(SUSPENDED|FAILED)$ ]]; then
  queued delete "$name" --force --quiet && now=""
fi
[[ "$now" ]] || queued "${request[@]}"
while now=$(state) && [[ "$now" != ACTIVE ]]; do
  [[ "$now" && ! "$now" =~ ^(FAILED|SUSPEND|DELETING) ]] ||
    die 1 "$name is ${now:-gone}"
  echo "$name is $now" >&2
  sleep 30
done
