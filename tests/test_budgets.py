"""Budgets against enumeration: windows, limits, products that skip layers."""

import itertools
import re

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from hawis_jax import budgets
from hawis_jax import cost
from hawis_jax import errors
from hawis_jax import widths

_KINDS = tuple(name for name, kind in cost.KINDS.items() if kind.additive)


def _random_space(rng, num_layers, skipping):
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
  return space, _geometry(int(rng.integers(1, 97)), positions, skipping)


def _geometry(planes, positions, skipping=False):
  """A chain of 3x3 convolutions and a head of 10 outputs.

  With `skipping`, every second layer also reads the last but one, as projection
  shortcuts do.
  """
  inputs = [planes, *map(cost.Layer, range(len(positions)))]
  products = [
    cost.Product(inputs[layer], cost.Layer(layer), 9, count)
    for layer, count in enumerate(positions)
  ]
  if skipping:
    products += [
      cost.Product(cost.Layer(i - 2), cost.Layer(i), 1, positions[i])
      for i in range(2, len(positions), 2)
    ]
  products.append(cost.Product(inputs[-1], 10, 1, 1))
  return cost.Geometry(tuple(products), positions, cost.Hardware((64, 64)))


def _every(space, geometry):
  """(choices, widths, Cost) of all vectors."""
  choices = np.array(
    list(itertools.product(*(range(len(c)) for c in space.choices)))
  )
  vectors = space.table[np.arange(choices.shape[1]), choices]
  return choices, vectors, cost.network_cost(vectors, geometry)


def _draws(feasible, window, seed, num=256):
  keys = jax.random.split(jax.random.key(seed), num)
  return np.asarray(_sample(feasible, keys, jnp.asarray(window)))


@jax.jit
def _sample(feasible, keys, window):  # its tables as constants compile slowly
  return jax.vmap(feasible.sample, (0, None))(keys, window)


@jax.jit
def _reaches(feasible, vectors):
  """Whether vectors `[N, L]` can be chosen, layer by layer, in window 0."""

  def step(prefix, choice):
    possible = jnp.isfinite(feasible.log_counts(0, prefix)[choice])
    return feasible.extend(0, prefix, choice), possible

  return jax.vmap(
    lambda vector: jax.lax.scan(step, feasible.start(), vector)[1].all()
  )(jnp.asarray(vectors))


def _first_counts(feasible, window=0):
  counts = feasible.log_counts(window, feasible.start())
  return np.exp(np.asarray(counts, np.float64)).sum()


@given(
  st.integers(0, 2**31 - 1),
  st.integers(2, 6),
  st.sampled_from(_KINDS),
  st.booleans(),
)
@settings(max_examples=10, deadline=None)
def test_feasible_set_holds_exactly_the_window(
  seed, num_layers, kind, skipping
):
  """Every completion count, hence every drawn vector, against enumeration."""
  rng = np.random.default_rng(seed)
  space, geometry = _random_space(rng, num_layers, skipping)
  costs = cost.tables(space.table, geometry, kind)
  choices, _, every = _every(space, geometry)
  total = cost.KINDS[kind].of(every)
  np.testing.assert_allclose(
    budgets.cost_range(space, costs), (total.min(), total.max()), rtol=1e-12
  )
  np.testing.assert_allclose(
    budgets.vector_cost(costs, choices), total, rtol=1e-12
  )
  highs = np.sort(1.05 * rng.choice(total, 2))
  windows = [(0.7 * high, high) for high in highs]
  feasible = budgets.feasible_set(space, costs, windows)
  for window, (low, high) in enumerate(windows):
    inside = (total >= low) & (total <= high)
    unit = budgets.cost_unit(costs, high)
    integers = np.issubdtype(costs.dtype, np.integer)
    exact = integers and unit == np.gcd.reduce(costs, axis=None)
    slack = 0 if exact else num_layers * unit  # costs are rounded up
    if exact:
      np.testing.assert_allclose(
        _first_counts(feasible, window), inside.sum(), rtol=1e-5
      )
    drawn = budgets.vector_cost(costs, _draws(feasible, window, seed))
    assert (drawn <= high * (1 + 1e-9)).all()
    assert (drawn >= low - slack).all()
    says = np.asarray(feasible.contains(window, jnp.asarray(choices)))
    assert says[(total >= low) & (total <= high - slack)].all()
    assert not says[(total < low - slack) | (total > high * (1 + 1e-9))].any()


@given(st.integers(0, 2**31 - 1), st.booleans())
@settings(max_examples=10, deadline=None)
def test_one_limit_excludes_what_exceeds_it_and_no_more(seed, skipping):
  rng = np.random.default_rng(seed)
  space, geometry = _random_space(rng, 5, skipping)
  choices, vectors, every = _every(space, geometry)
  high = float(np.quantile(every.arrays, 0.8))
  inside = (every.arrays >= 0.5 * high) & (every.arrays <= high)
  if not inside.any():
    return
  kind = ("energy", "macs")[seed % 2]
  limited = cost.KINDS[kind].of(every)
  # A value that vectors have: they meet it, where it is an integer.
  most = np.sort(limited[inside])[inside.sum() // 3].item()
  exact = kind == "macs" and most < 2**22  # else costs are rounded up
  wanted = inside & (limited <= most * (1 if exact else 1 - 1e-4))
  if not wanted.any():
    return
  limit = budgets.Limit(cost.tables(space.table, geometry, kind), most)
  feasible = budgets.feasible_set(
    space,
    cost.tables(space.table, geometry, "arrays"),
    [(0.5 * high, high)],
    [limit],
  )
  drawn = _draws(feasible, 0, seed, 2048)
  drawn_cost = cost.network_cost(space.table[np.arange(5), drawn], geometry)
  assert (drawn_cost.arrays <= high).all()
  assert (drawn_cost.arrays >= 0.5 * high).all()
  assert (cost.KINDS[kind].of(drawn_cost) <= most * (1 + 1e-9)).all()
  assert np.asarray(feasible.contains(0, choices))[wanted].all()
  # Every vector that meets the limit can be reached, choice by choice.
  assert np.asarray(_reaches(feasible, choices[wanted])).all()


@given(st.integers(0, 2**31 - 1), st.booleans())
@settings(max_examples=10, deadline=None)
def test_no_draw_breaks_any_of_several_limits(seed, skipping):
  """Among them the slowest layer's time, which is no sum."""
  rng = np.random.default_rng(seed)
  space, geometry = _random_space(rng, 6, skipping)
  _, _, every = _every(space, geometry)
  kinds = ("energy", "area", "interval")
  # A vector that meets all limits, so that there is one.
  known = rng.integers(len(every.macs))
  limits = [
    budgets.Limit(
      cost.tables(space.table, geometry, kind),
      1.001 * float(cost.KINDS[kind].of(every)[known]),
      not cost.KINDS[kind].additive,
      kind,
    )
    for kind in kinds
  ]
  high = 1.001 * float(every.latency_second[known])
  costs = cost.tables(space.table, geometry, "latency")
  feasible = budgets.feasible_set(space, costs, [(0, high)], limits)
  drawn = space.table[np.arange(6), _draws(feasible, 0, seed)]
  drawn_cost = cost.network_cost(drawn, geometry)
  for limit, kind in zip(limits, kinds, strict=True):
    got = cost.KINDS[kind].of(drawn_cost)
    assert (got <= limit.most * (1 + 1e-9)).all(), kind
  assert (drawn_cost.latency_second <= high * (1 + 1e-9)).all()


@pytest.mark.parametrize("skipping", [False, True])
def test_sampling_is_uniform_over_the_feasible_set(skipping):
  space = widths.WidthSpace(((8, 40, 72),) * 4)
  geometry = _geometry(3, (1,) * 4, skipping)
  costs = cost.tables(space.table, geometry, "arrays")
  choices, _, every = _every(space, geometry)
  low, high = np.quantile(every.arrays, 0.3), np.quantile(every.arrays, 0.7)
  count = ((every.arrays >= low) & (every.arrays <= high)).sum()
  # The window of interest is the second of two.
  feasible = budgets.feasible_set(space, costs, [(0, high), (low, high)])
  seed = np.random.default_rng().integers(2**31)
  drawn = _draws(feasible, 1, seed, 200 * count)
  found, counts = np.unique(drawn, axis=0, return_counts=True)
  assert len(found) == count
  assert stats.chisquare(counts).pvalue > 1e-6


def test_cost_bands_are_uniform_in_cost():
  space = widths.width_space(((8, 16, 24), (16, 32, 48), (32, 64, 96)), 13)
  geometry = cost.cifar_geometry(14, (8, 8, 1), 8, 10, (64, 64))
  for kind in ("macs", "energy"):
    costs = cost.tables(space.table, geometry, kind)
    bands = budgets.cost_bands(space, costs, 10)
    assert bands.windows == 10
    cheapest, dearest = budgets.cost_range(space, costs)
    for index in range(10):
      drawn = budgets.vector_cost(costs, _draws(bands, index, index, 32))
      share = (drawn - cheapest) / (dearest - cheapest)
      # Units are rounded: about dearest / 512 a layer.
      assert (np.abs(share - (index + 0.5) / 10) < 0.05 + 13 / 512).all()


@pytest.mark.parametrize("kind", _KINDS)
def test_budgets_at_both_ends_of_the_range(kind):
  """The narrowest net is in its own budget, the widest just beyond its own."""
  rng = np.random.default_rng()
  space, geometry = _random_space(rng, 5, bool(rng.integers(2)))
  costs = cost.tables(space.table, geometry, kind)
  cheapest, dearest = budgets.cost_range(space, costs)
  windows = [(0, cheapest), (0, 1.01 * dearest)]
  feasible = budgets.feasible_set(space, costs, windows)
  narrow = jnp.zeros(5, jnp.int32)
  wide = jnp.asarray([len(c) - 1 for c in space.choices])
  assert feasible.contains(0, narrow) and feasible.contains(1, wide)
  drawn = budgets.vector_cost(costs, _draws(feasible, 0, 0))
  assert (drawn <= cheapest * (1 + 1e-9)).all()


def test_draws_within_a_limit_are_uniform():
  space = widths.WidthSpace(((8, 40, 72),) * 4)
  geometry = _geometry(3, (9, 5, 3, 1))
  choices, _, every = _every(space, geometry)
  high = np.quantile(every.arrays, 0.8)
  most = int(np.quantile(every.macs, 0.4))
  count = ((every.arrays <= high) & (every.macs <= most)).sum()
  feasible = budgets.feasible_set(
    space,
    cost.tables(space.table, geometry, "arrays"),
    [(0, high)],
    [budgets.Limit(cost.tables(space.table, geometry, "macs"), most)],
  )
  seed = np.random.default_rng().integers(2**31)
  drawn = _draws(feasible, 0, seed, 100 * count)
  found, counts = np.unique(drawn, axis=0, return_counts=True)
  assert len(found) == count
  assert stats.chisquare(counts).pvalue > 1e-6


def test_infeasible_budget_names_the_range():
  space = widths.WidthSpace(((64, 128),) * 3)
  geometry = _geometry(8, (1,) * 3)
  costs = cost.tables(space.table, geometry, "arrays")
  low, high = budgets.cost_range(space, costs)
  with pytest.raises(errors.InputError, match=f"cost {low} to {high}"):
    budgets.feasible_set(space, costs, [(0, low - 1)])
  with pytest.raises(
    errors.InputError, match=re.escape(f"cost {low} to {high}")
  ):
    budgets.feasible_set(space, costs, [(0, high), (high + 1, high + 2)])
  energy = cost.tables(space.table, geometry, "energy")
  cheapest = budgets.cost_range(space, energy)[0]
  limit = budgets.Limit(energy, 0.9 * cheapest, name="energy")
  with pytest.raises(errors.InputError, match="limits: got energy"):
    budgets.feasible_set(space, costs, [(0, high)], [limit])
