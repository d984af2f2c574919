#!/usr/bin/env bash
# Makes a Cloud TPU slice ready, or deletes it.
set -euo pipefail

usage="usage: launch/create_tpu.sh NAME --zone=ZONE --type=TYPE [--spot]
  [--runtime=VERSION] [--poll=SECONDS] [--dry-run] [-- GCLOUD_FLAGS]
       launch/create_tpu.sh NAME --zone=ZONE --delete [--dry-run]

Requests the TPU slice NAME of an accelerator TYPE such as v5litepod-16 as a
queued resource and waits, asking every 30 s, until it is ACTIVE. One that is
already there is waited for; one that is SUSPENDED (preempted) or FAILED is
deleted and requested anew. --runtime is the machines' image, by default the
one for TYPE. GCLOUD_FLAGS go to \`queued-resources create\`, e.g.
--valid-until-duration=6h, after which the request FAILED. --delete deletes
the request and its machines, with all that is on their disks. --dry-run asks
and changes nothing, and prints the commands for a name that is new.

Ends with status 0 when ACTIVE or deleted, 1 when it can't be had, 2 on a
mistake in the options; gcloud's own status where gcloud fails."

die() { # STATUS MESSAGE
  echo "error: $2" >&2
  exit "$1"
}

run() { # COMMAND...
  if "$dry_run"; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

name="" zone="" type="" runtime="" poll=30 spot=false delete=false
dry_run=false
while (($#)); do
  case "$1" in
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --poll=*) poll=${1#*=} ;;
    --spot) spot=true ;;
    --delete) delete=true ;;
    --dry-run) dry_run=true ;;
    --help) echo "$usage" && exit ;;
    --) shift && break ;;
    -*) die 2 "$1: no such option; --help shows them" ;;
    *)
      [[ -z "$name" ]] || die 2 "$1: got a second NAME, allowed is one"
      name=$1
      ;;
  esac
  shift
done
[[ "$name" =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
  die 2 "NAME: got '$name', allowed are a-z, 0-9 and -, from a letter on"
[[ "$zone" ]] || die 2 "--zone: missing, needed is one such as us-west4-a"
[[ "$poll" =~ ^[0-9]+$ ]] ||
  die 2 "--poll: got '$poll', allowed are whole seconds"

queued=(gcloud compute tpus queued-resources)
if "$delete"; then
  run "${queued[@]}" delete "$name" "--zone=$zone" --force --quiet
  exit
fi

[[ "$type" ]] || die 2 "--type: missing, needed is one such as v5litepod-16"
if [[ -z "$runtime" ]]; then
  case "$type" in
    v[234]-*) runtime=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) die 2 "--runtime: missing, needed with --type=$type" ;;
  esac
fi

state() {
  # Listed, not described: one that is missing is no error.
  run "${queued[@]}" list "--zone=$zone" "--filter=name ~ \"/$name\$\"" \
    '--format=value(state.state)'
}

request() {
  local flags=("--node-id=$name" "--zone=$zone" "--accelerator-type=$type")
  flags+=("--runtime-version=$runtime")
  if "$spot"; then flags+=(--spot); fi
  run "${queued[@]}" create "$name" "${flags[@]}" "$@"
}

if "$dry_run"; then
  state
  request "$@"
  state
  exit
fi

now=$(state)
case "$now" in
  SUSPENDED | FAILED)
    run "${queued[@]}" delete "$name" "--zone=$zone" --force --quiet
    request "$@"
    ;;
  "") request "$@" ;;
esac
while true; do
  now=$(state)
  case "$now" in
    ACTIVE) break ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING)
      die 1 "$name is $now; see gcloud compute tpus queued-resources describe"
      ;;
    "") die 1 "$name is gone" ;;
  esac
  echo "$name is $now" >&2
  sleep "$poll"
done
echo "$name is ACTIVE"
