"""Search methods: within budgets and limits, and better than random."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from hawis_jax import cost
from hawis_jax.networks import width_vectors
from hawis_jax.search import method
from hawis_jax.search import neighbours
from hawis_jax.search import predictor
from hawis_jax.search import random_search
from hawis_jax.search import registry

_STAGE_CHOICES = ((8, 16, 24, 40), (16, 32, 48, 72), (32, 64, 96, 130))
_SPACE = width_vectors.width_space(_STAGE_CHOICES, 7)
_GEOMETRY = cost.cifar_geometry(8, (8, 8, 1), 8, 10, (64, 64))
_RANGES = ((44, 48), (66, 72))
_DEAR = ("policy", "predictor")  # which learn networks
_LEARNING = ("ppo", "reinforce", "predictor", "evolution", "local")


def _context(geometry=_GEOMETRY, ranges=_RANGES, limits=()):
  costs = cost.tables(_SPACE.table, geometry, "arrays")
  feasible = cost.feasible_set(_SPACE, costs, ranges, limits)
  amounts = [high for _, high in ranges]
  return method.make_context(
    _SPACE, feasible, costs, geometry.positions, amounts
  )


def _method(name, **fields):
  fields = {"proposals": 16, "updates": 60, **fields}
  return registry.build(name, method.Settings(**fields))


def _key(rng):
  return jax.random.key(rng.integers(2**31))


@jax.jit
def _draw(keys, feasible):
  """Choices `[K, N, L]` for keys `[K, N]`, a row a budget range."""
  draw = jax.vmap(feasible.sample, (0, None))
  return jax.vmap(draw)(keys, jnp.arange(len(keys)))


@functools.cache
def _searches(name, updates, noise, proposals=16):
  """Jitted searches with a reward that falls with distance from a target."""
  method = _method(name, updates=updates, proposals=proposals)

  def run(key, context, target):
    init_key, key = jax.random.split(key)

    def update(state, step):
      propose, learn, luck, chips = jax.random.split(
        jax.random.fold_in(key, step), 4
      )
      choices, notes = method.propose(propose, state, context, step)
      rewards = -0.01 * jnp.abs(choices - target[:, None]).sum(-1)
      # What an update's chips do to all, and to each.
      noisy = rewards + 0.02 * jax.random.normal(chips)
      noisy += noise * jax.random.normal(luck, rewards.shape)
      state, _ = method.learn(
        learn, state, context, step, notes, choices, noisy, noisy
      )
      return state, (choices, rewards)

    state = method.init(init_key, context)
    return jax.lax.scan(update, state, jnp.arange(updates))[1]

  @jax.jit
  def every(keys, context, targets):
    # Not vmapped: a batched QR can deadlock XLA's thread pool (jaxlib 0.10.2).
    return jax.lax.map(
      lambda pair: run(pair[0], context, pair[1]), (keys, targets)
    )

  return every


@pytest.mark.parametrize("name", registry.NAMES)
def test_every_proposal_is_within_budgets_and_limits(name, rng):
  """Of a network whose products, as projection shortcuts, skip a layer."""
  skipping = [
    cost.Product(cost.Layer(i - 2), cost.Layer(i), 1, _GEOMETRY.positions[i])
    for i in (3, 5)
  ]
  geometry = dataclasses.replace(
    _GEOMETRY, products=(*_GEOMETRY.products, *skipping)
  )
  # The limit binds: half of the random vectors exceed it.
  energy = cost.tables(_SPACE.table, geometry, "energy")
  keys = jax.random.split(_key(rng), (2, 200))
  loose = np.asarray(_draw(keys, _context(geometry).feasible))[0]
  most = float(np.median(cost.vector_cost(energy, loose)))
  context = _context(geometry, limits=[cost.Limit(energy, most)])
  # The predictor's are distinct however many there are.
  proposals = 64 if name == "predictor" else 16
  keys = jax.random.split(_key(rng), 1)
  target = np.full((1, 2, 7), 3)  # beyond the budget: pulls outwards
  choices, _ = _searches(name, 8, 0.0, proposals)(keys, context, target)
  choices = np.asarray(choices)[0]
  assert choices.shape == (8, 2, proposals, 7)
  found = cost.network_cost(_SPACE.table[np.arange(7), choices], geometry)
  for budget_range, (low, high) in enumerate(_RANGES):
    if name != "per_stage":  # there are too few
      assert (found.arrays[:, budget_range] >= low).all()
    assert (found.arrays[:, budget_range] <= high).all()
  assert (found.energy_joule <= most * (1 + 1e-9)).all()
  if name == "predictor":
    for each in choices.reshape(16, proposals, 7):
      assert len(np.unique(each, axis=0)) > 62


@functools.cache
def _planted_rewards(name, seed):
  """Rewards `[16, 60, 1, 16]` of searches, each for a target of its own."""
  context = _context(ranges=_RANGES[:1])
  target_keys, keys = jax.random.split(jax.random.key(seed), (2, 16))
  targets = _draw(target_keys[None], context.feasible)[0]
  _, rewards = _searches(name, 60, 0.01)(keys, context, targets[:, None])
  return np.asarray(rewards)


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=pytest.mark.slow if name in _DEAR else ())
    for name in ("policy", *_LEARNING)
  ],
)
def test_planted_optimum(name, rng):
  """A known best vector: found, and what is proposed is far beyond random.

  In all of 16 searches, but where a method is known to miss: of 200 REINFORCE
  settled too early in 44, evolution failed in 4 and local search in 2.
  """
  seed = int(rng.integers(2**31))
  late = _planted_rewards(name, seed)[:, -10:]
  random = _planted_rewards("random", seed)
  axes = (1, 2, 3)
  beyond = late.mean(axes) > np.quantile(random, 0.95, axis=axes)
  near = late.max(axes) > -0.035  # at most three steps of a layer away
  least = {"reinforce": 0.5, "evolution": 0.85, "local": 0.85}.get(name, 1)
  assert (beyond & near).mean() >= least


@pytest.mark.slow
def test_policy_uses_its_model_while_that_ranks(rng):
  """What it expects of scores before it learns them is compared with them."""
  context = _context(ranges=_RANGES[:1])
  method = _method("policy", updates=4, least_correlation=0.3)
  propose, learn = jax.jit(method.propose), jax.jit(method.learn)
  expect = jax.jit(predictor.predict)
  state = jax.jit(method.init)(_key(rng), context)
  values = rng.permutation(16) / 16
  running = 0.0
  for step, sign in enumerate((1, 1, -1, -1)):
    choices, notes = propose(_key(rng), state, context, step)
    expected = np.asarray(expect(state.model, context, choices))[0]
    # Just what is expected, or the opposite.
    rewards = values[None].astype(np.float32)
    if step:
      rewards = (sign * expected / np.abs(expected).max())[None]
    state, said = learn(
      _key(rng), state, context, step, notes, choices, rewards, rewards
    )
    found = stats.spearmanr(expected, rewards[0]).statistic if step else 0.0
    np.testing.assert_allclose(state.correlations[step], found, atol=1e-5)
    assert step == 0 or abs(found - sign) < 1e-5
    kept = min(0.8, (step - 1) / step) if step else 0.0
    running = kept * running + (1 - kept) * found
    np.testing.assert_allclose(said["correlation"], running, atol=1e-5)
    assert said["modelled"] == (running >= 0.3)
  assert np.isclose(running, -1 / 3)  # (0, 1, -1, -1): the first is no guess


def test_per_stage_vectors_have_one_scale_a_stage(rng):
  context = _context(ranges=((0, 200),))
  keys, target = jax.random.split(_key(rng), 1), np.zeros((1, 1, 7), int)
  choices, _ = _searches("per_stage", 8, 0.0)(keys, context, target)
  stages = np.split(np.asarray(choices).reshape(-1, 7), (3, 5), axis=1)
  for stage in stages:
    assert (stage == stage[:, :1]).all()
  assert len(np.unique(np.concatenate(stages, 1), axis=0)) > 20


def test_vectors_of_one_scale_a_stage_are_told_apart_once():
  """Stages of 4, 2 and 2 choices have 16, and no vector of them is lost."""
  choices = ((4, 8, 12, 16), (8, 16), (16, 32))
  space = width_vectors.width_space(choices, 7)
  costs = cost.tables(space.table, _GEOMETRY, "arrays")
  whole = cost.feasible_set(space, costs, [(0, 1e9)])
  context = method.make_context(space, whole, costs, _GEOMETRY.positions, [1e9])
  vectors, differs = map(np.asarray, random_search.stage_vectors(context, 3))
  assert len(vectors) == 64 and differs.sum() == 16
  np.testing.assert_array_equal(
    np.unique(vectors[differs], axis=0), np.unique(vectors, axis=0)
  )


def test_neighbours_are_all_that_differ_in_up_to_two_layers(rng):
  context = _context()
  every = np.stack(np.meshgrid(*[np.arange(4)] * 7, indexing="ij"), -1)
  every = every.reshape(-1, 7)
  every = every[np.asarray(jax.jit(context.feasible.contains)(0, every))]

  def near(start):
    distance = (every != start).sum(1)
    return every[(distance >= 1) & (distance <= 2)]

  # A vector that has some.
  start = next(s for s in rng.permutation(every) if len(near(s)) > 5)
  step = jax.jit(jax.vmap(neighbours.neighbour, (0, None, None, None)))
  found = step(jax.random.split(_key(rng), 20_000), context, 0, start)
  found = np.unique(found, axis=0)
  # It is kept where two layers leave no choice.
  found = found[(found != start).any(1)]
  np.testing.assert_array_equal(found, near(start))


def test_predictor_is_the_ridge_regression_within_updates(rng):
  """Against NumPy's normal equations in float64."""
  context, method = _context(), _method("predictor")
  features_of = jax.jit(predictor._features)
  learn, state = jax.jit(method.learn), jax.jit(method.init)(_key(rng), context)
  features, rewards = [], []
  for step in range(5):
    choices = _draw(jax.random.split(_key(rng), (2, 16)), context.feasible)
    advantages = rng.normal(size=(2, 16)).astype(np.float32) + 3 * step
    # Proposals follow rewards in a unit of their own, the estimate advantages.
    reward = rng.normal(size=(2, 16)).astype(np.float32) * 100
    state, _ = learn(
      _key(rng), state, context, step, (), choices, reward, advantages
    )
    x = np.asarray(features_of(context, choices), np.float64)
    features.append((x - x.mean(1, keepdims=True)).reshape(32, -1))
    rewards.append((advantages - advantages.mean(1, keepdims=True)).reshape(-1))
  x, y = np.concatenate(features), np.concatenate(rewards)
  gram = x.T @ x + predictor._PRIOR * np.eye(x.shape[1])
  weights = np.linalg.solve(gram, x.T @ y)
  tried = rng.integers(0, 4, (2, 16, 7)).astype(np.int32)
  expected = np.asarray(features_of(context, tried)) @ weights
  estimate = jax.jit(method.estimate)
  for budget_range in range(2):
    got = estimate(state, context, budget_range, tried[budget_range])
    np.testing.assert_allclose(
      got, expected[budget_range], rtol=1e-3, atol=1e-3
    )


def test_regularised_evolution_forgets_the_oldest(rng):
  context, method = _context(), _method("evolution", population=32)
  state = jax.jit(method.init)(_key(rng), context)
  learn, propose = jax.jit(method.learn), jax.jit(method.propose)
  scored = []
  for step in range(5):
    choices, notes = propose(_key(rng), state, context, step)
    if step < 2:  # the first population: each member once
      part = np.asarray(state.choices)[:, 16 * step : 16 * step + 16]
      np.testing.assert_array_equal(choices, part)
    scored.append(rng.normal(size=(2, 16)).astype(np.float32))
    state, _ = learn(
      _key(rng), state, context, step, notes, choices, scored[-1], ()
    )
  expected = np.sort(np.concatenate(scored[-2:], 1), 1)
  np.testing.assert_array_equal(np.sort(np.asarray(state.rewards), 1), expected)
