"""The masked network: golden vectors, masked == sliced, one trace."""

import functools
from unittest import mock

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from hawis_jax import binary
from hawis_jax import errors
from hawis_jax import layers
from hawis_jax import resnet
from hawis_jax import variables as variables_lib

_MAX = (12, 12, 16, 20, 20, 24, 28)


def _random_net(rng, max_widths=_MAX, depth=8):
  """A super-net with random parameters and statistics, and random bits."""
  module = resnet.cifar_resnet(depth, max_widths, 10, levels=8)
  bits = jnp.asarray(rng.integers(0, 2, (6, 9, 9, 8)), jnp.float32)
  init = jax.jit(variables_lib.init, static_argnums=(0, 2))
  variables = init(module, jax.random.key(rng.integers(2**31)), (9, 9, 1))
  flat = traverse_util.flatten_dict(variables)
  draw = {"scale": (0.5, 1.5), "bias": (-0.5, 1.0), "mean": (-1, 1)}
  draw |= {"var": (0.5, 2.0)}
  for path, leaf in flat.items():
    if path[-1] in draw:
      value = rng.uniform(*draw[path[-1]], leaf.shape)
      flat[path] = jnp.asarray(value, jnp.float32)
  return module, traverse_util.unflatten_dict(flat), bits


def _slice(variables, widths):
  """Cuts a super-net's arrays down to the leading channels, by hand."""
  layers = ["stem"] + [
    f"stage{s}_block0/conv{i}" for s in (1, 2, 3) for i in (1, 2)
  ]
  norms = ["bn_stem"] + [
    f"stage{s}_block0/bn{i}" for s in (1, 2, 3) for i in (1, 2)
  ]
  inputs = (None, *widths[:-1])
  cut = {}
  for path, leaf in traverse_util.flatten_dict(variables, sep="/").items():
    scope = "/".join(path.split("/")[1:-1])
    if scope in layers:
      index = layers.index(scope)
      leaf = leaf[:, :, : inputs[index], : widths[index]]
    elif scope in norms:
      leaf = leaf[: widths[norms.index(scope)]]
    else:  # head, bn_head
      leaf = leaf[: widths[-1]]
    cut[path] = leaf
  return traverse_util.unflatten_dict(cut, sep="/")


def _vectors(rng):
  yield _MAX
  yield (1,) * 7
  yield (4, 9, 2, 17, 5, 24, 3)  # not monotone: shortcuts slice and pad
  yield (12, 3, 16, 1, 20, 2, 28)
  for _ in range(4):
    yield tuple(int(rng.integers(1, w + 1)) for w in _MAX)


@functools.partial(jax.jit, static_argnames=("module", "train"))
def _record(module, variables, bits, widths, train, alphas=None):
  """(logits, integer sums of every layer, alphas of every layer)."""
  sums, scales = [], []
  scaled_product = binary.scaled_product

  def spy(product, bits, weights, alpha):
    if alphas is not None:
      alpha = alphas[len(scales)]
    sums.append(product(bits, weights))
    scales.append(alpha)
    return scaled_product(product, bits, weights, alpha)

  with mock.patch.object(binary, "scaled_product", spy):
    out = module.apply(
      variables, bits, widths, train=train, mutable=["batch_stats"]
    )
  return out[0], sums, scales


@pytest.mark.parametrize("train", [False, True])
def test_masked_equals_sliced(train):
  """The whole idea: a masked super-net is the physically narrower network.

  With alpha injected (its sum has another order), all integer sums are equal to
  the bit; logits are, up to the order of the head's few float operations.
  Alpha itself agrees to 1e-6 relative.
  """
  rng = np.random.default_rng()
  module, variables, bits = _random_net(rng)
  for widths in _vectors(rng):
    small = resnet.cifar_resnet(8, widths, 10)
    cut = _slice(variables, widths)
    logits, sums, alphas = _record(
      module, variables, bits, jnp.array(widths), train
    )
    _, _, own_alphas = _record(small, cut, bits, None, train)
    np.testing.assert_allclose(alphas, own_alphas, rtol=1e-6)
    cut_logits, cut_sums, _ = _record(small, cut, bits, None, train, alphas)
    for layer, (wide, narrow) in enumerate(zip(sums, cut_sums, strict=True)):
      channels = narrow.shape[-1]
      np.testing.assert_array_equal(
        wide[..., :channels], narrow, err_msg=f"{widths}, layer {layer}"
      )
    np.testing.assert_allclose(logits, cut_logits, rtol=1e-6, atol=1e-6)


def test_masked_gradients_equal_sliced():
  """Gradients of active weights agree; those of the others are exactly 0."""
  rng = np.random.default_rng()
  module, variables, bits = _random_net(rng)
  widths = (4, 9, 2, 17, 5, 24, 3)
  target = jnp.asarray(rng.normal(size=(6, 10)), jnp.float32)

  def loss(params, net, vector):
    logits = net.apply({"params": params}, bits, vector, train=True)
    return (logits * target).sum()

  grad = jax.jit(jax.grad(loss), static_argnums=1)
  wide = grad(variables["params"], module, jnp.array(widths))
  small = resnet.cifar_resnet(8, widths, 10)
  cut = _slice(variables, widths)
  narrow = grad(cut["params"], small, None)
  scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(narrow))
  kept = _slice({"params": wide}, widths)["params"]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale),
    kept,
    narrow,
  )
  total = sum(float(jnp.abs(g).sum()) for g in jax.tree.leaves(wide))
  inside = sum(float(jnp.abs(g).sum()) for g in jax.tree.leaves(kept))
  np.testing.assert_allclose(total, inside, rtol=1e-5)


def test_one_trace_serves_all_width_vectors():
  rng = np.random.default_rng()
  module, variables, bits = _random_net(rng)
  traces = []

  @jax.jit
  def forward(variables, bits, widths):
    traces.append(widths)
    return module.apply(variables, bits, widths, train=False)

  outputs = [
    forward(variables, bits, jnp.array(widths)) for widths in _vectors(rng)
  ]
  assert len(traces) == 1
  assert len({np.asarray(out).tobytes() for out in outputs}) > 1


def test_widths_none_means_the_maximum():
  module, variables, bits = _random_net(np.random.default_rng())
  apply = jax.jit(functools.partial(module.apply, train=False))
  unmasked, masked = (
    apply(variables, bits, w) for w in (None, jnp.array(_MAX))
  )
  # Alpha's sum has another order.
  np.testing.assert_allclose(unmasked, masked, rtol=1e-5, atol=1e-6)


def test_recalibration_pools_the_moments_of_all_batches():
  """First layer: the moments over all images, however they are batched.

  The last normalisation sees one value an image and channel, so it would show a
  variance that counts batches wrongly; its input is recorded batch by batch.
  """
  rng = np.random.default_rng()
  module, variables, _ = _random_net(rng)
  batches = jnp.asarray(rng.integers(0, 2, (8, 4, 9, 9, 8)), jnp.float32)
  recalibrate = jax.jit(variables_lib.recalibrate, static_argnums=0)
  got = recalibrate(module, variables, batches)
  kernel = variables["params"]["stem"]["kernel"]
  sums = binary.convolve(
    batches.reshape(-1, 9, 9, 8), binary.binarize_weights(kernel), 1, 1
  )
  values = np.asarray(sums * jnp.abs(kernel).mean(), np.float64)
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


def test_fresh_variables_are_those_of_the_module():
  """One flat draw: same tree and shapes, He normal with fan-out, BN neutral."""
  module = resnet.cifar_resnet(8, (64,) * 7, 10)
  variables = jax.jit(variables_lib.init, static_argnums=(0, 2))(
    module, jax.random.key(np.random.default_rng().integers(2**31)), (32, 32, 3)
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


@pytest.mark.parametrize("depth", [7, 9, 2, 0, -4])
def test_bad_depth(depth):
  with pytest.raises(errors.InputError, match=f"got {depth}, allowed are 8"):
    resnet.cifar_resnet(depth, (8,) * 7, 10)


def test_bad_widths():
  with pytest.raises(errors.InputError, match="needed are 7 widths"):
    resnet.cifar_resnet(8, (8,) * 6, 10)
  with pytest.raises(errors.InputError, match="at least 1 channel"):
    resnet.cifar_resnet(8, (8, 8, 8, 0, 8, 8, 8), 10)


def test_a_fixed_net_has_no_masks():
  """Its program is the one that is left when the masks' code is taken out."""
  module, variables, bits = _random_net(np.random.default_rng())

  def program():
    return str(
      jax.make_jaxpr(functools.partial(module.apply, train=False))(
        variables, bits
      )
    )

  fixed = program()
  masked = str(
    jax.make_jaxpr(functools.partial(module.apply, train=False))(
      variables, bits, jnp.array(_MAX)
    )
  )
  scale = binary.weight_scale
  with (
    mock.patch.object(layers, "apply_mask", lambda x, mask: x),
    mock.patch.object(
      binary, "weight_scale", lambda w, *masks: scale(w, None, None, masks[-1])
    ),
  ):
    assert program() == fixed
  assert len(masked) > len(fixed)


@pytest.mark.parametrize("stem", resnet.STEMS)
def test_masked_imagenet_net_equals_the_sliced_one(stem):
  """Widths that grow and shrink, 1 included; projection shortcuts, head."""
  rng = np.random.default_rng()
  most, size = (9,) * 17, 64
  wide = resnet.imagenet_resnet18(most, 5, stem, image_size=size, levels=4)
  vector = tuple(int(w) for w in rng.integers(1, 10, 17))
  narrow = resnet.imagenet_resnet18(vector, 5, stem, image_size=size, levels=4)
  shape = (size, size, 3)
  init = jax.jit(variables_lib.init, static_argnums=(0, 2))
  variables = init(wide, jax.random.key(rng.integers(2**31)), shape)
  shift = jnp.asarray(rng.uniform(0.1, 0.6, 9), jnp.float32)
  flat = traverse_util.flatten_dict(variables)
  for path, leaf in flat.items():  # so that dead channels could fire
    if path[-1] == "bias" and leaf.shape == (9,):
      flat[path] = shift
  # Every axis that is narrower is cut down to its leading channels.
  shapes = traverse_util.flatten_dict(variables_lib.shapes(narrow, shape))
  cut = {
    path: leaf[tuple(slice(n) for n in shapes[path].shape)]
    for path, leaf in flat.items()
  }
  bits = wide.encode(jnp.asarray(rng.integers(0, 256, (3, *shape)), jnp.uint8))
  logits, sums, alphas = _record(
    wide, traverse_util.unflatten_dict(flat), bits, jnp.array(vector), True
  )
  cut_logits, cut_sums, _ = _record(
    narrow, traverse_util.unflatten_dict(cut), bits, None, True, alphas
  )
  for layer, (masked, sliced) in enumerate(zip(sums, cut_sums, strict=True)):
    np.testing.assert_array_equal(
      masked[..., : sliced.shape[-1]], sliced, err_msg=f"{vector}, {layer}"
    )
  np.testing.assert_allclose(logits, cut_logits, rtol=1e-5, atol=1e-5)
