"""Chips against vectors of the published code, given its random draws.

Its order of effects is target, stuck cells, variation, noise; golden tiles are
`[col_tile, row_tile, out, in]`. Two oddities are not copied: its noise puts the
voltage of an input row on an output column, which a test can do too; and its
8-bit error compensation, which adds what faults took away, without them too.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hawis_jax import crossbar
from hawis_jax.arithmetic import binary
from hawis_jax.arithmetic import integer
from hawis_jax.crossbar import converters
from hawis_jax.crossbar import defects
from hawis_jax.crossbar import readout
from hawis_jax.crossbar import tiles

_EFFECTS = ("saf", "var", "noise")
_STRIDES = {"conv3s2": 2, "conv1s2": 2}
_RATES = (0.0175, 0.0904)  # where a file does not say


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def _ours(golden_tiles):
  """`[..., col_tile, row_tile, out, in]` -> `[..., row, col, R, C]`."""
  *lead, a, b, c, d = range(golden_tiles.ndim)
  return jnp.asarray(golden_tiles.transpose(*lead, b, a, d, c))


def _kernel(w):
  """PyTorch's layout to ours."""
  return jnp.asarray(w.transpose(2, 3, 1, 0) if w.ndim == 4 else w.T)


def _channels_last(x):
  return jnp.asarray(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x)


def _product(layer, kernel):
  if kernel.ndim == 2:
    return binary.multiply
  return functools.partial(
    binary.convolve,
    strides=_STRIDES.get(layer, 1),
    padding=kernel.shape[0] // 2,
  )


def _cells(draw, kernel, device, bits=1, step=1.0):
  """Conductances `[2, row, col, R, C]`; `draw(name)` is None or an array."""
  pair = crossbar.conductances(
    jax.random.key(0), kernel, device, bits, scales="tensor"
  )
  g = jnp.stack(pair)
  if draw("p_state_pos") is not None and draw("p_SA") is not None:
    uniform = jnp.stack([_ours(draw(f"p_state_{s}")) for s in ("pos", "neg")])
    g = defects.stick(g, uniform, *draw("p_SA"), device)
  if draw("gaussian_times_gamma") is not None:
    g = defects.lognormal_variation(g, _ours(draw("gaussian_times_gamma")), 1.0)
  if draw("rand_g") is not None:
    # Indexed by input row, lands on the output column.
    voltage = jnp.asarray(draw("input_reduced"))[0, :, None, None, :, 0]
    g = defects.legacy_noise(
      g,
      _ours(draw("rand_g")),
      _ours(draw("rand_p")),
      voltage[None],
      step,
      device,
    )
  return g


def _matrix(cut, kernel):
  columns = kernel.shape[-1]
  return tiles.join(cut, (kernel.size // columns, columns))


def _cases(golden, layer):
  names = [n.split("/") for n in golden if n.startswith(f"{layer}/")]
  return list(dict.fromkeys(n[1] for n in names if len(n) == 3))


@pytest.fixture(scope="module")
def g5(shared):
  return dict(np.load(shared / "golden" / "g5_binary_f64_crxb64.npz"))


def _device(golden, **fields):
  size = int(golden["crxb_size"])
  return crossbar.Device(
    g_on=float(golden["gmax"]),
    g_off=float(golden["gmin"]),
    read_voltage=float(golden["vdd"]),
    tile_shape=(size, size),
    **fields,
  )


@pytest.mark.parametrize("layer", ["conv3s1", "conv3s2", "conv1s2", "linear"])
def test_binary_layers(g5, layer, x64):
  """Conductances and outputs of all cases, by both ways of read-out."""
  device = _device(g5)
  kernel, x = _kernel(g5[f"{layer}/w"]), _channels_last(g5[f"{layer}/x"])
  bits = binary.binarize_activations(x)
  alpha = binary.weight_scale(kernel)
  cases = _cases(g5, layer)
  assert "ideal" in cases and "saf_var_noise" in cases
  for case in cases:

    def draw(name, case=case):
      return g5.get(f"{layer}/{case}/{name}")

    g = _cells(draw, kernel, device, step=device.g_on - device.g_off)
    for ours, name in zip(g, ("G_pos", "G_neg"), strict=True):
      golden = _ours(draw(name).reshape(draw(name).shape[-4:]))
      scale = np.abs(golden).max()
      np.testing.assert_allclose(
        ours, golden, rtol=0, atol=1e-7 * scale, err_msg=f"{case} {name}"
      )
    weights = (g[0] - g[1]) / (device.g_on - device.g_off)
    folded = tiles.matrix_to_kernel(_matrix(weights, kernel), kernel.shape)
    y = _product(layer, kernel)(bits, folded) * alpha
    golden = _channels_last(draw("y"))
    np.testing.assert_allclose(y, golden, rtol=0, atol=1e-5, err_msg=case)
    joined = weights.transpose(0, 2, 1, 3).reshape(*weights.shape[::2], -1)
    kernels, starts = readout.read_kernels(
      joined[None, ..., : kernel.shape[-1]], kernel.shape
    )
    chip = {
      "kernels": kernels,
      "starts": jnp.asarray(starts),
      "factors": jnp.ones(len(starts)),
    }
    tiled = readout.read(_product(layer, kernel), bits, chip) * alpha
    np.testing.assert_allclose(tiled, y, rtol=0, atol=1e-12, err_msg=case)


@pytest.mark.parametrize("layer", ["conv", "linear"])
def test_gradients_through_the_crossbar(shared, layer, x64):
  """Of inputs and of latent weights, faults and variation included."""
  golden = dict(np.load(shared / "golden" / "g5b_binary_grads.npz"))
  device = _device(golden)
  kernel = _kernel(golden[f"{layer}/w"])
  x = _channels_last(golden[f"{layer}/x"])
  for case in _cases(golden, layer):

    def draw(name, case=case):
      if name == "p_SA":
        return _RATES
      return golden.get(f"{layer}/{case}/{name}")

    def loss(x, kernel, draw=draw):
      g = _cells(draw, kernel, device)
      weights = (g[0] - g[1]) / (device.g_on - device.g_off)
      folded = tiles.matrix_to_kernel(_matrix(weights, kernel), kernel.shape)
      y = binary.scaled_product(
        _product(layer, kernel),
        binary.binarize_activations(x),
        folded,
        binary.weight_scale(kernel),
      )
      return (y * _channels_last(draw("upstream"))).sum()

    got = jax.grad(loss, (0, 1))(x, kernel)
    expected = _channels_last(draw("grad_x")), _kernel(draw("grad_w"))
    for ours, theirs in zip(got, expected, strict=True):
      np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("layer", ["conv", "linear"])
def test_8_bit_layers(shared, layer, x64):
  """One read of signed analog inputs, 8-bit converters of calibrated range."""
  golden = dict(np.load(shared / "golden" / "g7_int8_f64.npz"))
  device = _device(golden, spare_level=True, analog_inputs=True)
  step_g = (device.g_on - device.g_off) / 128
  step_v = device.read_voltage / 255
  kernel = _kernel(golden[f"{layer}/w"])
  step_w = integer.weight_step(kernel, 8, "tensor")
  product = _product(layer, kernel)
  cases = [c for c in _cases(golden, layer) if not c.endswith("ec")]
  cases.remove("ec_without_saf")
  assert {"ideal", "saf_var", "noise", "calib2"} <= set(cases)
  for case in cases:
    for phase in ("train1", "train2", "eval"):

      def stored(name, case=case, phase=phase):
        found = golden.get(f"{layer}/{case}/{phase}_{name}")
        return golden.get(f"{layer}/{case}/{name}") if found is None else found

      if stored("y") is None:
        continue
      x = _channels_last(golden[f"{layer}/x_{phase}"])
      step_x = stored("delta_x")
      np.testing.assert_allclose(step_w, stored("delta_w"), rtol=1e-12)
      integers = integer.quantize(x, step_x, 8)

      def draw(name, stored=stored, integers=integers):
        if name == "input_reduced" and stored("rand_g") is not None:
          return _input_reduced(integers * step_v, kernel, product, device)
        return stored(name)

      g = _cells(draw, kernel, device, bits=8, step=step_g)
      for ours, name in zip(g, ("G_pos", "G_neg"), strict=True):
        theirs = stored(name)
        theirs = _ours(theirs.reshape(theirs.shape[-4:]))
        np.testing.assert_allclose(
          ours, theirs, rtol=0, atol=1e-7 * np.abs(theirs).max()
        )
      weights = (g[0] - g[1]) / step_g
      joined = weights.transpose(0, 2, 1, 3).reshape(*weights.shape[::2], -1)
      kernels, starts = readout.read_kernels(
        joined[None, ..., : kernel.shape[-1]], kernel.shape
      )
      most = 127 * stored("delta_i") / (step_v * step_g)
      chip = {
        "kernels": kernels,
        "starts": jnp.asarray(starts),
        "factors": jnp.ones(len(starts)),
        "converter": converters.symmetric(8, most),
      }
      y = readout.read(product, integers, chip) * (step_w * step_x)
      y = y + golden[f"{layer}/b"].reshape((1,) * (y.ndim - 1) + (-1,))
      theirs = _channels_last(stored("y"))
      np.testing.assert_allclose(
        y, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max(), err_msg=case
      )


def _input_reduced(volts, kernel, product, device):
  """The published "input voltage" of each row, `[1, row_tile, R, 1]`.

  Root of the sum of squares over images and positions, over images times R.
  """
  size = device.tile_shape[0]
  rows = kernel.size // kernel.shape[-1]
  if kernel.ndim == 4:
    one_hot = jnp.eye(rows).reshape(kernel.shape[2], *kernel.shape[:2], rows)
    patches = product(volts, jnp.moveaxis(one_hot, 0, 2))
  else:
    patches = volts
  squares = jnp.square(patches).reshape(-1, rows).sum(0)
  reduced = jnp.sqrt(squares) / (volts.shape[0] * size)
  return np.asarray(jnp.pad(reduced, (0, -rows % size))).reshape(1, -1, size, 1)
