"""The policy: feasibility, the uniform start, a planted optimum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from hawis_jax import cost
from hawis_jax import policy as policy_lib
from hawis_jax import widths

_SPACE = widths.width_space(((8, 24, 40), (16, 32, 72), (32, 64, 130)), 7)
_GEOMETRY = cost.cifar_geometry(8, (8, 8, 1), 8, 10, (64, 64))
_COSTS = cost.pair_costs(_SPACE.table, _GEOMETRY, "arrays")


@pytest.fixture(scope="module")
def setup():
  """(policy, params far from uniform, context, (low, high))."""
  low, high = 40, 46
  feasible = widths.feasible_set(_SPACE, _COSTS, low, high)
  context = policy_lib.make_context(_SPACE, feasible, _GEOMETRY.positions, 0.5)
  policy = policy_lib.Policy(3, 64)
  params = jax.jit(policy_lib.init, static_argnums=1)(
    jax.random.key(0), policy, context
  )
  return policy, params, context, (low, high)


def _arrays(context, choices):
  vectors = np.asarray(widths.take(context.widths, choices), np.int64)
  return cost.network_cost(vectors, _GEOMETRY).arrays


def _scrambled(params, scale):
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(
    jax.random.key(np.random.default_rng().integers(2**31)), len(leaves)
  )
  return tree.unflatten(
    [
      x + scale * jax.random.normal(k, x.shape)
      for k, x in zip(keys, leaves, strict=True)
    ]
  )


def test_every_proposal_is_within_the_budget(setup):
  """Whatever the parameters, even absurd ones."""
  policy, params, context, (low, high) = setup
  propose = jax.jit(policy_lib.propose, static_argnums=(1, 4))
  for scale in (0, 1, 30):
    proposals = propose(
      jax.random.key(scale), policy, _scrambled(params, scale), context, 256
    )
    arrays = _arrays(context, proposals.choices)
    assert arrays.min() >= low and arrays.max() <= high
    assert np.isfinite(proposals.log_probs).all()
    assert np.isfinite(proposals.entropies).all()


def test_a_fresh_policy_is_the_uniform_sampler(setup):
  policy, params, context, _ = setup
  propose = jax.jit(policy_lib.propose, static_argnums=(1, 4))
  proposals = propose(jax.random.key(5), policy, params, context, 512)
  total = np.asarray(proposals.log_probs).sum(1)
  first = np.exp(np.asarray(context.feasible.log_counts(0, 0, 0), np.float64))
  np.testing.assert_allclose(total, -np.log(first.sum()), rtol=1e-4)


def test_log_probabilities_are_those_of_the_draws(setup):
  """`evaluate` repeats `propose`; frequencies follow the probabilities."""
  policy, params, context, _ = setup
  params = _scrambled(params, 0.5)
  propose = jax.jit(policy_lib.propose, static_argnums=(1, 4))
  proposals = propose(jax.random.key(6), policy, params, context, 4096)
  again = jax.jit(policy_lib.evaluate, static_argnums=0)(
    policy, params, context, proposals.choices
  )
  np.testing.assert_allclose(again.log_probs, proposals.log_probs, atol=1e-4)
  first = np.asarray(proposals.choices)[:, 0]
  expected = {
    int(c): float(np.exp(proposals.log_probs[first == c, 0][0]))
    for c in np.unique(first)
  }
  assert abs(sum(expected.values()) - 1) < 1e-3
  for choice, p in expected.items():
    count = int((first == choice).sum())
    assert stats.binomtest(count, 4096, min(p, 1.0)).pvalue > 1e-6


def test_rank_advantages():
  got = policy_lib.rank_advantages(jnp.array([0.1, 0.9, 0.5, 0.5, -7.0]))
  ranks = stats.rankdata([0.1, 0.9, 0.5, 0.5, -7.0])
  expected = (ranks - ranks.mean()) / ranks.std()
  np.testing.assert_allclose(got, expected, atol=1e-6)
  equal = policy_lib.rank_advantages(jnp.ones(8))
  np.testing.assert_array_equal(equal, jnp.zeros(8))


def test_policy_finds_a_planted_optimum(setup):
  """A reward with a known best vector: found, and beyond what random finds."""
  policy, params, context, _ = setup
  target = context.feasible.sample(
    jax.random.key(np.random.default_rng().integers(2**31))
  )
  optimizer = optax.adam(1e-2)

  def reward(choices):
    return -jnp.abs(choices - target[None]).sum(-1)

  @jax.jit
  def update(carry, inputs):
    key, entropy = inputs
    params, opt_state = carry
    proposals = policy_lib.propose(key, policy, params, context, 64)
    rewards = reward(proposals.choices)
    loss = functools.partial(
      policy_lib.ppo_loss,
      policy=policy,
      context=context,
      proposals=proposals,
      advantages=policy_lib.rank_advantages(rewards),
      hyper=policy_lib.PPOConfig(0.2, entropy),
    )

    def epoch(carry, _):
      params, opt_state = carry
      updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
      return (optax.apply_updates(params, updates), opt_state), None

    carry, _ = jax.lax.scan(epoch, (params, opt_state), length=4)
    return carry, rewards.mean()

  carry = params, optimizer.init(params)
  keys = jax.random.split(jax.random.key(1), 80)
  entropies = jnp.linspace(0.05, 0.001, 80)
  _, means = jax.lax.scan(update, carry, (keys, entropies))
  random = jax.vmap(context.feasible.sample)(
    jax.random.split(jax.random.key(2), 80 * 64)
  )
  assert means[-5:].mean() > jnp.quantile(reward(random), 0.95)
  assert means[-5:].mean() > -0.9  # nearly every proposal is the target
