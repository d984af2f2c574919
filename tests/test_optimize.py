"""Optimisers, losses, and the sandwich step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

from hawis_jax import budgets
from hawis_jax import config as config_lib
from hawis_jax import cost
from hawis_jax import optimize
from hawis_jax import pretrain
from hawis_jax import resnet
from hawis_jax import variables
from hawis_jax import widths


def _config(**fields):
  config = config_lib.default().train.optimizer.copy_and_resolve_references()
  config.update(fields)
  return config


def _run(optimizer, gradients, start=1.0):
  """Parameter values after every step."""
  params = jnp.float32(start)
  state, values = optimizer.init(params), []
  for gradient in gradients:
    updates, state = optimizer.update(jnp.float32(gradient), state, params)
    params = optax.apply_updates(params, updates)
    values.append(float(params))
  return np.array(values)


def test_sgd_with_momentum_and_l2_as_in_pytorch():
  config = _config(
    name="sgd", schedule="constant", learning_rate=0.1, weight_decay=0.01
  )
  gradients = np.random.default_rng().normal(size=6)
  value, velocity, expected = 1.0, 0.0, []
  for gradient in gradients:
    velocity = 0.9 * velocity + gradient + 0.01 * value
    value -= 0.1 * velocity
    expected.append(value)
  got = _run(optimize.make_optimizer(config, 6), gradients)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("steps", [20, 4])
def test_multistep_drops_at_every_milestone(steps):
  """Also in a run so short that milestones fall on one step."""
  config = _config(
    name="sgd",
    schedule="multistep",
    momentum=0.0,
    learning_rate=1.0,
    milestones=(0.5, 0.65, 0.8),
  )
  got = -np.diff(_run(optimize.make_optimizer(config, steps), [1.0] * steps))
  drops = [int(steps * share) for share in (0.5, 0.65, 0.8)]
  rates = [0.1 ** sum(k >= d for d in drops) for k in range(1, steps)]
  np.testing.assert_allclose(got, rates, rtol=1e-2, atol=1e-6)


def test_cosine_ends_at_zero():
  config = _config(
    name="sgd", schedule="cosine", momentum=0.0, learning_rate=0.5
  )
  got = -np.diff(_run(optimize.make_optimizer(config, 10), [1.0] * 10))
  expected = 0.25 * (1 + np.cos(np.pi * np.arange(1, 10) / 10))
  np.testing.assert_allclose(got, expected, atol=1e-6)


def test_distillation_is_the_kl_and_spares_the_teacher():
  rng = np.random.default_rng()
  student, teacher = rng.normal(size=(2, 7, 10))
  p, q = special.softmax(teacher, 1), special.softmax(student, 1)
  expected = (p * np.log(p / q)).sum(1).mean()
  args = jnp.asarray(student, jnp.float32), jnp.asarray(teacher, jnp.float32)
  np.testing.assert_allclose(optimize.distillation(*args), expected, rtol=1e-4)
  grad = jax.grad(optimize.distillation, argnums=(0, 1))(*args)
  np.testing.assert_allclose(grad[0], (q - p) / 7, atol=1e-6)
  np.testing.assert_array_equal(grad[1], 0)


def test_sandwich_gradient_is_the_sum_of_its_nets():
  """One vmapped pass equals a pass a width vector, teacher detached."""
  rng = np.random.default_rng()
  module = resnet.cifar_resnet(8, (8, 8, 8, 12, 12, 16, 16), 10, levels=4)
  params = jax.jit(variables.init, static_argnums=(0, 2))(
    module, jax.random.key(rng.integers(2**31)), (8, 8, 1)
  )["params"]
  # Fresh shifts of 0 put dead channels exactly on the edge of the gradient.
  params = jax.tree.map(
    lambda x: (
      x + jnp.asarray(rng.uniform(0.1, 0.4, x.shape), jnp.float32)
      if x.ndim == 1
      else x
    ),
    params,
  )
  bits = jnp.asarray(rng.integers(0, 2, (8, 8, 8, 4)), jnp.float32)
  labels = jnp.asarray(rng.integers(0, 10, 8))
  vectors = jnp.array([(8, 8, 8, 12, 12, 16, 16), (4, 3, 8, 5, 12, 9, 7)])

  def apply(params, vector):
    return module.apply({"params": params}, bits, vector, train=True)

  teacher = jax.jit(apply)(params, vectors[0])
  separate = [
    lambda p: optimize.cross_entropy(apply(p, vectors[0]), labels),
    lambda p: optimize.distillation(apply(p, vectors[1]), teacher),
  ]
  grads = [jax.jit(jax.grad(loss))(params) for loss in separate]
  expected = jax.tree.map(jnp.add, *grads)
  grad = jax.grad(pretrain.sandwich_loss, has_aux=True)
  got, _ = jax.jit(grad, static_argnums=(1, 5))(
    params, module, vectors, bits, labels, True
  )
  scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * scale),
    got,
    expected,
  )


def test_sandwich_holds_the_extremes_and_spreads_in_cost():
  space = widths.width_space(((8, 16, 24), (16, 32, 48), (32, 64, 96)), 7)
  geometry = cost.cifar_geometry(8, (8, 8, 1), 8, 10, (64, 64))
  costs = cost.tables(space.table, geometry, "macs")
  bands = budgets.cost_bands(space, costs, 8)
  draw = jax.jit(
    jax.vmap(lambda key: pretrain.sample_widths(key, bands, space, 2))
  )
  keys = jax.random.split(
    jax.random.key(np.random.default_rng().integers(2**31)), 300
  )
  vectors = np.asarray(draw(keys), np.int64)
  assert (vectors[:, 0] == space.max_widths).all()
  assert (vectors[:, 1] == space.min_widths).all()
  low, high = budgets.cost_range(space, costs)
  macs = cost.network_cost(vectors[:, 2:], geometry).macs
  share = ((macs - low) / (high - low)).ravel()
  counts, _ = np.histogram(share, bins=4, range=(0, 1))
  assert counts.min() > 100  # 150 expected each; uniform vectors: about 20
