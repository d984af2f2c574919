"""The command hawis-jax, or python -m hawis_jax.

  hawis-jax run --config configs/digits.py   runs an experiment
  hawis-jax report runs/a runs/b --out cmp   compares finished runs
  hawis-jax data prepare cifar10             makes a data set of its archives
  hawis-jax list                             names that fields and library take
  hawis-jax export weights runs/a found net.safetensors

Each has --help.
"""

from collections.abc import Sequence
import importlib
import runpy
import sys

from hawis_jax import errors

# {name: module whose `main` takes the arguments, or `run` the whole command}.
_COMMANDS = {
  "run": "main",
  "report": "report.__main__",
  "data": "data.prepare",
  "list": "config.names",
  "export": "pipeline.export",
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command that the first argument names; returns its exit status.

  Args:
    argv: the command's name and its arguments; None: those of the process.
  """
  program, *arguments = sys.argv if argv is None else argv
  if argv is None and arguments[:1] == ["run"]:  # with its guard of signals
    sys.argv = [program, *arguments[1:]]
    runpy.run_module("hawis_jax.main", run_name="__main__", alter_sys=True)
  name = arguments[0] if arguments else "--help"
  if name in ("--help", "-h", "help"):
    print(__doc__.strip())
    return 0
  try:
    errors.check_fields([name], [*_COMMANDS], "command")
  except errors.InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  module = importlib.import_module(f"hawis_jax.{_COMMANDS[name]}")
  if name == "run":
    return module.run([program, *arguments[1:]])
  return module.main(arguments[1:])


if __name__ == "__main__":
  sys.exit(main())
