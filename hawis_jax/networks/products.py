"""Products with chips' weights: how several chips' are computed, how exactly.

Vmapped over chips, a convolution whose kernels differ can be

  "loop"     a loop of convolutions, each the very one of a chip alone, so that
             its sums are the same to the last bit
  "matmul"   patches (im2col) times matrices: one product, inputs times the
             columns of all chips, where chips share their inputs; else a
             batched one
  "grouped"  one grouped convolution: what XLA makes of it by itself

On CPU a loop is 1.5 to 2.5 times faster than "grouped"
(benchmarks/monte_carlo.py). No accelerator has been measured
(benchmarks/accelerator.py would); compiled for TPUs, a loop moves the fewest
bytes (docs/scaling.md).

Products of bfloat16 are exact with float32 sums: two significands of 8 bits
make one of 16, and sums of a layer's integers stay below 2^24. So bits times
-1, 0 and 1 need no more. Other products are of full float32: by default
accelerators round operands to fewer bits, which conductances do not survive.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hawis_jax.arithmetic import binary
from hawis_jax.crossbar import readout

METHODS = ("loop", "matmul", "grouped")


class Way(NamedTuple):
  """How products with chips' weights are computed."""

  method: str = "loop"
  # Float32 weights are three of bfloat16, which hold all 24 bits: inputs that
  # bfloat16 holds then take three products of bfloat16, where full float32
  # takes a TPU six. Each term is exact, sums are rounded as those of float32.
  parts: bool = False


# On all backends: measured on CPU, elsewhere expected.
DEFAULT = Way()
_way = DEFAULT


def way() -> Way:
  """Returns how products that are traced now will be computed."""
  return _way


@contextlib.contextmanager
def using(chosen: Way) -> Iterator[None]:
  """Products traced within are computed so, for benchmarks and tests."""
  global _way
  before, _way = _way, chosen
  try:
    yield
  finally:
    _way = before


def on_chips(
  product: readout.Product, of_bfloat16: bool = True
) -> readout.Product:
  """Returns `product` of inputs `[B, ...]` with a chip's weights.

  Args:
    product: `binary.convolve` with its strides and padding, or a matrix
      product.
    of_bfloat16: bfloat16 holds the inputs: bits, or integers up to 256.
  """
  if way().method == "matmul" and _is_convolution(product):
    product = functools.partial(product, by_patches=True)

  def precise(left, right):
    is_exact = left.dtype == right.dtype == jnp.bfloat16
    with jax.default_matmul_precision("default" if is_exact else "highest"):
      return product(left, right)

  def pull_back(left, right, g):
    return jax.vjp(precise, left, right)[1](g)

  values = precise
  if way().parts and of_bfloat16:
    values = functools.partial(_in_parts, precise)
  if way().method == "loop":
    values, pull_back = _looped(values), _looped(pull_back)

  # The loop's rule is for values; gradients are those of the plain product.
  @jax.custom_vjp
  def differentiable(left, right):
    return values(left, right)

  differentiable.defvjp(
    lambda left, right: (values(left, right), (left, right)),
    lambda saved, g: pull_back(*saved, g),
  )
  return differentiable


def _is_convolution(product):
  return getattr(product, "func", None) is binary.convolve


def _looped(function: Callable) -> Callable:
  """Returns function(inputs, weights, *rest), a loop where it is vmapped."""

  @jax.custom_batching.custom_vmap
  def looped(*operands):
    return function(*operands)

  @looped.def_vmap
  def _(axis_size, batched, *operands):
    if not batched[1] and len(operands) == 2:  # inputs of one chip: more images
      left, right = operands
      out = looped(left.reshape(-1, *left.shape[2:]), right)
      return out.reshape(axis_size, -1, *out.shape[1:]), True
    if not batched[1]:
      axes = [0 if has_axis else None for has_axis in batched]
      out = jax.vmap(function, axes)(*operands)
      return out, jax.tree.map(lambda _: True, out)

    def one(own):
      own = iter(own)
      pairs = zip(operands, batched, strict=True)
      return looped(*(next(own) if is_own else x for x, is_own in pairs))

    own = [x for x, is_own in zip(operands, batched, strict=True) if is_own]
    out = jax.lax.map(one, own)
    return out, jax.tree.map(lambda _: True, out)

  return looped


def _in_parts(product, left, right):
  """Returns `product` of inputs that bfloat16 holds with float32 weights."""
  if right.dtype != jnp.float32:
    return product(left, right)
  parts, rest = [], right
  for _ in range(3):
    # Not by a conversion and back, which XLA may leave out.
    part = jax.lax.reduce_precision(rest, exponent_bits=8, mantissa_bits=7)
    parts.append(part.astype(jnp.bfloat16))
    rest = rest - part
  # Side by side as output channels: inputs are read once.
  sums = product(left.astype(jnp.bfloat16), jnp.concatenate(parts, -1))
  high, middle, low = jnp.split(sums, 3, -1)
  return high + (middle + low)
