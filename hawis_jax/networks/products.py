"""Products with a chip's weights, vmapped over chips the way that is fast.

A vmapped convolution whose kernels differ is a grouped one, on CPU 1.5 to 2.5
times slower than a loop of convolutions (benchmarks/monte_carlo.py): there,
chips are looped over, each with the very convolution of a chip alone, so that
its sums are the same to the last bit.
"""

import jax

from hawis_jax import backend
from hawis_jax.crossbar import readout


def on_chips(product: readout.Product) -> readout.Product:
  """Returns `product` of inputs `[B, ...]` with a chip's weights.

  It is of full float32 and has a vmap rule of its own. By default accelerators
  round operands to fewer bits, which bits and signs survive and conductances do
  not.
  """

  def precise(left, right):
    with jax.default_matmul_precision("highest"):
      return product(left, right)

  if backend.platform() != "cpu":
    return precise

  @jax.custom_batching.custom_vmap
  def looped(left, right):
    return precise(left, right)

  @looped.def_vmap
  def _(axis_size, batched, left, right):
    if not batched[1]:  # inputs of one chip: more images
      out = looped(left.reshape(-1, *left.shape[2:]), right)
      return out.reshape(axis_size, -1, *out.shape[1:]), True
    if batched[0]:
      return jax.lax.map(lambda pair: looped(*pair), (left, right)), True
    return jax.lax.map(lambda right: looped(left, right), right), True

  # The loop's rule is for values: gradients are those of the plain product.
  @jax.custom_vjp
  def differentiable(left, right):
    return looped(left, right)

  differentiable.defvjp(
    lambda left, right: (looped(left, right), (left, right)),
    lambda saved, g: jax.vjp(precise, *saved)[1](g),
  )
  return differentiable
