"""Bit planes: the same integers as float32 products, whatever the weights."""

import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax.arithmetic import binary
from hawis_jax.arithmetic import popcount
from hawis_jax.networks import net_variables
from hawis_jax.networks import resnet

_STUCK = crossbar.Device(stuck_off=0.15, stuck_on=0.1)
_program = jax.jit(crossbar.program, static_argnames=("form", "layers"))


def _operands(rng, batch, size, c_in, c_out, taps):
  bits = rng.integers(0, 2, (batch, size, size, c_in)).astype(np.float32)
  weights = rng.integers(-1, 2, (taps, taps, c_in, c_out)).astype(np.float32)
  return bits, weights


def _expected(bits, weights, strides, padding):
  """The convolution, one tap after the other."""
  edge, taps = (padding, padding), len(weights)
  bits = np.pad(bits, ((0, 0), edge, edge, (0, 0)))
  out = bits.shape[1] - taps + 1
  return sum(
    bits[:, i : i + out : strides, j : j + out : strides] @ weights[i, j]
    for i in range(taps)
    for j in range(taps)
  )


@functools.partial(jax.jit, static_argnums=(2, 3))
def _convolve(bits, weights, strides, padding):
  planes = popcount.weight_planes(weights)
  return popcount.convolve(bits, planes, strides, padding)


_in_float32 = jax.jit(binary.convolve, static_argnums=(2, 3))


@pytest.mark.parametrize(
  "shape, strides, padding",
  [
    ((1, 5, 1, 1, 1), 1, 0),
    ((2, 6, 31, 3, 3), 1, 1),
    ((3, 7, 32, 9, 3), 2, 1),
    ((2, 6, 33, 2, 1), 2, 0),
    ((2, 7, 70, 4, 7), 2, 3),
    ((1, 1, 64, 5, 3), 1, 1),
    ((2, 4, 1000, 5, 3), 1, 1),  # more words than are unrolled
  ],
)
def test_products_are_exact_integers(shape, strides, padding, rng):
  """Of planes, and in float32."""
  for _ in range(4):
    bits, weights = _operands(rng, *shape)
    got = _convolve(bits, weights, strides, padding)
    assert got.dtype == jnp.float32
    want = _expected(bits, weights, strides, padding)
    np.testing.assert_array_equal(got, want)
    floats = _in_float32(bits, weights, strides, padding)
    np.testing.assert_array_equal(floats, want)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmapped_over_images_chips_or_both(axes, rng):
  pairs = [_operands(rng, 2, 5, 40, 6, 3) for _ in range(3)]
  pairs = [
    [pairs[i if axis == 0 else 0][place] for place, axis in enumerate(axes)]
    for i in range(3)
  ]
  bits, weights = (
    np.stack(x) if axis == 0 else x[0]
    for x, axis in zip(zip(*pairs, strict=True), axes, strict=True)
  )
  got = jax.jit(jax.vmap(lambda x, w: _convolve(x, w, 1, 1), in_axes=axes))(
    bits, weights
  )
  np.testing.assert_array_equal(got, [_expected(*p, 1, 1) for p in pairs])


def _net(rng):
  """A net that a layer of more than a word is in, and its input."""
  module = resnet.cifar_resnet(8, (6, 5, 40, 8, 10, 12, 12), 10, levels=8)
  shapes = net_variables.shapes(module, (8, 8, 1))
  flat = {
    path: 0.1 * rng.normal(size=leaf.shape)
    if path[-1] == "kernel"
    else np.full(leaf.shape, float(path[-1] in ("scale", "var")))
    for path, leaf in traverse_util.flatten_dict(shapes).items()
  }
  # Exact zeros are cells that are off.
  kernel = flat["params", "stage1_block0", "conv1", "kernel"]
  kernel[rng.uniform(size=kernel.shape) < 0.2] = 0
  variables = traverse_util.unflatten_dict(
    {path: x.astype(np.float32) for path, x in flat.items()}
  )
  return module, variables, rng.integers(0, 2, (12, 8, 8, 8)).astype(np.float32)


def _assert_planes_of(entries, weight):
  used, negative = jax.jit(popcount.weight_planes)(weight)
  np.testing.assert_array_equal(entries["used"], used)
  np.testing.assert_array_equal(entries["negative"], negative)


@pytest.mark.parametrize("form", ["planes", "bfloat16"])
def test_a_chip_of_stuck_cells_is_the_same_in_every_form(form, rng):
  """Weights, and logits of a whole net."""
  module, variables, code = _net(rng)
  key = jax.random.key(rng.integers(2**31))
  dense = _program(key, variables, _STUCK)
  compact = _program(key, variables, _STUCK, form=form)
  for block, layer in (("stage1_block0", "conv1"), ("stage3_block0", "conv2")):
    entries = compact["crossbar"][block][layer]
    weight = dense["crossbar"][block][layer]["weight"]
    assert set(np.unique(weight)) == {-1, 0, 1}
    if form == "planes":
      _assert_planes_of(entries, weight)
    else:
      assert entries["weight"].dtype == jnp.bfloat16
      got = np.asarray(entries["weight"]).astype(np.float32)
      np.testing.assert_array_equal(got, weight)
  apply = jax.jit(functools.partial(module.apply, train=False))
  np.testing.assert_allclose(
    apply(compact, code), apply(dense, code), rtol=1e-6, atol=1e-6
  )


def test_measured_faults_are_in_the_planes(rng):
  _, variables, _ = _net(rng)
  states = rng.integers(-1, 2, (1, 2, 1, 2, 64, 64)).astype(np.int8)
  arguments = (jax.random.key(1), variables, _STUCK)
  faulty = {"faults": {"stem": states}, "layers": ("stem",)}
  dense = _program(*arguments, **faulty)["crossbar"]["stem"]
  planes = _program(*arguments, **faulty, form="planes")["crossbar"]["stem"]
  _assert_planes_of(planes, dense["weight"])


@pytest.mark.parametrize(
  "device, bits, form",
  [
    (crossbar.Device(stuck_on=0.1, variation=0.1), 1, "planes"),
    (crossbar.Device(dead_rows=0.1), 1, "bfloat16"),
    (crossbar.Device(adc_bits=4), 1, "planes"),
    (crossbar.Device(), 8, "planes"),
    (crossbar.Device(), 1, "int4"),
  ],
)
def test_a_form_that_cannot_hold_the_weights_is_refused(
  device, bits, form, rng
):
  variables = _net(rng)[1]
  with pytest.raises(errors.InputError, match=f"form: got '{form}'"):
    jax.eval_shape(
      lambda key: crossbar.program(
        key, variables, device, bits, form=form, scales="channel"
      ),
      jax.random.key(0),
    )


def test_only_some_layers_are_on_the_chip(rng):
  arguments = (jax.random.key(1), _net(rng)[1], _STUCK)
  whole = _program(*arguments)["crossbar"]
  part = _program(*arguments, layers=("stage3_*", "head"))["crossbar"]
  assert set(part) == {"stage3_block0", "head"}
  for name in part:
    jax.tree.map(np.testing.assert_array_equal, part[name], whole[name])
  with pytest.raises(errors.InputError, match="layers: got 'stage4_\\*'"):
    _program(*arguments, layers=("head", "stage4_*"))
  with pytest.raises(errors.InputError, match="layers: got none"):
    _program(*arguments, layers=())
