"""Width spaces and feasible sets, against brute force."""

import itertools
import re

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import numpy as np
import pytest
from scipy import stats

from hawis_jax import cost
from hawis_jax import errors
from hawis_jax import widths


def _random_space(rng, num_layers):
  choices = tuple(
    tuple(
      int(w)
      for w in np.sort(
        rng.choice(np.arange(1, 200), rng.integers(1, 4), replace=False)
      )
    )
    for _ in range(num_layers)
  )
  space = widths.WidthSpace(choices)
  positions = tuple(int(p) for p in rng.integers(1, 300, num_layers))
  return space, _geometry(int(rng.integers(1, 97)), positions)


def _geometry(planes, positions):
  """A chain of 3x3 convolutions and a head of 10 outputs."""
  inputs = [planes, *map(cost.Layer, range(len(positions)))]
  products = [
    cost.Product(inputs[layer], cost.Layer(layer), 9, count)
    for layer, count in enumerate(positions)
  ]
  head = cost.Product(inputs[-1], 10, 1, 1)
  return cost.Geometry((*products, head), positions, (64, 64))


def _brute_force(space, geometry, kind):
  vectors = np.array(list(itertools.product(*space.choices)), np.int64)
  return vectors, getattr(cost.network_cost(vectors, geometry), kind)


@given(
  st.integers(0, 2**31 - 1), st.integers(2, 6), st.sampled_from(cost.COUNTS[:2])
)
@settings(max_examples=10)
def test_feasible_set_holds_exactly_the_window(seed, num_layers, kind):
  """Every completion count, hence every drawn vector, against enumeration."""
  rng = np.random.default_rng(seed)
  space, geometry = _random_space(rng, num_layers)
  costs = cost.pair_costs(space.table, geometry, kind)
  vectors, total = _brute_force(space, geometry, kind)
  assert widths.cost_range(space, costs) == (total.min(), total.max())
  high = 1.05 * rng.choice(total)
  low = 0.7 * high
  table = widths.feasible_set(space, costs, low, high)
  count = np.exp(np.asarray(table.log_counts(0, 0, 0), np.float64)).sum()
  inside = ((total >= low) & (total <= high)).sum()
  unit = widths.cost_unit(costs, high)
  exact = unit == np.gcd.reduce(costs, axis=None)  # else costs are rounded up
  if exact:
    np.testing.assert_allclose(count, inside, rtol=1e-5)
  keys = jax.random.split(jax.random.key(seed), 64)
  draws = jax.jit(jax.vmap(table.sample))(keys)
  drawn = np.asarray(widths.take(space.table, draws), np.int64)
  drawn_cost = getattr(cost.network_cost(drawn, geometry), kind)
  assert (drawn_cost <= high).all()
  assert (drawn_cost >= low - (0 if exact else num_layers * unit)).all()


def test_sampling_is_uniform_over_the_feasible_set():
  space = widths.WidthSpace(((8, 40, 72),) * 4)
  geometry = _geometry(3, (1,) * 4)
  costs = cost.pair_costs(space.table, geometry, "arrays")
  vectors, total = _brute_force(space, geometry, "arrays")
  low, high = np.quantile(total, 0.3), np.quantile(total, 0.7)
  feasible = vectors[(total >= low) & (total <= high)]
  table = widths.feasible_set(space, costs, low, high)
  seed = np.random.default_rng().integers(2**31)
  draws = jax.vmap(table.sample)(
    jax.random.split(jax.random.key(seed), 200 * len(feasible))
  )
  drawn = np.asarray(widths.take(space.table, draws))
  found, counts = np.unique(drawn, axis=0, return_counts=True)
  assert len(found) == len(feasible)
  assert stats.chisquare(counts).pvalue > 1e-6


def test_cost_bands_are_uniform_in_cost():
  space = widths.width_space(((8, 16, 24), (16, 32, 48), (32, 64, 96)), 13)
  geometry = cost.cifar_geometry(14, (8, 8, 1), 8, 10, (64, 64))
  costs = cost.pair_costs(space.table, geometry, "macs")
  bands = widths.cost_bands(space, costs, 10)
  assert bands.units.shape[0] == 10
  cheapest, dearest = widths.cost_range(space, costs)
  for index in range(10):
    band = jax.tree.map(lambda x, i=index: x[i], bands)
    draws = jax.vmap(band.sample)(jax.random.split(jax.random.key(index), 32))
    macs = cost.network_cost(
      np.asarray(widths.take(space.table, draws), np.int64), geometry
    ).macs
    share = (macs - cheapest) / (dearest - cheapest)
    # Units are rounded: about dearest / 512 a layer.
    assert (np.abs(share - (index + 0.5) / 10) < 0.05 + 13 / 512).all()


def test_infeasible_budget_names_the_range():
  space = widths.WidthSpace(((64, 128),) * 3)
  geometry = _geometry(8, (1,) * 3)
  costs = cost.pair_costs(space.table, geometry, "arrays")
  low, high = widths.cost_range(space, costs)
  with pytest.raises(errors.InputError, match=f"cost {low} to {high}"):
    widths.feasible_set(space, costs, 0, low - 1)
  # Between two reachable costs there is nothing either.
  with pytest.raises(errors.InputError, match="holds no width vector"):
    widths.feasible_set(space, costs, low + 0.5, low + 0.9)


def test_uniform_net_is_the_widest_within_the_budget():
  space = widths.width_space(
    ((8, 16, 24, 32), (16, 32, 48, 64), (32, 64, 96, 128)), 7
  )
  geometry = cost.cifar_geometry(8, (8, 8, 1), 8, 10, (64, 64))
  costs = cost.pair_costs(space.table, geometry, "arrays")
  base = (8, 8, 8, 16, 16, 32, 32)
  for factor in (1, 2, 3, 4):
    scaled = tuple(factor * w for w in base)
    budget = widths.vector_cost(space, costs, scaled)
    got = widths.uniform_widths(space, base, costs, budget)
    assert widths.vector_cost(space, costs, got) <= budget
    assert all(g >= s for g, s in zip(got, scaled, strict=True))
    assert widths.vector_cost(space, costs, got) == int(
      cost.network_cost(np.array(got), geometry).arrays
    )
  with pytest.raises(errors.InputError, match="needed is at least"):
    widths.uniform_widths(space, base, costs, 1)


@pytest.mark.parametrize(
  "choices, message",
  [
    (((8,), (16,)), "got 2 tuples"),
    (((8,), (16,), ()), "layer 5: got ()"),
    (((16, 8), (16,), (32,)), "layer 0"),
    (((8, 8), (16,), (32,)), "layer 0"),
    (((0, 8), (16,), (32,)), "layer 0"),
    (((8.0,), (16,), (32,)), "layer 0"),
  ],
)
def test_bad_choices_are_named(choices, message):
  with pytest.raises(errors.InputError, match=re.escape(message)):
    widths.width_space(choices, 7, name="config.space.choices")


def test_vectors_outside_the_choices_are_named():
  space = widths.WidthSpace(((8, 16), (8, 16)))
  with pytest.raises(errors.InputError, match=r"found\[1\]: got 12, allowed"):
    space.check((8, 12), "found")
  with pytest.raises(errors.InputError, match="got 3 widths, needed are 2"):
    space.check((8, 8, 8))


def test_published_presets_fit_their_networks():
  for name, vector in widths.PRESETS.items():
    depth = int(name.split("_")[0].removeprefix("resnet"))
    assert len(vector) == depth - 1
