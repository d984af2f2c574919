"""One training step: microbatches, averages, penalty, teachers, precision."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hawis_jax import counterparts
from hawis_jax import layers
from hawis_jax import optimize
from hawis_jax import resnet
from hawis_jax import train

_WIDTHS = (6, 5, 6, 8, 10, 12, 12)
_SHAPE = (8, 8, 3)
_RECIPE = train.Recipe()


def _module(options=layers.PUBLISHED):
  return resnet.cifar_resnet(8, _WIDTHS, 5, levels=8, options=options)


def _batch(rng, size=12):
  return {
    "image": rng.integers(0, 256, (size, *_SHAPE)).astype(np.uint8),
    "label": rng.integers(0, 5, size).astype(np.int32),
  }


def _state(module, optimizer, rng, **kwargs):
  key = jax.random.key(rng.integers(2**31))
  return optimize.init_state(module, key, _SHAPE, optimizer, **kwargs)


def _step(module, optimizer, recipe=_RECIPE, teacher_module=None):
  return jax.jit(
    functools.partial(
      train.train_step,
      module=module,
      optimizer=optimizer,
      recipe=recipe,
      teacher_module=teacher_module,
    )
  )


def _close(got, expected, atol):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=atol), got, expected
  )


def test_microbatches_average_the_gradients_of_their_parts():
  rng = np.random.default_rng()
  module, optimizer = _module(), optax.sgd(1.0)
  state, batch = _state(module, optimizer, rng), _batch(rng)
  recipe = dataclasses.replace(_RECIPE, microbatches=3)
  got, values = _step(module, optimizer, recipe)(state, batch)
  alone = _step(module, optimizer)
  parts = [
    alone(state, {k: v[i : i + 4] for k, v in batch.items()}) for i in (0, 4, 8)
  ]
  expected = jax.tree.map(
    lambda *x: sum(x) / 3, *(part.params for part, _ in parts)
  )
  _close(got.params, expected, 1e-5)
  losses = [float(part["loss"]) for _, part in parts]
  np.testing.assert_allclose(values["loss"], np.mean(losses), rtol=1e-5)
  # BN sees the parts one after the other.
  running = state.batch_stats
  for i in (0, 4, 8):
    part = {k: v[i : i + 4] for k, v in batch.items()}
    running = alone(state.replace(batch_stats=running), part)[0].batch_stats
  _close(got.batch_stats, running, 1e-5)


def test_moving_average():
  rng = np.random.default_rng()
  module, optimizer = _module(), optax.sgd(0.5)
  state = _state(module, optimizer, rng, averaging=True)
  step = _step(module, optimizer, dataclasses.replace(_RECIPE, ema=0.9))
  expected = (state.params, state.batch_stats)
  for _ in range(3):
    state, _ = step(state, _batch(rng))
    expected = jax.tree.map(
      lambda old, new: 0.9 * old + 0.1 * new,
      expected,
      (state.params, state.batch_stats),
    )
  _close(state.average, expected, 1e-5)
  moved = jax.tree.map(
    lambda a, b: float(jnp.abs(a - b).max()), state.average[0], state.params
  )
  assert max(jax.tree.leaves(moved)) > 1e-3


def test_weight_penalty_pulls_kernels_alone():
  """Its gradient is 2 c (|w| - 0.01) sign(w), on kernels only."""
  rng = np.random.default_rng()
  module, optimizer = _module(), optax.sgd(1.0)
  state, batch = _state(module, optimizer, rng), _batch(rng)
  plain, _ = _step(module, optimizer)(state, batch)
  recipe = dataclasses.replace(_RECIPE, weight_penalty=0.01)
  pulled, _ = _step(module, optimizer, recipe)(state, batch)

  def check(path, before, without, with_penalty):
    expected = jnp.zeros_like(before)
    if path[-1].key == "kernel":
      expected = -0.02 * (jnp.abs(before) - 0.01) * jnp.sign(before)
    np.testing.assert_allclose(with_penalty - without, expected, atol=2e-6)

  jax.tree_util.tree_map_with_path(
    check, state.params, plain.params, pulled.params
  )


def test_label_smoothing_is_that_of_mixed_labels():
  rng = np.random.default_rng()
  logits = jnp.asarray(rng.normal(size=(7, 5)), jnp.float32)
  labels = jnp.asarray(rng.integers(0, 5, 7))
  log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
  target = 0.8 * np.eye(5)[labels] + 0.2 / 5
  expected = -(target * log_p).sum(-1).mean()
  got = optimize.cross_entropy(logits, labels, 0.2)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_float_teacher_sets_the_loss():
  """KL of the softmaxes; the teacher runs in evaluation mode, untouched."""
  rng = np.random.default_rng()
  module, optimizer = _module(), optax.sgd(0.1)
  teacher = counterparts.cifar_counterpart(8, None, 5)
  initial = _state(teacher, optimizer, rng)
  variables = {"params": initial.params, "batch_stats": initial.batch_stats}
  state, batch = _state(module, optimizer, rng), _batch(rng)
  step = _step(module, optimizer, teacher_module=teacher)
  _, values = step(state, batch, variables)
  apply = jax.jit(
    lambda m, v, train: m.apply(
      v, m.encode(batch["image"]), train=train, mutable=["batch_stats"]
    )[0],
    static_argnums=(0, 2),
  )
  own = {"params": state.params, "batch_stats": state.batch_stats}
  student, target = apply(module, own, True), apply(teacher, variables, False)
  log_p, log_q = map(jax.nn.log_softmax, (target, student))
  expected = (jnp.exp(log_p) * (log_p - log_q)).sum(-1).mean()
  np.testing.assert_allclose(values["loss"], expected, rtol=1e-4)


def test_a_small_net_learns_with_every_optional_part():
  """Training on one batch lowers the loss, and moves the parameters."""
  rng = np.random.default_rng()
  options = layers.Options(
    channel_scale=True,
    rprelu=True,
    learned_thresholds=True,
    compute="bfloat16",
  )
  module, optimizer = _module(options), optax.adam(1e-2)
  state, batch = _state(module, optimizer, rng), _batch(rng)
  first, step, losses = state, _step(module, optimizer), []
  for _ in range(60):
    state, values = step(state, batch)
    losses.append(float(values["loss"]))
  assert np.mean(losses[-5:]) < 0.7 * losses[0]
  moved = jax.tree.map(
    lambda a, b: float(jnp.abs(a - b).max()), first.params, state.params
  )
  for path, distance in jax.tree_util.tree_leaves_with_path(moved):
    # A slope just before a binariser gets no gradient: below 0 it is flat.
    if path[-1].key != "slope" or path[-2].key == "act2":
      assert distance > 0, path


@pytest.mark.parametrize("family", ["cifar", "imagenet"])
def test_bfloat16_gives_the_same_logits_to_the_bit(family):
  """Products of bits and signs are exact whatever the operands' type."""
  rng = np.random.default_rng()
  shape = (64, 64, 3)
  images = jnp.asarray(rng.integers(0, 256, (3, *shape)), jnp.uint8)
  logits = []
  key = jax.random.key(rng.integers(2**31))
  for compute in ("float32", "bfloat16"):
    options = layers.Options(compute=compute)
    if family == "cifar":
      module = resnet.cifar_resnet(8, (40,) * 7, 5, options=options)
    else:
      module = resnet.imagenet_resnet18(
        (40,) * 17, 5, "3x3", image_size=64, options=options
      )
    state = optimize.init_state(module, key, shape, optax.sgd(0.1))
    apply = jax.jit(functools.partial(module.apply, train=True))
    logits.append(apply({"params": state.params}, module.encode(images)))
  np.testing.assert_array_equal(*logits)
  assert len(np.unique(logits[0])) > 3
