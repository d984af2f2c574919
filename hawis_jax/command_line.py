"""The command line that the project's commands share: flags and a config."""

from collections.abc import Callable
import os
import re
import sys

from absl import flags
import jax
from ml_collections import config_flags

from hawis_jax import buckets
from hawis_jax import errors
from hawis_jax import processes
from hawis_jax import terminal

PREEMPTED = os.EX_TEMPFAIL  # exit status, 75: start again to go on

CONFIG = config_flags.DEFINE_config_file(
  "config", None, "An experiment, e.g. configs/digits.py.", lock_config=True
)


def run(main: Callable[[list[str]], int | None], argv: list[str]) -> int:
  """Runs a command.

  Args:
    main: (leftover arguments) -> exit status, None for 0.
    argv: with the command's name.

  Returns:
    Exit status: 2 after one of our errors, `PREEMPTED` where starting again
    goes on, both told in one line.
  """
  try:
    return main(parse(argv)) or 0
  except errors.Preempted as stop:
    processes.on_first(lambda: None)  # which may still be writing
    if processes.is_first():
      terminal.say(f"stopped: {stop}; the same command goes on", sys.stderr)
    return PREEMPTED
  except (errors.InputError, errors.DivergenceError) as error:
    terminal.say(f"error: {error}", sys.stderr)
    return 2
  except Exception as error:
    stop = buckets.trouble(error)
    if stop:
      terminal.say(f"stopped: {stop}; the same command goes on", sys.stderr)
      return PREEMPTED
    if not (
      isinstance(error, jax.errors.JaxRuntimeError)
      and "RESOURCE_EXHAUSTED" in str(error)
    ):
      raise
    terminal.say(f"error: {_out_of_memory(error)}", sys.stderr)
    return 2


def _out_of_memory(error):
  """One line from XLA's error."""
  return (
    f"a device's memory is full ({str(error).splitlines()[0]}); smaller need "
    "less: pretrain.batch_size, search.vectors_per_step, search.batch_size, "
    "train.batch_size (or more train.microbatches), robustness.memory_gb"
  )


def parse(argv: list[str]) -> list[str]:
  """Parses flags; every mistake becomes one line.

  Raises:
    InputError: an unknown flag or field, a bad value, a leftover argument.
  """
  try:
    rest = flags.FLAGS(argv)
    if CONFIG.value is not None:
      CONFIG.value.lock()  # a file that failed to load raises only here
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
  if CONFIG.value is None:
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
