"""How layers of Flax, of Linen and of NNX, use their kernels.

A layer's product is known where its class is one of Flax's own: what of its
kernel is summed over makes the rows of a crossbar, what is not its columns.
"""

from collections.abc import Callable, Mapping
import math
from typing import Any, NamedTuple

import chex
from flax import linen as nn
from flax import nnx
from flax.nnx.nn import dtypes as nnx_dtypes
import jax
from jax import lax
from jax.extend import core
import jax.numpy as jnp

KNOWN = "Dense, DenseGeneral, Conv, Einsum; Linear, LinearGeneral"


class Layer(NamedTuple):
  """A layer that a net's forward pass calls."""

  # Axes of its kernel that are summed over; empty: all but the last, and the
  # kernel is `[*taps, C_in, C_out]` as of a convolution.
  rows: tuple[int, ...] = ()
  refusal: str = ""  # why no chip can hold it; empty: one can

  def to_matrix(self, kernel: chex.Array) -> chex.Array:
    """Returns the kernel as chips take it: `[*taps, C_in, C_out]`."""
    if not self.rows:
      return kernel
    order, sizes = self._order(kernel.shape)
    rows = math.prod(sizes[: len(self.rows)])
    return kernel.transpose(order).reshape(rows, -1)

  def to_kernel(self, matrix: chex.Array, shape: tuple[int, ...]) -> chex.Array:
    """Returns the kernel of `shape` that `to_matrix` made `matrix` of."""
    if not self.rows:
      return matrix
    order, sizes = self._order(shape)
    back = sorted(range(len(order)), key=order.__getitem__)
    return matrix.reshape(sizes).transpose(back)

  def _order(self, shape):
    columns = (axis for axis in range(len(shape)) if axis not in self.rows)
    order = (*self.rows, *columns)
    return order, [shape[axis] for axis in order]


def of_linen(
  module: nn.Module, params: Mapping, forward: Callable[[Mapping], Any]
) -> tuple[Any, dict[tuple[str, ...], Layer]]:
  """Returns what `forward(params)` returns, in shapes, and {path: layer}.

  The layers are those with a kernel that the forward pass of `module` calls.
  """
  found = {}

  def abstract(params):
    kernels = {id(leaf) for leaf in jax.tree.leaves(params)}

    def record(method, args, kwargs, context):
      own = context.module
      if context.method_name == "__call__" and own.has_variable(
        "params", "kernel"
      ):
        kernel = own.get_variable("params", "kernel")
        einsum = own.einsum_str if isinstance(own, nn.Einsum) else None
        given = kwargs.get("einsum_str", (*args, None, None)[1])
        layer = _layer(own, kernel, einsum or given)
        if id(kernel) not in kernels:
          layer = Layer(
            refusal="whose kernel is transformed before it is read (by "
            "nn.map_variables, WeightNorm, scan, vmap, jit or remat)"
          )
        if found.setdefault(own.path, layer) != layer:
          found[own.path] = Layer(refusal="which is called as several products")
      return method(*args, **kwargs)

    with nn.intercept_methods(record):
      return forward(params)

  return jax.eval_shape(abstract, params), found


def of_nnx(model: nnx.Module) -> dict[tuple[str, ...], Layer]:
  """Returns {path: layer} of all layers of a model that have a kernel."""
  modules = dict(nnx.iter_modules(model))
  found = {}
  for path, module in modules.items():
    if isinstance(getattr(module, "kernel", None), nnx.Param):
      einsum = getattr(module, "einsum_str", None)
      layer = _layer(module, module.kernel, einsum)
      above = (modules.get(path[:depth]) for depth in range(len(path)))
      for outer in above:
        if isinstance(outer, nnx.WeightNorm | nnx.SpectralNorm):
          layer = Layer(
            refusal=f"whose kernel is transformed before it is read (by "
            f"{type(outer).__name__})"
          )
      found[tuple(map(str, path))] = layer
  return found


# Steps of a forward pass that hand a kernel on as it is, and those that compute
# other numbers of it. Products are neither.
_PASSING = ("transpose", "reshape", "squeeze", "copy", "convert_element_type")
_COMPUTING = (
  *("mul", "div", "add", "sub", "neg", "abs", "sign", "square", "integer_pow"),
  *("pow", "sqrt", "rsqrt", "max", "min", "clamp", "round", "floor", "tanh"),
  *("exp", "log", "logistic", "reduce_sum", "reduce_max", "select_n"),
)


def computed_of(
  params: Mapping, forward: Callable[[Mapping], Any]
) -> dict[tuple[str, ...], str]:
  """Returns {path: step} of the parameters that a forward pass computes with.

  A kernel that is read by products alone is not among them: of others a chip's
  errors may be computed away, as by a norm of weights.
  """

  def run(params):
    forward(params)  # what it returns may be no array

  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  paths = (tuple(getattr(x, "key", x) for x in path) for path, _ in leaves)
  jaxpr = jax.make_jaxpr(run)(params).jaxpr
  return _computed(jaxpr, dict(zip(jaxpr.invars, paths, strict=True)))


def _computed(jaxpr, paths):
  found = {}
  for step in jaxpr.eqns:
    given = [
      None if isinstance(x, core.Literal) else paths.get(x) for x in step.invars
    ]
    if not any(given):
      continue
    name = step.primitive.name
    if name in _PASSING:
      paths[step.outvars[0]] = given[0]
    elif name in _COMPUTING:
      found.update(dict.fromkeys(filter(None, given), name))
    for value in step.params.values():
      inner = getattr(value, "jaxpr", value)
      if len(getattr(inner, "invars", ())) == len(given):
        pairs = zip(inner.invars, given, strict=True)
        found |= _computed(inner, {x: path for x, path in pairs if path})
  return found


# Fields that replace a layer's product by one of the user's own, with Flax's.
_PRODUCTS = {
  "dot_general": (lax.dot_general,),
  "dot_general_cls": (),
  "conv_general_dilated": (lax.conv_general_dilated,),
  "conv_general_dilated_cls": (),
  "einsum_op": (jnp.einsum,),
  "promote_dtype": (nn.dtypes.promote_dtype, nnx_dtypes.promote_dtype),
}


def _layer(module, kernel, einsum):
  kind, rank = type(module), len(kernel.shape)
  for name, usual in _PRODUCTS.items():
    if getattr(module, name, None) not in (None, *usual):
      return Layer(refusal=f"whose {name} is its own product")
  dtype = getattr(module, "dtype", None)
  if dtype is not None and jnp.dtype(dtype).itemsize < 4:
    return Layer(
      refusal=f"which computes in {jnp.dtype(dtype).name}: conductances would "
      "be rounded to it; use dtype=None"
    )
  if (
    not jnp.issubdtype(kernel.dtype, jnp.floating) or kernel.dtype.itemsize < 4
  ):
    return Layer(
      refusal=f"whose kernel is {kernel.dtype.name}: conductances would be "
      "rounded to it; use param_dtype=jnp.float32"
    )
  stacked = Layer(
    refusal=f"whose kernel of shape {tuple(kernel.shape)} is that of several "
    "layers (of vmap or scan)"
  )
  if kind in (nn.Conv, nnx.Conv):
    if module.feature_group_count != 1:
      return Layer(
        refusal=f"of feature_group_count = {module.feature_group_count}: a "
        "crossbar's columns all read the same rows, so it is 1"
      )
    if module.mask is not None:
      return Layer(refusal="with a mask of its weights")
    size = module.kernel_size
    taps = len(size) if isinstance(size, tuple | list) else 1
    return Layer() if rank == taps + 2 else stacked
  if kind in (nn.Dense, nnx.Linear):
    return Layer() if rank == 2 else stacked
  if kind in (nn.DenseGeneral, nnx.LinearGeneral):
    batch = module.batch_dims if kind is nn.DenseGeneral else module.batch_axis
    if batch:
      return Layer(refusal="with batch dimensions: it is several products")
    axes, features = (
      len(x) if isinstance(x, tuple | list) else 1
      for x in (
        module.axis,
        module.features if kind is nn.DenseGeneral else module.out_features,
      )
    )
    return Layer(tuple(range(axes))) if rank == axes + features else stacked
  if kind in (nn.Einsum, nnx.Einsum):
    return _einsum_layer(einsum, rank)
  return Layer(
    refusal=f"a {kind.__name__}, whose product is not known: known are those "
    f"of {KNOWN}"
  )


def _einsum_layer(equation, rank):
  refusal = f"whose equation {equation!r} is no product of one matrix"
  left, _, out = (equation or "").replace(" ", "").partition("->")
  given, _, kernel = left.partition(",")
  rows = tuple(axis for axis, x in enumerate(kernel) if x not in out)
  good = (
    len(set(kernel)) == len(kernel) == rank
    and kernel.isalpha()
    and rows
    and all((x in given) != (x in out) for x in kernel)
  )
  return Layer(rows) if good else Layer(refusal=refusal)
