"""Layers of the networks: batch normalisation and 1-bit products.

A mask is bool `[C]`, True on active channels; None stands for all channels and
costs nothing.

Axes: B images, H rows, W columns, C channels.
"""

import dataclasses
import functools

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from hawis_jax.arithmetic import binary
from hawis_jax.arithmetic import popcount
from hawis_jax.crossbar import readout
from hawis_jax.networks import products

BN_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Options:
  """Optional parts of a binary network; the defaults are the published one.

  Every matrix product stays 1-bit with all of them.
  """

  # One weight scale alpha an output channel, not one a layer (XNOR-Net,
  # Rastegari et al., ECCV 2016).
  channel_scale: bool = False
  # A PReLU with learnt shifts after every batch normalisation that an
  # activation binariser follows (ReActNet, Liu et al., ECCV 2020).
  rprelu: bool = False
  learned_thresholds: bool = False  # of the thermometer: parameters
  # Or "bfloat16": type of the operands of the products (sums are float32, so
  # binary products stay exact).
  compute: str = "float32"


PUBLISHED = Options()


class BatchNorm(nn.Module):
  """Batch normalisation over all axes but the last.

  Training normalises with the batch's biased variance; where `batch_stats` is
  mutable, running averages are updated with the unbiased one, as in PyTorch.
  """

  # Weight of the old running average; 0 keeps the batch's moments, with the
  # biased variance, to be pooled over batches.
  momentum: float = 0.9

  @nn.compact
  def __call__(self, x: chex.Array, train: bool) -> chex.Array:
    """Normalises `[..., C]` over its leading axes."""
    size = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (size,))
    bias = self.param("bias", nn.initializers.zeros, (size,))
    update = self.is_mutable_collection("batch_stats")
    if update or not train:
      old_mean = self.variable("batch_stats", "mean", jnp.zeros, (size,))
      old_var = self.variable("batch_stats", "var", jnp.ones, (size,))

    def gain_of(var):
      return scale * jax.lax.rsqrt(var + BN_EPSILON)

    if train:
      axes = tuple(range(x.ndim - 1))
      mean = x.mean(axes)
      var = jnp.square(x - _as_channels(mean, x)).mean(axes)
      if update and not self.is_initializing():
        count = x.size // size
        keep = self.momentum
        unbiased = var * (count / max(count - 1, 1) if keep else 1)
        old_mean.value = keep * old_mean.value + (1 - keep) * mean
        old_var.value = keep * old_var.value + (1 - keep) * unbiased
      gain = gain_of(var)
    else:
      mean = old_mean.value
      gain = _known_scale(self, "gain", size, lambda: gain_of(old_var.value))
    mean, gain, bias = (_as_channels(v, x) for v in (mean, gain, bias))
    return (x - mean) * gain + bias


def _known_scale(layer, name, size, compute):
  """What `scales` knows of a layer (see `net_variables.with_scales`).

  Else what `compute` returns, recorded where the collection is mutable, as it
  is for `with_scales`; `init` must make none.
  """
  if layer.has_variable("scales", name):
    return layer.get_variable("scales", name)
  value = compute()
  if layer.is_mutable_collection("scales") and not layer.is_initializing():
    # One a channel in any case: XLA's loops are slow with a scalar operand.
    layer.put_variable("scales", name, jnp.broadcast_to(value, (size,)))
  return value


def he_kernel(layer: nn.Module, inputs: int) -> chex.Array:
  """Returns a layer's kernel `[k, k, C_in, C_out]`; linear: `[C_in, C_out]`.

  The layer has `size` k, 0 where it is linear, and `features` C_out.
  """
  taps = (layer.size, layer.size) if layer.size else ()
  he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
  return layer.param("kernel", he_normal, (*taps, inputs, layer.features))


class BinaryConv(nn.Module):
  """1-bit convolution of bits; `size` 0 is a linear layer on `[B, C]`.

  Variables in the collection `crossbar` (see `crossbar.program`) replace the
  signs by one chip: its effective weights, its bit planes or its tiles.
  """

  features: int  # C_out
  size: int = 3  # k of the k x k kernel
  strides: int = 1  # of both axes
  padding: int | None = None  # zeros on every side; None: size // 2
  options: Options = PUBLISHED

  @nn.compact
  def __call__(
    self,
    bits: chex.Array,
    in_mask: chex.Array | None,
    out_mask: chex.Array | None,
  ) -> chex.Array:
    """Returns sums times alpha of bits `[B, H, W, C_in]` or `[B, C_in]`.

    Bits are 0 on masked channels; the masks, of the input's and of the output's
    channels, are for alpha and for noise a read.
    """
    kernel = he_kernel(self, bits.shape[-1])
    alpha = _known_scale(
      self,
      "alpha",
      self.features,
      lambda: binary.weight_scale(
        kernel, in_mask, out_mask, self.options.channel_scale
      ),
    )
    window = {}
    if self.size:
      padding = self.size // 2 if self.padding is None else self.padding
      window = dict(strides=self.strides, padding=padding)
    if self.has_variable("crossbar", "used"):
      chip = self.variables["crossbar"]
      planes = [chip["used"], chip["negative"]]
      product = popcount.convolve if window else popcount.multiply
      return binary.scale(product(bits, planes, **window), alpha)
    product = binary.multiply
    if window:
      product = functools.partial(binary.convolve, **window)
    bits = bits.astype(kernel.dtype)
    if self.has_variable("crossbar", "kernels"):
      sums = read_tiles(self, product, bits, alpha, in_mask)
      return binary.scale(sums, alpha)
    if self.has_variable("crossbar", "weight"):
      weights = self.get_variable("crossbar", "weight")
      product = products.on_chips(product)
      bits = bits.astype(weights.dtype)  # bfloat16 holds integers exactly
    else:
      # An exact 0, which only rounded imports hold, stays 0 as in the published
      # code: a pair of cells that are both off.
      weights = binary.binarize_weights(kernel, zero=0)
      if self.options.compute == "bfloat16":
        product = binary.in_bfloat16(product)
    return binary.scaled_product(product, bits, weights, alpha)


def read_tiles(
  layer: nn.Module,
  product: readout.Product,
  x: chex.Array,
  alpha: chex.Array | None = None,
  mask: chex.Array | None = None,
) -> chex.Array:
  """Returns a layer's product of x on its chip, see `crossbar.readout`.

  Where the collection `converters` is mutable, it gets the layer's `range`: the
  percentile `percentile` that it holds already, of what its converters see.
  Where `clipped` is mutable, it gets `counts`: of conversions that clip, and of
  all, int32 `[B, 2]`.

  The result will be multiplied by `alpha`, which is to be kept out of the
  weights' gradients as in `binary.scaled_product`; None keeps nothing out.
  `mask` is that of the input's channels.
  """
  chip, product = layer.variables["crossbar"], products.on_chips(product)
  if alpha is not None:
    weights = {x: chip[x] for x in ("kernels", "added", "taken") if x in chip}
    for name, value in weights.items():
      factor = alpha
      if further := value.shape[-1] - layer.features:
        # Columns whose codes are subtracted from the first ones'.
        factor = jnp.broadcast_to(alpha, (layer.features,))
        factor = jnp.concatenate([factor, factor[:further]])
      factor = _as_channels(factor, value)
      chip = {**chip, name: binary.divide_gradient(value, factor)}
  if layer.is_mutable_collection("converters"):
    percentile = layer.get_variable("converters", "percentile")
    most = readout.sums_percentile(product, x, chip, percentile)
    layer.put_variable("converters", "range", most)
  if layer.is_mutable_collection("clipped"):
    sums, counts = readout.read(product, x, chip, mask, counted=True)
    layer.put_variable("clipped", "counts", counts)
    return sums
  return readout.read(product, x, chip, mask)


class RPReLU(nn.Module):
  """ReActNet's PReLU(x - shift) + offset (Liu et al., ECCV 2020).

  Each of its three parameters is one a channel.
  """

  @nn.compact
  def __call__(self, x: chex.Array) -> chex.Array:
    """Activates any `[..., C]`."""
    size = x.shape[-1:]
    shift = self.param("shift", nn.initializers.zeros, size)
    slope = self.param("slope", nn.initializers.constant(0.25), size)
    offset = self.param("offset", nn.initializers.zeros, size)
    x = x - _as_channels(shift, x)
    x = jnp.where(x > 0, x, _as_channels(slope, x) * x)
    return x + _as_channels(offset, x)


class Thermometer(nn.Module):
  """Thermometer code with learnt thresholds, which start as the fixed ones.

  A threshold's gradient is that of a clipped line of slope 1 around it, one
  level step to either side.
  """

  levels: int  # thresholds a channel; divides 128

  @nn.compact
  def __call__(self, images: chex.Array) -> chex.Array:
    """`[B, H, W, C]` in [0, 1] -> bits `[B, H, W, levels * C]`, level-major."""

    def fixed(_):
      levels = binary.thermometer_thresholds(self.levels)
      levels = jnp.asarray(levels, jnp.float32)[:, None] / 255
      return jnp.repeat(levels, images.shape[-1], 1)

    thresholds = self.param("thresholds", fixed)
    distance = images[..., None, :] - thresholds[None, None, None]
    bits = jax.lax.stop_gradient((distance > 0).astype(distance.dtype))
    near = jax.lax.stop_gradient(jnp.abs(distance) <= 1 / self.levels)
    line = jnp.where(near, distance, 0)
    bits = bits + line - jax.lax.stop_gradient(line)
    return bits.reshape(*images.shape[:3], -1)


def apply_mask(x: chex.Array, mask: chex.Array | None) -> chex.Array:
  """Sets masked channels of `[..., C]` to 0."""
  if mask is None:
    return x
  return x * _as_channels(mask, x).astype(x.dtype)


def average_pool(x: chex.Array) -> chex.Array:
  """Averages 3x3 of `[B, H, W, C]`, stride 2; the zero padding counts."""
  return nn.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def shortcut_a(x: chex.Array, features: int, strides: int) -> chex.Array:
  """Subsamples `[B, H, W, C]`; pads or slices its channels to `features`.

  Option A of He et al. (CVPR 2016), which has no weights.
  """
  x = x[:, ::strides, ::strides, :features]
  return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))


def _as_channels(vector, x):
  """`[C]` with the rank of x, for broadcasting."""
  return vector.reshape((1,) * (x.ndim - 1) + (-1,))
