"""The table of every net of a small space (benchmarks/table.py)."""

import functools
import importlib
import itertools
import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hawis_jax import cost
from hawis_jax.networks import net_variables
from hawis_jax.networks import resnet
from hawis_jax.training import fixed_net
from hawis_jax.training import optimization

_ROOT = pathlib.Path(__file__).parents[1]
_NETS = 1024
# Rounded elsewhere, a training is as good as one of another seed: of the best
# nets clean accuracies then differ by 4 points (root of the mean square), by 12
# at most in 240 pairs.
_OTHER_MACHINE = 0.2


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
  # Those that searches meet: within 20 % of a budget of MACs.
  budget = np.quantile(table["macs"], 0.6)
  within = (0.8 * budget <= table["macs"]) & (table["macs"] <= budget)
  assert within.sum() == 317
  for name in ("clean", "chips"):
    assert np.isfinite(table[name][:2]).all()
    fresh = np.isfinite(table[name][2:]).all((0, *range(2, table[name].ndim)))
    assert fresh.sum() == 60 and within[fresh].all()
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


def _script(monkeypatch, name):
  monkeypatch.syspath_prepend(str(_ROOT / "benchmarks"))
  return importlib.import_module(name)


def test_every_script_starts(monkeypatch):
  """Imported, each finds what it takes of the package."""
  folder = _ROOT / "benchmarks"
  scripts = sorted(path.stem for path in folder.glob("*.py"))
  assert len(scripts) > 10
  for script in scripts:
    module = _script(monkeypatch, script)
    assert module.__doc__ and pathlib.Path(module.__file__).parent == folder


def test_a_net_at_its_widths_trains_as_the_narrower_one(rng, monkeypatch):
  """From the same weights, which have the narrower net's own variance."""
  table = _script(monkeypatch, "table")

  widest, vector = (32, 32, 32, 48, 48, 64, 64), (16, 32, 8, 20, 33, 24, 64)
  wide, narrow = (
    resnet.cifar_resnet(8, w, 10, levels=4) for w in (widest, vector)
  )
  # Not Adam, which turns gradients of a rounding error into whole steps.
  optimizer = optax.sgd(0.1)
  key, shape = jax.random.key(rng.integers(2**31)), (8, 8, 1)
  start = jax.jit(optimization.init_state, static_argnums=(0, 2, 3))
  masked = start(wide, key, shape, optimizer)
  fresh = table.narrowed(masked.params, wide, jnp.array(vector))
  # Fresh shifts of 0 put dead channels exactly on the edge of the gradient.
  shifted = jax.tree.map(
    lambda x: x + rng.uniform(0.1, 0.4) if x.ndim == 1 else x, fresh
  )
  masked = masked.replace(params=shifted)
  example = net_variables.shapes(narrow, shape)
  cut = {
    name: jax.tree.map(
      lambda x, like: x[tuple(slice(n) for n in like.shape)],
      getattr(masked, name),
      example[name],
    )
    for name in ("params", "batch_stats")
  }
  sliced = optimization.TrainState(
    **cut, opt_state=optimizer.init(cut["params"])
  )
  kernel = cut["params"]["stage3_block0"]["conv1"]["kernel"]
  assert float(kernel.std()) == pytest.approx(np.sqrt(2 / (9 * 24)), rel=0.1)
  steps = [
    jax.jit(
      functools.partial(
        fixed_net.train_step,
        module=module,
        optimizer=optimizer,
        recipe=fixed_net.Recipe(),
        widths=widths,
      )
    )
    for module, widths in ((wide, np.array(vector, np.int32)), (narrow, None))
  ]
  for _ in range(2):
    batch = {
      "image": jnp.asarray(rng.integers(0, 256, (16, *shape)), jnp.uint8),
      "label": jnp.asarray(rng.integers(0, 10, 16)),
    }
    masked, first = steps[0](masked, batch)
    sliced, second = steps[1](sliced, batch)
    assert first["loss"] == pytest.approx(float(second["loss"]), rel=1e-2)


def test_regret_is_the_sum_of_what_is_lost_on_the_way(monkeypatch):
  """Of nets that it names, in a table of which all is known."""
  regret = _script(monkeypatch, "pipeline_regret")
  truth = types.SimpleNamespace(
    mean=np.array([10.0, 40.0, np.nan, 70.0, 55.0, 62.0]), crossed=lambda: 66.0
  )
  truth.of = lambda vectors: truth.mean[np.array(vectors)[:, 0]]
  # It scored 62, named one of 55 beside 40 for selection, and took that of 40.
  scored, chosen = [[0], [1], [5]], [[1], [4]]
  found = regret.parts(truth, scored=scored, chosen=chosen, found=[1])
  assert found == {
    "mean": 70 - 40,
    "proposal": 70 - 62,
    "ranking": 62 - 55,
    "selection": 55 - 40,
    "crossed": 66 - 40,
    "found": 40,
  }


@pytest.mark.slow
def test_nets_come_back(table):
  best = np.flatnonzero(np.isfinite(table["clean"]).all(0))
  numbers = np.random.default_rng(0).choice(best, size=2)
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
