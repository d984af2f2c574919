"""The masked network: masked == sliced, one trace."""

import functools
from unittest import mock

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
import tiny_net

from hawis_jax import errors
from hawis_jax.arithmetic import binary
from hawis_jax.networks import layers
from hawis_jax.networks import net_variables
from hawis_jax.networks import resnet


@pytest.fixture
def bits(rng):
  """Of an odd size, where strides drop a row."""
  return rng.integers(0, 2, (6, 9, 9, 8)).astype(np.float32)


def _cut(variables, module, image_shape):
  """A super-net's arrays cut down to a narrower net's leading channels."""
  shapes = net_variables.shapes(module, image_shape)
  return jax.tree.map(
    lambda leaf, like: leaf[tuple(slice(n) for n in like.shape)],
    variables,
    {name: shapes[name] for name in variables},
  )


def _vectors(rng):
  yield (1,) * 7
  yield tiny_net.NARROWER
  yield (6, 2, 5, 1, 10, 3, 11)
  yield tuple(int(rng.integers(1, w + 1)) for w in tiny_net.WIDTHS)


@functools.partial(jax.jit, static_argnames=("module", "train"))
def _record(module, variables, bits, widths, train, alphas=None):
  """(logits, integer sums of every layer, its own alphas).

  `alphas` are used in their place.
  """
  sums, scales = [], []
  scaled_product = binary.scaled_product

  def spy(product, bits, weights, alpha):
    used = alpha if alphas is None else alphas[len(scales)]
    sums.append(product(bits, weights))
    scales.append(alpha)
    return scaled_product(product, bits, weights, used)

  with mock.patch.object(binary, "scaled_product", spy):
    out = module.apply(
      variables, bits, widths, train=train, mutable=["batch_stats"]
    )
  return out[0], sums, scales


@pytest.mark.exact
@pytest.mark.parametrize("train", [False, True])
def test_masked_equals_sliced(train, tiny, bits, rng):
  """The whole idea: a masked super-net is the physically narrower network.

  With alpha injected (its sum has another order), all integer sums are equal to
  the bit; logits are, up to the order of the head's few float operations.
  Alpha itself agrees to 1e-6 relative.
  """
  for widths in _vectors(rng):
    small = resnet.cifar_resnet(8, widths, 10, levels=8)
    cut = _cut(tiny.variables, small, tiny_net.SHAPE)
    logits, sums, alphas = jax.device_get(
      _record(tiny.module, tiny.variables, bits, np.array(widths), train)
    )
    cut_logits, cut_sums, own_alphas = jax.device_get(
      _record(small, cut, bits, None, train, alphas)
    )
    np.testing.assert_allclose(alphas, own_alphas, rtol=1e-6)
    for layer, (wide, narrow) in enumerate(zip(sums, cut_sums, strict=True)):
      channels = narrow.shape[-1]
      np.testing.assert_array_equal(
        wide[..., :channels], narrow, err_msg=f"{widths}, layer {layer}"
      )
    np.testing.assert_allclose(logits, cut_logits, rtol=1e-6, atol=1e-6)


def test_masked_gradients_equal_sliced(tiny, bits, rng):
  """Gradients of active weights agree; those of the others are exactly 0."""
  widths = tiny_net.NARROWER
  target = rng.normal(size=(6, 10)).astype(np.float32)

  def loss(params, net, vector):
    logits = net.apply({"params": params}, bits, vector, train=True)
    return (logits * target).sum()

  grad = jax.jit(jax.grad(loss), static_argnums=1)
  small = resnet.cifar_resnet(8, widths, 10, levels=8)
  cut = _cut(tiny.variables, small, tiny_net.SHAPE)["params"]
  wide, narrow = jax.device_get(
    (
      grad(tiny.variables["params"], tiny.module, np.array(widths)),
      grad(cut, small, None),
    )
  )
  scale = max(np.abs(g).max() for g in jax.tree.leaves(narrow))
  kept = _cut({"params": wide}, small, tiny_net.SHAPE)["params"]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale),
    kept,
    narrow,
  )
  total, inside = (
    sum(np.abs(g).sum(dtype=np.float64) for g in jax.tree.leaves(tree))
    for tree in (wide, kept)
  )
  np.testing.assert_allclose(total, inside, rtol=1e-5)


def test_one_trace_serves_all_width_vectors_and_none_means_the_maximum(
  tiny, bits, rng
):
  traces = []

  @jax.jit
  def forward(variables, bits, widths):
    traces.append(widths)
    return tiny.module.apply(variables, bits, widths, train=False)

  outputs = [
    np.asarray(forward(tiny.variables, bits, np.array(widths)))
    for widths in (tiny_net.WIDTHS, *_vectors(rng))
  ]
  assert len(traces) == 1
  assert len({out.tobytes() for out in outputs}) > 1
  # Alpha's sum has another order.
  unmasked = forward(tiny.variables, bits, None)
  np.testing.assert_allclose(unmasked, outputs[0], rtol=1e-5, atol=1e-6)


def test_recalibration_pools_the_moments_of_all_batches(tiny, rng):
  """First layer: the moments over all images, however they are batched.

  The last normalisation sees one value an image and channel, so it would show a
  variance that counts batches wrongly; its input is recorded batch by batch.
  """
  module, variables = tiny.module, tiny.variables
  images = rng.integers(0, 256, (8, 4, *tiny_net.SHAPE)).astype(np.uint8)
  recalibrate = jax.jit(net_variables.recalibrate, static_argnums=0)
  got = recalibrate(module, variables, images)
  batches = np.stack([module.encode(batch) for batch in images])
  kernel = variables["params"]["stem"]["kernel"]
  convolve = jax.jit(binary.convolve, static_argnums=(2, 3))
  signs = np.where(kernel >= 0, np.float32(1), np.float32(-1))
  bits = batches.reshape(-1, *batches.shape[2:])
  sums = np.asarray(convolve(bits, signs, 1, 1))
  values = (sums * np.abs(kernel).mean()).astype(np.float64)
  np.testing.assert_allclose(
    got["bn_stem"]["mean"], values.mean((0, 1, 2)), atol=1e-5
  )
  np.testing.assert_allclose(
    got["bn_stem"]["var"], values.var((0, 1, 2)), rtol=1e-4
  )

  def head_input(batch):
    _, state = module.apply(
      variables,
      batch,
      train=True,
      mutable=["intermediates", "batch_stats"],
      capture_intermediates=lambda layer, _: layer.name == "stage3_block0",
    )
    (last,) = state["intermediates"]["stage3_block0"]["__call__"]
    return jnp.maximum(last, 0).mean((1, 2))

  head_input = jax.jit(head_input)
  pooled = np.concatenate([head_input(b) for b in batches]).astype(np.float64)
  np.testing.assert_allclose(got["bn_head"]["mean"], pooled.mean(0), atol=1e-5)
  np.testing.assert_allclose(
    got["bn_head"]["var"], pooled.var(0), rtol=1e-3, atol=1e-6
  )


def test_fresh_variables_are_those_of_the_module(rng):
  """One flat draw: same tree and shapes, He normal with fan-out, BN neutral."""
  module = resnet.cifar_resnet(8, (64,) * 7, 10)
  init = jax.jit(net_variables.init, static_argnums=(0, 2))
  variables = jax.device_get(
    init(module, jax.random.key(rng.integers(2**31)), (32, 32, 3))
  )
  shapes = jax.eval_shape(
    functools.partial(module.init, train=False),
    jax.random.key(0),
    jnp.zeros((1, 32, 32, 96)),
  )
  got = traverse_util.flatten_dict(variables)
  expected = traverse_util.flatten_dict(shapes)
  assert {p: (x.shape, x.dtype) for p, x in got.items()} == {
    p: (x.shape, x.dtype) for p, x in expected.items()
  }
  for path, leaf in got.items():
    if path[-1] == "kernel":
      fan_out = leaf.size // leaf.shape[-2]
      normal = np.ravel(leaf) / np.sqrt(2 / fan_out)
      assert stats.kstest(normal, "norm").pvalue > 1e-6, path
    else:
      neutral = float(path[-1] in ("scale", "var"))
      np.testing.assert_array_equal(leaf, neutral)


def test_bad_networks_are_named():
  for depth in (9, -4):
    with pytest.raises(errors.InputError, match=f"got {depth}, allowed are 8"):
      resnet.cifar_resnet(depth, (8,) * 7, 10)
  with pytest.raises(errors.InputError, match="needed are 7 widths"):
    resnet.cifar_resnet(8, (8,) * 6, 10)
  with pytest.raises(errors.InputError, match="at least 1 channel"):
    resnet.cifar_resnet(8, (8, 8, 8, 0, 8, 8, 8), 10)


def test_a_fixed_net_has_no_masks(tiny, bits):
  """Its program is the one that is left when the masks' code is taken out."""

  def program(*widths):
    apply = functools.partial(tiny.module.apply, train=False)
    return str(jax.make_jaxpr(apply)(tiny.variables, bits, *widths))

  fixed, masked = program(), program(np.array(tiny_net.WIDTHS))
  scale = binary.weight_scale
  with (
    mock.patch.object(layers, "apply_mask", lambda x, mask: x),
    mock.patch.object(
      binary, "weight_scale", lambda w, *masks: scale(w, None, None, masks[-1])
    ),
  ):
    assert program() == fixed
  assert len(masked) > len(fixed)


@pytest.mark.exact
@pytest.mark.parametrize("stem", resnet.STEMS)
def test_masked_imagenet_net_equals_the_sliced_one(stem, rng):
  """Widths that grow and shrink, 1 included; projection shortcuts, head."""
  most, size = (9,) * 17, 64
  wide = resnet.imagenet_resnet18(most, 5, stem, image_size=size, levels=4)
  vector = (1, *(int(w) for w in rng.integers(1, 10, 16)))
  narrow = resnet.imagenet_resnet18(vector, 5, stem, image_size=size, levels=4)
  shape = (size, size, 3)
  variables = tiny_net.random_variables(wide, shape, rng)
  cut = _cut(variables, narrow, shape)
  images = rng.integers(0, 256, (3, *shape)).astype(np.uint8)
  bits = np.asarray(jax.jit(wide.encode)(images))
  logits, sums, alphas = jax.device_get(
    _record(wide, variables, bits, np.array(vector), True)
  )
  cut_logits, cut_sums, _ = jax.device_get(
    _record(narrow, cut, bits, None, True, alphas)
  )
  for layer, (masked, sliced) in enumerate(zip(sums, cut_sums, strict=True)):
    np.testing.assert_array_equal(
      masked[..., : sliced.shape[-1]], sliced, err_msg=f"{vector}, {layer}"
    )
  np.testing.assert_allclose(logits, cut_logits, rtol=1e-5, atol=1e-5)
