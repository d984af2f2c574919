"""Placing: which column of a chip with known faults holds which weights.

Write-verify gives a chip's stuck cells and dead lines, and weights can be
placed so that these hurt least (docs/robust_nets.md, "Placing weights").
Columns stay in their tile, and what is read is put back in order and sign
before anything follows: next layers do not change, and a chip without faults
computes the same to the bit.

Axes: T tiles of all slices of all layers, in the order of `cells.stack_tiles`,
R rows and C columns of a tile; a tile's logical columns are those of the
matrix, then its empty ones.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import errors
from hawis_jax.crossbar import cells
from hawis_jax.crossbar import defects
from hawis_jax.crossbar import devices
from hawis_jax.crossbar import tiles

RULES = ("polarity", "permutation")


@dataclasses.dataclass(frozen=True)
class Placing:
  """How weights are placed on chips; the default: as they come.

  >>> import hawis_jax as hx
  >>> hx.Placing(("polarity", "permutation"), spare_columns=4).copies
  1

  Attributes:
    rules: "polarity": a column holds W or -W; "permutation": any column of a
      tile holds any of the matrix's columns in it.
    spare_columns: of every tile, that are left empty: columns move there also
      without "permutation".
    copies: of a layer, in arrays of their own, whose read-outs are averaged.
    copied: patterns of the layers that have copies; None: all.
  """

  rules: tuple[str, ...] = ()
  spare_columns: int = 0
  copies: int = 1
  copied: tuple[str, ...] | None = None

  def __post_init__(self):
    """Raises InputError where a value is none that is allowed."""
    rules = self.rules
    good = isinstance(rules, tuple | list) and all(x in RULES for x in rules)
    if not good or len(set(rules)) < len(rules):
      raise errors.InputError(
        f"rules: got {rules!r}, allowed is a tuple of {', '.join(RULES)}, each "
        "at most once"
      )
    copied = self.copied
    good = copied is None or (
      isinstance(copied, tuple | list)
      and len(copied) > 0
      and all(isinstance(x, str) and x for x in copied)
    )
    if not good:
      raise errors.InputError(
        f"copied: got {copied!r}, needed is a tuple of names or patterns of "
        'layers, e.g. ("stage3_*", "head")'
      )
    object.__setattr__(self, "rules", tuple(rules))
    object.__setattr__(self, "copied", copied and tuple(copied))
    for name, least in (("spare_columns", 0), ("copies", 1)):
      value = getattr(self, name)
      if type(value) is not int or value < least:
        raise errors.InputError(
          f"{name}: got {value!r}, allowed are whole numbers from {least} on"
        )

  @property
  def moves(self) -> bool:
    """Returns whether columns may have other places than they come in."""
    return "permutation" in self.rules or self.spare_columns > 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Placement:
  """Where one chip's columns are, from `place`.

  Attributes:
    columns: physical column of each logical one, int32 `[T, C]`.
    signs: 1, or -1 where it is held negated, int8 `[T, C]`.
    placing: that it follows.
  """

  columns: chex.Array
  signs: chex.Array
  placing: Placing = dataclasses.field(metadata={"static": True})


class Tiles(NamedTuple):
  """What a net's layers are to be placed; both 0 where no weight is.

  Attributes:
    integers: of the weights, `[T, R, C]`.
    importance: what an error of 1 of them costs, `[T, R, C]`.
  """

  integers: chex.Array
  importance: chex.Array


def place(
  key: chex.PRNGKey,
  variables: Mapping[str, Any],
  device: devices.Device,
  placing: Placing,
  bits: int = 1,
  faults: Mapping[str, chex.Array] | None = None,
  *,
  layers: Sequence[str] | None = None,
  scales: str = "channel",
  importance: Mapping[str, chex.Array] | None = None,
) -> Placement:
  """Places a net's weights for the known faults of one chip.

  Arguments are those of `program`, which takes the result with the same ones:
  faults that the device draws for the key are known as well as measured ones.

  >>> import hawis_jax as hx, jax, jax.numpy as jnp
  >>> net = {"params": {"head": {"kernel": jnp.array([[0.3], [-0.2]])}}}
  >>> device = hx.Device(tile_shape=(2, 1))
  >>> faults = {"head": jnp.array([[[[[[-1], [0]], [[0], [-1]]]]]])}
  >>> key, placing = jax.random.key(0), hx.Placing(("polarity",))
  >>> placement = hx.place(key, net, device, placing, faults=faults)
  >>> for placed in None, placement:
  ...   chip = hx.program(key, net, device, faults=faults, placement=placed)
  ...   print(chip["crossbar"]["head"]["weight"].tolist())
  [[0.0], [0.0]]
  [[1.0], [-1.0]]

  Args:
    key: of the chip; `program` takes the same.
    variables: of a network: its `params`.
    device: its parameters are concrete.
    placing: rules.
    bits: of the network's weights.
    faults: of a measured chip, of the tiles that `placing` needs.
    layers: patterns of those on chips; None: all.
    scales: of the network's weights of several bits.
    importance: {"scope/layer": what an error of 1 of a weight costs, of its
      kernel's shape}; None: of 1-bit weights their latent magnitude, else 1.

  Raises:
    InputError: a bad device, bits or scales; spare columns that fill a tile;
      faults or importance that don't fit.
  """
  errors.check_key(key)
  devices.validate(device)
  net = tiles_of(
    variables, device, placing, bits, layers, scales, importance=importance
  )
  states = known_faults(
    key, variables, device, placing, bits, faults, layers, scales
  )
  return match(jax.device_get(net), np.asarray(states), placing, device, bits)


def tiles_of(
  variables: Mapping[str, Any],
  device: devices.Device,
  placing: Placing,
  bits: int = 1,
  layers: Sequence[str] | None = None,
  scales: str = "channel",
  *,
  importance: Mapping[str, chex.Array] | None = None,
) -> Tiles:
  """Returns what of a net is to be placed; arguments are those of `place`."""
  kernels = cells.matching(cells.kernels_of(variables["params"]), layers)
  given = {} if importance is None else dict(importance)
  weights = []
  for path, kernel in kernels.items():
    default = jnp.abs(kernel) if bits == 1 else jnp.ones_like(kernel)
    weight = given.pop("/".join(path), default)
    if np.shape(weight) != kernel.shape:
      raise errors.InputError(
        f"importance of {'/'.join(path)}: got shape {np.shape(weight)}, needed "
        f"is that of the kernel, {kernel.shape}"
      )
    weights.append(jnp.asarray(weight))
  if given:
    raise errors.InputError(
      f"importance: got layer {next(iter(given))!r}, allowed are "
      f"{', '.join(_names(kernels))}"
    )
  cuts = cut(kernels.values(), _names(kernels), device, placing, bits, scales)
  costs = []
  for weight, layer in zip(weights, cuts, strict=True):
    matrix = tiles.kernel_to_matrix(weight)[None]
    matrix = jnp.repeat(matrix, layer.shape[0], axis=0)
    costs.append(cells.cut_matrices(matrix, device, placing.spare_columns))
  return Tiles(*(_stacked(layers) for layers in (cuts, costs)))


def _stacked(cuts):
  return jnp.concatenate([cut.reshape(-1, *cut.shape[3:]) for cut in cuts])


def _names(kernels):
  return ["/".join(path) for path in kernels]


def cut(
  kernels: Iterable[chex.Array],
  names: Sequence[str],
  device: devices.Device,
  placing: Placing,
  bits: int,
  scales: str,
) -> list[chex.Array]:
  """Returns every layer's integers, as `cells.cut_kernel`, to be placed.

  Copies are further slices: those of the first copy, of the second, ...

  Raises:
    InputError: other bits or scales; spare columns that fill a tile; a layer
      that there is not.
  """
  check_placing(placing, device)
  spares = placing.spare_columns
  return [
    jnp.concatenate(
      [cells.cut_kernel(kernel, device, bits, scales, spares)] * n
    )
    for kernel, n in zip(kernels, copies(placing, names), strict=True)
  ]


def copies(placing: Placing, names: Sequence[str]) -> list[int]:
  """Returns how many copies each layer has.

  Raises:
    InputError: `copied` has a pattern that no layer matches.
  """
  if placing.copies == 1:
    return [1] * len(names)
  paths = {tuple(name.split("/")): 1 for name in names}
  chosen = cells.matching(paths, placing.copied, "copied")
  return [placing.copies if path in chosen else 1 for path in paths]


def check_placing(placing: Placing, device: devices.Device) -> None:
  """Checks that a device's tiles can hold what is placed.

  Raises:
    InputError: spare columns that fill a tile; copies that no converter reads.
  """
  if device.mapping != "differential" and placing != Placing():
    raise errors.InputError(
      f"placing: got one with {device.mapping!r} cells, allowed is none: it is "
      "of differential pairs"
    )
  moved = placing.rules or placing.spare_columns
  if moved and "nonlinearity" in devices.tile_effects(device):
    raise errors.InputError(
      "placing: got one with nonlinearity and resistive wires, allowed are "
      "copies: arrays are solved with their columns as they come"
    )
  columns = device.tile_shape[1]
  if placing.spare_columns >= columns:
    raise errors.InputError(
      f"spare_columns: got {placing.spare_columns}, allowed are 0 to "
      f"{columns - 1}: a tile has {columns} columns"
    )
  traced = isinstance(device.adc_bits, jax.Array)
  if placing.copies > 1 and not traced and device.adc_bits == 1:
    raise errors.InputError(
      f"copies: got {placing.copies} with adc_bits = 1, a sense amplifier, "
      "allowed is 1: bits of copies are no average"
    )


def check_placement(
  placement: Placement | None, shape: tuple[int, int, int]
) -> None:
  """Checks that a placement is one of a net's tiles, of `shape` (T, R, C).

  Raises:
    InputError: it is of another net, device or layers.
  """
  needed = shape[::2]
  if placement and np.shape(placement.columns) != needed:
    raise errors.InputError(
      f"placement: got one of {np.shape(placement.columns)} tiles and columns, "
      f"needed is {needed}: one of the same net, device and layers"
    )


def known_faults(
  key: chex.PRNGKey,
  variables: Mapping[str, Any],
  device: devices.Device,
  placing: Placing,
  bits: int = 1,
  faults: Mapping[str, chex.Array] | None = None,
  layers: Sequence[str] | None = None,
  scales: str = "channel",
) -> chex.Array:
  """Returns what write-verify finds on a chip; arguments are those of `place`.

  int8 `[T, 2, R, C]`: 1 stuck on, -1 stuck off or on a dead line, 0 healthy.
  """
  device = defects.of_chip(key, device)
  keys, kernels = cells.layer_keys(key, variables["params"], layers)
  names = _names(kernels)
  cuts = cut(kernels.values(), names, device, placing, bits, scales)
  stacked = cells.stack_tiles(keys, cuts, device, faults, names)
  return cells.in_blocks(
    lambda *part: cells.fault_states(*part, device, dead_lines=True), *stacked
  )


def match(
  net: Tiles,
  states: np.ndarray,
  placing: Placing,
  device: devices.Device,
  bits: int = 1,
) -> Placement:
  """Returns the placement of least expected error; on the host.

  The error of a column in a place is the sum over its cells of importance times
  |what the pair holds - what it should|, of stuck cells alone. Columns are
  assigned by minimum-cost matching (`scipy.optimize.linear_sum_assignment`).

  Args:
    net: of `tiles_of`, NumPy arrays.
    states: of `known_faults`, of one chip.
    placing: rules.
    device: static fields alone are read.
    bits: of the network's weights.
  """
  num, _, columns = net.integers.shape
  places = np.tile(np.arange(columns, dtype=np.int32), (num, 1))
  signs = np.ones((num, columns), np.int8)
  # Else all is well as it is.
  faulty = states.any((1, 2, 3)).nonzero()[0]
  if len(faulty) and (placing.rules or placing.moves):
    _, top = cells.cell_slices(device, bits)
    part, states = Tiles(*(x[faulty] for x in net)), states[faulty]
    cost = expected_errors(part, states, top)
    negated = np.zeros(cost.shape, bool)
    if "polarity" in placing.rules:
      # -W in a pair errs as W does in the pair that is swapped.
      other = expected_errors(part, states[:, ::-1], top)
      negated = other < cost
      cost = np.minimum(cost, other)
    if placing.moves:
      from scipy import optimize  # 0.2 s, needed only here

      if "permutation" not in placing.rules:
        cost = np.where(_allowed(part), cost, np.inf)
      places[faulty] = [optimize.linear_sum_assignment(x)[1] for x in cost]
    held = np.take_along_axis(negated, places[faulty][..., None], 2)[..., 0]
    signs[faulty] = np.where(held, -1, 1)
  return Placement(places, signs, placing)


def expected_errors(net: Tiles, states: np.ndarray, top: int) -> np.ndarray:
  """Returns the error of every logical column (axis 1) in every place (axis 2).

  float32 `[T, C, C]`; `top` is the integer of a pair of cells (on, off), which
  `spare_level` puts beyond those of weights.
  """
  q = net.integers
  cells_of = np.maximum(q, 0), np.maximum(-q, 0)
  error = np.zeros((len(q), q.shape[2], q.shape[2]), np.float32)
  for pair in np.ndindex(3, 3):
    pair = np.subtract(pair, 1)
    there = (states == pair[:, None, None]).all(1)
    if pair.any() and there.any():
      held = [
        cell if state == 0 else top * (state > 0)
        for state, cell in zip(pair, cells_of, strict=True)
      ]
      harm = net.importance * np.abs(held[0] - held[1] - q)
      error += np.matmul(harm.swapaxes(1, 2), there.astype(np.float32))
  return error


def _allowed(net):
  """Where a column may be without permutation: its place, or an empty one."""
  empty = ~net.importance.any(1)
  columns = empty.shape[1]
  return np.eye(columns, dtype=bool) | empty[:, None, :] | empty[:, :, None]


def onto(integers: chex.Array, placement: Placement) -> chex.Array:
  """Returns integers `[T, R, C]` in the places that hold them."""
  held = jnp.argsort(placement.columns, axis=1)[:, None]
  signed = integers * jnp.asarray(placement.signs)[:, None]
  return jnp.take_along_axis(signed, held, axis=2)


def back(
  found: Mapping[str, chex.Array], placement: Placement
) -> dict[str, chex.Array]:
  """Returns what tiles amount to, arrays `[T, R, C]` by name, as it was.

  A switch ahead of the converters turns a column that is held negated:
  `weights` have signs; these swap `added` and `taken`, and what has a converter
  of its own with what it is taken from (`taken_weights`, ...). Variances have
  no sign, and errors of converters, which come after, stay as they are. So do
  whole arrays, `cells`.
  """
  columns = jnp.asarray(placement.columns)[:, None]
  found = {
    name: array
    if name == "cells"  # only with copies, whose columns do not move
    else jnp.take_along_axis(array, columns, axis=2)
    for name, array in found.items()
  }
  signs = jnp.asarray(placement.signs)[:, None]
  if "taken_weights" not in found:
    found["weights"] *= signs
  pairs = [(x, f"taken_{x}") for x in ("weights", "variances", "thermal")]
  for one, other in (("added", "taken"), *pairs):
    if other in found:
      pair = found[one], found[other]
      found[one] = jnp.where(signs > 0, *pair)
      found[other] = jnp.where(signs > 0, *pair[::-1])
  return found


class Overhead(NamedTuple):
  """What placing takes of a chip.

  Attributes:
    arrays: differential pairs of arrays, beyond those of the net alone.
    sign_bits: one a column of weights and tile, for "polarity".
    index_bits: ceil(log2 C) a column of weights and tile, where columns move.
  """

  arrays: int
  sign_bits: int
  index_bits: int


def overhead(
  variables: Mapping[str, Any],
  device: devices.Device,
  placing: Placing,
  bits: int = 1,
  layers: Sequence[str] | None = None,
) -> Overhead:
  """Returns what placing takes; arguments are those of `place`.

  >>> import hawis_jax as hx, jax.numpy as jnp
  >>> net = {"params": {"head": {"kernel": jnp.ones((100, 64))}}}
  >>> placing = hx.Placing(("polarity", "permutation"), spare_columns=4)
  >>> hx.placing_overhead(net, hx.Device(), placing)
  Overhead(arrays=2, sign_bits=128, index_bits=768)
  """
  check_placing(placing, device)
  kernels = cells.matching(cells.kernels_of(variables["params"]), layers)
  (rows, columns), (slices, _) = (
    device.tile_shape,
    cells.cell_slices(device, bits),
  )
  arrays = before = used = 0
  each = copies(placing, _names(kernels))
  for kernel, of_layer in zip(kernels.values(), each, strict=True):
    *inputs, outputs = kernel.shape
    tall = slices * -(-math.prod(inputs) // rows)
    before += tall * -(-outputs // columns)
    tall *= of_layer
    arrays += tall * -(-outputs // (columns - placing.spare_columns))
    used += tall * outputs
  index = (columns - 1).bit_length()
  return Overhead(
    arrays=arrays - before,
    sign_bits=used * ("polarity" in placing.rules),
    index_bits=used * index * placing.moves,
  )
