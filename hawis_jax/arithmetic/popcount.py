"""Products of bits and weights {-1, 0, 1} by counting bits: exact integers.

Channels are packed 32 a word, weights are two planes: `used`, the weights that
are not 0, and `negative`, a part of them. With & (and), ^ (exclusive or) and
the number of ones || ||,

  sum_i bit_i w_i = ||negative ^ (bits & used)|| - ||negative||

since a bit of 0 leaves `negative` as it is, and a bit of 1 turns the positive
weights on and the negative ones off. One count a word serves 32 weights (XNOR
products, Rastegari et al., ECCV 2016, count the ideal ones so). Stuck cells
keep a binary net's weights in {-1, 0, 1}, so this path is exact for them.

Axes: B images, H rows, W columns, C channels, K taps of a kernel.
"""

from collections.abc import Callable
import functools

import chex
import jax
import jax.numpy as jnp

from hawis_jax.arithmetic import binary

_WORD = 32
# Words of a product that are unrolled; more are looped over, for compile time.
_UNROLLED = 128


def pack(bits: chex.Array) -> chex.Array:
  """Packs channels `[..., C]`, first one lowest; uint32 `[..., words]`."""
  bits = (bits > 0.5).astype(jnp.uint32)
  pad = [(0, 0)] * (bits.ndim - 1) + [(0, -bits.shape[-1] % _WORD)]
  bits = jnp.pad(bits, pad).reshape(*bits.shape[:-1], -1, _WORD)
  place = jnp.arange(_WORD, dtype=jnp.uint32)
  place = place.reshape((1,) * (bits.ndim - 1) + (-1,))
  return (bits << place).sum(-1, dtype=jnp.uint32)


def weight_planes(weights: chex.Array) -> tuple[chex.Array, chex.Array]:
  """Returns (used, negative): uint32 `[..., ceil(C_in / 32), C_out]` each.

  Weights are -1, 0 or 1, `[..., C_in, C_out]`.
  """
  by_column = jnp.moveaxis(weights, -1, 0)
  used, negative = (
    jnp.moveaxis(pack(plane), 0, -1)
    for plane in (by_column != 0, by_column < 0)
  )
  return used, negative


def multiply(
  bits: chex.Array, planes: tuple[chex.Array, chex.Array]
) -> chex.Array:
  """Returns the product of bits `[B, C_in]` and planes: `[B, C_out]`."""
  planes = tuple(plane[None, None] for plane in planes)
  return convolve(bits[:, None, None], planes, 1, 0)[:, 0, 0]


def convolve(
  bits: chex.Array,
  planes: tuple[chex.Array, chex.Array],
  strides: int,
  padding: int,
) -> chex.Array:
  """Returns `binary.convolve` of bits `[B, H, W, C_in]`, the same integers.

  They are float32. Planes are those of `weight_planes` of `[k, k, C_in,
  C_out]`. Vmapped over chips, work on a batch of images that they share is done
  once.
  """
  return _counter(strides, padding)(pack(bits), *planes)


@functools.cache
def _counter(strides: int, padding: int) -> Callable[..., chex.Array]:
  """Returns the convolution of packed words; leading axes are batches."""

  @jax.custom_batching.custom_vmap
  def count(words, used, negative):
    size = used.shape[-4]
    height, width = (
      (n + 2 * padding - size) // strides + 1 for n in words.shape[-3:-1]
    )
    batch = jnp.broadcast_shapes(words.shape[:-4], used.shape[:-4])
    shape = (*batch, words.shape[-4], height, width, used.shape[-1])

    def product():
      columns = binary.patches(words, size, strides, padding, (height, width))
      flat = (*used.shape[:-4], 1, 1, 1, -1, used.shape[-1])
      return _sums(columns, used.reshape(flat), negative.reshape(flat), shape)

    # Always true, which XLA can't know: else it fuses the product into every
    # use of it, and computes it as often, one word at a time.
    is_plane = (negative & ~used).ravel()[0] == 0
    return jax.lax.cond(
      is_plane, product, lambda: jnp.zeros(shape, jnp.float32)
    )

  @count.def_vmap
  def _(axis_size, batched, *operands):
    del axis_size
    operands = (
      x if has_axis else x[None]
      for x, has_axis in zip(operands, batched, strict=True)
    )
    return count(*operands), True

  return count


def _sums(columns, used, negative, shape):
  """Returns counts of `[..., words]` and of planes `[..., words, C_out]`."""

  def add(total, columns, used, negative):
    for word in range(columns.shape[-1]):
      bits = columns[..., word, None] & used[..., word, :]
      total += jax.lax.population_count(negative[..., word, :] ^ bits)
    return total

  offset = jax.lax.population_count(negative).sum(-2, dtype=jnp.uint32)
  total = jnp.zeros(shape, jnp.uint32)
  if columns.shape[-1] <= _UNROLLED:
    total = add(total, columns, used, negative)
  else:
    # Words of 0 pad the last part: they count nothing.
    pad = -columns.shape[-1] % _UNROLLED
    parts = (
      _split(columns, -1, pad),
      _split(used, -2, pad),
      _split(negative, -2, pad),
    )
    total, _ = jax.lax.scan(
      lambda total, part: (add(total, *part), None), total, parts
    )
  total, offset = total.astype(jnp.int32), offset.astype(jnp.int32)
  return total.astype(jnp.float32) - offset.astype(jnp.float32)


def _split(x, axis, pad):
  """Returns `[parts, ...]` of `_UNROLLED` words of an axis."""
  axis %= x.ndim
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, pad)
  x = jnp.pad(x, widths)
  shape = (*x.shape[:axis], -1, _UNROLLED, *x.shape[axis + 1 :])
  return jnp.moveaxis(x.reshape(shape), axis, 0)
