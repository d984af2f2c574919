"""Training on chips: what is drawn, what is learnt, and through what."""

import functools
import types

from flax import traverse_util
import jax
import numpy as np
import optax
import pytest
from scipy import stats
import tiny_net

from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax.arithmetic import integer
from hawis_jax.crossbar import readout
from hawis_jax.networks import net_variables
from hawis_jax.networks import reference_resnet
from hawis_jax.training import fixed_net
from hawis_jax.training import hardware_aware
from hawis_jax.training import optimization

_STUCK = crossbar.Device(stuck_on=0.1, stuck_off=0.3)
_VARYING = crossbar.Device(variation=0.5)


def _key(rng):
  return jax.random.key(rng.integers(2**31))


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_chips_are_of_all_scenarios_at_uniform_shares(
  rng, backend, monkeypatch
):
  """Also as accelerators draw them. Expected: E[w] = 1 - (p_on + p_off)."""
  monkeypatch.setattr(hardware_aware.backend, "platform", lambda: backend)
  kernel = rng.normal(size=(64, 64)).astype(np.float32)
  net = {"params": {"head": {"kernel": kernel}}}
  settings = hardware_aware.Settings((_STUCK, _VARYING))
  module = types.SimpleNamespace(weight_bits=1)

  @jax.jit
  @jax.vmap
  def draw(key):
    chip = hardware_aware.program(key, net, module, settings, 1.5, 1)
    return chip["crossbar"]["head"]["weight"]

  weights = jax.device_get(draw(jax.random.split(_key(rng), 600)))
  weights = weights * np.sign(kernel)
  stuck = np.isin(weights, (-1, 0, 1)).all((1, 2))
  assert 240 < stuck.sum() < 360  # 12 is the standard deviation
  # 4,096 weights tell a share to 0.02.
  share = (1 - weights[stuck].mean((1, 2))) / 0.4
  assert stats.kstest(share, "uniform", (0, 1.5)).pvalue > 1e-3
  sigma = np.log(np.abs(weights[~stuck])).std((1, 2))
  assert stats.kstest(sigma / 0.5, "uniform", (0, 1.5)).pvalue > 1e-3


@pytest.mark.parametrize(
  ("worst", "num", "counted"),
  [(0.28, 25, 7), (0.07, 100, 7), (0.01, 3, 1), (0.5, 3, 2), (1.0, 3, 3)],
)
def test_share_of_the_worst_is_not_rounded_up_by_floats(worst, num, counted):
  assert _settings(chips=num, worst=worst).counted == counted


def test_severities_rise_in_a_line():
  at = functools.partial(hardware_aware.Settings, (_STUCK,), 1, 2.0)
  np.testing.assert_allclose(
    [at((0.1, 0.5)).most_at(s) for s in (0, 0.1, 0.3, 0.5, 0.9)],
    [0, 0, 1, 2, 2],
  )
  assert at((0.0, 0.0)).most_at(0.0) == 2
  assert at((0.3, 0.3)).most_at(0.29) == 0 and at((0.3, 0.3)).most_at(0.31) == 2


_CMO = vars(crossbar.PRESETS["hfox_cmo"])


@pytest.mark.parametrize(
  "device, bits",
  [
    (crossbar.Device(stuck_on=0.2, stuck_off=0.3), 1),
    (crossbar.Device(dead_rows=0.2, gaussian_variation=0.5), 1),
    (crossbar.Device(variation=0.5, wire_resistance=2.0), 1),
    (crossbar.Device(variation=0.5, wire_resistance=20.0, gated=True), 1),
    (
      crossbar.Device(
        variation=0.5, wire_resistance=9.0, nonlinearity=4.0, tile_shape=(32, 8)
      ),
      1,
    ),
    (
      crossbar.Device(
        drift_time=1e4,
        drift_mean=(0.0, *[0.1] * 3),
        write_error=1.0,
        write_sigma=(2.0,),
      ),
      1,
    ),
    (crossbar.Device(read_noise=1.0, telegraph_noise=1.0, stuck_off=0.5), 1),
    (
      crossbar.Device(
        **(_CMO | dict(white_noise=0.1, retention_time=1e4, stuck_off=0.5))
      ),
      1,
    ),
    (crossbar.Device(stuck_off=0.3, adc_bits=14), 1),
    (crossbar.Device(adc_bits=14, adc_offset=1.0, adc_noise=1.0), 1),
    (crossbar.Device(adc_bits=14, adc_mismatch=0.1, stuck_off=0.3), 1),
    (crossbar.Device(stuck_off=0.3, variation=0.2), 8),
    (crossbar.Device(stuck_off=0.3, adc_bits=14, cell_bits=2), 8),
  ],
  ids=lambda x: None if isinstance(x, int) else "",
)
def test_gradients_pass_straight_through_to_the_latent_weight(
  rng, device, bits
):
  """That of the ideal weights, stuck or not, whatever the form of the chip."""
  kernel = rng.normal(size=(100, 7)).astype(np.float32)
  x = rng.integers(0, 2, (5, 100)).astype(np.float32)
  g = rng.normal(size=(5, 7)).astype(np.float32)
  key = _key(rng)

  @jax.jit
  def gradient(kernel):
    def loss(kernel):
      net = {"params": {"head": {"kernel": kernel}}}
      net = crossbar.program(
        *(key, net, device, bits), scales="channel", straight_through=True
      )
      layer = crossbar.for_images(net, np.arange(5))["crossbar"]["head"]
      if "weight" in layer:
        sums = x @ layer["weight"]
      else:
        sums = readout.read(lambda a, b: a @ b, x, layer)
      return (sums * g).sum(), sums

    return jax.grad(loss, has_aux=True)(kernel)

  got, sums = gradient(kernel)
  integers = np.sign(kernel)
  expected = x.T @ g
  if bits == 8:
    step = np.asarray(integer.weight_step(kernel, 8, "channel"))
    integers, expected = np.round(kernel / step), expected / step
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
  assert np.abs(sums - x @ integers).max() > 1  # on a chip it was


def _settings(**fields):
  return hardware_aware.Settings((_STUCK, _VARYING), **fields)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_k_chips_are_the_mean_of_k_runs_or_of_the_worst(
  rng, backend, monkeypatch
):
  """Each has its part of the batch; looped over, and vmapped."""
  monkeypatch.setattr(hardware_aware.backend, "platform", lambda: backend)
  key, module = _key(rng), types.SimpleNamespace(weight_bits=1)
  params = {"head": {"kernel": rng.normal(size=(40, 3)).astype(np.float32)}}
  batch = {"image": rng.normal(size=(12, 40)), "label": np.arange(12)}

  def loss_function(net, part):
    sums = part["image"] @ net["crossbar"]["head"]["weight"]
    return (sums**2).mean(), part["label"].mean()

  def together(params, settings):
    return hardware_aware.loss_on_chips(
      loss_function, key, {"params": params}, batch, module, settings, 1.0
    )

  def alone(params, key, part):
    net = {"params": params}
    net = hardware_aware.program(key, net, module, _settings(), 1.0, 4)
    return loss_function(net, part)

  gradient = functools.partial(jax.value_and_grad, has_aux=True)
  single = jax.jit(gradient(alone))
  runs = []
  for place, chip in enumerate(jax.random.split(key, 3)):
    mine = slice(4 * place, 4 * place + 4)
    part = {name: x[mine] for name, x in batch.items()}
    runs.append(single(params, chip, part))
  runs.sort(key=lambda run: run[0][0])
  for worst, counted in ((1.0, runs), (0.5, runs[1:])):
    settings = _settings(chips=3, worst=worst)
    (loss, label), grads = jax.jit(gradient(together), static_argnums=1)(
      params, settings
    )
    expected = np.mean([run[0][0] for run in counted])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert label == 5.5
    np.testing.assert_allclose(
      grads["head"]["kernel"],
      np.mean([run[1]["head"]["kernel"] for run in counted], 0),
      rtol=1e-4,
      atol=1e-5,
    )
  assert runs[0][0][0] < 0.99 * runs[2][0][0]


def test_a_step_on_chips_is_that_of_its_key_and_progress(tiny, rng):
  """Before severities rise it is the ideal net's."""
  state = tiny_net.random_state(tiny.module, tiny_net.SGD, rng)
  batch, keys = tiny.batch(4), jax.random.split(_key(rng))
  recipe = fixed_net.Recipe(chips=_settings(ramp=(0.5, 0.5)))
  step = tiny_net.step(tiny.module, tiny_net.SGD, recipe)
  plain = tiny_net.step(tiny.module, tiny_net.SGD)(state, batch)[0]

  def moved(key, progress):
    return step(state, batch, None, key, np.float32(progress))[0].params

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
    moved(keys[0], 0.4),
    plain.params,
  )
  first, again, other = (moved(keys[k], 0.6) for k in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  for one in (other, plain.params):
    assert not np.allclose(
      first["stem"]["kernel"], one["stem"]["kernel"], atol=1e-4
    )


@pytest.mark.parametrize("bits", [8, None], ids=["int8", "float"])
def test_reference_nets_train_on_chips(tiny, rng, bits):
  """A float net's chip holds its weights' integers, in their units."""
  module = reference_resnet.cifar_reference(8, tiny_net.WIDTHS, 10, bits)
  optimizer = optax.sgd(0.1)
  state = tiny_net.random_state(module, optimizer, rng)
  net, key = {"params": state.params}, _key(rng)
  ideal = hardware_aware.program(key, net, module, _settings(), 0.0, 1)
  for path, weight in traverse_util.flatten_dict(ideal["crossbar"]).items():
    kernel = traverse_util.flatten_dict(state.params)[(*path[:-1], "kernel")]
    step = np.abs(kernel).max(tuple(range(kernel.ndim - 1))) / 127
    unit = 1 if bits else step
    expected = np.round(kernel / step) * unit
    np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-6)
  recipe = fixed_net.Recipe(chips=_settings())
  step = tiny_net.step(module, optimizer, recipe)
  losses = []
  for number in range(30):
    state, values = step(
      state, tiny.batch(16), None, jax.random.fold_in(key, number), 0.0
    )
    losses.append(float(values["loss"]))
  assert np.mean(losses[-5:]) < 0.7 * losses[0]


def test_design_statistics_are_the_mean_over_chips(tiny, rng):
  key, images = _key(rng), tiny.images[:128].reshape(2, 64, *tiny_net.SHAPE)
  settings, params = _settings(most_severity=1.5), tiny.variables["params"]

  @jax.jit
  def all_of(key):
    found = hardware_aware.design_statistics(
      key, tiny.module, {"params": params}, images, settings, 5
    )
    return found, jax.lax.map(of_chip, jax.random.split(key, 5))

  def of_chip(key):
    net = hardware_aware.program(
      key, {"params": params}, tiny.module, settings, 1.5, 1
    )
    return net_variables.recalibrate(tiny.module, net, images)

  got, each = jax.device_get(all_of(key))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b.mean(0), rtol=1e-5, atol=1e-5),
    got,
    each,
  )
  spread = each["bn_head"]["mean"].std(0)
  assert spread.max() > 1e-3


def test_margin_loss_asks_for_logits_beyond_it(rng):
  logits = rng.normal(size=(7, 5)).astype(np.float32)
  labels = rng.integers(0, 5, 7)
  signs = np.where(np.arange(5) == labels[:, None], 1, -1)
  expected = np.maximum(0.7 - signs * logits, 0).mean()
  got = jax.jit(optimization.margin_loss, static_argnums=2)(logits, labels, 0.7)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.slow
def test_retraining_for_one_chip_brings_more_than_its_statistics(tiny, rng):
  """On digits of sklearn, held out, for three chips with stuck cells."""
  from sklearn import datasets  # takes seconds

  values, labels = datasets.load_digits(return_X_y=True)
  images = np.minimum(255, 16 * values).astype(np.uint8).reshape(-1, 8, 8, 1)
  order = rng.permutation(len(labels))
  (images, unseen), (labels, true) = (
    np.split(x[order], [1437]) for x in (images, labels)
  )
  module, adam = tiny.module, optax.adam(1e-2)
  state = tiny_net.random_state(module, adam, rng)
  step = tiny_net.step(module, adam)
  for _ in range(400):
    rows = rng.integers(0, len(labels), 64)
    state, _ = step(state, {"image": images[rows], "label": labels[rows]})
  net = jax.device_get(state.variables)
  device = crossbar.Device(stuck_on=0.04, stuck_off=0.15)

  @jax.jit
  def correct(key, variables):
    chip = crossbar.program(key, variables, device)
    logits = module.apply(chip, module.encode(unseen), train=False)
    return (logits.argmax(-1) == true).mean()

  keys = jax.random.split(_key(rng), 3)
  retrain = functools.partial(
    hardware_aware.retrain_for_chip,
    module=module,
    variables=net,
    images=images,
    labels=labels,
    device=device,
  )
  before = [retrain(key, steps=1, learning_rate=0.0) for key in keys]
  after = [retrain(key, steps=60, learning_rate=3e-3) for key in keys]
  np.testing.assert_array_equal(
    before[0]["params"]["head"]["kernel"], net["params"]["head"]["kernel"]
  )
  gains = [
    correct(key, new) - correct(key, old)
    for key, new, old in zip(keys, after, before, strict=True)
  ]
  assert np.mean(gains) > 0.05
  # It is for that chip: on another it is worse.
  others = [correct(keys[k - 1], after[k]) for k in range(3)]
  own = [correct(keys[k], after[k]) for k in range(3)]
  assert np.mean(own) > np.mean(others) + 0.05


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"steps": 0}, "steps: got 0, allowed is a whole number from 1"),
    ({"batch_size": 301}, "batch_size: got 301, allowed .* to 300, the images"),
    ({"learning_rate": -1.0}, "learning_rate: got -1.0, allowed is a finite"),
    ({"labels": np.zeros(299, int)}, r"labels: got int64 of shape \(299,\)"),
    ({"labels": np.full(300, 99)}, "labels: got 99 to 99, allowed are 0 to"),
    ({"device": crossbar.Device(adc_bits=1)}, "adc_bits: got 1, a sense amp"),
  ],
)
def test_what_a_chip_can_not_be_trained_for_is_named(tiny, fields, message):
  arguments = {"device": _STUCK, **dict(zip(tiny._fields, tiny, strict=True))}
  with pytest.raises(errors.InputError, match=message):
    hardware_aware.retrain_for_chip(jax.random.key(0), **arguments | fields)
