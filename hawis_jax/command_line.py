"""The command line that the project's commands share: flags and a config."""

from collections.abc import Callable, Sequence
import contextlib
import os
import re
import sys
import textwrap

from absl import flags
import jax
from ml_collections import config_flags

from hawis_jax import backend
from hawis_jax import errors
from hawis_jax.config import describe
from hawis_jax.config import fields
from hawis_jax.config import load
from hawis_jax.runtime import distributed
from hawis_jax.runtime import storage
from hawis_jax.runtime import terminal

PREEMPTED = os.EX_TEMPFAIL  # exit status, 75: start again to go on

# Of jax's configuration, which users can set for all programs. With others all
# random numbers would be others: weights, chips and what is found.
_NUMBERS = {
  "jax_enable_x64": False,
  "jax_default_prng_impl": "threefry2x32",
  "jax_threefry_partitionable": True,
  "jax_random_seed_offset": 0,
  "jax_numpy_dtype_promotion": "standard",
}
_HELP = {"--help", "-help", "--helpshort", "-h", "-?", "--helpfull"}
_CONFIG_HELP = "An experiment, e.g. configs/digits.py."


class _ConfigFile(flags.ArgumentParser):
  """Loads <file>, or <file>:<argument of its get_config>."""

  def parse(self, path):
    file, *arguments = path.split(":", 1)
    return load.load(file, *arguments, name=f"--config={path}")


def run(
  main: Callable[[flags.FlagValues, list[str]], int | None],
  argv: Sequence[str],
  define: Callable[[flags.FlagValues], None],
) -> int:
  """Runs a command, which may be one of several in a process.

  Nothing of it stays: flags are its own, and what it sets of jax's
  configuration and of XLA's flags is as before when it ends.

  Args:
    main: (its flags, of which `config` is the configuration; `argv`) -> exit
      status, None for 0.
    argv: with the command's name.
    define: defines the command's own flags, in the module that says what the
      command does.

  Returns:
    Exit status: 2 after one of our errors, `PREEMPTED` where starting again
    goes on, both told in one line.
  """
  argv = [str(argument) for argument in argv]
  own = flags.FlagValues()
  define(own)
  if not _HELP.isdisjoint(argv[1:]):
    text = _help(sys.modules[define.__module__], own)
    if "--helpfull" in argv[1:]:  # those of other packages too
      text += f"\n{flags.FLAGS.get_help()}"
    terminal.say(text, sys.stdout)
    return 0
  with backend.configured(), _our_numbers():
    return _run(main, argv, own)


@contextlib.contextmanager
def _our_numbers():
  """Sets `_NUMBERS`, and says where a user had set others."""
  before = {name: getattr(jax.config, name) for name in _NUMBERS}
  for name, value in _NUMBERS.items():
    jax.config.update(name, value)
    if getattr(jax.config, name) != before[name]:
      terminal.say(f"{name.upper()}: ignored, it is {value} here", sys.stderr)
  try:
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)


def _run(main, argv, own):
  """Parses and runs; errors become one line and an exit status."""
  try:
    return main(parse(argv, own), argv) or 0
  except errors.Preempted as stop:
    distributed.on_first(lambda: None)  # which may still be writing
    if distributed.is_first():
      terminal.say(f"stopped: {stop}; the same command goes on", sys.stderr)
    return PREEMPTED
  except (errors.InputError, errors.DivergenceError) as error:
    terminal.say(f"error: {error}", sys.stderr)
    return 2
  except PermissionError as error:  # another user's files, in any place
    name = errors.printable(str(error.filename))
    terminal.say(f"error: {name}: {error.strerror}", sys.stderr)
    return 2
  except Exception as error:
    if storage.passes(error):
      reason = " ".join(str(error).split()) or type(error).__name__
      terminal.say(
        f"stopped: the storage can't be reached: {reason}; the same command "
        "goes on",
        sys.stderr,
      )
      return PREEMPTED
    if not (
      isinstance(error, jax.errors.JaxRuntimeError)
      and "RESOURCE_EXHAUSTED" in str(error)
    ):
      raise
    terminal.say(f"error: {_out_of_memory(error)}", sys.stderr)
    return 2


def _help(module, own):
  """What a command does, its own flags, and every field."""
  texts = {"config": _CONFIG_HELP, **{name: own[name].help for name in own}}
  lines = [
    textwrap.fill(f"  --{name}: {text}", 80, subsequent_indent=" " * 6)
    for name, text in texts.items()
  ]
  return "\n".join([module.__doc__ or "", *lines, "", describe.help_text()])


def _out_of_memory(error):
  """One line from XLA's error."""
  return (
    f"a device's memory is full ({str(error).splitlines()[0]}); smaller need "
    "less: pretrain.batch_size, search.vectors_per_step, search.batch_size, "
    "train.batch_size (or more train.microbatches), robustness.memory_gb"
  )


def parse(argv: Sequence[str], own: flags.FlagValues) -> flags.FlagValues:
  """Parses flags; every mistake becomes one line.

  Args:
    argv: with the command's name.
    own: the command's flags, which are parsed, and `config` among them.

  Raises:
    InputError: an unknown flag or field, a bad value, a leftover argument.
  """
  argv = _last_tuples(argv)
  config_flags.DEFINE_config_file(
    "config", None, _CONFIG_HELP, own, lock_config=True, sys_argv=argv
  )
  own["config"].parser = _ConfigFile()
  for name in flags.FLAGS:  # of packages, as --verbosity
    flag = flags.FLAGS[name]
    if name == flag.name and not {name, flag.short_name} & {*own}:
      own[name] = flag
  try:
    rest = own(argv)
  except flags.Error as error:
    if isinstance(error.__context__, errors.InputError):  # which absl wraps
      raise error.__context__ from None
    bad = re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL)
    if bad and bad[1] in fields.FIELDS:
      raise errors.InputError(
        f"config.{bad[1]}: got {bad[2]!r}, allowed is "
        f"{fields.FIELDS[bad[1]].allowed}"
      ) from error
    text = " ".join(str(error).split())
    name = getattr(error, "flagname", "")  # of one that is unknown
    ends = [x for x in fields.FIELDS if name in (x, x.rpartition(".")[2])]
    hint = f"; did you mean --config.{ends[0]}?" if ends else ""
    raise errors.InputError(f"{text}{hint}") from error
  except Exception as error:  # of ml_collections, at a field that is none
    word = re.search(r"\w+", str(error))
    names = [arg.split("=")[0] for arg in argv]
    where = [name for name in names if word and word[0] in name.split(".")]
    raise errors.InputError(
      f"{(*where, '--config')[0]}: {load.reason(error)}"
    ) from error
  if len(rest) > 1:
    raise errors.InputError(
      f"command line: got {rest[1]!r}, allowed are only flags (--name=value)"
    )
  if own.config is None:
    raise errors.InputError(
      "--config: missing, needed is a file such as configs/digits.py"
    )
  return own


def _last_tuples(argv):
  """Arguments without earlier values of a tuple, which would be joined."""
  kept, seen = [], set()
  for arg in reversed(argv):
    name = arg.split("=")[0].lstrip("-").removeprefix("config.")
    is_tuple = name in fields.FIELDS and fields.FIELDS[name].kind is tuple
    if not (is_tuple and "=" in arg and name in seen):
      kept.append(arg)
      seen.add(name)
  return kept[::-1]
