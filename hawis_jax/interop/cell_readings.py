"""Devices fitted to measured cells: write error, drift or relaxation.

Axes: N cells, T times, K target conductances.
"""

from collections.abc import Sequence
import csv
import os
import pathlib
from typing import NamedTuple

import numpy as np
import scipy  # its parts are imported when they are first used

from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax.runtime import storage

_COLUMNS = ["cell", "target", "time", "read"]
RETENTION = ("drift", "relaxation")
_FEWEST = 8  # cells a target: a spread of fewer is known to a quarter at best


class _Readings(NamedTuple):
  """What a file holds."""

  targets: np.ndarray  # [N], S
  times: np.ndarray  # [T], s, ascending
  reads: np.ndarray  # [N, T], S


def fit_device(
  path: str | os.PathLike,
  degree: int = 2,
  plot: str | os.PathLike = "",
  retention: str = "drift",
) -> crossbar.Device:
  """Returns a device whose errors over time are those of measured cells.

  The first readings give sigma(G), the root mean square error of the cells of a
  target, and of it a polynomial, weighted by the number of cells; a bias counts
  as error, for the model has none, and so does noise of single readings. Later
  ones, if there are any, are either drift, an exponent nu of G (t / t_0)^-nu of
  every cell, and its mean and deviation at every target by maximum likelihood,
  exponents below 0 being censored there, as the model has none; a line in ln(G
  / g_on) each. Or they are relaxation, a slope of G in ln(t / t_0) of every
  cell by least squares, and a polynomial of its means and one of its deviations
  at targets, weighted by their standard errors. What cells differ by at t_0 is
  write error then, and no `relaxation_spread`. Formulas: docs/crossbar.md.

  >>> import hawis_jax as hx
  >>> device = hx.fit_device("cells.csv", plot="fit.svg")  # doctest: +SKIP
  >>> hx.evaluate_chips(key, net, variables, x, y, device)  # doctest: +SKIP

  Args:
    path: of a file of lines `cell,target,time,read` under that heading: a name,
      what it was programmed to [S], the time since [s], what was read [S]. All
      cells have the same times, of which the first is t_0.
    degree: of polynomials, at most; below the number of targets.
    plot: of the figure of data and fit to write; "": none.
    retention: what later readings are of: "drift" or "relaxation".

  Returns:
    The device, from the least to the greatest target, at the last time; other
    fields are `Device`'s own.

  Raises:
    InputError: the file, `degree` or `retention` is no such thing; fewer than
      two targets, or than 8 cells of one; targets or later readings that are
      not above 0; a drift upwards, or cells that relax all alike, which the
      model has not.
  """
  if type(degree) is not int or degree < 0:
    raise errors.InputError(
      f"degree: got {degree!r}, allowed are whole numbers from 0 on"
    )
  if retention not in RETENTION:
    raise errors.InputError(
      f"retention: got {retention!r}, allowed are {', '.join(RETENTION)}"
    )
  name = str(path)
  readings = _read(storage.read_text(path), name)
  levels, spread, weights = _write_errors(readings, name)
  degree = min(degree, len(levels) - 1)
  sigma = np.polyfit(1e6 * levels, 1e6 * spread, degree, w=weights)
  fields = {
    "g_off": levels[0].item(),
    "g_on": levels[-1].item(),
    "write_error": 1.0,
    "write_sigma": tuple(sigma[::-1].tolist()),
    "write_range": (levels[0].item(), levels[-1].item()),
  }
  later, has_later = None, len(readings.times) > 1
  if has_later and readings.reads.min() <= 0:
    raise errors.InputError(
      f"{name}: got a reading of 0 S of a cell that changes, needed are ones "
      "above 0: leave out stuck cells, and targets whose cells fall to 0"
    )
  if has_later and retention == "relaxation":
    later, deviations = _slopes(readings, levels, name)
    shift, growth = (
      np.polyfit(1e6 * levels, 1e6 * value, degree, w=1 / (1e6 * known))
      for value, known in zip(later, deviations, strict=True)
    )
    fields |= {
      "relaxation": 1.0,
      "relaxation_shift": tuple(shift[::-1].tolist()),
      "relaxation_growth": tuple(growth[::-1].tolist()),
      "relaxation_start": readings.times[0].item(),
      "retention_time": readings.times[-1].item(),
    }
  elif has_later:
    later = _exponents(readings, levels, name)
    # Of what the cells are, as in the model, which differs from the target.
    starts = np.log(readings.reads[:, 0] / levels[-1])
    distance = [starts[readings.targets == level].mean() for level in levels]
    fields |= {
      "drift_start": readings.times[0].item(),
      "drift_time": readings.times[-1].item(),
      "drift_mean": _line(distance, later[0]),
      "drift_std": _line(distance, later[1]),
    }
  device = crossbar.with_fields(crossbar.Device(), fields, name)
  if plot:
    _draw(pathlib.Path(plot), device, levels, spread, later)
  return device


def _read(text, name):
  """Returns the readings of a file, checked."""
  try:
    # A spreadsheet puts a mark of UTF-8 before it.
    lines = text.removeprefix("\ufeff").splitlines()
    rows = [row for row in csv.reader(lines) if row]
  except csv.Error as error:
    raise errors.InputError(f"{name}: can't be read: {error}") from error
  if not rows or [cell.strip() for cell in rows[0]] != _COLUMNS:
    raise errors.InputError(
      f"{name}: got {','.join(rows[0])[:80] if rows else 'nothing'!r} as first "
      f"line, needed is {','.join(_COLUMNS)}"
    )
  cells = {}
  for number, row in enumerate(rows[1:], 2):
    place = f"{name}, reading {number - 1}"
    try:
      cell, *values = row
      target, time, read = (float(value) for value in values)
    except ValueError as error:
      raise errors.InputError(
        f"{place}: got {','.join(row)[:80]!r}, needed are a name and 3 numbers"
      ) from error
    is_finite = np.isfinite([target, time, read]).all()
    if not is_finite or target <= 0 or time <= 0 or read < 0:
      raise errors.InputError(
        f"{place}: got target {target:g} S, time {time:g} s, read {read:g} S, "
        "needed are finite ones, target and time above 0, read from 0 on"
      )
    known, reads = cells.setdefault(cell.strip(), (target, {}))
    if known != target or time in reads:
      raise errors.InputError(
        f"{place}: got a second target or reading of cell {cell.strip()!r} at "
        f"{time:g} s, needed is one: programmed again it is another cell"
      )
    reads[time] = read
  times = sorted({time for _, reads in cells.values() for time in reads})
  for cell, (_, reads) in cells.items():
    if len(reads) < len(times):
      missing = next(time for time in times if time not in reads)
      raise errors.InputError(
        f"{name}: got no reading of cell {cell!r} at {missing:g} s, needed are "
        "the same times of all cells"
      )
  targets = np.array([target for target, _ in cells.values()])
  levels, counts = np.unique(targets, return_counts=True)
  if len(levels) < 2 or min(counts) < _FEWEST:
    raise errors.InputError(
      f"{name}: got {len(levels)} targets of {min(counts, default=0)} cells or "
      f"more, needed are at least 2, of {_FEWEST} cells each"
    )
  reads = [[reads[time] for time in times] for _, reads in cells.values()]
  return _Readings(targets, np.array(times), np.array(reads))


def _write_errors(readings, name):
  """Returns targets `[K]`, spreads `[K]` [S] and weights of these `[K]`."""
  levels = np.unique(readings.targets)
  spread, weights = [], []
  for level in levels:
    wrong = readings.reads[readings.targets == level, 0] - level
    spread.append(np.sqrt(np.mean(wrong**2)))
    # Of n normal errors it is known to 1 / sqrt(2 n) of itself.
    weights.append(np.sqrt(2 * len(wrong)))
  spread = np.array(spread)
  if not spread.all():
    raise errors.InputError(
      f"{name}: got no error at target {levels[spread.argmin()]:g} S, needed "
      "are first readings that differ from the target"
    )
  return levels, spread, np.array(weights) / (1e6 * spread)


def _exponents(readings, levels, name):
  """Returns means and deviations `[2, K]` of the exponents at targets."""
  periods = np.log(readings.times[1:] / readings.times[0])
  fall = -np.log(readings.reads[:, 1:] / readings.reads[:, :1])
  exponents = fall @ periods / (periods @ periods)  # least squares, a cell
  found = np.transpose(
    [_censored(exponents[readings.targets == level]) for level in levels]
  )
  if (found[0] < 0).any():
    raise errors.InputError(
      f"{name}: got cells of {levels[found[0].argmin()]:g} S that drift "
      "upwards on average, allowed are those that fall: the model has no others"
    )
  return found


def _slopes(readings, levels, name):
  """Returns means and deviations `[2, K]` [S] of cells' slopes in ln(t / t_0).

  And the standard errors of both.
  """
  periods = np.log(readings.times[1:] / readings.times[0])
  change = readings.reads[:, 1:] - readings.reads[:, :1]
  slopes = change @ periods / (periods @ periods)  # least squares, a cell
  groups = [slopes[readings.targets == level] for level in levels]
  mean, std = np.transpose([(x.mean(), x.std(ddof=1)) for x in groups])
  if not std.all():
    raise errors.InputError(
      f"{name}: got cells of {levels[std.argmin()]:g} S that all relax alike, "
      "needed are readings that differ"
    )
  root = np.sqrt([len(x) for x in groups])
  return np.array([mean, std]), np.array([std / root, std / root / np.sqrt(2)])


def _censored(exponents: np.ndarray) -> tuple[float, float]:
  """Returns (mean, deviation) of a normal variable seen as max(x, 0)."""
  seen = exponents[exponents > 0]
  hidden = len(exponents) - len(seen)
  scale = np.abs(exponents).max()
  if not hidden or not len(seen):
    return exponents.mean(), exponents.std()

  def loss(parameters):
    mean, std = parameters[0], np.exp(parameters[1])
    likely = scipy.stats.norm.logpdf(seen / scale, mean, std).sum()
    return -likely - hidden * scipy.stats.norm.logcdf(0, mean, std)

  start = exponents.mean() / scale, np.log(exponents.std() / scale)
  mean, log_std = scipy.optimize.minimize(loss, start, method="Nelder-Mead").x
  return scale * mean, scale * np.exp(log_std)


def _line(
  distance: Sequence[float], values: np.ndarray
) -> tuple[float, float, float, float]:
  """Returns (a, b, low, high) of a line; flat beyond the measured targets."""
  slope, offset = np.polyfit(distance, values, 1)
  fitted = np.maximum(slope * np.array(distance) + offset, 0)
  return slope, offset, fitted.min(), fitted.max()


def _drifts(device, g):
  """Returns means and deviations of exponents of conductances."""
  distance = np.log(g / device.g_on)
  for a, b, low, high in (device.drift_mean, device.drift_std):
    yield np.clip(a * distance + b, low, high)


def _draw(
  path: pathlib.Path,
  device: crossbar.Device,
  levels: np.ndarray,
  spread: np.ndarray,
  later: Sequence[np.ndarray] | None,
) -> None:
  """Writes the figure of what was measured, and of the fit."""
  from matplotlib import figure  # 0.4 s, for those who ask for it

  drawn = figure.Figure(
    (9 if later is not None else 4.5, 3.4), layout="constrained"
  )
  panels = drawn.subplots(1, 1 if later is None else 2, squeeze=False)[0]
  g = np.linspace(levels[0], levels[-1], 200)
  sigma = np.polynomial.Polynomial(device.write_sigma)(1e6 * g)
  panels[0].plot(1e6 * levels, 1e6 * spread, "o", label="measured")
  panels[0].plot(1e6 * g, np.maximum(sigma, 0), label="fit")
  panels[0].set(xlabel="target [µS]", ylabel="write error, rms [µS]")
  if later is not None:
    fits, scale, label = _drifts(device, g), 1, "drift exponent ν"
    if device.relaxation:
      scale, label = 1e6, "change with ln(t / t₀) [µS]"
      fits = [
        np.polynomial.Polynomial(x)(1e6 * g)
        for x in (device.relaxation_shift, device.relaxation_growth)
      ]
    for what, values, fit in zip(
      ("mean", "deviation"), later, fits, strict=True
    ):
      (points,) = panels[1].plot(1e6 * levels, scale * values, "o", label=what)
      panels[1].plot(1e6 * g, fit, color=points.get_color())
    panels[1].set(xlabel="target [µS]", ylabel=label)
  for panel in panels:
    panel.legend(frameon=False)
  with storage.write_errors(path):
    drawn.savefig(path)
