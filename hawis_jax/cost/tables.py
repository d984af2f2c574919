"""Cost of every layer by the choices it depends on, for budgets.

Axes: L layers, C choices of a layer, A of the layer before the previous one: C,
or 1 where no product skips a layer.
"""

from collections.abc import Callable
import csv
import io

import numpy as np

from hawis_jax import errors
from hawis_jax.cost import model
from hawis_jax.cost.feasible import Space
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


# More, and sums of counts would not be exact in float64, or be infinite.
_MOST_COUNT, _MOST = 2**53, 1e300


def own_tables(
  space: Space,
  costs: Callable[[int, int, int], float] | np.ndarray,
  name: str = "costs",
) -> np.ndarray:
  """Returns a checked table `[L, A, C, C]` of costs of one's own, see `tables`.

  A vector costs the sum over its layers; which may rise and fall with a width.

  >>> import hawis_jax as hx
  >>> space = hx.width_space(((4, 8), (8, 16), (16, 32)), num_layers=7)
  >>> costs = hx.own_costs(space, lambda layer, inputs, outputs: 9 * inputs)
  >>> costs.shape, costs[2, 0, 1, 0].item()
  ((7, 1, 2, 2), 72)

  Args:
    space: of the vectors.
    costs: (layer, inputs, outputs) -> cost of layer 0 .. L - 1, which reads
      `inputs` channels, those of the layer before it (0: the image), and makes
      `outputs`; or its table by their choices, `[L, C, C]`, or with the choice
      of the layer before those, `[L, A, C, C]`. Integers are counted exactly.
    name: of `costs` in errors.

  Raises:
    InputError: numbers below 0 or not finite, too large ones, another shape, or
      costs that depend on a layer before the first.
  """
  if callable(costs):
    costs = _called(space, costs, name)
  table = np.asarray(costs)
  layers, count = space.table.shape
  if table.dtype.kind not in "iuf":
    raise errors.InputError(
      f"{name}: got a table of {table.dtype}, needed are integers or floats"
    )
  if table.ndim == 3:
    table = table[:, None]
  shapes = [(layers, back, count, count) for back in (1, count)]
  if table.shape not in shapes:
    raise errors.InputError(
      f"{name}: got a table of shape {np.shape(costs)}, needed is "
      f"{(layers, count, count)} or {(layers, count, count, count)}: layers, "
      "and choices of the layer before and of the layer itself"
    )
  # What stands at the padding of short layers is nobody's cost.
  table = table[_real_choices(space, table.shape[1])]
  bad = ~np.isfinite(table) | (table < 0)
  if bad.any():
    place = [int(i) for i in np.argwhere(bad)[0]]
    raise errors.InputError(
      f"{name}{place}: got {table[tuple(place)]}, needed are finite numbers "
      "from 0 on"
    )
  for layer in range(min(2, layers)):
    first = table[layer, :1] if layer else table[layer, :1, :1]
    if (table[layer] != first).any():
      raise errors.InputError(
        f"{name}[{layer}]: got costs that differ with the choice of layer "
        f"{layer - 1 if not layer else layer - 2}, which there is not; needed "
        "is the same for all"
      )
  integers = table.dtype.kind in "iu"
  most = _MOST_COUNT if integers else _MOST
  dearest = float(table.max((1, 2, 3)).astype(np.float64).sum())
  if not dearest <= most:
    raise errors.InputError(
      f"{name}: got up to {dearest:g} in all, allowed is at most {most:g}: "
      "take a larger unit"
    )
  return table.astype(np.int64 if integers else np.float64)


def _real_choices(space, back):
  """The index of a table that puts every layer's last choice on its padding."""
  layers, count = space.table.shape
  last = np.sum(space.valid, 1) - 1
  real = np.minimum(np.arange(count), last[:, None])  # [L, C]

  def of(before):
    """Choices of an earlier layer; of one that there is not, all as given."""
    shifted = np.tile(np.arange(count), (layers, 1))
    shifted[before:] = real[: layers - before]
    return shifted

  first = of(2)[:, :, None, None]
  return (
    np.arange(layers)[:, None, None, None],
    first if back == count else np.zeros_like(first[:, :1]),
    of(1)[:, None, :, None],
    real[:, None, None, :],
  )


def _called(space, costs, name):
  """Returns the table `[L, C, C]` of a function."""
  layers, count = space.table.shape
  table = np.zeros((layers, count, count), object)
  for layer, before, own in np.ndindex(table.shape):
    inputs = int(space.table[layer - 1, before]) if layer else 0
    outputs = int(space.table[layer, own])
    place = f"{name}(layer={layer}, inputs={inputs}, outputs={outputs})"
    try:
      value = np.asarray(costs(layer, inputs, outputs))
    except errors.InputError:
      raise
    except Exception as error:
      raise errors.InputError(
        f"{place}: raised {type(error).__name__}: {error}"
      ) from error
    is_number = not value.ndim and value.dtype.kind in "iuf"
    if not is_number or not 0 <= value <= _MOST:
      raise errors.InputError(
        f"{place}: got {value}, needed is a finite number from 0 on"
      )
    table[layer, before, own] = value.item()
  integers = all(type(value) is int for value in table.flat)
  if integers and max(table.flat) > _MOST_COUNT:
    raise errors.InputError(
      f"{name}: got {max(table.flat)}, allowed is at most {_MOST_COUNT}"
    )
  return table.astype(np.int64 if integers else np.float64)


_COLUMNS = ["layer", "inputs", "outputs", "cost"]


def own_tables_from_csv(text: str, space: Space, name: str) -> np.ndarray:
  """Returns the table of costs in lines `layer,inputs,outputs,cost`.

  Widths are channels; of layer 0 `inputs` are 0. Lines of other widths than
  those of the space are not read.

  Raises:
    InputError: a line is no such numbers, comes twice or is missing; `name` is
      that of the file.
  """
  try:
    # A spreadsheet puts a mark of UTF-8 before it.
    rows = list(csv.reader(io.StringIO(text.removeprefix("\ufeff"))))
  except csv.Error as error:
    raise errors.InputError(f"{name}: can't be read: {error}") from error
  if not rows or [cell.strip() for cell in rows[0]] != _COLUMNS:
    got = ",".join(rows[0]) if rows else "nothing"
    raise errors.InputError(
      f"{name}: got {got[:80]!r} as first line, needed is {','.join(_COLUMNS)}"
    )
  costs, integers = {}, True
  for number, row in enumerate(rows[1:], 2):
    if not row:
      continue
    try:
      *key, value = row
      key = tuple(int(cell) for cell in key)
      is_count = value.strip().isdecimal()
      value = float(value)
      integers &= is_count and value <= _MOST_COUNT
    except ValueError as error:
      raise errors.InputError(f"{name}, line {number}: {error}") from error
    if len(key) != 3 or key in costs:
      raise errors.InputError(
        f"{name}, line {number}: got {','.join(row)[:80]!r}, needed are four "
        "numbers, the first three not those of a line before"
      )
    costs[key] = value
  if integers:
    costs = {key: int(value) for key, value in costs.items()}

  def cost(layer, inputs, outputs):
    found = costs.get((layer, inputs, outputs))
    if found is None:
      raise errors.InputError(
        f"{name}: got no line {layer},{inputs},{outputs},..., needed is one "
        "for every choice of two layers"
      )
    return found

  return own_tables(space, cost, name)
