"""Cells: what a net's weights program into the tiles of one chip.

A weight is an integer q in [-L, L] on a differential pair of cells, each with
L + 1 levels from g_off to g_on: G+ is at level max(q, 0), G- at max(-q, 0). Of
1 bit: L = 1 and +1 -> (g_on, g_off), -1 -> (g_off, g_on); of 8 bits: L = 127.
With `Device.cell_bits` = c, |q| is cut into slices of c bits, each a pair of
cells of 2^c levels in tiles of its own.

Axes: T tiles of all slices of all layers, R rows and C columns of a tile.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import errors
from hawis_jax.arithmetic import binary
from hawis_jax.arithmetic import integer
from hawis_jax.crossbar import defects
from hawis_jax.crossbar import devices
from hawis_jax.crossbar import tiles

# Computed at a time: 128 MB of float32. Of all cells of a large net compilers
# keep several arrays that long at once.
_CELLS = 2**25


class Cells(NamedTuple):
  """A layer's cells, `[slices, row_tiles, col_tiles, 2, R, C]` each.

  Axis 2: the positive and the negative array. Slices: see `Device.cell_bits`,
  least significant first. Cells beyond the matrix are targeted at g_off.

  Attributes:
    targets: what is programmed [S].
    conductances: what is there [S].
    faults: int8, 1 stuck on, -1 stuck off, 0 healthy.
    steps: of every cell, from g_off to g_on (a scalar).
  """

  targets: chex.Array
  conductances: chex.Array
  faults: chex.Array
  steps: chex.Numeric


def conductances(
  key: chex.PRNGKey,
  weights: chex.Array,
  device: devices.Device,
  bits: int = 1,
  write: chex.Numeric = 0,
) -> tuple[chex.Array, chex.Array]:
  """Programs one layer into the tiles of one chip.

  Args:
    key: of one layer of one chip; consumed.
    weights: latent kernel `[kh, kw, C_in, C_out]` or `[C_in, C_out]`.
    device: see `Device`.
    bits: 1: the weights' signs count (both cells of an exact 0 are off, as
      those of padding); 2 to 8: their integers, as of
      `quantization` with the kernel's own maximum.
    write: number of the programming, see `defects.cell_conductances`.

  Returns:
    (g_pos, g_neg), each `[row_tiles, col_tiles, R, C]` [S]; of weights that are
    sliced, `[slices, row_tiles, col_tiles, R, C]`, least significant first.
    Cells beyond the matrix are programmed to g_off in both arrays.

  Raises:
    InputError: other bits.
  """
  cut = cut_kernel(weights, device, bits)
  keys, integers = tile_keys([key], [cut]), stack_tiles([cut])
  _, g = program_tiles(keys, integers, None, device, bits, write)
  g = g.reshape(*cut.shape[:3], *g.shape[1:])
  if cut.shape[0] == 1:
    g = g[0]
  return g[..., 0, :, :], g[..., 1, :, :]


def chip_cells(
  key: chex.PRNGKey,
  variables: dict,
  device: devices.Device,
  bits: int = 1,
  write: chex.Numeric = 0,
  faults: Mapping[str, chex.Array] | None = None,
) -> dict[str, Cells]:
  """Returns the cells of the chip that `program` makes of the same arguments.

  Args, as `program`.

  Returns:
    {"scope/layer": its cells}.

  Raises:
    InputError: other bits; faults that don't fit.
  """
  kernels = kernels_of(variables["params"])
  keys = [jax.random.fold_in(key, layer) for layer in range(len(kernels))]
  names = ["/".join(path) for path in kernels]
  cuts = [cut_kernel(kernel, device, bits) for kernel in kernels.values()]
  measured = measured_faults(faults, names, cuts)
  keys, integers = tile_keys(keys, cuts), stack_tiles(cuts)
  targets, g = program_tiles(keys, integers, measured, device, bits, write)
  states = fault_states(keys, integers, measured, device)
  _, steps = cell_slices(device, bits)
  ends = np.cumsum([int(np.prod(cut.shape[:3])) for cut in cuts])[:-1]
  parts = [jnp.split(array, ends) for array in (targets, g, states)]
  return {
    name: Cells(
      *(part.reshape(*cut.shape[:3], *part.shape[1:]) for part in layer),
      steps,
    )
    for name, cut, *layer in zip(names, cuts, *parts, strict=True)
  }


def kernels_of(params: Mapping) -> Mapping[tuple[str, ...], chex.Array]:
  """{path of the layer: kernel}, sorted: a layer's place gives its key."""
  if all(isinstance(path, tuple) for path in params):
    return params
  flat = traverse_util.flatten_dict(params)
  return {
    path[:-1]: flat[path] for path in sorted(flat) if path[-1] == "kernel"
  }


def cell_slices(device: devices.Device, bits: int) -> tuple[int, int]:
  """(number of slices, steps of a cell from g_off to g_on)."""
  if bits == 1:
    return 1, 1
  if not device.cell_bits:
    return 1, integer.largest(bits) + device.spare_level
  return -(-(bits - 1) // device.cell_bits), 2**device.cell_bits - 1


def largest_digit(device: devices.Device, bits: int) -> int:
  """Of one slice of a weight."""
  slices, steps = cell_slices(device, bits)
  return steps if slices > 1 else integer.largest(bits)


def cut_kernel(
  kernel: chex.Array, device: devices.Device, bits: int
) -> chex.Array:
  """Integers `[slices, row_tiles, col_tiles, R, C]`; 0 where no weight is."""
  if bits not in range(1, 9):
    raise errors.InputError(
      f"bits of a crossbar's weights: got {bits}, allowed are 1 to 8"
    )
  if bits == 1:
    integers = binary.binarize_weights(kernel, zero=0)
  else:
    step = integer.scale(jnp.abs(kernel).max(), bits)
    integers = integer.quantize(kernel, step, bits)
  matrix = tiles.kernel_to_matrix(integers)[None]
  slices, steps = cell_slices(device, bits)
  if slices > 1:
    place = (steps + 1.0) ** np.arange(slices).reshape(-1, 1, 1)
    digit = jnp.floor(jnp.abs(matrix) / place) % (steps + 1)
    matrix = jnp.sign(matrix) * digit
  return jax.vmap(lambda x: tiles.split(x, device.tile_shape))(matrix)


def program_tiles(
  keys: chex.PRNGKey,
  integers: chex.Array,
  faults: chex.Array | None,
  device: devices.Device,
  bits: int,
  write: chex.Numeric,
) -> tuple[chex.Array, chex.Array]:
  """Returns (targets, conductances) of some tiles' cells, `[T, 2, R, C]`.

  All layers' tiles can be drawn in one call: a draw a layer multiplies the
  compile time of a deep net.

  Args:
    keys: `[T]`, from `tile_keys`.
    integers: `[T, R, C]`, from `stack_tiles`.
    faults: from `measured_faults`; None: none.
    device: see `Device`.
    bits: of the weights.
    write: number of the programming, see `defects.cell_conductances`.
  """
  # Not a maximum, for its gradient at 0: the positive cell's, as published.
  positive = integers >= 0
  levels = jnp.where(
    jnp.stack([positive, ~positive], axis=1),
    jnp.stack([integers, -integers], axis=1),
    0,
  )
  _, steps = cell_slices(device, bits)
  targets = defects.target_conductances(levels, steps, device)
  g = defects.cell_conductances(keys, targets, device, steps, write, faults)
  return targets, g


def fault_states(
  keys: chex.PRNGKey,
  integers: chex.Array,
  faults: chex.Array | None,
  device: devices.Device,
) -> chex.Array:
  """Which cells of some tiles are stuck, `[T, 2, R, C]`.

  int8: 1 stuck on, -1 stuck off, 0 healthy. Args, as `program_tiles`.
  """
  states = defects.fault_states(keys, (2, *integers.shape[1:]), device)
  return states if faults is None else jnp.where(faults, faults, states)


def ternary_weights(
  keys: chex.PRNGKey,
  integers: chex.Array,
  faults: chex.Array | None,
  device: devices.Device,
) -> chex.Array:
  """1-bit weights of tiles whose cells are stuck at most, int8 `[T, R, C]`.

  -1, 0 or 1: the integers that the conductances of `program_tiles` amount to.
  Args, as there; no gradient.
  """
  states = fault_states(keys, integers, faults, device)
  signs = integers[:, None]
  targets = jnp.concatenate([signs > 0, signs < 0], axis=1)
  is_on = jnp.where(states == 0, targets, states > 0).astype(jnp.int8)
  return is_on[:, 0] - is_on[:, 1]


def in_blocks(
  function: Callable[..., Any],
  keys: chex.PRNGKey,
  integers: chex.Array,
  faults: chex.Array | None,
) -> Any:
  """Computes a function of tiles, of a large net some tiles after the others.

  Args:
    function: (keys, integers, faults) of some tiles -> arrays `[T, ...]`; what
      is computed of a tile depends on that tile alone.
    keys: `[T]`, from `tile_keys`.
    integers: `[T, R, C]`, from `stack_tiles`.
    faults: from `measured_faults`.

  Returns:
    Of all tiles, what the function returns.
  """
  arguments = keys, integers, faults
  num, rows, columns = integers.shape
  blocks = -(-num // max(_CELLS // (2 * rows * columns), 1))
  if blocks == 1:
    return function(*arguments)
  size = -(-num // blocks)

  def cut(array):
    last = jnp.repeat(array[-1:], blocks * size - num, axis=0)
    padded = jnp.concatenate([array, last])
    return padded.reshape(blocks, size, *array.shape[1:])

  found = jax.lax.map(
    lambda block: function(*block), jax.tree.map(cut, arguments)
  )
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num], found)


def measured_faults(
  faults: Mapping[str, chex.Array] | None,
  names: Sequence[str],
  cuts: Sequence[chex.Array],
) -> chex.Array | None:
  """All layers' measured faults, int8 `[T, 2, R, C]`; None: none.

  A wider net's map serves a narrower one: its cells are the first ones.
  """
  if faults is None:
    return None
  unknown = sorted(set(faults) - set(names))
  if unknown:
    raise errors.InputError(
      f"faults: got layer {unknown[0]!r}, allowed are {', '.join(names)}"
    )
  states = []
  for name, cut in zip(names, cuts, strict=True):
    needed = (*cut.shape[:3], 2, *cut.shape[3:])
    array = faults.get(name, np.zeros(needed, np.int8))
    fits = array.ndim == 6 and array.shape[3:] == needed[3:]
    if not fits or any(a < b for a, b in zip(array.shape, needed, strict=True)):
      raise errors.InputError(
        f"faults of {name}: got an array of shape {tuple(array.shape)}, needed "
        f"is at least {needed} (slices, row tiles, column tiles, 2, rows, "
        "columns)"
      )
    slices, row_tiles, col_tiles = needed[:3]
    array = jnp.sign(jnp.asarray(array)[:slices, :row_tiles, :col_tiles])
    states.append(array.astype(jnp.int8).reshape(-1, *needed[3:]))
  return jnp.concatenate(states)


def stack_tiles(cuts: Sequence[chex.Array]) -> chex.Array:
  """All layers' tiles, `[T, R, C]`."""
  return jnp.concatenate([cut.reshape(-1, *cut.shape[3:]) for cut in cuts])


def tile_keys(
  keys: Sequence[chex.PRNGKey], cuts: Sequence[chex.Array]
) -> chex.PRNGKey:
  """Keys of all layers' tiles, `[T]`, from the layers'."""
  found = [
    defects.tile_keys(key, cut.shape[1:3], cell_slice)
    for key, cut in zip(keys, cuts, strict=True)
    for cell_slice in range(cut.shape[0])
  ]
  return jnp.concatenate(found)
