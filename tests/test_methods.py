"""Search methods: within budgets and limits, and better than random."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hawis_jax import budgets
from hawis_jax import config as config_lib
from hawis_jax import cost
from hawis_jax import methods
from hawis_jax import policy as policy_lib
from hawis_jax import widths
from hawis_jax.methods import neighbours
from hawis_jax.methods import predictor

_STAGE_CHOICES = ((8, 16, 24, 40), (16, 32, 48, 72), (32, 64, 96, 130))
_SPACE = widths.width_space(_STAGE_CHOICES, 7)
_GEOMETRY = cost.cifar_geometry(8, (8, 8, 1), 8, 10, (64, 64))
_WINDOWS = ((44, 48), (66, 72))
_LEARNING = ("ppo", "reinforce", "predictor", "evolution", "local")


def _context(space=_SPACE, geometry=_GEOMETRY, windows=_WINDOWS, limits=()):
  costs = cost.tables(space.table, geometry, "arrays")
  feasible = budgets.feasible_set(space, costs, windows, limits)
  amounts = [high for _, high in windows]
  return policy_lib.make_context(
    space, feasible, costs, geometry.positions, amounts
  )


def _config(**fields):
  config = config_lib.default().search
  config.update({"proposals": 16, "updates": 60, **fields})
  return config


def _seed():
  return int(np.random.default_rng().integers(2**31))


@functools.cache
def _runner(name, updates, noise):
  """A jitted search with a reward that falls with distance from a target."""
  config = _config(updates=updates)
  method = methods.build(name, config, 3)

  def reward(choices, target):
    return -0.01 * jnp.abs(choices - target[:, None]).sum(-1)

  @jax.jit
  def run(key, context, target):
    init_key, key = jax.random.split(key)

    def update(state, step):
      propose, learn, luck, chips = jax.random.split(
        jax.random.fold_in(key, step), 4
      )
      choices, notes = method.propose(propose, state, context, step)
      rewards = reward(choices, target)
      # What an update's chips do to all, and to each.
      noisy = rewards + 0.02 * jax.random.normal(chips)
      noisy += noise * jax.random.normal(luck, rewards.shape)
      state, _ = method.learn(
        learn, state, context, step, notes, choices, noisy, noisy
      )
      return state, (choices, rewards)

    state = method.init(init_key, context)
    return jax.lax.scan(update, state, jnp.arange(updates))

  return run


@pytest.mark.parametrize("name", methods.NAMES)
def test_every_proposal_is_within_budgets_and_limits(name):
  space, geometry = _SPACE, _GEOMETRY
  energy = cost.tables(space.table, geometry, "energy")
  # The limit binds: half of the random vectors exceed it.
  free = _context()
  keys = jax.random.split(jax.random.key(_seed()), 200)
  loose = jax.vmap(free.feasible.sample, (0, None))(keys, 0)
  most = float(np.median(budgets.vector_cost(energy, np.asarray(loose))))
  context = _context(limits=[budgets.Limit(energy, most)])
  target = jnp.full((2, 7), 3)  # beyond the budget: pulls outwards
  _, (choices, _) = _runner(name, 8, 0.0)(
    jax.random.key(_seed()), context, target
  )
  choices = np.asarray(choices)
  assert choices.shape == (8, 2, 16, 7)
  vectors = space.table[np.arange(7), choices]
  found = cost.network_cost(vectors, geometry)
  for window, (low, high) in enumerate(_WINDOWS):
    if name != "per_stage":  # there are too few
      assert (found.arrays[:, window] >= low).all()
    assert (found.arrays[:, window] <= high).all()
  assert (found.energy_joule <= most * (1 + 1e-9)).all()


def test_every_proposal_is_feasible_for_a_resnet18():
  """Its projection shortcuts join layers that are not adjacent."""
  geometry = cost.imagenet_geometry("7x7", 32, 1, 10, (64, 64))
  space = widths.width_space(
    ((8, 24, 40), (16, 48, 80), (32, 64, 130), (64, 128, 200)), 17, 4
  )
  costs = cost.tables(space.table, geometry, "arrays")
  high = float(np.mean(budgets.cost_range(space, costs)))
  context = _context(space, geometry, [(0.95 * high, high)])
  target = jnp.zeros((1, 17), jnp.int32)
  for name in ("ppo", "predictor", "evolution"):
    _, (choices, _) = _runner(name, 4, 0.0)(
      jax.random.key(_seed()), context, target
    )
    vectors = space.table[np.arange(17), np.asarray(choices)]
    arrays = cost.network_cost(vectors, geometry).arrays
    assert (arrays <= high).all() and (arrays >= 0.95 * high).all(), name


@pytest.mark.parametrize("name", _LEARNING)
def test_planted_optimum(name):
  """A known best vector: found, and what is proposed is far beyond random.

  In all of 32 searches, but where a method is known to miss: of 200 REINFORCE
  settled too early in 44, evolution failed in 4 and local search in 2.
  """
  context = _context(windows=_WINDOWS[:1])
  keys = jax.random.split(jax.random.key(_seed()), (2, 32))

  def rewards(name):
    def one(target_key, key):
      target = context.feasible.sample(target_key, 0)[None]
      return _runner(name, 60, 0.01)(key, context, target)[1][1]

    # Not vmapped: a batched QR can deadlock XLA's thread pool (jaxlib 0.10.2).
    return np.asarray(jax.lax.map(lambda key: one(*key), tuple(keys)))

  late = rewards(name)[:, -10:]
  random = rewards("random")
  axes = (1, 2, 3)
  beyond = late.mean(axes) > np.quantile(random, 0.95, axis=axes)
  near = late.max(axes) > -0.035  # at most three steps of a layer away
  least = {"reinforce": 0.5, "evolution": 0.85, "local": 0.85}.get(name, 1)
  assert (beyond & near).mean() >= least


def test_per_stage_vectors_have_one_scale_a_stage():
  context = _context(windows=((0, 200),))
  _, (choices, _) = _runner("per_stage", 8, 0.0)(
    jax.random.key(_seed()), context, jnp.zeros((1, 7), jnp.int32)
  )
  stages = np.split(np.asarray(choices).reshape(-1, 7), (3, 5), axis=1)
  for stage in stages:
    assert (stage == stage[:, :1]).all()
  assert len(np.unique(np.concatenate(stages, 1), axis=0)) > 20


def test_neighbours_are_all_that_differ_in_up_to_two_layers():
  context = _context()
  every = np.stack(np.meshgrid(*[np.arange(4)] * 7, indexing="ij"), -1)
  every = every.reshape(-1, 7)
  every = every[np.asarray(context.feasible.contains(0, jnp.asarray(every)))]

  def near(start):
    distance = (every != start).sum(1)
    return every[(distance >= 1) & (distance <= 2)]

  # A vector that has some.
  starts = np.random.default_rng().permutation(every)
  start = next(start for start in starts if len(near(start)) > 5)
  keys = jax.random.split(jax.random.key(_seed()), 20_000)
  step = jax.jit(
    jax.vmap(
      lambda key: neighbours.neighbour(key, context, 0, jnp.asarray(start))
    )
  )
  found = np.unique(step(keys), axis=0)
  # It is kept where two layers leave no choice.
  found = found[(found != start).any(1)]
  np.testing.assert_array_equal(found, near(start))


def test_predictor_is_the_ridge_regression_within_updates():
  """Against NumPy's normal equations in float64."""
  context, rng = _context(), np.random.default_rng()
  method = methods.build("predictor", _config(), 3)
  state = method.init(jax.random.key(0), context)
  features, signals = [], []
  learn = jax.jit(method.learn)
  for step in range(5):
    keys = jax.random.split(jax.random.key(_seed()), (2, 16))
    draw = jax.vmap(context.feasible.sample, (0, None))
    choices = jax.vmap(draw)(keys, jnp.arange(2))
    gains = rng.normal(size=(2, 16)).astype(np.float32) + 3 * step
    # Proposals follow signals in a unit of their own, the estimate gains.
    signal = rng.normal(size=(2, 16)).astype(np.float32) * 100
    state, _ = learn(
      jax.random.key(step), state, context, step, (), choices, signal, gains
    )
    x = np.asarray(predictor._features(context, choices), np.float64)
    features.append((x - x.mean(1, keepdims=True)).reshape(32, -1))
    signals.append((gains - gains.mean(1, keepdims=True)).reshape(-1))
  x, y = np.concatenate(features), np.concatenate(signals)
  gram = x.T @ x + predictor._PRIOR * np.eye(x.shape[1])
  weights = np.linalg.solve(gram, x.T @ y)
  tried = jnp.asarray(rng.integers(0, 4, (2, 50, 7)))
  expected = np.asarray(predictor._features(context, tried)) @ weights
  for window in range(2):
    got = method.estimate(state, context, window, tried[window])
    np.testing.assert_allclose(got, expected[window], rtol=1e-3, atol=1e-3)


def test_regularised_evolution_forgets_the_oldest():
  context = _context()
  config = _config(population=32, proposals=16)
  method = methods.build("evolution", config, 3)
  state = method.init(jax.random.key(_seed()), context)
  learn, propose = jax.jit(method.learn), jax.jit(method.propose)
  scored = []
  for step in range(5):
    choices, notes = propose(jax.random.key(step), state, context, step)
    if step < 2:  # the first population: each member once
      part = state.choices[:, 16 * step : 16 * step + 16]
      np.testing.assert_array_equal(choices, part)
    signals = jax.random.normal(jax.random.key(step), (2, 16))
    state, _ = learn(
      jax.random.key(0), state, context, step, notes, choices, signals, ()
    )
    scored.append(np.asarray(signals))
  expected = np.sort(np.concatenate(scored[-2:], 1), 1)
  np.testing.assert_array_equal(np.sort(state.signals, 1), expected)


def test_predictor_proposes_distinct_vectors_however_many():
  context = _context(windows=((20, 60),))
  config = _config(proposals=300)
  method = methods.build("predictor", config, 3)
  state = method.init(jax.random.key(_seed()), context)
  choices, _ = jax.jit(method.propose)(
    jax.random.key(_seed()), state, context, 0
  )
  assert len(np.unique(choices[0], axis=0)) > 290
