"""Runs the stages: python -m hawis_jax.main --config configs/digits.py."""

import atexit
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


def _end_with(status):
  """Ends; until then Ctrl-C only makes it quicker: all is done and told."""
  if signal.getsignal(signal.SIGINT) == _stop:
    signal.signal(signal.SIGINT, lambda *_: os._exit(status))
  sys.exit(status)


if __name__ == "__main__":
  # First: a Ctrl-C amid imports would print the trace of them.
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stop)  # `preemption.watch` takes over
    # Python gives handlers up before it is gone, and Ctrl-C would then end a
    # finished run as if it had been killed. What is registered first runs last.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
  _check_addresses()

from collections.abc import Sequence
import pathlib

from absl import flags
from ml_collections import config_flags

# ruff: noqa: E402
from hawis_jax import backend
from hawis_jax import command_line
from hawis_jax import errors
from hawis_jax.config import fields
from hawis_jax.config import settings
from hawis_jax.runtime import distributed
from hawis_jax.runtime import storage


def define(own: flags.FlagValues) -> None:
  """Defines the command's flags."""
  flags.DEFINE_string(
    "workdir",
    None,
    "Where results go: a folder, or gs://<bucket>/<folder>; default runs/<name "
    "of the config file>.",
    own,
  )
  flags.DEFINE_list(
    "stages",
    ["all"],
    f"all that the nets need, or some of {', '.join(fields.STAGES)}, in this "
    "order.",
    own,
  )
  flags.DEFINE_string(
    "from",
    None,
    "Folder of a run whose trained nets are measured anew, with --stages "
    "robustness,report: on another device, in other scenarios, on other chips. "
    "Nothing is written there.",
    own,
  )
  flags.DEFINE_bool(
    "remake",
    False,
    "Make anew what was made from something else than lies in the folder now, "
    "as the accuracies of a net that was trained again.",
    flag_values=own,
  )
  flags.DEFINE_bool(
    "distributed",
    False,
    "One of several processes with devices of their own, all started alike; "
    "TPU pods, GKE, SLURM and MPI tell the next three.",
    flag_values=own,
  )
  flags.DEFINE_string(
    "coordinator_address", None, "host:port of the first of them.", own
  )
  flags.DEFINE_integer("num_processes", None, "How many.", flag_values=own)
  flags.DEFINE_integer(
    "process_id", None, "Which this is, from 0.", flag_values=own
  )


def main(given: flags.FlagValues, argv: Sequence[str]) -> None:
  """Runs the stages asked for; those already finished are not repeated."""
  config, source = given.config, given["from"].value
  settings.validate(config, is_trained=source is not None)
  names = _stages(given.stages, settings.searches(config), source)
  workdir = given.workdir
  if workdir is None:
    workdir = f"runs/{_config_name(given)}"
  workdir = storage.folder_path(workdir, "--workdir")
  if source is not None:
    source = storage.folder_path(source, "--from")
  _join(given)
  backend.start()
  # Seconds of imports, when no mistake of the command line is left.
  from hawis_jax.pipeline import stages

  stages.run(config, workdir, names, source, given.remake, argv)


def _join(given):
  """Meets the other processes, if there are any."""
  cluster = "coordinator_address", "num_processes", "process_id"
  if given.distributed:
    distributed.join(*(given[name].value for name in cluster))
    return
  for name in cluster:
    if given[name].value is not None:
      raise errors.InputError(
        f"--{name}: got {given[name].value!r}, allowed with --distributed"
      )


def _stages(names, searches, source):
  known = fields.STAGES
  unknown = [name for name in names if name not in ("all", *known)]
  if unknown or not names:
    hints = [errors.suggestion(name, ("all", *known)) for name in unknown]
    raise errors.InputError(
      f"--stages: got {','.join(names)!r}, allowed are all, {', '.join(known)}"
      f"{''.join(hints[:1])}"
    )
  unneeded, why = (), ""
  if source is not None:
    unneeded, why = known[:3], "--from"
  elif not searches:
    unneeded, why = known[:2], "config.train.nets that need no search"
  for stage in unneeded:
    if stage in names:
      raise errors.InputError(
        f"--stages: got {stage}, allowed with {why} are "
        f"{', '.join(known[len(unneeded) :])}"
      )
  return [
    stage
    for stage in known
    if stage in names or ("all" in names and stage not in unneeded)
  ]


def _config_name(given):
  filename = config_flags.get_config_filename(given["config"])
  return pathlib.Path(filename.split(":")[0]).stem


def run(argv: Sequence[str]) -> int:
  """Parses, runs, and turns our errors into one line and exit status 2.

  >>> from hawis_jax import main
  >>> main.run(["main", "--config=configs/digits.py"])  # doctest: +SKIP

  Args:
    argv: the command's name and its arguments. It may be called again and
      again in a process, as in a notebook.
  """
  return command_line.run(main, argv, define)


if __name__ == "__main__":
  _end_with(run(sys.argv))
