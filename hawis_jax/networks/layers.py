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

  Attributes:
    channel_scale: one weight scale alpha an output channel, not one a layer
      (XNOR-Net, Rastegari et al., ECCV 2016).
    rprelu: a PReLU with learnt shifts after every batch normalisation that an
      activation binariser follows (ReActNet, Liu et al., ECCV 2020).
    learned_thresholds: the thermometer's thresholds are parameters.
    compute: "float32", or "bfloat16": type of the operands of the products
      (sums are float32, so binary products stay exact).
  """

  channel_scale: bool = False
  rprelu: bool = False
  learned_thresholds: bool = False
  compute: str = "float32"


PUBLISHED = Options()


class BatchNorm(nn.Module):
  """Batch normalisation over all axes but the last.

  Training normalises with the batch's biased variance; where `batch_stats` is
  mutable, running averages are updated with the unbiased one, as in PyTorch.
  A variable in `scales` is the gain, where it is known (see
  `variables.with_scales`).

  Attributes:
    momentum: weight of the old running average; 0 keeps the batch's moments,
      with the biased variance, to be pooled over batches.
  """

  momentum: float = 0.9

  @nn.compact
  def __call__(self, x: chex.Array, train: bool) -> chex.Array:
    """Normalises `[..., C]` over its leading axes."""
    size = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (size,))
    bias = self.param("bias", nn.initializers.zeros, (size,))
    update = self.is_mutable_collection("batch_stats")
    if update or not train:
      mean = self.variable("batch_stats", "mean", jnp.zeros, (size,))
      var = self.variable("batch_stats", "var", jnp.ones, (size,))
    if not train:
      if self.has_variable("scales", "gain"):
        gain = self.get_variable("scales", "gain")
      else:
        gain = self._gain(scale, var.value)
        if _records_scales(self):
          self.put_variable("scales", "gain", gain)
      return self._normalize(x, mean.value, gain, bias)
    axes = tuple(range(x.ndim - 1))
    batch_mean = x.mean(axes)
    batch_var = jnp.square(x - batch_mean.reshape((1,) * len(axes) + (-1,)))
    batch_var = batch_var.mean(axes)
    if update and not self.is_initializing():
      count = x.size // size
      keep = self.momentum
      unbiased = batch_var * (count / max(count - 1, 1) if keep else 1)
      mean.value = keep * mean.value + (1 - keep) * batch_mean
      var.value = keep * var.value + (1 - keep) * unbiased
    gain = self._gain(scale, batch_var)
    return self._normalize(x, batch_mean, gain, bias)

  def _gain(self, scale, var):
    return scale * jax.lax.rsqrt(var + BN_EPSILON)

  def _normalize(self, x, mean, gain, bias):
    return (x - _as_channels(mean, x)) * _as_channels(gain, x) + _as_channels(
      bias, x
    )


def _records_scales(layer):
  """Whether this is `variables.with_scales`; `init` must make none."""
  mutable = layer.is_mutable_collection("scales")
  return mutable and not layer.is_initializing()


class BinaryConv(nn.Module):
  """1-bit convolution of bits; `size` 0 is a linear layer on `[B, C]`.

  Variables in the collection `crossbar` (see `crossbar.program`) replace the
  signs by one chip: its effective weights, its bit planes or its tiles. One in
  `scales` is alpha, where it is known (see `variables.with_scales`).

  Attributes:
    features: C_out.
    size: k of the k x k kernel.
    strides: of both axes.
    padding: zeros on every side; None: size // 2.
    options: see `Options`.
  """

  features: int
  size: int = 3
  strides: int = 1
  padding: int | None = None
  options: Options = PUBLISHED

  @nn.compact
  def __call__(
    self,
    bits: chex.Array,
    in_mask: chex.Array | None,
    out_mask: chex.Array | None,
  ) -> chex.Array:
    """Bits `[B, H, W, C_in]` or `[B, C_in]` -> sums times alpha.

    Args:
      bits: input, 0 on masked channels.
      in_mask: mask of the input's and
      out_mask: of the output's channels, for alpha.
    """
    taps = (self.size, self.size) if self.size else ()
    kernel = self.param(
      "kernel", he_normal, (*taps, bits.shape[-1], self.features)
    )
    if self.has_variable("scales", "alpha"):
      alpha = self.get_variable("scales", "alpha")
    else:
      alpha = binary.weight_scale(
        kernel, in_mask, out_mask, self.options.channel_scale
      )
      if _records_scales(self):
        # One a channel in any case: XLA's loops are slow with a scalar operand.
        whole = jnp.broadcast_to(alpha, (self.features,))
        self.put_variable("scales", "alpha", whole)
    window = {}
    if self.size:
      padding = self.size // 2 if self.padding is None else self.padding
      window = dict(strides=self.strides, padding=padding)
    if self.has_variable("crossbar", "used"):
      planes = [
        self.get_variable("crossbar", name) for name in ("used", "negative")
      ]
      product = popcount.convolve if window else popcount.multiply
      return binary.scale(product(bits, planes, **window), alpha)
    product = binary.multiply
    if window:
      product = functools.partial(binary.convolve, **window)
    bits = bits.astype(kernel.dtype)
    if self.has_variable("crossbar", "kernels"):
      return binary.scale(read_tiles(self, product, bits, alpha), alpha)
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
) -> chex.Array:
  """A layer's product on its chip, tile by tile (see `crossbar.readout`).

  Where the collection `converters` is mutable, it gets the layer's `range`: the
  percentile `percentile` that it holds already, of what its converters see.

  Args:
    layer: has the chip's variables.
    product: of the layer.
    x: its input.
    alpha: what the result will be multiplied by, to be kept out of the weights'
      gradients as in `binary.scaled_product`; None: nothing is kept out.
  """
  chip, product = layer.variables["crossbar"], products.on_chips(product)
  if alpha is not None:
    factor = _as_channels(alpha, chip["kernels"])
    kernels = binary.divide_gradient(chip["kernels"], factor)
    chip = {**chip, "kernels": kernels}
  if layer.is_mutable_collection("converters"):
    percentile = layer.get_variable("converters", "percentile")
    most = readout.sums_percentile(product, x, chip, percentile)
    layer.put_variable("converters", "range", most)
  return readout.read(product, x, chip)


he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class RPReLU(nn.Module):
  """PReLU(x - shift) + offset, a parameter each a channel.

  ReActNet: Liu et al., ECCV 2020.
  """

  @nn.compact
  def __call__(self, x: chex.Array) -> chex.Array:
    """Any `[..., C]`."""
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

  Attributes:
    levels: thresholds a channel; divides 128.
  """

  levels: int

  @nn.compact
  def __call__(self, images: chex.Array) -> chex.Array:
    """`[B, H, W, C]` in [0, 1] -> bits `[B, H, W, levels * C]`, level-major."""
    channels = images.shape[-1]

    def fixed(key, shape, dtype=jnp.float32):
      del key
      levels = jnp.asarray(binary.thermometer_thresholds(self.levels), dtype)
      return jnp.broadcast_to(levels[:, None] / 255, shape)

    thresholds = self.param("thresholds", fixed, (self.levels, channels))
    distance = images[..., None, :] - thresholds.reshape(
      1, 1, 1, self.levels, channels
    )
    bits = jax.lax.stop_gradient((distance > 0).astype(distance.dtype))
    near = jax.lax.stop_gradient(jnp.abs(distance) <= 1 / self.levels)
    line = jnp.where(near, distance, 0)
    bits = bits + line - jax.lax.stop_gradient(line)
    return bits.reshape(*images.shape[:3], -1)


def apply_mask(x: chex.Array, mask: chex.Array | None) -> chex.Array:
  """`[..., C]` with 0 on masked channels."""
  if mask is None:
    return x
  return x * _as_channels(mask, x).astype(x.dtype)


def average_pool(x: chex.Array) -> chex.Array:
  """3x3 average, stride 2, of `[B, H, W, C]`; the zero padding counts."""
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
