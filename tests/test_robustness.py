"""Accuracy on chips: against the programmed net, and candidates together."""

import functools

import jax
import numpy as np
import pytest
import tiny_net

from hawis_jax import backend
from hawis_jax import crossbar
from hawis_jax.networks import net_variables
from hawis_jax.robustness import evaluation
from hawis_jax.robustness import monte_carlo

_DEVICE = crossbar.Device(stuck_off=0.1, stuck_on=0.02, variation=0.3)
_STUCK = crossbar.Device(stuck_off=0.1, stuck_on=0.02)
_CANDIDATES = np.array([tiny_net.WIDTHS, tiny_net.NARROWER, (1,) * 7])


@pytest.fixture(scope="module")
def net(tiny):
  """(module, variables, uint8 images, labels)."""
  return tiny.module, tiny.variables, tiny.images[:40], tiny.labels[:40]


def _batches(images, labels, batch_size):
  """Padded batches; the padding is garbage that must not count."""
  pad = -len(images) % batch_size
  image = np.concatenate([images, 255 - images[:pad]])
  label = np.concatenate([labels, labels[:pad]])
  mask = np.arange(len(image)) < len(images)
  return monte_carlo.Batches(
    *(x.reshape(-1, batch_size, *x.shape[1:]) for x in (image, label, mask))
  )


def _evaluate(net, **kwargs):
  module, variables, images, labels = net
  return evaluation.evaluate_chips(
    jax.random.key(7),
    module,
    variables,
    images,
    labels,
    _DEVICE,
    6,
    **kwargs,
  )


def test_accuracy_is_that_of_the_programmed_net(net):
  """Against a plain loop: program one chip, run the net, count."""
  module, variables, images, labels = net
  got = _evaluate(net)
  program = jax.jit(crossbar.program)
  for chip in range(6):
    key = jax.random.fold_in(jax.random.key(7), chip)
    programmed = program(key, variables, _DEVICE)
    logits = tiny_net.apply(module, False, programmed, images)
    correct = np.asarray(logits).argmax(-1) == labels
    np.testing.assert_allclose(got[chip], correct.mean(), atol=1e-6)
  assert len(set(got)) > 1


def test_ideal_chips_have_the_clean_accuracy(net):
  module, variables, images, labels = net
  logits = tiny_net.apply(module, False, variables, images)
  clean = (np.asarray(logits).argmax(-1) == labels).mean()
  stacked = _batches(images, labels, 16)
  batches = (jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(3))
  got = evaluation.ideal_accuracy(module, variables, batches)
  np.testing.assert_allclose(got, clean, atol=1e-6)


@functools.cache
def _scorer(module, platform, most_weights):
  """What is traced depends on all of them."""
  return jax.jit(functools.partial(monte_carlo.score_chips, module))


def _score(net, device, widths=_CANDIDATES):
  """Scores of some width vectors, all with the net's own statistics."""
  module, variables, images, labels = net
  norms = jax.tree.map(lambda x: np.stack([x] * 3), variables["batch_stats"])
  keys = jax.random.split(jax.random.key(1), 3)
  score = _scorer(module, backend.platform(), monte_carlo._MOST_WEIGHTS)
  batches = _batches(images, labels, 16)
  return jax.device_get(score(variables, widths, norms, batches, keys, device))


@pytest.mark.exact
@pytest.mark.parametrize("device", [_DEVICE, _STUCK], ids=["float", "planes"])
def test_candidates_of_a_supernet_share_the_chip(net, device):
  """Scores of several width vectors equal those of each without the others."""
  together = _score(net, device)
  assert together.accuracy.shape == (3, 3)
  assert len(np.unique(together.cross_entropy)) > 3
  for index, widths in enumerate(_CANDIDATES):
    alone = _score(net, device, np.stack([widths] * 3))
    for column in range(3):
      np.testing.assert_array_equal(
        together.accuracy[:, index], alone.accuracy[:, column]
      )
      np.testing.assert_allclose(
        together.cross_entropy[:, index],
        alone.cross_entropy[:, column],
        rtol=1e-5,
      )


@pytest.mark.exact
def test_chips_at_a_time_do_not_change_scores(net, monkeypatch):
  """As on accelerators: all chips, or two of three at a time."""
  weights = sum(x.size for x in jax.tree.leaves(net[1]["params"]))
  expected = _score(net, _DEVICE).correct
  for together in (3, 2):
    monkeypatch.setattr(monte_carlo, "_MOST_WEIGHTS", together * weights + 1)
    with backend.compiling_for("gpu"):
      np.testing.assert_array_equal(_score(net, _DEVICE).correct, expected)


def test_chip_mode_recalibrates_on_the_programmed_chip(net):
  module, variables, images, labels = net
  got = _evaluate(net, calibration=images[None])

  @jax.jit
  def by_hand(key):
    bits = module.encode(images)
    programmed = crossbar.program(key, variables, _DEVICE)
    stats = net_variables.recalibrate(module, programmed, bits[None])
    programmed = {**programmed, "batch_stats": stats}
    return module.apply(programmed, bits, train=False)

  for chip in range(3):
    logits = by_hand(jax.random.fold_in(jax.random.key(7), chip))
    correct = np.asarray(logits).argmax(-1) == labels
    np.testing.assert_allclose(got[chip], correct.mean(), atol=1e-6)
