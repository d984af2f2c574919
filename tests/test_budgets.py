"""Budgets against enumeration: ranges, limits, products that skip layers."""

import dataclasses
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

from hawis_jax import cost
from hawis_jax import errors
from hawis_jax.networks import width_vectors

_KINDS = tuple(name for name, kind in cost.KINDS.items() if kind.additive)


def _random_space(rng, num_layers, skipping):
  """Up to three widths a layer, and a layer that has three."""
  sizes = rng.integers(1, 4, num_layers)
  sizes[rng.integers(num_layers)] = 3
  choices = tuple(
    tuple(np.sort(rng.choice(np.arange(1, 200), n, replace=False)).tolist())
    for n in sizes
  )
  positions = tuple(rng.integers(1, 300, num_layers).tolist())
  geometry = _geometry(int(rng.integers(1, 97)), positions, skipping)
  return width_vectors.WidthSpace(choices), geometry


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
  """(choices, Cost) of all vectors."""
  choices = np.array(
    list(itertools.product(*(range(len(c)) for c in space.choices)))
  )
  vectors = space.table[np.arange(choices.shape[1]), choices]
  return choices, cost.network_cost(vectors, geometry)


def _padded(feasible):
  """With the units of the finest budget, as a budget range beside one has.

  All budgets then have one shape, so that XLA compiles one program.
  """
  most = 2**14 if feasible.units.shape[2] == 1 else 2**12

  def pad(x, value):
    missing = [(0, 0)] * (x.ndim - 1) + [(0, most + 1 - x.shape[-1])]
    return np.pad(x, missing, constant_values=value)

  return dataclasses.replace(
    feasible,
    completions=pad(feasible.completions, -np.inf),
    witness=pad(feasible.witness, 2**22 + 1),
  )


def _probe(feasible, budget_range, seed, choices, num=256):
  """What a set says of a range: draws, their number, which `choices` it has.

  And which of them can be chosen, layer by layer.
  """
  keys = jax.random.split(jax.random.key(seed), num)
  size = 3 ** choices.shape[1]  # of the largest space
  padded = np.resize(choices, (size, choices.shape[1]))
  found = _probed(feasible, keys, budget_range, padded)
  drawn, count, inside, reached = map(np.asarray, found)
  return drawn, count, inside[: len(choices)], reached[: len(choices)]


@jax.jit
def _probed(feasible, keys, budget_range, choices):  # constants compile slowly
  def step(prefix, choice):
    possible = jnp.isfinite(feasible.log_counts(budget_range, prefix)[choice])
    return feasible.extend(budget_range, prefix, choice), possible

  return (
    jax.vmap(feasible.sample, (0, None))(keys, budget_range),
    jnp.exp(feasible.log_counts(budget_range, feasible.start())).sum(),
    feasible.contains(budget_range, choices),
    jax.vmap(
      lambda vector: jax.lax.scan(step, feasible.start(), vector)[1].all()
    )(choices),
  )


@given(
  st.integers(0, 2**31 - 1),
  st.sampled_from([(2, False), (5, False), (5, True)]),
  st.sampled_from(_KINDS),
)
@settings(max_examples=15)
def test_feasible_set_holds_exactly_the_budget_range(seed, family, kind):
  """Every completion count, hence every drawn vector, against enumeration."""
  rng = np.random.default_rng(seed)
  space, geometry = _random_space(rng, *family)
  costs = cost.tables(space.table, geometry, kind)
  choices, every = _every(space, geometry)
  total = cost.KINDS[kind].of(every)
  np.testing.assert_allclose(
    cost.cost_range(space, costs), (total.min(), total.max()), rtol=1e-12
  )
  np.testing.assert_allclose(
    cost.vector_cost(costs, choices), total, rtol=1e-12
  )
  highs = np.sort(1.05 * rng.choice(total, 2))
  ranges = [(0.7 * high, high) for high in highs]
  feasible = _padded(cost.feasible_set(space, costs, ranges))
  for budget_range, (low, high) in enumerate(ranges):
    inside = (total >= low) & (total <= high)
    unit = cost.cost_unit(costs, high)
    integers = np.issubdtype(costs.dtype, np.integer)
    exact = integers and unit == np.gcd.reduce(costs, axis=None)
    slack = 0 if exact else family[0] * unit  # costs are rounded up
    drawn, count, says, _ = _probe(feasible, budget_range, seed, choices)
    if exact:
      np.testing.assert_allclose(count, inside.sum(), rtol=1e-5)
    drawn = cost.vector_cost(costs, drawn)
    assert (drawn <= high * (1 + 1e-9)).all()
    assert (drawn >= low - slack).all()
    assert says[(total >= low) & (total <= high - slack)].all()
    assert not says[(total < low - slack) | (total > high * (1 + 1e-9))].any()


@given(st.integers(0, 2**31 - 1), st.booleans())
@settings(max_examples=10)
def test_one_limit_excludes_what_exceeds_it_and_no_more(seed, skipping):
  rng = np.random.default_rng(seed)
  space, geometry = _random_space(rng, 5, skipping)
  choices, every = _every(space, geometry)
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
  limit = cost.Limit(cost.tables(space.table, geometry, kind), most)
  costs = cost.tables(space.table, geometry, "arrays")
  feasible = cost.feasible_set(space, costs, [(0.5 * high, high)], [limit])
  drawn, _, says, reached = _probe(_padded(feasible), 0, seed, choices, 2048)
  drawn_cost = cost.network_cost(space.table[np.arange(5), drawn], geometry)
  assert (drawn_cost.arrays <= high).all()
  assert (drawn_cost.arrays >= 0.5 * high).all()
  assert (cost.KINDS[kind].of(drawn_cost) <= most * (1 + 1e-9)).all()
  assert says[wanted].all()
  # Every vector that meets the limit can be reached, choice by choice.
  assert reached[wanted].all()


@given(st.integers(0, 2**31 - 1), st.booleans())
@settings(max_examples=10)
def test_no_draw_breaks_any_of_several_limits(seed, skipping):
  """Among them the slowest layer's time, which is no sum."""
  rng = np.random.default_rng(seed)
  space, geometry = _random_space(rng, 5, skipping)
  choices, every = _every(space, geometry)
  kinds = ("energy", "area", "interval")
  # A vector that meets all limits, so that there is one.
  known = rng.integers(len(every.macs))
  limits = [
    cost.Limit(
      cost.tables(space.table, geometry, kind),
      1.001 * float(cost.KINDS[kind].of(every)[known]),
      not cost.KINDS[kind].additive,
      kind,
    )
    for kind in kinds
  ]
  high = 1.001 * float(every.latency_second[known])
  costs = cost.tables(space.table, geometry, "latency")
  feasible = cost.feasible_set(space, costs, [(0, high)], limits)
  drawn = _probe(_padded(feasible), 0, seed, choices)[0]
  drawn_cost = cost.network_cost(space.table[np.arange(5), drawn], geometry)
  for limit, kind in zip(limits, kinds, strict=True):
    got = cost.KINDS[kind].of(drawn_cost)
    assert (got <= limit.most * (1 + 1e-9)).all(), kind
  assert (drawn_cost.latency_second <= high * (1 + 1e-9)).all()


@pytest.mark.parametrize("case", ["chain", "skipping", "limited"])
def test_sampling_is_uniform_over_the_feasible_set(case, rng):
  space = width_vectors.WidthSpace(((8, 40, 72),) * 4)
  positions = (9, 5, 3, 1) if case == "limited" else (1,) * 4
  geometry = _geometry(3, positions, case == "skipping")
  costs = cost.tables(space.table, geometry, "arrays")
  choices, every = _every(space, geometry)
  low, high = np.quantile(every.arrays, 0.3), np.quantile(every.arrays, 0.7)
  inside, limits = (every.arrays >= low) & (every.arrays <= high), []
  if case == "limited":
    macs = cost.tables(space.table, geometry, "macs")
    limits.append(cost.Limit(macs, int(np.quantile(every.macs, 0.5))))
    inside &= every.macs <= limits[0].most
  # The budget_range of interest is the second of two.
  feasible = cost.feasible_set(space, costs, [(0, high), (low, high)], limits)
  seed, num = rng.integers(2**31), 200 * inside.sum()
  drawn = _probe(feasible, 1, seed, choices, num)[0]
  found, counts = np.unique(drawn, axis=0, return_counts=True)
  assert len(found) == inside.sum()
  assert stats.chisquare(counts).pvalue > 1e-6


@pytest.mark.parametrize("kind", ["macs", "energy"])
def test_cost_bands_are_uniform_in_cost(kind):
  space = width_vectors.width_space(
    ((8, 16, 24), (16, 32, 48), (32, 64, 96)), 13
  )
  geometry = cost.cifar_geometry(14, (8, 8, 1), 8, 10, (64, 64))
  costs = cost.tables(space.table, geometry, kind)
  bands = cost.cost_bands(space, costs, 10)
  assert bands.ranges == 10
  cheapest, dearest = cost.cost_range(space, costs)
  keys = jax.random.split(jax.random.key(0), 320)
  index = np.repeat(np.arange(10), 32)
  drawn = jax.jit(jax.vmap(bands.sample))(keys, index)
  spent = cost.vector_cost(costs, np.asarray(drawn))
  share = (spent - cheapest) / (dearest - cheapest)
  # Units are rounded: about dearest / 512 a layer.
  assert (np.abs(share - (index + 0.5) / 10) < 0.05 + 13 / 512).all()


@pytest.mark.parametrize("kind", ["arrays", "macs", "energy"])
def test_budgets_at_both_ends_of_the_range(kind, rng):
  """The narrowest net is in its own budget, the widest just beyond its own."""
  space, geometry = _random_space(rng, 5, False)
  costs = cost.tables(space.table, geometry, kind)
  choices = _every(space, geometry)[0]
  cheapest, dearest = cost.cost_range(space, costs)
  ranges = [(0, cheapest), (0, 1.01 * dearest)]
  feasible = cost.feasible_set(space, costs, ranges)
  drawn, _, says, _ = _probe(feasible, 0, 0, choices)
  assert says[0]  # in the order of enumeration the narrowest is the first
  assert _probe(feasible, 1, 0, choices)[2].all()
  assert (cost.vector_cost(costs, drawn) <= cheapest * (1 + 1e-9)).all()


@pytest.mark.parametrize("scale", [1, 1.0], ids=["integer", "float"])
def test_costs_beyond_the_finest_unit_are_rounded_up(rng, scale):
  """Counted in units of 1 / 2^14, no vector above a budget is ever inside."""
  space = width_vectors.WidthSpace(((1, 2, 3),) * 4)
  costs = np.zeros((4, 1, 3, 3), np.int64)
  costs[:] = np.sort(rng.integers(1, 10**9, (4, 1, 1, 3)), -1)
  costs = costs * scale
  choices = np.array(list(itertools.product(range(3), repeat=4)))
  spent = cost.vector_cost(costs, choices)
  for high in np.sort(spent)[40:60]:  # just too little for one of them
    feasible = cost.feasible_set(space, costs, [(0, high - 1)])
    inside = np.asarray(feasible.contains(0, jnp.asarray(choices)))
    assert inside.sum() > 20
    assert not inside[spent >= high].any(), high


def test_infeasible_budget_names_the_range():
  space = width_vectors.WidthSpace(((64, 128),) * 3)
  geometry = _geometry(8, (1,) * 3)
  costs = cost.tables(space.table, geometry, "arrays")
  low, high = cost.cost_range(space, costs)
  with pytest.raises(errors.InputError, match=f"cost {low} to {high}"):
    cost.feasible_set(space, costs, [(0, low - 1)])
  with pytest.raises(
    errors.InputError, match=re.escape(f"cost {low} to {high}")
  ):
    cost.feasible_set(space, costs, [(0, high), (high + 1, high + 2)])
  energy = cost.tables(space.table, geometry, "energy")
  cheapest = cost.cost_range(space, energy)[0]
  limit = cost.Limit(energy, 0.9 * cheapest, name="energy")
  with pytest.raises(errors.InputError, match="limits: got energy"):
    cost.feasible_set(space, costs, [(0, high)], [limit])


@pytest.mark.parametrize("back, dtype", [(1, int), (3, int), (1, float)])
def test_own_costs_are_counted_as_by_enumeration(rng, back, dtype):
  """Whichever way they rise and fall with widths."""
  space = width_vectors.WidthSpace(((2, 4, 9), (3, 5), (1, 7, 8), (4, 6, 8)))
  shape = (4, back, 3, 3)
  table = rng.integers(0, 60, shape) if dtype is int else rng.random(shape)
  table[0], table[1] = table[0, :1, :1], table[1, :1]
  costs = cost.own_tables(space, table)
  choices = np.array(
    list(itertools.product(*(range(len(c)) for c in space.choices)))
  )
  spent = np.array(
    [
      table[0, 0, 0, a]
      + table[1, 0, a, b]
      + table[2, min(a, back - 1), b, c]
      + table[3, min(b, back - 1), c, d]
      for a, b, c, d in choices
    ]
  )
  np.testing.assert_allclose(cost.vector_cost(costs, choices), spent)
  np.testing.assert_allclose(
    cost.cost_range(space, costs), (spent.min(), spent.max())
  )
  low, high = np.quantile(spent, (0.2, 0.6), method="nearest")
  feasible = cost.feasible_set(space, costs, [(low, high)])
  counted = np.exp(feasible.log_counts(0, feasible.start())).sum()
  inside = np.asarray(feasible.contains(0, jnp.asarray(choices)))
  np.testing.assert_allclose(counted, inside.sum(), rtol=1e-5)
  if dtype is int:
    np.testing.assert_array_equal(inside, (low <= spent) & (spent <= high))
  else:
    near = len(shape) * cost.cost_unit(costs, high)
    assert not inside[spent > high * (1 + 1e-9)].any()
    assert inside[(spent > low + near) & (spent < high - near)].all()
    assert not inside[spent < low - near].any()


def test_own_costs_are_functions_tables_or_lines():
  space = width_vectors.WidthSpace(((2, 4), (3,), (1, 7, 8)))
  function = lambda layer, inputs, outputs: layer + inputs * outputs  # noqa: E731
  table = cost.own_tables(space, function)
  assert table.dtype == np.int64 and table.shape == (3, 1, 3, 3)
  assert table[1, 0, 1, 0] == 1 + 4 * 3 and table[2, 0, 0, 2] == 2 + 3 * 8
  # A short layer's padding is its last choice, whatever stands there.
  given_table = table.copy()
  given_table[1, :, :, 1:], given_table[2, :, 1:] = 10**6, np.arange(3)
  np.testing.assert_array_equal(
    cost.own_tables(space, given_table[:, 0]), table
  )
  lines = ["layer,inputs,outputs,cost", "0,99,99,1"]  # of no choice: not read
  for layer, inputs, outputs in itertools.product(range(3), range(9), range(9)):
    lines.append(f"{layer},{inputs},{outputs},{layer + inputs * outputs}")
  text = "\n".join([*lines, ""])
  read = cost.own_tables_from_csv("\ufeff" + text, space, "x.csv")
  np.testing.assert_array_equal(read, table)
  assert read.dtype == np.int64
  text = text.replace("2,3,8,26\n", "2,3,8,26.5\n")
  halves = cost.own_tables_from_csv(text, space, "x")
  assert halves.dtype == np.float64 and halves[2, 0, 0, 2] == 26.5


@pytest.mark.parametrize(
  "costs, message",
  [
    (lambda *_: -1, "x(layer=0, inputs=0, outputs=2): got -1, needed is a f"),
    (lambda *_: np.nan, "x(layer=0, inputs=0, outputs=2): got nan, needed"),
    (lambda *_: 10**400, "x(layer=0, inputs=0, outputs=2): got "),
    (lambda *_: "1", "x(layer=0, inputs=0, outputs=2): got 1, needed is a f"),
    (lambda *_: True, "x(layer=0, inputs=0, outputs=2): got True, needed is"),
    (lambda *_: [1, 2], "x(layer=0, inputs=0, outputs=2): got [1 2], needed"),
    (lambda layer: 1, "x(layer=0, inputs=0, outputs=2): raised TypeError: "),
    (lambda *_: 2**53, "x: got up to 2.7"),
    (np.ones((3, 2, 2)), "x: got a table of shape (3, 2, 2), needed is (3, 3,"),
    (np.full((3, 3, 3), np.inf), "x[0, 0, 0, 0]: got inf, needed are finite"),
    (-np.ones((3, 3, 3), int), "x[0, 0, 0, 0]: got -1, needed are finite"),
    (np.ones((3, 3, 3), bool), "x: got a table of bool, needed are integers"),
    (np.arange(27).reshape(3, 3, 3), "x[0]: got costs that differ with the ch"),
    ("costs.csv", "x: got a table of <U9, needed are integers or floats"),
    (None, "x: got a table of object, needed are"),
  ],
)
def test_bad_own_costs(costs, message):
  space = width_vectors.WidthSpace(((2, 4), (3,), (1, 7, 8)))
  with pytest.raises(errors.InputError, match=re.escape(message)):
    cost.own_tables(space, costs, "x")


@pytest.mark.parametrize(
  "text, message",
  [
    ("", "x: got 'nothing' as first line, needed is layer,inputs,outputs,cost"),
    ("0,0,2,1", "x: got '0,0,2,1' as first line"),
    (
      "layer,inputs,outputs,cost\n0,0,2",
      "x, line 2: got '0,0,2', needed are f",
    ),
    ("layer,inputs,outputs,cost\n0,0,2,a", "x, line 2: could not convert"),
    (
      "layer,inputs,outputs,cost\n0,0,2,1\n",
      "x: got no line 0,0,4,..., needed",
    ),
    ("layer,inputs,outputs,cost\n0,0,2,1\n0,0,2,1", "x, line 3: got '0,0,2,1'"),
    ("layer,inputs,outputs,cost\n0,0,2,-1\n", "inputs=0, outputs=2): got -1"),
    (f"layer,inputs,outputs,cost\n0,0,2,{'9' * 400}", "outputs=2): got inf"),
    ("layer,inputs,outputs,cost\n\0,0,2,1", "x, line 2: "),
  ],
)
def test_bad_lines_of_own_costs(text, message):
  space = width_vectors.WidthSpace(((2, 4), (3,), (1, 7, 8)))
  with pytest.raises(errors.InputError, match=re.escape(message)):
    cost.own_tables_from_csv(text, space, "x")
