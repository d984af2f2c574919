"""One training step: microbatches, averages, penalty, teachers, precision."""

import jax
import numpy as np
import optax
import pytest
from scipy import special
import tiny_net

from hawis_jax.networks import layers
from hawis_jax.networks import reference_resnet
from hawis_jax.networks import resnet
from hawis_jax.training import fixed_net
from hawis_jax.training import optimization


def _close(got, expected, atol):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=atol), got, expected
  )


@pytest.fixture(scope="module")
def parts(tiny):
  """(state, batches, results of a plain step of each)."""
  rng = np.random.default_rng(5)
  state = tiny_net.random_state(tiny.module, tiny_net.SGD, rng)
  batches = [
    {name: x[first : first + 4] for name, x in tiny.batch(12).items()}
    for first in (0, 4, 8)
  ]
  step = tiny_net.step(tiny.module, tiny_net.SGD)
  return state, batches, jax.device_get([step(state, b) for b in batches])


@pytest.fixture(scope="module")
def steps(tiny, parts):
  """Three steps of three microbatches, with penalty and moving average."""
  recipe = fixed_net.Recipe(microbatches=3, weight_penalty=0.01, ema=0.9)
  step = tiny_net.step(tiny.module, tiny_net.SGD, recipe)
  state = parts[0]
  state = state.replace(average=(state.params, state.batch_stats))
  found = [(state, None)]
  for _ in range(3):
    found.append(step(found[-1][0], tiny.batch(12)))
  return jax.device_get(found)


def test_microbatches_average_the_gradients_and_kernels_are_pulled(
  parts, steps
):
  """The penalty's gradient is 2 c (|w| - 0.01) sign(w), on kernels only."""
  state, _, alone = parts
  got, values = steps[1]
  penalty = 0

  def check(path, before, got, *parts):
    nonlocal penalty
    expected = sum(parts) / 3
    if path[-1].key == "kernel":
      away = np.abs(before) - 0.01
      pull = -0.02 * away * np.sign(before)
      assert np.abs(pull).max() > 1e-3
      expected = expected + pull
      penalty += 0.01 * np.square(away).sum()
    np.testing.assert_allclose(got, expected, atol=1e-5)

  jax.tree_util.tree_map_with_path(
    check, state.params, got.params, *(part.params for part, _ in alone)
  )
  losses = [part["loss"] for _, part in alone]
  np.testing.assert_allclose(
    values["loss"], np.mean(losses) + penalty, rtol=1e-5
  )


def test_microbatches_normalise_one_after_the_other(tiny, parts, steps):
  state, batches, _ = parts
  step = tiny_net.step(tiny.module, tiny_net.SGD)
  running = state.batch_stats
  for batch in batches:
    running = step(state.replace(batch_stats=running), batch)[0].batch_stats
  _close(steps[1][0].batch_stats, running, 1e-5)


def test_moving_average(steps):
  expected = steps[0][0].average
  for state, _ in steps[1:]:
    expected = jax.tree.map(
      lambda old, new: 0.9 * old + 0.1 * new,
      expected,
      (state.params, state.batch_stats),
    )
    _close(state.average, expected, 1e-5)
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), state.average[0], state.params
  )
  assert max(jax.tree.leaves(moved)) > 1e-3


def test_label_smoothing_is_that_of_mixed_labels(rng):
  logits = rng.normal(size=(7, 5)).astype(np.float32)
  labels = rng.integers(0, 5, 7)
  log_p = special.log_softmax(logits.astype(np.float64), -1)
  target = 0.8 * np.eye(5)[labels] + 0.2 / 5
  expected = -(target * log_p).sum(-1).mean()
  got = jax.jit(optimization.cross_entropy, static_argnums=2)(
    logits, labels, 0.2
  )
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_float_teacher_sets_the_loss(tiny, rng):
  """KL of the softmaxes; the teacher runs in evaluation mode, untouched."""
  teacher = reference_resnet.cifar_reference(8, None, 10)
  variables = tiny_net.random_variables(teacher, tiny_net.SHAPE, rng)
  state = tiny_net.random_state(tiny.module, tiny_net.SGD, rng)
  batch = tiny.batch(12)
  step = tiny_net.step(tiny.module, tiny_net.SGD, teacher_module=teacher)
  _, values = step(state, batch, variables)
  own = {"params": state.params, "batch_stats": state.batch_stats}
  student = tiny_net.apply(tiny.module, True, own, batch["image"])
  target = tiny_net.apply(teacher, False, variables, batch["image"])
  log_p, log_q = (
    special.log_softmax(np.asarray(logits, np.float64), -1)
    for logits in (target, student)
  )
  expected = (np.exp(log_p) * (log_p - log_q)).sum(-1).mean()
  np.testing.assert_allclose(values["loss"], expected, rtol=1e-4)


def test_a_small_net_learns_with_every_optional_part(tiny, rng):
  """Training on one batch lowers the loss, and moves the parameters."""
  options = layers.Options(
    channel_scale=True,
    rprelu=True,
    learned_thresholds=True,
    compute="bfloat16",
  )
  module, optimizer = tiny_net.module(options), optax.adam(1e-2)
  key = jax.random.key(rng.integers(2**31))
  first = optimization.init_state(module, key, tiny_net.SHAPE, optimizer)
  step, state, losses = tiny_net.step(module, optimizer), first, []
  for _ in range(60):
    state, values = step(state, tiny.batch(12))
    losses.append(float(values["loss"]))
  assert np.mean(losses[-5:]) < 0.7 * losses[0]
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), *jax.device_get((first, state))
  )
  for path, distance in jax.tree_util.tree_leaves_with_path(moved.params):
    # A slope just before a binariser gets no gradient: below 0 it is flat.
    if path[-1].key != "slope" or path[-2].key == "act2":
      assert distance > 0, path


@pytest.mark.exact
@pytest.mark.parametrize(
  "module, size",
  [
    (resnet.cifar_resnet(8, (40,) * 7, 5), 8),
    (resnet.imagenet_resnet18((40,) * 17, 5, "3x3", image_size=64), 64),
  ],
  ids=["cifar", "imagenet"],
)
def test_bfloat16_gives_the_same_logits_to_the_bit(module, size, rng):
  """Products of bits and signs are exact whatever the operands' type."""
  shape = (size, size, 3)
  images = rng.integers(0, 256, (3, *shape)).astype(np.uint8)
  net = tiny_net.random_variables(module, shape, rng)
  net = {"params": net["params"]}
  logits = [
    tiny_net.apply(
      module.clone(options=layers.Options(compute=compute)), True, net, images
    )
    for compute in ("float32", "bfloat16")
  ]
  np.testing.assert_array_equal(*logits)
  assert len(np.unique(logits[0])) > 3
