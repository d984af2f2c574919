"""The table of every net of a small space (benchmarks/table.py)."""

import importlib
import itertools
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from hawis_jax import cost

_ROOT = pathlib.Path(__file__).parents[1]
_NETS = 1024
# Rounded elsewhere, a training is as good as one of another seed: clean
# accuracies of one net then differ by 2 to 3 points (standard deviation).
_OTHER_MACHINE = 0.1


@pytest.fixture(scope="module")
def table():
  with np.load(_ROOT / "benchmarks" / "data" / "digits_1024.npz") as file:
    return dict(file)


def test_every_net_is_there_once(table):
  choices = json.loads(str(table["settings"]))["space.choices"]
  nets = list(itertools.product(*choices))
  assert len(set(nets)) == _NETS
  assert table["widths"].tolist() == [list(net) for net in nets]


def test_accuracies_are_shares_of_the_images(table):
  settings = json.loads(str(table["settings"]))
  seeds = len(table["seeds"])
  scenarios, chips = len(settings["search.scenarios"]), settings["search.chips"]
  assert table["clean"].shape == (seeds, _NETS)
  assert table["chips"].shape == (seeds, _NETS, scenarios, chips)
  for name in ("clean", "chips"):
    assert np.isfinite(table[name][0]).all()
    correct = table[name].astype(np.float64) * settings["search.images"]
    correct = correct[np.isfinite(correct)]
    assert (correct == np.round(correct)).all()
    assert correct.min() >= 0 and correct.max() <= settings["search.images"]
  missing = np.isnan(table["clean"])
  assert (np.isnan(table["chips"]) == missing[..., None, None]).all()


def test_costs_are_those_of_the_nets(table):
  levels = json.loads(str(table["settings"]))["data.levels"]
  geometry = cost.cifar_geometry(8, (8, 8, 1), levels, 10, (64, 64))
  expected = cost.network_cost(table["widths"].astype(np.int64), geometry)
  for kind in ("arrays", "macs"):
    np.testing.assert_array_equal(table[kind], getattr(expected, kind))


def test_every_script_starts(monkeypatch):
  """Imported, each finds what it takes of the package."""
  folder = _ROOT / "benchmarks"
  monkeypatch.syspath_prepend(str(folder))
  scripts = sorted(path.stem for path in folder.glob("*.py"))
  assert len(scripts) > 10
  for script in scripts:
    module = importlib.import_module(script)
    assert module.__doc__ and pathlib.Path(module.__file__).parent == folder


@pytest.mark.slow
def test_nets_come_back(table):
  numbers = np.random.default_rng(0).integers(_NETS, size=2)
  result = subprocess.run(
    [
      sys.executable,
      _ROOT / "benchmarks" / "table.py",
      "--retrain",
      *map(str, numbers),
    ],
    env={**os.environ, "PYTHONPATH": str(_ROOT)},
    check=True,
    capture_output=True,
    text=True,
  )
  rows = [json.loads(line) for line in result.stdout.splitlines()]
  assert [row["net"] for row in rows] == numbers.tolist()
  for row in rows:
    assert row["clean_stored"] == table["clean"][0, row["net"]]
    difference = abs(row["clean"] - row["clean_stored"])
    if row["same_environment"]:
      assert difference == 0
      assert row["greatest_difference_of_chips"] == 0
    assert difference < _OTHER_MACHINE
