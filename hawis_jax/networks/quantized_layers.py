"""The layer of the reference nets: a product of float or of quantised operands.

Axes: B images, H rows, W columns, C channels.
"""

import functools

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from hawis_jax.arithmetic import binary
from hawis_jax.arithmetic import integer
from hawis_jax.networks import layers
from hawis_jax.networks import products


class QuantConv(nn.Module):
  """Convolution of float or of quantised operands; `size` 0 is linear.

  Quantised: the latent weights' step follows from their maximum. That of the
  activations follows from the batch's maximum in training, else from its
  running average `max_abs` in `batch_stats`. `max_abs` starts at 0, which
  stands for "none yet": the first batch that is seen takes its place, and sets
  it where `batch_stats` is mutable.

  Variables in the collection `crossbar` (see `crossbar.program`) replace the
  integer weights by one chip: its effective weights, or its tiles.

  Attributes:
    features: C_out.
    size: k of the k x k kernel, padded by k // 2; a linear layer has a bias.
    strides: of both axes.
    bits: of weights and activations; None: float.
    momentum: weight of the old running average.
  """

  features: int
  size: int = 3
  strides: int = 1
  bits: int | None = None
  momentum: float = 0.9

  @nn.compact
  def __call__(self, x: chex.Array, train: bool) -> chex.Array:
    """`[B, H, W, C_in]` -> `[B, H', W', C_out]`; linear: without H, W."""
    taps = (self.size, self.size) if self.size else ()
    kernel = self.param(
      "kernel", layers.he_normal, (*taps, x.shape[-1], self.features)
    )
    product = binary.multiply
    if self.size:
      product = functools.partial(
        binary.convolve, strides=self.strides, padding=self.size // 2
      )
    x = x.astype(kernel.dtype)
    if self.bits is None:
      y = product(x, kernel)
    else:
      step_x = integer.scale(self._max_abs(x, train), self.bits)
      weights, step_w = self._integer_weights(kernel)
      x = integer.quantize(x, step_x, self.bits)
      if self.has_variable("crossbar", "kernels"):
        sums = layers.read_tiles(self, product, x)
      else:
        on_chip = self.has_variable("crossbar", "weight")
        product = products.on_chips(product) if on_chip else product
        sums = product(x, weights)
      y = sums * (step_x * step_w)
    if not self.size:
      bias = self.param("bias", nn.initializers.zeros, (self.features,))
      y = y + bias.reshape(1, -1)
    return y

  def _integer_weights(self, kernel):
    """(integers or a chip's weights, the value of 1)."""
    step = integer.scale(
      jax.lax.stop_gradient(jnp.abs(kernel).max()), self.bits
    )
    if self.has_variable("crossbar", "weight"):
      return self.get_variable("crossbar", "weight"), step
    return integer.quantize(kernel, step, self.bits), step

  def _max_abs(self, x, train):
    """Range of the activations; updates its running average."""
    batch = jax.lax.stop_gradient(jnp.abs(x).max())
    update = self.is_mutable_collection("batch_stats")
    if train and not update:
      return batch
    average = self.variable("batch_stats", "max_abs", jnp.zeros, (), x.dtype)
    known = jnp.where(average.value > 0, average.value, batch)
    if update and not self.is_initializing():
      keep = self.momentum if train else 1
      average.value = keep * known + (1 - keep) * batch
    return batch if train else known
