"""A user's own Flax net on chips, against NumPy, cell by cell."""

import functools
import pathlib
import re
import runpy

from flax import linen as nn
from flax import nnx
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn import datasets

import hawis_jax as hx
from hawis_jax.robustness import monte_carlo

_ROOT = pathlib.Path(__file__).parents[1]
_WEIGHTS = {"binary": 1, "int8": 8, "analog": 0}
# The fast tier has one kind.
_ONE_FAST = [
  pytest.param(kind, marks=() if kind == "int8" else pytest.mark.slow)
  for kind in _WEIGHTS
]
_DEVICE = hx.Device(
  stuck_off=0.1, stuck_on=0.05, variation=0.3, tile_shape=(16, 12)
)


def _key(rng):
  return jax.random.key(rng.integers(2**31))


def _variables(module, *inputs, rng):
  """Random ones, drawn in NumPy."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32) * 0.3, shapes
  )


def _rounded(matrix, weights):
  """What of a matrix `[rows, columns]` cells hold, and its scales; float64."""
  most = np.abs(matrix).max(0)
  if weights == "binary":
    return np.sign(matrix), np.abs(matrix).mean(0)
  if weights == "analog":
    return matrix / most, most
  return np.round(matrix / (most / 127)), most / 127


def _on_chip(key, net, variables, device=None):
  """{layer: weights `[..., C_out]`} that a chip amounts to, cell by cell."""
  flat = traverse_util.flatten_dict(net.on_chips(variables["params"]))
  bits, found = _WEIGHTS[net.weights], {}
  for place, path in enumerate(sorted(flat)):
    kernel = np.asarray(flat[path], np.float64)
    # Rows are ordered (input channel, tap).
    matrix = np.moveaxis(kernel, -2, 0).reshape(-1, kernel.shape[-1])
    held, scale = _rounded(matrix, net.weights)
    if device is not None:
      layer_key = jax.random.fold_in(key, place)
      pair = hx.conductances(layer_key, flat[path], device, bits)
      on, off = np.asarray(pair, np.float64)
      steps = 127 if bits == 8 else 1
      tiles = (on - off) / (device.g_on - device.g_off) * steps
      row_tiles, columns, rows, width = tiles.shape
      tiles = tiles.transpose(0, 2, 1, 3)
      joined = tiles.reshape(row_tiles * rows, columns * width)
      held = joined[: matrix.shape[0], : matrix.shape[1]]
    weights = (held * scale).reshape(kernel.shape[-2], -1, kernel.shape[-1])
    weights = weights.transpose(1, 0, 2).reshape(kernel.shape)
    found["/".join(path[:-1])] = weights
  return found


def _chip_of(key, net, variables, device):
  """The variables of a net on a chip, as the public functions make them."""
  held = {"params": net.on_chips(variables["params"])}
  bits = _WEIGHTS[net.weights]
  chip = hx.program(key, held, device, bits, scales="channel")
  return {**variables, "crossbar": chip["crossbar"]}


def _convolve(x, kernel, bias=0, strides=1, dilation=1, padding="SAME"):
  """im2col by hand: `[B, H, W, C]` and `[k, k, C, C_out]`."""
  size = kernel.shape[0]
  reach = dilation * (size - 1) + 1
  if padding == "SAME":
    pads = [(0, 0)]
    for n in x.shape[1:3]:
      total = max((-(-n // strides) - 1) * strides + reach - n, 0)
      pads.append((total // 2, total - total // 2))
    x = np.pad(x, [*pads, (0, 0)])
  height, width = ((n - reach) // strides + 1 for n in x.shape[1:3])
  columns = np.empty((len(x), height, width, size, size, x.shape[-1]))
  for i, j in np.ndindex(height, width):
    for u, v in np.ndindex(size, size):
      row, column = i * strides + u * dilation, j * strides + v * dilation
      columns[:, i, j, u, v] = x[:, row, column]
  rows = columns.reshape(-1, kernel[..., 0].size)
  y = rows @ kernel.reshape(-1, kernel.shape[-1])
  return y.reshape(len(x), height, width, -1) + bias


def _mlp():
  return nn.Sequential([nn.Dense(20), nn.relu, nn.Dense(5)])


def _mlp_logits(x, weights, params):
  first, second = params["layers_0"], params["layers_2"]
  x = np.maximum(x @ weights["layers_0"] + first["bias"], 0)
  return x @ weights["layers_2"] + second["bias"]


@pytest.mark.parametrize("weights", _ONE_FAST)
def test_an_mlp_is_numpys_on_every_chip(rng, weights):
  """Chips of evaluate_chips, by their keys; an ideal one: its own rounding."""
  module, key = _mlp(), _key(rng)
  images = rng.normal(size=(300, 30)).astype(np.float32)
  variables = _variables(module, images, rng=rng)
  params = variables["params"]
  net = hx.any_flax(module, weights=weights)
  ideal = net.apply(variables, images)
  own = _mlp_logits(images, _on_chip(None, net, variables), params)
  np.testing.assert_allclose(ideal, own, rtol=1e-4, atol=1e-4)
  labels = own.argmax(1)
  evaluate = functools.partial(
    hx.evaluate_chips, key, net, variables, images, labels, num_chips=3
  )
  assert (evaluate(hx.Device()) == 1).all()
  got = evaluate(_DEVICE)
  for number in range(3):
    chip_key = jax.random.fold_in(key, number)
    held = _on_chip(chip_key, net, variables, _DEVICE)
    logits = _mlp_logits(images, held, params)
    chip = _chip_of(chip_key, net, variables, _DEVICE)
    np.testing.assert_allclose(
      net.apply(chip, images), logits, rtol=1e-3, atol=1e-3
    )
    assert abs(got[number] - (logits.argmax(1) == labels).mean()) < 1.5 / 300
  assert 0.2 < got.mean() < 0.95


@pytest.mark.slow
@pytest.mark.parametrize("weights", _WEIGHTS)
@pytest.mark.parametrize(
  "fields",
  [
    {},
    {"strides": 2, "padding": "VALID"},
    {"kernel_dilation": 2, "padding": "VALID", "use_bias": False},
    {"strides": 2, "kernel_dilation": 2},
  ],
  ids=["same", "strides", "dilation", "both"],
)
def test_convolutions_are_numpys(rng, weights, fields):
  module, key = nn.Conv(7, (3, 3), **fields), _key(rng)
  images = rng.normal(size=(4, 9, 8, 5)).astype(np.float32)
  variables = _variables(module, images, rng=rng)
  net = hx.any_flax(nn.Sequential([module]), weights=weights)
  variables = {"params": {"layers_0": variables["params"]}}
  by_hand = functools.partial(
    _convolve,
    images,
    bias=variables["params"]["layers_0"].get("bias", 0),
    strides=fields.get("strides", 1),
    dilation=fields.get("kernel_dilation", 1),
    padding=fields.get("padding", "SAME"),
  )
  ideal = net.apply(variables, images)
  held = _on_chip(None, net, variables)["layers_0"]
  np.testing.assert_allclose(ideal, by_hand(held), rtol=1e-4, atol=1e-4)
  held = _on_chip(key, net, variables, _DEVICE)["layers_0"]
  got = net.apply(_chip_of(key, net, variables, _DEVICE), images)
  np.testing.assert_allclose(got, by_hand(held), rtol=1e-3, atol=1e-3)
  assert np.abs(got - ideal).max() > 0.1


class _Attention(nn.Module):
  """Products of several axes: of DenseGeneral's kernels and Einsum's."""

  @nn.compact
  def __call__(self, x):
    x = nn.MultiHeadDotProductAttention(2, name="attention")(x)
    return nn.Einsum((3, 6, 2), "btd,kdl->bkl", False, name="last")(x)


def _attention_logits(x, held, params):
  params = params["attention"]
  query, key, value = (
    np.einsum("btd,dhk->bthk", x, held[f"attention/{name}"].reshape(6, 2, 3))
    + params[name]["bias"]
    for name in ("query", "key", "value")
  )
  scores = np.einsum("bthk,bshk->bhts", query, key) / np.sqrt(3)
  scores = np.exp(scores - scores.max(-1, keepdims=True))
  scores /= scores.sum(-1, keepdims=True)
  y = np.einsum("bhts,bshk->bthk", scores, value)
  out = held["attention/out"].reshape(2, 3, 6)
  y = np.einsum("bthk,hkd->btd", y, out) + params["out"]["bias"]
  # Its matrix is [d, (k, l)].
  return np.einsum("btd,dkl->bkl", y, held["last"].reshape(6, 3, 2))


@pytest.mark.slow
@pytest.mark.parametrize("weights", _WEIGHTS)
def test_attention_and_einsum_are_numpys(rng, weights):
  """A column of a crossbar is one of (head, channel), and so is its scale."""
  module, key = _Attention(), _key(rng)
  images = rng.normal(size=(4, 5, 6)).astype(np.float32)
  variables = _variables(module, images, rng=rng)
  params = variables["params"]
  net = hx.any_flax(module, weights=weights)
  ideal = net.apply(variables, images)
  own = _attention_logits(images, _on_chip(None, net, variables), params)
  np.testing.assert_allclose(ideal, own, rtol=1e-3, atol=1e-4)
  held = _on_chip(key, net, variables, _DEVICE)
  got = net.apply(_chip_of(key, net, variables, _DEVICE), images)
  want = _attention_logits(images, held, params)
  np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
  assert np.abs(got - ideal).max() > 0.01


def _digits():
  digits = datasets.load_digits()
  return (digits.images[..., None] / 16).astype(np.float32), digits.target


@functools.cache
def _trained():
  """An MLP trained on digits, without chips."""
  x, y = _digits()
  x = x.reshape(len(x), -1)
  module = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(10)])
  variables = jax.jit(module.init)(jax.random.key(0), x[:1])
  optimizer = optax.adam(1e-2)

  @jax.jit
  def fit(variables):
    def step(carry, _):
      variables, state = carry

      def loss_of(variables):
        logits = module.apply(variables, x)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return loss.mean()

      updates, state = optimizer.update(jax.grad(loss_of)(variables), state)
      return (optax.apply_updates(variables, updates), state), None

    start = variables, optimizer.init(variables)
    return jax.lax.scan(step, start, length=150)[0][0]

  return module, jax.device_get(fit(variables)), x, y


@pytest.mark.parametrize("weights", _ONE_FAST)
def test_half_the_cells_stuck_takes_the_accuracy(weights):
  """A net of nn.Dense once kept its clean accuracy, whatever was stuck."""
  module, variables, x, y = _trained()
  net = hx.any_flax(module, weights=weights)
  evaluate = functools.partial(
    hx.evaluate_chips, jax.random.key(0), net, variables, x, y, num_chips=8
  )
  clean = (np.asarray(module.apply(variables, x)).argmax(1) == y).mean()
  rounded = (np.asarray(net.apply(variables, x)).argmax(1) == y).mean()
  assert clean > 0.95
  np.testing.assert_allclose(evaluate(hx.Device()), rounded, atol=1e-6)
  if weights != "binary":  # signs of a net that was not trained for them
    assert rounded > clean - 0.01
  stuck = evaluate(hx.Device(stuck_on=0.25, stuck_off=0.25))
  assert stuck.mean() < 0.6 * rounded


class _Fitted(nn.Module):
  """What fits evaluate_chips, but reads no chip."""

  num_classes = 10
  weight_bits = 1

  @nn.nowrap
  def encode(self, images):
    return images.reshape(len(images), -1) / 255

  @nn.compact
  def __call__(self, x, widths=None, *, train):
    return nn.Dense(10)(x)


@pytest.mark.parametrize("device", [hx.Device(stuck_off=0.5), _DEVICE])
def test_a_net_that_never_reads_its_chip_is_refused(rng, device):
  module, images = _Fitted(), np.zeros((4, 2, 2, 1), np.uint8)
  variables = module.init(_key(rng), module.encode(images), train=False)
  variables["batch_stats"] = {}
  with pytest.raises(hx.InputError, match="got Dense_0, which chips hold and"):
    hx.evaluate_chips(
      _key(rng), module, variables, images, np.arange(4), device, 2
    )


class _Odd(nn.Module):
  """Layers that chips can't hold, or that are not read."""

  kind: str

  @nn.compact
  def __call__(self, x):
    y = nn.Dense(4, name="first")(x)
    if self.kind == "dropped":
      nn.Dense(4, name="odd")(y)
    elif self.kind == "uncalled" and self.is_initializing():
      nn.Dense(4, name="odd")(y)
    elif self.kind == "groups":
      y = nn.Conv(4, (1,), feature_group_count=2, name="odd")(y)
    elif self.kind == "bfloat16":
      y = nn.Dense(4, dtype=jnp.bfloat16, name="odd")(y)
    elif self.kind == "product":
      y = nn.Dense(
        4, dot_general=lambda *x, **k: jax.lax.dot_general(*x, **k), name="odd"
      )(y)
    elif self.kind == "norm":
      y = nn.WeightNorm(nn.Dense(4, name="odd"))(y)
    elif self.kind == "several":
      odd = nn.Einsum((4, 4), None, False, name="odd")
      y = odd(odd(y, "bd,de->be"), "bd,ed->be")
    elif self.kind == "kernel":
      y = nn.Dense(4, param_dtype=jnp.bfloat16, name="odd")(y)
    elif self.kind == "promoted":
      own = lambda *x, **k: nn.dtypes.promote_dtype(*x, **k)  # noqa: E731
      y = nn.Dense(4, promote_dtype=own, name="odd")(y)
    elif self.kind == "einsum":
      y = nn.Einsum((4, 2), "bd,de->bd", False, name="odd")(y)
    return y


_REFUSED = {
  "dropped": "got odd, which chips hold and the net never reads",
  "uncalled": "got odd, whose kernel the net never reads",
  "groups": "got odd, of feature_group_count = 2",
  "bfloat16": "got odd, which computes in bfloat16",
  "product": "got odd, whose dot_general is its own product",
  "norm": "got odd, whose kernel is transformed",
  "several": "got odd, which is called as several products",
  "einsum": "got odd, whose equation 'bd,de->bd' is no product",
  "kernel": "got odd, whose kernel is bfloat16",
  "promoted": "got odd, whose promote_dtype is its own product",
}


@pytest.mark.parametrize("kind", _REFUSED)
def test_layers_that_chips_cannot_hold_are_refused_by_name(rng, kind):
  """And computed digitally where they are not chosen."""
  module, images = _Odd(kind), rng.normal(size=(6, 4)).astype(np.float32)
  variables = module.init(_key(rng), images)
  labels, device = np.arange(6) % 4, hx.Device(variation=0.1)

  def evaluate(**chosen):
    net = hx.any_flax(module, **chosen)
    return hx.evaluate_chips(
      _key(rng), net, variables, images, labels, device, 2
    )

  with pytest.raises(hx.InputError, match=_REFUSED[kind]):
    evaluate()
  if kind == "dropped":
    assert evaluate(layers="first").shape == (2,)


class _Stacked(nnx.Module):
  """Layers whose kernels are stacked by vmap, or wrapped."""

  def __init__(self, make):
    self.layers = nnx.split_rngs(splits=3)(nnx.vmap(make))(nnx.Rngs(0))

  def __call__(self, x):
    run = nnx.scan(
      lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
    )
    return run(x, self.layers).reshape(len(x), -1)


class _Wrapped(nnx.Module):
  def __init__(self, wrapper):
    layer = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    self.layers = wrapper(layer, rngs=nnx.Rngs(0))

  def __call__(self, x):
    return self.layers(x)


class _Normalised(nnx.Module):
  """Does what `nnx.WeightNorm` does, by hand."""

  def __init__(self):
    self.layer = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

  def __call__(self, x):
    layer = nnx.clone(self.layer)
    kernel = layer.kernel[...]
    layer.kernel[...] = kernel / jnp.linalg.norm(kernel, axis=0, keepdims=True)
    return layer(x)


@pytest.mark.parametrize(
  ("model", "shape", "match"),
  [
    (
      lambda: _Stacked(lambda rngs: nnx.Linear(4, 4, rngs=rngs)),
      (6, 4),
      r"got layers, whose kernel of shape \(3, 4, 4\) is that of several",
    ),
    (
      lambda: _Stacked(lambda rngs: nnx.Conv(1, 1, (3,), rngs=rngs)),
      (6, 4, 1),
      r"got layers, whose kernel of shape \(3, 3, 1, 1\) is that of several",
    ),
    (
      lambda: _Stacked(lambda rngs: nnx.LinearGeneral(4, 4, rngs=rngs)),
      (6, 4),
      r"got layers, whose kernel of shape \(3, 4, 4\) is that of several",
    ),
    (
      lambda: _Wrapped(nnx.WeightNorm),
      (6, 4),
      "got layers/layer_instance, whose kernel is transformed .* WeightNorm",
    ),
    (_Normalised, (6, 4), "got layer, of whose kernel the net computes other"),
    (
      lambda: _Wrapped(nnx.SpectralNorm),
      (6, 4),
      "got layers/layer_instance, whose kernel is transformed .* SpectralNorm",
    ),
  ],
)
def test_layers_of_nnx_that_are_no_single_matrix_are_refused(
  model, shape, match
):
  """Their defects would be scaled as one layer's, or normalised away."""
  net = hx.any_flax(model(), "analog")
  with pytest.raises(hx.InputError, match=match):
    net.apply(net.variables, np.ones(shape, np.float32))


def _call(fields, **call):
  module = _mlp()
  x = np.ones((4, 3), np.float32)
  variables = module.init(jax.random.key(0), x)
  net = hx.any_flax(module, **fields)
  call = {
    "images": x,
    "labels": np.arange(4),
    "device": hx.Device(stuck_off=0.1),
    "variables": variables,
  } | call
  key = call.pop("key", jax.random.key(0))
  return hx.evaluate_chips(key, net, num_chips=2, **call)


@pytest.mark.parametrize(
  ("fields", "call", "match"),
  [
    ({"layers": "conv*"}, {}, r"layers: got 'conv\*', allowed are patterns "),
    ({"layers": ()}, {}, "layers: got none, needed are patterns"),
    ({"weights": "int4"}, {}, "weights: got 'int4', allowed are binary, int8"),
    ({}, {"device": hx.Device(adc_bits=6)}, "device: got one with adc_bits"),
    ({}, {"device": hx.Device(read_noise=1.0)}, "one with read_noise, allowed"),
    ({}, {"device": hx.Device(white_noise=1.0)}, "with white_noise, allowed"),
    ({}, {"key": 0}, "key: got 0, needed is one key, as jax.random.key"),
    (
      {"weights": "analog"},
      {"device": hx.Device(cell_bits=2)},
      "cell_bits: got 2 with analog weights",
    ),
    (
      {"weights": "analog"},
      {"device": hx.Device(mapping="single")},
      "mapping: got 'single' with analog weights",
    ),
    ({}, {"calibration": np.zeros((1, 4, 3))}, "calibration: got images with"),
    ({}, {"images": np.ones((4, 5), np.float32)}, "what doesn't fit the net"),
    ({}, {"images": np.full((4, 3), np.nan)}, "images: got a number that is"),
    ({}, {"labels": np.arange(4) + 2}, "labels: got 2 to 5, allowed are 0 to"),
    ({}, {"variables": {}}, "variables: got none of params"),
    ({}, {"layers": ["x"]}, "layers: got 'x', allowed are patterns"),
  ],
)
def test_mistakes_are_refused_in_one_line(fields, call, match):
  with pytest.raises(hx.InputError, match=match) as error:
    _call(fields, **call)
  assert "\n" not in str(error.value)


def test_keys_of_both_kinds_are_taken_and_raw_modules_refused():
  """Words that a newcomer would write."""
  x = np.ones((4, 3), np.float32)
  variables = _mlp().init(jax.random.PRNGKey(0), x)
  rest = variables, x, np.arange(4), _DEVICE, 2
  net = hx.any_flax(_mlp())
  np.testing.assert_array_equal(
    hx.evaluate_chips(jax.random.PRNGKey(1), net, *rest),
    hx.evaluate_chips(jax.random.key(1), net, *rest),
  )
  with pytest.raises(hx.InputError, match="got a Sequential, needed is a net"):
    hx.evaluate_chips(jax.random.key(1), _mlp(), *rest)


@pytest.mark.parametrize("module", [nn.Dense, "mlp", lambda x: x])
def test_what_is_no_module_is_refused(module):
  with pytest.raises(hx.InputError, match="needed is a module of flax"):
    hx.any_flax(module)


class _Linen(nn.Module):
  """The same net as `_Nnx`."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.Conv(6, (3, 3), 2, name="conv")(x)
    x = nn.relu(nn.BatchNorm(not train, name="norm")(x))
    x = nn.Dropout(0.5, deterministic=not train)(x)
    x = nn.DenseGeneral((2, 3), axis=(-2, -1), name="general")(x)
    x = nn.Einsum((2, 3, 4), "bhij,ijk->bhk", name="einsum")(x)
    return nn.Dense(10, name="head")(x.mean(1))


class _Nnx(nnx.Module):
  def __init__(self, rngs):
    self.conv = nnx.Conv(1, 6, (3, 3), 2, rngs=rngs)
    self.norm = nnx.BatchNorm(6, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)
    self.general = nnx.LinearGeneral((4, 6), (2, 3), axis=(-2, -1), rngs=rngs)
    self.einsum = nnx.Einsum("bhij,ijk->bhk", (2, 3, 4), (4,), rngs=rngs)
    self.head = nnx.List([nnx.Linear(4, 10, rngs=rngs)])

  def __call__(self, x):
    x = self.dropout(nnx.relu(self.norm(self.conv(x))))
    return self.head[0](self.einsum(self.general(x)).mean(1))


@pytest.mark.slow
@pytest.mark.parametrize("weights", _WEIGHTS)
def test_nnx_is_linen_on_the_same_chips(rng, weights):
  images = rng.integers(0, 256, (200, 8, 8, 1)).astype(np.uint8)
  model = _Nnx(nnx.Rngs(0))
  model.norm.mean[...] = rng.normal(size=6).astype(np.float32) * 0.1
  nnx_net = hx.any_flax(model, weights=weights)
  model.conv.kernel[...] *= 0  # it is a copy that chips hold
  given = nnx_net.variables
  params = dict(given["params"])
  params["head"] = params["head"]["0"]
  linen_net = hx.any_flax(_Linen(), weights=weights)
  variables = {"params": params, "batch_stats": given["batch_stats"]}
  x = linen_net.encode(images)
  logits = linen_net.apply(variables, x)
  np.testing.assert_allclose(
    nnx_net.apply(given, x), logits, rtol=1e-4, atol=1e-5
  )
  labels = np.asarray(logits).argmax(1)
  found = [
    hx.evaluate_chips(_key(rng_), net, own, images, labels, _DEVICE, 4)
    for net, own, rng_ in (
      (nnx_net, given, np.random.default_rng(3)),
      (linen_net, variables, np.random.default_rng(3)),
    )
  ]
  np.testing.assert_allclose(*found, atol=1.5 / 200)
  assert found[0].mean() < 0.95


@pytest.mark.slow
def test_training_changes_statistics_and_draws_dropout(rng):
  """An NNX model as a Linen one: collections are returned, keys are asked."""
  x = rng.normal(size=(8, 8, 8, 1)).astype(np.float32)
  net = hx.any_flax(_Nnx(nnx.Rngs(0)))
  apply = functools.partial(net.apply, net.variables, x, train=True)
  with pytest.raises(hx.InputError, match="rngs: got None in training"):
    apply()
  keys = [{"dropout": jax.random.key(n)} for n in (0, 0, 1)]
  first, again, other = (apply(rngs=k, mutable=["batch_stats"]) for k in keys)
  np.testing.assert_array_equal(first[0], again[0])
  assert (np.asarray(first[0]) != other[0]).any()
  mean = first[1]["batch_stats"]["norm"]["mean"]
  assert (
    np.asarray(mean) != net.variables["batch_stats"]["norm"]["mean"]
  ).all()


def _loss(net):
  def loss_fn(variables, batch):
    logits = net.apply(variables, batch[0], train=True)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
    return loss.mean()

  return loss_fn


@pytest.mark.parametrize("weights", _ONE_FAST)
def test_gradients_on_chips_are_those_of_what_the_chip_multiplies(rng, weights):
  """A linear layer, whose gradient NumPy has; the same key, the same chip."""
  module, key = nn.Sequential([nn.Dense(4)]), _key(rng)
  x = rng.normal(size=(12, 30)).astype(np.float32)
  goal = rng.normal(size=(12, 4)).astype(np.float32)
  variables = _variables(module, x, rng=rng)
  net = hx.any_flax(module, weights=weights)

  def loss_fn(variables, batch):
    return (net.apply(variables, batch[0]) * batch[1]).sum()

  loss = hx.train_on_chips(loss_fn, net, _DEVICE, num_chips=3)
  both = jax.jit(jax.value_and_grad(loss))
  value, grads = both(variables, key, (x, goal))
  # Linear: whatever the chip, the gradient is x^T g, of the mean of 3 parts.
  np.testing.assert_allclose(
    grads["params"]["layers_0"]["kernel"], x.T @ goal / 3, rtol=1e-4, atol=1e-4
  )
  assert value == both(variables, key, (x, goal))[0]
  values = [both(variables, k, (x, goal))[0] for k in jax.random.split(key, 3)]
  assert len({float(v) for v in values}) == 3
  ideal = hx.train_on_chips(loss_fn, net, hx.Device(), num_chips=3)
  want = loss_fn(variables, (x, goal)) / 3
  np.testing.assert_allclose(ideal(variables, key, (x, goal)), want, rtol=1e-4)


@pytest.mark.slow
def test_our_nets_are_trained_on_chips_in_a_loop_of_ones_own(tiny):
  """With statistics as the rest, whose mean over chips is returned."""
  net, variables, images, labels = tiny

  def loss_fn(variables, batch):
    logits, updated = net.apply(
      variables, net.encode(batch[0]), train=True, mutable=["batch_stats"]
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
    return loss.mean(), updated["batch_stats"]

  loss = hx.train_on_chips(
    loss_fn, net, [hx.Device(stuck_off=0.2), hx.Device()], 2, has_aux=True
  )
  batch = images[:16], labels[:16]
  value, stats = jax.jit(loss)(variables, jax.random.key(0), batch)
  assert np.isfinite(value)
  structure = jax.tree.structure(variables["batch_stats"])
  assert jax.tree.structure(stats) == structure


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"num_chips": 0}, "num_chips: got 0, allowed"),
    ({"batch": (1.0, 2.0)}, "batch: got arrays of lengths 0, needed is one"),
    ({"num_chips": 5}, "batch: got arrays of lengths 12, needed is one length"),
    ({"most_severity": 0}, "most_severity: got 0, allowed is a finite number"),
    ({"most_severity": np.inf}, "most_severity: got inf, allowed is a finite"),
    (
      {
        "most_severity": 100,
        "device": hx.Device(stuck_off=0.7, stuck_on=0.3),
      },
      "most_severity: got 100, at which .*device.stuck_on: got 30.0",
    ),
    (
      {"device": [hx.Device(), hx.Device(tile_shape=(8, 8))]},
      "tile_shape of chips .*: got",
    ),
    ({"key": 0}, "key: got 0, needed is one key, as jax.random.key"),
    ({"key": np.zeros(3)}, "key: got a ndarray, needed is one key"),
    ({"worst": 2}, "worst: got 2, allowed is a finite number above 0, up to 1"),
    ({"device": hx.Device(adc_bits=4)}, "device: got one with adc_bits"),
    ({"device": hx.Device(adc_bits=1)}, "adc_bits: got 1, a sense amplifier"),
    ({"device": ()}, "device: got none"),
    ({"device": "pcm"}, "device: got a str, needed is a Device"),
    ({"net": _mlp()}, r"got a Sequential, .* or, of your own, hx.any_flax"),
    ({"has_aux": False, "loss_fn": "pair"}, "loss_fn: got a loss that is no"),
    ({"variables": {"layers_0": {}}}, "variables: got no params, needed are"),
    ({"loss_fn": lambda variables, batch: 0.0}, "never calls the apply"),
  ],
)
def test_mistakes_in_training_are_refused(change, match):
  net, x = hx.any_flax(_mlp()), np.ones((12, 3), np.float32)
  variables = net.module.init(jax.random.key(0), x)
  fields = {"loss_fn": _loss(net), "net": net, "device": _DEVICE} | change
  variables = fields.pop("variables", variables)
  batch = fields.pop("batch", (x, np.arange(12) % 5))
  key = fields.pop("key", jax.random.key(0))
  if fields["loss_fn"] == "pair":
    fields["loss_fn"] = lambda *given: (_loss(net)(*given), 1.0)
  with pytest.raises(hx.InputError, match=match):
    loss = hx.train_on_chips(**fields)
    loss(variables, key, batch)


def test_a_loss_that_reads_no_chip_is_refused():
  """It calls the net's own module, which chips are not in."""
  module, x = _mlp(), np.ones((12, 3), np.float32)
  net = hx.any_flax(module)
  variables = module.init(jax.random.key(0), x)

  def loss_fn(variables, batch):
    return module.apply({"params": variables["params"]}, batch[0]).sum()

  loss = hx.train_on_chips(loss_fn, net, _DEVICE)
  with pytest.raises(hx.InputError, match="never calls the apply of net"):
    loss(variables, jax.random.key(0), (x, x))
  net.apply(variables, x)
  with pytest.raises(hx.InputError, match="got layers_0, which chips hold and"):
    loss(variables, jax.random.key(0), (x, x))


@pytest.mark.slow
def test_training_on_chips_is_better_on_chips_than_training_without():
  """Chips of variation, paired over seeds: the same start and batches."""
  x, y = _digits()
  x = x.reshape(len(x), -1)
  device = hx.Device(variation=1.0)
  module = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(10)])
  net = hx.any_flax(module, weights="int8")
  loss_fn, optimizer = _loss(net), optax.adam(3e-3)
  losses = {
    "plain": lambda variables, key, batch: loss_fn(variables, batch),
    "chips": hx.train_on_chips(loss_fn, net, device, num_chips=4),
  }

  def trained(loss, seed):
    @jax.jit
    def step(variables, state, key, batch):
      grads = jax.grad(loss)(variables, key, batch)
      updates, state = optimizer.update(grads, state)
      return optax.apply_updates(variables, updates), state

    variables = module.init(jax.random.key(seed), x[:1])
    state, order = optimizer.init(variables), np.random.default_rng(seed)
    for i in range(600):
      rows = order.integers(0, 1300, 64)
      key = jax.random.fold_in(jax.random.key(seed), i)
      variables, state = step(variables, state, key, (x[rows], y[rows]))
    return variables

  gains = []
  for seed in range(4):
    plain, chips = (
      hx.evaluate_chips(
        jax.random.key(9),
        net,
        trained(losses[name], seed),
        x[1300:],
        y[1300:],
        device,
        16,
      ).mean()
      for name in ("plain", "chips")
    )
    gains.append(chips - plain)
  assert min(gains) > 0 and np.mean(gains) > 0.02, gains


@pytest.mark.slow
def test_the_page_runs_as_it_is_printed():
  """And the chip that it looks into is one of evaluate_chips'."""
  page = (_ROOT / "docs" / "own_net.md").read_text()
  names = {}
  with jax.numpy_rank_promotion("allow"):  # a user's, who has not set it
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
      exec(block, names)  # noqa: S102
    hits = names["logits_of_chip"].argmax(1) == names["labels"]
    got = hx.evaluate_chips(
      jax.random.key(1),
      *(names[name] for name in ("net", "variables", "images", "labels")),
      names["device"],
      num_chips=4,
    )
  np.testing.assert_allclose(got[3], hits.mean(), atol=0.011)
  assert (names["logits_of_chip"] != names["logits"]).any()
  assert jax.tree.all(jax.tree.map(np.any, names["grads"]["Dense_0"]))


def _example(name):
  return runpy.run_path(str(_ROOT / "examples" / f"{name}.py"))


def _same_as_numpy(names, net, variables, key, device, logits_of, layers=None):
  """Logits and accuracies of an example's chips are those of NumPy."""
  images = names["images"][names["test"]]
  labels = names["digits"].target[names["test"]]
  got = hx.evaluate_chips(
    key, net, variables, images, labels, device, num_chips=2
  )
  for number, accuracy in enumerate(got):
    chip_key = jax.random.fold_in(key, number)
    held = _on_chip(chip_key, net, variables, device)
    logits = logits_of(np.asarray(images, np.float64), held)
    chip = _chip_of(chip_key, net, variables, device)
    np.testing.assert_allclose(
      net.apply(chip, images), logits, rtol=2e-3, atol=2e-3
    )
    assert abs(accuracy - (logits.argmax(1) == labels).mean()) < 2 / len(labels)


@pytest.mark.slow
def test_example_of_an_mlp_is_numpys():
  names = _example("own_mlp")
  variables = jax.device_get(names["nets"]["on chips"])
  params = variables["params"]

  def logits_of(images, held):
    x = images.reshape(len(images), -1)
    x = np.maximum(x @ held["layers_1"] + params["layers_1"]["bias"], 0)
    return x @ held["layers_3"] + params["layers_3"]["bias"]

  device, key = names["device"], jax.random.key(2)
  _same_as_numpy(names, names["net"], variables, key, device, logits_of)
  accuracy = names["accuracy"]
  assert accuracy["on chips"].mean() > accuracy["plain"].mean() > 0.5


def _normalised(x, params, mean, var):
  return (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]


@pytest.mark.slow
def test_example_of_a_cnn_is_numpys():
  names = _example("own_cnn")
  cnn, device, key = names["cnn"], names["device"], jax.random.key(1)
  for weights in _WEIGHTS:
    net = hx.any_flax(cnn, weights=weights, layers=("conv2", "head"))
    variables = jax.device_get(net.variables)
    params, stats = variables["params"], variables["batch_stats"]

    def logits_of(images, held, params=params, stats=stats):
      kernel = np.asarray(params["conv1"]["kernel"], np.float64)
      x = _convolve(images, kernel)
      norm = stats["norm1"]["mean"], stats["norm1"]["var"]
      x = np.maximum(_normalised(x, params["norm1"], *norm), 0)
      bias = params["conv2"]["bias"]
      x = _convolve(x, held["conv2"], bias, 2, padding="VALID")
      norm = stats["norm2"]["mean"], stats["norm2"]["var"]
      x = np.maximum(_normalised(x, params["norm2"], *norm), 0)
      return x.mean((1, 2)) @ held["head"] + params["head"]["bias"]

    _same_as_numpy(names, net, variables, key, device, logits_of)
    of_chips = names["accuracy"][weights, "chips"].mean()
    assert of_chips < names["accuracy"][weights, "no defects"].mean()
  assert names["accuracy"]["analog", "no defects"].mean() > 0.7


def _layer_norm(x, params):
  mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
  return (x - mean) / np.sqrt(var + 1e-6) * params["scale"] + params["bias"]


@pytest.mark.slow
def test_example_of_a_transformer_is_numpys():
  names = _example("own_transformer")
  variables = jax.device_get(names["variables"])
  params = variables["params"]

  def logits_of(images, held):
    def linear(x, name):
      return x @ held[name] + params[name]["bias"]

    x = linear(images, "embed") + params["places"]
    y, own = _layer_norm(x, params["norm1"]), params["attention"]
    query, key, value = (
      np.einsum("btd,dhk->bthk", y, held[f"attention/{n}"].reshape(16, 2, 8))
      + own[n]["bias"]
      for n in ("query", "key", "value")
    )
    scores = np.exp(np.einsum("bthk,bshk->bhts", query, key) / np.sqrt(8))
    scores /= scores.sum(-1, keepdims=True)
    y = np.einsum("bhts,bshk->bthk", scores, value).reshape(*x.shape)
    x = x + y @ held["attention/out"].reshape(16, 16) + own["out"]["bias"]
    y = _layer_norm(x, params["norm2"])
    x = x + linear(np.maximum(linear(y, "up"), 0), "down")
    return linear(x.mean(1), "head")

  device, key = names["device"], jax.random.key(1)
  _same_as_numpy(names, names["net"], variables, key, device, logits_of)
  means = {k: v.mean() for k, v in names["accuracy"].items()}
  assert means[None] < min(v for k, v in means.items() if k)
  assert means[None] > 0.4


@pytest.mark.slow
@pytest.mark.parametrize("taps", [(3,), (3, 5), (3, 3), (2, 2, 3)])
def test_drift_of_all_cells_is_compensated(rng, taps):
  """One factor a layer, of kernels of any shape: what one theta takes."""
  module = nn.Sequential(
    [nn.Conv(4, taps), lambda x: x.reshape(len(x), -1), nn.Dense(5)]
  )
  images = rng.normal(size=(200, *(4,) * len(taps), 2)).astype(np.float32)
  variables = _variables(module, images, rng=rng)
  net = hx.any_flax(module, weights="analog")
  labels = np.asarray(net.apply(variables, images)).argmax(1)
  device = hx.Device(chip_variation=1.0)
  evaluate = functools.partial(
    hx.evaluate_chips, _key(rng), net, variables, images, labels, device, 4
  )
  compensated = evaluate(compensated=True)
  assert (compensated > 0.98).all() and (evaluate() < compensated).any()


@pytest.mark.slow
def test_chips_of_an_own_net_do_not_depend_on_how_they_are_divided(rng):
  """Nor on other devices' programs: the bits are the same."""
  module, images = _mlp(), rng.normal(size=(300, 30)).astype(np.float32)
  variables = _variables(module, images, rng=rng)
  net, labels = hx.any_flax(module, weights="binary"), rng.integers(0, 5, 300)
  evaluate = functools.partial(
    hx.evaluate_chips, _key(rng), net, variables, images, labels, _DEVICE, 5
  )
  divided = evaluate(limits=monte_carlo.Limits(chips=2, images=100))
  np.testing.assert_array_equal(evaluate(), divided)
  placed = evaluate(placing=hx.Placing(("polarity", "permutation")))
  compensated = evaluate(compensated=True)
  assert len({tuple(x) for x in (divided, placed, compensated)}) == 3
