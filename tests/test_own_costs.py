"""Costs of the user's own in a run: files, budgets, what is kept of them."""

import json
import pathlib
import re

import numpy as np
import pytest

from hawis_jax import cost
from hawis_jax import data
from hawis_jax import errors
from hawis_jax.config import settings
from hawis_jax.pipeline import results
from hawis_jax.pipeline.experiment import with_splits

_SPLITS = data.Splits("digits", "", None, None, None, (8, 8, 1), 10)


@pytest.fixture
def config():
  config = settings.default()
  config.network.depth, config.data.levels = 8, 8
  config.network.base_widths = (4, 8, 16)
  config.space.choices = ((4, 8), (8, 16, 24), (16, 32))
  return config


@pytest.fixture
def table(config):
  """Costs that are those of MACs, to be compared with."""
  experiment = with_splits(config, _SPLITS)
  return cost.tables(experiment.space.table, experiment.geometry, "macs")


def _write_csv(path, space, table):
  lines = {
    f"{layer},{space.table[layer - 1, before] if layer else 0},"
    f"{space.table[layer, own]},{table[layer, 0, before, own]}"
    for layer, before, own in np.ndindex(*table[:, 0].shape)
  }
  path.write_text("\n".join(["layer,inputs,outputs,cost", *sorted(lines)]))


@pytest.mark.parametrize("suffix", [".csv", ".npz"])
def test_a_run_takes_costs_of_a_file(config, table, tmp_path, suffix):
  config.space.cost = "macs"
  expected = with_splits(config, _SPLITS)
  path = tmp_path / f"mine{suffix}"
  if suffix == ".csv":
    _write_csv(path, expected.space, table)
  else:
    np.savez(path, costs=table, widths=expected.space.table)
  config.space.cost = str(path)
  settings.validate(config)
  found = with_splits(config, _SPLITS)
  np.testing.assert_array_equal(found.costs, expected.costs)
  assert found.budgets == expected.budgets
  assert found.uniforms == expected.uniforms
  np.testing.assert_array_equal(
    found.feasible.completions, expected.feasible.completions
  )
  exact = found.exact_costs(found.uniforms[0])
  assert exact["own_cost"] == exact["macs"]


def test_a_run_keeps_the_digest_of_its_costs(config, table, tmp_path):
  space = with_splits(config, _SPLITS).space
  path, workdir = tmp_path / "mine.csv", tmp_path / "run"
  _write_csv(path, space, table)
  config.space.cost = str(path)
  results.settle(config, workdir)
  written = json.loads((workdir / "config.json").read_text())
  assert len(written["space.cost.resolved"]) == 64
  (workdir / "pretrain").mkdir()
  (workdir / "pretrain" / "begun").write_text("")
  path.write_text(path.read_text() + "\n0,0,99,5\n")  # of no choice
  results.settle(config, workdir)
  _write_csv(path, space, table + 1)
  with pytest.raises(errors.InputError, match="config.space.cost.resolved was"):
    results.settle(config, workdir)


@pytest.mark.parametrize(
  "change, message",
  [
    ({}, "config.search.budget_uniform = 3, base_widths times it[0]: got 12"),
    (dict(budget_of="resnet20_1x"), "config.search.budget_of: got 'resnet20_1"),
    (dict(budget=1e9), "config.search.budget: got 1e+09, allowed by"),
  ],
)
def test_budgets_of_own_costs(config, table, tmp_path, change, message):
  """Of vectors outside of the space nothing is known."""
  path = tmp_path / "mine.csv"
  _write_csv(path, with_splits(config, _SPLITS).space, table)
  config.space.cost = str(path)
  config.search.budget_uniform = 3.0
  config.search.update(change)
  with pytest.raises(errors.InputError, match=re.escape(message)):
    with_splits(config, _SPLITS)


@pytest.mark.parametrize(
  "name, content, message",
  [
    (
      "interval",
      None,
      "config.space.cost: got 'interval', allowed is one of a",
    ),
    ("none.csv", None, "config.space.cost: got 'none.csv', allowed is one of"),
    ("a.txt", "", "config.space.cost: got '"),
    (
      "a.csv",
      "",
      "got 'nothing' as first line, needed is layer,inputs,outputs",
    ),
    ("a.npz", "", "can't be read as .npz"),
    ("a.npz", dict(costs=1), "got arrays costs, needed are costs and widths"),
    ("a.npz", dict(costs=1, widths=1), "got widths that are not those of conf"),
  ],
)
def test_bad_files_of_costs(config, tmp_path, name, content, message):
  if content is not None:
    name = tmp_path / name
  if isinstance(content, dict):
    np.savez(name, **content)
  elif content is not None:
    name.write_text(content)
  config.space.cost = str(name)
  with pytest.raises(errors.InputError, match=re.escape(message)) as caught:
    settings.validate(config)
  assert "\n" not in str(caught.value)


def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  page = pathlib.Path(__file__).parents[1] / "docs" / "own_data_and_devices.md"
  blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
  exec(next(code for code in blocks if "own_costs" in code), {})
  config = settings.default()
  config.update_from_flattened_dict(
    {"network.depth": 8, "space.choices": ((4, 8), (8, 16), (16, 32))}
  )
  config.space.cost, config.search.budget = "latency.npz", 4.0
  settings.validate(config)
  experiment = with_splits(config, _SPLITS)
  assert 0 < cost.vector_cost(experiment.costs, np.zeros(7, int)) < 4.0
