"""Optimisers, losses, and the sandwich step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special
import tiny_net

from hawis_jax import cost
from hawis_jax import crossbar
from hawis_jax.config import settings
from hawis_jax.networks import width_vectors
from hawis_jax.training import optimization
from hawis_jax.training import supernet


def _config(**fields):
  config = settings.default().train.optimizer.copy_and_resolve_references()
  config.update(fields)
  return config


def _run(optimizer, gradients, start=1.0):
  """Parameter values after every step."""

  def step(carry, gradient):
    params, state = carry
    updates, state = optimizer.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    return (params, state), params

  @jax.jit
  def steps(gradients):
    params = jnp.float32(start)
    return jax.lax.scan(step, (params, optimizer.init(params)), gradients)[1]

  return np.asarray(steps(np.asarray(gradients, np.float32)), np.float64)


def test_sgd_with_momentum_and_l2_as_in_pytorch(rng):
  config = _config(
    name="sgd", schedule="constant", learning_rate=0.1, weight_decay=0.01
  )
  gradients = rng.normal(size=6)
  value, velocity, expected = 1.0, 0.0, []
  for gradient in gradients:
    velocity = 0.9 * velocity + gradient + 0.01 * value
    value -= 0.1 * velocity
    expected.append(value)
  got = _run(optimization.make_optimizer(config, 6), gradients)
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
  got = -np.diff(
    _run(optimization.make_optimizer(config, steps), [1.0] * steps)
  )
  drops = [int(steps * share) for share in (0.5, 0.65, 0.8)]
  rates = [0.1 ** sum(k >= d for d in drops) for k in range(1, steps)]
  np.testing.assert_allclose(got, rates, rtol=1e-2, atol=1e-6)


def test_cosine_ends_at_zero():
  config = _config(
    name="sgd", schedule="cosine", momentum=0.0, learning_rate=0.5
  )
  got = -np.diff(_run(optimization.make_optimizer(config, 10), [1.0] * 10))
  expected = 0.25 * (1 + np.cos(np.pi * np.arange(1, 10) / 10))
  np.testing.assert_allclose(got, expected, atol=1e-6)


def test_distillation_is_the_kl_and_spares_the_teacher(rng):
  student, teacher = rng.normal(size=(2, 7, 10))
  p, q = special.softmax(teacher, 1), special.softmax(student, 1)
  expected = (p * np.log(p / q)).sum(1).mean()
  both = jax.jit(jax.value_and_grad(optimization.distillation, argnums=(0, 1)))
  got, grad = both(student.astype(np.float32), teacher.astype(np.float32))
  np.testing.assert_allclose(got, expected, rtol=1e-4)
  np.testing.assert_allclose(grad[0], (q - p) / 7, atol=1e-6)
  np.testing.assert_array_equal(grad[1], 0)


_VECTORS = np.array(
  [tiny_net.WIDTHS, (3,) * 7, tiny_net.NARROWER, (6, 2, 3, 7, 9, 11, 2)]
)
_FAULTY = 2  # of them are on a chip


@pytest.fixture(scope="module")
def wide_net(tiny):
  """(module, params, bits, labels)."""
  bits = np.asarray(jax.jit(tiny.module.encode)(tiny.images[:8]))
  return tiny.module, tiny.variables["params"], bits, tiny.labels[:8]


def _key(rng):
  return jax.random.key(rng.integers(2**31))


def _program(key, net, variation):
  """A chip; a traced severity, so that one program makes all."""
  device = crossbar.Device(variation=variation)
  return crossbar.program(key, net, device, straight_through=True)


_WAYS = {
  "vmapped": jax.value_and_grad(supernet.sandwich_loss, has_aux=True),
  "looped": supernet.looped_gradients,
}


@functools.partial(jax.jit, static_argnums=(1, 5, 6))
def _sandwich(params, module, bits, labels, chip=None, faulty=0, way="vmapped"):
  """((loss, logits), gradient) of one pass; chip: (key, variation)."""
  grad = _WAYS[way]
  program = lambda net: _program(chip[0], net, chip[1])  # noqa: E731
  return grad(params, module, _VECTORS, bits, labels, True, program, faulty)


@pytest.fixture(scope="module")
def ideal(wide_net):
  module, params, bits, labels = wide_net
  return jax.device_get(_sandwich(params, module, bits, labels))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _one_net(module, loss, params, bits, vector, target):
  """((loss, logits), gradient) of one width vector's net."""

  def of(params):
    logits = module.apply({"params": params}, bits, vector, train=True)
    return loss(logits, target), logits

  return jax.value_and_grad(of, has_aux=True)(params)


def test_sandwich_gradient_is_the_sum_of_its_nets(wide_net, ideal):
  """One vmapped pass equals a pass a width vector, teacher detached."""
  module, params, bits, labels = wide_net
  first = _one_net(
    module, optimization.cross_entropy, params, bits, _VECTORS[0], labels
  )
  teacher = first[0][1]
  others = [
    _one_net(module, optimization.distillation, params, bits, vector, teacher)
    for vector in _VECTORS[1:]
  ]
  grads = [grad for _, grad in jax.device_get([first, *others])]
  expected = jax.tree.map(lambda *parts: sum(parts), *grads)
  _same_gradients(ideal[1], expected, 1e-4)


def _same_gradients(got, expected, share):
  scale = max(np.abs(g).max() for g in jax.tree.leaves(expected))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=share * scale),
    got,
    expected,
  )


def test_sandwich_holds_the_extremes_and_spreads_in_cost(rng):
  space = width_vectors.width_space(
    ((8, 16, 24), (16, 32, 48), (32, 64, 96)), 7
  )
  geometry = cost.cifar_geometry(8, (8, 8, 1), 8, 10, (64, 64))
  costs = cost.tables(space.table, geometry, "macs")
  bands = cost.cost_bands(space, costs, 8)
  draw = jax.jit(
    jax.vmap(lambda key: supernet.sample_widths(key, bands, space, 2))
  )
  vectors = np.asarray(draw(jax.random.split(_key(rng), 300)), np.int64)
  assert (vectors[:, 0] == space.max_widths).all()
  assert (vectors[:, 1] == space.min_widths).all()
  low, high = cost.cost_range(space, costs)
  macs = cost.network_cost(vectors[:, 2:], geometry).macs
  share = ((macs - low) / (high - low)).ravel()
  counts, _ = np.histogram(share, bins=4, range=(0, 1))
  assert counts.min() > 100  # 150 expected each; uniform vectors: about 20


def test_a_chip_without_defects_trains_as_the_ideal_net(wide_net, ideal, rng):
  module, params, bits, labels = wide_net
  (loss, logits), grads = ideal
  (loss2, logits2), grads2 = _sandwich(
    params, module, bits, labels, (_key(rng), np.float32(0)), _FAULTY
  )
  np.testing.assert_allclose(logits2, logits, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(loss2, loss, rtol=1e-5)
  _same_gradients(grads2, grads, 1e-5)


def test_vector_by_vector_the_sandwich_is_the_same(wide_net, rng):
  """As on several devices; a severe chip, whose gradient is not the ideal's."""
  module, params, bits, labels = wide_net
  chip = _key(rng), np.float32(1)
  vmapped, looped = (
    _sandwich(params, module, bits, labels, chip, _FAULTY, way) for way in _WAYS
  )
  np.testing.assert_allclose(looped[0][0], vmapped[0][0], rtol=1e-5)
  np.testing.assert_allclose(looped[0][1], vmapped[0][1], rtol=1e-4, atol=1e-4)
  _same_gradients(looped[1], vmapped[1], 1e-4)


def test_only_the_last_vectors_are_on_the_chip(wide_net, ideal, rng):
  module, params, bits, labels = wide_net
  (_, ideal), _ = ideal
  chip = _key(rng), np.float32(1)
  (_, got), _ = _sandwich(params, module, bits, labels, chip, _FAULTY)
  got = np.asarray(got)
  np.testing.assert_allclose(
    got[:-_FAULTY], ideal[:-_FAULTY], rtol=1e-5, atol=1e-5
  )
  alone = jax.jit(
    lambda net, vector: module.apply(net, bits, vector, train=True)
  )
  net = jax.jit(_program)(chip[0], {"params": params}, chip[1])
  for index in range(len(_VECTORS) - _FAULTY, len(_VECTORS)):
    expected = alone(net, _VECTORS[index])
    np.testing.assert_allclose(got[index], expected, rtol=1e-4, atol=1e-4)
    assert np.abs(got[index] - ideal[index]).max() > 0.1
