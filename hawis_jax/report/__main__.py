"""Compares runs: python -m hawis_jax.report runs/a runs/b --out cmp."""

import argparse
import pathlib
import sys

from hawis_jax import errors


def main(arguments: list[str] | None = None) -> int:
  """Runs the command; returns its exit status, 2 after one of our errors."""
  parser = argparse.ArgumentParser("python -m hawis_jax.report", None, __doc__)
  parser.add_argument(
    "runs", nargs="+", help="work directories of finished runs"
  )
  parser.add_argument("--out", required=True, help="folder of the comparison")
  given = parser.parse_args(arguments)
  from hawis_jax.report import compare  # seconds of imports

  try:
    page = compare.run(given.runs, pathlib.Path(given.out))
  except errors.InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(f"comparison  {page}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
