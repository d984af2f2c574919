"""Runs the stages: python -m hawis_jax.main --config configs/digits.py."""

import contextlib
import os
import pathlib
import re
import sys
import time

from absl import app
from absl import flags
import jax
from ml_collections import config_flags

from hawis_jax import backend

backend.configure()  # before anything starts jax's backend

# ruff: noqa: E402
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

PREEMPTED = os.EX_TEMPFAIL  # exit status, 75: start again to go on

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "An experiment, e.g. configs/digits.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where results go; default runs/<name of the config file>."
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
  config = _CONFIG.value
  config_lib.validate(config)
  stages = _stages(_STAGES.value, config_lib.searches(config))
  workdir = _WORKDIR.value or f"runs/{_config_name()}"
  files.check_local(workdir, "--workdir")
  workdir = pathlib.Path(workdir)
  _check_same(config, workdir, stages)
  experiment = processes.first_then_others(
    lambda: experiment_lib.prepare(config)
  )
  if "train" in stages:
    train.check_teacher(experiment)
  if "robustness" in stages:
    sweep.check_chips(experiment, workdir)
  first = processes.is_first()
  with contextlib.ExitStack() as run:
    processes.on_first(lambda: run.enter_context(files.locked(workdir)))
    processes.on_first(lambda: config_lib.settle(config, workdir))
    metrics = run.enter_context(metrics_lib.Metrics(workdir, recording=first))
    run.enter_context(preemption.watch())
    for stage in stages:
      STAGES[stage](experiment, workdir, metrics)
  if first:
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    print(f"done in {minutes}:{seconds:02d}; results in {workdir}")


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


def parse(argv: list[str]) -> list[str]:
  """Parses flags; every mistake becomes one line.

  Raises:
    InputError: an unknown flag or field, a bad value, a leftover argument.
  """
  try:
    rest = flags.FLAGS(argv)
    if _CONFIG.value is not None:
      _CONFIG.value.lock()  # a file that failed to load raises only here
  except (KeyError, AttributeError) as error:
    raise errors.InputError(_unknown_field(argv, error)) from error
  except OSError as error:
    reason = str(error).strip().splitlines()[-1].strip()
    raise errors.InputError(f"--config: {reason}") from error
  except flags.Error as error:
    lines = str(error).strip().splitlines()
    # A failed config file's reason stands on the last line.
    message = lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1].strip()}"
    raise errors.InputError(message) from error
  except Exception as error:  # whatever the user's config file raises
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise errors.InputError(f"--config: {reason}") from error
  if len(rest) > 1:
    raise errors.InputError(
      f"command line: got {rest[1]!r}, allowed are only flags (--name=value)"
    )
  if _CONFIG.value is None:
    raise errors.InputError(
      "--config: missing, needed is a file such as configs/digits.py"
    )
  return rest


def _unknown_field(argv, error):
  """One line from ml_collections' message on an unknown config field."""
  text = str(error)
  hint = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text)
  name = hint.group(2) if hint else re.search(r"\w+", text).group()
  where = [
    arg.split("=")[0].removeprefix("--")
    for arg in argv
    if arg.startswith("--config.") and name in arg.split("=")[0].split(".")
  ]
  message = f"{where[0] if where else 'config file'}: no field {name!r}"
  return message + (f"; did you mean {hint.group(1)!r}?" if hint else "")


def run(argv: list[str]) -> int:
  """Parses, runs, and turns our errors into one line and exit status 2."""
  try:
    main(parse(argv))
  except errors.Preempted as stop:
    processes.on_first(lambda: None)  # which may still be writing
    if processes.is_first():
      print(f"stopped: {stop}; the same command goes on", file=sys.stderr)
    return PREEMPTED
  except (errors.InputError, errors.DivergenceError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    print(f"error: {_out_of_memory(error)}", file=sys.stderr)
    return 2
  return 0


def _out_of_memory(error):
  """One line from XLA's error."""
  return (
    f"a device's memory is full ({str(error).splitlines()[0]}); smaller need "
    "less: pretrain.batch_size, search.vectors_per_step, search.batch_size, "
    "train.batch_size (or more train.microbatches), robustness.memory_gb"
  )


if __name__ == "__main__":
  app.define_help_flags()
  sys.exit(run(sys.argv))
