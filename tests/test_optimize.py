"""Optimisers, losses, and the sandwich step."""

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special
from scipy import stats

from hawis_jax import budgets
from hawis_jax import config as config_lib
from hawis_jax import cost
from hawis_jax import crossbar
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


_WIDEST = (8, 8, 8, 12, 12, 16, 16)


def _small_supernet():
  """(module, params, bits, labels), all random."""
  rng = np.random.default_rng()
  module = resnet.cifar_resnet(8, _WIDEST, 10, levels=4)
  params = jax.jit(variables.init, static_argnums=(0, 2))(
    module, _random_key(), (8, 8, 1)
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
  return module, params, bits, jnp.asarray(rng.integers(0, 10, 8))


def _random_key():
  return jax.random.key(np.random.default_rng().integers(2**31))


def test_sandwich_gradient_is_the_sum_of_its_nets():
  """One vmapped pass equals a pass a width vector, teacher detached."""
  module, params, bits, labels = _small_supernet()
  vectors = jnp.array([_WIDEST, (4, 3, 8, 5, 12, 9, 7)])

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


_DEVICES = [
  crossbar.Device(stuck_on=0.1, stuck_off=0.3),
  crossbar.Device(variation=0.5),
]
_VECTORS = jnp.array(
  [_WIDEST, (4,) * 7, (4, 3, 8, 5, 12, 9, 7), (8, 5, 3, 7, 11, 13, 2)]
)


def _chip(params, device):
  program = jax.jit(crossbar.program)
  return program(_random_key(), {"params": params}, device)["crossbar"]


def _sandwich_gradient(params, module, bits, labels, chip=None, faulty=0):
  grad = jax.value_and_grad(pretrain.sandwich_loss, has_aux=True)
  return jax.jit(grad, static_argnums=(1, 5, 7))(
    params, module, _VECTORS, bits, labels, True, chip, faulty
  )


def test_a_chip_without_defects_trains_as_the_ideal_net():
  module, params, bits, labels = _small_supernet()
  none = {"stuck_on": 0.0, "stuck_off": 0.0, "variation": 0.0}
  none = {field: jnp.float32(level) for field, level in none.items()}
  chip = _chip(params, crossbar.Device(**none))
  (loss, logits), grads = _sandwich_gradient(params, module, bits, labels)
  (loss2, logits2), grads2 = _sandwich_gradient(
    params, module, bits, labels, chip, 2
  )
  np.testing.assert_allclose(logits2, logits, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(loss2, loss, rtol=1e-5)
  scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale),
    grads2,
    grads,
  )


def test_only_the_last_vectors_are_on_the_chip():
  module, params, bits, labels = _small_supernet()
  (_, ideal), _ = _sandwich_gradient(params, module, bits, labels)
  chip = _chip(params, crossbar.Device(variation=1.0))
  (_, got), _ = _sandwich_gradient(params, module, bits, labels, chip, 1)
  np.testing.assert_allclose(got[:3], ideal[:3], rtol=1e-5, atol=1e-5)
  net = {"params": params, "crossbar": chip}
  alone = jax.jit(lambda net: module.apply(net, bits, _VECTORS[3], train=True))(
    net
  )
  np.testing.assert_allclose(got[3], alone, rtol=1e-4, atol=1e-4)
  assert np.abs(got[3] - ideal[3]).max() > 0.1


def test_latent_weights_of_a_chip_learn_whether_stuck_or_not():
  """The gradient is that of the effective weights themselves."""
  module, params, bits, labels = _small_supernet()
  chip = _chip(params, crossbar.Device(stuck_on=0.2, stuck_off=0.3))

  def loss(variables):
    logits = module.apply(variables, bits, train=True)
    return optimize.cross_entropy(logits, labels)

  got = jax.jit(jax.grad(lambda p: loss(pretrain.on_chip(p, chip))))(params)
  plain = jax.jit(
    jax.grad(lambda chip: loss({"params": params, "crossbar": chip}))
  )(chip)
  got, plain, chip, params = map(
    traverse_util.flatten_dict, (got, plain, chip, params)
  )
  for path, weights in chip.items():
    kernel = (*path[:-1], "kernel")
    scale = np.abs(plain[path]).max()
    np.testing.assert_allclose(got[kernel], plain[path], atol=1e-5 * scale)
    stuck = np.asarray(weights != jnp.sign(params[kernel]))
    assert 0.1 < stuck.mean() < 0.9
    assert (np.asarray(got[kernel])[stuck] != 0).mean() > 0.2


def test_drawn_devices_have_a_uniform_share_of_their_levels():
  draw = jax.jit(
    jax.vmap(lambda key: pretrain.sample_device(key, _DEVICES)),
  )
  drawn = draw(jax.random.split(_random_key(), 2000))
  stuck = drawn.stuck_on > 0
  assert 900 < stuck.sum() < 1100  # 22 is the standard deviation
  np.testing.assert_array_equal(drawn.variation > 0, ~stuck)
  np.testing.assert_allclose(drawn.stuck_off, 3 * drawn.stuck_on, rtol=1e-6)
  np.testing.assert_allclose(drawn.g_on, _DEVICES[0].g_on)
  for share in (drawn.stuck_on[stuck] / 0.1, drawn.variation[~stuck] / 0.5):
    assert stats.kstest(np.asarray(share), "uniform").pvalue > 1e-6


def test_a_chip_is_a_function_of_its_key():
  _, params, _, _ = _small_supernet()
  draw = jax.jit(lambda key: pretrain.sample_chip(key, params, _DEVICES))
  key = _random_key()
  first, again, other = map(draw, (key, key, jax.random.fold_in(key, 1)))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert not np.array_equal(first["stem"]["weight"], other["stem"]["weight"])
