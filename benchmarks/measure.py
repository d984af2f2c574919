"""What benchmarks share: configurations, times side by side, intervals."""

import argparse
from collections.abc import Callable, Mapping
import pathlib
import subprocess
import time
from typing import Any

import jax
import numpy as np
from scipy import stats

from hawis_jax import backend
from hawis_jax.config import load
from hawis_jax.config import settings
from hawis_jax.pipeline import experiment

backend.configure()  # as the program does, before jax starts its backend

ROOT = pathlib.Path(__file__).parents[1]
DIGITS = ROOT / "configs" / "digits.py"


def parser(description: str) -> argparse.ArgumentParser:
  """Returns a parser of flags, whose help is a script's docstring."""
  return argparse.ArgumentParser(
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )


def prepare(path=DIGITS, **fields: Any) -> experiment.Experiment:
  """Returns a configuration's experiment.

  Args:
    path: of the configuration; None: the defaults.
    **fields: that differ; `__` in their names stands for a dot.
  """
  config = load.load(path) if path else settings.default()
  config.update_from_flattened_dict(
    {name.replace("__", "."): value for name, value in fields.items()}
  )
  settings.validate(config)
  return experiment.prepare(config)


def machine() -> str:
  """Returns what times depend on, in words."""
  return f"jax {jax.__version__}, {jax.devices()[0].device_kind}"


def revision() -> str:
  """Returns the revision of the checkout; "+" tells that files differ.

  Of a copy that is no checkout it says "unknown".
  """
  command = ["git", "describe", "--always", "--dirty=+", "--abbrev=7"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  return done.stdout.strip() or "unknown"


def seconds(
  calls: Mapping[str, Callable[[], Any]],
  rounds: int,
  reduce: Callable[..., Any] = np.median,
) -> dict[str, float]:
  """Returns {name: seconds of a call}, after one of each that compiles.

  They are called in turn, so that all meet the same other load.
  """
  for call in calls.values():
    jax.block_until_ready(call())
  times = {name: [] for name in calls}
  for _ in range(rounds):
    for name, call in calls.items():
      start = time.perf_counter()
      jax.block_until_ready(call())
      times[name].append(time.perf_counter() - start)
  return {name: float(reduce(values)) for name, values in times.items()}


def least(call: Callable[[], Any], rounds: int = 3) -> float:
  """Returns the least seconds of some calls, after one that compiles."""
  return seconds({"": call}, rounds, np.min)[""]


def interval(values) -> tuple[float, float]:
  """Returns (mean, half-width of its 95 % t-interval), of few seeds."""
  half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
  return float(np.mean(values)), float(half)
