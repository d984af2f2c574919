"""Cost of every layer by the choices it depends on, for budgets.

Axes: L layers, C choices of a layer, A of the layer before the previous one: C,
or 1 where no product skips a layer.
"""

import numpy as np

from hawis_jax import errors
from hawis_jax.cost import model
from hawis_jax.cost.geometry import checked_widths
from hawis_jax.cost.geometry import Geometry
from hawis_jax.cost.geometry import Layer


def _span(geometry):
  """Returns the most layers that a product reaches back: 1 for a chain."""
  longest = 1
  for p in geometry.products:
    if isinstance(p.inputs, Layer) and isinstance(p.outputs, Layer):
      reach = p.outputs.index - p.inputs.index
      # A table has three layers' choices: a product may span no more.
      if reach not in (1, 2):
        raise errors.InputError(
          f"product {p.name}: got inputs of layer {p.inputs.index} and outputs "
          f"of layer {p.outputs.index}, allowed is to skip one layer at most"
        )
      longest = max(longest, reach)
  return longest


def tables(choices: np.ndarray, geometry: Geometry, kind: str) -> np.ndarray:
  """Tabulates one kind (of `KINDS`) of cost for the choices `[L, C]` of widths.

  Returns `[L, A, C, C]`, int64 for arrays and MACs, else float64. Entry [l, i,
  j, k] is the cost of layer l when layer l - 2 takes choice i (layers without
  one: any i), layer l - 1 choice j and layer l choice k. A product counts at
  the later of its two layers; one of a fixed width at the layer of its other
  end; one of two fixed widths at layer 0. A vector's cost is the sum of its L
  entries, or their maximum where the kind is not additive. Formulas and
  sources: docs/cost.md.

  >>> import hawis_jax as hx, numpy as np
  >>> geometry = hx.cifar_geometry(8, (32, 32, 3), 32, 10)
  >>> hx.cost_tables(np.array([[16, 32]] * 7), geometry, "arrays").shape
  (7, 1, 2, 2)

  Raises:
    InputError: no such kind, choices that are no widths, or a product that
      skips more than one layer.
  """
  if kind not in model.KINDS:
    raise errors.InputError(
      f"cost: got {kind!r}, allowed are {', '.join(model.KINDS)}"
    )
  choices = checked_widths(np.asarray(choices).T, geometry).T
  layers, count = choices.shape
  back = count if _span(geometry) == 2 else 1
  dtype = np.int64 if kind in model.COUNTS else np.float64
  table = np.zeros((layers, back, count, count), dtype)

  def channels(end, layer):
    """Widths along the axis of the end's layer."""
    if not isinstance(end, Layer):
      return np.int64(end)
    shape = [1, 1, 1]
    shape[2 - (layer - end.index)] = count
    return choices[end.index].reshape(shape)

  for product in geometry.products:
    costs, _ = model.product_costs(
      channels(product.inputs, product.layer),
      channels(product.outputs, product.layer),
      product,
      geometry.hardware,
    )
    part = model.KINDS[kind].of(costs)
    entry = table[product.layer]
    combine = np.add if model.KINDS[kind].additive else np.maximum
    combine(entry, part, out=entry)
  return table
