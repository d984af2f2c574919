"""The policy: feasibility, the uniform start, what it sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from hawis_jax import cost
from hawis_jax.networks import width_vectors
from hawis_jax.search import method
from hawis_jax.search import policy_network

_SPACE = width_vectors.width_space(
  ((8, 24, 40), (16, 32, 72), (32, 64, 130)), 7
)
_GEOMETRY = cost.cifar_geometry(8, (8, 8, 1), 8, 10, (64, 64))
_COSTS = cost.tables(_SPACE.table, _GEOMETRY, "arrays")
_LOWS, _HIGHS = np.array([40, 60]), np.array([46, 70])
_POLICY = policy_network.Policy(3, 64)
_BOTH = np.repeat(np.arange(2, dtype=np.int32), 256)
_propose = jax.jit(policy_network.propose, static_argnums=1)
_evaluate = jax.jit(policy_network.evaluate, static_argnums=0)


@pytest.fixture(scope="module")
def setup():
  """(fresh params, context)."""
  ranges = list(zip(_LOWS, _HIGHS, strict=True))
  feasible = cost.feasible_set(_SPACE, _COSTS, ranges)
  context = method.make_context(
    _SPACE, feasible, _COSTS, _GEOMETRY.positions, _HIGHS
  )
  init = jax.jit(policy_network.init, static_argnums=1)
  return init(jax.random.key(0), _POLICY, context), context


def _scrambled(rng, params, scale):
  return jax.tree.map(
    lambda x: x + (scale * rng.normal(size=x.shape)).astype(np.float32),
    jax.device_get(params),
  )


def test_every_proposal_is_within_its_budget(setup, rng):
  """Whatever the parameters, even absurd ones."""
  params, context = setup
  for scale in (0, 1, 30):
    proposals = _propose(
      jax.random.key(scale),
      _POLICY,
      _scrambled(rng, params, scale),
      context,
      _BOTH,
    )
    vectors = _SPACE.table[np.arange(7), np.asarray(proposals.choices)]
    arrays = cost.network_cost(vectors, _GEOMETRY).arrays
    assert (arrays >= _LOWS[_BOTH]).all() and (arrays <= _HIGHS[_BOTH]).all()
    assert np.isfinite(proposals.log_probs).all()
    assert np.isfinite(proposals.entropies).all()


def test_a_fresh_policy_is_the_uniform_sampler(setup):
  params, context = setup
  proposals = _propose(jax.random.key(5), _POLICY, params, context, _BOTH)
  total = np.asarray(proposals.log_probs).sum(1)

  @jax.jit
  def counts(budget_range):
    return context.feasible.log_counts(budget_range, context.feasible.start())

  for budget_range in range(2):
    first = np.exp(np.asarray(counts(budget_range), np.float64))
    np.testing.assert_allclose(
      total[budget_range == _BOTH], -np.log(first.sum()), rtol=1e-4
    )


def test_log_probabilities_are_those_of_the_draws(setup, rng):
  """`evaluate` repeats `propose`; frequencies follow the probabilities.

  And it sees the budget: with another one the first layer's are others.
  """
  params, context = setup
  params, zeros = _scrambled(rng, params, 0.5), np.zeros(512, np.int32)
  parts = [
    _propose(jax.random.key(seed), _POLICY, params, context, zeros)
    for seed in range(8)
  ]
  choices, log_probs = parts[0].choices, np.asarray(parts[0].log_probs)
  again = _evaluate(_POLICY, params, context, zeros, choices)
  np.testing.assert_allclose(again.log_probs, log_probs, atol=1e-4)
  # All choices of the first layer are possible in both ranges.
  other = _evaluate(_POLICY, params, context, zeros + 1, choices).log_probs
  assert np.abs(np.asarray(other) - log_probs)[:, 0].max() > 1e-3
  first = np.concatenate([np.asarray(part.choices)[:, 0] for part in parts])
  every = np.concatenate([np.asarray(part.log_probs)[:, 0] for part in parts])
  expected = {c: float(np.exp(every[first == c][0])) for c in np.unique(first)}
  assert abs(sum(expected.values()) - 1) < 1e-3
  for choice, p in expected.items():
    count = int((first == choice).sum())
    assert stats.binomtest(count, 4096, min(p, 1.0)).pvalue > 1e-6


def test_rank_advantages():
  values = np.array([0.1, 0.9, 0.5, 0.5, -7.0], np.float32)
  rank_advantages = jax.jit(policy_network.rank_advantages)
  ranks = stats.rankdata(values)
  expected = (ranks - ranks.mean()) / ranks.std()
  np.testing.assert_allclose(rank_advantages(values), expected, atol=1e-6)
  equal = rank_advantages(jnp.ones(5))
  np.testing.assert_array_equal(equal, np.zeros(5))
