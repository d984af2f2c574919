"""Runs the stages: python -m hawis_jax.main --config configs/digits.py."""

import os
import resource
import signal
import sys

# XLA maps far more than it uses, and more on more cores: with less it aborts,
# or waits for ever. docs/reliability.md has what was measured.
_ADDRESSES = 6 * 2**30  # bytes


def _end(line, status):
  """Ends at once: importing takes seconds, and nothing has begun."""
  try:
    os.write(2, f"{line}\n".encode())
  finally:  # also where nobody reads it
    os._exit(status)


def _stop(*_):
  _end("stopped: the same command goes on", os.EX_TEMPFAIL)


def _check_addresses():
  """Ends where the limit on addresses is too low for jax to start."""
  limit, _ = resource.getrlimit(resource.RLIMIT_AS)
  if limit != resource.RLIM_INFINITY and limit < _ADDRESSES:
    _end(
      f"error: ulimit -v: got {limit // 1024:,} KiB of addresses, needed are "
      f"{_ADDRESSES // 1024:,}, most of which stay unused; to limit memory, "
      "use a cgroup (systemd-run -p MemoryMax=)",
      2,
    )


if __name__ == "__main__":
  # First: a Ctrl-C amid imports would print the trace of them.
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stop)  # `preemption.watch` takes over
  _check_addresses()

import contextlib
import pathlib
import time

from absl import app
from absl import flags
from ml_collections import config_flags

from hawis_jax import backend

backend.configure()  # before anything starts jax's backend

# ruff: noqa: E402
from hawis_jax import command_line
from hawis_jax import errors
from hawis_jax.config import settings
from hawis_jax.pipeline import pretrain
from hawis_jax.pipeline import provenance
from hawis_jax.pipeline import report
from hawis_jax.pipeline import results
from hawis_jax.pipeline import robustness
from hawis_jax.pipeline import search
from hawis_jax.pipeline import train
from hawis_jax.pipeline.experiment import prepare
from hawis_jax.runtime import checkpoint
from hawis_jax.runtime import distributed
from hawis_jax.runtime import preemption
from hawis_jax.runtime import storage
from hawis_jax.runtime.metrics import Metrics

STAGES = {
  "pretrain": pretrain.run,
  "search": search.run,
  "train": train.run,
  "robustness": robustness.run,
  "report": report.run,
}

_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Where results go: a folder, or gs://<bucket>/<folder>; default runs/<name "
  "of the config file>.",
)
_STAGES = flags.DEFINE_list(
  "stages",
  ["all"],
  f"all that the nets need, or some of {', '.join(STAGES)}, in this order.",
)
_REMAKE = flags.DEFINE_bool(
  "remake",
  False,
  "Make anew what was made from something else than lies in the folder now, "
  "as the accuracies of a net that was trained again.",
)
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed",
  False,
  "One of several processes with devices of their own, all started alike; TPU "
  "pods, GKE, SLURM and MPI tell the next three.",
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator_address", None, "host:port of the first of them."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which this is, from 0.")


def main(argv: list[str]) -> None:
  """Runs the stages asked for; those already finished are not repeated."""
  del argv
  start = time.monotonic()
  _join()
  backend.start()
  config = command_line.CONFIG.value
  settings.validate(config)
  stages = _stages(_STAGES.value, settings.searches(config))
  workdir = _WORKDIR.value
  if workdir is None:
    workdir = f"runs/{_config_name()}"
  workdir = storage.folder_path(workdir, "--workdir")
  _check_same(config, workdir, stages)
  first = distributed.is_first()
  with contextlib.ExitStack() as run:
    run.enter_context(preemption.watch())
    run.enter_context(checkpoint.without_leftovers())
    experiment = distributed.first_then_others(lambda: prepare(config))
    if "train" in stages:
      train.check_teacher(experiment, workdir)
    if "robustness" in stages:
      robustness.check_chips(experiment, workdir)
    distributed.on_first(lambda: run.enter_context(storage.locked(workdir)))
    facts = experiment.splits.facts()
    distributed.on_first(lambda: results.settle(config, workdir, facts))
    metrics = run.enter_context(Metrics(workdir, recording=first))
    for stage in stages:
      if preemption.reached():
        raise errors.Preempted(f"before {stage}")
      remade = stages if _REMAKE.value else ()
      provenance.check(experiment, workdir, remade, metrics.say)
      STAGES[stage](experiment, workdir, metrics)
  if first:
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    metrics.say(f"done in {minutes}:{seconds:02d}; results in {workdir}")


def _join():
  """Meets the other processes, if there are any."""
  cluster = (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)
  if _DISTRIBUTED.value:
    distributed.join(*(flag.value for flag in cluster))
    return
  for flag in cluster:
    if flag.value is not None:
      raise errors.InputError(
        f"--{flag.name}: got {flag.value!r}, allowed with --distributed"
      )


def _check_same(config, workdir, stages):
  """Raises InputError where processes were not started alike."""
  fields = settings.flatten(config)
  for own in ("data.data_dir", "data.read_threads"):
    del fields[own]
  distributed.check_same(fields, "--config")
  distributed.check_same([str(workdir), stages], "--workdir, --stages")


def _stages(names, searches):
  unknown = [name for name in names if name not in ("all", *STAGES)]
  if unknown or not names:
    raise errors.InputError(
      f"--stages: got {','.join(names)!r}, allowed are all, {', '.join(STAGES)}"
    )
  unneeded = () if searches else ("pretrain", "search")
  for stage in unneeded:
    if stage in names:
      raise errors.InputError(
        f"--stages: got {stage}, allowed with config.train.nets that need no "
        "search are train, robustness, report"
      )
  return [
    stage
    for stage in STAGES
    if stage in names or ("all" in names and stage not in unneeded)
  ]


def _config_name():
  filename = config_flags.get_config_filename(flags.FLAGS["config"])
  return pathlib.Path(filename.split(":")[0]).stem


def run(argv: list[str]) -> int:
  """Parses, runs, and turns our errors into one line and exit status 2."""
  return command_line.run(main, argv)


if __name__ == "__main__":
  app.define_help_flags()
  sys.exit(run(sys.argv))
