"""Devices fitted to measured cells, against simulated ones."""

import dataclasses
import pathlib
import re

import numpy as np
import pytest

from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax import interop
from hawis_jax.crossbar import defects

_HEADING = "cell,target,time,read"


def _simulate(rng, device, levels, cells, times):
  """Readings of the crossbar's own formulas: (targets, times, reads)."""
  targets = np.repeat(levels, cells)
  written = defects.write_error(targets, rng.normal(size=targets.size), device)
  normal = rng.normal(size=targets.size)
  aged = (dataclasses.replace(device, drift_time=time) for time in times)
  reads = [np.asarray(defects.drift(written, normal, one)) for one in aged]
  return targets, times, np.stack(reads, 1)


def _write(path, targets, times, reads):
  lines = [
    f"{cell},{target:.9g},{time:.9g},{read:.9g}"
    for cell, (target, row) in enumerate(zip(targets, reads, strict=True))
    for time, read in zip(times, row, strict=True)
  ]
  path.write_text("\n".join(["\ufeff" + _HEADING, *lines]))
  return path


def test_a_device_makes_the_round_trip(rng, tmp_path):
  """Simulated cells have the fitted error and drift: the preset's."""
  device = crossbar.PRESETS["pcm"]
  levels = np.linspace(8e-6, 25e-6, 7)
  data = _simulate(rng, device, levels, 1500, (20.0, 100.0, 1e3, 1e4))
  plot = tmp_path / "fit.svg"
  found = interop.fit_device(_write(tmp_path / "x.csv", *data), plot=plot)
  assert plot.read_text().lstrip().startswith("<?xml")
  assert (found.g_off, found.g_on) == pytest.approx((8e-6, 25e-6))
  assert (found.drift_start, found.drift_time) == (20.0, 1e4)
  assert found.write_error == 1
  micro = 1e6 * levels
  sigma, expected = (
    np.polynomial.Polynomial(one.write_sigma)(micro) for one in (found, device)
  )
  # 1500 errors tell their deviation to 1.8 %; 5 of those.
  np.testing.assert_allclose(sigma, expected, rtol=0.09)

  def line(one, field):
    a, b, low, high = getattr(one, field)
    return np.clip(a * np.log(levels / one.g_on) + b, low, high)

  np.testing.assert_allclose(
    line(found, "drift_mean"), line(device, "drift_mean"), atol=3e-3
  )
  np.testing.assert_allclose(
    line(found, "drift_std"), line(device, "drift_std"), atol=2e-3
  )
  # And the cells that it makes are those measured.
  again = _simulate(rng, found, levels, 1500, data[1])[2]
  for level in levels:
    of = data[0] == level
    for moment in (np.mean, np.std):
      np.testing.assert_allclose(
        moment(again[of], 0), moment(data[2][of], 0), rtol=0.12
      )


def test_relaxation_makes_the_round_trip(rng, tmp_path):
  """Cells that shift and spread with ln t, as the crossbar's formulas do."""
  device = dataclasses.replace(
    crossbar.PRESETS["reram_wan2022_relaxed"], relaxation_shift=(-0.02, -0.004)
  )
  levels, times = np.linspace(18e-6, 36e-6, 8), (2.0, 60.0, 3600.0, 86400.0)
  targets = np.repeat(levels, 2000)
  device = dataclasses.replace(device, relaxation_start=times[0])

  def simulate(one):
    normal = rng.normal(size=(2, targets.size))
    written = defects.write_error(targets, normal[0], one)
    aged = (dataclasses.replace(one, retention_time=time) for time in times)
    return np.stack(
      [defects.relaxation(written, targets, normal[1], x) for x in aged], 1
    )

  reads, plot = simulate(device), tmp_path / "fit.svg"
  path = _write(tmp_path / "x.csv", targets, times, reads)
  found = interop.fit_device(path, 4, plot, retention="relaxation")
  assert "change with ln(t" in plot.read_text()
  assert (found.relaxation_start, found.retention_time) == (2.0, 86400.0)
  assert found.relaxation == 1 and not found.drift_time
  for field, rtol, atol in (
    # 2000 slopes tell their mean to 1 / 45 of their deviation, that to 1.6 %.
    ("relaxation_shift", 0, 5 * 0.3 / np.sqrt(2000)),
    ("relaxation_growth", 0.08, 0),
  ):
    got, expected = (
      np.polynomial.Polynomial(getattr(one, field))(1e6 * levels)
      for one in (found, device)
    )
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol)
  # And the cells that it makes are those measured.
  again = simulate(found)
  for level in levels:
    of = targets == level
    for moment, rtol in ((np.mean, 0.02), (np.std, 0.12)):
      np.testing.assert_allclose(
        moment(again[of], 0), moment(reads[of], 0), rtol=rtol
      )


def test_exponents_below_0_are_censored(rng, tmp_path):
  """Without that a half of them at 0 would halve the deviation."""
  fields = dict(drift_mean=(0, 0.01, 0, 1), drift_std=(0, 0.02, 0, 1))
  device = dataclasses.replace(crossbar.PRESETS["pcm"], **fields)
  levels = np.linspace(8e-6, 25e-6, 3)
  data = _simulate(rng, device, levels, 3000, (20.0, 1e4))
  found = interop.fit_device(_write(tmp_path / "x.csv", *data))
  assert found.drift_mean[2:] == pytest.approx((0.01, 0.01), abs=2e-3)
  assert found.drift_std[2:] == pytest.approx((0.02, 0.02), abs=2e-3)


def test_one_reading_a_cell_gives_no_drift(rng, tmp_path):
  device = crossbar.PRESETS["reram_milo2021"]
  levels = np.linspace(50e-6, 225e-6, 4)
  data = _simulate(rng, device, levels, 4000, (1.0,))
  path = _write(tmp_path / "x.csv", *data)
  found = interop.fit_device(path, degree=1)
  assert not found.drift_time and len(found.write_sigma) == 2
  sigma = np.polynomial.Polynomial(found.write_sigma)(1e6 * levels)
  expected = np.polynomial.Polynomial(device.write_sigma)(1e6 * levels)
  np.testing.assert_allclose(sigma, expected, rtol=0.06)
  crossbar.validate(found)


def _lines(count=8, targets=(1e-5, 2e-5), read=1.1, times=(1,)):
  return [
    f"{target}-{cell},{target},{time},{target * read}"
    for target in targets
    for cell in range(count)
    for time in times
  ]


@pytest.mark.parametrize(
  "lines, message",
  [
    (None, "got 'nothing' as first line, needed is cell,target,time,read"),
    (
      ["a,1e-5,1"],
      "reading 1: got 'a,1e-5,1', needed are a name and 3 numbers",
    ),
    (
      ["a,1e-5,1,x"],
      "reading 1: got 'a,1e-5,1,x', needed are a name and 3 num",
    ),
    (["a,1e-5,1,nan"], "read nan S, needed are finite ones"),
    (["a,0,1,1e-5"], "got target 0 S, time 1 s, read 1e-05 S, needed are"),
    (["a,1e-5,0,1e-5"], "got target 1e-05 S, time 0 s, read"),
    (["a,1e-5,1,-1"], "read -1 S, needed are finite ones, target and time"),
    (["a,1,1,1", "a,1,1,2"], "reading 2: got a second target or reading of ce"),
    (["a,1,1,1", "a,2,2,1"], "reading 2: got a second target or reading of ce"),
    (["a,1,1,1", "b,1,2,1"], "got no reading of cell 'a' at 2 s, needed are"),
    (
      _lines(7),
      "got 2 targets of 7 cells or more, needed are at least 2, of 8",
    ),
    (_lines(targets=(1e-5,)), "got 1 targets of 8 cells or more, needed are"),
    ([], "got 0 targets of 0 cells or more, needed are at least 2"),
    (
      _lines(read=1),
      "got no error at target 1e-05 S, needed are first reading",
    ),
    (
      _lines(read=0, times=(1, 2)),
      "got a reading of 0 S of a cell that changes",
    ),
    (
      [*_lines(), *_lines(read=1.12, times=(2,))],
      "that drift upwards on average, allowed are those that fall",
    ),
    (
      _lines(targets=(1e-5, 1.001e-5)),
      "g_off, g_on: got 1e-05, 1.001e-05 S, n",
    ),
  ],
)
def test_bad_readings_are_named(tmp_path, lines, message):
  path = tmp_path / "x.csv"
  path.write_text("" if lines is None else "\n".join([_HEADING, *lines]))
  with pytest.raises(errors.InputError, match=re.escape(message)) as caught:
    interop.fit_device(path)
  assert "\n" not in str(caught.value) and "x.csv" in str(caught.value)


def test_a_missing_file_and_a_bad_degree_are_named(tmp_path):
  with pytest.raises(errors.InputError, match="degree: got -1, allowed are wh"):
    interop.fit_device(tmp_path / "x.csv", degree=-1)
  with pytest.raises(errors.InputError, match="retention: got 'log', allowed"):
    interop.fit_device(tmp_path / "x.csv", retention="log")
  (tmp_path / "x.csv").write_text(
    "\n".join([_HEADING, *_lines(), *_lines(read=1.12, times=(2,))])
  )
  with pytest.raises(errors.InputError, match="of 1e-05 S that all relax ali"):
    interop.fit_device(tmp_path / "x.csv", retention="relaxation")
  with pytest.raises(errors.InputError, match="none.csv"):
    interop.fit_device(tmp_path / "none.csv")


def test_the_example_of_the_documentation_runs(rng, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  page = pathlib.Path(__file__).parents[1] / "docs" / "own_data_and_devices.md"
  blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
  device, levels = crossbar.PRESETS["pcm"], np.linspace(8e-6, 25e-6, 3)
  data = _simulate(rng, device, levels, 50, (20.0, 1000.0))
  _write(tmp_path / "cells.csv", *data)
  made = {}
  exec(next(code for code in blocks if "fit_device" in code), made)
  text = (tmp_path / "mine.json").read_text()
  assert crossbar.from_json(text) == made["device"]
