"""Runs the stages: python -m hawis_jax.main --config configs/digits.py."""

import contextlib
import pathlib
import sys
import time

from absl import app
from absl import flags
from ml_collections import config_flags

from hawis_jax import backend

backend.configure()  # before anything starts jax's backend

# ruff: noqa: E402
from hawis_jax import command_line
from hawis_jax import config as config_lib
from hawis_jax import errors
from hawis_jax import experiment as experiment_lib
from hawis_jax import files
from hawis_jax import metrics as metrics_lib
from hawis_jax import preemption
from hawis_jax import pretrain
from hawis_jax import processes
from hawis_jax import report
from hawis_jax import search
from hawis_jax import sweep
from hawis_jax import train

STAGES = {
  "pretrain": pretrain.run,
  "search": search.run,
  "train": train.run,
  "robustness": sweep.run,
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
  config = command_line.CONFIG.value
  config_lib.validate(config)
  stages = _stages(_STAGES.value, config_lib.searches(config))
  workdir = _WORKDIR.value or f"runs/{_config_name()}"
  workdir = files.folder_path(workdir, "--workdir")
  _check_same(config, workdir, stages)
  first = processes.is_first()
  with contextlib.ExitStack() as run:
    run.enter_context(preemption.watch())
    experiment = processes.first_then_others(
      lambda: experiment_lib.prepare(config)
    )
    if "train" in stages:
      train.check_teacher(experiment)
    if "robustness" in stages:
      sweep.check_chips(experiment, workdir)
    processes.on_first(lambda: run.enter_context(files.locked(workdir)))
    facts = experiment.splits.facts()
    processes.on_first(lambda: config_lib.settle(config, workdir, facts))
    metrics = run.enter_context(metrics_lib.Metrics(workdir, recording=first))
    for stage in stages:
      if preemption.reached():
        raise errors.Preempted(f"before {stage}")
      STAGES[stage](experiment, workdir, metrics)
  if first:
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    metrics.say(f"done in {minutes}:{seconds:02d}; results in {workdir}")


def _join():
  """Meets the other processes, if there are any."""
  cluster = (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)
  if _DISTRIBUTED.value:
    processes.join(*(flag.value for flag in cluster))
    return
  for flag in cluster:
    if flag.value is not None:
      raise errors.InputError(
        f"--{flag.name}: got {flag.value!r}, allowed with --distributed"
      )


def _check_same(config, workdir, stages):
  """Raises InputError where processes were not started alike."""
  fields = config_lib.flatten(config)
  for own in ("data.data_dir", "data.read_threads"):
    del fields[own]
  processes.check_same(fields, "--config")
  processes.check_same([str(workdir), stages], "--workdir, --stages")


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
