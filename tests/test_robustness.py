"""Monte Carlo over chips: independence of batching, pairing, summaries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hawis_jax import backend
from hawis_jax import binary
from hawis_jax import crossbar
from hawis_jax import montecarlo
from hawis_jax import resnet
from hawis_jax import robustness
from hawis_jax import variables as variables_lib

_WIDTHS = (6, 5, 6, 8, 10, 12, 12)
_DEVICE = crossbar.Device(stuck_off=0.1, stuck_on=0.02, variation=0.3)
_STUCK = crossbar.Device(stuck_off=0.1, stuck_on=0.02)


@pytest.fixture(scope="module")
def net():
  """(module, variables, uint8 images, labels) of a random net."""
  rng = np.random.default_rng()
  module = resnet.cifar_resnet(8, _WIDTHS, 10, levels=8)
  images = rng.integers(0, 256, (40, 8, 8, 1)).astype(np.uint8)
  bits = binary.thermometer_code(jnp.asarray(images), 8)
  init = jax.jit(variables_lib.init, static_argnums=(0, 2))
  variables = init(module, jax.random.key(rng.integers(2**31)), (8, 8, 1))
  recalibrate = jax.jit(variables_lib.recalibrate, static_argnums=0)
  variables["batch_stats"] = recalibrate(module, variables, bits[None])
  labels = rng.integers(0, 10, 40).astype(np.int32)
  return module, variables, images, labels


def _batches(images, labels, batch_size):
  """Padded batches; the padding is garbage that must not count."""
  pad = -len(images) % batch_size
  image = np.concatenate([images, 255 - images[:pad]])
  label = np.concatenate([labels, labels[:pad]])
  mask = np.arange(len(image)) < len(images)
  return robustness.Batches(
    *(x.reshape(-1, batch_size, *x.shape[1:]) for x in (image, label, mask))
  )


def _evaluate(net, batch_size=40, num_chips=6, **kwargs):
  module, variables, images, labels = net
  return robustness.evaluate_chips(
    jax.random.key(7),
    module,
    variables,
    _batches(images, labels, batch_size),
    _DEVICE,
    num_chips,
    **kwargs,
  )


def test_accuracy_is_that_of_the_programmed_net(net):
  """Against a plain loop: program one chip, run the net, count."""
  module, variables, images, labels = net
  got = _evaluate(net, batch_size=16)
  bits = binary.thermometer_code(jnp.asarray(images), 8)
  apply = jax.jit(functools.partial(module.apply, train=False))
  program = jax.jit(crossbar.program)
  for chip in range(6):
    key = jax.random.fold_in(jax.random.key(7), chip)
    programmed = program(key, variables, _DEVICE)
    hits = np.asarray(apply(programmed, bits)).argmax(-1) == labels
    np.testing.assert_allclose(got[chip], hits.mean(), atol=1e-6)
  assert len(set(got)) > 1


def test_chips_do_not_depend_on_how_they_are_batched(net):
  reference = _evaluate(net)
  np.testing.assert_array_equal(reference[:2], _evaluate(net, num_chips=2))
  np.testing.assert_array_equal(
    reference, _evaluate(net, limits=montecarlo.Limits(chips=3, images=16))
  )
  np.testing.assert_array_equal(reference, _evaluate(net, batch_size=7))


def test_ideal_chips_have_the_clean_accuracy(net):
  module, variables, images, labels = net
  bits = binary.thermometer_code(jnp.asarray(images), 8)
  apply = jax.jit(functools.partial(module.apply, train=False))
  logits = apply(variables, bits)
  clean = (np.asarray(logits).argmax(-1) == labels).mean()
  stacked = _batches(images, labels, 16)
  batches = (jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(3))
  got = robustness.ideal_accuracy(module, variables, batches)
  np.testing.assert_allclose(got, clean, atol=1e-6)


@pytest.mark.parametrize("device", [_DEVICE, _STUCK], ids=["float", "planes"])
def test_candidates_of_a_supernet_share_the_chip(net, device):
  """Scores of several width vectors equal each vector scored alone."""
  module, variables, images, labels = net
  widths = jnp.array([_WIDTHS, [3, 5, 2, 8, 4, 7, 12], [1] * 7])
  norms = jax.tree.map(lambda x: jnp.stack([x] * 3), variables["batch_stats"])
  keys = jax.random.split(jax.random.key(1), 2)
  score = jax.jit(robustness.score_chips, static_argnums=0)

  def run(widths, norms):
    batches = _batches(images, labels, 16)
    return score(module, variables, widths, norms, batches, keys, device)

  together = run(widths, norms)
  assert together.accuracy.shape == (2, 3)
  for index in range(3):
    own_norms = jax.tree.map(lambda x, i=index: x[i][None], norms)
    alone = run(widths[index][None], own_norms)
    np.testing.assert_array_equal(
      together.accuracy[:, index], alone.accuracy[:, 0]
    )
    np.testing.assert_allclose(
      together.cross_entropy[:, index], alone.cross_entropy[:, 0], rtol=1e-5
    )


def test_chips_at_a_time_do_not_change_scores(net, monkeypatch):
  """As on accelerators: all chips, two of three, or one at a time."""
  module, variables, images, labels = net
  widths = jnp.array([_WIDTHS, [3, 5, 2, 8, 4, 7, 12]])
  norms = jax.tree.map(lambda x: jnp.stack([x] * 2), variables["batch_stats"])
  keys = jax.random.split(jax.random.key(1), 3)
  weights = sum(x.size for x in jax.tree.leaves(variables["params"]))

  def run():
    batches = _batches(images, labels, 16)
    score = jax.jit(
      lambda *args: robustness.score_chips(module, *args, _DEVICE)
    )
    return score(variables, widths, norms, batches, keys).hits

  expected = run()
  for together in (3, 2, 0):
    monkeypatch.setattr(robustness, "_MOST_WEIGHTS", together * weights + 1)
    with backend.compiling_for("gpu"):
      np.testing.assert_array_equal(run(), expected)


def test_chip_mode_recalibrates_on_the_programmed_chip(net):
  module, variables, images, labels = net
  calibration = jnp.asarray(images)[None]
  got = _evaluate(net, calibration=calibration)
  bits = binary.thermometer_code(jnp.asarray(images), 8)

  @jax.jit
  def by_hand(key):
    programmed = crossbar.program(key, variables, _DEVICE)
    stats = variables_lib.recalibrate(module, programmed, bits[None])
    programmed = {**programmed, "batch_stats": stats}
    return module.apply(programmed, bits, train=False)

  for chip in range(3):
    logits = by_hand(jax.random.fold_in(jax.random.key(7), chip))
    hits = np.asarray(logits).argmax(-1) == labels
    np.testing.assert_allclose(got[chip], hits.mean(), atol=1e-6)
