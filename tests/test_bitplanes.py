"""Bit planes: the same integers as float32 products, whatever the weights."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hawis_jax import binary
from hawis_jax import bitplanes
from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax import resnet
from hawis_jax import variables as variables_lib

_STUCK = crossbar.Device(stuck_off=0.15, stuck_on=0.1)
_convolve = jax.jit(bitplanes.convolve, static_argnums=(2, 3))
_reference = jax.jit(binary.convolve, static_argnums=(2, 3))


def _operands(rng, batch, size, c_in, c_out, taps):
  bits = rng.integers(0, 2, (batch, size, size, c_in)).astype(np.float32)
  weights = rng.integers(-1, 2, (taps, taps, c_in, c_out)).astype(np.float32)
  return bits, weights


@settings(deadline=None, max_examples=25)
@given(
  st.integers(1, 3),
  st.integers(1, 7),
  st.integers(1, 70),
  st.integers(1, 9),
  st.sampled_from([(1, 1, 0), (3, 1, 1), (3, 2, 1), (1, 2, 0), (7, 2, 3)]),
  st.integers(0, 2**32 - 1),
)
def test_products_are_those_of_float32(batch, size, c_in, c_out, window, seed):
  taps, strides, padding = window
  rng = np.random.default_rng(seed)
  bits, weights = _operands(rng, batch, size, c_in, c_out, taps)
  planes = bitplanes.weight_planes(jnp.asarray(weights))
  got = _convolve(bits, planes, strides, padding)
  want = _reference(bits, weights, strides, padding)
  assert got.dtype == want.dtype == jnp.float32
  np.testing.assert_array_equal(got, want)


def test_wide_products_are_looped_over():
  """Beyond the words that are unrolled: 9 x 1,000 channels."""
  rng = np.random.default_rng()
  bits, weights = _operands(rng, 2, 4, 1000, 5, 3)
  planes = bitplanes.weight_planes(jnp.asarray(weights))
  np.testing.assert_array_equal(
    _convolve(bits, planes, 1, 1), _reference(bits, weights, 1, 1)
  )


def test_linear_layers():
  rng = np.random.default_rng()
  bits = rng.integers(0, 2, (5, 77)).astype(np.float32)
  weights = rng.integers(-1, 2, (77, 10)).astype(np.float32)
  planes = bitplanes.weight_planes(jnp.asarray(weights))
  np.testing.assert_array_equal(
    bitplanes.multiply(bits, planes), bits @ weights
  )


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmapped_over_images_chips_or_both(axes):
  rng = np.random.default_rng()
  pairs = [_operands(rng, 2, 5, 40, 6, 3) for _ in range(3)]
  bits, weights = (np.stack(x) for x in zip(*pairs, strict=True))
  bits, weights = (
    x if axis == 0 else x[0]
    for x, axis in zip((bits, weights), axes, strict=True)
  )
  planes = bitplanes.weight_planes(jnp.asarray(weights))

  def vmapped(product):
    return jax.jit(jax.vmap(lambda x, w: product(x, w, 1, 1), in_axes=axes))

  np.testing.assert_array_equal(
    vmapped(bitplanes.convolve)(bits, planes),
    vmapped(binary.convolve)(bits, weights),
  )


def _net(rng, **options):
  module = resnet.cifar_resnet(8, (6, 5, 40, 8, 10, 12, 12), 10, levels=8)
  images = rng.integers(0, 256, (12, 8, 8, 3)).astype(np.uint8)
  key = jax.random.key(rng.integers(2**31))
  variables = jax.jit(variables_lib.init, static_argnums=(0, 2))(
    module, key, (8, 8, 3)
  )
  return module, variables, module.encode(jnp.asarray(images))


@pytest.mark.parametrize("form", ["planes", "bfloat16"])
@pytest.mark.parametrize("zeros", [False, True])
def test_a_chip_of_stuck_cells_is_the_same_in_every_form(form, zeros):
  """Weights, and logits of a whole net; exact zeros are cells that are off."""
  rng = np.random.default_rng()
  module, variables, code = _net(rng)
  if zeros:
    kernel = variables["params"]["stage1_block0"]["conv1"]["kernel"]
    kernel = jnp.where(rng.uniform(size=kernel.shape) < 0.2, 0, kernel)
    variables["params"]["stage1_block0"]["conv1"]["kernel"] = kernel
  key = jax.random.key(rng.integers(2**31))
  program = jax.jit(crossbar.program, static_argnames="form")
  dense = program(key, variables, _STUCK)
  compact = program(key, variables, _STUCK, form=form)
  entries = compact["crossbar"]["stage1_block0"]["conv1"]
  weight = dense["crossbar"]["stage1_block0"]["conv1"]["weight"]
  assert set(np.unique(weight)) == {-1, 0, 1}
  if form == "planes":
    used, negative = bitplanes.weight_planes(weight)
    np.testing.assert_array_equal(entries["used"], used)
    np.testing.assert_array_equal(entries["negative"], negative)
  else:
    assert entries["weight"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(entries["weight"].astype(np.float32), weight)
  apply = jax.jit(module.apply, static_argnames="train")
  np.testing.assert_allclose(
    apply(compact, code, train=False),
    apply(dense, code, train=False),
    rtol=1e-6,
    atol=1e-6,
  )


def test_measured_faults_are_in_the_planes():
  rng = np.random.default_rng()
  _, variables, _ = _net(rng)
  shape = variables["params"]["stem"]["kernel"].shape
  rows = -(-shape[0] * shape[1] * shape[2] // 64)
  states = rng.integers(-1, 2, (1, rows, 1, 2, 64, 64)).astype(np.int8)
  arguments = (jax.random.key(1), variables, _STUCK)
  dense = crossbar.program(*arguments, faults={"stem": states})
  planes = crossbar.program(*arguments, faults={"stem": states}, form="planes")
  used, negative = bitplanes.weight_planes(dense["crossbar"]["stem"]["weight"])
  np.testing.assert_array_equal(planes["crossbar"]["stem"]["used"], used)
  np.testing.assert_array_equal(
    planes["crossbar"]["stem"]["negative"], negative
  )


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
def test_a_form_that_cannot_hold_the_weights_is_refused(device, bits, form):
  _, variables, _ = _net(np.random.default_rng())
  with pytest.raises(errors.InputError, match=f"form: got '{form}'"):
    crossbar.program(jax.random.key(0), variables, device, bits, form=form)


def test_only_some_layers_are_on_the_chip():
  _, variables, _ = _net(np.random.default_rng())
  arguments = (jax.random.key(1), variables, _STUCK)
  whole = crossbar.program(*arguments)["crossbar"]
  part = crossbar.program(*arguments, layers=("stage3_*", "head"))["crossbar"]
  assert set(part) == {"stage3_block0", "head"}
  for name in part:
    jax.tree.map(np.testing.assert_array_equal, part[name], whole[name])
  with pytest.raises(errors.InputError, match="layers: got 'stage4_\\*'"):
    crossbar.program(*arguments, layers=("head", "stage4_*"))
  with pytest.raises(errors.InputError, match="layers: got none"):
    crossbar.program(*arguments, layers=())
